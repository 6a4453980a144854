"""MPT."""

from __future__ import annotations

from families import Variant
from families.falcon import GELU

SHAPE = {"max_seq_len": 256, "tie_word_embeddings": True}
# as repositories of the first hour write it
ATTENTION = {"attn_type": "multihead_attention", "alibi": True, "alibi_bias_max": 8, "clip_qkv": None, "qk_ln": False}

VARIANTS = {
    "plain": Variant("MptForCausalLM", SHAPE, config={"attn_config": ATTENTION}, tolerance=GELU),
    "clipped, not tied": Variant(
        "MptForCausalLM", {**SHAPE, "tie_word_embeddings": False, "attn_config": {"clip_qkv": 0.7}}, tolerance=GELU
    ),
    "12 heads": Variant("MptForCausalLM", {**SHAPE, "hidden_size": 768, "num_attention_heads": 12}, tolerance=GELU),
}
