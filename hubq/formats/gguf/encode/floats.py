"""F32, F16 and BF16: every weight on its own, rounded to the nearest, ties to even."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import kernel, put_half, to_half


def encode_f32(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 1] to its own little-endian bytes, uint8 [n, 4]."""
    out.view("<f4")[:] = x


@kernel
def encode_f16(x, out):
    """float32 [n, 1] to IEEE halves, uint8 [n, 2]."""
    for i in range(len(x)):
        put_half(out[i], 0, to_half(x[i, 0]))


@kernel
def encode_bf16(x, out):
    """Finite float32 [n, 1] to their upper 16 bits, uint8 [n, 2]; rounding may carry into infinity."""
    for i in range(len(x)):
        bits = np.float32(x[i, 0]).view(np.int32)
        odd = (bits >> np.int32(16)) & np.int32(1)
        put_half(out[i], 0, (bits + np.int32(0x7FFF) + odd) >> np.int32(16) & np.int32(0xFFFF))
