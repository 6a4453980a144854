"""The search behind Q2_K, Q4_K and Q5_K: the scale and min of each block, before they are quantized in turn.

For each block of 16 or 32 weights ggml tries 16 or 21 roundings, fits scale and min to each by weighted least squares, and
keeps the fit of least error. Its float sums must keep their order, so the weights of one block cannot be taken together; but
blocks do not depend on each other. The search takes LANES blocks side by side: arrays are [position, lane], the inner loop
runs over lanes, branches are selects, and the compiler makes vector code of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import (
    INFINITY,
    LANES,
    MAGIC,
    ONE,
    ZERO,
    by_lanes,
    inlined,
    kernel,
    lanes,
    load_lanes,
)

SCALE, MIN, INVERSE, LEAST, TOTAL = range(5)  # rows of what a search finds: INVERSE and LEAST give back the best levels
UNROLL = 8  # positions taken at a time, so that sums rest in registers between visits to memory

_MANTISSA = np.int32(0x7FFFFF)
_MAGIC_EXPONENT = np.int32(0x4B000000)


class Fit(NamedTuple):
    """weight = scale * level + low and its error, where level = (weight - least) * inverse, rounded. Arrays [lane]."""

    scale: np.ndarray
    low: np.ndarray
    inverse: np.ndarray
    least: np.ndarray
    error: np.ndarray


class Sums(NamedTuple):
    """Over a block, sums of: w, w * x, w * level, w * level**2, w * level * x. Arrays [lane]."""

    w: np.ndarray
    wx: np.ndarray
    wl: np.ndarray
    wll: np.ndarray
    wlx: np.ndarray


@inlined
def weigh_by_size(value, start, importance, variance, weight):
    """The magnitude of each weight."""
    for i in range(len(value)):
        for b in range(LANES):
            weight[i, b] = abs(value[i, b])


@inlined
def weigh_by_size_and_spread(value, start, importance, variance, weight):
    """The magnitude of each weight plus the block's root mean square."""
    base = lanes()
    base[:] = ZERO
    for i in range(len(value)):
        for b in range(LANES):
            base[b] += value[i, b] * value[i, b]
    for b in range(LANES):
        base[b] = np.sqrt(base[b] / np.float32(len(value)))
    for i in range(len(value)):
        for b in range(LANES):
            weight[i, b] = base[b] + abs(value[i, b])


@inlined
def weigh_by_importance(value, start, importance, variance, weight):
    """The importance of each weight's column times the root of its square plus the variance of its block's row."""
    size, spread = len(value), lanes()
    weight[:] = ZERO
    spread[:] = ZERO
    for b in range(min(LANES, len(variance) - start)):
        spread[b] = variance[start + b]
        column = (start + b) * size % len(importance)
        for i in range(size):
            weight[i, b] = importance[column + i]
    for i in range(size):
        for b in range(LANES):
            weight[i, b] *= np.sqrt(spread[b] + value[i, b] * value[i, b])


@inlined
def survey(value, weight, low, high, sums):
    """The least value (at most 0), the greatest, and the sums that no rounding changes."""
    for b in range(LANES):
        low[b] = value[0, b]
        high[b] = value[0, b]
        sums.w[b] = weight[0, b]
        sums.wx[b] = weight[0, b] * value[0, b]
    for i in range(1, len(value)):
        for b in range(LANES):
            x = value[i, b]
            low[b] = x if x < low[b] else low[b]
            high[b] = x if x > high[b] else high[b]
            sums.w[b] += weight[i, b]
            sums.wx[b] += weight[i, b] * x
    for b in range(LANES):
        low[b] = ZERO if low[b] > ZERO else low[b]


@inlined
def spread(steps, low, high, fit):
    """The fit of `steps` levels spread evenly from low to high.

    The span may be so small that its inverse is infinite. ggml's rounding then gives level 0 throughout; an inverse of 0
    does too, without an infinity in the way.
    """
    for b in range(LANES):
        inverse = steps / (high[b] - low[b])
        fit.scale[b] = ONE / inverse
        fit.low[b] = low[b]
        fit.least[b] = low[b]
        fit.inverse[b] = inverse if abs(inverse) < INFINITY else ZERO
        fit.error[b] = ZERO


@kernel
def mantissa(value):
    """`value` with the sign and exponent of MAGIC."""
    return np.int32(np.float32(value).view(np.int32) & _MANTISSA | _MAGIC_EXPONENT).view(np.float32)


