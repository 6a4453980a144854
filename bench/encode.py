"""hubq's encoders against ggml's, type by type, in one run: python bench/encode.py [TYPE ...] [--threads N] [--json]

Both encode the same rows with the same number of threads, in turn, until the seconds for that type are spent; the ratio is
the median over the turns. The bytes are compared on student-t weights, on the same rounded to bfloat16, and (without an
importance matrix) on blocks of zeros, constants, outliers and magnitudes from denormal to huge. Exit status 1 if any differs.

How far a kernel is from the machine's limits: "of memory" is the share of the bandwidth of a copy that its reads (4 bytes a
weight) and writes take; "of peak" the share of the machine's float32 multiplications and additions, unfused as ggml's bytes
demand. Operations are counted by hand from the inner loops; searches in code books take as many as the data asks for, and are
not counted. Needs llama-cpp-python: pip install 'hubq[llama]'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
from rich.console import Console
from rich.table import Table

from hubq.formats.gguf.encode import TYPES, encode, row_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Encoder = Callable[[np.ndarray, str, np.ndarray, np.ndarray | None], object]

# type -> how many times as fast as ggml it should be, without and with an importance matrix
TARGETS: dict[str, tuple[float, float]] = dict.fromkeys(TYPES, (4, 4))
TARGETS |= dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), (6, 6)) | dict.fromkeys(("Q4_0", "Q5_0", "Q4_1", "Q5_1"), (1, 4))
TARGETS |= dict.fromkeys(("F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4"), (1, 1)) | {"F32": (0, 0)}

# type -> float operations a weight, without and with an importance matrix: trials times those of a rounding, the sums and,
# where a minimum is fitted, the error
ROUND, SUMS, ERROR = 5, 5, 6
AFFINE = 1 + ROUND + SUMS + 1 + ERROR
OPERATIONS: dict[str, tuple[int | None, int | None]] = {
    "Q2_K": (17 * AFFINE, 38 * AFFINE),
    "Q4_K": (22 * AFFINE, 38 * AFFINE),
    "Q5_K": (17 * AFFINE, 38 * AFFINE),
    "Q4_1": (4, 38 * AFFINE),
    "Q5_1": (4, 38 * AFFINE),
    "Q6_K": (19 * (ROUND + SUMS), 19 * (ROUND + SUMS)),
    "Q3_K": (ROUND + SUMS + 5 * 16, 19 * (ROUND + SUMS)),
    "Q4_0": (4, 19 * (ROUND + SUMS)),
    "Q5_0": (4, 19 * (ROUND + SUMS)),
    "Q8_0": (4, None),
}


def ggml(rows: np.ndarray, name: str, out: np.ndarray, importance: np.ndarray | None) -> None:
    """ggml's own encoder, as a peer of hubq's."""
    import upstream

    upstream.encode(rows, TYPES[name].number, out.shape[1], importance, out)


def weights(rows: int = 64, columns: int = 4096) -> np.ndarray:
    """Student-t weights, float32 [rows, columns]: the tails of trained weights."""
    return (np.random.default_rng(0).standard_t(5, size=(rows, columns)) * 0.02).astype(np.float32)


def edge_cases() -> np.ndarray:
    """Rows that quantizers stumble over, float32 [n, 4096]."""
    random, plain = np.random.default_rng(1), weights(16)
    sparse = plain * (random.random(plain.shape) < 0.1)
    outlier = np.where(random.random(plain.shape) < 0.001, plain * 1e6, plain)
    constant = np.repeat(np.float32([0, -0.0, 1, -1, 1e-15, -1e-40, 3e38, -3e38])[:, None], plain.shape[1], axis=1)
    scaled = random.standard_normal((84, plain.shape[1])) * 10.0 ** np.arange(-46, 38)[:, None]
    mixed = 10.0 ** random.uniform(-44, 38, size=plain.shape) * random.choice([-1, 1], size=plain.shape)
    return np.concatenate([abs(plain), -abs(plain), sparse, outlier, constant, scaled, mixed]).astype(np.float32)


def run(
    encoder: Encoder,
    rows: np.ndarray,
    name: str,
    out: np.ndarray,
    importance: np.ndarray | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> float:
    """Seconds to encode `rows` into `out`, cut into one slice for each thread."""
    cuts = np.linspace(0, len(rows), threads + 1).astype(int)
    start = time.perf_counter()
    list(pool.map(lambda a, b: encoder(rows[a:b], name, out[a:b], importance), cuts[:-1], cuts[1:]))
    return time.perf_counter() - start


def same_bytes(rows: np.ndarray, name: str, importance: np.ndarray | None) -> bool:
    theirs = np.empty((len(rows), row_bytes(name, rows.shape[1])), np.uint8)
    ggml(rows, name, theirs, importance)
    return np.array_equal(encode(rows, name, importance=importance), theirs)


def compare(name: str, weighted: bool, threads: int, seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """One row of the table: ns a weight of both, their ratio, whether the bytes are equal, seconds of the first call."""
    rows, start = weights(), time.perf_counter()
    importance = np.random.default_rng(2).chisquare(1, rows.shape[1]).astype(np.float32) if weighted else None
    encode(rows[:1], name, importance=importance)
    first_call = time.perf_counter() - start
    bfloat = (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    equal = same_bytes(rows, name, importance) and same_bytes(bfloat, name, importance)
    if not weighted and not name.startswith("IQ"):  # of those ggml gives up on some of these rows, and takes the process along
        equal = equal and same_bytes(edge_cases(), name, None)
    out = np.empty((len(rows), row_bytes(name, rows.shape[1])), np.uint8)
    turns, deadline = [], time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while len(turns) < 3 or time.perf_counter() < deadline:
            turns.append([run(encoder, rows, name, out, importance, pool, threads) for encoder in (encode, ggml)])
    ours, theirs = (statistics.median(turn[i] for turn in turns) / rows.size * 1e9 for i in (0, 1))
    operations = OPERATIONS.get(name, (None, None))[weighted]
    return {
        "type": name,
        "matrix": weighted,
        "hubq_ns": ours,
        "ggml_ns": theirs,
        "ratio": statistics.median(theirs / ours for ours, theirs in turns),
        "target": TARGETS[name][weighted],
        "equal": equal,
        "first_call_s": first_call,
        "of_memory": (4 + TYPES[name].bytes / TYPES[name].block) / ours / limits["gigabytes_a_second"],
        "of_peak": operations / ours / limits["gigaflops"] if operations else None,
    }


@numba.njit(nogil=True, error_model="numpy")
def _multiply_and_add(numbers: np.ndarray, rounds: int) -> None:
    for _ in range(rounds):
        for i in range(len(numbers)):
            x = numbers[i]
            for _ in range(16):
                x = x * np.float32(0.999) + np.float32(0.001)
            numbers[i] = x


def machine_limits(threads: int) -> dict[str, float]:
    """GB/s of a copy (reads and writes) and 10**9 unfused float32 operations a second, the best of several turns."""
    source = [np.ones(1 << 25, np.float32) for _ in range(threads)]
    target = [np.empty_like(array) for array in source]
    numbers = [np.ones(4096, np.float32) for _ in range(threads)]
    _multiply_and_add(numbers[0], 1)
    best = {"gigabytes_a_second": 0.0, "gigaflops": 0.0}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.copyto, target, source))
            copied = 2 * sum(array.nbytes for array in source) / (time.perf_counter() - start) / 1e9
            start = time.perf_counter()
            list(pool.map(_multiply_and_add, numbers, [2000] * threads))
            computed = threads * 2000 * 4096 * 32 / (time.perf_counter() - start) / 1e9
            best = {
                "gigabytes_a_second": max(best["gigabytes_a_second"], copied),
                "gigaflops": max(best["gigaflops"], computed),
            }
    return best


def show(results: list[dict[str, Any]], threads: int, limits: dict[str, float]) -> None:
    table = Table(title=f"ns per weight, {threads} thread{'s' * (threads > 1)}", box=None)
    table.add_column("type")
    table.add_column("matrix")
    for title in ("hubq", "ggml", "ratio", "at least", "bytes", "first call, s", "of memory", "of peak"):
        table.add_column(title, justify="right")
    for r in results:
        speed = [f"{r['hubq_ns']:.2f}", f"{r['ggml_ns']:.2f}", f"{r['ratio']:.2f}", f"{r['target']:g}"]
        rest = ["equal" if r["equal"] else "DIFFER", f"{r['first_call_s']:.2f}", f"{100 * r['of_memory']:.0f} %"]
        peak = f"{100 * r['of_peak']:.0f} %" if r["of_peak"] else "–"
        table.add_row(r["type"], "yes" if r["matrix"] else "", *speed, *rest, peak)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"this machine copies {limits['gigabytes_a_second']:.1f} GB/s and computes {limits['gigaflops']:.1f} GFLOP/s")


def main() -> int:
    parser = argparse.ArgumentParser(description="hubq's GGUF encoders against ggml's")
    parser.add_argument("types", nargs="*", metavar="TYPE", help="storage types (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads for each encoder (default 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each type (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    limits = machine_limits(options.threads)
    ways = [
        (name, weighted)
        for name in map(str.upper, options.types or TYPES)
        for weighted in (False, True)
        if (TYPES[name].weighted if weighted else TYPES[name].encoder)
    ]
    results = [compare(name, weighted, options.threads, options.seconds, limits) for name, weighted in ways]
    if options.json:
        print(json.dumps({"threads": options.threads, "cores": os.cpu_count(), "limits": limits, "types": results}, indent=2))
    else:
        show(results, options.threads, limits)
    return 0 if all(r["equal"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
