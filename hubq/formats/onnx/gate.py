"""The gate of ONNX files: before one is pushed, onnxruntime must run it as transformers runs its source.

Each check says "passed", "failed" or "not checked", and why; a failed one stops the push.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hubq.errors import HubqError
from hubq.formats.onnx import engine, graph
from hubq.formats.onnx.levels import LEVELS
from hubq.nouns import Artifact, Check, Measurement, Source

# least bits per weight -> the most median KL divergence from the source (nats per token), and the least share of same top
# tokens: well above what levels in blocks lose, and below what 8-bit activations do to a decoder
BOUNDS = {16: (0.01, 0.9), 8: (0.05, 0.85), 0: (1.0, 0.3)}
TOLERANCE = 0.1  # of logits with the cache from those without, in standard deviations: 8-bit activations differ by hundredths
CACHED = 32  # ids that generation with the cache is tried on


class _Differs(Exception):
    """A check failed; the message says what differs."""


class _NotChecked(Exception):
    """A check was not made; the message says why."""


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """Hold each file against its source: whether it runs, its inputs and outputs, its cache, its logits.

    `text` is that of the evaluation, or empty; `measurements` those in onnxruntime, and `unmeasured` says why there are none.
    """
    rows = {row.level: row for row in measurements if row.engine == "onnxruntime"}
    sample = "evaluation" if text else "probe"
    return tuple(
        _outcome(artifact.level, name, made)
        for artifact in artifacts
        for name, made in {
            "runs": lambda file=artifact: _runs(file),
            "inputs and outputs": lambda file=artifact: _contract(file),
            "cache": lambda file=artifact: _cache(file),
            "logits": lambda file=artifact: _logits(file, rows.get(file.level), sample, unmeasured),
        }.items()
    )


def _outcome(level: str, name: str, made: Callable[[], str]) -> Check:
    try:
        return Check(level, name, "passed", made())
    except (_Differs, HubqError) as problem:
        return Check(level, name, "failed", problem.message if isinstance(problem, HubqError) else str(problem))
    except _NotChecked as reason:
        return Check(level, name, "not checked", str(reason))


def _runs(file: Artifact) -> str:
    """It loads and runs in a process of its own, and gives finite numbers."""
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
        raise _NotChecked("an encoder has none")
    difference = engine.cache_difference(file.path, np.arange(1, CACHED + 1))
    if not difference <= TOLERANCE:
        raise _Differs(f"logits with the cache differ from those without by {difference:.2g} of their standard deviation")
    return f"logits with the cache are those without it, within {TOLERANCE} of their standard deviation"


def _logits(file: Artifact, row: Measurement | None, sample: str, unmeasured: str) -> str:
    """The next-token distributions stay within the bounds of the level's bits."""
    if row is None:
        raise _NotChecked(unmeasured or "no file was scored")
    bits = LEVELS[file.level.partition(":")[2]].bits
    most, least = next(bounds for fewest, bounds in BOUNDS.items() if bits >= fewest)
    kld, top1 = row.values["kld_median"].value, row.values["top1"].value
    bound = f"at most {most} nats, and at least {100 * least:g} % of the top tokens the same"
    if not (kld <= most and top1 >= least):
        raise _Differs(f"median KL divergence {kld:.3g} nats, {100 * top1:.1f} % of the top tokens the same; wanted is {bound}")
    return f"median KL divergence from the source {bound}, on the {sample} text"
