"""ONNX levels of a model: size, loss, time to make and time to decode, beside those of onnxruntime's own quantizers.

    python bench/onnx.py MODEL TEXT [--calibration TEXT] [--levels A,B] [--windows N] [--hqq] [--json]

MODEL is a folder in Hub format, TEXT a file to measure on (.txt, .jsonl); with --calibration the levels in blocks are made with
an importance matrix, too. Loss is against the exported graph in float32, in onnxruntime, over the first windows of 512 tokens.
Seconds are of the processor, on all cores; decoding is the median of ten tokens behind 32, in milliseconds of the processor.
RTN is onnxruntime's MatMulNBitsQuantizer in its default mode with the settings of q8 and q4; with --hqq its HQQ is made, too,
which takes minutes. Needs hubq[onnx,genai].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.remove(str(Path(__file__).parent))  # this file has the name of a package

from hubq import calibrate, reference, score, text
from hubq.formats.gguf.arch import family
from hubq.formats.gguf.imatrix import weights
from hubq.formats.onnx import blocks, engine, genai, graph
from hubq.formats.onnx.export import export
from hubq.formats.onnx.levels import LEVELS
from hubq.formats.onnx.quantize import quantize
from hubq.nouns import RepoFile, Source
from hubq.source import read_config

PROMPT, TOKENS = 32, 10


def spent(work: Callable[[], Any]) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def importance(source: Source, windows: text.Windows) -> dict[str, np.ndarray]:
    """Module -> mean square of each of its inputs over a text."""
    from hubq.checkpoint import open_checkpoint

    with open_checkpoint(source.folder, [path.name for path in source.folder.iterdir()]) as checkpoint:
        tensors = family(source.config).tensors(source.config, checkpoint.tensors)
    head = {
        source: "lm_head"
        for tensor in tensors
        if tensor.name in ("token_embd.weight", "output.weight")
        for source in tensor.sources
    }
    with reference.load_model(source.config, stored(source)) as model:
        found = calibrate.collect(model, weights(tensors, head=True), windows.ids)
    return {head.get(name, name).removesuffix(".weight"): one.sums[0] / max(1, one.counts[0]) for name, one in found.items()}


def stored(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    from hubq.checkpoint import open_checkpoint

    with open_checkpoint(source.folder, [path.name for path in source.folder.iterdir()]) as checkpoint:
        for name in checkpoint.tensors:
            yield name, checkpoint.read(name)


# onnxruntime's own quantizers: what each is told, besides blocks of 32
PEERS: dict[str, dict[str, Any]] = {
    "RTN, 8 bits": {"bits": 8, "is_symmetric": True, "accuracy_level": 4},
    "RTN, 4 bits": {"is_symmetric": False, "accuracy_level": 4, "op_types_to_quantize": ("MatMul", "Gather")},
    "HQQ, 4 bits": {"algo_config": "HQQWeightOnlyQuantConfig"},
}


def peer(plain: Path, settings: Mapping[str, Any], path: Path) -> None:
    """A level of onnxruntime's MatMulNBitsQuantizer, which sees a tied head only as a constant of its own."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    model = graph.read(plain)
    graph.untie(model)
    whole = graph.save(model, path.with_suffix(".untied"))[0]
    settings = dict(settings)
    if "algo_config" in settings:
        settings["algo_config"] = getattr(theirs, settings["algo_config"])(block_size=32, bits=4)
    rounded = theirs.MatMulNBitsQuantizer(onnx.load(whole), block_size=32, **settings)
    rounded.process()
    onnx.save(rounded.model.model, path)
    whole.unlink()


def decoding(path: Path) -> float:
    """Milliseconds of the processor for one token."""
    session = engine.open_session(path)
    found, times = engine.step(session, path, np.arange(1, PROMPT + 1)), []
    for place in range(PROMPT, PROMPT + TOKENS):
        start = time.process_time()
        found = engine.step(session, path, np.array([7]), found, place)
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text")
    parser.add_argument("--calibration")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--hqq", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    config = read_config((asked.model / "config.json").read_bytes())
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in sorted(asked.model.iterdir()))
    source = Source(asked.model.name, "", asked.model, config, {}, files)
    windows = text.windows(source, text.TextSpec(asked.text, None, windows=asked.windows, seed=None))
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    known: list[Any] = []  # what the reference says, kept for all levels
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder)
        export(asked.model, [path.name for path in asked.model.iterdir()], "text-generation-with-past", raw, console.print)
        model = graph.read(raw / "model.onnx")
        graph.normalize(model)
        plain = graph.save(model, out / "plain.onnx")[0]
        ways: dict[str, Callable[[Path], Any]] = {
            level: lambda path, level=level: quantize(plain, level, path)
            for level in asked.levels.split(",")
            if level != genai.LEVEL
        }
        if genai.LEVEL in asked.levels.split(","):
            ways[genai.LEVEL] = lambda path: genai.build(source, path)
        if asked.calibration:
            calibration = text.windows(source, text.TextSpec(asked.calibration, None, windows=64))
            console.print(f"{text.shared_runs(windows, calibration)} runs of 64 tokens are in both texts")
            weighed = importance(source, calibration)
            for level in [level for level in ("q8", "q4_mixed", "q4") if level in ways]:
                ways[f"{level} + matrix"] = lambda path, level=level: quantize(plain, level, path, weighed)
        for name, settings in PEERS.items():
            if asked.hqq or not name.startswith("HQQ"):
                ways[name] = lambda path, settings=settings: peer(plain, settings, path)
        for bits in (4, 8):  # kernels are compiled on first use
            blocks.pack(np.ones((1, 32), np.float32), bits)
        for name, make in ways.items():
            (out / str(len(rows))).mkdir()
            path = out / str(len(rows)) / "model.onnx"
            seconds = spent(lambda make=make, path=path: make(path))
            rows.append(measured(name, path, plain, windows, known, seconds))
            console.print(rows[-1])
            path.unlink()
    print(json.dumps(rows, indent=1)) if asked.json else Console().print(table(rows))


def measured(name: str, path: Path, plain: Path, windows: text.Windows, known: list[Any], seconds: float) -> dict[str, Any]:
    size = path.stat().st_size + sum((path.parent / data).stat().st_size for data in graph.data_files(path))
    variants = {("level", "onnxruntime"): lambda: engine.load(path)}
    found = list(score.measure(windows, lambda: engine.load(plain), variants, known=known))[-1]
    values = {key: (found.values[key].value, found.values[key].stderr) for key in ("ppl", "kld", "top1")}
    return {"level": name, "mb": size / 1e6, **values, "seconds": seconds, "decode_ms": decoding(path)}


def table(rows: list[Mapping[str, Any]]) -> Table:
    made = Table(box=None, header_style="bold")
    for column in ("level", "MB", "PPL", "KLD", "top-1 %", "CPU s to make", "CPU ms/token"):
        made.add_column(column, justify="left" if column == "level" else "right")
    for row in rows:
        made.add_row(
            row["level"],
            f"{row['mb']:.1f}",
            f"{row['ppl'][0]:.2f}",
            f"{row['kld'][0]:.4f} ± {row['kld'][1]:.4f}",
            f"{100 * row['top1'][0]:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['decode_ms']:.0f}",
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
