"""The search behind IQ3_XXS and IQ3_S: scale and points of the code book for a block of 32 weights, 8 groups of 4.

For each block ggml tries 31 or 19 scales. At each it rounds the magnitudes to levels from 0 to 7, which stand for the values
1, 3, .. 15, replaces the levels of a group that no point of the code book has by those of the neighbour of least error, fits
the scale by weighted least squares, and keeps the best. Then it does the same once more at the scale it kept.

Here the trials of one block are taken side by side. As the scale falls from trial to trial the levels of a group rise one by
one, so that several trials in a row have the same code, that is, the same neighbours to choose from: these are compared
together. All numbers of a trial lie in one flat array, in rows of TRIALS: the compiler knows that parts of one array do not
overlap, where it would have to test two arrays before each short loop.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import MAGIC, ONE, ZERO, inlined, kernel
from hubq.formats.gguf.encode.grids import grid

BLOCK = 32
GROUPS = 8
TOGETHER = 8  # trials compared at a time
TRIALS = 40  # at most 32, and room for comparing TOGETHER from any on
TASKS = GROUPS * TRIALS
INVERSE, SCALE, SUM_QX, SUM_QQ, LANES, ROUNDED = (row * TRIALS for row in range(6))
CHOSEN = ROUNDED + GROUPS * TRIALS
ERROR, FOUND, LOCAL = LANES, LANES + TOGETHER, LANES + 2 * TOGETHER
SIZE = CHOSEN + GROUPS * TRIALS

HALF = np.float32(0.5)
TOP = np.float32(15)  # the value of the highest level
FLOAT_MAX = np.float32(np.finfo(np.float32).max)
_MANTISSA = np.int32(0x7FFFFF)
_ZERO_LEVEL = np.int32(0x400000)
_TOP_LEVEL = np.int32(0x400007)
_CODE = np.int32(0xFFF)


class Book(NamedTuple):
    """A code book as the search reads it. A code has 3 bits for each level of a group, the first lowest."""

    index: np.ndarray  # int32 [4096]: the point that has this code, or -1
    first: np.ndarray  # int32 [4097]: where the neighbours of a code begin
    codes: np.ndarray  # int32 [neighbours]: their codes; an even number for each code, the last twice if need be
    values: np.ndarray  # float32 [neighbours, 4]: their values
    steps: np.ndarray  # float32 [trials]: the value that the greatest magnitude gets in each trial


class Scratch(NamedTuple):
    """A block and what its search works on."""

    x: np.ndarray  # float32 [32]: magnitudes
    weight: np.ndarray  # float32 [32]
    root: np.ndarray  # float32 [32]: square roots of the weights
    work: np.ndarray  # float32 [SIZE]: INVERSE, SCALE, .., CHOSEN: numbers of each trial; codes are int32
    tasks: np.ndarray  # int32 [TASKS]
    codes: np.ndarray  # int32 [8]: codes of the points found


@cache
def book(type_name: str, around: int) -> Book:
    """The code book of IQ3_XXS or IQ3_S, with `around` trials on either side of a scale that gives the greatest level 7."""
    points = grid(type_name)
    counts = np.diff(points.first)
    even = counts + counts % 2
    first = np.concatenate([[0], np.cumsum(even)]).astype(np.int32)
    place = np.arange(first[-1]) - np.repeat(first[:-1], even)
    neighbours = points.neighbours[
        np.minimum(np.repeat(points.first[:-1], even) + place, np.repeat(points.first[1:], even) - 1)
    ]
    values = (2 * points.points[neighbours] + 1).astype(np.float32)
    steps = TOP + np.float32(0.2) * np.arange(-around, around + 1, dtype=np.float32)
    return Book(points.index, first, points.packed[neighbours], values, steps)


@inlined
def scratch():
    """Room for one block."""
    return Scratch(
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
        np.zeros(SIZE, np.float32),
        np.empty(TASKS, np.int32),
        np.empty(GROUPS, np.int32),
    )


@inlined
def level_of(x, inverse):
    """The level whose value is nearest to x * inverse, plus 0x400000: nearest(), with its last subtraction left out."""
    level = np.int32(np.float32(HALF * (inverse * x - ONE) + MAGIC).view(np.int32) & _MANTISSA)
    level = level if level > _ZERO_LEVEL else _ZERO_LEVEL
    return np.int32(level if level < _TOP_LEVEL else _TOP_LEVEL)


@inlined
def round_group(x, k, work, codes, size):
    """The code of group k in trials 0 to size."""
    x0, x1, x2, x3 = x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]
    for t in range(size):
        inverse = work[INVERSE + t]
        code = level_of(x0, inverse) | np.int32(level_of(x1, inverse) << np.int32(3))
        code |= np.int32(level_of(x2, inverse) << np.int32(6)) | np.int32(level_of(x3, inverse) << np.int32(9))
        codes[ROUNDED + TRIALS * k + t] = code & _CODE
        codes[CHOSEN + TRIALS * k + t] = code & _CODE


@inlined
def list_tasks(codes, trials, index, tasks):
    """Where in the rows of codes a comparison is due: at the first of trials with a code of no point, and each 8th on."""
    count = 0
    for k in range(GROUPS):
        before, run = np.int32(-1), np.int32(0)
        for t in range(trials):
            code = codes[ROUNDED + TRIALS * k + t]
            run = np.int32(0) if code != before else np.int32((run + 1) % TOGETHER)
            before = code
            tasks[count] = TRIALS * k + t
            count += (run == np.int32(0)) & (index[code] < 0)
    return count


@inlined
def choose(x, root, work, codes, task, book):
    """In the trials from a task on that share its code: the neighbour of least error, the first of equals."""
    k, t = divmod(task, TRIALS)
    x0, x1, x2, x3 = x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]
    w0, w1, w2, w3 = root[4 * k], root[4 * k + 1], root[4 * k + 2], root[4 * k + 3]
    shared = codes[ROUNDED + task]
    for r in range(TOGETHER):
        work[LOCAL + r] = work[SCALE + t + r]
        work[ERROR + r] = FLOAT_MAX
    for j in range(book.first[shared], book.first[shared + 1], 2):
        p0, p1, p2, p3, p = book.values[j, 0], book.values[j, 1], book.values[j, 2], book.values[j, 3], book.codes[j]
        j += 1
        q0, q1, q2, q3, q = book.values[j, 0], book.values[j, 1], book.values[j, 2], book.values[j, 3], book.codes[j]
        for r in range(TOGETHER):
            scale = work[LOCAL + r]
            e0, e1, e2, e3 = scale * p0 - x0, scale * p1 - x1, scale * p2 - x2, scale * p3 - x3
            error = w0 * e0 * e0 + w1 * e1 * e1 + w2 * e2 * e2 + w3 * e3 * e3
            code = p if error < work[ERROR + r] else codes[FOUND + r]
            least = error if error < work[ERROR + r] else work[ERROR + r]
            e0, e1, e2, e3 = scale * q0 - x0, scale * q1 - x1, scale * q2 - x2, scale * q3 - x3
            error = w0 * e0 * e0 + w1 * e1 * e1 + w2 * e2 * e2 + w3 * e3 * e3
            codes[FOUND + r] = q if error < least else code
            work[ERROR + r] = error if error < least else least
    for r in range(TOGETHER):
        same = codes[ROUNDED + task + r] == shared
        codes[CHOSEN + task + r] = codes[FOUND + r] if same else codes[CHOSEN + task + r]


@inlined
def value_of(code, shift):
    """The value of one level of a code."""
    return np.float32(np.int32((code >> np.int32(shift) & np.int32(7)) * np.int32(2) + np.int32(1)))


@inlined
def sum_group(x, weight, k, work, codes, size):
    """Add group k's sums of w * q * x and w * q**2 in trials 0 to size."""
    w0, w1, w2, w3 = weight[4 * k], weight[4 * k + 1], weight[4 * k + 2], weight[4 * k + 3]
    wx0, wx1, wx2, wx3 = w0 * x[4 * k], w1 * x[4 * k + 1], w2 * x[4 * k + 2], w3 * x[4 * k + 3]
    for t in range(size):
        code = codes[CHOSEN + TRIALS * k + t]
        q0, q1, q2, q3 = value_of(code, 0), value_of(code, 3), value_of(code, 6), value_of(code, 9)
        work[SUM_QX + t] = work[SUM_QX + t] + wx0 * q0 + wx1 * q1 + wx2 * q2 + wx3 * q3
        work[SUM_QQ + t] = work[SUM_QQ + t] + w0 * q0 * q0 + w1 * q1 * q1 + w2 * q2 * q2 + w3 * q3 * q3


