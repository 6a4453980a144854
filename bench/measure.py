"""What measuring costs: hubq's scoring against llama-perplexity --kl-divergence, on the same files, text and threads.

    python bench/measure.py TEXT BASE FILE... [--chunks N] [--repeats N] [--threads N] [--json]
        [--precision P [--source FOLDER] [--whole]]

TEXT is a .txt file, BASE the unquantized GGUF, each FILE a smaller one. The first table is of the first FILE and the first N
chunks of 512 tokens: both sides run BASE and then FILE in llama.cpp, loading included, as `hubq publish` scores a GGUF; what
the model itself takes of that is beside it, of llama-perplexity by its first pass, which is of four chunks. The second is the
wall time until the PPL ratio of each FILE is known to P (0.005: half a percent), the reference's time included, against
llama-perplexity on the whole text; its time there is that of the N chunks times as many as there are, unless --whole lets it
run. With --source, a folder in Hub format, hubq's reference is then in transformers, as for a model of the Hub. Each side runs
in a process of its own, in turn; numbers are medians over the turns.
Needs a compiler for llama-perplexity, and llama-cpp-python: pip install 'hubq[llama]'.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LENGTH = 512
PASS = 4  # windows that llama-perplexity runs at once
Facts = dict[str, float]


# --- one side, in a process of its own ---


class Clock:
    """Opens a model and notes how long it was open, and how much of that it ran."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Any]]) -> None:
        self.opened, self.open, self.running = opened, 0.0, 0.0

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        start = time.perf_counter()
        with self.opened() as model:
            yield lambda *given: self._timed(model, given)
        self.open += time.perf_counter() - start

    def _timed(self, model: Any, given: tuple[Any, ...]) -> Any:
        start = time.perf_counter()
        try:
            return model(*given)
        finally:
            self.running += time.perf_counter() - start


def ours(given: argparse.Namespace) -> Facts:
    """hubq on the first chunks, or until the PPL ratio is precise."""
    from hubq import score
    from hubq.formats.gguf import engine

    source, windows = scored(given)
    artifact = made_of(given.files[0])
    reference = Clock(opener(source))
    variant = Clock(lambda: engine.load(artifact, source, engine.RUNTIME))
    found = list(score.measure(windows, reference, {("file", engine.RUNTIME): variant}))
    ratio = next(row for row in found if row.level == "file").values["ppl_ratio"]
    return {
        "base": reference.open,
        "base model": reference.running,
        "file": variant.open,
        "file model": variant.running,
        "windows": ratio.count / (LENGTH - 1 - LENGTH // 2),
        "available": windows.evalset.available,
        "ratio": ratio.value,
    }


def scored(given: argparse.Namespace) -> tuple[Any, Any]:
    """The source and the windows to score: the first chunks, or with a precision as many of a draw from all as it takes."""
    from hubq import text
    from hubq.formats.gguf import engine
    from hubq.nouns import RepoFile, Source
    from hubq.source import read_config

    spec = {"windows": given.chunks, "seed": None}
    if given.precision:
        spec = {"windows": None, "precision": given.precision}
    asked = text.TextSpec(str(given.text), None, length=LENGTH, **spec)
    if given.source is None:
        source = Source(given.base.name, "", given.base.parent, {}, {}, (), gguf=given.base)
        return source, text.windows(source, asked, engine.tokenize)
    config = read_config((given.source / "config.json").read_bytes())
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in sorted(given.source.iterdir()))
    source = Source(given.source.name, "", given.source, config, {}, files)
    return source, text.windows(source, asked)


def opener(source: Any) -> Callable[[], AbstractContextManager[Any]]:
    """What opens the reference, as `hubq publish` does."""
    from hubq import reference
    from hubq.formats.gguf import engine

    if source.gguf:
        return lambda: engine.load_source(source)
    return lambda: reference.load(source.config, reference.source_weights(source))


def made_of(path: Path) -> Any:
    from hubq.nouns import Artifact

    return Artifact("gguf:file", path, path.stat().st_size, "", 0, {}, 0, "")


