"""Phi-1 to Phi-4."""

from __future__ import annotations

from typing import Any

import numpy as np

from families import Variant

HEAD = 64
SHORT, LONG = (np.linspace(1, most, HEAD // 2).round(2).tolist() for most in (1.5, 8))
FACTORS: dict[str, Any] = {"short_factor": SHORT, "long_factor": LONG}
LONGROPE = FACTORS | {"rope_type": "longrope", "rope_theta": 10000.0}
# 3/4 of a head's dimensions
PARTIAL = LONGROPE | {"partial_rotary_factor": 0.75, "short_factor": SHORT[:24], "long_factor": LONG[:24]}


def phi(**settings: Any) -> Variant:
    """llama.cpp takes GELU from a table in half precision."""
    return Variant("PhiForCausalLM", settings, tolerance=2e-3)


def phi3(scaling: dict[str, Any] | None = None, **settings: Any) -> Variant:
    """`scaling` is that of an old config."""
    old = {"rope_parameters": None, "rope_scaling": scaling, "rope_theta": 5000.0, "pad_token_id": 0} if scaling else {}
    return Variant("Phi3ForCausalLM", {"original_max_position_embeddings": 32, **settings}, config=old)


VARIANTS = {
    "2": phi(num_key_value_heads=4),
    "2 grouped": phi(rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.75}),
    "2 linear": phi(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    "2 old config": Variant(
        "PhiForCausalLM",
        config={"rope_parameters": None, "rope_scaling": None, "rope_theta": 5000, "partial_rotary_factor": 0.25},
        tolerance=2e-3,
    ),
    "3": phi3(num_key_value_heads=4, sliding_window=64),
    "3 tied": phi3(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 250000.0}),
    # llama.cpp's smallest context is 256, and only beyond the original one it takes the long factors
    "3 short": phi3(rope_parameters=LONGROPE, original_max_position_embeddings=256, max_position_embeddings=1024),
    "3 long": phi3(rope_parameters=LONGROPE),
    "3 long by a factor": phi3(rope_parameters=LONGROPE | {"factor": 3.0}),
    "3 with a factor": phi3(rope_parameters=LONGROPE | {"attention_factor": 1.3}),
    "3 old config": phi3(FACTORS | {"type": "longrope"}),
    "3 su": phi3(FACTORS | {"type": "su", "original_max_position_embeddings": 32}),
    "3 yarn": phi3(FACTORS | {"type": "yarn"}),
    "4 mini": phi3(tie_word_embeddings=True, rope_parameters=PARTIAL),
}
