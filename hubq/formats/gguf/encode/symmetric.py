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
    nearest,
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
    transpose,
)

BLOCK = 16
ROUNDS = 5
WORK = 4 * BLOCK + 5
CHUNK = 256  # super-blocks searched and packed before the next ones, so that what is found stays in the cache

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
        step = from_half(scale_half)
        for j in range(16):
            code = np.int8(min(127, nearest(inverse * scales[j])))
            out[n, 192 + j] = np.uint8(code)
            row_scales[16 * j : 16 * j + 16] = step * np.float32(code)
        round_row(x[n], row_scales, np.int32(32), levels)
        for j in range(16):
            if row_scales[16 * j] == ZERO:
                levels_of_search(x[n, 16 * j : 16 * j + 16], inverses[j], np.int32(32), levels[16 * j : 16 * j + 16])
        for k in range(2):
            for i in range(64):
                low, high = levels[128 * k + i], levels[128 * k + 64 + i]
                out[n, 64 * k + i] = low & np.uint8(15) | high << np.uint8(4)
        pack_pairs(levels, 4, out[n, 128:192])
        put_half(out[n], 208, scale_half)


@kernel
def encode_q6_k(x, out):
    """float32 [n, 256] to Q6_K, uint8 [n, 210]: 16 blocks of 16 weights, 8-bit scales, 6-bit levels."""
    found = np.empty((3, 16 * CHUNK), np.float32)
    for start in range(0, len(x), CHUNK):
        chunk = x[start : start + CHUNK]
        search_q6_k(chunk.reshape(-1, BLOCK), None, None, found)
        pack_q6_k(chunk, found, out[start : start + CHUNK])


class Lanes(NamedTuple):
    """Arrays [position, lane]: values, their squares and cubes, levels."""

    value: np.ndarray
    square: np.ndarray
    cube: np.ndarray
    level: np.ndarray


class Sums(NamedTuple):
    """Sums of cube * level and square * level**2; 1 if a level moved, else 0; the value furthest from zero. Arrays [lane]."""

    lx: np.ndarray
    ll: np.ndarray
    moved: np.ndarray
    largest: np.ndarray


@inlined
def cut(work):
    """Lanes, Sums and one more array [lane], in one piece of work [WORK, lane]: so the compiler sees them apart."""
    lanes = Lanes(work[:16], work[16:32], work[32:48], work[48:64])
    return lanes, Sums(work[64], work[65], work[66], work[67]), work[68]


@inlined
def first_levels(lanes, sums, inverse):
    """The first rounding, from -4 to 3, and its sums."""
    furthest_values(lanes.value, sums.largest)
    for b in range(LANES):
        inverse[b] = np.float32(-4) / sums.largest[b]
    sums.lx[:] = ZERO
    sums.ll[:] = ZERO
    for i in range(BLOCK):
        for b in range(LANES):
            x = lanes.value[i, b]
            square, cube = x * x, x * x * x
            level = round_level(x * inverse[b], np.float32(4), True)
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


@kernel
def search_lanes(x, chosen, rounds, work):
    """Levels and sums of LANES chosen blocks. A lane in which no level moved would not move in a further round either."""
    lanes, sums, inverse = cut(work)
    transpose(x, chosen, lanes.value)
    first_levels(lanes, sums, inverse)
    for _ in range(rounds):
        improve_levels(lanes, sums)
        if not sums.moved.any():
            break


@kernel
def search_q3_k(x, chosen, rounds, scales, moving):
    """Scales of the chosen blocks; returns how many were moving in the last round, and their indices in `moving`.

    x: float32 [blocks, 16]; chosen, moving: int64 [n], indices of blocks; scales: float32 [blocks].
    """
    work, still = np.empty((WORK, LANES), np.float32), 0
    _, sums, _ = cut(work)
    for start in range(0, len(chosen), LANES):
        group = chosen[start : start + LANES]
        search_lanes(x, group, rounds, work)
        for b in range(len(group)):
            nothing = abs(sums.largest[b]) < TINY or not sums.ll[b] > ZERO
            scales[group[b]] = ZERO if nothing else sums.lx[b] / sums.ll[b]
            moving[still] = group[b]
            still += np.int64(sums.moved[b])
    return still


