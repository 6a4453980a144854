"""llama.cpp itself, through llama-cpp-python: the oracle of the tests and the peer of the benchmarks."""

from __future__ import annotations

import ctypes
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


class _Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


def _gguf() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(
        str(next(file for file in sorted(folder.glob("*ggml-base*")) if file.suffix in (".so", ".dylib", ".dll")))
    )
    handle, index = ctypes.c_void_p, ctypes.c_int64
    signatures = {
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
    library = _gguf()
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
