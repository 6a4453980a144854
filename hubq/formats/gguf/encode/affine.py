"""Q2_K, Q4_K and Q5_K: weight = scale * level - min, with scale and min of each block quantized in turn."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.affine_search import INVERSE, LEAST, MIN, SCALE, search_q2_k, search_q4_k, search_q5_k
from hubq.formats.gguf.encode.bits import (
    ZERO,
    clamp,
    from_half,
    inlined,
    kernel,
    nearest,
    pack_nibbles,
    pack_pairs,
    pack_plane,
    put_half,
    to_half,
)


@kernel
def quantize_scales(numbers, top, codes, steps):
    """number = step * code for each row of `numbers`, where step = greatest / top.

    numbers: float32 [n, blocks]; top: float32; codes: uint8 [n, blocks], those of numbers below 0 wrapped; steps: float32 [n].
    """
    for n in range(len(numbers)):
        greatest = ZERO
        for number in numbers[n]:
            greatest = number if number > greatest else greatest
        inverse = top / greatest if greatest > ZERO else ZERO
        steps[n] = greatest / top
        for j in range(numbers.shape[1]):
            codes[n, j] = nearest(inverse * numbers[n, j]) & 0xFF


@inlined
def round_block(row, least, inverse, top, levels):
    """The levels of a search: levels = (row - least) * inverse, rounded, from 0 to `top`."""
    for i in range(len(row)):
        levels[i] = clamp(nearest((row[i] - least) * inverse), np.int32(0), top)


@inlined
def quantize_blocks(row, size, found, steps, codes, top, levels):
    """Levels of one super-block for the scales and mins that the codes stand for; where a scale came to 0, the search's.

    found: what the search found of its blocks; steps: bits of the halves of scales and mins; codes: uint8 [2, blocks].
    """
    scale_step, min_step = from_half(steps[0]), from_half(steps[1])
    for j in range(len(row) // size):
        scale = scale_step * np.float32(codes[0, j])
        low = min_step * np.float32(codes[1, j])
        first = j * size
        if scale == ZERO:
            round_block(row[first : first + size], found[LEAST, j], found[INVERSE, j], top, levels[first : first + size])
        else:
            for i in range(first, first + size):
                levels[i] = clamp(nearest((row[i] + low) / scale), np.int32(0), top)


@kernel
def pack_q2_k(x, found, codes, steps, out):
    """x: float32 [n, 256]; found: float32 [5, 16 * n]; codes: uint8 [2, n, 16]; steps: float32 [2, n]; out: uint8 [n, 84]."""
    levels, both = np.empty(256, np.uint8), np.empty((2, 16), np.uint8)
    for n in range(len(x)):
        for j in range(16):
            out[n, j] = codes[0, n, j] | codes[1, n, j] << 4
            both[0, j], both[1, j] = out[n, j] & 15, out[n, j] >> 4  # a scale below 0 spilled into the min beside it
        halves = to_half(steps[0, n]), to_half(steps[1, n])
        quantize_blocks(x[n], 16, found[:, 16 * n : 16 * n + 16], halves, both, np.int32(3), levels)
        pack_pairs(levels, 0, out[n, 16:80])
        put_half(out[n], 80, halves[0])
        put_half(out[n], 82, halves[1])


@kernel
def pack_scales(scales, mins, out):
    """Eight 6-bit scales and mins in 12 bytes: 0 to 3 whole; of 4 to 7 the low nibbles paired, the high bits above 0 to 3."""
    for j in range(4):
        out[j] = scales[j] | scales[j + 4] >> 4 << 6
        out[j + 4] = mins[j] | mins[j + 4] >> 4 << 6
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4


@kernel
def unpack_scales(packed, both):
    """What pack_scales packed, to uint8 [2, 8]: a scale below 0 spilled into another's bits."""
    for j in range(4):
        both[0, j], both[1, j] = packed[j] & 63, packed[j + 4] & 63
        both[0, j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4
        both[1, j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4


def make_packer(bits: int):
    """The packer of Q4_K or Q5_K."""
    top = np.int32(2**bits - 1)
    packed = 16 if bits == 4 else 48

    @kernel
    def pack(x, found, codes, steps, out):
        """x: float32 [n, 256]; found: float32 [5, 8 * n]; codes: uint8 [2, n, 8]; steps: float32 [2, n]; out: uint8 [n, :]."""
        levels, both = np.empty(256, np.uint8), np.empty((2, 8), np.uint8)
        for n in range(len(x)):
            halves = to_half(steps[0, n]), to_half(steps[1, n])
            put_half(out[n], 0, halves[0])
            put_half(out[n], 2, halves[1])
            pack_scales(codes[0, n], codes[1, n], out[n, 4:16])
            unpack_scales(out[n, 4:16], both)
            quantize_blocks(x[n], 32, found[:, 8 * n : 8 * n + 8], halves, both, top, levels)
            if bits == 5:
                pack_plane(levels, 4, out[n, 16:48])
            pack_nibbles(levels, 32, out[n, packed:])

    return pack


pack_q4_k = make_packer(4)
pack_q5_k = make_packer(5)


def _encode(search, pack, size: int, top: int, x: np.ndarray, out: np.ndarray) -> None:
    found = np.empty((5, x.size // size), np.float32)
    search(x.reshape(-1, size), None, found)
    codes, steps = np.empty((2, len(x), 256 // size), np.uint8), np.empty((2, len(x)), np.float32)
    for row, k in ((SCALE, 0), (MIN, 1)):
        quantize_scales(found[row].reshape(codes.shape[1:]), np.float32(top), codes[k], steps[k])
    if pack is not pack_q2_k:  # there, ggml holds no code to the top
        np.minimum(codes, top, out=codes)
    pack(x, found, codes, steps, out)


def encode_q2_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q2_K, uint8 [n, 84]: 16 blocks of 16 weights, 4-bit scales and mins, 2-bit levels."""
    _encode(search_q2_k, pack_q2_k, 16, 15, x, out)


def encode_q4_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q4_K, uint8 [n, 144]: 8 blocks of 32 weights, 6-bit scales and mins, 4-bit levels."""
    _encode(search_q4_k, pack_q4_k, 32, 63, x, out)


def encode_q5_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q5_K, uint8 [n, 176]: 8 blocks of 32 weights, 6-bit scales and mins, 5-bit levels."""
    _encode(search_q5_k, pack_q5_k, 32, 63, x, out)
