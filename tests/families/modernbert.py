"""ModernBERT."""

from __future__ import annotations

from families import Variant
from families.bert import GELU

SETTINGS = {"num_hidden_layers": 4, "pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 0, "local_attention": 16}
SETTINGS |= {"tie_word_embeddings": True, "num_key_value_heads": ...}
OLD = {"layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 2}
OLD |= {"global_rope_theta": 80000.0, "local_rope_theta": 20000.0}

VARIANTS = {
    "plain": Variant("ModernBertModel", SETTINGS, tolerance=GELU),
    "silu": Variant("ModernBertModel", SETTINGS | {"hidden_activation": "silu", "norm_eps": 1e-3}),
    "masked": Variant("ModernBertForMaskedLM", SETTINGS, tolerance=GELU),
    "other layers": Variant(
        "ModernBertModel",
        SETTINGS | {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
        tolerance=GELU,
    ),
    "old config": Variant("ModernBertModel", SETTINGS | {"global_attn_every_n_layers": 2}, config=OLD, tolerance=GELU),
}
