"""The search behind IQ2_XXS, IQ2_XS and IQ2_S: the scale of each block and a point of the code book for each 8 weights.

ggml tries 13 or 19 scales for a block. Each rounds the magnitudes to levels; a group whose levels are no point of the book
takes the point of least weighted error among the neighbours, and the best of all trials is kept. Two things make it quick
here. What all groups do alike is done for LANES blocks side by side, arrays being [position, lane] and flat. And a group
rounds alike in several consecutive trials, so that its neighbours are looked up once for these and their errors summed for
all trials side by side, out of a table of the error of each level in each trial.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, MAGIC, ONE, ZERO, inlined, kernel
from hubq.formats.gguf.encode.grids import grid
from hubq.formats.gguf.encode.positive import search_positive
from hubq.formats.gguf.encode.vectors import WIDTH, bits, floats, load, splat, square_root, store, where

GROUP = 8
OFF_GRID = np.int32(1 << 30)
COLUMNS = 32  # the trials, and what is read or written behind the last of them
JOINT = 9  # rows of the table of errors: first the joint errors of the first two weights, then three levels for each weight
STEP = np.float32(0.1)
HALF, QUARTER, FIVE = np.float32(0.5), np.float32(0.25), np.float32(5)
LARGEST = np.float32(np.finfo(np.float32).max)
I0, I1, I2, I3, MANTISSA, MIDDLE = np.int32(0), np.int32(1), np.int32(2), np.int32(3), np.int32(0x7FFFFF), np.int32(0x400000)


class Book(NamedTuple):
    """A code book (see grids.py) as the search reads it. A choice is a point: its levels in 16 bits, its index above these.

    Each point has two choices, the second, `points` behind the first, for groups whose own levels are no point.
    """

    choice: np.ndarray  # int32 [2 * points]
    only: np.ndarray  # int32 [codes]: which choice a code has, if only one, else -1
    first: np.ndarray  # uint32 [codes + 1]: where the neighbours of a code begin
    neighbours: np.ndarray  # uint16: indices of points
    rows: np.ndarray  # uint16 [points, 7]: where in the table of errors the parts of a point's error begin


@cache
def book(type_name: str) -> Book:
    """The book of IQ2_XXS, IQ2_XS or IQ2_S."""
    source = grid(type_name)
    count, first = len(source.points), source.first
    choice = source.packed | np.arange(count, dtype=np.int32) << 16
    alone = np.diff(first) == 1
    only = source.index.copy()
    only[alone] = source.neighbours[first[:-1][alone]] + count
    rows = source.points + (JOINT + 3 * np.arange(8))
    rows = np.column_stack([source.points[:, :2] @ np.array([1, 3]), rows[:, 2:]]) * WIDTH
    return Book(
        np.append(choice, choice | OFF_GRID),
        only,
        first.astype(np.uint32),
        source.neighbours.astype(np.uint16),
        rows.astype(np.uint16),
    )


@kernel
def round_codes(value, inverse, codes, start):
    """Code of each group's levels, nearest to (value * inverse - 1) / 2, in codes[start:]: [group, lane]."""
    for g in range(len(value) // (GROUP * LANES)):
        for b in range(0, LANES, WIDTH):
            scale, code = load(inverse, b), splat(I0)
            for k in range(GROUP):
                x = load(value, (GROUP * g + GROUP - 1 - k) * LANES + b)
                level = (bits(HALF * (scale * x - ONE) + MAGIC) & MANTISSA) - MIDDLE
                level = where(level < I0, splat(I0), level)
                level = where(level > I2, splat(I2), level)
                code = code * I3 + level
            store(codes, start + g * LANES + b, code)


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


@inlined
def tabulate(scale, value, root, start, table):
    """Errors of the group at value[start:] in 8 trials: root * (scale * q - value)**2 for the q of each level."""
    ones, threes, fives = scale, scale * np.float32(3), scale * FIVE
    for k in range(GROUP):
        x, w, row = splat(value[start + k * LANES]), splat(root[start + k * LANES]), (JOINT + 3 * k) * WIDTH
        store(table, row, w * (ones - x) * (ones - x))
        store(table, row + WIDTH, w * (threes - x) * (threes - x))
        store(table, row + 2 * WIDTH, w * (fives - x) * (fives - x))
    for i in range(3):
        error = load(table, (JOINT + 3 + i) * WIDTH)
        for j in range(3):
            store(table, (3 * i + j) * WIDTH, load(table, (JOINT + j) * WIDTH) + error)


@inlined
def closest(book, code, table):
    """The neighbour of least error, the first of equals, in each of 8 trials: its index."""
    best, which = splat(LARGEST), splat(np.int32(book.neighbours[book.first[code]]))
    for j in range(book.first[code], book.first[code + np.uint32(1)]):
        point = book.neighbours[j]
        error = load(table, book.rows[point, 0])
        for part in range(1, 7):
            error = error + load(table, book.rows[point, part])
        less = error < best
        best, which = where(less, error, best), where(less, splat(np.int32(point)), which)
    return which


@kernel
def choose(book, value, root, scales, codes, trials, count, choices):
    """The choice of each group in each trial. scales: [trial, lane]; codes, choices: [trial, group, lane]."""
    groups = len(value) // (GROUP * LANES)
    scale, line, found = np.zeros(COLUMNS, np.float32), np.zeros(COLUMNS, np.uint32), np.zeros(COLUMNS, np.int32)
    table = np.zeros((JOINT + 3 * GROUP) * WIDTH, np.float32)
    for b in range(count):
        for t in range(trials):
            scale[t] = scales[t * LANES + b]
        for g in range(groups):
            for t in range(trials):
                line[t] = codes[(t * groups + g) * LANES + b]
            end = 0
            while end < trials:
                begin, code = end, line[end]
                while end < trials and line[end] == code:
                    end += 1
                only = book.only[code]
                for t in range(begin, end, WIDTH):
                    if only >= 0:
                        store(found, t, splat(only))
                    else:
                        tabulate(load(scale, t), value, root, GROUP * g * LANES + b, table)
                        store(found, t, closest(book, code, table) + np.int32(len(book.rows)))
            for t in range(trials):
                choices[(t * groups + g) * LANES + b] = book.choice[np.uint32(found[t])]


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
            span[:] = scale * np.float32(3)
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
