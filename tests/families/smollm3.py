"""SmolLM 3."""

from __future__ import annotations

from families import Variant

LAYERS = {"num_hidden_layers": 4, "no_rope_layers": None}
YARN = {"rope_type": "yarn", "rope_theta": 5000000.0, "factor": 2.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "plain": Variant("SmolLM3ForCausalLM", LAYERS),
    "defaults": Variant(
        "SmolLM3ForCausalLM",
        LAYERS | {"num_key_value_heads": 4, "tie_word_embeddings": True},
        config=dict.fromkeys(("num_key_value_heads", "no_rope_layers", "layer_types", "rope_parameters")) | {"pad_token_id": 0},
    ),
    "yarn": Variant("SmolLM3ForCausalLM", LAYERS | {"num_hidden_layers": 5, "rope_parameters": YARN}),
}
