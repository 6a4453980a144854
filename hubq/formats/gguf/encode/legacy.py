"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights, one 16-bit scale each and, in the _1 types, a 16-bit minimum."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import (
    INFINITY,
    LANES,
    MAGNITUDE,
    ONE,
    ZERO,
    inlined,
    kernel,
    lanes,
    put_half,
    select,
    to_half,
)

BLOCK = 32


@inlined
def ordered(bits):
    """The bits of a float32 as an integer of the same order (-0 before 0), or back again."""
    return np.int32(bits ^ np.int32(bits >> np.int32(31) & MAGNITUDE))


@inlined
def find_bounds(x, low, high):
    """The least and the greatest weight of each block; by way of integers, whose extremes, unlike floats', make vector code."""
    bits, low_bits, high_bits = x.view(np.int32), low.view(np.int32), high.view(np.int32)
    for b in range(len(x)):
        least, greatest = MAGNITUDE, ~MAGNITUDE
        for i in range(x.shape[1]):
            number = ordered(bits[b, i])
            least, greatest = np.int32(min(least, number)), np.int32(max(greatest, number))
        low_bits[b], high_bits[b] = ordered(least), ordered(greatest)


@kernel
def first_of(row, size):
    """The first weight of this magnitude: it decides the sign among equals, zeros among them."""
    for i in range(BLOCK):
        if abs(row[i]) == size:
            return row[i]
    return size


@inlined
def invert(scale, inverse):
    """1 / scale, or 0 where scale is 0."""
    for b in range(LANES):
        inverse[b] = select(scale[b] != ZERO, ONE / scale[b], ZERO)


@inlined
def put_halves(numbers, half, out, offset):
    """Write the numbers as halves into their blocks; half: scratch, int32 [LANES]."""
    for b in range(LANES):
        half[b] = to_half(numbers[b])
    for b in range(len(out)):
        put_half(out[b], offset, half[b])


@inlined
def quantize(x, low, inverse, shift, top, levels):
    """levels = (x - low) * inverse + shift, cut to an integer of at most `top`.

    That is between 0 and top + 1, unless the scale is so small that its inverse is infinite: then C's conversion of an
    infinity or a NaN to an 8-bit integer gives 0 on x86, and so does this.
    """
    for b in range(len(x)):
        least, factor = low[b], inverse[b]
        for i in range(BLOCK):
            value = (x[b, i] - least) * factor + shift
            levels[b, i] = min(np.int32(select(abs(value) < INFINITY, value, ZERO)), top)


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

    @inlined
    def find_scales(x, low, high, scale):
        """From the bounds of each block its scale and, in `low`, its min: 0 if not affine."""
        for b in range(len(x)):
            if affine and low[b] == ZERO:
                low[b] = first_of(x[b], ZERO)
            if not affine and high[b] == -low[b]:
                low[b] = high[b] = first_of(x[b], high[b])
        for b in range(LANES):
            extreme = select(abs(high[b]) > abs(low[b]), high[b], low[b])
            scale[b] = abs(high[b] - low[b]) / np.float32(top) if affine else select(extreme == ZERO, ZERO, extreme) / -half
            low[b] = low[b] if affine else ZERO

    @kernel
    def encode(x, out):
        """float32 [n, 32] to uint8 [n, bytes]."""
        levels, half_bits = np.empty((LANES, BLOCK), np.uint8), np.empty(LANES, np.int32)
        low, high, scale, inverse = lanes(), lanes(), lanes(), lanes()
        for start in range(0, len(x), LANES):
            group, blocks = x[start : start + LANES], out[start : start + LANES]
            find_bounds(group, low, high)
            find_scales(group, low, high, scale)
            invert(scale, inverse)
            put_halves(scale, half_bits, blocks, 0)
            if affine:
                put_halves(low, half_bits, blocks, 2)
            quantize(group, low, inverse, shift, top, levels)
            for b in range(len(group)):
                if bits == 5:
                    pack_high_bits(levels[b], blocks[b, header:packed])
                for i in range(BLOCK // 2):
                    blocks[b, packed + i] = levels[b, i] & np.uint8(15) | levels[b, BLOCK // 2 + i] << np.uint8(4)

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
    low, high, scale, inverse, half_bits = lanes(), lanes(), lanes(), lanes(), np.empty(LANES, np.int32)
    levels = np.empty(BLOCK, np.int8)
    for start in range(0, len(x), LANES):
        group, blocks = x[start : start + LANES], out[start : start + LANES]
        find_bounds(group, low, high)
        for b in range(LANES):
            scale[b] = max(abs(low[b]), abs(high[b])) / np.float32(127)
        invert(scale, inverse)
        put_halves(scale, half_bits, blocks, 0)
        for b in range(len(group)):
            for i in range(BLOCK):
                levels[i] = round_away(group[b, i] * inverse[b])
            for i in range(BLOCK):
                blocks[b, 2 + i] = np.uint8(levels[i])