@kernel
def keep_levels_q3_k(x, chosen, levels):
    """Search the chosen blocks once more for their levels, 0 to 7. x: float32 [blocks, 16]; levels: uint8 [blocks, 16]."""
    work = np.empty((WORK, LANES), np.float32)
    lanes, sums, _ = cut(work)
    for start in range(0, len(chosen), LANES):
        group = chosen[start : start + LANES]
        search_lanes(x, group, ROUNDS, work)
        for b in range(len(group)):
            for i in range(BLOCK):
                levels[group[b], i] = 0 if abs(sums.largest[b]) < TINY else np.int32(lanes.level[i, b]) + 4


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
def zero_scales(codes, halves, blocks):
    """The indices of the blocks whose quantized scale is 0, at the start of `blocks` (int64 [16 * n])."""
    count = 0
    for n in range(len(codes)):
        nothing = from_half(halves[n]) == ZERO
        for j in range(16):
            blocks[count] = 16 * n + j
            count += np.int64(nothing | (codes[n, j] == 32))
    return blocks[:count]


@inlined
def pack_codes(codes, out):
    """Sixteen 6-bit codes in 12 bytes: the low nibbles of 0 to 7 and, above them, of 8 to 15; then the high bits, in fours."""
    for j in range(4):
        first, second, third, fourth = codes[j], codes[j + 4], codes[j + 8], codes[j + 12]
        out[j] = first & 15 | (third & 15) << 4
        out[j + 4] = second & 15 | (fourth & 15) << 4
        out[j + 8] = first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6


@kernel
def pack_q3_k(x, codes, halves, searched, out):
    """Round once more, for the quantized scales; where one came to 0, take the levels of the search.

    x: float32 [n, 256]; codes: uint8 [n, 16]; halves: int32 [n]; searched: uint8 [16 * n, 16]; out: uint8 [n, 110].
    """
    levels, row_scales = np.empty(256, np.uint8), np.empty(256, np.float32)
    for n in range(len(x)):
        step = from_half(halves[n])
        for j in range(16):
            row_scales[16 * j : 16 * j + 16] = step * np.float32(np.int32(codes[n, j]) - 32)
        round_row(x[n], row_scales, np.int32(4), levels)
        for j in range(16):
            if row_scales[16 * j] == ZERO:
                levels[16 * j : 16 * j + 16] = searched[16 * n + j]
        pack_plane(levels, 2, out[n, :32])
        pack_pairs(levels, 0, out[n, 32:96])
        pack_codes(codes[n], out[n, 96:108])
        put_half(out[n], 108, halves[n])


@kernel
def encode_q3_k(x, out):
    """float32 [n, 256] to Q3_K, uint8 [n, 110]: 16 blocks of 16 weights, 6-bit scales, 3-bit levels."""
    all_blocks, moving = np.arange(16 * CHUNK), np.empty(16 * CHUNK, np.int64)
    scales, levels = np.empty(16 * CHUNK, np.float32), np.empty((16 * CHUNK, BLOCK), np.uint8)
    codes, halves = np.empty((CHUNK, 16), np.uint8), np.empty(CHUNK, np.int32)
    for start in range(0, len(x), CHUNK):
        chunk = x[start : start + CHUNK]
        blocks = chunk.reshape(-1, BLOCK)
        chosen = all_blocks[: len(blocks)]
        for rounds in (1, 2, ROUNDS):
            chosen = moving[: search_q3_k(blocks, chosen, rounds, scales, moving)]
        quantize_scales_q3_k(scales, codes[: len(chunk)], halves)
        keep_levels_q3_k(blocks, zero_scales(codes[: len(chunk)], halves, moving), levels)
        pack_q3_k(chunk, codes, halves, levels, out[start : start + CHUNK])
