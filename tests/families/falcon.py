"""Falcon."""

from __future__ import annotations

from families import Variant

# llama.cpp looks GELU up in a table of half precision
GELU = 5e-3
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}

VARIANTS = {
    "one key": Variant("FalconForCausalLM", {"num_kv_heads": 4, "tie_word_embeddings": True}, tolerance=GELU),
    "all keys": Variant("FalconForCausalLM", {"multi_query": False, "num_kv_heads": 4}, tolerance=GELU),
    "new": Variant("FalconForCausalLM", {**NEW, "tie_word_embeddings": True, "ffn_hidden_size": 512}, tolerance=GELU),
    "new with one norm": Variant("FalconForCausalLM", {**NEW, "num_ln_in_parallel_attn": 1}, tolerance=GELU),
}
