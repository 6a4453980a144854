"""RoBERTa and XLM-RoBERTa."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from families import Variant
from families.bert import GELU

SETTINGS = {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 258, "tie_word_embeddings": True}


def unused(count: int) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Zeros for the positions before the first one: a GGUF does not hold them."""

    def rewrite(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, values in tensors.items():
            if name.endswith("position_embeddings.weight"):
                values[:count] = 0
        return tensors

    return rewrite


VARIANTS = {
    "plain": Variant("RobertaModel", SETTINGS, unused(2), tolerance=GELU),
    "masked": Variant("RobertaForMaskedLM", SETTINGS, unused(2), tolerance=GELU),
    "another padding": Variant("RobertaModel", SETTINGS | {"pad_token_id": 0}, unused(1), tolerance=GELU),
    "xlm": Variant("XLMRobertaModel", SETTINGS | {"type_vocab_size": 2}, unused(2), tolerance=GELU),
    "xlm masked": Variant("XLMRobertaForMaskedLM", SETTINGS, unused(2), tolerance=GELU),
}
