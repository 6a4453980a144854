"""LFM 2."""

from __future__ import annotations

from families import Variant

MIXED = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
# config.json as Liquid's repositories have it
OLD = {"layer_types": None, "intermediate_size": None, "tie_word_embeddings": None, "rope_parameters": None}
OLD |= {"full_attn_idxs": [0, 2], "block_ff_dim": 640, "tie_embedding": True, "rope_theta": 1000000.0}

VARIANTS = {
    "plain": Variant("Lfm2ForCausalLM", MIXED | {"block_auto_adjust_ff_dim": False}),
    "adjusted": Variant(
        "Lfm2ForCausalLM", MIXED | {"intermediate_size": 700, "block_ffn_dim_multiplier": 1.3, "conv_L_cache": 4}
    ),
    "old": Variant(
        "Lfm2ForCausalLM",
        MIXED
        | {"layer_types": ["full_attention", "conv", "full_attention"], "intermediate_size": 640, "tie_word_embeddings": True},
        config=OLD,
    ),
    "defaults": Variant(
        "Lfm2ForCausalLM",
        {"num_attention_heads": 8, "num_key_value_heads": 8, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        config=dict.fromkeys(
            ("num_key_value_heads", "conv_L_cache", "block_auto_adjust_ff_dim", "rope_parameters", "norm_eps")
        ),
    ),
}
