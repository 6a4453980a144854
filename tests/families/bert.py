"""BERT. The tolerance is that of llama.cpp's GELU, an approximation from a table in half precision."""

from __future__ import annotations

import numpy as np

from families import Variant

GELU = 0.01
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of the first repositories, with positions that are no weights."""
    for now, then in OLD_NAMES.items():
        tensors = {name.replace(now, then): values for name, values in tensors.items()}
    return tensors | {"bert.embeddings.position_ids": np.arange(256, dtype=np.float32)[None]}


VARIANTS = {
    "plain": Variant("BertModel", {"num_key_value_heads": ...}, tolerance=GELU),
    "tanh": Variant("BertModel", {"hidden_act": "gelu_new", "type_vocab_size": 1, "num_attention_heads": 8}, tolerance=GELU),
    "masked": Variant("BertForMaskedLM", {"tie_word_embeddings": True}, tolerance=GELU),
    "old names": Variant("BertForMaskedLM", {"tie_word_embeddings": True}, old, tolerance=GELU),
}
