"""What workers save: the wall time of a release by a Ray cluster of this machine with 1, 2, ... workers, and by no engine.

    python bench/workers.py MODEL TEXT [--levels L1,L2,...] [--windows N] [--workers 1,2] [--repeats N] [--json]

MODEL is a folder in Hub format, TEXT a .txt or .jsonl file to measure on. Each run is a `hubq publish` in a process and a work
folder of its own, in turn; nothing is timed within it (--no-speed), since neighbours would be heard. Numbers are medians over
the turns, and ratios to the run without an engine: below 1 is faster. Ray's own start, a few seconds, is part of it. The files,
card and record of all runs are compared: they have to be the same.
Needs the extras of the levels, and ray: pip install 'hubq[llama,ray]'.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENGINE = "no engine"


def run(options: argparse.Namespace, engine: list[str]) -> tuple[float, dict[str, str]]:
    """(wall time in seconds, SHA-256 by file of what was published) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        command = [sys.executable, "-m", "hubq", "publish", options.model, "--levels", options.levels, "--to", str(out)]
        command += ["--dataset", options.text, "--windows", str(options.windows), "--no-speed", "--quiet"]
        start = time.perf_counter()
        ended = subprocess.run(
            [*command, "--work-dir", f"{folder}/work", *engine],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if ended.returncode:
            sys.exit(ended.stderr)
        files = [path for path in out.rglob("*") if path.is_file()]
        return seconds, {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Run each in turn, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--levels", default="q8_0,q6_k,q5_k_m,q4_k_m")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines: dict[str, list[str]] = {ENGINE: []}
    for count in options.workers.split(","):
        engines[f"{count} worker{'s' * (count != '1')}"] = ["--engine", "ray", "--jobs", count]
    taken: dict[str, list[float]] = {name: [] for name in engines}
    first: dict[str, str] = {}
    same = True
    for _ in range(options.repeats):
        for name, arguments in engines.items():
            seconds, files = run(options, arguments)
            taken[name].append(seconds)
            first = first or files
            same &= files == first
    medians = {name: statistics.median(times) for name, times in taken.items()}
    found = {name: {"seconds": value, "ratio": value / medians[ENGINE]} for name, value in medians.items()}
    if options.json:
        print(json.dumps({"runs": found, "same": same, "cores": os.cpu_count()}))
    else:
        for name, row in found.items():
            print(f"{name:12} {row['seconds']:8.1f} s   {row['ratio']:5.2f}")
        print("the same files" if same else "DIFFERENT FILES")
    sys.exit(not same)


if __name__ == "__main__":
    main()
