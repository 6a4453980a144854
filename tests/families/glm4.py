"""GLM-4: glm4, and glm before it."""

from __future__ import annotations

from families import Variant

HEAD = {"head_dim": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
# config.json as older versions of transformers wrote it; half of each head is turned unless it says otherwise
OLD = {"rope_parameters": None, "rope_theta": 50000.0, "pad_token_id": 0}

VARIANTS = {
    "plain": Variant("Glm4ForCausalLM", HEAD),
    "wide heads, no biases": Variant("Glm4ForCausalLM", {"head_dim": 128, "num_key_value_heads": 1, "attention_bias": False}),
    "linear": Variant("Glm4ForCausalLM", {**HEAD, "rope_parameters": LINEAR}),
    "of old": Variant("Glm4ForCausalLM", HEAD, config=OLD),
    "glm": Variant("GlmForCausalLM", {**HEAD, "rms_norm_eps": 1e-3}),
    "glm tied": Variant("GlmForCausalLM", {**HEAD, "tie_word_embeddings": True, "attention_bias": False}),
}
