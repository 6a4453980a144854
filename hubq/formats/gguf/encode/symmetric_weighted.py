"""Q3_K, Q4_0, Q5_0 and Q6_K where each column's error counts as much as an importance says: see symmetric_search.py."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import kernel, mean_squares, pack_nibbles, put_half, to_half
from hubq.formats.gguf.encode.legacy import pack_high_bits
from hubq.formats.gguf.encode.symmetric import pack_q3_k, pack_q6_k, search_q6_k, zero_scales
from hubq.formats.gguf.encode.symmetric_search import INVERSE, SCALE, WEIGHT, levels_of_search, make_search

CHUNK = 65536  # weights searched and packed before the next ones, in whole rows, so that what is found stays in the cache

search_q3_k = make_search(16, 4)
search_q4_0 = make_search(32, 8)
search_q5_0 = make_search(32, 16)


@kernel
def encode_q6_k(rows, importance, out):
    """float32 [n, columns] to Q6_K, uint8 [n, bytes]: the importance alone weighs, the scales are rounded regardless of it."""
    step = max(1, CHUNK // len(importance))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        found = np.empty((3, chunk.size // 16), np.float32)
        search_q6_k(chunk.reshape(-1, 16), importance.reshape(-1, 16), None, found)
        pack_q6_k(chunk.reshape(-1, 256), found, out[start : start + step].reshape(-1, 210))


@kernel
def quantize_scales(scales, found, codes, halves):
    """The codes of Q3_K's scales and the bits of their step, as a search over the scales found them.

    scales: float32 [n, 16]; found: float32 [3, n]; codes: uint8 [n, 16]; halves: int32 [n].
    """
    for n in range(len(scales)):
        levels_of_search(scales[n], found[INVERSE, n], np.int32(32), codes[n])
        halves[n] = to_half(found[SCALE, n])


@kernel
def encode_chunk_q3_k(blocks, importance, out):
    """blocks: float32 [16 * n, 16], of whole rows; importance: float32 [blocks of one row, 16]; out: uint8 [n, 110]."""
    x = blocks.reshape(-1, 256)
    means, found = np.empty(len(x), np.float32), np.empty((3, len(blocks)), np.float32)
    mean_squares(x, np.float32(2), means)
    search_q3_k(blocks, importance, means, found)
    scales, steps = found[SCALE].reshape(-1, 16), np.empty((3, len(x)), np.float32)
    search_q6_k(scales, found[WEIGHT].reshape(-1, 16), None, steps)
    codes, halves, levels = np.empty(scales.shape, np.uint8), np.empty(len(x), np.int32), np.empty(blocks.shape, np.uint8)
    quantize_scales(scales, steps, codes, halves)
    for block in zero_scales(codes, halves, np.empty(len(blocks), np.int64)):
        levels_of_search(blocks[block], found[INVERSE, block], np.int32(4), levels[block])
    pack_q3_k(x, codes, halves, levels, out)


@kernel
def encode_q3_k(rows, importance, out):
    """float32 [n, columns] to Q3_K, uint8 [n, bytes]: the scales are searched too, weighted by the totals of their blocks."""
    step = max(1, CHUNK // len(importance))
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step].reshape(-1, 16)
        encode_chunk_q3_k(blocks, importance.reshape(-1, 16), out[start : start + step].reshape(-1, 110))


def make_encoder(bits: int, search):
    """The encoder of Q4_0 or Q5_0: blocks of 32 weights, a 16-bit scale each."""
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

    @kernel
    def encode(rows, importance, out):
        """float32 [n, columns] to uint8 [n, bytes]."""
        step = max(1, CHUNK // len(importance))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            blocks = chunk.reshape(-1, 32)
            means, found = np.empty(len(chunk), np.float32), np.empty((3, len(blocks)), np.float32)
            mean_squares(chunk, np.float32(1), means)
            search(blocks, importance.reshape(-1, 32), means, found)
            pack(blocks, found, out[start : start + step].reshape(len(blocks), -1))

    return encode


encode_q4_0 = make_encoder(4, search_q4_0)
encode_q5_0 = make_encoder(5, search_q5_0)
