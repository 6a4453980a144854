"""BLOOM."""

from __future__ import annotations

import numpy as np

from families import Variant
from families.falcon import GELU

TIED = {"tie_word_embeddings": True}
# as repositories of the first hour write it
OLD = {"hidden_size": None, "n_embed": 256, "n_head": None, "num_attention_heads": 4, "seq_length": 128}


def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("transformer."): values for name, values in tensors.items()}


VARIANTS = {
    "plain": Variant("BloomForCausalLM", TIED, tolerance=GELU),
    "not tied": Variant("BloomForCausalLM", tolerance=GELU),
    "of old": Variant("BloomForCausalLM", TIED, rewrite=old, config=OLD, tolerance=GELU),
    "12 heads": Variant("BloomForCausalLM", {**TIED, "hidden_size": 768, "num_attention_heads": 12}, tolerance=GELU),
}