@inlined
def round_levels(value, weight, level, fit, top, wraps, sums):
    """Round every value to a level from 0 to `top`, and sum.

    Adding and taking away MAGIC rounds as nearest() does below 2**22. If weights may be 0, a fit's least may lie anywhere and
    (value - least) * inverse beyond: with `wraps`, only the mantissa counts, as in nearest().
    """
    for b in range(LANES):
        sums.wl[b] = ZERO
        sums.wll[b] = ZERO
        sums.wlx[b] = ZERO
    for start in range(0, len(value), UNROLL):
        for b in range(LANES):
            wl, wll, wlx = sums.wl[b], sums.wll[b], sums.wlx[b]
            least, inverse = fit.least[b], fit.inverse[b]
            for i in range(start, start + UNROLL):
                x = value[i, b]
                q = (x - least) * inverse + MAGIC
                if wraps:
                    q = mantissa(q)
                q = min(top, max(ZERO, q - MAGIC))  # in this order NaN becomes 0
                level[i, b] = q
                step = weight[i, b] * q
                wl += step
                wll += step * q
                wlx += step * x
            sums.wl[b], sums.wll[b], sums.wlx[b] = wl, wll, wlx


@inlined
def least_squares(sums, fit):
    """Scale and low of the least weighted square error for the rounding that was summed; low at most 0."""
    for b in range(LANES):
        w, wx, wl, wll, wlx = sums.w[b], sums.wx[b], sums.wl[b], sums.wll[b], sums.wlx[b]
        det = w * wll - wl * wl
        low = (wll * wx - wl * wlx) / det
        slope = w * wlx - wx * wl
        above = low > ZERO
        fit.scale[b] = (wlx if above else slope) / (wll if above else det)
        fit.low[b] = ZERO if above else low
        fit.error[b] = ZERO if det > ZERO else INFINITY


@inlined
def add_errors(value, weight, level, fit, magnitude_only):
    """Add the weighted error of each lane's fit to fit.error: squares, or magnitudes if `magnitude_only`."""
    for start in range(0, len(value), UNROLL):
        for b in range(LANES):
            error, scale, low = fit.error[b], fit.scale[b], fit.low[b]
            for i in range(start, start + UNROLL):
                miss = scale * level[i, b] + low - value[i, b]
                error += weight[i, b] * (abs(miss) if magnitude_only else miss * miss)
            fit.error[b] = error


@inlined
def keep_better(fit, best, first):
    """Take the new fit where its error is less, or everywhere if it is the first."""
    for b in range(LANES):
        scale, low, least, inverse, error = fit.scale[b], fit.low[b], fit.least[b], fit.inverse[b], fit.error[b]
        old_scale, old_low, old_least, old_inverse = best.scale[b], best.low[b], best.least[b], best.inverse[b]
        old_error = best.error[b]
        better = first | (error < old_error)
        best.scale[b] = scale if better else old_scale
        best.low[b] = low if better else old_low
        best.least[b] = least if better else old_least
        best.inverse[b] = inverse if better else old_inverse
        best.error[b] = error if better else old_error


def make_search(size: int, top: int, first: float, step: float, trials: int, magnitude_only: bool, weigh, wraps: bool):
    """The search for blocks of `size` weights and levels up to `top`: `trials` roundings, `first` steps from top onwards.

    `weigh` (value, start, importance, variance, weight) says how much each error counts.
    """
    highest, offset, pace = np.float32(top), np.float32(first), np.float32(step)

    @kernel
    def search(x, importance, variance, found):
        """The best fit of every block. x: float32 [blocks, size]; found: float32 [5, blocks], rows SCALE to TOTAL."""
        value = by_lanes(size)
        weight = by_lanes(size)
        level = by_lanes(size)
        high = lanes()
        sums = Sums(lanes(), lanes(), lanes(), lanes(), lanes())
        fit = Fit(lanes(), lanes(), lanes(), lanes(), lanes())
        best = Fit(lanes(), lanes(), lanes(), lanes(), lanes())
        for start in range(0, len(x), LANES):
            count = load_lanes(x, start, value)
            weigh(value, start, importance, variance, weight)
            survey(value, weight, best.low, high, sums)
            for trial in range(-1, trials):
                beyond = offset + pace * np.float32(trial) if trial >= 0 else ZERO
                spread(beyond + highest, best.low, high, fit)
                round_levels(value, weight, level, fit, highest, wraps, sums)
                if trial >= 0:
                    least_squares(sums, fit)
                add_errors(value, weight, level, fit, magnitude_only)
                keep_better(fit, best, trial < 0)
            for b in range(count):
                found[SCALE, start + b] = best.scale[b]
                found[MIN, start + b] = -best.low[b]
                found[INVERSE, start + b] = best.inverse[b]
                found[LEAST, start + b] = best.least[b]
                found[TOTAL, start + b] = sums.w[b]

    return search


search_q2_k = make_search(16, 3, -0.5, 0.1, 16, True, weigh_by_size, False)
search_q4_k = make_search(32, 15, -1.0, 0.1, 21, False, weigh_by_size_and_spread, False)
search_q5_k = make_search(32, 31, -0.5, 0.1, 16, False, weigh_by_size_and_spread, False)
weighted_search_16_3 = make_search(16, 3, -0.9, 0.05, 37, False, weigh_by_importance, True)
weighted_search_32_15 = make_search(32, 15, -0.9, 0.05, 37, False, weigh_by_importance, True)
weighted_search_32_31 = make_search(32, 31, -0.9, 0.05, 37, False, weigh_by_importance, True)
