"""OLMo, OLMo 2 and 3, OLMoE: norms without weights, norms behind the layers, or experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ATTENTION as LLAMA_ATTENTION
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, LAST, PROJECTIONS, ignored, last
from hubq.formats.gguf.hparams import (
    WITHOUT_FACTORS,
    Config,
    choice,
    common,
    experts,
    heads,
    number,
    only,
    real,
    rope,
    rope_settings,
    sliding,
)
from hubq.formats.gguf.tensors import EXPERT, Table, Tensor, draw

OLMO: Table = {name: part for name, part in LLAMA_ATTENTION.items() if not name.endswith("layernorm.weight")}
ATTENTION: Table = {
    **PROJECTIONS,
    "self_attn.q_norm.weight": "query",
    "self_attn.k_norm.weight": "key",
}
NORMS_BEFORE: Table = {"input_layernorm.weight": "hidden", "post_attention_layernorm.weight": "hidden"}
NORMS_BEHIND: Table = {"post_attention_layernorm.weight": "hidden", "post_feedforward_layernorm.weight": "hidden"}
EXPERTS: Table = {
    "mlp.gate.weight": "experts hidden",
    f"mlp.experts.{EXPERT}.gate_proj.weight": "inner hidden",
    f"mlp.experts.{EXPERT}.up_proj.weight": "inner hidden",
    f"mlp.experts.{EXPERT}.down_proj.weight": "hidden inner",
}


def _sizes(config: Config) -> dict[str, int]:
    """Those of attention, which in llama.cpp is as wide as the hidden state and has no biases in these families."""
    size = heads(config)
    only(config, "head_dim", size["hidden"] // size["heads"])
    only(config, "attention_bias", False)
    choice(config, "hidden_act", ("silu", "swish"))
    return size


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = _sizes(config)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    table |= {".attention.layer_norm_epsilon": 1e-5}  # a constant of transformers' OlmoLayerNorm
    return table if config.get("clip_qkv") is None else table | {".attention.clamp_kqv": real(config, "clip_qkv")}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    behind = {name: part for name, part in last(config).items() if name != "model.norm.weight"}
    layer = {**OLMO, **FEED_FORWARD}
    return draw("olmo", _sizes(config), stored, FIRST, layer, behind, ignored=lambda name: ignored(config, name))


def olmo2_keys(config: Config) -> dict[str, Any]:
    """Those of OLMo; the norms have weights, and no square of a mean is taken off."""
    size = _sizes(config)
    only(config, "tie_word_embeddings", False)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS, "full_attention").keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-5)}


def olmo2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    layer = {**ATTENTION, **FEED_FORWARD, **NORMS_BEHIND}
    return draw("olmo2", _sizes(config), stored, FIRST, layer, LAST, ignored=lambda name: ignored(config, name))


def olmo3_keys(config: Config) -> dict[str, Any]:
    """Those of OLMo 2, and which layers look back through a window: three of four, where config.json does not say."""
    config = {"rope_theta": 500000.0, **config}
    table = olmo2_keys(config)
    windows = sliding(config, table[".block_count"], 4)
    if not any(windows):
        return table
    if isinstance(config.get("rope_parameters"), dict):  # llama.cpp scales the rotary embeddings of full attention only
        near = rope_settings(config, "sliding_attention")
        only(near, "rope_type", "default")
        only(near, "rope_theta", table[".rope.freq_base"])
    table[".attention.sliding_window"] = number(config, "sliding_window", 4096)
    table[".attention.sliding_window_pattern"] = windows
    return table


def olmoe_sizes(config: Config) -> dict[str, int]:
    return _sizes(config) | experts(config, "num_experts", "num_experts_per_tok", (64, 8))


def olmoe_keys(config: Config) -> dict[str, Any]:
    """Those of OLMo 2, and the counts of experts; llama.cpp neither clips nor groups heads here, nor sums weights up to one."""
    size = olmoe_sizes(config)
    only(config, "clip_qkv")
    only(config, "norm_topk_prob", False)
    only(config, "num_key_value_heads", size["heads"])
    return olmo2_keys(config) | {".expert_count": size["experts"], ".expert_used_count": size["used"]}


def olmoe_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; each of an expert's three is stacked over all experts of its layer."""
    layer = {**ATTENTION, **NORMS_BEFORE, **EXPERTS}
    return draw("olmoe", olmoe_sizes(config), stored, FIRST, layer, LAST, ignored=lambda name: ignored(config, name))


MODELS = {
    "olmo": Family(("OlmoForCausalLM",), "olmo", keys, tensors),
    "olmo2": Family(("Olmo2ForCausalLM",), "olmo2", olmo2_keys, olmo2_tensors),
    "olmo3": Family(("Olmo3ForCausalLM",), "olmo2", olmo3_keys, olmo2_tensors),
    "olmoe": Family(("OlmoeForCausalLM",), "olmoe", olmoe_keys, olmoe_tensors),
}
