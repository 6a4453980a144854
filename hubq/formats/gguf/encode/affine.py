"""Q2_K, Q4_K and Q5_K: weight = scale * level - min, with scale and min of each block quantized in turn."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.affine_search import INVERSE, LEAST, MIN, SCALE, search_q2_k, search_q4_k, search_q5_k
from hubq.formats.gguf.encode.bits import (
    ZERO,
    clamp,
    from_half,
    kernel,
    nearest,
    pack_nibbles,
    pack_pairs,
    pack_plane,
    put_half,
    quantize_row,
    to_half,
)


@kernel
def greatest(numbers):
    """The greatest number, or 0."""
    high = ZERO
    for j in range(len(numbers)):
        high = numbers[j] if numbers[j] > high else high
    return high


@kernel
def quantize_scales(numbers, top, codes):
    """Bytes that count steps of greatest / top; returns the step, as the bits of a half."""
    high = greatest(numbers)
    inverse = top / high if high > ZERO else ZERO
    for j in range(len(numbers)):
        codes[j] = nearest(inverse * numbers[j]) & 0xFF
    return to_half(high / top)


@kernel
def quantize_blocks(row, found, scale_half, scales, min_half, mins, top, levels):
    """Levels of one super-block for its quantized scales and mins; where a scale came to 0, those of the search.

    found: what the search found of its blocks, float32 [4, blocks].
    """
    size = len(row) // len(scales)
    scale, low = np.empty_like(row), np.empty_like(row)
    for j in range(len(scales)):
        scale[j * size : (j + 1) * size] = from_half(scale_half) * np.float32(scales[j])
        low[j * size : (j + 1) * size] = -(from_half(min_half) * np.float32(mins[j]))
    quantize_row(row, low, scale, np.int32(0), top, levels)
    for j in range(len(scales)):
        if scale[j * size] == ZERO:
            for i in range(j * size, (j + 1) * size):
                levels[i] = clamp(nearest((row[i] - found[LEAST, j]) * found[INVERSE, j]), np.int32(0), top)


@kernel
def pack_scales(scales, mins, out):
    """Eight 6-bit scales and mins in 12 bytes: 0 to 3 whole; of 4 to 7 the low nibbles paired, the high bits above 0 to 3."""
    for j in range(4):
        out[j] = scales[j] | scales[j + 4] >> 4 << 6
        out[j + 4] = mins[j] | mins[j + 4] >> 4 << 6
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4


@kernel
def pack_q2_k(x, found, out):
    """x: float32 [n, 256]; found: float32 [4, 16 * n]; out: uint8 [n, 84]."""
    scales, mins, levels = np.empty(16, np.uint8), np.empty(16, np.uint8), np.empty(256, np.uint8)
    for n in range(len(x)):
        here = found[:, 16 * n : 16 * n + 16]
        scale_half = quantize_scales(here[SCALE], np.float32(15), scales)
        min_half = quantize_scales(here[MIN], np.float32(15), mins)
        for j in range(16):
            out[n, j] = scales[j] | mins[j] << 4
            scales[j], mins[j] = out[n, j] & 15, out[n, j] >> 4  # a scale below 0 spills into the min beside it
        quantize_blocks(x[n], here, scale_half, scales, min_half, mins, np.int32(3), levels)
        pack_pairs(levels, 0, out[n, 16:80])
        put_half(out[n], 80, scale_half)
        put_half(out[n], 82, min_half)


def make_packer(bits: int):
    """The packer of Q4_K or Q5_K."""
    top = np.int32(2**bits - 1)
    packed = 16 if bits == 4 else 48

    @kernel
    def pack(x, found, out):
        """x: float32 [n, 256]; found: float32 [4, 8 * n]; out: uint8 [n, 144 or 176]."""
        scales, mins, levels = np.empty(8, np.uint8), np.empty(8, np.uint8), np.empty(256, np.uint8)
        for n in range(len(x)):
            here = found[:, 8 * n : 8 * n + 8]
            scale_half = quantize_scales(here[SCALE], np.float32(63), scales)
            min_half = quantize_scales(here[MIN], np.float32(63), mins)
            for j in range(8):
                scales[j], mins[j] = min(scales[j], 63), min(mins[j], 63)
            put_half(out[n], 0, scale_half)
            put_half(out[n], 2, min_half)
            pack_scales(scales, mins, out[n, 4:16])
            quantize_blocks(x[n], here, scale_half, scales, min_half, mins, top, levels)
            if bits == 5:
                pack_plane(levels, 4, out[n, 16:48])
            pack_nibbles(levels, 32, out[n, packed:])

    return pack


pack_q4_k = make_packer(4)
pack_q5_k = make_packer(5)


def _encode(search, pack, size: int, x: np.ndarray, out: np.ndarray) -> None:
    found = np.empty((5, x.size // size), np.float32)
    none = np.empty(0, np.float32)
    search(x.reshape(-1, size), none, none, found)
    pack(x, found, out)


def encode_q2_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q2_K, uint8 [n, 84]: 16 blocks of 16 weights, 4-bit scales and mins, 2-bit levels."""
    _encode(search_q2_k, pack_q2_k, 16, x, out)


def encode_q4_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q4_K, uint8 [n, 144]: 8 blocks of 32 weights, 6-bit scales and mins, 4-bit levels."""
    _encode(search_q4_k, pack_q4_k, 32, x, out)


def encode_q5_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q5_K, uint8 [n, 176]: 8 blocks of 32 weights, 6-bit scales and mins, 5-bit levels."""
    _encode(search_q5_k, pack_q5_k, 32, x, out)
