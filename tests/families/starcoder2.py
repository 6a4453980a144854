"""StarCoder2."""

from __future__ import annotations

from typing import Any

from families import Variant

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def variant(**settings: Any) -> Variant:
    """llama.cpp takes GELU from a table in half precision."""
    return Variant("Starcoder2ForCausalLM", settings, tolerance=2e-3)


VARIANTS = {
    "plain": variant(),
    "tied": variant(tie_word_embeddings=True, num_key_value_heads=4),
    "exact gelu": variant(hidden_act="gelu"),
    "windowed": variant(sliding_window=64),
    "linear": variant(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    "yarn": variant(rope_parameters=YARN),
}
