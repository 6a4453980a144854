"""StableLM."""

from __future__ import annotations

from typing import Any

from families import Variant


def variant(**settings: Any) -> Variant:
    return Variant("StableLmForCausalLM", settings)


VARIANTS = {
    "plain": variant(),
    "biases": variant(use_qkv_bias=True, num_key_value_heads=4),
    "parallel": variant(use_parallel_residual=True),
    "head norms": variant(use_parallel_residual=True, qk_layernorm=True),
    "one key head": variant(qk_layernorm=True, num_key_value_heads=1),
    "fully rotary": variant(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}),
    "linear": variant(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}),
    "old config": Variant(
        "StableLmForCausalLM",
        config={"rope_parameters": None, "rope_scaling": None, "rope_theta": 5000, "partial_rotary_factor": 0.5},
    ),
}
