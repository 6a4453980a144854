"""Nomic BERT."""

from __future__ import annotations

from families import Variant

SETTINGS = {"pad_token_id": 0, "tie_word_embeddings": True, "num_key_value_heads": ...}
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
# what the model's own code has in config.json; the sizes under transformers' names are there too
OLD = {"n_positions": 8192, "max_trained_positions": 2048, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0}
OLD |= {"rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "layer_norm_epsilon": 1e-12, "qkv_proj_bias": False}
OLD |= {"activation_function": "swiglu", "causal": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False}
OLD |= dict.fromkeys(("max_position_embeddings", "rope_parameters", "layer_norm_eps", "hidden_act", "head_dim"))

VARIANTS = {
    "plain": Variant("NomicBertModel", SETTINGS | {"rope_parameters": ROPE, "layer_norm_eps": 1e-3}),
    "masked": Variant("NomicBertForMaskedLM", SETTINGS | {"type_vocab_size": 1}),
    "old config": Variant("NomicBertModel", SETTINGS, config=OLD),
}
