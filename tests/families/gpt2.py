"""GPT-2."""

from __future__ import annotations

from typing import Any

import numpy as np

from families import Variant

SETTINGS = {"activation_function": "gelu_new", "n_inner": 512, "tie_word_embeddings": True}


def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the first checkpoints: names without a prefix, the masks of attention, and embeddings once more as the head."""
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    for block in range(2):
        tensors[f"h.{block}.attn.bias"] = np.tril(np.ones((1, 1, 256, 256), np.float32))
        tensors[f"h.{block}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors | {"lm_head.weight": tensors["wte.weight"].copy()}


def variant(settings: dict[str, Any] | None = None, **more: Any) -> Variant:
    """llama.cpp takes GELU from a table in half precision."""
    return Variant("GPT2LMHeadModel", SETTINGS | (settings or {}), tolerance=2e-3, **more)


VARIANTS = {
    "tied": variant(),
    "untied": variant({"tie_word_embeddings": False, "n_inner": None}, config={"n_inner": None}),
    "old": variant(rewrite=old),
    "exact gelu": variant({"activation_function": "gelu"}),
}
