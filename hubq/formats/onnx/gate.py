"""The gate of ONNX files: before one is pushed, onnxruntime must run it as transformers runs its source.

Each check says "passed", "failed" or "not checked", and why; a failed one stops the push.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hubq.formats.checks import RULES, Bounds, Differs, NotChecked, kind, outcome, outputs
from hubq.formats.onnx import engine, genai, graph
from hubq.formats.onnx.levels import LEVELS
from hubq.nouns import Artifact, Check, Measurement, Source

# well above what levels in blocks lose, and below what 8-bit activations do to a decoder
BOUNDS: Bounds = {
    "tokens": {16: (0.01, 0.9), 8: (0.05, 0.85), 0: (1.0, 0.3)},
    "vectors": {16: (0.999,), 8: (0.95,), 0: (0.8,)},
    "labels": {16: (0.01, 0.9), 8: (0.1, 0.75), 0: (1.0, 0.3)},
    "scores": {16: (0.1,), 8: (0.5,), 0: (1.5,)},
}
TOLERANCE = 0.1  # of logits with the cache from those without, in standard deviations: 8-bit activations differ by hundredths
CACHED = 32  # ids that generation with the cache is tried on


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """Hold each file against its source: whether it runs, its inputs and outputs, its cache, what it computes.

    `text` is that of the evaluation, or empty; `measurements` those in onnxruntime, and `unmeasured` says why there are none.
    """
    rows = {row.level: row for row in measurements if row.engine == "onnxruntime"}
    sample = "evaluation" if text else "probe"
    checks = []
    for file in artifacts:
        found = {
            "runs": outcome(_runs, file),
            "inputs and outputs": outcome(_contract, file),
            "cache": outcome(_cache, file),
            RULES[kind(rows.get(file.level))][0]: outcome(_outputs, file, rows.get(file.level), sample, unmeasured),
        }
        checks += [Check(file.level, name, *ended) for name, ended in found.items()]
    return tuple(checks)


def _runs(file: Artifact) -> str:
    """It loads and runs in a process of its own, and gives finite numbers."""
    if file.folder == genai.FOLDER:
        genai.load_test(file.path)
        return "onnxruntime and onnxruntime-genai load it in fresh processes, run it and generate the same"
    engine.load_test(file.path)
    return "onnxruntime loads it in a fresh process and runs it"


def _contract(file: Artifact) -> str:
    """Its inputs and outputs are Optimum's."""
    found = graph.contract(graph.read(file.path))
    graph.check(found)
    return f"{len(found.inputs)} inputs and {len(found.outputs)} outputs under Optimum's names"


def _cache(file: Artifact) -> str:
    """Generation with the cache says what it says without."""
    if not graph.contract(graph.read(file.path)).decoder:
        raise NotChecked("an encoder has none")
    difference = engine.cache_difference(file.path, np.arange(1, CACHED + 1))
    if not difference <= TOLERANCE:
        raise Differs(f"logits with the cache differ from those without by {difference:.2g} of their standard deviation")
    return f"logits with the cache are those without it, within {TOLERANCE} of their standard deviation"


def _outputs(file: Artifact, row: Measurement | None, sample: str, unmeasured: str) -> str:
    """What the file computes stays within the bounds of the level's bits."""
    if row is None:
        raise NotChecked(unmeasured or "no file was scored")
    return outputs(row, LEVELS[file.level.partition(":")[2]].bits, BOUNDS, sample)
