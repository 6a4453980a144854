"""The last step of a search for IQ1_S and IQ1_M: from levels of each weight to points of the code book."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ZERO, inlined, kernel
from hubq.formats.gguf.encode.grids import grid, in_rounds

GROUP = 8  # weights that share a point
ROUND = 8  # neighbours come in so many, so that vectors are full
MOST = 256  # neighbours, at least as many as any code has
_LARGEST = np.uint32(0x7F7FFFFF)  # the bits of the largest finite float32


class Book(NamedTuple):
    """The code book as the search reads it. A point is index << 16 | its levels, 2 bits each, the first one lowest."""

    point: np.ndarray  # int32 [codes]: the point that has this code, or -1
    first: np.ndarray  # int32 [codes + 1]: where the neighbours of a code begin
    near: np.ndarray  # int32: neighbours, nearest first; the last one is repeated to the end of a round


@cache
def book() -> Book:
    """The code book of IQ1_S and IQ1_M; shared: do not write to it."""
    points = grid("IQ1_S")
    named = (np.arange(len(points.packed)) << 16 | points.packed).astype(np.int32)
    first, near = in_rounds(points, ROUND)
    return Book(np.where(points.index < 0, np.int32(-1), named[points.index]), first, named[near])


@inlined
def encode_levels(place, first, second, scale, codes):
    """The code of each group, int32 [group, lane], from the splits; levels are turned round where the scale is below 0."""
    for g in range(len(codes)):
        codes[g] = 0
        for i in range(GROUP - 1, -1, -1):
            for b in range(LANES):
                at = place[GROUP * g + i, b]
                level = np.int32(at >= first[b]) + np.int32(at >= second[b])
                level = np.int32(2) - level if scale[b] < ZERO else level
                codes[g, b] = codes[g, b] * np.int32(3) + level


@inlined
def tabulate_misses(value, weight, scale, shift, miss):
    """The weighted square error of every weight at each of the 3 levels: float32 [position, level, lane].

    shift: float32 [group, lane], by how much the levels -1, 0 and 1 are shifted.
    """
    for i in range(len(value)):
        for level in range(3):
            for b in range(LANES):
                error = scale[b] * (np.float32(level - 1) + shift[i // GROUP, b]) - value[i, b]
                miss[i, level, b] = weight[i, b] * error * error


@kernel
def nearest_point(miss, lane, near, far):
    """The first of the points of least error. miss: float32 [GROUP, level, lane]; far: scratch, float32 [MOST]."""
    for i in range(GROUP):
        low, middle, high = miss[i, 0, lane], miss[i, 1, lane], miss[i, 2, lane]
        is_middle, is_high = np.int32(1 << 2 * i), np.int32(2 << 2 * i)
        for n in range(len(near)):
            part = middle if near[n] & is_middle else low
            part = high if near[n] & is_high else part
            far[n] = part if i == 0 else far[n] + part
    bits, least = far.view(np.uint32), _LARGEST  # no error is below 0: as integers they are in the same order
    for n in range(len(near)):
        least = min(least, bits[n])
    at = np.int32(MOST)
    for n in range(len(near)):
        at = min(at, np.int32(n) if bits[n] == least else np.int32(MOST))
    return near[at if at < len(near) else 0]


@inlined
def choose_points(codes, miss, count, book, points, moved):
    """The point of every group, int32 [group, lane], and the lanes in which one of them does not have the group's code."""
    far = np.empty(MOST, np.float32)
    moved[:] = False
    for g in range(len(codes)):
        for b in range(count):
            code = codes[g, b]
            points[g, b] = book.point[code]
            if points[g, b] < np.int32(0):
                near = book.near[book.first[code] : book.first[code + 1]]
                points[g, b] = nearest_point(miss[GROUP * g : GROUP * (g + 1)], b, near, far)
                moved[b] = True


@inlined
def level_of(point, i):
    """The level -1, 0 or 1 that a point gives its weight i."""
    return np.float32((point >> np.int32(2 * i) & np.int32(3)) - np.int32(1))


@inlined
def fit_points(value, weight, points, shift, moved, scale):
    """Fit the scale of the lanes in `moved` to their points."""
    sum_x, sum_w = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for i in range(len(value)):
        for b in range(LANES):
            level = level_of(points[i // GROUP, b], i % GROUP) + shift[i // GROUP, b]
            sum_x[b] += weight[i, b] * level * value[i, b]
            sum_w[b] += weight[i, b] * level * level
    for b in range(LANES):
        fit = sum_x[b] / sum_w[b]
        scale[b] = fit if moved[b] & (sum_x[b] > ZERO) & (sum_w[b] > ZERO) else scale[b]
