"""RoBERTa and XLM-RoBERTa: BERT whose positions count from behind the padding's id; the rows before are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import Family, bert
from hubq.formats.gguf.hparams import Config, number, only
from hubq.formats.gguf.tensors import Part, Sizes, Table, Tensor


def positions(size: Sizes) -> np.ndarray:
    """The rows of the position embeddings that are in use."""
    return np.arange(size["positions"] - size["context"], size["positions"])


FIRST: Table = {
    **bert.FIRST,
    "embeddings.position_embeddings.weight": Part("positions hidden", "position_embd.weight", "context hidden", positions),
}


def shifted(config: Config) -> dict[str, Any]:
    """The config of the BERT that computes the same. Raises BadSource for a padding id that leaves no position."""
    padding, all_positions = config.get("pad_token_id", 1), number(config, "max_position_embeddings", 512)
    if type(padding) is not int or not 0 <= padding < all_positions - 1:
        raise BadSource(f"config.json: pad_token_id {padding!r} leaves none of {all_positions} positions", AGAIN)
    return {**config, "max_position_embeddings": all_positions - padding - 1}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    only(config, "lora_adaptations", [])
    return bert.keys(shifted(config))


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    size = bert.sizes(shifted(config)) | {"positions": number(config, "max_position_embeddings", 512)}
    return bert.drawn(size, stored, FIRST, "roberta.")


MODELS = {
    "roberta": Family(("RobertaModel", "RobertaForMaskedLM"), "bert", keys, tensors, encoder=True),
    "xlm-roberta": Family(("XLMRobertaModel", "XLMRobertaForMaskedLM"), "bert", keys, tensors, encoder=True),
}
