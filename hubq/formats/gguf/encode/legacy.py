"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights, one 16-bit scale each and, in the _1 types, a 16-bit minimum."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import INFINITY, ONE, ZERO, inlined, kernel, pack_nibbles, put_half, to_half

BLOCK = 32
QUARTER = 8  # weights compared at a time: four vector comparisons and a short tail instead of a chain of 32


@inlined
def bounds(row, low, high):
    """The least and the greatest weight of a block; low, high: scratch, float32 [QUARTER]."""
    for i in range(QUARTER):
        a, b, c, d = row[i], row[QUARTER + i], row[2 * QUARTER + i], row[3 * QUARTER + i]
        a, b = (a, b) if a < b else (b, a)
        c, d = (c, d) if c < d else (d, c)
        low[i] = a if a < c else c
        high[i] = b if b > d else d
    least, greatest = low[0], high[0]
    for i in range(1, QUARTER):
        least = low[i] if low[i] < least else least
        greatest = high[i] if high[i] > greatest else greatest
    return least, greatest


@kernel
def first_of(row, size):
    """The first weight of this magnitude: it decides the sign among equals, zeros among them."""
    for i in range(BLOCK):
        if abs(row[i]) == size:
            return row[i]
    return size


@inlined
def reciprocal(scale):
    """1 / scale, or 0 where scale is 0."""
    return ONE / scale if scale != ZERO else ZERO


@inlined
def quantize(row, low, inverse, shift, top, levels):
    """levels = (row - low) * inverse + shift, cut to an integer of at most `top`.

    That is between 0 and top + 1, unless the scale is so small that its inverse is infinite: then C's conversion of an
    infinity or a NaN to an 8-bit integer gives 0 on x86, and so does this.
    """
    for i in range(BLOCK):
        value = (row[i] - low) * inverse + shift
        value = value if abs(value) < INFINITY else ZERO
        levels[i] = min(np.int32(value), top)


@inlined
def pack_high_bits(levels, out):
    """Bit 4 of 32 levels, as 32 bits, low byte first."""
    word = np.uint32(0)
    for i in range(BLOCK):
        word |= np.uint32(levels[i] >> np.uint8(4)) << np.uint32(i)
    for byte in range(4):
        out[byte] = word >> np.uint32(8 * byte)


def make_encoder(bits: int, affine: bool):
    """The encoder of Q{bits}_1 if `affine` (weight = scale * level + min), else of Q{bits}_0 (scale * (level - half))."""
    top = np.int32(2**bits - 1)
    half = np.float32(2 ** (bits - 1))
    shift = np.float32(0.5) if affine else half + np.float32(0.5)
    header = 4 if affine else 2
    packed = header + 4 * (bits - 4)

    @kernel
    def encode(x, out):
        levels = np.empty(BLOCK, np.uint8)
        lows, highs = np.empty(QUARTER, np.float32), np.empty(QUARTER, np.float32)
        for n in range(len(x)):
            low, high = bounds(x[n], lows, highs)
            if affine:
                low = first_of(x[n], ZERO) if low == ZERO else low
                scale = abs(high - low) / np.float32(top)
                put_half(out[n], 2, to_half(low))
            else:
                extreme = high if high > -low else low
                extreme = first_of(x[n], high) if high == -low else extreme
                extreme = ZERO if extreme == ZERO else extreme
                scale, low = extreme / -half, ZERO
            put_half(out[n], 0, to_half(scale))
            quantize(x[n], low, reciprocal(scale), shift, top, levels)
            if bits == 5:
                pack_high_bits(levels, out[n, header:packed])
            pack_nibbles(levels, 16, out[n, packed:])

    return encode


encode_q4_0 = make_encoder(4, False)
encode_q4_1 = make_encoder(4, True)
encode_q5_0 = make_encoder(5, False)
encode_q5_1 = make_encoder(5, True)


@inlined
def round_away(value):
    """Nearest integer, ties away from zero, as int32; 0 for infinity and NaN."""
    size = abs(value) if abs(value) < INFINITY else ZERO
    whole = np.int32(size)
    whole += np.int32(size - np.float32(whole) >= np.float32(0.5))
    return -whole if value < ZERO else whole


@kernel
def encode_q8_0(x, out):
    """float32 [n, 32] to Q8_0, uint8 [n, 34]: weight = scale * level, levels from -127 to 127."""
    levels = np.empty(BLOCK, np.uint8)
    lows, highs = np.empty(QUARTER, np.float32), np.empty(QUARTER, np.float32)
    for n in range(len(x)):
        low, high = bounds(x[n], lows, highs)
        scale = max(abs(low), abs(high)) / np.float32(127)
        put_half(out[n], 0, to_half(scale))
        inverse = reciprocal(scale)
        for i in range(BLOCK):
            levels[i] = round_away(x[n, i] * inverse)
        for i in range(BLOCK):
            out[n, 2 + i] = levels[i]
