"""Phi-1 to Phi-4: partly rotary attention; at first with layer norms and layers side by side, later much as Llama.

Mixtures (phimoe) are not among them: they have layer norms and an order of their own for choosing experts, and llama.cpp
computes RMS norms and the usual choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST
from hubq.formats.gguf.hparams import (
    GELU,
    WITHOUT_FACTORS,
    Config,
    Rope,
    choice,
    common,
    flag,
    heads,
    number,
    only,
    real,
    rope,
    rope_settings,
)
from hubq.formats.gguf.tensors import Table, Tensor, draw

HEAD = "lm_head.weight"

PHI: Table = {
    "input_layernorm.weight": "hidden",
    "input_layernorm.bias": "hidden",
    "self_attn.q_proj.weight": "query hidden",
    "self_attn.q_proj.bias": "query",
    "self_attn.k_proj.weight": "key hidden",
    "self_attn.k_proj.bias": "key",
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.v_proj.bias": "key",
    "self_attn.dense.weight": "hidden query",
    "self_attn.dense.bias": "hidden",
    "mlp.fc1.weight": "inner hidden",
    "mlp.fc1.bias": "inner",
    "mlp.fc2.weight": "hidden inner",
    "mlp.fc2.bias": "hidden",
}
PHI_LAST: Table = {
    "model.final_layernorm.weight": "hidden",
    "model.final_layernorm.bias": "hidden",
    HEAD: "vocab hidden",
    "lm_head.bias": "vocab",
}
PHI3: Table = {
    "input_layernorm.weight": "hidden",
    "self_attn.qkv_proj.weight": "qkv hidden",
    "self_attn.o_proj.weight": "hidden query",
    "post_attention_layernorm.weight": "hidden",
    "mlp.gate_up_proj.weight": "both hidden",
    "mlp.down_proj.weight": "hidden inner",
}
PHI3_LAST: Table = {"model.norm.weight": "hidden"}


def sizes(config: Config) -> dict[str, int]:
    """Those of attention and of what phi3 fuses."""
    size = heads(config)
    only(config, "head_dim", size["hidden"] // size["heads"])
    return size | {"qkv": size["query"] + 2 * size["key"], "both": 2 * size["inner"]}


def phi_keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters of Phi-1 and Phi-2 as GGUF keys."""
    size = sizes(config)
    choice(config, "hidden_act", GELU, "gelu_new")
    only(config, "qk_layernorm", False)
    only(config, "tie_word_embeddings", False)
    turned = rope({"partial_rotary_factor": 0.5, **config}, size["head"], WITHOUT_FACTORS)
    table = common(size, config) | dict(turned.keys)
    return table | {".attention.layer_norm_epsilon": real(config, "layer_norm_eps", 1e-5)}


def phi_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return draw("phi2", sizes(config), stored, FIRST, PHI, PHI_LAST)


def phi3_rope(config: Config, head: int) -> Rope:
    """As transformers reads it: "yarn" is what longrope was once called here, and the original context stands on its own."""
    settings = rope_settings(config) | {
        "original_max_position_embeddings": number(config, "original_max_position_embeddings", 4096)
    }
    if settings["rope_type"] == "yarn":
        settings["rope_type"] = "longrope"
    return rope({**config, "rope_parameters": settings}, head, ("default", "longrope"))


def phi3_keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters of Phi-3, 3.5 and 4 as GGUF keys. Some versions of llama.cpp take a missing window for Phi-3's."""
    size = sizes(config)
    choice(config, "hidden_act", ("silu", "swish"))
    table = common(size, config) | dict(phi3_rope(config, size["head"]).keys)
    return table | {
        ".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-5),
        ".attention.sliding_window": 0 if config.get("sliding_window") is None else number(config, "sliding_window"),
    }


def phi3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    size, tied = sizes(config), flag(config, "tie_word_embeddings")
    last = PHI3_LAST if tied else {**PHI3_LAST, HEAD: "vocab hidden"}
    table = draw("phi3", size, stored, FIRST, PHI3, last, ignored=lambda name: name == HEAD and tied)
    return [*table, *phi3_rope(config, size["head"]).tensors]


MODELS = {
    "phi": Family(("PhiForCausalLM",), "phi2", phi_keys, phi_tensors),
    "phi3": Family(("Phi3ForCausalLM",), "phi3", phi3_keys, phi3_tensors),
}
