"""Qwen 2 and 3, dense and of experts."""

from __future__ import annotations

from families import Variant

YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 768}
# config.json as transformers wrote it before version 5
OLD = {"rope_parameters": None, "rope_theta": 500000.0, "layer_types": None, "head_dim": None}
OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "2": Variant("Qwen2ForCausalLM"),
    "2 tied": Variant("Qwen2ForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "2 yarn": Variant("Qwen2ForCausalLM", {"rope_parameters": YARN}),
    "2 old yarn": Variant("Qwen2ForCausalLM", config=OLD | {"rope_scaling": OLD_YARN}),
    "2 window": Variant("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "2 late window": Variant("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "2 moe": Variant("Qwen2MoeForCausalLM", SHARED),
    "2 moe without biases": Variant("Qwen2MoeForCausalLM", SHARED | {"qkv_bias": False, "num_experts_per_tok": 1}),
    "3": Variant("Qwen3ForCausalLM", {"head_dim": 128}),
    "3 tied": Variant("Qwen3ForCausalLM", {"head_dim": 64, "tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "3 moe": Variant("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 128, "norm_topk_prob": True}),
    "3 moe old": Variant(
        "Qwen3MoeForCausalLM",
        EXPERTS | {"norm_topk_prob": True},
        config=OLD | {"num_local_experts": None, "num_experts": 4},
    ),
    "3 moe yarn": Variant("Qwen3MoeForCausalLM", EXPERTS | {"norm_topk_prob": True, "rope_parameters": YARN}),
}
