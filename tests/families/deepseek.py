"""DeepSeek V2 and V3."""

from __future__ import annotations

import numpy as np

from families import Variant

SIZES = {"kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 96, "num_key_value_heads": 4}
SIZES |= {"moe_intermediate_size": 256, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
V2 = SIZES | {"q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 1.5}
V3 = SIZES | {"q_lora_rank": 256, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 16}


def published(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With a correction of the experts' scores, and a layer that predicts further tokens."""
    for name, values in tensors.items():
        if name.endswith("e_score_correction_bias"):
            values[:] = np.random.default_rng(0).normal(0, 0.3, len(values))
    further = {name.replace("layers.1.", "layers.2."): values for name, values in tensors.items() if "layers.1." in name}
    return tensors | further | {"model.layers.2.eh_proj.weight": np.zeros((256, 512), np.float32)}


def old(**yarn: float) -> dict[str, object]:
    """Rotary settings as repositories have them."""
    table = {key: value for key, value in YARN.items() if not key.startswith("rope")} | {"type": "yarn"}
    return {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": table | yarn}


V2_LITE = {"scoring_func": "softmax", "topk_method": "greedy", "n_group": 1, "topk_group": 1, "moe_layer_freq": 1}
V2_LITE |= {"norm_topk_prob": False}
V3_HUB = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 1}

VARIANTS = {
    "v2": Variant("DeepseekV2ForCausalLM", V2),
    "v2 lite": Variant(
        "DeepseekV2ForCausalLM", V2 | V2_LITE | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}}
    ),
    "v2 latent queries": Variant(
        "DeepseekV2ForCausalLM", V2 | {"q_lora_rank": 256, "first_k_dense_replace": 0, "tie_word_embeddings": True}
    ),
    "v3": Variant("DeepseekV3ForCausalLM", V3, published),
    "v3 published": Variant("DeepseekV3ForCausalLM", V3, published, V3_HUB | old(mscale=1.0, mscale_all_dim=1.0)),
    "v3 without latent queries": Variant(
        "DeepseekV3ForCausalLM", V3 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}
    ),
    "v3 yarn": Variant("DeepseekV3ForCausalLM", V3 | {"rope_parameters": YARN}),
    "v3 yarn of scores": Variant("DeepseekV3ForCausalLM", V3 | {"rope_parameters": YARN | {"mscale_all_dim": 0.8}}),
    "v3 yarn of both": Variant(
        "DeepseekV3ForCausalLM", V3 | {"rope_parameters": YARN | {"mscale_all_dim": 0.5, "mscale": 1.2, "beta_fast": 16.0}}
    ),
    "v3 yarn with a factor": Variant(
        "DeepseekV3ForCausalLM", V3 | {"rope_parameters": YARN | {"attention_factor": 1.0, "mscale_all_dim": 0.0}}
    ),
}
