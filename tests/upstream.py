"""llama.cpp itself, through llama-cpp-python: the oracle of the tests and the peer of the benchmarks."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def quantize(source: Path, target: Path, file_type: int, threads: int = 2) -> None:
    """Write `target` from the GGUF `source` as llama-quantize would: llama_model_quantize with defaults."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot quantize {source} to file type {file_type}")


def token_ids(path: Path, text: str, special: bool = False) -> list[int]:
    """The ids that llama.cpp gives a text with a GGUF's tokenizer; also a proof that the file loads."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return model.tokenize(text.encode(), add_bos=False, special=special)


def encode(
    rows: np.ndarray, number: int, row_bytes: int, importance: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """ggml_quantize_chunk: `rows` (float32 [n, columns]) in the ggml_type `number`, uint8 [n, row_bytes]."""
    out = np.empty((len(rows), row_bytes), np.uint8) if out is None else out
    matrix = None if importance is None else importance.ctypes.data
    base().ggml_quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, matrix)
    return out


def block(number: int) -> tuple[int, int]:
    """Weights and bytes of one block of a ggml_type."""
    return base().ggml_blck_size(number), base().ggml_type_size(number)


def type_name(number: int) -> str:
    """ggml's name of a ggml_type, in small letters."""
    return base().ggml_type_name(number).decode()


class _Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


@cache
def base() -> ctypes.CDLL:
    """The library ggml-base that llama-cpp-python installs."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(
        str(next(file for file in sorted(folder.glob("*ggml-base*")) if file.suffix in (".so", ".dylib", ".dll")))
    )
    handle, index = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "ggml_quantize_chunk": (ctypes.c_size_t, [ctypes.c_int, handle, handle, index, index, index, handle]),
        "ggml_blck_size": (index, [ctypes.c_int]),
        "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_type_size": (ctypes.c_size_t, [ctypes.c_int]),
        "gguf_init_from_file": (handle, [ctypes.c_char_p, _Params]),
        "gguf_free": (None, [handle]),
        "gguf_get_n_tensors": (index, [handle]),
        "gguf_get_data_offset": (ctypes.c_size_t, [handle]),
        "gguf_get_tensor_name": (ctypes.c_char_p, [handle, index]),
        "gguf_get_tensor_type": (ctypes.c_int, [handle, index]),
        "gguf_get_tensor_offset": (ctypes.c_size_t, [handle, index]),
        "gguf_get_tensor_size": (ctypes.c_size_t, [handle, index]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def tensors(path: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Tensor name -> (ggml_type, bytes) of a GGUF, as ggml's own reader sees it."""
    library = base()
    context = library.gguf_init_from_file(str(path).encode(), _Params(True, None))
    if not context:
        raise RuntimeError(f"ggml cannot read {path}")
    data, begin = np.memmap(path, np.uint8, "r"), library.gguf_get_data_offset(context)
    found = {}
    for i in range(library.gguf_get_n_tensors(context)):
        start = begin + library.gguf_get_tensor_offset(context, i)
        piece = data[start : start + library.gguf_get_tensor_size(context, i)]
        found[library.gguf_get_tensor_name(context, i).decode()] = (library.gguf_get_tensor_type(context, i), piece)
    library.gguf_free(context)
    return found
