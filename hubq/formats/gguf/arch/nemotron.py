"""Nemotron and Minitron: layer norms whose weights count from one, squared ReLU, rotary embeddings on a part of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST, PROJECTIONS, ignored
from hubq.formats.gguf.hparams import WITHOUT_FACTORS, Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

NORM = Part("hidden", plus=1.0)
LAYER: Table = {
    "input_layernorm.weight": NORM,
    "input_layernorm.bias": "hidden",
    **PROJECTIONS,
    "post_attention_layernorm.weight": NORM,
    "post_attention_layernorm.bias": "hidden",
    "mlp.up_proj.weight": "inner hidden",
    "mlp.down_proj.weight": "hidden inner",
}
ATTENTION_BIAS: Table = {
    "self_attn.q_proj.bias": "query",
    "self_attn.k_proj.bias": "key",
    "self_attn.v_proj.bias": "key",
    "self_attn.o_proj.bias": "hidden",
}
MLP_BIAS: Table = {"mlp.up_proj.bias": "inner", "mlp.down_proj.bias": "hidden"}
LAST: Table = {"model.norm.weight": NORM, "model.norm.bias": "hidden", "lm_head.weight": "vocab hidden"}

# what transformers takes for settings that config.json leaves out
DEFAULTS = {"vocab_size": 256000, "max_position_embeddings": 4096, "partial_rotary_factor": 0.5}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = {**DEFAULTS, **config}
    choice(config, "hidden_act", ("relu2",))
    only(config, "tie_word_embeddings", False)
    size = heads(config)
    only(config, "head_dim", size["hidden"] // size["heads"])
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {".attention.layer_norm_epsilon": real(config, "norm_eps", 1e-5)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    config, layer = {**DEFAULTS, **config}, dict(LAYER)
    layer |= ATTENTION_BIAS if flag(config, "attention_bias") else {}
    layer |= MLP_BIAS if flag(config, "mlp_bias") else {}
    return draw("nemotron", heads(config), stored, FIRST, layer, LAST, ignored=lambda name: ignored(config, name))


MODELS = {"nemotron": Family(("NemotronForCausalLM",), "nemotron", keys, tensors)}
