"""GPT-NeoX and Pythia: query, key and value in one tensor, partly rotary, feed-forward beside attention or behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.hparams import GELU, WITHOUT_FACTORS, Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw, joined, unfused

QKV = joined(unfused(0), unfused(1), unfused(2))
MASK = ".attention.bias"

FIRST: Table = {"gpt_neox.embed_in.weight": "vocab hidden"}
LAYER: Table = {
    "input_layernorm.weight": "hidden",
    "input_layernorm.bias": "hidden",
    "attention.query_key_value.weight": Part("qkv hidden", rows=QKV),
    "attention.query_key_value.bias": Part("qkv", rows=QKV),
    "attention.dense.weight": "hidden hidden",
    "attention.dense.bias": "hidden",
    "post_attention_layernorm.weight": "hidden",
    "post_attention_layernorm.bias": "hidden",
    "mlp.dense_h_to_4h.weight": "inner hidden",
    "mlp.dense_h_to_4h.bias": "inner",
    "mlp.dense_4h_to_h.weight": "hidden inner",
    "mlp.dense_4h_to_h.bias": "hidden",
}
LAST: Table = {
    "gpt_neox.final_layer_norm.weight": "hidden",
    "gpt_neox.final_layer_norm.bias": "hidden",
    "embed_out.weight": "vocab hidden",
}


def usual(config: Config) -> dict[str, Any]:
    """config.json under the usual names of settings, with what follows from them: heads are equal parts of the hidden size."""
    table = {**config, "num_key_value_heads": None, "head_dim": None, "rope_theta": config.get("rotary_emb_base")}
    turned = config.get("rotary_pct")
    return table | {"partial_rotary_factor": 0.25 if turned is None else turned}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = usual(config)
    size = heads(config)
    choice(config, "hidden_act", GELU, "gelu")
    only(config, "attention_bias", True)
    only(config, "tie_word_embeddings", False)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {
        ".attention.layer_norm_epsilon": real(config, "layer_norm_eps", 1e-5),
        ".use_parallel_residual": flag(config, "use_parallel_residual", True),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    size = heads(usual(config))
    size |= {"qkv": 3 * size["hidden"]}
    return draw(
        "gptneox", size, stored, FIRST, LAYER, LAST, prefix="gpt_neox.layers.", ignored=lambda name: name.endswith(MASK)
    )


MODELS = {"gpt_neox": Family(("GPTNeoXForCausalLM",), "gptneox", keys, tensors)}
