"""Ernie 4.5, dense and of experts."""

from __future__ import annotations

import numpy as np

from families import Variant

EXPERTS = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 256, "num_hidden_layers": 3}
LINEAR = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0}
# what config.json may leave out
DENSE_DEFAULTS = ("num_key_value_heads", "head_dim", "rope_parameters", "rms_norm_eps", "tie_word_embeddings")
MIXED_DEFAULTS = ("num_key_value_heads", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "moe_layer_end_index")


def trained(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With biases of experts, and a layer that predicts a further token."""
    generator = np.random.default_rng(2)
    tensors = {
        name: generator.normal(0, 0.3, array.shape).astype("f4") if "moe_statics" in name else array
        for name, array in tensors.items()
    }
    return tensors | {"model.mtp_linear_proj.0.weight": np.zeros((256, 512), np.float32)}


VARIANTS = {
    "plain": Variant("Ernie4_5ForCausalLM", {"head_dim": 64}),
    "defaults": Variant(
        "Ernie4_5ForCausalLM", {"tie_word_embeddings": True}, config=dict.fromkeys(DENSE_DEFAULTS) | {"pad_token_id": 0}
    ),
    "linear": Variant("Ernie4_5ForCausalLM", {"head_dim": 128, "rope_parameters": LINEAR}),
    "moe": Variant("Ernie4_5_MoeForCausalLM", EXPERTS | {"moe_num_shared_experts": 3}, trained),
    "moe defaults": Variant(
        "Ernie4_5_MoeForCausalLM",
        EXPERTS | {"num_key_value_heads": 4, "tie_word_embeddings": True},
        trained,
        dict.fromkeys(MIXED_DEFAULTS) | {"pad_token_id": 0},
    ),
    "moe without shared": Variant(
        "Ernie4_5_MoeForCausalLM", EXPERTS | {"moe_num_shared_experts": 0, "moe_layer_start_index": 0}, trained
    ),
}
