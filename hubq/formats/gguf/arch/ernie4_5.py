"""Ernie 4.5: Llama's layers, whose rotary embedding turns neighbours in the checkpoint already, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, ignored, last
from hubq.formats.gguf.arch.qwen import ATTENTION, EXPERTS, keys, tensors
from hubq.formats.gguf.hparams import Config, experts, heads, number, only
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

MIXTURE: Table = {**EXPERTS, "mlp.moe_statics.e_score_correction_bias": Part("1 experts", "exp_probs_b.bias", "experts")}
SHARED_EXPERTS: Table = {
    "mlp.shared_experts.gate_proj.weight": "shared_inner hidden",
    "mlp.shared_experts.up_proj.weight": "shared_inner hidden",
    "mlp.shared_experts.down_proj.weight": "hidden shared_inner",
}
PREDICTION = "model.mtp_"  # layers that predict further tokens; transformers leaves them aside too

# settings that config.json may leave out, as transformers fills them in
DEFAULTS: Config = {"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
DENSE: Config = {**DEFAULTS, "num_key_value_heads": 2, "head_dim": 128}
MIXED: Config = {
    **DEFAULTS,
    "num_key_value_heads": 4,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
}


def ernie_keys(config: Config) -> dict[str, Any]:
    """Those of Llama."""
    only(config, "use_bias", False)
    return keys({**DENSE, **config})


def ernie_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = {**DENSE, **config}
    return tensors("ernie4_5", config, heads(config), stored, {**ATTENTION, **FEED_FORWARD})


def _sizes(config: Config) -> dict[str, int]:
    size = heads(config) | experts(config, "moe_num_experts", "moe_k")
    start, shared = config["moe_layer_start_index"], config["moe_num_shared_experts"]
    size |= {"expert_inner": number(config, "moe_intermediate_size")}
    size |= {"dense_layers": number(config, "moe_layer_start_index") if start else 0}
    return size | {"shared_inner": number(config, "moe_num_shared_experts") * size["expert_inner"] if shared else 0}


def ernie_moe_keys(config: Config) -> dict[str, Any]:
    """Those of Llama, and the counts and sizes of experts and the layers that have them."""
    config = {**MIXED, **config}
    size = _sizes(config)
    only(config, "use_bias", False)
    only(config, "moe_layer_interval", 1)
    only(config, "moe_layer_end_index", -1, size["layers"] - 1)
    table = keys(config) | {
        ".expert_count": size["experts"],
        ".expert_used_count": size["used"],
        ".expert_feed_forward_length": size["expert_inner"],
        ".interleave_moe_layer_step": 1,
        ".leading_dense_block_count": size["dense_layers"],
    }
    return table | ({".expert_shared_feed_forward_length": size["shared_inner"]} if size["shared_inner"] else {})


def ernie_moe_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = {**MIXED, **config}
    size = _sizes(config)
    mixture = {**ATTENTION, **MIXTURE, **(SHARED_EXPERTS if size["shared_inner"] else {})}

    def layer(number: int) -> Table:
        return {**ATTENTION, **FEED_FORWARD} if number < size["dense_layers"] else mixture

    def unused(name: str) -> bool:
        return name.startswith(PREDICTION) or ignored(config, name)

    return draw("ernie4_5-moe", size, stored, FIRST, layer, last(config), ignored=unused)


MODELS = {
    "ernie4_5": Family(("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"), "ernie4_5", ernie_keys, ernie_tensors),
    "ernie4_5_moe": Family(("Ernie4_5_MoeForCausalLM",), "ernie4_5-moe", ernie_moe_keys, ernie_moe_tensors),
}
