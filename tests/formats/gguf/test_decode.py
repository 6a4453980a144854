"""Every storage type decodes to the numbers that ggml decodes it to."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import upstream

from hubq.formats.gguf.decode import decode
from hubq.formats.gguf.encode import TYPES, encode, row_bytes

FUNCTIONS = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
random = np.random.default_rng(11)


def ggml_decode(data: np.ndarray, name: str, columns: int) -> np.ndarray:
    if name == "F32":
        return data.view(np.float32)
    usual = "dequantize_row_" + name.lower().replace("_k", "_K")
    function = getattr(upstream.base(), FUNCTIONS.get(name, usual))
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    out = np.empty((len(data), columns), np.float32)
    function(data.ctypes.data, out.ctypes.data, out.size)
    return out


@pytest.mark.parametrize("name", TYPES)
def test_decodes_any_bytes_as_ggml_does(name: str) -> None:
    data = random.integers(0, 256, size=(33, row_bytes(name, 768)), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        ours, theirs = decode(data, name), ggml_decode(data, name, 768)
    assert ours.dtype == np.float32 and ours.shape == (33, 768)
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.8
    assert np.array_equal(np.isfinite(ours), finite)
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-6)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0"])
def test_round_trip_of_what_gguf_cannot_decode(name: str) -> None:
    rows = random.choice([-0.5, 0.5], size=(3, 256)).astype(np.float32)
    assert np.array_equal(decode(encode(rows, name), name), rows)


def test_a_row_of_broken_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="18 bytes at a time"):
        decode(np.zeros((2, 19), np.uint8), "Q1_0")
