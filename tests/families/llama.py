"""Llama, Mistral and Mixtral."""

from __future__ import annotations

from families import Variant

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "plain": Variant("LlamaForCausalLM"),
    "tied": Variant("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "biases": Variant("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "wide heads": Variant("LlamaForCausalLM", {"head_dim": 128, "num_key_value_heads": 1}),
    "llama3": Variant("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "linear": Variant("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "yarn": Variant("LlamaForCausalLM", {"rope_parameters": YARN}),
    "yarn with a factor": Variant("LlamaForCausalLM", {"rope_parameters": YARN | {"attention_factor": 1.5, "beta_fast": 16.0}}),
    "mistral": Variant("MistralForCausalLM", {"sliding_window": None, "head_dim": 64}),
    "mixtral": Variant("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}
