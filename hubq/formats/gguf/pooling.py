"""Pooling as GGUF says it: llama.cpp makes one embedding of a text's tokens in the mode that the file names."""

from __future__ import annotations

from pathlib import Path

from gguf import PoolingType

from hubq import pooling as sentences

TYPES = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS, "lasttoken": PoolingType.LAST}


def pooling(folder: Path) -> dict[str, int]:
    """The key `.pooling_type` of an encoder whose small files are in `folder`; none where modules.json names no pooling.

    Raises what hubq.pooling raises.
    """
    mode = sentences.pooling(folder)
    return {".pooling_type": int(TYPES[mode])} if mode else {}
