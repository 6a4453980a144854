"""Decode ggml's storage types to float32: the numbers that ggml computes with.

The decoders are those of the gguf package, with Q1_0 and Q2_0, which it does not have.

Formats: https://github.com/ggml-org/llama.cpp, dequantize_row_* in ggml/src/ggml-quants.c.
"""

from __future__ import annotations

import gguf
import numpy as np

from hubq.formats.gguf.encode import TYPES


def decode(data: np.ndarray, type_name: str) -> np.ndarray:
    """The weights, float32 [n, columns], of rows encoded as `type_name`: uint8 [n, row_bytes], C order.

    Scales that are infinite or NaN give infinite and NaN weights. Raises ValueError where a row is not whole blocks.
    """
    kind = TYPES[type_name]
    if data.shape[1] % kind.bytes:
        raise ValueError(f"{type_name} takes {kind.bytes} bytes at a time; a row of {data.shape[1]} is not whole blocks")
    with np.errstate(over="ignore", invalid="ignore"):
        if own := _OWN.get(type_name):
            return own(data.reshape(-1, kind.bytes)).reshape(len(data), -1)
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))


def _scales(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 1] from the halves that blocks begin with."""
    return np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)


def _decode_q1_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] to float32 [blocks, 128]: scale where a weight's bit is set, -scale elsewhere."""
    scale = _scales(blocks)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), scale, -scale)


def _decode_q2_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] to float32 [blocks, 64]: scale * (level - 1), four levels a byte, the first one lowest."""
    levels = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    return (levels.reshape(len(blocks), 64).astype(np.float32) - np.float32(1)) * _scales(blocks)


_OWN = {"Q1_0": _decode_q1_0, "Q2_0": _decode_q2_0}
