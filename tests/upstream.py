"""llama.cpp itself, through llama-cpp-python: the oracle of the tests and the peer of the benchmarks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp


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
