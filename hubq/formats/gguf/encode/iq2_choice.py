"""The choice of a point of the code book for each group of 8 weights, in IQ2_XXS, IQ2_XS and IQ2_S.

With a scale tried, the magnitudes are rounded to levels; a group whose levels are no point of the book takes the point of
least weighted error among the neighbours. A group rounds alike in several trials, one after the other: its neighbours are
looked up once for these, and their errors summed for 8 trials side by side, out of a table of the error of each level.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, MAGIC, ONE, inlined, kernel
from hubq.formats.gguf.encode.grids import grid
from hubq.formats.gguf.encode.vectors import WIDTH, bits, load, splat, store, where

GROUP = 8
OFF_GRID = np.int32(1 << 30)  # marks a choice for levels that are no point
COLUMNS = 32  # the trials, and what is read or written behind the last of them
JOINT = 9  # rows of the table of errors: first the joint errors of the first two weights, then three levels for each weight
HALF, THREE, FIVE = np.float32(0.5), np.float32(3), np.float32(5)
LARGEST = np.float32(np.finfo(np.float32).max)
I0, I2, I3, MANTISSA, MIDDLE = np.int32(0), np.int32(2), np.int32(3), np.int32(0x7FFFFF), np.int32(0x400000)


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


@inlined
def tabulate(scale, value, root, start, table):
    """Errors of the group at value[start:] in 8 trials: root * (scale * q - value)**2 for the q of each level."""
    ones, threes, fives = scale, scale * THREE, scale * FIVE
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
