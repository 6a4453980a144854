"""Encode float32 weights as ggml's storage types, with the bytes that ggml itself would write.

A storage type packs `block` weights of one row into `bytes` bytes. Here is the table of those types and the one door to
their encoders; the encoders are numba kernels, imported and compiled on first use and cached on disk. They repeat, float32
operation by float32 operation, what ggml's reference quantizers do on a machine without fused multiply-add, so the result
depends on neither the CPU nor the number of threads.

Formats and reference: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np


@dataclass(frozen=True)
class StorageType:
    """One ggml storage type.

    `number` is its ggml_type; `block` counts the weights and `bytes` the bytes of one block. Functions of this package are
    named module.function: `encoder` encodes without an importance matrix (None: the type has no such way), `weighted` with
    one (None: ggml leaves the matrix aside). `halves` are the byte offsets of the 16-bit floats in a block and `exponent`
    masks their exponent bits, all of which are set where the float is not finite.
    """

    name: str
    number: int
    block: int
    bytes: int
    encoder: str | None
    weighted: str | None = None
    halves: tuple[int, ...] = ()
    exponent: int = 0x7C00


TYPES: dict[str, StorageType] = {
    kind.name: kind
    for kind in (
        StorageType("F32", 0, 1, 4, "floats.encode_f32"),
        StorageType("F16", 1, 1, 2, "floats.encode_f16", halves=(0,)),
        StorageType("BF16", 30, 1, 2, "floats.encode_bf16", halves=(0,), exponent=0x7F80),
        StorageType("Q1_0", 41, 128, 18, "ternary.encode_q1_0", halves=(0,)),
        StorageType("Q2_0", 42, 64, 18, "ternary.encode_q2_0", halves=(0,)),
        StorageType("Q4_0", 2, 32, 18, "legacy.encode_q4_0", "symmetric_weighted.encode_q4_0", (0,)),
        StorageType("Q4_1", 3, 32, 20, "legacy.encode_q4_1", "affine_weighted.encode_q4_1", (0, 2)),
        StorageType("Q5_0", 6, 32, 22, "legacy.encode_q5_0", "symmetric_weighted.encode_q5_0", (0,)),
        StorageType("Q5_1", 7, 32, 24, "legacy.encode_q5_1", "affine_weighted.encode_q5_1", (0, 2)),
        StorageType("Q8_0", 8, 32, 34, "legacy.encode_q8_0", halves=(0,)),
        StorageType("MXFP4", 39, 32, 17, "mxfp4.encode_mxfp4"),
        StorageType("TQ1_0", 34, 256, 54, "ternary.encode_tq1_0", halves=(52,)),
        StorageType("TQ2_0", 35, 256, 66, "ternary.encode_tq2_0", halves=(64,)),
        StorageType("Q2_K", 10, 256, 84, "affine.encode_q2_k", "affine_weighted.encode_q2_k", (80, 82)),
        StorageType("Q3_K", 11, 256, 110, "symmetric.encode_q3_k", "symmetric_weighted.encode_q3_k", (108,)),
        StorageType("Q4_K", 12, 256, 144, "affine.encode_q4_k", "affine_weighted.encode_q4_k", (0, 2)),
        StorageType("Q5_K", 13, 256, 176, "affine.encode_q5_k", "affine_weighted.encode_q5_k", (0, 2)),
        StorageType("Q6_K", 14, 256, 210, "symmetric.encode_q6_k", "symmetric_weighted.encode_q6_k", (208,)),
        StorageType("IQ1_S", 19, 256, 50, None, "iq1.encode_iq1_s_weighted", (0,)),
        StorageType("IQ1_M", 29, 256, 56, "iq1.encode_iq1_m", "iq1.encode_iq1_m_weighted"),
        StorageType("IQ2_XXS", 16, 256, 66, None, "iq2.encode_iq2_xxs_weighted", (0,)),
        StorageType("IQ2_XS", 17, 256, 74, None, "iq2.encode_iq2_xs_weighted", (0,)),
        StorageType("IQ2_S", 22, 256, 82, "iq2.encode_iq2_s", "iq2.encode_iq2_s_weighted", (0,)),
        StorageType("IQ3_XXS", 18, 256, 98, "iq3.encode_iq3_xxs", "iq3.encode_iq3_xxs_weighted", (0,)),
        StorageType("IQ3_S", 21, 256, 110, "iq3.encode_iq3_s", "iq3.encode_iq3_s_weighted", (0,)),
        StorageType("IQ4_NL", 20, 32, 18, "iq4.encode_iq4_nl", "iq4.encode_iq4_nl_weighted", (0,)),
        StorageType("IQ4_XS", 23, 256, 136, "iq4.encode_iq4_xs", "iq4.encode_iq4_xs_weighted", (0,)),
    )
}


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one encoded row of `columns` weights. Raises ValueError where a row is not a whole number of blocks."""
    kind = TYPES[type_name]
    if columns % kind.block:
        raise ValueError(f"{type_name} packs {kind.block} weights at a time; a row of {columns} does not fit")
    return columns // kind.block * kind.bytes


