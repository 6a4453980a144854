"""Hunyuan's dense models."""

from __future__ import annotations

from families import Variant

ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
# as Tencent's repositories have it
OLD_ALPHA = {
    "type": "dynamic",
    "alpha": 50.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

VARIANTS = {
    "plain": Variant("HunYuanDenseV1ForCausalLM", {"head_dim": 64}),
    "alpha": Variant("HunYuanDenseV1ForCausalLM", {"head_dim": 128, "rope_parameters": ALPHA, "tie_word_embeddings": True}),
    "old alpha": Variant(
        "HunYuanDenseV1ForCausalLM",
        {"head_dim": 64, "num_key_value_heads": 4},
        config={"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": OLD_ALPHA, "rms_norm_eps": None},
    ),
}
