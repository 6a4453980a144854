"""IQ2_XXS, IQ2_XS and IQ2_S: weight = scale * value * sign, each group of 8 values a point of a code book."""

from __future__ import annotations

import numpy as np

from hubq.formats.gguf.encode.bits import ONE, ZERO, clamp, kernel, nearest, put_half, to_half
from hubq.formats.gguf.encode.iq2_choice import book
from hubq.formats.gguf.encode.iq2_search import Form, search
from hubq.formats.gguf.encode.iq3_weigh import mean_squares

XXS = Form(32, -6, True, True, np.float32(1e-15))
XS = Form(16, -9, True, False, np.float32(1e-15))
S = Form(16, -9, False, False, np.float32(1e-8))
STEPS = np.float32(31)
FUDGE = np.float32(0.9875)  # of the scale of IQ2_S


@kernel
def quantize_scales(scales, codes):
    """Odd multiples 2 * code + 1 of greatest / 31 for the scales of a super-block, codes from 0 to 15; returns the greatest."""
    most = ZERO
    for j in range(len(scales)):
        most = scales[j] if scales[j] > most else most
    inverse = ONE / (most / STEPS)
    for j in range(len(scales)):
        code = clamp(nearest(np.float32(0.5) * (inverse * scales[j] - ONE)), np.int32(0), np.int32(15))
        codes[j] = code if most > ZERO else 0
    return most


@kernel
def pack_xxs(scales, points, out):
    """scales: float32 [n, 8]; points: int32 [n, 8, 4], with the signs above bit 16; out: uint8 [n, 66]."""
    codes = np.empty(8, np.int64)
    for n in range(len(scales)):
        most = quantize_scales(scales[n], codes)
        out[n] = 0
        put_half(out[n], 0, to_half(most / STEPS))
        for j in range(8 if most > ZERO else 0):
            signs = codes[j] << 28
            for g in range(4):
                out[n, 2 + 8 * j + g] = points[n, j, g] & 0xFF
                signs |= (points[n, j, g] >> 16) << 7 * g
            for k in range(4):
                out[n, 6 + 8 * j + k] = signs >> 8 * k & 0xFF


@kernel
def pack_xs(scales, points, out):
    """scales: float32 [n, 16]; points: int32 [n, 32], with the signs above bit 16; out: uint8 [n, 74]."""
    codes = np.empty(16, np.int64)
    for n in range(len(scales)):
        most = quantize_scales(scales[n], codes)
        out[n] = 0
        put_half(out[n], 0, to_half(most / STEPS))
        for g in range(32 if most > ZERO else 0):
            put_half(out[n], 2 + 2 * g, points[n, g] & 0x1FF | points[n, g] >> 16 << 9)
        for j in range(8):
            out[n, 66 + j] = codes[2 * j] | codes[2 * j + 1] << 4


@kernel
def pack_s(scales, points, out):
    """scales: float32 [n, 16]; points: int32 [n, 32], with the signs above bit 16; out: uint8 [n, 82]."""
    codes = np.empty(16, np.int64)
    for n in range(len(scales)):
        most = quantize_scales(scales[n], codes)
        out[n] = 0
        put_half(out[n], 0, to_half(most / STEPS * FUDGE))
        for g in range(32):
            out[n, 2 + g] = points[n, g] & 0xFF
            out[n, 34 + g] = points[n, g] >> 16
            out[n, 66 + g // 4] |= (points[n, g] >> 8 & 3) << 2 * (g % 4)
        for j in range(8):
            out[n, 74 + j] = codes[2 * j] | codes[2 * j + 1] << 4


def _encode(type_name: str, form: Form, times: float, x: np.ndarray, importance: np.ndarray, pack, out: np.ndarray) -> None:
    n = x.size // 256
    means = mean_squares(x.reshape(n, 256), np.float32(times), np.float32(1 / 256))
    scales, points = np.empty(x.size // form.size, np.float32), np.empty((x.size // form.size, form.size // 8), np.int32)
    search(x.reshape(-1), importance, means, book(type_name), form, scales, points)
    pack(scales.reshape(n, -1), points.reshape(n, 8, 4) if form is XXS else points.reshape(n, 32), out.reshape(n, -1))


def encode_iq2_xxs_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ2_XXS, uint8 [n, columns / 256 * 66]: blocks of 32 weights, 4-bit scales, 256 points."""
    _encode("IQ2_XXS", XXS, 1, rows, importance, pack_xxs, out)


def encode_iq2_xs_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ2_XS, uint8 [n, columns / 256 * 74]: blocks of 16 weights, 4-bit scales, 512 points."""
    _encode("IQ2_XS", XS, 1, rows, importance, pack_xs, out)


def encode_iq2_s_weighted(rows: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, columns] to IQ2_S, uint8 [n, columns / 256 * 82]: blocks of 16 weights, 4-bit scales, 1024 points."""
    _encode("IQ2_S", S, 2, rows, importance, pack_s, out)


def encode_iq2_s(x: np.ndarray, out: np.ndarray) -> None:
    """float32 [n, 256] to IQ2_S, uint8 [n, 82], as encode_iq2_s_weighted but for how much each error counts."""
    _encode("IQ2_S", S, 2, x, np.empty(0, np.float32), pack_s, out)