def encode(rows: np.ndarray, type_name: str, out: np.ndarray | None = None, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode finite weights `rows` (float32 [n, columns], C order) into `out` (uint8 [n, row_bytes]) and return it.

    `importance` (float32 [columns]) says how much an error in each column counts; types that ggml encodes without regard to
    it leave it aside. Runs on the calling thread and releases the GIL: slices of rows may be encoded side by side, with the
    same bytes. Raises ValueError where an array has another dtype, shape or memory order, or a type needs an importance.
    """
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.c_contiguous:
        raise ValueError(f"rows must be float32 [n, columns] in C order, not {rows.dtype} {rows.shape}")
    kind = TYPES[type_name]
    shape = (len(rows), row_bytes(type_name, rows.shape[1]))
    if out is None:
        out = np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(f"out must be uint8 {shape} in C order, not {out.dtype} {out.shape}")
    if importance is not None and (importance.dtype != np.float32 or importance.shape != rows.shape[1:]):
        raise ValueError(f"importance must be float32 {rows.shape[1:]}, not {importance.dtype} {importance.shape}")
    if importance is not None and kind.weighted:
        _encoder(kind.weighted)(rows, np.ascontiguousarray(importance), out)
    elif kind.encoder:
        _encoder(kind.encoder)(rows.reshape(-1, kind.block), out.reshape(-1, kind.bytes))
    else:
        raise ValueError(f"{type_name} cannot be encoded without an importance")
    return out


def overflowed(blocks: np.ndarray, type_name: str) -> np.ndarray:
    """Indices of the rows of `blocks` (uint8 [n, row_bytes]) that hold an infinite or undefined 16-bit float.

    A scale beyond 65504 (in F16 a weight, in BF16 one beyond 3.39e38) becomes infinite, and its weights decode to
    infinity or NaN. Not seen here: in Q3_K and Q6_K weights beyond 1e12, whose sums overflow, may decode to zeros instead.
    """
    kind = TYPES[type_name]
    per_row = blocks.reshape(len(blocks), -1, kind.bytes)
    bad = np.zeros(len(blocks), bool)
    for offset in kind.halves:
        field = np.ascontiguousarray(per_row[:, :, offset : offset + 2]).view("<u2")
        bad |= (field & kind.exponent == kind.exponent).any(axis=(1, 2))
    if type_name == "IQ1_M":  # its half is spread over the top nibbles of the last four 16-bit words
        upper = per_row[:, :, 55] & 0xF0 | per_row[:, :, 53] >> 4
        bad |= (upper & 0x7C == 0x7C).any(axis=1)
    return np.flatnonzero(bad)


@cache
def _encoder(name: str) -> Callable[..., None]:
    """The function `module.function` of this package; importing its module imports numba."""
    module, function = name.split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)
