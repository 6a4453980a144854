"""TQ1_0, TQ2_0, Q1_0 and Q2_0: one, two or three levels around zero and a single 16-bit scale for a long block."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import (
    INFINITY,
    LANES,
    MAGNITUDE,
    ONE,
    ZERO,
    by_lanes,
    inlined,
    kernel,
    lanes,
    load_lanes,
    pack_pairs,
    put_half,
    to_half,
)

HALF = np.float32(0.5)


@inlined
def greatest_magnitude(bits):
    """The greatest magnitude of finite floats, from their bits: as integers they are in the same order."""
    greatest = np.int32(0)
    for i in range(len(bits)):
        greatest = max(greatest, np.int32(bits[i] & MAGNITUDE))
    return np.int32(greatest).view(np.float32)


@inlined
def inverse_of(scale):
    """1 / scale, or 0 where scale is 0; infinite for a scale below 2.9e-39."""
    return ONE / scale if scale != ZERO else ZERO


@inlined
def round_signs(row, inverse, undefined, signs):
    """row * inverse, from -1 to 1, rounded (ties away from zero) and plus 1; `undefined` where it is infinite or NaN."""
    for i in range(len(row)):
        value = row[i] * inverse
        sign = np.int32(value >= HALF) - np.int32(value <= -HALF) + np.int32(1)
        signs[i] = sign if abs(value) < INFINITY else undefined


@inlined
def pack_trits(trits, distance, count, out):
    """Five base-3 digits a byte, `distance` weights apart, the first one highest: the byte is their value / 243, rounded up.

    Of the five the last 5 - count are 0.
    """
    for i in range(distance):
        value = np.int32(0)
        for k in range(5):
            digit = np.int32(trits[k * distance + i]) if k < count else np.int32(0)
            value = np.int32(value * np.int32(3) + digit)
        out[i] = np.int32(value * np.int32(256) + np.int32(242)) // np.int32(243)


@kernel
def encode_tq1_0(x, out):
    """float32 [n, 256] to TQ1_0, uint8 [n, 54]: weight = scale * (trit - 1), five trits a byte, four in the last 4 bytes."""
    trits = np.empty(256, np.uint8)
    bits = x.view(np.int32)
    for n in range(len(x)):
        scale = greatest_magnitude(bits[n])
        round_signs(x[n], inverse_of(scale), np.int32(1), trits)
        pack_trits(trits, 32, 5, out[n])
        pack_trits(trits[160:], 16, 5, out[n, 32:])
        pack_trits(trits[240:], 4, 4, out[n, 48:])
        put_half(out[n], 52, to_half(scale))


@kernel
def encode_tq2_0(x, out):
    """float32 [n, 256] to TQ2_0, uint8 [n, 66]: weight = scale * (level - 1), levels 0 to 2 in two bits each."""
    levels = np.empty(256, np.uint8)
    bits = x.view(np.int32)
    for n in range(len(x)):
        scale = greatest_magnitude(bits[n])
        round_signs(x[n], inverse_of(scale), np.int32(1), levels)
        pack_pairs(levels, 0, out[n])
        put_half(out[n], 64, to_half(scale))


@kernel
def encode_q2_0(x, out):
    """float32 [n, 64] to Q2_0, uint8 [n, 18]: weight = scale * (level - 1); level 3 is in the format, but never arises."""
    levels = np.empty(64, np.uint8)
    bits = x.view(np.int32)
    for n in range(len(x)):
        scale = greatest_magnitude(bits[n])
        round_signs(x[n], inverse_of(scale), np.int32(0), levels)
        put_half(out[n], 0, to_half(scale))
        for i in range(16):
            four = levels[4 * i : 4 * i + 4]
            out[n, 2 + i] = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6


@inlined
def pack_signs(row, out):
    """One bit a weight, the first one lowest: whether it is at least 0."""
    for i in range(len(out)):
        byte = np.uint8(0)
        for k in range(8):
            byte |= np.uint8(row[8 * i + k] >= ZERO) << np.uint8(k)
        out[i] = byte


@kernel
def encode_q1_0(x, out):
    """float32 [n, 128] to Q1_0, uint8 [n, 18]: weight = scale or -scale, which is the mean magnitude."""
    value, total = by_lanes(128), lanes()
    for start in range(0, len(x), LANES):
        count = load_lanes(x, start, value)
        total[:] = ZERO
        for i in range(128):
            for b in range(LANES):
                total[b] += abs(value[i, b])
        for b in range(count):
            pack_signs(x[start + b], out[start + b, 2:])
            put_half(out[start + b], 0, to_half(total[b] / np.float32(128)))
