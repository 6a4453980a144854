"""Nemotron."""

from __future__ import annotations

from families import Variant

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
# config.json as older versions of transformers wrote it; half of each head is turned unless it says otherwise
OLD = {"rope_parameters": None, "rope_theta": 50000.0, "head_dim": None}

VARIANTS = {
    "plain": Variant("NemotronForCausalLM"),
    "biases": Variant("NemotronForCausalLM", {"attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3}),
    "linear": Variant("NemotronForCausalLM", {"num_key_value_heads": 4, "rope_parameters": LINEAR}),
    "of old": Variant("NemotronForCausalLM", config=OLD),
}
