"""Llama and its twins: rotary attention with grouped heads, RMS norms and a gated feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.arch import Tensor, flag, match, number, real

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
GGUF = "llama"

# tensors of the model, and of each layer: Hub name -> shape in the dimensions of `dimensions`
ENDS = {"model.embed_tokens.weight": "vocab hidden", "model.norm.weight": "hidden", "lm_head.weight": "vocab hidden"}
LAYER = {
    "input_layernorm.weight": "hidden",
    "self_attn.q_proj.weight": "query hidden",
    "self_attn.k_proj.weight": "key hidden",
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.o_proj.weight": "hidden query",
    "post_attention_layernorm.weight": "hidden",
    "mlp.gate_proj.weight": "inner hidden",
    "mlp.up_proj.weight": "inner hidden",
    "mlp.down_proj.weight": "hidden inner",
}
BIASES = {
    "attention_bias": {
        "self_attn.q_proj.bias": "query",
        "self_attn.k_proj.bias": "key",
        "self_attn.v_proj.bias": "key",
        "self_attn.o_proj.bias": "hidden",
    },
    "mlp_bias": {"mlp.gate_proj.bias": "inner", "mlp.up_proj.bias": "inner", "mlp.down_proj.bias": "hidden"},
}
# rotary scaling -> the settings that it needs
ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a model. Raises BadSource where config.json lacks one or they do not fit together."""
    hidden, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    if hidden % heads:
        raise BadSource(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}", AGAIN)
    kv_heads = number(config, "num_key_value_heads", heads)
    head = number(config, "head_dim", hidden // heads)
    if head % 2 or heads % kv_heads:
        raise BadSource(
            f"config.json: {heads} query heads, {kv_heads} key heads and a head size of {head} do not fit together", AGAIN
        )
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "query": heads * head,
        "key": kv_heads * head,
        "inner": number(config, "intermediate_size"),
        "vocab": number(config, "vocab_size"),
        "layers": number(config, "num_hidden_layers"),
    }


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings under transformers' current names, from where either generation of config.json keeps them.

    Raises Unsupported for a kind of scaling that is not known here, BadSource for settings that make no sense.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise BadSource(f"config.json: the rotary settings should be a table, but are {settings!r}", AGAIN)
    settings = dict(settings)
    settings.setdefault("rope_type", settings.pop("type", "default"))
    settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE or settings.get("partial_rotary_factor", 1) != 1:
        raise Unsupported(
            f"hubq does not convert rotary embeddings of type {kind!r} for this family; it knows {', '.join(ROPE)}",
            "a new kind is a few lines in hubq/formats/gguf/arch/llama.py, see CONTRIBUTING.md",
        )
    settings |= {key: real(settings, key) for key in ("rope_theta", *ROPE[kind])}
    if kind == "llama3" and not settings["low_freq_factor"] < settings["high_freq_factor"]:
        raise BadSource("config.json: low_freq_factor should be less than high_freq_factor", AGAIN)
    return settings


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys, without the prefix `llama`."""
    size, rotary = dimensions(config), rope(config)
    if (activation := config.get("hidden_act") or "silu") not in ("silu", "swish"):
        raise Unsupported(
            f"the feed-forward layers use {activation!r}, and llama.cpp computes SiLU for this family",
            "look for a model of this family with `hidden_act` silu",
        )
    table: dict[str, Any] = {
        ".vocab_size": size["vocab"],
        ".context_length": number(config, "max_position_embeddings"),
        ".embedding_length": size["hidden"],
        ".block_count": size["layers"],
        ".feed_forward_length": size["inner"],
        ".rope.dimension_count": size["head"],
        ".rope.freq_base": rotary["rope_theta"],
        ".attention.head_count": size["heads"],
        ".attention.head_count_kv": size["kv_heads"],
        ".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6),
    }
    if config.get("head_dim") is not None:
        table |= {".attention.key_length": size["head"], ".attention.value_length": size["head"]}
    if rotary["rope_type"] == "linear":
        table |= {".rope.scaling.type": "linear", ".rope.scaling.factor": rotary["factor"]}
    return table


def tensors(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order.

    Raises BadSource for any that is missing, superfluous or of another shape than config.json says.
    """
    layer = LAYER | {name: shape for biased, table in BIASES.items() if flag(config, biased) for name, shape in table.items()}
    shapes = matched(config, stored, dimensions(config), layer)
    return listed(config, {name: ((name,), shape) for name, shape in shapes.items()})


def matched(
    config: Mapping[str, Any], stored: Mapping[str, StoredTensor], size: Mapping[str, int], layer: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors by name with their shapes, for layers that hold the tensors of the table `layer`.

    Raises BadSource for any that is missing, superfluous or of another shape than `size` says.
    """
    tied = flag(config, "tie_word_embeddings")
    if size["layers"] > len(stored):
        raise BadSource(f"config.json calls for {size['layers']} layers, the checkpoint holds {len(stored)} tensors", AGAIN)
    first, norm, head = ENDS
    wanted = {first: ENDS[first]}
    for block in range(size["layers"]):
        wanted |= {f"model.layers.{block}.{name}": shape for name, shape in layer.items()}
    wanted |= {norm: ENDS[norm]} if tied else {norm: ENDS[norm], head: ENDS[head]}
    shapes = {name: tuple(size[part] for part in shape.split()) for name, shape in wanted.items()}
    match(shapes, stored, ignored=lambda name: name.endswith("rotary_emb.inv_freq") or (tied and name == head))
    return shapes


def listed(config: Mapping[str, Any], found: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]) -> list[Tensor]:
    """The GGUF's tensors from their names in transformers, each with its sources and shape."""
    size, factors = dimensions(config), rope_factors(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, size["layers"])
    tensors = [
        Tensor(str(names.get_name(name, (".weight", ".bias"))), shape, sources, _rows(name, size))
        for name, (sources, shape) in found.items()
    ]
    return tensors if factors is None else [*tensors, Tensor("rope_freqs.weight", factors.shape, values=factors)]


def _rows(name: str, size: Mapping[str, int]) -> np.ndarray | None:
    """Query and key rows in the order of llama.cpp's rotary embedding: each head's two halves interleaved."""
    heads = {"q_proj": "heads", "k_proj": "kv_heads"}.get(name.split(".")[-2])
    if heads is None:
        return None
    return np.arange(size[heads] * size["head"]).reshape(size[heads], 2, size["head"] // 2).swapaxes(1, 2).reshape(-1)


def rope_factors(config: Mapping[str, Any]) -> np.ndarray | None:
    """The divisor of each rotary frequency in Llama 3.1 scaling, float32 [head / 2], or None for other models.

    Source: transformers' `_compute_llama3_parameters`. Wavelengths below `low` stay, those above `high` are stretched by
    `factor`, those between get a blend.
    """
    settings = rope(config)
    if settings["rope_type"] != "llama3":
        return None
    head, base, factor = dimensions(config)["head"], settings["rope_theta"], settings["factor"]
    slow, fast, context = (settings[key] for key in ROPE["llama3"][1:])
    factors = []
    for pair in range(head // 2):
        turns = context / (2 * math.pi * base ** (2 * pair / head))
        blend = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        factors.append(1 / ((1 - blend) / factor + blend))
    return np.array(factors, np.float32)
