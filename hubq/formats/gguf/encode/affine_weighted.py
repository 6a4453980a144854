"""Q2_K, Q4_K, Q5_K, Q4_1 and Q5_1 with an importance matrix: weight = scale * level - min, by the search of affine_search.py.

The error of a weight counts by the importance of its column, times the root of its square plus a mean square: that of its
super-block (twice that in Q4_K and Q5_K), or in Q4_1 and Q5_1 of the whole row.
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.affine import pack_q2_k, pack_q4_k, pack_q5_k, round_block
from hubq.formats.gguf.encode.affine_search import INVERSE, LEAST, MIN, SCALE, TOTAL, make_search
from hubq.formats.gguf.encode.bits import LANES, ZERO, inlined, kernel, lanes, mean_squares, pack_nibbles, put_half, to_half
from hubq.formats.gguf.encode.legacy import pack_high_bits
from hubq.formats.gguf.encode.positive import quantize_positive

SUPER_BLOCK = 256


@inlined
def weigh_by_importance(value, start, guide, weight):
    """How much each weight's error counts. guide: importance, float32 [columns]; mean square by block, float32 [blocks]."""
    importance, mean_square = guide
    size, spread = len(value), lanes()
    weight[:] = ZERO
    spread[:] = ZERO
    for b in range(min(LANES, len(mean_square) - start)):
        spread[b] = mean_square[start + b]
        column = (start + b) * size % len(importance)
        for i in range(size):
            weight[i, b] = importance[column + i]
    for i in range(size):
        for b in range(LANES):
            weight[i, b] *= np.sqrt(spread[b] + value[i, b] * value[i, b])


search_16_by_3 = make_search(16, 3, -0.9, 0.05, 37, weigh_by_importance, wraps=True)
search_32_by_15 = make_search(32, 15, -0.9, 0.05, 37, weigh_by_importance, wraps=True)
search_32_by_31 = make_search(32, 31, -0.9, 0.05, 37, weigh_by_importance, wraps=True)


def _search(search, size: int, x: np.ndarray, times: int, importance: np.ndarray) -> np.ndarray:
    """What `search` finds of the blocks of x, float32 [5, blocks], given `times` the mean square of each row of x."""
    mean_square = np.empty(len(x), np.float32)
    mean_squares(x, np.float32(times), mean_square)
    found = np.empty((5, x.size // size), np.float32)
    search(x.reshape(-1, size), (importance, np.repeat(mean_square, x.shape[1] // size)), found)
    return found


def _quantize_scales(found: np.ndarray, blocks: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, uint8 [2, n, blocks], and steps, float32 [2, n], of the scales and mins of n super-blocks."""
    total = found[TOTAL].reshape(-1, blocks)
    codes, steps = np.empty((2, *total.shape), np.uint8), np.empty((2, len(total)), np.float32)
    for row, k in ((SCALE, 0), (MIN, 1)):
        quantize_positive(found[row].reshape(total.shape), total, np.int32(top), codes[k], steps[k])
    return codes, steps


def encode_q2_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q2_K, 84 bytes for 256 weights; importance: float32 [columns]."""
    x = rows.reshape(-1, SUPER_BLOCK)
    found = _search(search_16_by_3, 16, x, 1, importance)
    pack_q2_k(x, found, *_quantize_scales(found, 16, 15), out.reshape(-1, 84))


def encode_q4_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q4_K, 144 bytes for 256 weights; importance: float32 [columns]."""
    x = rows.reshape(-1, SUPER_BLOCK)
    found = _search(search_32_by_15, 32, x, 2, importance)
    pack_q4_k(x, found, *_quantize_scales(found, 8, 63), out.reshape(-1, 144))


def encode_q5_k(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q5_K, 176 bytes for 256 weights; importance: float32 [columns]."""
    x = rows.reshape(-1, SUPER_BLOCK)
    found = _search(search_32_by_31, 32, x, 2, importance)
    codes, steps = _quantize_scales(found, 8, 63)
    pack_q5_k(x, found, np.minimum(codes, 63), steps, out.reshape(-1, 176))


def make_packer(bits: int):
    """The packer of Q4_1 or Q5_1."""
    top = np.int32(2**bits - 1)
    packed = 4 * (bits - 3)

    @kernel
    def pack(x, found, out):
        """x: float32 [blocks, 32]; found: float32 [5, blocks]; out: uint8 [blocks, 20 or 24]."""
        levels = np.empty(32, np.uint8)
        for n in range(len(x)):
            round_block(x[n], found[LEAST, n], found[INVERSE, n], top, levels)
            put_half(out[n], 0, to_half(found[SCALE, n]))
            put_half(out[n], 2, to_half(-found[MIN, n]))
            if bits == 5:
                pack_high_bits(levels, out[n, 4:8])
            pack_nibbles(levels, 16, out[n, packed:])

    return pack


pack_q4_1 = make_packer(4)
pack_q5_1 = make_packer(5)


def encode_q4_1(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q4_1, 20 bytes for 32 weights; importance: float32 [columns]."""
    found = _search(search_32_by_15, 32, rows, 1, importance)
    pack_q4_1(rows.reshape(-1, 32), found, out.reshape(-1, 20))


def encode_q5_1(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to Q5_1, 24 bytes for 32 weights; importance: float32 [columns]."""
    found = _search(search_32_by_31, 32, rows, 1, importance)
    pack_q5_1(rows.reshape(-1, 32), found, out.reshape(-1, 24))
