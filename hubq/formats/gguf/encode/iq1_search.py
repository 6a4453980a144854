"""The search of IQ1_S and IQ1_M from weights to a scale, a shift and points of the code book for every block."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import LANES, ZERO, by_lanes, inlined, kernel, lanes, load_lanes
from hubq.formats.gguf.encode.iq1_points import choose_points, encode_levels, fit_points, tabulate_misses
from hubq.formats.gguf.encode.iq1_splits import (
    DELTA,
    LOWEST,
    NOTHING,
    rank,
    running_sums,
    tabulate_m,
    tabulate_s,
    try_splits_m,
    try_splits_s,
)


@inlined
def int_lanes():
    """One int32 for each lane."""
    return np.empty(LANES, np.int32)


@inlined
def take_apart(choices, bits, scale, first, second, shifts):
    """The splits of a choice and its shift, of so many bits; a scale below 0 turns the shifts round."""
    top = np.int32(2**bits - 1)
    for b in range(LANES):
        first[b] = choices[b] >> np.int32(7)
        second[b] = (choices[b] & np.int32(127)) >> np.int32(bits)
        shift = choices[b] & top
        shifts[b] = top - shift if scale[b] < ZERO else shift


@inlined
def spread_shifts(shifts, bits, shift):
    """The shift of every group, float32 [group, lane]: down where its bit is set, of several the first group's highest."""
    for g in range(len(shift)):
        bit = np.int32(1 << (bits - 1 - g) if bits > 1 else 1)
        for b in range(LANES):
            shift[g, b] = -DELTA if shifts[b] & bit else DELTA


@inlined
def is_zero(value, least, zero):
    """The lanes whose weights are all of a magnitude below `least`."""
    zero[:] = True
    for i in range(len(value)):
        for b in range(LANES):
            zero[b] &= abs(value[i, b]) < least


def make_search(size: int, bits: int, least: float):
    """The search for blocks of `size` weights and shifts of `bits` bits; below the magnitude `least` a block is zero."""
    groups, tiny = size // 8, np.float32(least)

    @kernel
    def search(x, weights, book, found_scale, found_shift, found_points):
        """Scale, shift and points of every block; where nothing fits, or all is zero, scale 0 and the first point.

        x, weights: float32 [blocks, size]; the rest: float32 [blocks], uint8 [blocks], int32 [blocks, size / 8].
        """
        value, weight, place = by_lanes(size), by_lanes(size), np.empty((size, LANES), np.int32)
        table, totals = np.empty((12, size + 1, LANES), np.float32), np.empty((4, LANES), np.float32)
        fits, choices = np.empty((2, LANES), np.float32), int_lanes()
        first, second, shifts, shift = int_lanes(), int_lanes(), int_lanes(), by_lanes(groups)
        codes, points = np.empty((groups, LANES), np.int32), np.zeros((groups, LANES), np.int32)
        miss, moved, zero = np.empty((size, 3, LANES), np.float32), np.empty(LANES, np.bool_), np.empty(LANES, np.bool_)
        scale = lanes()
        for start in range(0, len(x), LANES):
            count = load_lanes(x, start, value)
            load_lanes(weights, start, weight)
            rank(value, place)
            fits[0], fits[1], choices[:] = ZERO, LOWEST, NOTHING
            if bits == 1:
                running_sums(value, weight, place, 0, size, table[0], table[1])
                tabulate_s(table)
                try_splits_s(table, fits, choices)
            else:
                running_sums(value, weight, place, 0, size // 2, table[0], table[1])
                running_sums(value, weight, place, size // 2, size, table[2], table[3])
                tabulate_m(table, totals)
                try_splits_m(table, totals, fits, choices)
            take_apart(choices, bits, fits[0], first, second, shifts)
            encode_levels(place, first, second, fits[0], codes)
            spread_shifts(shifts, bits, shift)
            scale[:] = np.abs(fits[0])
            tabulate_misses(value, weight, scale, shift, miss)
            choose_points(codes, miss, count, book, points, moved)
            fit_points(value, weight, points, shift, moved, scale)
            is_zero(value, tiny, zero)
            for b in range(count):
                nothing = zero[b] | (choices[b] == NOTHING)
                found_scale[start + b] = ZERO if nothing else scale[b]
                found_shift[start + b] = 0 if nothing else shifts[b]
                for g in range(groups):
                    found_points[start + b, g] = 0 if nothing else points[g, b]

    return search


search_s = make_search(32, 1, 1e-12)
search_m = make_search(16, 2, 1e-7)
