"""IQ4_NL and IQ4_XS: weight = scale * one of 16 uneven values, nearer to each other around 0.

For each block of 32 weights ggml tries 16 scales, fits each by weighted least squares and keeps the best. IQ4_NL stores that
scale as a 16-bit float; IQ4_XS counts those of eight blocks in 6 bits. As in affine_search.py, LANES blocks are searched
side by side.

Values: kvalues_iq4nl of ggml-common.h. The nearest is found by bisection there, here by
comparing with every midpoint: they are multiples of 1/2, so the comparison of the two distances is exact.
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import (
    LANES,
    ONE,
    UNROLL,
    ZERO,
    by_lanes,
    clamp,
    inlined,
    kernel,
    lanes,
    load_lanes,
    nearest,
    pack_nibbles,
    put_half,
    to_half,
)
from hubq.formats.gguf.encode.iq3_weigh import EVERY_COLUMN_ALIKE, mean_squares, weigh

BLOCK = 32
TRIALS = 7  # on either side of the scale that takes the largest weight to the least value
TINY = np.float32(1e-15)  # a block below this counts as zero

LEAST = np.float32(-127)
LEVELS = np.zeros(241, np.uint8)  # the level whose value is the index less 127
LEVELS[127 + np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])] = range(16)


@inlined
def nearest_value(a):
    """The nearest of the 16 values to `a`, the greater of two as near; the greatest for NaN."""
    q = np.float32(-127)
    q = q if a < np.float32(-115.5) else np.float32(-104)
    q = q if a < np.float32(-93.5) else np.float32(-83)
    q = q if a < np.float32(-74) else np.float32(-65)
    q = q if a < np.float32(-57) else np.float32(-49)
    q = q if a < np.float32(-42) else np.float32(-35)
    q = q if a < np.float32(-28.5) else np.float32(-22)
    q = q if a < np.float32(-16) else np.float32(-10)
    q = q if a < np.float32(-4.5) else np.float32(1)
    q = q if a < np.float32(7) else np.float32(13)
    q = q if a < np.float32(19) else np.float32(25)
    q = q if a < np.float32(31.5) else np.float32(38)
    q = q if a < np.float32(45.5) else np.float32(53)
    q = q if a < np.float32(61) else np.float32(69)
    q = q if a < np.float32(79) else np.float32(89)
    q = q if a < np.float32(101) else np.float32(113)
    return q


@inlined
def survey(value, largest):
    """The value of each block that is furthest from zero; the first of equals."""
    largest[:] = ZERO
    for i in range(BLOCK):
        for b in range(LANES):
            x = value[i, b]
            largest[b] = x if abs(x) > abs(largest[b]) else largest[b]


@inlined
def sum_nearest(value, weight, inverse, sum_qx, sum_qq):
    """Over each block, sums of w * q * x and w * q**2, q being the value nearest to x * inverse."""
    sum_qx[:] = ZERO
    sum_qq[:] = ZERO
    for start in range(0, BLOCK, UNROLL):
        for b in range(LANES):
            qx, qq = sum_qx[b], sum_qq[b]
            for i in range(start, start + UNROLL):
                q = nearest_value(inverse[b] * value[i, b])
                step = weight[i, b] * q
                qx += step * value[i, b]
                qq += step * q
            sum_qx[b], sum_qq[b] = qx, qq


@kernel
def search_scales(x, sigma, importance, scales):
    """The best scale of every block.

    x: float32 [blocks, 32]; sigma: float32 [blocks], twice the mean square around a block; importance: float32 [columns], or
    empty for none; scales: float32 [blocks].
    """
    value, weight = by_lanes(BLOCK), by_lanes(BLOCK)
    largest, inverse, sum_qx, sum_qq, scale, best = lanes(), lanes(), lanes(), lanes(), lanes(), lanes()
    for start in range(0, len(x), LANES):
        count = load_lanes(x, start, value)
        weigh(value, sigma, importance, start, count, weight)
        survey(value, largest)
        for b in range(LANES):
            inverse[b] = ONE / (-largest[b] / LEAST)
        sum_nearest(value, weight, inverse, sum_qx, sum_qq)
        for b in range(LANES):
            scale[b] = sum_qx[b] / sum_qq[b] if sum_qq[b] > ZERO else ZERO
            best[b] = scale[b] * sum_qx[b]
        for trial in range(-TRIALS, TRIALS + 1):
            for b in range(LANES):
                inverse[b] = (np.float32(trial) + LEAST) / largest[b]
            sum_nearest(value, weight, inverse, sum_qx, sum_qq)
            for b in range(LANES):
                better = (sum_qq[b] > ZERO) & (sum_qx[b] * sum_qx[b] > best[b] * sum_qq[b])
                fit = sum_qx[b] / sum_qq[b]
                scale[b] = fit if better else scale[b]
                best[b] = fit * sum_qx[b] if better else best[b]
        for b in range(count):
            scales[start + b] = ZERO if abs(largest[b]) < TINY else scale[b]


@inlined
def pack_levels(row, scale, values, levels, out):
    """The nearest of the 16 values to each weight / scale, two to a byte; to 0 where scale is 0. row: 32 weights."""
    inverse = ONE / scale if scale != ZERO else ZERO
    for i in range(BLOCK):
        values[i] = nearest_value(inverse * row[i])
    for i in range(BLOCK):
        levels[i] = LEVELS[np.int32(values[i]) + 127]
    pack_nibbles(levels, 16, out)


@kernel
def pack_iq4_nl(x, scales, out):
    """x: float32 [n, 32]; scales: float32 [n]; out: uint8 [n, 18]."""
    values, levels = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint8)
    for n in range(len(x)):
        put_half(out[n], 0, to_half(scales[n]))
        pack_levels(x[n], scales[n], values, levels, out[n, 2:])


@kernel
def pack_iq4_xs(x, scales, out):
    """x: float32 [n, 256]; scales: float32 [8 * n]; out: uint8 [n, 136]: step, high bits and low nibbles of scales, levels."""
    values, levels = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint8)
    for n in range(len(x)):
        largest = ZERO
        for j in range(8 * n, 8 * n + 8):
            largest = scales[j] if abs(scales[j]) > abs(largest) else largest
        step = -largest / np.float32(32)
        inverse = ONE / step if step != ZERO else ZERO
        put_half(out[n], 0, to_half(step))
        out[n, 2:8] = 0
        for j in range(8):
            code = clamp(nearest(inverse * scales[8 * n + j]), np.int32(-32), np.int32(31))
            pack_levels(x[n, 32 * j : 32 * j + 32], step * np.float32(code), values, levels, out[n, 8 + 16 * j : 24 + 16 * j])
            out[n, 2 + j // 4] |= (code + 32) >> 4 << (j % 4 * 2)
            out[n, 4 + j // 2] |= ((code + 32) & 15) << (j % 2 * 4)


def encode_iq4_nl(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 32] to IQ4_NL, uint8 [n, 18]; an error counts by the square of its weight."""
    encode_iq4_nl_weighted(x, EVERY_COLUMN_ALIKE, out)


def encode_iq4_nl_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ4_NL, uint8 [n, columns / 32 * 18]; importance: float32 [columns]."""
    blocks, scales = rows.reshape(-1, BLOCK), np.empty(rows.size // BLOCK, np.float32)
    search_scales(blocks, mean_squares(blocks, np.float32(2 / BLOCK), ONE), importance, scales)
    pack_iq4_nl(blocks, scales, out.reshape(len(blocks), -1))


def encode_iq4_xs(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to IQ4_XS, uint8 [n, 136]; an error counts by the square of its weight."""
    encode_iq4_xs_weighted(x, EVERY_COLUMN_ALIKE, out)


def encode_iq4_xs_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ4_XS, uint8 [n, columns / 256 * 136]; importance: float32 [columns]."""
    x, scales = rows.reshape(-1, 256), np.empty(rows.size // BLOCK, np.float32)
    search_scales(x.reshape(-1, BLOCK), np.repeat(mean_squares(x, np.float32(2 / 256), ONE), 8), importance, scales)
    pack_iq4_xs(x, scales, out.reshape(len(x), -1))
