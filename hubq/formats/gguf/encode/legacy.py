"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights, one 16-bit scale each and, in the _1 types, a 16-bit minimum."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import INFINITY, ONE, ZERO, kernel, pack_nibbles, put_half, to_half

BLOCK = 32


@kernel
def largest(row):
    """The weight furthest from zero, with its sign; the first of equals."""
    size, extreme = ZERO, ZERO
    for i in range(BLOCK):
        further = abs(row[i]) > size
        size = abs(row[i]) if further else size
        extreme = row[i] if further else extreme
    return extreme


@kernel
def bounds(row):
    """The least and the greatest weight; the first of equals, since zeros have signs."""
    low, high = row[0], row[0]
    for i in range(1, BLOCK):
        low = row[i] if row[i] < low else low
        high = row[i] if row[i] > high else high
    return low, high


@kernel
def reciprocal(scale):
    """1 / scale, or 0 where scale is 0."""
    return ONE / scale if scale != ZERO else ZERO


@kernel
def quantize(row, low, inverse, shift, top, levels):
    """levels = (row - low) * inverse + shift, cut to an integer of at most `top`.

    That is between 0 and top + 1, unless the scale is so small that its inverse is infinite: then C's conversion of an
    infinity or a NaN to an 8-bit integer gives 0 on x86, and so does this.
    """
    for i in range(BLOCK):
        value = (row[i] - low) * inverse + shift
        value = value if abs(value) < INFINITY else ZERO
        levels[i] = min(np.int32(value), top)


@kernel
def pack_high_bits(levels, out):
    """Bit 4 of 32 levels, as 32 bits, low byte first."""
    for byte in range(4):
        bits = np.uint8(0)
        for k in range(8):
            bits |= (levels[8 * byte + k] >> np.uint8(4)) << np.uint8(k)
        out[byte] = bits


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
        for n in range(len(x)):
            if affine:
                low, high = bounds(x[n])
                scale = (high - low) / np.float32(top)
                put_half(out[n], 2, to_half(low))
            else:
                low = ZERO
                scale = largest(x[n]) / -half
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


@kernel
def round_away(value):
    """Nearest integer, ties away from zero, as int32; 0 for infinity and NaN."""
    size = abs(value) if abs(value) < INFINITY else ZERO
    whole = np.int32(size)
    whole += np.int32(size - np.float32(whole) >= np.float32(0.5))
    return -whole if value < ZERO else whole


@kernel
def encode_q8_0(x, out):
    """float32 [n, 32] to Q8_0, uint8 [n, 34]: weight = scale * level, levels from -127 to 127."""
    for n in range(len(x)):
        scale = abs(largest(x[n])) / np.float32(127)
        put_half(out[n], 0, to_half(scale))
        inverse = reciprocal(scale)
        for i in range(BLOCK):
            out[n, 2 + i] = round_away(x[n, i] * inverse)
