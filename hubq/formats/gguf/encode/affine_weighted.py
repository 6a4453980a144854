from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.affine import quantize_blocks, pack_scales
from hubq.formats.gguf.encode.affine_search import INVERSE, LEAST, MIN, SCALE, TOTAL, weighted_search_16_3, weighted_search_32_15, weighted_search_32_31
from hubq.formats.gguf.encode.legacy import pack_high_bits
from hubq.formats.gguf.encode.bits import (
    ZERO,
    clamp,
    kernel,
    nearest,
    pack_nibbles,
    pack_pairs,
    pack_plane,
    put_half,
    to_half,
)
from hubq.formats.gguf.encode.positive import quantize_positive

ROWS = 4


@kernel
def mean_squares(rows, scale, out):
    size = rows.shape[1]
    last = len(rows) - 1
    for n in range(0, len(rows), ROWS):
        i, j, k = min(n + 1, last), min(n + 2, last), min(n + 3, last)
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        for p in range(size):
            a += rows[n, p] * rows[n, p]
            b += rows[i, p] * rows[i, p]
            c += rows[j, p] * rows[j, p]
            d += rows[k, p] * rows[k, p]
        out[n], out[i], out[j], out[k] = a, b, c, d
    for n in range(len(rows)):
        out[n] = scale * out[n] / np.float32(size)


def _search(search, rows, importance, size, span, scale):
    x = rows.reshape(-1, span)
    variance = np.empty(len(x), np.float32)
    mean_squares(x, np.float32(scale), variance)
    found = np.empty((5, x.size // size), np.float32)
    search(x.reshape(-1, size), importance, np.repeat(variance, span // size), found)
    return found


@kernel
def unpack_scales(packed, scales, mins):
    for j in range(4):
        scales[j], mins[j] = packed[j] & 63, packed[j + 4] & 63
        scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4


@kernel
def pack_q2_k(x, found, scales, mins, steps, min_steps, out):
    levels = np.empty(256, np.uint8)
    for n in range(len(x)):
        here = found[:, 16 * n : 16 * n + 16]
        scale_half, min_half = to_half(steps[n]), to_half(min_steps[n])
        for j in range(16):
            out[n, j] = scales[n, j] | mins[n, j] << 4
            scales[n, j], mins[n, j] = out[n, j] & 15, out[n, j] >> 4
        quantize_blocks(x[n], here, scale_half, scales[n], min_half, mins[n], np.int32(3), levels)
        pack_pairs(levels, 0, out[n, 16:80])
        put_half(out[n], 80, scale_half)
        put_half(out[n], 82, min_half)


def make_packer(bits: int):
    top = np.int32(2**bits - 1)
    packed = 16 if bits == 4 else 48

    @kernel
    def pack(x, found, scales, mins, steps, min_steps, out):
        levels = np.empty(256, np.uint8)
        for n in range(len(x)):
            here = found[:, 8 * n : 8 * n + 8]
            scale_half, min_half = to_half(steps[n]), to_half(min_steps[n])
            if bits == 5:
                for j in range(8):
                    scales[n, j], mins[n, j] = min(scales[n, j], 63), min(mins[n, j], 63)
            put_half(out[n], 0, scale_half)
            put_half(out[n], 2, min_half)
            pack_scales(scales[n], mins[n], out[n, 4:16])
            unpack_scales(out[n, 4:16], scales[n], mins[n])
            quantize_blocks(x[n], here, scale_half, scales[n], min_half, mins[n], top, levels)
            if bits == 5:
                pack_plane(levels, 4, out[n, 16:48])
            pack_nibbles(levels, 32, out[n, packed:])

    return pack


pack_q4_k = make_packer(4)
pack_q5_k = make_packer(5)


def _k(search, pack, size, top, scale, rows, importance, out):
    found = _search(search, rows, importance, size, 256, scale)
    x = rows.reshape(-1, 256)
    n = len(x)
    totals = found[TOTAL].reshape(n, -1)
    res = []
    for which in (SCALE, MIN):
        codes, steps = np.empty(totals.shape, np.uint8), np.empty(n, np.float32)
        quantize_positive(found[which].reshape(n, -1), totals, np.int32(top), codes, steps)
        res.append((codes, steps))
    pack(x, found, res[0][0], res[1][0], res[0][1], res[1][1], out.reshape(n, -1))


def encode_q2_k(rows, importance, out):
    _k(weighted_search_16_3, pack_q2_k, 16, 15, 1, rows, importance, out)


def encode_q4_k(rows, importance, out):
    _k(weighted_search_32_15, pack_q4_k, 32, 63, 2, rows, importance, out)


def encode_q5_k(rows, importance, out):
    _k(weighted_search_32_31, pack_q5_k, 32, 63, 2, rows, importance, out)


def make_legacy(bits):
    top = np.int32(2**bits - 1)

    @kernel
    def pack(x, found, out):
        levels = np.empty(32, np.uint8)
        for n in range(len(x)):
            for i in range(32):
                levels[i] = clamp(nearest((x[n, i] - found[LEAST, n]) * found[INVERSE, n]), np.int32(0), top)
            put_half(out[n], 0, to_half(found[SCALE, n]))
            put_half(out[n], 2, to_half(-found[MIN, n]))
            if bits == 5:
                pack_high_bits(levels, out[n, 4:8])
            pack_nibbles(levels, 16, out[n, 4 * (bits - 3) :])

    return pack


pack_q4_1 = make_legacy(4)
pack_q5_1 = make_legacy(5)


def _legacy(search, pack, rows, importance, out):
    found = _search(search, rows, importance, 32, rows.shape[1], 1)
    x = rows.reshape(-1, 32)
    pack(x, found, out.reshape(len(x), -1))


def encode_q4_1(rows, importance, out):
    _legacy(weighted_search_32_15, pack_q4_1, rows, importance, out)


def encode_q5_1(rows, importance, out):
    _legacy(weighted_search_32_31, pack_q5_1, rows, importance, out)
