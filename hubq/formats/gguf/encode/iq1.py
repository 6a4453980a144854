"""IQ1_S and IQ1_M: groups of 8 weights are points of a code book of 2048, their levels -1, 0 and 1 shifted by an eighth."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import ONE, ZERO, clamp, kernel, nearest, put_half, to_half
from hubq.formats.gguf.encode.iq1_points import GROUP, book, level_of
from hubq.formats.gguf.encode.iq1_search import search_m, search_s
from hubq.formats.gguf.encode.iq1_splits import DELTA

HALF = np.float32(0.5)


@kernel
def weigh(x, importance, weights):
    """How much each weight's error counts: its magnitude and the super-block's, times the column's importance."""
    per_row = len(importance) // 256
    for n in range(len(x)):
        total = ZERO
        for i in range(256):
            total += x[n, i] * x[n, i]
        base = np.float32(2) * total / np.float32(256)
        column = n % per_row * 256
        for i in range(256):
            weights[n, i] = importance[column + i] * np.sqrt(base + x[n, i] * x[n, i])


@kernel
def square(x, weights):
    """Without importance an error counts by the square of its weight."""
    for n in range(len(x)):
        for i in range(256):
            weights[n, i] = x[n, i] * x[n, i]


@kernel
def quantize_scale(scale, inverse):
    """The 3-bit code of a block's scale, which is 2 * code + 1 steps."""
    return clamp(nearest(HALF * (inverse * scale - ONE)), np.int32(0), np.int32(7))


@kernel
def greatest(numbers):
    """The greatest number, or 0."""
    high = ZERO
    for j in range(len(numbers)):
        high = max(high, numbers[j])
    return high


@kernel
def pack_s(scales, shifts, points, out):
    """scales: float32 [8 * n]; shifts: uint8 [8 * n]; points: int32 [8 * n, 4]; out: uint8 [n, 50].

    A block's 16 bits hold the upper 3 bits of four indices, 3 bits of scale and the shift.
    """
    for n in range(len(out)):
        high = greatest(scales[8 * n : 8 * n + 8])
        step = high / np.float32(15)
        put_half(out[n], 0, to_half(step * np.float32(1.125)))
        for j in range(8):
            field = np.int32(0)
            for g in range(4):
                index = points[8 * n + j, g] >> 16
                out[n, 2 + 4 * j + g] = index & 0xFF
                field |= index >> 8 << 3 * g
            if high > ZERO:
                field |= quantize_scale(scales[8 * n + j], ONE / step) << 12 | np.int32(shifts[8 * n + j]) << 15
            put_half(out[n], 34 + 2 * j, np.int32(field))


@kernel
def fit_step(x, weights, points, shifts, codes, step):
    """The step of scales that fits one super-block best, `step` where nothing does.

    x, weights: float32 [256]; points: int32 [16, 2]; shifts: uint8 [16]; codes: int32 [16].
    """
    sum_x, sum_w = ZERO, ZERO
    for j in range(16):
        factor = np.float32(2 * codes[j] + 1)
        for g in range(2):
            shift = -DELTA if shifts[j] & (2 >> g) else DELTA
            for i in range(GROUP):
                level = (level_of(points[j, g], i) + shift) * factor
                weight = weights[16 * j + GROUP * g + i]
                sum_x += weight * level * x[16 * j + GROUP * g + i]
                sum_w += weight * level * level
    return sum_x / sum_w if sum_w > ZERO else step


@kernel
def pack_m(x, weights, scales, shifts, points, out):
    """x, weights: float32 [n, 256]; scales: float32 [16 * n]; shifts: uint8 [16 * n]; points: int32 [16 * n, 2]; out: [n, 56].

    Each of the last four 16-bit words holds four scales of 3 bits and 4 bits of the half that is their step.
    """
    codes = np.zeros(16, np.int32)
    for n in range(len(out)):
        here = slice(16 * n, 16 * n + 16)
        high = greatest(scales[here])
        step = high / np.float32(15)
        half = np.int32(0)
        if high > ZERO:
            for j in range(16):
                codes[j] = quantize_scale(scales[16 * n + j], ONE / step)
            step = fit_step(x[n], weights[n], points[here], shifts[here], codes, step)
            half = to_half(step * np.float32(1.1125))
        for j in range(16):
            first, second = points[16 * n + j, 0] >> 16, points[16 * n + j, 1] >> 16
            shift = np.int32(shifts[16 * n + j]) if high > ZERO else np.int32(0)
            out[n, 2 * j], out[n, 2 * j + 1] = first & 0xFF, second & 0xFF
            out[n, 32 + j] = first >> 8 | shift >> 1 << 3 | second >> 8 << 4 | (shift & 1) << 7
        for k in range(4):
            word = np.int32(half >> 4 * k & 15) << 12
            for j in range(4):
                word |= codes[4 * k + j] << 3 * j if high > ZERO else 0
            put_half(out[n], 48 + 2 * k, np.int32(word))


def encode_iq1_s_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ1_S, uint8 [n, row_bytes]: 8 blocks of 32 weights, 3-bit scales and one shift each."""
    x = rows.reshape(-1, 256)
    weights = np.empty_like(x)
    weigh(x, importance, weights)
    found = _room(x.size // 32, 4)
    search_s(x.reshape(-1, 32), weights.reshape(-1, 32), book(), *found)
    pack_s(*found, out.reshape(-1, 50))


def encode_iq1_m_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ1_M, uint8 [n, row_bytes]: 16 blocks of 16 weights, 3-bit scales and two shifts each."""
    x = rows.reshape(-1, 256)
    weights = np.empty_like(x)
    weigh(x, importance, weights)
    _encode_m(x, weights, out.reshape(-1, 56))


def encode_iq1_m(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to IQ1_M, uint8 [n, 56]."""
    weights = np.empty_like(x)
    square(x, weights)
    _encode_m(x, weights, out)


def _encode_m(x: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    found = _room(x.size // 16, 2)
    search_m(x.reshape(-1, 16), weights.reshape(-1, 16), book(), *found)
    pack_m(x, weights, *found, out)


def _room(blocks: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales, shifts and points of so many blocks, for a search to fill."""
    return np.empty(blocks, np.float32), np.empty(blocks, np.uint8), np.empty((blocks, groups), np.int32)
