"""What every kernel shares: how it is compiled, ggml's rounding, 16-bit floats, and the packing of small integers into bytes.

Inside a kernel every number is float32 or int32. A bare Python float would be float64 and change the result; numba widens
the result of integer arithmetic to 64 bits, which np.int32() around it undoes.
"""

from __future__ import annotations

import functools
import hashlib
import uuid
from pathlib import Path

import numba
import numba.extending
import numpy as np

# numba notices that a kernel's own file changed, not that a file it imports did: a cache for each state of the sources
_HERE = Path(__file__).parent
_STATE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_HERE.glob("*.py")))).hexdigest()[:16]
numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(_HERE / "__pycache__" / _STATE)


def _identify(made, function):
    """Give what numba made of a function a lasting identity: what the function is, and what it holds in its closure.

    numba finds a kernel that holds others in its closure by their identities, which are random unless they are set.
    """
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    identity = [_STATE, function.__module__, function.__qualname__, *(getattr(one, "_uuid", None) or repr(one) for one in held)]
    made._set_uuid(str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join(identity))))
    return made


def kernel(function, **options):
    """Compile a function on first use and keep it on disk. No fastmath: ggml's order of operations is kept, unfused."""
    return _identify(numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function), function)


def intrinsic(function):
    """A function that writes LLVM code itself, as numba.extending.intrinsic takes it."""
    return _identify(numba.extending.intrinsic(function), function)


inlined = functools.partial(kernel, inline="always")

LANES = 64  # blocks side by side in a search; a multiple of every vector width, small enough for the first-level cache
UNROLL = 4  # positions taken at a time, so that sums rest in registers between visits to memory

ZERO = np.float32(0)
ONE = np.float32(1)
INFINITY = np.float32(np.inf)
MAGIC = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer, ties to even, in the low mantissa bits

MAGNITUDE = np.int32(0x7FFFFFFF)
_MANTISSA = np.int32(0x7FFFFF)
_MIDDLE = np.int32(0x400000)
_HALF_INFINITY = np.int32(0x7C00)
_HALF_NORMAL = np.int32(0x38800000)  # 2**-14, the smallest normal half
_HALF_OVERFLOW = np.int32(0x47800000)  # 2**16, beyond the largest half
_HALF_REBIAS = np.int32((127 - 15) << 23)
_HALF_UNIT = np.float32(0.5)  # its last mantissa bit is worth 2**-24, the step of the subnormal halves
_HALF_UNIT_BITS = np.int32(0x3F000000)
_HALF_SCALE = np.float32(2.0**112)


@kernel
def nearest(value):
    """ggml's nearest_int: round half to even for |value| <= 2**22; beyond that (NaN and infinity too) its mantissa bits."""
    return np.int32((np.float32(value + MAGIC).view(np.int32) & _MANTISSA) - _MIDDLE)


@kernel
def clamp(value, low, high):
    """`value` held between int32 `low` and `high`."""
    return np.int32(max(low, min(high, value)))


@inlined
def lanes():
    """One float32 for each lane."""
    return np.empty(LANES, np.float32)


@inlined
def by_lanes(size):
    """`size` float32 for each lane: [position, lane]."""
    return np.empty((size, LANES), np.float32)


@inlined
def load_lanes(x, start, value):
    """Transpose x [blocks, size] from block `start` on into value [size, LANES], zeros behind the last; returns the count."""
    count = min(LANES, len(x) - start)
    if count < LANES:
        value[:] = ZERO
    for b in range(count):
        for i in range(len(value)):
            value[i, b] = x[start + b, i]
    return count


@kernel
def to_half(value):
    """The bits, as int32, of the IEEE half nearest to `value` (ties to even, overflow to infinity; NaN becomes 0x7E00)."""
    bits = np.float32(value).view(np.int32)
    sign = (bits >> np.int32(16)) & np.int32(0x8000)
    bits = np.int32(bits & MAGNITUDE)
    odd = (bits >> np.int32(13)) & np.int32(1)
    normal = (bits - _HALF_REBIAS + np.int32(0xFFF) + odd) >> np.int32(13)
    subnormal = np.float32(bits.view(np.float32) + _HALF_UNIT).view(np.int32) - _HALF_UNIT_BITS
    half = subnormal if bits < _HALF_NORMAL else normal
    half = _HALF_INFINITY if bits >= _HALF_OVERFLOW else half
    half = np.int32(0x7E00) if bits > np.int32(0x7F800000) else half
    return np.int32(sign | half)


@kernel
def from_half(half):
    """The float32 value of the IEEE half whose bits are `half` (int32, not a NaN)."""
    magnitude = half & np.int32(0x7FFF)
    value = np.int32(magnitude << np.int32(13)).view(np.float32) * _HALF_SCALE
    value = INFINITY if magnitude >= _HALF_INFINITY else value
    return -value if half & np.int32(0x8000) else value


@kernel
def put_half(out, offset, half):
    """Write the bits of a half, low byte first, to out[offset : offset + 2]."""
    out[offset] = half & np.int32(0xFF)
    out[offset + 1] = half >> np.int32(8)


@kernel
def quantize_row(row, low, scale, bottom, top, levels):
    """levels = (row - low) / scale, rounded, from `bottom` to `top` and counted from `bottom`; an undefined one counts as 0."""
    for i in range(len(row)):
        levels[i] = clamp(nearest((row[i] - low[i]) / scale[i]), bottom, top) - bottom


@inlined
def pack_nibbles(levels, distance, out):
    """Pair each 4-bit level with the one `distance` behind it: low nibble, high nibble. levels: 2 * len(out) of uint8."""
    for run in range(len(out) // distance):
        for i in range(distance):
            low, high = levels[2 * distance * run + i], levels[2 * distance * run + distance + i]
            out[distance * run + i] = (low & np.uint8(15)) | (high & np.uint8(15)) << np.uint8(4)


@kernel
def pack_pairs(levels, shift, out):
    """Four 2-bit fields a byte, 32 weights apart: bits `shift` and `shift + 1` of 256 levels to 64 bytes."""
    for half in range(2):
        for i in range(32):
            byte = np.uint8(0)
            for k in range(4):
                byte |= (levels[128 * half + 32 * k + i] >> np.uint8(shift) & np.uint8(3)) << np.uint8(2 * k)
            out[32 * half + i] = byte


@kernel
def pack_plane(levels, shift, out):
    """Eight 1-bit fields a byte, 32 weights apart: bit `shift` of 256 levels to 32 bytes."""
    for i in range(32):
        byte = np.uint8(0)
        for k in range(8):
            byte |= (levels[32 * k + i] >> np.uint8(shift) & np.uint8(1)) << np.uint8(k)
        out[i] = byte


@intrinsic
def select(_context, condition, first, second):
    """`first if condition else second`, both evaluated: no branch in the way of vector code."""
    return first(condition, first, second), lambda _context, builder, _signature, values: builder.select(*values)


@kernel
def mean_squares(rows, times, out):
    """`times` the mean square of each row. rows: float32 [n, size]; times: float32; out: float32 [n].

    Four rows are summed side by side, since a sum on its own waits for each addition; behind the last row, it is taken again.
    """
    last, size = len(rows) - 1, rows.shape[1]
    for first in range(0, len(rows), 4):
        p, q, r = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        for i in range(size):
            a += rows[first, i] * rows[first, i]
            b += rows[p, i] * rows[p, i]
            c += rows[q, i] * rows[q, i]
            d += rows[r, i] * rows[r, i]
        out[first], out[p], out[q], out[r] = a, b, c, d
    for n in range(len(rows)):
        out[n] = times * out[n] / np.float32(size)
