"""Q3_K and Q6_K: weight = scale * (level - half), with the scale of each block of 16 weights quantized in turn.

Both first round the weights so that the largest meets the lowest level. Q6_K then tries 18 nearby scales, and Q3_K goes five
times over the levels and changes one where that fits better. As in affine_search.py, LANES blocks are searched side by side.
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import (
    LANES,
    MAGIC,
    ONE,
    UNROLL,
    ZERO,
    by_lanes,
    clamp,
    from_half,
    inlined,
    kernel,
    lanes,
    load_lanes,
    nearest,
    pack_nibbles,
    pack_pairs,
    pack_plane,
    put_half,
    quantize_row,
    to_half,
)

BLOCK = 16
TINY = np.float32(1e-15)  # a block, or the scales of a super-block, below this counts as zero
STEP = np.float32(0.1)


@inlined
def survey(value, square, cube, largest):
    """Squares and cubes of the values, and the value of each block that is furthest from zero; the first of equals."""
    largest[:] = ZERO
    for i in range(BLOCK):
        for b in range(LANES):
            x = value[i, b]
            square[i, b] = x * x
            cube[i, b] = x * x * x
            largest[b] = x if abs(x) > abs(largest[b]) else largest[b]


@inlined
def round_levels(value, square, cube, inverse, half, level, sum_lx, sum_ll):
    """Levels from -half to half - 1, and the sums of x**2 * level * x and of x**2 * level**2 over each block.

    |value * inverse| stays near half, where adding and taking away MAGIC rounds as nearest() does.
    """
    sum_lx[:] = ZERO
    sum_ll[:] = ZERO
    for start in range(0, BLOCK, UNROLL):
        for b in range(LANES):
            lx, ll = sum_lx[b], sum_ll[b]
            for i in range(start, start + UNROLL):
                q = (value[i, b] * inverse[b] + MAGIC) - MAGIC
                q = q if q > -half else -half
                q = q if q < half - ONE else half - ONE
                level[i, b] = q
                lx += cube[i, b] * q
                ll += square[i, b] * q * q
            sum_lx[b], sum_ll[b] = lx, ll


@kernel
def search_q6_k(x, found):
    """Scale of every block, and the inverse that gave its levels (0: all levels are 0).

    x: float32 [blocks, 16]; found: float32 [2, blocks].
    """
    value, square, cube, level = by_lanes(BLOCK), by_lanes(BLOCK), by_lanes(BLOCK), by_lanes(BLOCK)
    largest, inverse, sum_lx, sum_ll = lanes(), lanes(), lanes(), lanes()
    scale, best, kept = lanes(), lanes(), lanes()
    for start in range(0, len(x), LANES):
        count = load_lanes(x, start, value)
        survey(value, square, cube, largest)
        for b in range(LANES):
            kept[b] = np.float32(-32) / largest[b]
        round_levels(value, square, cube, kept, np.float32(32), level, sum_lx, sum_ll)
        for b in range(LANES):
            scale[b] = sum_lx[b] / sum_ll[b] if sum_ll[b] != ZERO else ZERO
            best[b] = scale[b] * sum_lx[b]
        for trial in range(-9, 10):
            if trial == 0:
                continue
            for b in range(LANES):
                inverse[b] = -(np.float32(32) + STEP * np.float32(trial)) / largest[b]
            round_levels(value, square, cube, inverse, np.float32(32), level, sum_lx, sum_ll)
            for b in range(LANES):
                better = (sum_ll[b] > ZERO) & (sum_lx[b] * sum_lx[b] > best[b] * sum_ll[b])
                fit = sum_lx[b] / sum_ll[b]
                scale[b] = fit if better else scale[b]
                best[b] = fit * sum_lx[b] if better else best[b]
                kept[b] = inverse[b] if better else kept[b]
        for b in range(count):
            nothing = abs(largest[b]) < TINY
            found[0, start + b] = ZERO if nothing else scale[b]
            found[1, start + b] = ZERO if nothing else kept[b]


@inlined
def improve_levels(value, square, cube, level, sum_lx, sum_ll):
    """Once over the positions: where another level fits a block better, given all its others, take it and correct the sums.

    A lane in which nothing changes would not change in a further round either: there is no need to stop it, as ggml does.
    """
    for i in range(BLOCK):
        for b in range(LANES):
            lx, ll, old = sum_lx[b], sum_ll[b], level[i, b]
            rest_lx = lx - cube[i, b] * old
            rest_ll = ll - square[i, b] * old * old
            new = np.float32(clamp(nearest(value[i, b] * rest_ll / rest_lx), np.int32(-4), np.int32(3)))
            new_lx = rest_lx + cube[i, b] * new
            new_ll = rest_ll + square[i, b] * new * new
            better = (rest_lx > ZERO) & (new != old) & (new_ll > ZERO) & (new_lx * new_lx * ll > lx * lx * new_ll)
            level[i, b] = new if better else old
            sum_lx[b] = new_lx if better else lx
            sum_ll[b] = new_ll if better else ll


@kernel
def search_q3_k(x, scales, levels):
    """Scale and levels (0 to 7) of every block, the levels as the search holds them.

    x: float32 [blocks, 16]; scales: float32 [blocks]; levels: uint8 [blocks / LANES, 16, LANES].
    """
    value, square, cube, level = by_lanes(BLOCK), by_lanes(BLOCK), by_lanes(BLOCK), by_lanes(BLOCK)
    largest, inverse, sum_lx, sum_ll = lanes(), lanes(), lanes(), lanes()
    for start in range(0, len(x), LANES):
        count = load_lanes(x, start, value)
        survey(value, square, cube, largest)
        for b in range(LANES):
            inverse[b] = np.float32(-4) / largest[b]
        round_levels(value, square, cube, inverse, np.float32(4), level, sum_lx, sum_ll)
        for _ in range(5):
            improve_levels(value, square, cube, level, sum_lx, sum_ll)
        for b in range(count):
            nothing = abs(largest[b]) < TINY
            scales[start + b] = ZERO if nothing or not sum_ll[b] > ZERO else sum_lx[b] / sum_ll[b]
        for i in range(BLOCK):
            for b in range(LANES):
                levels[start // LANES, i, b] = 0 if abs(largest[b]) < TINY else np.int32(level[i, b]) + 4


@kernel
def furthest(scales):
    """The scale furthest from zero, the first of equals; 0 if there is none."""
    furthest = ZERO
    for j in range(16):
        furthest = scales[j] if abs(scales[j]) > abs(furthest) else furthest
    return furthest


@kernel
def keep_search_levels(row, scale, inverses, levels):
    """Where a block's scale came to 0, its levels are those of search_q6_k: all 0 if the block is."""
    for j in range(16):
        if scale[16 * j] == ZERO:
            for i in range(16 * j, 16 * j + 16):
                level = clamp(nearest(row[i] * inverses[j]), np.int32(-32), np.int32(31)) + 32
                levels[i] = level if inverses[j] != ZERO else 0


