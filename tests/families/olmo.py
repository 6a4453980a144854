"""OLMo, OLMo 2 and 3, OLMoE."""

from __future__ import annotations

from families import Variant

YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 64}
YARN |= {"attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0}
NEAR = {"rope_type": "default", "rope_theta": 500000.0}
OLD = {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": YARN}

VARIANTS = {
    "plain": Variant("OlmoForCausalLM"),
    "tied and clipped": Variant("OlmoForCausalLM", {"tie_word_embeddings": True, "clip_qkv": 0.7}),
    "2": Variant("Olmo2ForCausalLM"),
    "2 yarn": Variant("Olmo2ForCausalLM", {"rope_parameters": YARN, "num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
    "3": Variant("Olmo3ForCausalLM", {"num_hidden_layers": 4, "sliding_window": 16}),
    "3 yarn": Variant(
        "Olmo3ForCausalLM",
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 16,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": NEAR},
        },
    ),
    "3 of old": Variant(
        "Olmo3ForCausalLM",
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 16,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": NEAR},
        },
        config=OLD,
    ),
    "3 without windows": Variant("Olmo3ForCausalLM", {"layer_types": ["full_attention"] * 2}),
    "moe": Variant("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
}
