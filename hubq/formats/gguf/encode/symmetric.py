"""Q3_K and Q6_K: weight = scale * (level - half), with the scale of each block of 16 weights quantized in turn.

Q6_K searches as symmetric_search.py does. Q3_K rounds once and then goes up to five times over the levels, changing one where
that fits a block better; five of six blocks keep their first levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hubq.formats.gguf.encode.bits import (
    LANES,
    ONE,
    ZERO,
    clamp,
    from_half,
    inlined,
    kernel,
    load_lanes,
    nearest,
    pack_nibbles,
    pack_pairs,
    pack_plane,
    put_half,
    select,
    to_half,
)
from hubq.formats.gguf.encode.symmetric_search import (
    INVERSE,
    SCALE,
    TINY,
    furthest_values,
    levels_of_search,
    make_search,
    round_level,
)

BLOCK = 16
ROUNDS = 5

search_q6_k = make_search(BLOCK, 32)


@kernel
def furthest(scales):
    """The scale furthest from zero, the first of equals; 0 if there is none."""
    furthest = ZERO
    for j in range(16):
        furthest = scales[j] if abs(scales[j]) > abs(furthest) else furthest
    return furthest


@inlined
def round_row(row, scales, half, levels):
    """Levels, from 0 to 2 * half - 1, of a super-block for the quantized scale of each weight."""
    for i in range(256):
        levels[i] = clamp(nearest(row[i] / scales[i]), -half, half - np.int32(1)) + half


@kernel
def pack_q6_k(x, found, out):
    """x: float32 [n, 256]; found: float32 [3, 16 * n]; out: uint8 [n, 210]."""
    levels, row_scales = np.empty(256, np.uint8), np.empty(256, np.float32)
    for n in range(len(x)):
        scales, inverses = found[SCALE, 16 * n : 16 * n + 16], found[INVERSE, 16 * n : 16 * n + 16]
        largest = furthest(scales)
        if abs(largest) < TINY:
            out[n] = 0
            continue
        inverse = np.float32(-128) / largest
        scale_half = to_half(ONE / inverse)
        for j in range(16):
            code = np.int8(min(127, nearest(inverse * scales[j])))
            out[n, 192 + j] = np.uint8(code)
            row_scales[16 * j : 16 * j + 16] = from_half(scale_half) * np.float32(code)
        round_row(x[n], row_scales, np.int32(32), levels)
        for j in range(16):
            if row_scales[16 * j] == ZERO:
                levels_of_search(x[n, 16 * j : 16 * j + 16], inverses[j], np.int32(32), levels[16 * j : 16 * j + 16])
        for k in range(2):
            pack_nibbles(levels[128 * k : 128 * k + 128], 64, out[n, 64 * k : 64 * k + 64])
        pack_pairs(levels, 4, out[n, 128:192])
        put_half(out[n], 208, scale_half)


def encode_q6_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q6_K, uint8 [n, 210]: 16 blocks of 16 weights, 8-bit scales, 6-bit levels."""
    found = np.empty((3, x.size // BLOCK), np.float32)
    search_q6_k(x.reshape(-1, BLOCK), None, None, found)
    pack_q6_k(x, found, out)


class Lanes(NamedTuple):
    """Arrays [position, lane]: values, their squares and cubes, levels."""

    value: np.ndarray
    square: np.ndarray
    cube: np.ndarray
    level: np.ndarray


class Sums(NamedTuple):
    """The value furthest from zero, the sums of cube * level and of square * level**2, and whether a level moved, 0 or 1. [lane]."""

    largest: np.ndarray
    lx: np.ndarray
    ll: np.ndarray
    moved: np.ndarray


@inlined
def scratch_q3_k():
    """Cut from one piece, so that the compiler sees them apart."""
    work = np.empty((4 * BLOCK + 4, LANES), np.float32)
    lanes = Lanes(work[:BLOCK], work[BLOCK : 2 * BLOCK], work[2 * BLOCK : 3 * BLOCK], work[3 * BLOCK : 4 * BLOCK])
    rest = work[4 * BLOCK :]
    return lanes, Sums(rest[0], rest[1], rest[2], rest[3])


@inlined
def first_levels(lanes, sums):
    """The first rounding, from -4 to 3, and its sums."""
    furthest_values(lanes.value, sums.largest)
    sums.lx[:] = ZERO
    sums.ll[:] = ZERO
    for i in range(BLOCK):
        for b in range(LANES):
            x = lanes.value[i, b]
            square, cube = x * x, x * x * x
            level = round_level(x * (np.float32(-4) / sums.largest[b]), np.float32(4), True)
            lanes.square[i, b], lanes.cube[i, b], lanes.level[i, b] = square, cube, level
            sums.lx[b] += cube * level
            sums.ll[b] += square * level * level


@inlined
def improve_levels(lanes, sums):
    """Once over the positions: where another level fits a block better, given all its others, take it and correct the sums."""
    sums.moved[:] = ZERO
    for i in range(BLOCK):
        for b in range(LANES):
            square, cube, old = lanes.square[i, b], lanes.cube[i, b], lanes.level[i, b]
            lx, ll, moved = sums.lx[b], sums.ll[b], sums.moved[b]
            rest_lx = lx - cube * old
            rest_ll = ll - square * old * old
            new = np.float32(clamp(nearest(lanes.value[i, b] * rest_ll / rest_lx), np.int32(-4), np.int32(3)))
            new_lx = rest_lx + cube * new
            new_ll = rest_ll + square * new * new
            better = (rest_lx > ZERO) & (new != old) & (new_ll > ZERO) & (new_lx * new_lx * ll > lx * lx * new_ll)
            lanes.level[i, b] = select(better, new, old)
            sums.lx[b] = select(better, new_lx, lx)
            sums.ll[b] = select(better, new_ll, ll)
            sums.moved[b] = select(better, ONE, moved)


@inlined
def search_lanes(lanes, sums, rounds):
    """Levels and sums of all lanes. A lane in which nothing moved would not move in a further round either."""
    first_levels(lanes, sums)
    for _ in range(rounds):
        improve_levels(lanes, sums)
        if not sums.moved.any():
            break


@kernel
def search_q3_k(x, chosen, rounds, scales, levels, moving):
    """Scale and levels (0 to 7) of the chosen blocks; returns how many were moving in the last round and puts them in `moving`.

    x: float32 [blocks, 16]; chosen: int64 [n], indices of blocks; scales: float32 [blocks]; levels: uint8 [blocks, 16];
    moving: int64 [n].
    """
    lanes, sums = scratch_q3_k()
    still = 0
    for start in range(0, len(chosen), LANES):
        count = min(LANES, len(chosen) - start)
        for b in range(LANES):
            block = chosen[min(start + b, len(chosen) - 1)]
            for i in range(BLOCK):
                lanes.value[i, b] = x[block, i]
        search_lanes(lanes, sums, rounds)
        for b in range(count):
            block = chosen[start + b]
            nothing = abs(sums.largest[b]) < TINY
            scales[block] = ZERO if nothing or not sums.ll[b] > ZERO else sums.lx[b] / sums.ll[b]
            for i in range(BLOCK):
                levels[block, i] = 0 if nothing else np.int32(lanes.level[i, b]) + 4
            moving[still] = block
            still += np.int64(sums.moved[b])
    return still


@kernel
def quantize_scales_q3_k(scales, codes, halves):
    """Each scale as a count of steps, from 0 to 63 for -32 to 31; the steps as bits of a half.

    scales: float32 [16 * n]; codes: uint8 [n, 16]; halves: int32 [n].
    """
    for n in range(len(codes)):
        largest = furthest(scales[16 * n : 16 * n + 16])
        inverse = np.float32(-32) / largest
        for j in range(16):
            code = clamp(np.int8(nearest(inverse * scales[16 * n + j])), np.int32(-32), np.int32(31)) + 32
            codes[n, j] = code if largest != ZERO else 0
        halves[n] = to_half(ONE / inverse) if largest != ZERO else 0


@kernel
def pack_codes(codes, out):
    """Sixteen 6-bit codes in 12 bytes: 0 to 7 the low nibbles of codes 0 to 7 and, above them, 8 to 15; 8 to 11 the high bits."""
    for j in range(8):
        out[j] = codes[j] & 15 | (codes[j + 8] & 15) << 4
    for j in range(4):
        out[8 + j] = codes[j] >> 4 | codes[j + 4] >> 4 << 2 | codes[j + 8] >> 4 << 4 | codes[j + 12] >> 4 << 6


@kernel
def pack_q3_k(x, codes, halves, searched, out):
    """Round once more, for the quantized scales; where one came to 0, take the levels of the search.

    x: float32 [n, 256]; codes: uint8 [n, 16]; halves: int32 [n]; searched: uint8 [16 * n, 16]; out: uint8 [n, 110].
    """
    levels, row_scales = np.empty(256, np.uint8), np.empty(256, np.float32)
    for n in range(len(x)):
        for j in range(16):
            row_scales[16 * j : 16 * j + 16] = from_half(halves[n]) * np.float32(np.int32(codes[n, j]) - 32)
        round_row(x[n], row_scales, np.int32(4), levels)
        for j in range(16):
            if row_scales[16 * j] == ZERO:
                levels[16 * j : 16 * j + 16] = searched[16 * n + j]
        pack_plane(levels, 2, out[n, :32])
        pack_pairs(levels, 0, out[n, 32:96])
        pack_codes(codes[n], out[n, 96:108])
        put_half(out[n], 108, halves[n])


def encode_q3_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q3_K, uint8 [n, 110]: 16 blocks of 16 weights, 6-bit scales, 3-bit levels."""
    blocks = x.reshape(-1, BLOCK)
    scales, levels = np.empty(len(blocks), np.float32), np.empty((len(blocks), BLOCK), np.uint8)
    moving = np.empty(len(blocks), np.int64)
    still = search_q3_k(blocks, np.arange(len(blocks)), 1, scales, levels, moving)
    search_q3_k(blocks, moving[:still].copy(), ROUNDS, scales, levels, moving)
    codes, halves = np.empty((len(x), 16), np.uint8), np.empty(len(x), np.int32)
    quantize_scales_q3_k(scales, codes, halves)
    pack_q3_k(x, codes, halves, levels, out)
