"""The search behind IQ3_XXS and IQ3_S: scale and points of the code book for a block of 32 weights, 8 groups of 4.

For each block ggml tries 31 or 19 scales. At each it rounds the magnitudes to levels from 0 to 7, which stand for the values
1, 3, .. 15, replaces the levels of a group that no point of the code book has by those of the neighbour of least error, fits
the scale by weighted least squares, and keeps the best. Then it does the same once more at the scale it kept.

Here the trials of one block are taken side by side. As the scale falls from trial to trial the levels of a group rise one by
one, so that several trials in a row have the same code, that is, the same neighbours to choose from. These are compared
together, and the error of a level that many neighbours have in common is worked out once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import MAGIC, ONE, ZERO, inlined, kernel
from hubq.formats.gguf.encode.grids import grid, in_rounds
from hubq.formats.gguf.encode.vectors import WIDTH, bits, floats, load, lowest, mask, splat, store, trailing_zeros, where

BLOCK = 32
GROUPS = 8
TRIALS = 40  # at most 32, and room to take WIDTH from any of them on
HALF = np.float32(0.5)
TOP = np.float32(15)  # the value of the highest level
FLOAT_MAX = np.float32(np.finfo(np.float32).max)
EACH = np.arange(WIDTH, dtype=np.int32)
INT_MAX = np.int32(0x7FFFFFFF)
VALUES = np.tile(np.arange(1, 16, 2, dtype=np.float32), 4)  # of 8 * dimension + level
I1, I2, I3, I6, I7, I9 = (np.int32(i) for i in (1, 2, 3, 6, 7, 9))
_MANTISSA, _LEVEL_0, _LEVEL_7, _CODE = np.int32(0x7FFFFF), np.int32(0x400000), np.int32(0x400007), np.int32(0xFFF)


class Book(NamedTuple):
    """A code book as the search reads it. A code has 3 bits for each level of a group, the first lowest."""

    index: np.ndarray  # int32 [4096]: the point that has this code, or -1
    first: np.ndarray  # uint32 [4097]: where the neighbours of a code begin
    neighbours: np.ndarray  # uint16: points
    first_round: np.ndarray  # int32 [4097]: where they begin in rounds of WIDTH, the last one repeated
    rounds: np.ndarray  # int32: codes of the neighbours in rounds
    codes: np.ndarray  # int32 [points]
    rows: np.ndarray  # uint8 [4 * points]: where in the table of errors those of its levels begin
    first_level: np.ndarray  # uint32 [4097]: where the levels begin that the neighbours of a code have
    levels: np.ndarray  # uint8: 8 * dimension + level
    steps: np.ndarray  # float32 [trials]: the value that the greatest magnitude gets in each trial


class Scratch(NamedTuple):
    """A block and what its search works on."""

    x: np.ndarray  # float32 [32]: magnitudes
    weight: np.ndarray  # float32 [32]
    root: np.ndarray  # float32 [32]: square roots of the weights
    inverse: np.ndarray  # float32 [TRIALS]
    scale: np.ndarray  # float32 [TRIALS]
    sum_qx: np.ndarray  # float32 [TRIALS]
    sum_qq: np.ndarray  # float32 [TRIALS]
    rounded: np.ndarray  # int32 [8 * TRIALS]: codes of the groups' levels
    chosen: np.ndarray  # int32 [8 * TRIALS]: codes of the groups' points
    table: np.ndarray  # float32 [32 * WIDTH]: the error of each level in each dimension, in WIDTH trials
    levels: np.ndarray  # int32 [32]
    codes: np.ndarray  # int32 [8]: codes of the points found


@cache
def book(type_name: str, around: int) -> Book:
    """The code book of IQ3_XXS or IQ3_S, with `around` trials on either side of a scale that gives the greatest level 7."""
    source = grid(type_name)
    rows = 8 * np.arange(4) + source.points
    code = np.repeat(np.arange(4096), np.diff(source.first))
    levels = np.unique(32 * code[:, None] + rows[source.neighbours])
    first_round, rounds = in_rounds(source, WIDTH)
    return Book(
        source.index,
        source.first.astype(np.uint32),
        source.neighbours.astype(np.uint16),
        first_round.astype(np.uint32),
        source.packed[rounds],
        source.packed,
        (WIDTH * rows).astype(np.uint8).reshape(-1),
        np.searchsorted(levels, 32 * np.arange(4097)).astype(np.uint32),
        (levels % 32).astype(np.uint8),
        TOP + np.float32(0.2) * np.arange(-around, around + 1, dtype=np.float32),
    )


@inlined
def scratch():
    """Room for one block."""
    x, weight, root = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    inverse, scale = np.zeros(TRIALS, np.float32), np.zeros(TRIALS, np.float32)
    sum_qx, sum_qq = np.empty(TRIALS, np.float32), np.empty(TRIALS, np.float32)
    rounded, chosen = np.zeros(GROUPS * TRIALS, np.int32), np.zeros(GROUPS * TRIALS, np.int32)
    table, levels, codes = np.empty(32 * WIDTH, np.float32), np.empty(BLOCK, np.int32), np.empty(GROUPS, np.int32)
    return Scratch(x, weight, root, inverse, scale, sum_qx, sum_qq, rounded, chosen, table, levels, codes)


@inlined
def level_of(x, inverse):
    """The level whose value is nearest to x * inverse, plus 0x400000: nearest(), with its last subtraction left out."""
    level = bits(HALF * (inverse * x - ONE) + MAGIC) & _MANTISSA
    level = where(level > _LEVEL_0, level, splat(_LEVEL_0))
    return where(level < _LEVEL_7, level, splat(_LEVEL_7))


@inlined
def round_group(s, k, size):
    """The code of group k in trials 0 to size."""
    x0, x1, x2, x3 = s.x[4 * k], s.x[4 * k + 1], s.x[4 * k + 2], s.x[4 * k + 3]
    for t in range(0, size, WIDTH):
        inverse = load(s.inverse, t)
        code = level_of(x0, inverse) | level_of(x1, inverse) << I3 | level_of(x2, inverse) << I6 | level_of(x3, inverse) << I9
        store(s.rounded, TRIALS * k + t, code & _CODE)


@inlined
def find_ends(s, k, trials):
    """The last trial of each run of trials with one code in group k, as bits of an int64."""
    ends = 0
    for t in range(0, trials, WIDTH):
        ends |= mask(load(s.rounded, TRIALS * k + t) != load(s.rounded, TRIALS * k + t + 1)) << t
    last = 1 << (trials - 1)
    return ends & (last - 1) | last


@inlined
def value_of(code, shift):
    """The value of one level of a code."""
    return floats((code >> shift & I7) * I2 + I1)


@inlined
def choose(s, k, t, code, book):
    """In trial t and the WIDTH - 1 behind: the neighbour of `code` with the least error in group k, the first of equals."""
    scale = load(s.scale, t)
    for j in range(book.first_level[code], book.first_level[code + 1]):
        level = book.levels[j]
        i = 4 * k + (level >> 3)
        miss = scale * VALUES[level] - s.x[i]
        store(s.table, WIDTH * level, s.root[i] * miss * miss)
    least, chosen = splat(FLOAT_MAX), splat(code)
    for j in range(book.first[code], book.first[code + 1]):
        point = book.neighbours[j]
        row = 4 * np.int64(point)
        error = load(s.table, book.rows[row]) + load(s.table, book.rows[row + 1])
        error = error + load(s.table, book.rows[row + 2]) + load(s.table, book.rows[row + 3])
        better = error < least
        least = where(better, error, least)
        chosen = where(better, splat(book.codes[point]), chosen)
    store(s.chosen, TRIALS * k + t, chosen)


@inlined
def sum_group(s, k, size):
    """Add group k's sums of w * q * x and w * q**2 in trials 0 to size."""
    w0, w1, w2, w3 = s.weight[4 * k], s.weight[4 * k + 1], s.weight[4 * k + 2], s.weight[4 * k + 3]
    wx0, wx1, wx2, wx3 = w0 * s.x[4 * k], w1 * s.x[4 * k + 1], w2 * s.x[4 * k + 2], w3 * s.x[4 * k + 3]
    for t in range(0, size, WIDTH):
        code = load(s.chosen, TRIALS * k + t)
        q0, q1, q2, q3 = value_of(code, np.int32(0)), value_of(code, I3), value_of(code, I6), value_of(code, I9)
        store(s.sum_qx, t, load(s.sum_qx, t) + wx0 * q0 + wx1 * q1 + wx2 * q2 + wx3 * q3)
        store(s.sum_qq, t, load(s.sum_qq, t) + w0 * q0 * q0 + w1 * q1 * q1 + w2 * q2 * q2 + w3 * q3 * q3)


