"""All levels of a model: hubq from its checkpoint in one pass, against llama.cpp's converter and a llama-quantize for each.

    python bench/build.py [--model FOLDER] [--layers N] [--convert DIR] [--repeats N] [--threads N] [--levels A,B] [--json]

Without --model, the model is a random Llama of 0.5 billion weights whose rows 256 divides (--layers 27; with 54 it is twice as
deep). DIR is a checkout of llama.cpp with convert_hf_to_gguf.py; without one llama.cpp starts from a BF16 file that is there
already, and its time lacks the conversion. Each side runs in a process of its own, in turn; the ratio is the median over the
turns, memory the peak of resident pages, mapped files included. hubq's time includes hashing and syncing every file to the
disk; llama.cpp does neither. Both write to the same disk. Needs llama-cpp-python: pip install 'hubq[llama]'.
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

TEN = "Q2_K,Q3_K_M,Q4_0,Q4_K_S,Q4_K_M,Q5_0,Q5_K_S,Q5_K_M,Q6_K,Q8_0"


def ours(model: Path, out: Path, levels: list[str], threads: int) -> float:
    """Seconds for every level from the checkpoint."""
    from hubq.checkpoint import open_checkpoint
    from hubq.formats.gguf.blueprint import of_checkpoint
    from hubq.formats.gguf.layout import lay_out
    from hubq.formats.gguf.write import write
    from hubq.source import read_config

    start = time.perf_counter()
    config = read_config((model / "config.json").read_bytes())
    with open_checkpoint(model, [path.name for path in model.iterdir()]) as checkpoint:
        blueprint = of_checkpoint(model.name, model, config, checkpoint.tensors)
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


def random_llama(folder: Path, layers: int) -> Path:
    """Write the random model, with the tokenizer of the demo's model, in a process of its own."""
    code = (
        "import sys, json, shutil, pathlib, demo, tiny\n"
        "folder, layers = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "known = folder.parent / 'demo'\n"
        "demo.smollm2(known)\n"
        "tiny.llama(folder, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16,\n"
        "           num_key_value_heads=4, vocab_size=49152, tie_word_embeddings=True)\n"
        "for name in ('tokenizer.json', 'tokenizer_config.json'): shutil.copy(known / name, folder)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(layers)], cwd=TESTS, stdout=sys.stderr, check=True)
    return folder


def convert(script: Path, model: Path, out: Path) -> float:
    """Seconds that llama.cpp's converter takes for a BF16 file."""
    start = time.perf_counter()
    command = [sys.executable, str(script), str(model), "--outfile", str(out), "--outtype", "bf16"]
    subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, check=True)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--convert", type=Path, metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--levels", default=TEN)
    parser.add_argument("--only-hubq", action="store_true", help="measure hubq alone")
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
    model = given.model or random_llama(aside / "random-llama", given.layers)
    one("hubq", model, ["BF16"], given.threads, aside)
    one("hubq", model, levels, given.threads)
    runs: list[dict[str, dict[str, float]]] = []
    for _ in range(given.repeats):
        run = {"hubq": one("hubq", model, levels, given.threads)}
        if not given.only_hubq:
            run["llama.cpp"] = one("llama.cpp", aside / "BF16.gguf", levels, given.threads)
            run["llama.cpp"]["convert"] = 0.0
            if given.convert:
                run["llama.cpp"]["convert"] = convert(given.convert / "convert_hf_to_gguf.py", model, aside / "converted.gguf")
                (aside / "converted.gguf").unlink()
        runs.append(run)
    median = {side: {key: statistics.median(run[side][key] for run in runs) for key in runs[0][side]} for side in runs[0]}
    facts = {
        "levels": len(levels),
        "threads": given.threads,
        "repeats": given.repeats,
        "converted": bool(given.convert),
        **median,
    }
    if not given.only_hubq:
        facts["ratio"] = statistics.median(
            (run["llama.cpp"]["seconds"] + run["llama.cpp"]["convert"]) / run["hubq"]["seconds"] for run in runs
        )
    return facts


def show(result: dict[str, Any], as_json: bool) -> None:
    """The result as JSON or as a table."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table(box=None, title=f"{result['levels']} levels, {result['threads']} threads, median of {result['repeats']}")
    for column in ("", "seconds", "of it converting", "peak memory, MB"):
        table.add_column(column, justify="right" if column else "left")
    for side in ("hubq", "llama.cpp"):
        if side in result:
            found = result[side]
            seconds, before = found["seconds"] + found.get("convert", 0), found.get("convert", 0)
            table.add_row(side, f"{seconds:.1f}", f"{before:.1f}" if before else "–", f"{found['memory']:.0f}")
    Console().print(table)
    if "ratio" in result:
        without = "" if result["converted"] else ", conversion not counted"
        Console().print(f"hubq is {result['ratio']:.2f} times as fast{without}")


if __name__ == "__main__":
    main()
