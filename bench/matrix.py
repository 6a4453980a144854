"""All levels of a model: hubq from its checkpoint in one pass, against llama.cpp from a BF16 file level after level.

    python bench/matrix.py [--model FOLDER] [--repeats N] [--threads N] [--levels q4_k_m,...] [--json]

Each side runs in a process of its own, in turn; the ratio is the median over the turns, memory the peak of resident pages
(mapped files included). hubq's time includes reading the checkpoint, hashing and syncing every file to the disk; llama.cpp's
does neither, and the BF16 file that it starts from is there already. Both write to the same disk. Without --model the
135M-parameter model of the demo is used. Needs llama-cpp-python: pip install 'hubq[llama]'.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))


def ours(model: Path, out: Path, levels: list[str], threads: int) -> float:
    """Seconds for every level from the checkpoint."""
    from hubq.checkpoint import open_checkpoint
    from hubq.formats.gguf.write import draw, lay_out, write
    from hubq.source import read_config

    start = time.perf_counter()
    config = read_config((model / "config.json").read_bytes())
    with open_checkpoint(model, [path.name for path in model.iterdir()]) as checkpoint:
        blueprint = draw(model.name, model, config, checkpoint.tensors)
        paths = {level: out / f"{level}.gguf" for level in levels}
        for _ in write(blueprint, lay_out(blueprint, levels), checkpoint, paths, threads=threads):
            pass
    return time.perf_counter() - start


def theirs(bf16: Path, out: Path, levels: list[str], threads: int) -> float:
    """Seconds for every level from the BF16 file."""
    import upstream

    from hubq.formats.gguf.levels import MIXES

    start = time.perf_counter()
    for level in levels:
        upstream.quantize(bf16, out / f"{level}.gguf", MIXES[level].file_type, threads)
    return time.perf_counter() - start


def one(side: str, source: Path, levels: list[str], threads: int, out: Path | None = None) -> dict[str, float]:
    """Seconds and peak memory in MB of one side, run in a process of its own.

    This process must stay small: on Linux a child's peak begins with that of its parent.
    """
    with tempfile.TemporaryDirectory(dir=source.parent) as aside:
        command = [sys.executable, __file__, "--side", side, "--model", str(source), "--out", str(out or aside)]
        command += ["--levels", ",".join(levels), "--threads", str(threads)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    """Print the table, or with --json one document."""
    from hubq.formats.gguf.levels import MIXES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--levels", default=",".join(MIXES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=["hubq", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    levels = given.levels.upper().split(",")
    if given.side:
        seconds = {"hubq": ours, "llama.cpp": theirs}[given.side](given.model, given.out, levels, given.threads)
        print(json.dumps({"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
        return
    with tempfile.TemporaryDirectory() as aside:
        show(compare(given, levels, Path(aside)), given.json)


def compare(given: argparse.Namespace, levels: list[str], aside: Path) -> dict[str, Any]:
    """Runs both sides in turn, after one run of hubq that compiles the encoders and writes the BF16 file."""
    model = given.model
    if model is None:
        subprocess.run([sys.executable, str(TESTS / "demo.py"), str(aside)], stdout=sys.stderr, check=True)
        model = aside / "hub" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    one("hubq", model, ["BF16"], given.threads, aside)
    one("hubq", model, levels, given.threads)
    runs = []
    for _ in range(given.repeats):
        hubq = one("hubq", model, levels, given.threads)
        runs.append((hubq, one("llama.cpp", aside / "BF16.gguf", levels, given.threads)))
    median = {
        side: {key: statistics.median(run[i][key] for run in runs) for key in ("seconds", "memory")}
        for i, side in enumerate(("hubq", "llama.cpp"))
    }
    ratio = statistics.median(llama["seconds"] / hubq["seconds"] for hubq, llama in runs)
    return {"levels": len(levels), "threads": given.threads, "repeats": given.repeats, "ratio": ratio, **median}


def show(result: dict[str, Any], as_json: bool) -> None:
    """The result as JSON or as a table."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table(box=None, title=f"{result['levels']} levels, {result['threads']} threads, median of {result['repeats']}")
    for column in ("", "seconds", "peak memory, MB"):
        table.add_column(column, justify="right" if column else "left")
    for side in ("hubq", "llama.cpp"):
        table.add_row(side, f"{result[side]['seconds']:.1f}", f"{result[side]['memory']:.0f}")
    Console().print(table)
    Console().print(f"hubq is {result['ratio']:.2f} times as fast")


if __name__ == "__main__":
    main()
