"""The search behind Q2_K, Q4_K and Q5_K, and behind Q4_1 and Q5_1 with an importance matrix: scale and min of each block.

For each block of 16 or 32 weights ggml tries 16 to 37 roundings, fits scale and min to each by weighted least squares, and
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

# Rows of what a search finds of every block; INVERSE and LEAST give back the levels of the best fit, TOTAL sums the weights.
SCALE, MIN, INVERSE, LEAST, TOTAL = range(5)
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
def weigh_by_size(value, start, guide, weight):
    """How much each weight's error counts: its magnitude."""
    for i in range(len(value)):
        for b in range(LANES):
            weight[i, b] = abs(value[i, b])


@inlined
def weigh_by_size_and_spread(value, start, guide, weight):
    """How much each weight's error counts: its magnitude plus the root mean square of its block."""
    spread = lanes()
    spread[:] = ZERO
    for i in range(len(value)):
        for b in range(LANES):
            spread[b] += value[i, b] * value[i, b]
    for b in range(LANES):
        spread[b] = np.sqrt(spread[b] / np.float32(len(value)))
    for i in range(len(value)):
        for b in range(LANES):
            weight[i, b] = spread[b] + abs(value[i, b])


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
def spread_levels(steps, low, high, fit):
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
def like_magic(value):
    """`value` with the sign and exponent of MAGIC, its mantissa kept."""
    return np.int32(np.float32(value).view(np.int32) & _MANTISSA | _MAGIC_EXPONENT).view(np.float32)


@inlined
def round_levels(value, weight, level, fit, top, wraps, sums):
    """Round every value to a level from 0 to `top`, and sum.

    Adding and taking away MAGIC rounds as nearest() does below 2**22. Where every weight's error counts, (value - least) *
    inverse stays far below: a fit is kept for its small error, so that its low, the next trial's least, lies near the least
    value and not at the greatest. Else it may exceed that, and `wraps` asks for all that nearest() does.
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
                q = like_magic(q) if wraps else q
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
        slope = w * wlx - wx * wl
        low = (wll * wx - wl * wlx) / det
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
    for b in range(LANES):  # all is read before any is chosen: a choice of what to read is no vector code
        scale, low, inverse, least, error = fit.scale[b], fit.low[b], fit.inverse[b], fit.least[b], fit.error[b]
        old_scale, old_low, old_inverse = best.scale[b], best.low[b], best.inverse[b]
        old_least, old_error = best.least[b], best.error[b]
        better = first | (error < old_error)
        best.scale[b] = scale if better else old_scale
        best.low[b] = low if better else old_low
        best.inverse[b] = inverse if better else old_inverse
        best.least[b] = least if better else old_least
        best.error[b] = error if better else old_error


@inlined
def report(best, total, start, count, found):
    """Write what is known of `count` blocks to found[:, start:]."""
    for b in range(count):
        found[SCALE, start + b] = best.scale[b]
        found[MIN, start + b] = -best.low[b]
        found[INVERSE, start + b] = best.inverse[b]
        found[LEAST, start + b] = best.least[b]
        found[TOTAL, start + b] = total[b]


def make_search(
    size: int, top: int, first: float, step: float, trials: int, weigh, magnitude_only: bool = False, wraps: bool = False
):
    """The search for blocks of `size` weights and levels up to `top`.

    `trials` roundings are tried, to levels spread over `top` + `first` steps, then `step` more each time. weigh(value, start,
    guide, weight) sets how much each weight's error counts.
    """
    highest, offset, more = np.float32(top), np.float32(first), np.float32(step)

    @kernel
    def search(x, guide, found):
        """The best fit of every block. x: float32 [blocks, size]; guide: for weigh; found: float32 [5, blocks]."""
        value, weight, level = by_lanes(size), by_lanes(size), by_lanes(size)
        high = lanes()
        sums = Sums(lanes(), lanes(), lanes(), lanes(), lanes())
        fit = Fit(lanes(), lanes(), lanes(), lanes(), lanes())
        best = Fit(lanes(), lanes(), lanes(), lanes(), lanes())
        for start in range(0, len(x), LANES):
            count = load_lanes(x, start, value)
            weigh(value, start, guide, weight)
            survey(value, weight, best.low, high, sums)
            for trial in range(-1, trials):
                beyond = offset + more * np.float32(trial) if trial >= 0 else ZERO
                spread_levels(beyond + highest, best.low, high, fit)
                round_levels(value, weight, level, fit, highest, wraps, sums)
                if trial >= 0:
                    least_squares(sums, fit)
                add_errors(value, weight, level, fit, magnitude_only)
                keep_better(fit, best, trial < 0)
            report(best, sums.w, start, count, found)

    return search


search_q2_k = make_search(16, 3, -0.5, 0.1, 16, weigh_by_size, magnitude_only=True)
search_q4_k = make_search(32, 15, -1.0, 0.1, 21, weigh_by_size_and_spread)
search_q5_k = make_search(32, 31, -0.5, 0.1, 16, weigh_by_size_and_spread)
