"""F32, F16 and BF16: every weight on its own, rounded to the nearest, ties to even."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import kernel, to_half


def encode_f32(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 1] to its own little-endian bytes, uint8 [n, 4]."""
    out.view("<f4")[:] = x


def encode_f16(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 1] to IEEE halves, uint8 [n, 2]; beyond 65504 they become infinite."""
    round_f16(x.reshape(-1), out.reshape(-1).view(np.uint16))


def encode_bf16(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 1] to their upper 16 bits, uint8 [n, 2]; rounding may carry into infinity."""
    round_bf16(x.reshape(-1).view(np.int32), out.reshape(-1).view(np.uint16))


@kernel
def round_f16(x, out):
    """The bits of IEEE halves. x: float32 [n]; out: uint16 [n]."""
    for i in range(len(x)):
        out[i] = to_half(x[i])


@kernel
def round_bf16(bits, out):
    """The upper half of the bits of finite floats. bits: int32 [n]; out: uint16 [n]."""
    for i in range(len(bits)):
        odd = bits[i] >> np.int32(16) & np.int32(1)
        out[i] = (bits[i] + np.int32(0x7FFF) + odd) >> np.int32(16)
