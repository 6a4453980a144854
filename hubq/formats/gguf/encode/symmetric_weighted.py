"""Q3_K, Q4_0, Q5_0 and Q6_K where each column's error counts as much as an importance says: see symmetric_search.py."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import kernel, pack_nibbles, put_half, to_half
from hubq.formats.gguf.encode.legacy import pack_high_bits
from hubq.formats.gguf.encode.symmetric import pack_q3_k, pack_q6_k, search_q6_k
from hubq.formats.gguf.encode.symmetric_search import INVERSE, SCALE, WEIGHT, levels_of_search, make_search, mean_squares

ONCE, TWICE = np.float32(1), np.float32(2)

search_q3_k = make_search(16, 4)
search_q4_0 = make_search(32, 8)
search_q5_0 = make_search(32, 16)


def encode_q6_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q6_K, uint8 [n, bytes]: the importance alone weighs, the scales are rounded regardless of it."""
    found = np.empty((3, rows.size // 16), np.float32)
    search_q6_k(rows.reshape(-1, 16), importance, None, found)
    pack_q6_k(rows.reshape(-1, 256), found, out.reshape(-1, 210))


@kernel
def quantize_scales(scales, found, codes, halves):
    """The codes of Q3_K's scales and the bits of their step, as a search over the scales found them.

    scales: float32 [n, 16]; found: float32 [3, n]; codes: uint8 [n, 16]; halves: int32 [n].
    """
    for n in range(len(scales)):
        levels_of_search(scales[n], found[INVERSE, n], np.int32(32), codes[n])
        halves[n] = to_half(found[SCALE, n])


@kernel
def levels_q3_k(blocks, found, levels):
    """The levels of every block. blocks: float32 [n, 16]; found: float32 [3, n]; levels: uint8 [n, 16]."""
    for n in range(len(blocks)):
        levels_of_search(blocks[n], found[INVERSE, n], np.int32(4), levels[n])


def encode_q3_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q3_K, uint8 [n, bytes]: the scales too are searched, a block's total weight weighing its scale."""
    blocks, x = rows.reshape(-1, 16), rows.reshape(-1, 256)
    means, found = np.empty(len(x), np.float32), np.empty((3, len(blocks)), np.float32)
    mean_squares(x, TWICE, means)
    search_q3_k(blocks, importance, means, found)
    scales, steps = found[SCALE].reshape(-1, 16), np.empty((3, len(x)), np.float32)
    search_q6_k(scales, found[WEIGHT], None, steps)
    codes, halves = np.empty((len(x), 16), np.uint8), np.empty(len(x), np.int32)
    quantize_scales(scales, steps, codes, halves)
    levels = np.empty((len(blocks), 16), np.uint8)
    levels_q3_k(blocks, found, levels)
    pack_q3_k(x, codes, halves, levels, out.reshape(-1, 110))


def make_packer(bits: int):
    """The packer of Q4_0 or Q5_0."""
    half = np.int32(2 ** (bits - 1))
    packed = 2 + 4 * (bits - 4)

    @kernel
    def pack(x, found, out):
        """x: float32 [n, 32]; found: float32 [3, n]; out: uint8 [n, 18 or 22]."""
        levels = np.empty(32, np.uint8)
        for n in range(len(x)):
            levels_of_search(x[n], found[INVERSE, n], half, levels)
            put_half(out[n], 0, to_half(found[SCALE, n]))
            if bits == 5:
                pack_high_bits(levels, out[n, 2:packed])
            pack_nibbles(levels, 16, out[n, packed:])

    return pack


pack_q4_0 = make_packer(4)
pack_q5_0 = make_packer(5)


def _encode(search, pack, rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    blocks = rows.reshape(-1, 32)
    means, found = np.empty(len(rows), np.float32), np.empty((3, len(blocks)), np.float32)
    mean_squares(rows, ONCE, means)
    search(blocks, importance, means, found)
    pack(blocks, found, out.reshape(len(blocks), -1))


def encode_q4_0(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q4_0, uint8 [n, bytes]: blocks of 32 weights, a 16-bit scale, 4-bit levels."""
    _encode(search_q4_0, pack_q4_0, rows, importance, out)


def encode_q5_0(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q5_0, uint8 [n, bytes]: blocks of 32 weights, a 16-bit scale, 5-bit levels."""
    _encode(search_q5_0, pack_q5_0, rows, importance, out)
