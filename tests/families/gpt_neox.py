"""GPT-NeoX and Pythia."""

from __future__ import annotations

from typing import Any

import numpy as np

from families import Variant

HALF: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the buffers that the first checkpoints hold."""
    for block in range(2):
        prefix = f"gpt_neox.layers.{block}.attention"
        tensors[f"{prefix}.bias"] = np.tril(np.ones((1, 1, 256, 256), np.float32))
        tensors[f"{prefix}.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    return tensors


def variant(settings: dict[str, Any] | None = None, **more: Any) -> Variant:
    """Tanh's GELU, unless settings say otherwise, comes from a table in half precision."""
    return Variant("GPTNeoXForCausalLM", {"hidden_act": "gelu_new"} | (settings or {}), tolerance=2e-3, **more)


VARIANTS = {
    "plain": variant(),
    "exact gelu": variant({"hidden_act": "gelu"}),
    "sequential": variant({"use_parallel_residual": False}),
    "half": variant({"rope_parameters": HALF}),
    "linear": variant({"rope_parameters": HALF | {"rope_type": "linear", "factor": 4.0}}),
    "yarn": variant({"rope_parameters": HALF | YARN}),
    "old": variant(
        rewrite=old,
        config={"rope_parameters": None, "rotary_pct": 0.75, "rotary_emb_base": 5000, "use_parallel_residual": None},
    ),
}
