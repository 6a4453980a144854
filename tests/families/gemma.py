"""Gemma, Gemma 2 and Gemma 3. llama.cpp looks GELU up in a table of half precision, hence the tolerances."""

from __future__ import annotations

from typing import Any

from families import SHAPE, Variant

TIED = {"tie_word_embeddings": True, "head_dim": 64}
GEMMA2 = {
    **TIED,
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 8.0,
}
GEMMA3 = {**TIED, "query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 3}
MIXED = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
# hidden size / heads is 64 all the same
LARGEST = {"head_dim": 128, "num_key_value_heads": 1, "intermediate_size": 256}

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
BASES = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}
# config.json as older versions of transformers wrote it
OLD: dict[str, Any] = {"layer_types": None, "rope_parameters": None, "rope_theta": 50000.0, "rope_local_base_freq": 5000.0}
OLD |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}

SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGHT |= {"image_size": 28, "patch_size": 14}
SEEING = {**dict.fromkeys(SHAPE, ...), "text_config": {**SHAPE, **GEMMA3, **MIXED}, "vision_config": SIGHT}
SEEING |= {"mm_tokens_per_image": 4, "image_token_index": 1, "tie_word_embeddings": True}

GELU: Any = {"tolerance": 3e-3}
DEEP: Any = {"tolerance": 1e-2}

VARIANTS = {
    "plain": Variant("GemmaForCausalLM", TIED, **GELU),
    "wide heads": Variant("GemmaForCausalLM", {**TIED, "head_dim": 128, "num_key_value_heads": 1}, **GELU),
    "linear": Variant("GemmaForCausalLM", {**TIED, "rope_parameters": LINEAR}, **GELU),
    "2": Variant("Gemma2ForCausalLM", GEMMA2, **GELU),
    "2 full first": Variant("Gemma2ForCausalLM", {**GEMMA2, "layer_types": ["full_attention", "sliding_attention"]}, **GELU),
    "2 of 46 layers": Variant("Gemma2ForCausalLM", {**GEMMA2, **LARGEST, "num_hidden_layers": 46}, **DEEP),
    "3": Variant("Gemma3ForCausalLM", {**GEMMA3, **MIXED, "final_logit_softcapping": 8.0}, **GELU),
    "3 untied": Variant(
        "Gemma3ForCausalLM", {**GEMMA3, **MIXED, "tie_word_embeddings": False, "rope_parameters": BASES}, **GELU
    ),
    "3 by pattern": Variant("Gemma3ForCausalLM", GEMMA3, config=OLD | {"sliding_window_pattern": 2}, **GELU),
    "3 without windows": Variant("Gemma3ForCausalLM", {**GEMMA3, "layer_types": ["full_attention"] * 3}, **GELU),
    "3 of 62 layers": Variant("Gemma3ForCausalLM", {**GEMMA3, **LARGEST, "num_hidden_layers": 62}, **DEEP),
    "3 that sees": Variant("Gemma3ForConditionalGeneration", SEEING, **GELU),
}