@kernel
def try_scales(s, trials, book):
    """Codes and sums of trials 0 to `trials`."""
    size = -(-trials // WIDTH) * WIDTH
    for t in range(0, size, WIDTH):
        store(s.sum_qx, t, splat(ZERO))
        store(s.sum_qq, t, splat(ZERO))
    for k in range(GROUPS):
        round_group(s, k, size)
        ends, begin = find_ends(s, k, trials), 0
        while ends:
            end, code = trailing_zeros(ends) + 1, s.rounded[TRIALS * k + begin]
            for t in range(begin, end, WIDTH):  # what lies behind the run the next one writes over
                if book.index[code] < 0:
                    choose(s, k, t, code, book)
                else:
                    store(s.chosen, TRIALS * k + t, splat(code))
            ends, begin = ends & (ends - 1), end
    for k in range(GROUPS):
        sum_group(s, k, size)


@inlined
def error_of(s, i, scale, codes, shift):
    """The weighted square error of weight i with a level of each of WIDTH codes."""
    miss = value_of(codes, shift) * scale - s.x[i]
    return s.root[i] * miss * miss


@inlined
def choose_once(s, k, code, scale, book):
    """The code of the neighbour of `code` with the least error in group k, the first of equals; looks at WIDTH at a time."""
    first = book.first_round[code]
    least, at = splat(FLOAT_MAX), splat(np.int32(first))
    for j in range(first, book.first_round[code + 1], np.uint32(WIDTH)):
        near = load(book.rounds, j)
        error = error_of(s, 4 * k, scale, near, np.int32(0)) + error_of(s, 4 * k + 1, scale, near, I3)
        error = error + error_of(s, 4 * k + 2, scale, near, I6) + error_of(s, 4 * k + 3, scale, near, I9)
        better = error < least
        least = where(better, error, least)
        at = where(better, splat(np.int32(j)), at)
    size = bits(least)  # numbers that are not below 0 are in the order of their bits
    place = lowest(where(size == lowest(size), at + load(EACH, 0), splat(INT_MAX)))
    return book.rounds[np.uint32(place)]


@inlined
def refine(s, scale, kept, book):
    """The scale that fits the points chosen once more, at `scale`; in the groups that a bit of `kept` marks they stay."""
    for i in range(0, BLOCK, WIDTH):
        store(s.levels, i, level_of(load(s.x, i), ONE / scale) & I7)
    for k in range(GROUPS):
        if not kept >> k & 1:
            level = s.levels[4 * k : 4 * k + 4]
            code = np.uint32(level[0] | level[1] << I3 | level[2] << I6 | level[3] << I9)
            s.codes[k] = code if book.index[code] >= 0 else choose_once(s, k, code, scale, book)
    qx, qq = ZERO, ZERO
    for i in range(BLOCK):
        q = VALUES[np.uint32(s.codes[i // 4] >> np.int32(3 * (i % 4)) & I7)]
        qx += s.weight[i] * s.x[i] * q
        qq += s.weight[i] * q * q
    return qx / qq if qq > ZERO else scale


@kernel
def search(s, greatest, keep_points, book):
    """The scale of a block, below 0 if its signs are to be flipped; s.codes becomes the codes of its points.

    greatest: the greatest of s.x; keep_points: whether groups that rounded to a point stay there when the others choose again.
    """
    trials = len(book.steps)
    for t in range(trials):
        s.inverse[t] = book.steps[t] / greatest
        s.scale[t] = ONE / s.inverse[t]
    try_scales(s, trials, book)
    scale, best, chosen = greatest / TOP, ZERO, -1
    for t in range(trials):
        qx, qq = s.sum_qx[t], s.sum_qq[t]
        if qq > ZERO and qx * qx > best * qq:
            scale = qx / qq
            best = scale * qx
            chosen = t
    on_points = 255 if keep_points and chosen < 0 else 0
    for k in range(GROUPS):
        s.codes[k] = s.chosen[TRIALS * k + chosen] if chosen >= 0 else 0
        if chosen >= 0 and book.index[s.rounded[TRIALS * k + chosen]] >= 0:
            on_points |= 1 << k
    if on_points == 255 or not scale > ZERO:
        return scale
    return refine(s, scale, on_points if keep_points else 0, book)