def theirs(given: argparse.Namespace) -> Facts:
    """llama-perplexity on BASE, which stores its logits, and on FILE against them."""
    chunks = -1 if given.whole else given.chunks
    facts: Facts = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        asked = ["-t", given.threads, "--kl-divergence-base", Path(folder, "logits")]
        for name, model, options in (
            ("base", given.base, ["-f", given.text, "-c", LENGTH, "--chunks", chunks]),
            ("file", given.files[0], ["-c", LENGTH, "--kl-divergence"]),
        ):
            import llama_perplexity

            start = time.perf_counter()
            log = llama_perplexity.run(model, *options, *asked)
            facts[name] = time.perf_counter() - start
            facts["windows"] = float(re.findall(r"over (\d+) chunks", log)[0])
            facts[f"{name} model"] = float(re.findall(r"([\d.]+) seconds per pass", log)[0]) * -(-facts["windows"] // PASS)
    return facts


def one(side: str, given: argparse.Namespace, file: Path, precision: float | None = None) -> Facts:
    """The facts of one side and its peak memory in MB, run in a process of its own on as many cores as asked."""
    command = [sys.executable, __file__, str(given.text), str(given.base), str(file), "--side", side]
    command += ["--chunks", str(given.chunks), "--threads", str(given.threads)]
    command += ["--whole"] * given.whole + (["--precision", str(precision)] if precision else [])
    command += ["--source", str(given.source)] if given.source and precision else []
    command += ["--scratch", str(given.scratch)] if given.scratch else []
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run_side(given: argparse.Namespace) -> Facts:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    facts = {"hubq": ours, "llama-perplexity": theirs}[given.side](given)
    who = resource.RUSAGE_SELF if given.side == "hubq" else resource.RUSAGE_CHILDREN
    return facts | {"memory": resource.getrusage(who).ru_maxrss / 1e3}


# --- all of it ---


def main() -> None:
    """Print the tables, or with --json one document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", type=float)
    parser.add_argument("--whole", action="store_true", help="let llama-perplexity score the whole text")
    parser.add_argument(
        "--scratch", type=Path, help="where llama-perplexity stores logits: 100 kB for each token that is scored"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=["hubq", "llama-perplexity"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run_side(given)))
        return
    import llama_perplexity

    llama_perplexity.binary()
    sides = ("hubq", "llama-perplexity")
    runs = [{side: one(side, given, given.files[0]) for side in sides} for _ in range(given.repeats)]
    result: dict[str, Any] = {"file": given.files[0].name, "threads": given.threads, "repeats": given.repeats}
    result |= {side: medians([run[side] for run in runs]) for side in sides}
    result["ratio"] = statistics.median(both(run["llama-perplexity"]) / both(run["hubq"]) for run in runs)
    if given.precision:
        result["precise"] = {
            file.name: medians([one("hubq", given, file, given.precision) for _ in range(given.repeats)])
            for file in given.files
        }
    print(json.dumps(result, indent=2) if given.json else shown(result, given.precision))


def medians(runs: list[Facts]) -> Facts:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def both(facts: Facts) -> float:
    """Seconds per window of both models."""
    return (facts["base"] + facts["file"]) / facts["windows"]


def shown(result: dict[str, Any], precision: float | None) -> str:
    """Markdown."""
    ours, theirs = result["hubq"], result["llama-perplexity"]
    lines = [f"{result['file']}, {result['threads']} threads, median of {result['repeats']}", ""]
    lines += ["| | windows | seconds | of it the model | tokens/s | peak memory, MB |", "|---|--:|--:|--:|--:|--:|"]
    for side, facts in (("hubq", ours), ("llama-perplexity", theirs)):
        for part in ("base", "file"):
            pace = facts["windows"] * LENGTH / facts[part]
            cells = [f"{facts['windows']:.0f}", f"{facts[part]:.1f}", f"{facts[f'{part} model']:.1f}", f"{pace:,.0f}"]
            lines.append(f"| {side}, {part} | {' | '.join(cells)} | {facts['memory']:,.0f} |")
    lines += ["", f"Of both models hubq scores {result['ratio']:.2f} times as many tokens per second.", ""]
    for name, facts in result.get("precise", {}).items():
        if name == next(iter(result["precise"])):
            lines += [f"| PPL ratio to {100 * precision:g} % | windows | of | hubq, s | llama-perplexity, all, s | times |"]
            lines += ["|---|--:|--:|--:|--:|--:|"]
        seconds, whole = facts["base"] + facts["file"], both(theirs) * facts["available"]
        cells = [
            f"{facts['windows']:.0f}",
            f"{facts['available']:.0f}",
            f"{seconds:.1f}",
            f"{whole:.1f}",
            f"{whole / seconds:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
