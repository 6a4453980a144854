"""hubq's encoders against ggml's, type by type, in one run: python bench/encode.py [--threads N] [--seconds S] [--json]

Both encode the same rows with the same number of threads, in turn, until the seconds for that type are spent; the ratio is
the median over the turns. The bytes are compared on student-t weights, on the same rounded to bfloat16, and on blocks of
zeros, constants, outliers and magnitudes from denormal to huge. Exit status 1 if any byte differs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hubq.formats.gguf.encode import TYPES, encode, row_bytes

Encoder = Callable[[np.ndarray, str, np.ndarray], object]


def load_ggml() -> Encoder:
    """ggml's quantizer, from the library that llama-cpp-python installs."""
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path("llama_cpp/lib")
    found = sorted(file for file in folder.glob("*ggml-base*") if file.suffix in (".so", ".dylib", ".dll"))
    if not found:
        sys.exit("error: the comparison needs ggml, which llama-cpp-python brings\n  pip install 'hubq[llama]'")
    quantize = ctypes.CDLL(str(found[0])).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def ggml_encode(rows: np.ndarray, name: str, out: np.ndarray) -> None:
        quantize(TYPES[name].number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)

    return ggml_encode


def weights(rows: int = 256, columns: int = 4096) -> np.ndarray:
    """Student-t weights, float32 [rows, columns]: the tails of trained weights."""
    return (np.random.default_rng(0).standard_t(5, size=(rows, columns)) * 0.02).astype(np.float32)


def edge_cases() -> np.ndarray:
    """Rows that quantizers stumble over, float32 [n, 4096]."""
    random, plain = np.random.default_rng(1), weights(16)
    bfloat = (plain.view(np.uint32) & 0xFFFF0000).view(np.float32)
    sparse = plain * (random.random(plain.shape) < 0.1)
    outlier = np.where(random.random(plain.shape) < 0.001, plain * 1e6, plain)
    constant = np.repeat(np.float32([0, -0.0, 1, -1, 1e-15, -1e-40, 3e38, -3e38])[:, None], plain.shape[1], axis=1)
    scaled = random.standard_normal((84, plain.shape[1])) * 10.0 ** np.arange(-46, 38)[:, None]
    mixed = 10.0 ** random.uniform(-44, 38, size=plain.shape) * random.choice([-1, 1], size=plain.shape)
    return np.concatenate([bfloat, abs(plain), -abs(plain), sparse, outlier, constant, scaled, mixed]).astype(np.float32)


def run(encoder: Encoder, rows: np.ndarray, name: str, out: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> float:
    """Seconds to encode `rows` into `out`, cut into one slice for each thread."""
    cuts = np.linspace(0, len(rows), threads + 1).astype(int)
    start = time.perf_counter()
    list(pool.map(lambda a, b: encoder(rows[a:b], name, out[a:b]), cuts[:-1], cuts[1:]))
    return time.perf_counter() - start


def same_bytes(ggml: Encoder, rows: np.ndarray, name: str) -> bool:
    theirs = np.empty((len(rows), row_bytes(name, rows.shape[1])), np.uint8)
    ggml(rows, name, theirs)
    return np.array_equal(encode(rows, name), theirs)


def compare(ggml: Encoder, name: str, threads: int, seconds: float) -> dict:
    """One row of the table: ns a weight of both, their ratio, whether the bytes are equal, seconds of the first call."""
    rows, start = weights(), time.perf_counter()
    encode(rows[:1], name)
    first_call = time.perf_counter() - start
    equal = same_bytes(ggml, rows, name) and same_bytes(ggml, edge_cases(), name)
    out = np.empty((len(rows), row_bytes(name, rows.shape[1])), np.uint8)
    turns, deadline = [], time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while not turns or time.perf_counter() < deadline:
            turns.append([run(encoder, rows, name, out, pool, threads) for encoder in (encode, ggml)])
    ours, theirs = (statistics.median(turn[i] for turn in turns) / rows.size * 1e9 for i in (0, 1))
    ratio = statistics.median(theirs / ours for ours, theirs in turns)
    return {"type": name, "hubq_ns": ours, "ggml_ns": theirs, "ratio": ratio, "equal": equal, "first_call_s": first_call}


def show(results: list[dict], threads: int) -> None:
    table = Table(title=f"ns per weight, {threads} thread{'s' * (threads > 1)}", box=None)
    table.add_column("type")
    for title in ("hubq", "ggml", "ratio", "bytes", "first call, s"):
        table.add_column(title, justify="right")
    for r in results:
        speed = (f"{r['hubq_ns']:.2f}", f"{r['ggml_ns']:.2f}", f"{r['ratio']:.2f}")
        table.add_row(r["type"], *speed, "equal" if r["equal"] else "DIFFER", f"{r['first_call_s']:.2f}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="hubq's GGUF encoders against ggml's")
    parser.add_argument("--threads", type=int, default=1, help="threads for each encoder (default 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each type (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    ggml = load_ggml()
    results = [compare(ggml, name, options.threads, options.seconds) for name in TYPES]
    if options.json:
        print(json.dumps({"threads": options.threads, "types": results}, indent=2))
    else:
        show(results, options.threads)
    return 0 if all(r["equal"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
