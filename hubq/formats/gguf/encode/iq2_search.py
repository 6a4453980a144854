"""The search behind IQ2_XXS, IQ2_XS and IQ2_S: the scale of each block and a point of the code book for each 8 weights.

ggml tries 13 or 19 scales for a block, chooses the points for each (iq2_choice.py), fits the scale to these by weighted least
squares and keeps the best. LANES blocks are searched side by side: arrays are [position, lane], flat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ONE, ZERO, kernel
from hubq.formats.gguf.encode.iq2_choice import GROUP, OFF_GRID, choose, round_codes
from hubq.formats.gguf.encode.positive import search_positive
from hubq.formats.gguf.encode.vectors import WIDTH, floats, load, splat, square_root, store, where

STEP = np.float32(0.1)
QUARTER, THREE, FIVE = np.float32(0.25), np.float32(3), np.float32(5)
I0, I1, I2, I3 = np.int32(0), np.int32(1), np.int32(2), np.int32(3)


@kernel
def add_up(weight, product, choices, start, sum_qx, sum_qq):
    """Sums of weight * x * q and weight * q**2 over each block, q being the values of the choices."""
    for b in range(0, LANES, WIDTH):
        qx, qq = splat(ZERO), splat(ZERO)
        for g in range(len(weight) // (GROUP * LANES)):
            choice = load(choices, start + g * LANES + b)
            for k in range(GROUP):
                at = (GROUP * g + k) * LANES + b
                q = floats(((choice & I3) << I1) + I1)
                choice = choice >> I2
                qx = qx + load(product, at) * q
                qq = qq + load(weight, at) * q * q
        store(sum_qx, b, qx)
        store(sum_qq, b, qq)


@kernel
def load_blocks(x, importance, means, start, size, value, weight, mean):
    """Blocks from `start` on, of the flat x: weights, importances and mean square of the super-block, zeros behind the last."""
    value[:], weight[:], mean[:] = ZERO, ZERO, ZERO
    count = min(LANES, len(x) // size - start)
    for b in range(count):
        at = (start + b) * size
        mean[b] = means[at // 256]
        for i in range(size):
            value[i * LANES + b] = x[at + i]
        if len(importance):
            at %= len(importance)
            for i in range(size):
                weight[i * LANES + b] = importance[at + i]
    return count


@kernel
def weigh(value, mean, with_matrix, weight, root):
    """How much each weight's error counts, and the square root of that; in `weight` lie the importances."""
    for at in range(0, len(value), WIDTH):
        x, base = load(value, at), load(mean, at % LANES)
        counts = load(weight, at) * square_root(base + x * x) if with_matrix else QUARTER * base + x * x
        store(weight, at, counts)
        store(root, at, square_root(counts))