@kernel
def pack_q6_k(x, found, out):
    """x: float32 [n, 256]; found: float32 [2, 16 * n]; out: uint8 [n, 210]."""
    levels, low, scale = np.empty(256, np.uint8), np.zeros(256, np.float32), np.empty(256, np.float32)
    for n in range(len(x)):
        scales, inverses = found[0, 16 * n : 16 * n + 16], found[1, 16 * n : 16 * n + 16]
        largest = furthest(scales)
        if abs(largest) < TINY:
            out[n] = 0
            continue
        inverse = np.float32(-128) / largest
        scale_half = to_half(ONE / inverse)
        for j in range(16):
            code = np.int8(min(127, nearest(inverse * scales[j])))
            out[n, 192 + j] = np.uint8(code)
            scale[16 * j : 16 * j + 16] = from_half(scale_half) * np.float32(code)
        quantize_row(x[n], low, scale, np.int32(-32), np.int32(31), levels)
        keep_search_levels(x[n], scale, inverses, levels)
        for k in range(2):
            pack_nibbles(levels[128 * k : 128 * k + 128], 64, out[n, 64 * k : 64 * k + 64])
        pack_pairs(levels, 4, out[n, 128:192])
        put_half(out[n], 208, scale_half)


@kernel
def quantize_scales_q3_k(scales, out):
    """Sixteen 6-bit counts of a step in 12 bytes, cleared before; returns the step, as the bits of a half.

    Bytes 0 to 7 hold the low nibbles of counts 0 to 7 and, above them, 8 to 15; bytes 8 to 11 the high bits, four to a byte.
    """
    largest = furthest(scales)
    if largest == ZERO:
        return np.int32(0)
    inverse = np.float32(-32) / largest
    for j in range(16):
        code = clamp(np.int8(nearest(inverse * scales[j])), np.int32(-32), np.int32(31)) + 32
        out[j % 8] |= (code & 15) << (j // 8 * 4)
        out[8 + j % 4] |= code >> 4 << (j // 4 * 2)
    return to_half(ONE / inverse)


@kernel
def pack_q3_k(x, scales, searched, out):
    """x: float32 [n, 256]; scales: float32 [16 * n]; searched: the levels found; out: uint8 [n, 110]."""
    levels, low, scale = np.empty(256, np.uint8), np.zeros(256, np.float32), np.empty(256, np.float32)
    for n in range(len(x)):
        codes = out[n, 96:108]
        codes[:] = 0
        scale_half = quantize_scales_q3_k(scales[16 * n : 16 * n + 16], codes)
        for j in range(16):
            code = codes[j % 8] >> (j // 8 * 4) & 15 | (codes[8 + j % 4] >> (j // 4 * 2) & 3) << 4
            scale[16 * j : 16 * j + 16] = from_half(scale_half) * np.float32(np.int32(code) - 32)
        quantize_row(x[n], low, scale, np.int32(-4), np.int32(3), levels)
        for j in range(16):
            if scale[BLOCK * j] == ZERO:
                group, lane = divmod(16 * n + j, LANES)
                levels[BLOCK * j : BLOCK * (j + 1)] = searched[group, :, lane]
        pack_plane(levels, 2, out[n, :32])
        pack_pairs(levels, 0, out[n, 32:96])
        put_half(out[n], 108, scale_half)


def encode_q3_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q3_K, uint8 [n, 110]: 16 blocks of 16 weights, 6-bit scales, 3-bit levels."""
    blocks = x.reshape(-1, BLOCK)
    scales, levels = np.empty(len(blocks), np.float32), np.empty((-(-len(blocks) // LANES), BLOCK, LANES), np.uint8)
    search_q3_k(blocks, scales, levels)
    pack_q3_k(x, scales, levels, out)


def encode_q6_k(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to Q6_K, uint8 [n, 210]: 16 blocks of 16 weights, 8-bit scales, 6-bit levels."""
    found = np.empty((2, x.size // BLOCK), np.float32)
    search_q6_k(x.reshape(-1, BLOCK), found)
    pack_q6_k(x, found, out)
