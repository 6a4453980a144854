"""StarCoder2: rotary attention with grouped heads, layer norms, a plain feed-forward layer, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST
from hubq.formats.gguf.hparams import GELU, WITHOUT_FACTORS, Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Table, Tensor, draw

HEAD = "lm_head.weight"

LAYER: Table = {
    "input_layernorm.weight": "hidden",
    "input_layernorm.bias": "hidden",
    "self_attn.q_proj.weight": "query hidden",
    "self_attn.q_proj.bias": "query",
    "self_attn.k_proj.weight": "key hidden",
    "self_attn.k_proj.bias": "key",
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.v_proj.bias": "key",
    "self_attn.o_proj.weight": "hidden query",
    "self_attn.o_proj.bias": "hidden",
    "post_attention_layernorm.weight": "hidden",
    "post_attention_layernorm.bias": "hidden",
    "mlp.c_fc.weight": "inner hidden",
    "mlp.c_fc.bias": "inner",
    "mlp.c_proj.weight": "hidden inner",
    "mlp.c_proj.bias": "hidden",
}
LAST: Table = {"model.norm.weight": "hidden", "model.norm.bias": "hidden"}


def sizes(config: Config) -> dict[str, int]:
    size = heads({"num_key_value_heads": 2, **config})
    only(config, "head_dim", size["hidden"] // size["heads"])
    return size


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = sizes(config)
    choice(config, "hidden_act", GELU)
    only(config, "use_bias", True)
    only(config, "partial_rotary_factor", 1)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {
        ".attention.layer_norm_epsilon": real(config, "norm_epsilon", 1e-5),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    tied = flag(config, "tie_word_embeddings", True)
    last = LAST if tied else {**LAST, HEAD: "vocab hidden"}
    return draw("starcoder2", sizes(config), stored, FIRST, LAYER, last, ignored=lambda name: name == HEAD and tied)


MODELS = {"starcoder2": Family(("Starcoder2ForCausalLM",), "starcoder2", keys, tensors)}
