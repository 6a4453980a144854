"""Granite and Granite MoE: Llama with multipliers on embeddings, attention, residuals and logits; experts stored in stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ATTENTION, ATTENTION_BIAS, FEED_FORWARD, FIRST, MLP_BIAS, ignored, last
from hubq.formats.gguf.hparams import Config, choice, common, experts, flag, heads, number, real, rope
from hubq.formats.gguf.tensors import Part, Sizes, Table, Tensor, draw

# config.json -> GGUF; all are 1 where config.json does not say
SCALES = {
    "embedding_multiplier": ".embedding_scale",
    "attention_multiplier": ".attention.scale",
    "residual_multiplier": ".residual_scale",
    "logits_scaling": ".logit_scale",
}


def half(which: int, matrices: str, rows: str) -> Callable[[Sizes], np.ndarray]:
    """The upper (0) or lower (1) half of each of so many matrices of twice so many rows."""
    return lambda size: np.arange(size[matrices] * 2 * size[rows]).reshape(-1, 2, size[rows])[:, which].reshape(-1)


EXPERTS: Table = {
    "block_sparse_moe.router.layer.weight": "experts hidden",
    "block_sparse_moe.input_linear.weight": (
        Part("experts both hidden", "ffn_gate_exps.weight", "experts inner hidden", half(0, "experts", "inner")),
        Part("experts both hidden", "ffn_up_exps.weight", "experts inner hidden", half(1, "experts", "inner")),
    ),
    "block_sparse_moe.output_linear.weight": "experts hidden inner",
}
SHARED: Table = {
    "shared_mlp.input_linear.weight": (
        Part("shared_both hidden", "ffn_gate_shexp.weight", "shared hidden", half(0, "one", "shared")),
        Part("shared_both hidden", "ffn_up_shexp.weight", "shared hidden", half(1, "one", "shared")),
    ),
    "shared_mlp.output_linear.weight": "hidden shared",
}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = heads(config)
    choice(config, "hidden_act", ("silu", "swish"))
    table = common(size, config) | dict(rope(config, size["head"]).keys)
    table |= {key: real(config, name, 1.0) for name, key in SCALES.items()}
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    layer = {**ATTENTION, **FEED_FORWARD, **(MLP_BIAS if flag(config, "mlp_bias") else {})}
    return _draw("granite", config, heads(config), stored, layer)


def _draw(
    architecture: str, config: Config, size: Mapping[str, int], stored: Mapping[str, StoredTensor], layer: Table
) -> list[Tensor]:
    layer = {**layer, **(ATTENTION_BIAS if flag(config, "attention_bias") else {})}
    table = draw(architecture, size, stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))
    return [*table, *rope(config, size["head"]).tensors]


def moe_sizes(config: Config) -> dict[str, int]:
    size = heads(config) | experts(config, "num_local_experts", "num_experts_per_tok", (8, 2))
    size["both"] = 2 * size["inner"]  # gate and up
    if config.get("shared_intermediate_size"):
        size["shared"] = number(config, "shared_intermediate_size")
        size |= {"one": 1, "shared_both": 2 * size["shared"]}
    return size


def moe_keys(config: Config) -> dict[str, Any]:
    """Those of Granite, the counts of experts, and the size of the one that all tokens share."""
    size = moe_sizes(config)
    table = keys(config) | {".expert_count": size["experts"], ".expert_used_count": size["used"]}
    return table | ({".expert_shared_feed_forward_length": size["shared"]} if "shared" in size else {})


def moe_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; gate and up, which the checkpoint keeps as one, are two."""
    size = moe_sizes(config)
    return _draw("granitemoe", config, size, stored, {**ATTENTION, **EXPERTS, **(SHARED if "shared" in size else {})})


MODELS = {
    "granite": Family(("GraniteForCausalLM",), "granite", keys, tensors),
    "granitemoe": Family(("GraniteMoeForCausalLM",), "granitemoe", moe_keys, moe_tensors),
    "granitemoeshared": Family(("GraniteMoeSharedForCausalLM",), "granitemoe", moe_keys, moe_tensors),
}
