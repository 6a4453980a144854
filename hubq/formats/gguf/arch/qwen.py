"""Qwen 2 and 3: Llama's layers with biases on queries, keys and values, or norms of their heads, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.errors import Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, PROJECTIONS, ignored, last
from hubq.formats.gguf.hparams import (
    WITHOUT_FACTORS,
    Config,
    choice,
    common,
    experts,
    flag,
    heads,
    number,
    only,
    real,
    rope,
    rope_settings,
)
from hubq.formats.gguf.tensors import EXPERT, Part, Sizes, Table, Tensor, draw

ATTENTION: Table = {
    "input_layernorm.weight": "hidden",
    **PROJECTIONS,
    "post_attention_layernorm.weight": "hidden",
}
BIASES: Table = {"self_attn.q_proj.bias": "query", "self_attn.k_proj.bias": "key", "self_attn.v_proj.bias": "key"}
HEAD_NORMS: Table = {"self_attn.q_norm.weight": "head", "self_attn.k_norm.weight": "head"}
EXPERTS: Table = {
    "mlp.gate.weight": "experts hidden",
    f"mlp.experts.{EXPERT}.gate_proj.weight": "expert_inner hidden",
    f"mlp.experts.{EXPERT}.up_proj.weight": "expert_inner hidden",
    f"mlp.experts.{EXPERT}.down_proj.weight": "hidden expert_inner",
}
SHARED_EXPERT: Table = {
    "mlp.shared_expert_gate.weight": Part("1 hidden", shape="hidden"),
    "mlp.shared_expert.gate_proj.weight": "shared_inner hidden",
    "mlp.shared_expert.up_proj.weight": "shared_inner hidden",
    "mlp.shared_expert.down_proj.weight": "hidden shared_inner",
}

# settings that config.json may leave out, as transformers fills them in
DEFAULTS: Mapping[str, Config] = {
    "qwen2": {"num_key_value_heads": 32},
    "qwen2_moe": {"num_key_value_heads": 16},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4, "norm_topk_prob": False},
}


def _settled(config: Config) -> Config:
    return {**DEFAULTS[config["model_type"]], **config}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = heads(config)
    choice(config, "hidden_act", ("silu", "swish"))
    only(rope_settings(config), "partial_rotary_factor", 1)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6)}


def tensors(architecture: str, config: Config, size: Sizes, stored: Mapping[str, StoredTensor], layer: Table) -> list[Tensor]:
    """All tensors in file order, of layers that are alike."""
    return draw(architecture, size, stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))


def square(size: Sizes) -> None:
    """Refuse heads that are together wider or narrower than the model, as llama.cpp does for some architectures."""
    if size["query"] != size["hidden"]:
        raise Unsupported(
            f"llama.cpp wants {size['heads']} heads of {size['head']} to make hidden_size {size['hidden']} for this family",
            "use a model with head_dim hidden_size / num_attention_heads",
        )


# --- dense ---


def qwen2_keys(config: Config) -> dict[str, Any]:
    """Those of Llama."""
    config = _settled(config)
    square(heads(config))
    return keys(config)


def qwen2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = _settled(config)
    return tensors("qwen2", config, heads(config), stored, {**ATTENTION, **BIASES, **FEED_FORWARD})


def qwen3_keys(config: Config) -> dict[str, Any]:
    """Those of Llama."""
    config = _settled(config)
    only(config, "attention_bias", False)
    return keys(config)


def qwen3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = _settled(config)
    return tensors("qwen3", config, heads(config), stored, {**ATTENTION, **HEAD_NORMS, **FEED_FORWARD})


# --- mixtures of experts ---


def _mixture_sizes(config: Config) -> dict[str, int]:
    count = "num_experts" if config.get("num_local_experts") is None else "num_local_experts"
    size = heads(config) | experts(config, count, "num_experts_per_tok")
    return size | {"expert_inner": number(config, "moe_intermediate_size")}


def _mixture_keys(config: Config, size: Sizes) -> dict[str, Any]:
    only(config, "decoder_sparse_step", 1)
    only(config, "mlp_only_layers", [])
    return keys(config) | {
        ".expert_count": size["experts"],
        ".expert_used_count": size["used"],
        ".expert_feed_forward_length": size["expert_inner"],
    }


def _qwen2_moe_sizes(config: Config) -> dict[str, int]:
    return _mixture_sizes(config) | {"shared_inner": number(config, "shared_expert_intermediate_size")}


def qwen2_moe_keys(config: Config) -> dict[str, Any]:
    """Those of Llama, and the counts and sizes of experts."""
    config = _settled(config)
    only(config, "norm_topk_prob", False)
    only(config, "tie_word_embeddings", False)
    size = _qwen2_moe_sizes(config)
    square(size)
    return _mixture_keys(config, size) | {".expert_shared_feed_forward_length": size["shared_inner"]}


def qwen2_moe_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = _settled(config)
    biases = BIASES if flag(config, "qkv_bias", True) else {}
    return tensors("qwen2moe", config, _qwen2_moe_sizes(config), stored, {**ATTENTION, **biases, **EXPERTS, **SHARED_EXPERT})


def qwen3_moe_keys(config: Config) -> dict[str, Any]:
    """Those of Llama, and the count and size of experts."""
    config = _settled(config)
    only(config, "norm_topk_prob", True)
    only(config, "attention_bias", False)
    return _mixture_keys(config, _mixture_sizes(config))


def qwen3_moe_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = _settled(config)
    return tensors("qwen3moe", config, _mixture_sizes(config), stored, {**ATTENTION, **HEAD_NORMS, **EXPERTS})


MODELS = {
    "qwen2": Family(("Qwen2ForCausalLM",), "qwen2", qwen2_keys, qwen2_tensors),
    "qwen2_moe": Family(("Qwen2MoeForCausalLM",), "qwen2moe", qwen2_moe_keys, qwen2_moe_tensors),
    "qwen3": Family(("Qwen3ForCausalLM",), "qwen3", qwen3_keys, qwen3_tensors),
    "qwen3_moe": Family(("Qwen3MoeForCausalLM",), "qwen3moe", qwen3_moe_keys, qwen3_moe_tensors),
}
