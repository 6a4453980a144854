"""Granite and Granite MoE."""

from __future__ import annotations

from families import Variant
from families.llama import LLAMA3

SCALES = {"embedding_multiplier": 6.0, "attention_multiplier": 0.05, "residual_multiplier": 0.4, "logits_scaling": 3.0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

VARIANTS = {
    "plain": Variant("GraniteForCausalLM", SCALES),
    "without scales": Variant(
        "GraniteForCausalLM",
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
        config=dict.fromkeys(SCALES),
    ),
    "biases": Variant("GraniteForCausalLM", {**SCALES, "attention_bias": True, "mlp_bias": True}),
    "moe": Variant("GraniteMoeForCausalLM", {**SCALES, **EXPERTS, "attention_bias": True}),
    "moe shared": Variant("GraniteMoeSharedForCausalLM", {**SCALES, **EXPERTS, "shared_intermediate_size": 256}),
    "moe not shared": Variant("GraniteMoeSharedForCausalLM", {**EXPERTS, "tie_word_embeddings": True}),
}