@kernel
def try_scales(s, trials, kept, book):
    """Codes and sums of trials 0 to `trials`; in the groups that a bit of `kept` marks the codes are given."""
    work, codes = s.work, s.work.view(np.int32)
    size = -(-trials // TOGETHER) * TOGETHER
    for k in range(GROUPS):
        if not kept >> k & 1:
            round_group(s.x, k, work, codes, size)
    count = list_tasks(codes, trials, book.index, s.tasks)
    for i in range(count):
        choose(s.x, s.root, work, codes, s.tasks[i], book)
    work[SUM_QX : SUM_QX + size] = ZERO
    work[SUM_QQ : SUM_QQ + size] = ZERO
    for k in range(GROUPS):
        sum_group(s.x, s.weight, k, work, codes, size)


@inlined
def refine(s, scale, kept, book):
    """The scale that fits the points chosen once more, at `scale`; marked groups keep theirs."""
    codes = s.work.view(np.int32)
    for t in range(TOGETHER):
        s.work[INVERSE + t] = ONE / scale
        s.work[SCALE + t] = scale
        for k in range(GROUPS):
            if kept >> k & 1:
                codes[ROUNDED + TRIALS * k + t] = s.codes[k]
                codes[CHOSEN + TRIALS * k + t] = s.codes[k]
    try_scales(s, 1, kept, book)
    for k in range(GROUPS):
        s.codes[k] = codes[CHOSEN + TRIALS * k]
    return s.work[SUM_QX] / s.work[SUM_QQ] if s.work[SUM_QQ] > ZERO else scale


@kernel
def search(s, greatest, keep_points, book):
    """The scale of a block, below 0 if its signs are to be flipped; s.codes becomes the codes of its points.

    greatest: the greatest of s.x; keep_points: whether groups that rounded to a point stay there when the others choose again.
    """
    codes, trials = s.work.view(np.int32), len(book.steps)
    for t in range(trials):
        s.work[INVERSE + t] = book.steps[t] / greatest
        s.work[SCALE + t] = ONE / s.work[INVERSE + t]
    try_scales(s, trials, 0, book)
    scale, best, chosen = greatest / TOP, ZERO, -1
    for t in range(trials):
        qx, qq = s.work[SUM_QX + t], s.work[SUM_QQ + t]
        if qq > ZERO and qx * qx > best * qq:
            scale = qx / qq
            best = scale * qx
            chosen = t
    on_points = 255 if keep_points and chosen < 0 else 0
    for k in range(GROUPS):
        s.codes[k] = codes[CHOSEN + TRIALS * k + chosen] if chosen >= 0 else 0
        if chosen >= 0 and book.index[codes[ROUNDED + TRIALS * k + chosen]] >= 0:
            on_points |= 1 << k
    if on_points == 255 or not scale > ZERO:
        return scale
    return refine(s, scale, on_points if keep_points else 0, book)
