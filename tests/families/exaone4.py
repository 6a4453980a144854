"""EXAONE 4."""

from __future__ import annotations

from families import Variant

SMALL = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
LARGE = {"sliding_window": 16, "num_hidden_layers": 64, "intermediate_size": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 16.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "small": Variant("Exaone4ForCausalLM", SMALL),
    "small, tied": Variant("Exaone4ForCausalLM", {**SMALL, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "large": Variant(
        "Exaone4ForCausalLM",
        {**LARGE, "rope_parameters": LLAMA3},
        config={"layer_types": None, "sliding_window_pattern": 8},
    ),
}
