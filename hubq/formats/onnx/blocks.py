"""Weights in 4 or 8 bits as onnxruntime's MatMulNBits and GatherBlockQuantized take them, from a search for the least error.

A block of weights of one row shares a scale and an integer zero point; a weight is (level - zero point) * scale. For each
block many scales are tried, each with the two zero points that lie nearest. What a rounding is worth follows from two sums
(_gain), so that no trial computes its error.

LANES rows lie side by side: arrays are [position, lane], and the compiler makes vector code of the inner loops over lanes. No
sum changes its order with the CPU or the number of threads, and so neither do the bytes.

Formats: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import (
    INFINITY,
    LANES,
    MAGIC,
    ONE,
    ZERO,
    by_lanes,
    from_half,
    inlined,
    kernel,
    lanes,
    load_lanes,
    to_half,
)

UNROLL = 8  # positions taken at a time, so that sums rest in registers between visits to memory
# bits -> the spans of the levels that are tried, in parts of the weights' span: first, step, count
SPANS = {4: (0.70, 0.03, 13), 8: (0.994, 0.002, 5)}


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed weights. MatMulNBits takes the arrays as they are; for GatherBlockQuantized see rows().

    `data` is uint8 [N, blocks, block * bits / 8], low bits first; `scales` float32 [N, blocks]; `zero_points` uint8
    [N, ceil(blocks * bits / 8)], or None where all are 2 ** (bits - 1), which is what both operators take for granted.
    """

    data: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None

    def rows(self, columns: int, bits: int) -> np.ndarray:
        """`data` as GatherBlockQuantized takes it: uint8 [N, columns * bits / 8], without what fills the last block."""
        return np.ascontiguousarray(self.data.reshape(len(self.data), -1)[:, : columns * bits // 8])


def pack(
    weights: np.ndarray,
    bits: int,
    block: int = 32,
    importance: np.ndarray | None = None,
    symmetric: bool = False,
    half: bool = False,
) -> Packed:
    """Pack weights, float32 [N, K], in blocks of `block` (a power of 2, 16 or more) along K, in 4 or 8 bits.

    The squared error counts by column as `importance` says (float32 [K], not negative). `symmetric` fixes the zero points in
    the middle; `half` makes every scale a float16's number, for graphs in float16. Weights must be finite.
    """
    rows, columns = weights.shape
    blocks = -(-columns // block)
    padded = weights if columns % block == 0 else np.pad(weights, [(0, 0), (0, blocks * block - columns)])
    weight = _column_weights(importance, columns, blocks * block)
    data = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales, zeros = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.uint8)
    first, step, count = SPANS[bits]
    spans = np.array([first + step * trial for trial in range(count)], np.float32)

    def work(start: int) -> None:
        one = slice(start, start + 4 * LANES)
        _pack(padded[one], weight, spans, bits, symmetric, half, data[one], scales[one], zeros[one])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, rows, 4 * LANES)))
    return Packed(data, scales, None if symmetric else _pack_zeros(zeros, bits))


def unpack(packed: Packed, rows: int, columns: int, bits: int, block: int) -> np.ndarray:
    """The weights that onnxruntime computes with, float32 [rows, columns]: (level - zero point) * scale."""
    levels = _spread(packed.data.reshape(rows, -1), bits).reshape(rows, -1, block)
    blocks = levels.shape[1]
    zeros = _spread(packed.zero_points, bits)[:, :blocks] if packed.zero_points is not None else np.full(1, 1 << bits - 1)
    steps = levels.astype(np.float32) - zeros.astype(np.float32)[..., None]
    return (steps * packed.scales[..., None]).reshape(rows, -1)[:, :columns]


