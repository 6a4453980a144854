"""MXFP4: blocks of 32 weights, one power of two as scale and 4-bit floats (sign, 2-bit exponent, 1-bit mantissa).

Format: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import INFINITY, ZERO, inlined, kernel, pack_nibbles
from hubq.formats.gguf.encode.ternary import greatest_magnitude

BLOCK = 32
_NEAR_TWO = np.int32(0x7FFF00)  # mantissas above may have a logarithm that rounds up to the next whole number


@kernel
def whole_log2(value):
    """The whole part of log2(value) as a float32, value > 0: rounded to that, it may reach the next whole number."""
    return np.int32(np.floor(np.float32(np.log2(np.float64(value)))))


@inlined
def shared_exponent(greatest):
    """The byte for a block's scale of 2**(byte - 127), a quarter of the greatest magnitude's power of two; 0 if it is 0.

    Below 2**-125 it would be less than 0 and, cut to 8 bits, comes out near 255, with which all weights become 0.
    """
    bits = np.float32(greatest).view(np.int32)
    exponent = (bits >> np.int32(23)) - np.int32(127)
    if exponent == np.int32(-127) or bits & np.int32(0x7FFFFF) >= _NEAR_TWO:
        exponent = whole_log2(greatest) if greatest > ZERO else np.int32(-125)
    return np.int32((exponent + np.int32(125)) & np.int32(0xFF))


@inlined
def half_scale(code):
    """2**(code - 128), half of the block's scale: the levels count halves."""
    bits = np.int32(0x200000) << code if code < np.int32(2) else (code - np.int32(1)) << np.int32(23)
    return np.int32(bits).view(np.float32)


@inlined
def nearest_levels(row, half, levels):
    """The nearest of 0, 1, 2, 3, 4, 6, 8, 12 halves to each magnitude, the lesser of two as near, plus 8 if it is below 0.

    A number of halves beyond float32 is near to nothing.
    """
    seventh = np.float32(7) * half if np.float32(8) * half < INFINITY else INFINITY
    for i in range(BLOCK):
        size = abs(row[i])
        level = np.int32(size > np.float32(0.5) * half)
        level += np.int32(size > np.float32(1.5) * half)
        level += np.int32(size > np.float32(2.5) * half)
        level += np.int32(size > np.float32(3.5) * half)
        level += np.int32(size > np.float32(5) * half)
        level += np.int32(size > seventh)
        level += np.int32(size > np.float32(10) * half)
        negative = (row[i] < ZERO) & (level > np.int32(0))
        levels[i] = level + np.int32(8) if negative else level


@kernel
def encode_mxfp4(x, out):
    """float32 [n, 32] to MXFP4, uint8 [n, 17]: the scale's exponent, then the 4-bit floats."""
    levels = np.empty(BLOCK, np.uint8)
    bits = x.view(np.int32)
    for n in range(len(x)):
        code = shared_exponent(greatest_magnitude(bits[n]))
        out[n, 0] = code
        nearest_levels(x[n], half_scale(code), levels)
        pack_nibbles(levels, 16, out[n, 1:])
