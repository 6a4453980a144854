"""llama.cpp itself, through llama-cpp-python: the oracle of the tests and the peer of the benchmarks."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def quantize(source: Path, target: Path, file_type: int, threads: int = 2, **options: Any) -> None:
    """Write `target` from the GGUF `source` as llama-quantize would: llama_model_quantize with `options`.

    `matrix` maps tensor names to importances (float32); `tensor_types` are pairs of pattern and ggml_type; `output` and
    `embedding` are the ggml_types of those two; `pure` and `requantize` (of 8-bit weights) are flags.
    """
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    _run(source, target, file_type, {"threads": threads, **options})


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


def choices(source: Path, file_type: int, **options: Any) -> tuple[dict[str, str], int]:
    """Tensor name -> storage type that llama-quantize would give it, and how many of them are fallbacks.

    `options` are those of `quantize`.
    """
    log = _dry_run(source, file_type, options)
    line = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\w+), size = .* MiB(?: \((\w+)\))?$", re.M)
    fallbacks = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", log)
    types = {name: (after or before).upper() for name, before, after in line.findall(log)}
    return types, int(fallbacks[1]) if fallbacks else 0


def wants_matrix(source: Path, file_type: int) -> bool:
    """Whether llama-quantize would refuse to go on without an importance matrix."""
    return "will require an imatrix" in _dry_run(source, file_type, {})


def _dry_run(source: Path, file_type: int, options: Mapping[str, Any]) -> str:
    """What llama.cpp says of a quantization that computes no weights."""
    lines: list[str] = []
    collect = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text.decode()))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        _run(source, source, file_type, options, dry_run=True)
    finally:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    return "".join(lines)


def _run(source: Path, target: Path, file_type: int, options: Mapping[str, Any], dry_run: bool = False) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = file_type, options.get("threads", 2), dry_run
    params.pure, params.allow_requantize = options.get("pure", False), options.get("requantize", False)
    for field, option in {"output_tensor_type": "output", "token_embedding_type": "embedding"}.items():
        if options.get(option) is not None:
            setattr(params, field, options[option])
    if options.get("matrix") is not None:
        kind, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        data = [(name.encode(), value.ctypes.data_as(pointer), value.size) for name, value in options["matrix"].items()]
        params.imatrix = (kind * (len(data) + 1))(*data, (None, None, 0))
    if options.get("tensor_types"):
        kind, pairs = llama_cpp.llama_model_tensor_override, options["tensor_types"]
        params.tt_overrides = (kind * (len(pairs) + 1))(*[(pattern.encode(), number) for pattern, number in pairs], (None, 0))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot quantize {source} to file type {file_type}")