def _spread(data: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of 4 or 8 bits, one a byte."""
    return data if bits == 8 else np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)


def _pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return zeros
    even = np.pad(zeros, [(0, 0), (0, zeros.shape[1] % 2)])
    return even[:, ::2] | even[:, 1::2] << 4


def _column_weights(importance: np.ndarray | None, columns: int, padded: int) -> np.ndarray:
    """How much each column's error counts, of mean 1."""
    counts = np.ones(columns) if importance is None else importance
    weight = np.zeros(padded, np.float32)
    mean = np.mean(counts, dtype=np.float64)
    weight[:columns] = counts / mean if mean > 0 else 1
    return weight


# --- kernels ---


class Fit(NamedTuple):
    """weight = scale * (level - zero) and what it is worth: the error it saves against zeros. Arrays [lane]."""

    scale: np.ndarray
    zero: np.ndarray
    gain: np.ndarray


@inlined
def _survey(value, low, high):
    """The least value (at most 0) and the greatest (at least 0)."""
    low[:], high[:] = ZERO, ZERO
    for i in range(len(value)):
        for b in range(LANES):
            x = value[i, b]
            low[b] = x if x < low[b] else low[b]
            high[b] = x if x > high[b] else high[b]


@inlined
def _propose(low, high, span, second, symmetric, top, fit):
    """Scale and zero point for levels that span `span` times the values; `second` asks for the other choice.

    That is of the zero point the one above; or, where it is fixed, of the sign that gives the far side one level more.
    """
    for b in range(LANES):
        if symmetric:
            reach = max(high[b], -low[b]) * span * np.float32(2) / (top + ONE)
            fit.scale[b] = -reach if second else reach
            fit.zero[b] = (top + ONE) * np.float32(0.5)
        else:
            scale = (high[b] - low[b]) * span / top
            below = np.floor(-low[b] / scale) if scale > ZERO else ZERO
            fit.scale[b] = scale
            fit.zero[b] = min(top, below + ONE if second else below)


@inlined
def _invert(scale, inverse):
    """1 / scale; 0 where that is infinite."""
    for b in range(LANES):
        one = ONE / scale[b]
        inverse[b] = one if abs(one) < INFINITY else ZERO


@inlined
def _refit(value, weight, inverse, top, wll, wlx, fit):
    """Round at fit.zero and 1 / inverse; the scale that is best for this rounding, and the rounding's worth."""
    wll[:], wlx[:] = ZERO, ZERO
    for start in range(0, len(value), UNROLL):
        for b in range(LANES):
            ll, lx, factor = wll[b], wlx[b], inverse[b]
            bottom, ceiling = -fit.zero[b], top - fit.zero[b]
            for i in range(start, start + UNROLL):
                x = value[i, b]
                level = min(ceiling, max(bottom, (x * factor + MAGIC) - MAGIC))
                step = weight[i] * level
                ll += step * level
                lx += step * x
            wll[b], wlx[b] = ll, lx
    for b in range(LANES):
        scale = wlx[b] / wll[b] if wll[b] > ZERO else ZERO
        fit.scale[b] = scale
        fit.gain[b] = wlx[b] * scale


@inlined
def _keep_better(fit, best):
    for b in range(LANES):
        scale, zero, gain = fit.scale[b], fit.zero[b], fit.gain[b]
        old_scale, old_zero, old_gain = best.scale[b], best.zero[b], best.gain[b]
        better = gain > old_gain
        best.scale[b] = scale if better else old_scale
        best.zero[b] = zero if better else old_zero
        best.gain[b] = gain if better else old_gain


@inlined
def _search(value, weight, spans, symmetric, top, scratch, fit, best):
    """The best scale and zero point of each lane's block: value [block, lane], weight [block]."""
    low, high, inverse, wll, wlx = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    _survey(value, low, high)
    best.scale[:], best.gain[:] = ZERO, ZERO
    best.zero[:] = (top + ONE) * np.float32(0.5)
    for trial in range(2 * len(spans)):
        _propose(low, high, spans[trial // 2], trial % 2 == 1, symmetric, top, fit)
        _invert(fit.scale, inverse)
        _refit(value, weight, inverse, top, wll, wlx, fit)
        _keep_better(fit, best)
    for _ in range(2):
        fit.zero[:] = best.zero
        _invert(best.scale, inverse)
        _refit(value, weight, inverse, top, wll, wlx, fit)
        _keep_better(fit, best)


@inlined
def _round(value, inverse, zero, top, level):
    """Round a block to levels from 0 to `top`."""
    for i in range(len(value)):
        for b in range(LANES):
            level[i, b] = min(top - zero[b], max(-zero[b], (value[i, b] * inverse[b] + MAGIC) - MAGIC)) + zero[b]


@inlined
def _store(level, bits, count, out):
    """Pack levels [block, lane] into out [lane, block * bits / 8]."""
    for b in range(count):
        if bits == 8:
            for i in range(len(level)):
                out[b, i] = np.uint8(np.int32(level[i, b]))
        else:
            for i in range(len(level) // 2):
                out[b, i] = np.uint8(np.int32(level[2 * i, b]) | np.int32(level[2 * i + 1, b]) << 4)


@kernel
def _pack(x, weight, spans, bits, symmetric, half, data, scales, zeros):
    """Pack rows x [n, blocks * block]; see pack()."""
    columns, blocks = x.shape[1], data.shape[1]
    block, top = columns // blocks, np.float32((1 << bits) - 1)
    rows, level, scratch = by_lanes(columns), by_lanes(block), by_lanes(5)
    inverse = lanes()
    fit, best = Fit(lanes(), lanes(), lanes()), Fit(lanes(), lanes(), lanes())
    for start in range(0, len(x), LANES):
        count = load_lanes(x, start, rows)
        for k in range(blocks):
            first = k * block
            value = rows[first : first + block]
            _search(value, weight[first : first + block], spans, symmetric, top, scratch, fit, best)
            if half:
                for b in range(LANES):
                    best.scale[b] = from_half(to_half(best.scale[b]))
            _invert(best.scale, inverse)
            _round(value, inverse, best.zero, top, level)
            _store(level, bits, count, data[start:, k])
            for b in range(count):
                scales[start + b, k] = best.scale[b]
                zeros[start + b, k] = np.uint8(np.int32(best.zero[b]))
