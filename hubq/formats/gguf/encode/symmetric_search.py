"""The search behind Q6_K and behind every type of an importance-weighted weight = scale * (level - half).

For each block of 16 or 32 weights ggml rounds so that the weight furthest from zero meets the lowest level, then tries 18
nearby scales, and keeps the rounding whose least-squares scale fits best. As in affine_search.py, LANES blocks are searched
side by side; and two trials at a time, so that a value is loaded once for both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import (
    INFINITY,
    LANES,
    MAGIC,
    ONE,
    UNROLL,
    ZERO,
    clamp,
    inlined,
    kernel,
    nearest,
    select,
)

SCALE, INVERSE, WEIGHT = range(3)  # rows of what a search finds: scale, the inverse that gave its levels, sum of the weights
TINY = np.float32(1e-15)  # a block whose weights are all below this counts as zero
NOTHING = INFINITY  # the inverse of such a block

# How far beyond `half` the lowest level lies in each trial. The first goes ahead; the last comes twice, to pair them up.
BEYOND = np.float32(0.1) * np.float32([0, *range(-9, 0), *range(1, 10), 9])
PAIRS = len(BEYOND) // 2
FIRST_BELOW = 7  # from this pair on (5 and 6 tenths) a level may round to below -half


class Block(NamedTuple):
    """Arrays [position, lane]: values, their weights, and weight * value."""

    value: np.ndarray
    weight: np.ndarray
    product: np.ndarray


class Best(NamedTuple):
    """The best trial so far: its scale and inverse, and scale * (sum of product * level) as its merit. Arrays [lane]."""

    scale: np.ndarray
    inverse: np.ndarray
    merit: np.ndarray


class Trials(NamedTuple):
    """Two trials: inverses, and the sums of product * level and weight * level**2. Arrays [2, lane]."""

    inverse: np.ndarray
    lx: np.ndarray
    ll: np.ndarray


@inlined
def scratch(size):
    """Block, Trials, Best and two more arrays [lane]. Cut from one piece, so that the compiler sees them apart."""
    work = np.empty((3 * size + 11, LANES), np.float32)
    block = Block(work[:size], work[size : 2 * size], work[2 * size : 3 * size])
    rest = work[3 * size :]
    return block, Trials(rest[:2], rest[2:4], rest[4:6]), Best(rest[6], rest[7], rest[8]), rest[9], rest[10]


@inlined
def transpose(rows, chosen, lanes):
    """lanes[:, b] = rows[chosen[b]], the last chosen row also in the lanes left over.

    Four lanes at a time, since stores to neighbours are faster than stores far apart.
    """
    last = len(chosen) - 1
    for b in range(0, LANES, 4):
        row0, row1 = chosen[min(b, last)], chosen[min(b + 1, last)]
        row2, row3 = chosen[min(b + 2, last)], chosen[min(b + 3, last)]
        for i in range(len(lanes)):
            x0, x1, x2, x3 = rows[row0, i], rows[row1, i], rows[row2, i], rows[row3, i]
            lanes[i, b], lanes[i, b + 1], lanes[i, b + 2], lanes[i, b + 3] = x0, x1, x2, x3


@inlined
def furthest_values(value, largest):
    """The value of each lane that is furthest from zero; the first of equals."""
    largest[:] = ZERO
    for i in range(len(value)):
        for b in range(LANES):
            x, most = value[i, b], largest[b]
            largest[b] = select(abs(x) > abs(most), x, most)


@inlined
def spread_mean(mean, blocks, start, lane_mean):
    """The mean of each lane; each of `mean` holds for as many blocks."""
    each = np.uint32(blocks // len(mean))
    for b in range(LANES):
        lane_mean[b] = mean[np.uint32(min(start + b, blocks - 1)) // each]


@inlined
def weigh_squares(block):
    """Each value counts as much as its square."""
    for i in range(len(block.value)):
        for b in range(LANES):
            x = block.value[i, b]
            block.weight[i, b] = x * x


@inlined
def weigh_root(block, mean):
    """Multiply each weight by the root of mean + value**2."""
    for i in range(len(block.value)):
        for b in range(LANES):
            x = block.value[i, b]
            block.weight[i, b] *= np.sqrt(mean[b] + x * x)


@inlined
def multiply(block, total):
    """The products and the sums of weights; then zeros for undefined and infinite values, which ggml rounds to level 0."""
    total[:] = ZERO
    for i in range(len(block.value)):
        for b in range(LANES):
            x = block.value[i, b]
            total[b] += block.weight[i, b]
            block.product[i, b] = block.weight[i, b] * x
            block.value[i, b] = select(abs(x) < INFINITY, x, ZERO)


@inlined
def round_level(scaled, half, may_fall_below):
    """|scaled| stays near half, where adding and taking away MAGIC rounds as nearest() does."""
    level = (select(scaled < half - ONE, scaled, half - ONE) + MAGIC) - MAGIC
    return select(level > -half, level, -half) if may_fall_below else level


@inlined
def sum_pair(block, half, may_fall_below, pair):
    """The sums of two trials."""
    pair.lx[:] = ZERO
    pair.ll[:] = ZERO
    for start in range(0, len(block.value), UNROLL):
        for b in range(LANES):
            inverse0, inverse1 = pair.inverse[0, b], pair.inverse[1, b]
            lx0, lx1, ll0, ll1 = pair.lx[0, b], pair.lx[1, b], pair.ll[0, b], pair.ll[1, b]
            for i in range(start, start + UNROLL):
                x, weight, product = block.value[i, b], block.weight[i, b], block.product[i, b]
                q0 = round_level(x * inverse0, half, may_fall_below)
                q1 = round_level(x * inverse1, half, may_fall_below)
                lx0 += product * q0
                lx1 += product * q1
                ll0 += weight * q0 * q0
                ll1 += weight * q1 * q1
            pair.lx[0, b], pair.lx[1, b], pair.ll[0, b], pair.ll[1, b] = lx0, lx1, ll0, ll1


@inlined
def keep_better(pair, trial, first, best):
    """Take a trial where it fits better, or everywhere if it is the first."""
    for b in range(LANES):
        lx, ll, inverse = pair.lx[trial, b], pair.ll[trial, b], pair.inverse[trial, b]
        scale = select(ll != ZERO, lx / ll, ZERO)
        better = first | ((ll > ZERO) & (lx * lx > best.merit[b] * ll))
        best.scale[b] = select(better, scale, best.scale[b])
        best.merit[b] = select(better, scale * lx, best.merit[b])
        best.inverse[b] = select(better, inverse, best.inverse[b])


@inlined
def search_lanes(block, largest, half, pair, best):
    """The best of all trials for every lane."""
    for k in range(PAIRS):
        for trial in range(2):
            for b in range(LANES):
                pair.inverse[trial, b] = -(half + BEYOND[2 * k + trial]) / largest[b]
        if k < FIRST_BELOW:
            sum_pair(block, half, False, pair)
        else:
            sum_pair(block, half, True, pair)
        for trial in range(2):
            keep_better(pair, trial, k + trial == 0, best)


def make_search(size: int, highest: int):
    """The search for blocks of `size` weights and levels up to 2 * highest - 1."""
    half = np.float32(highest)

    @kernel
    def search(x, importance, mean, found):
        """Scale and inverse of every block. x: float32 [blocks, size]; found: float32 [3, blocks], see SCALE.

        importance: float32 [blocks of one row, size], or None to weigh by the squares of x; mean: float32 [rows], to
        multiply the importance by the root of mean + x**2, or None.
        """
        block, pair, best, largest, total = scratch(size)
        blocks = np.arange(len(x))
        for start in range(0, len(x), LANES):
            count = min(LANES, len(x) - start)
            transpose(x, blocks[start : start + count], block.value)
            furthest_values(block.value, largest)
            if importance is None:
                weigh_squares(block)
            else:
                transpose(importance, blocks[start : start + count] % len(importance), block.weight)
                if mean is not None:
                    spread_mean(mean, len(x), start, best.scale)
                    weigh_root(block, best.scale)
            multiply(block, total)
            search_lanes(block, largest, half, pair, best)
            for b in range(count):
                nothing = abs(largest[b]) < TINY
                found[SCALE, start + b] = ZERO if nothing else best.scale[b]
                found[INVERSE, start + b] = NOTHING if nothing else best.inverse[b]
                found[WEIGHT, start + b] = total[b]

    return search


@inlined
def levels_of_search(x, inverse, half, levels):
    """The levels, from 0 to 2 * half - 1, of a block for the inverse that was found; all 0 if it counts as zero."""
    known = select(inverse == NOTHING, ZERO, inverse)
    for i in range(len(levels)):
        levels[i] = clamp(nearest(x[i] * known), -half, half - np.int32(1)) + half
    if inverse == NOTHING:
        levels[:] = 0
