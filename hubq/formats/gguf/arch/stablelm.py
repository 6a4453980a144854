"""StableLM: partly rotary attention, layer norms, a gated feed-forward layer beside attention or behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST, PROJECTIONS
from hubq.formats.gguf.hparams import WITHOUT_FACTORS, Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

ATTENTION: Table = {
    "input_layernorm.weight": "hidden",
    "input_layernorm.bias": "hidden",
    **PROJECTIONS,
}
ATTENTION_BIAS: Table = {"self_attn.q_proj.bias": "query", "self_attn.k_proj.bias": "key", "self_attn.v_proj.bias": "key"}
HEAD_NORMS: Table = {
    "self_attn.q_layernorm.norms.{heads}.weight": Part("head", "attn_q_norm.weight"),
    "self_attn.k_layernorm.norms.{kv_heads}.weight": Part("head", "attn_k_norm.weight"),
}
SECOND_NORM: Table = {"post_attention_layernorm.weight": "hidden", "post_attention_layernorm.bias": "hidden"}
FEED_FORWARD: Table = {
    "mlp.gate_proj.weight": "inner hidden",
    "mlp.up_proj.weight": "inner hidden",
    "mlp.down_proj.weight": "hidden inner",
}
LAST: Table = {"model.norm.weight": "hidden", "model.norm.bias": "hidden", "lm_head.weight": "vocab hidden"}


def usual(config: Config) -> dict[str, Any]:
    """config.json with what transformers takes where it says nothing."""
    return {"num_key_value_heads": 32, "partial_rotary_factor": 0.25, **config, "head_dim": None}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = usual(config)
    size = heads(config)
    choice(config, "hidden_act", ("silu", "swish"))
    only(config, "tie_word_embeddings", False)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {
        ".attention.layer_norm_epsilon": real(config, "layer_norm_eps", 1e-5),
        ".use_parallel_residual": flag(config, "use_parallel_residual"),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order. llama.cpp computes both layers side by side where the second norm is missing."""
    layer = dict(ATTENTION)
    layer |= ATTENTION_BIAS if flag(config, "use_qkv_bias") else {}
    layer |= HEAD_NORMS if flag(config, "qk_layernorm") else {}
    layer |= {} if flag(config, "use_parallel_residual") else SECOND_NORM
    layer |= FEED_FORWARD
    return draw("stablelm", heads(usual(config)), stored, FIRST, layer, LAST)


MODELS = {"stablelm": Family(("StableLmForCausalLM",), "stablelm", keys, tensors)}