@kernel
def split_signs(value, weight, even, product, signs):
    """Make the values magnitudes, with their signs in a byte per group, and multiply them with their weights.

    With `even` the format holds 7 signs of each 8; an odd number of negative ones gives the value of least weighted square
    the wrong sign.
    """
    for b in range(0, LANES, WIDTH):
        for g in range(len(value) // (GROUP * LANES)):
            at = GROUP * g * LANES + b
            x = load(value, at)
            sign, odd, flipped, least = splat(I0), splat(I0), splat(I0), load(weight, at) * x * x
            for k in range(GROUP):
                x, w = load(value, at + k * LANES), load(weight, at + k * LANES)
                negative = where(x < ZERO, splat(I1), splat(I0))
                sign, odd = sign | (negative << np.int32(k)), odd ^ negative
                square = w * x * x
                less = square < least
                least, flipped = where(less, square, least), where(less, splat(np.int32(k)), flipped)
                store(value, at + k * LANES, where(x < ZERO, ZERO - x, x))
            if even:
                sign = (sign ^ (odd << flipped)) & np.int32(127)
            for k in range(GROUP):
                x = load(value, at + k * LANES)
                if even:
                    x = where((odd > I0) & (flipped == np.int32(k)), ZERO - x, x)
                    store(value, at + k * LANES, x)
                store(product, at + k * LANES, load(weight, at + k * LANES) * x)
            store(signs, g * LANES + b, sign)


@kernel
def find_largest(value, largest):
    """The largest value of each block."""
    for b in range(0, LANES, WIDTH):
        most = load(value, b)
        for at in range(b + LANES, len(value), LANES):
            x = load(value, at)
            most = where(most > x, most, x)
        store(largest, b, most)


@kernel
def keep_better(sum_qx, sum_qq, choices, start, best, scale, kept):
    """Take the scale of least squares and the choices of a trial where they leave less error than what is kept."""
    for b in range(0, LANES, WIDTH):
        qx, qq, before = load(sum_qx, b), load(sum_qq, b), load(best, b)
        better, fit = (qq > ZERO) & (qx * qx > before * qq), qx / qq
        store(best, b, where(better, fit * qx, before))
        store(scale, b, where(better, fit, load(scale, b)))
        for at in range(b, len(kept), LANES):
            store(kept, at, where(better, load(choices, start + at), load(kept, at)))


@kernel
def try_scales(book, value, weight, root, product, span, first, count, scale, kept):
    """Trials first to -first: the best scale of each block, from the one given on, and the choices that go with it."""
    groups, trials = len(value) // (GROUP * LANES), 1 - 2 * first
    inverse, scales, best = np.empty(LANES, np.float32), np.empty(trials * LANES, np.float32), np.zeros(LANES, np.float32)
    codes, choices = np.empty(trials * groups * LANES, np.int32), np.zeros(trials * groups * LANES, np.int32)
    sum_qx, sum_qq = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    kept[:] = I0
    for t in range(trials):
        for b in range(LANES):
            inverse[b] = (FIVE + np.float32(t + first) * STEP) / span[b]
            scales[t * LANES + b] = ONE / inverse[b]
        round_codes(value, inverse, codes, t * groups * LANES)
    choose(book, value, root, scales, codes, trials, count, choices)
    for t in range(trials):
        add_up(weight, product, choices, t * groups * LANES, sum_qx, sum_qq)
        keep_better(sum_qx, sum_qq, choices, t * groups * LANES, best, scale, kept)


@kernel
def try_again(book, value, weight, root, product, again, count, scale, kept):
    """With the scale found, choose anew for the groups off the grid (or all, if `again` is set), and fit once more."""
    inverse, sum_qx, sum_qq = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    codes, choices, redone = np.empty(len(kept), np.int32), np.zeros(len(kept), np.int32), np.zeros(LANES, np.int32)
    for b in range(LANES):
        inverse[b] = ONE / scale[b]
    round_codes(value, inverse, codes, 0)
    for at in range(0, len(kept), WIDTH):
        b = at % LANES
        redo = (load(scale, b) > ZERO) & (((load(kept, at) | again) & OFF_GRID) > I0)
        store(codes, at, where(redo, load(codes, at), splat(I0)))
        store(redone, b, where(redo, splat(I1), load(redone, b)))
    choose(book, value, root, scale, codes, 1, count, choices)
    for at in range(0, len(kept), WIDTH):
        redo = (load(scale, at % LANES) > ZERO) & (((load(kept, at) | again) & OFF_GRID) > I0)
        store(kept, at, where(redo, load(choices, at), load(kept, at)))
    add_up(weight, product, kept, 0, sum_qx, sum_qq)
    for b in range(0, LANES, WIDTH):
        qx, qq = load(sum_qx, b), load(sum_qq, b)
        store(scale, b, where((load(redone, b) > I0) & (qq > ZERO), qx / qq, load(scale, b)))


@kernel
def fit_scale(values, weights, scale):
    """The scale of least weighted squares for levels up to 4. values, weights: float32 [position, LANES]; scale: [LANES]."""
    search_positive(values, weights, np.int32(4), np.empty_like(values), scale)


class Form(NamedTuple):
    """What differs between the types."""

    size: int  # weights of a block
    first: int  # the first trial, in tenths of a step from the middle one
    even: bool  # whether a group has an even number of signs
    fitted: bool  # whether the span of a block is fitted to its weights, and all groups are chosen once more
    tiny: np.float32  # a block of no greater weight counts as zero


@kernel
def search(x, importance, means, book, form, found_scales, found_points):
    """Scale of every block; its points, each with the signs of the group above bit 16.

    x: float32 [weights]; importance: float32 [columns], or empty; means: float32 [weights / 256]; found_scales: float32
    [blocks]; found_points: int32 [blocks, groups].
    """
    size, groups = form.size, form.size // GROUP
    values, weights = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    value, weight = values.reshape(-1), weights.reshape(-1)
    root, product = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.float32)
    signs, kept = np.empty(groups * LANES, np.int32), np.empty(groups * LANES, np.int32)
    mean, span, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    largest = np.empty(LANES, np.float32)
    for start in range(0, len(found_scales), LANES):
        count = load_blocks(x, importance, means, start, size, value, weight, mean)
        weigh(value, mean, len(importance) > 0, weight, root)
        split_signs(value, weight, form.even, product, signs)
        find_largest(value, largest)
        if form.fitted:
            fit_scale(values, weights, scale)
            span[:] = scale * THREE
        else:
            span[:] = largest
            scale[:] = largest / FIVE
        try_scales(book, value, weight, root, product, span, form.first, count, scale, kept)
        try_again(book, value, weight, root, product, OFF_GRID if form.fitted else I0, count, scale, kept)
        for b in range(count):
            nothing = largest[b] < form.tiny or span[b] <= ZERO
            turn = np.int32((127 if form.even else 255) if scale[b] < ZERO else 0)
            found_scales[start + b] = ZERO if nothing else abs(scale[b])
            for g in range(groups):
                point = (kept[g * LANES + b] & np.int32(0x3FF0000)) >> np.int32(16)
                sign = signs[g * LANES + b] ^ turn
                found_points[start + b, g] = 0 if nothing else point | sign << 16
