"""What a release's numbers allow to say of its files, each statement with an error rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

from hubq.metrics import METRICS
from hubq.metrics.inference import holm, p_value
from hubq.nouns import Artifact, Measurement, Release

ENGINES = ("llama.cpp", "onnxruntime", "weights")  # what users run comes first
# by which metric files are held against the loss that is allowed, and by which against each other
LOSS = ("ln_ppl_ratio", "label_kld", "cosine")
STRAY = ("kld", "label_kld", "score_rms", "cosine")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The smallest file of which it is shown that its `metric` keeps within `limit`, of `files` that were measured; `file` is
    None where it is shown of none."""

    file: Artifact | None
    metric: str
    limit: float
    files: int


def engines(release: Release) -> list[str]:
    """The engines that measured files, the one that users run first."""
    found = {row.engine for row in release.measurements if row.of_file}
    return [engine for engine in ENGINES if engine in found] + sorted(found - set(ENGINES))


def recommended(release: Release) -> Recommendation | None:
    """The file that somebody should take who wants a small one; None where nothing was measured that says so.

    For each file the hypothesis is tested that it loses more than `release.within`: the chance that any of those shown to be
    within it is not is at most 5 % (Holm's procedure over all files).
    """
    rows = measured(release)
    metric = next((name for name in LOSS if rows and all(name in row.per_window for row, _ in rows)), None)
    if metric is None:
        return None
    limit, sign = _limit(metric, release.within), -1 if METRICS[metric].better == "higher" else 1
    tests = {}
    for row, file in rows:
        means = np.array(row.per_window[metric])
        tests[file.level] = p_value(means, limit, drawn_from(release)) if sign * (means.mean() - limit) < 0 else 1.0
    inside = holm(tests)
    smallest = min((file for _, file in rows if file.level in inside), key=lambda file: file.size, default=None)
    return Recommendation(smallest, metric, limit, len(rows))


def _limit(metric: str, within: float) -> float:
    """The largest loss in a metric's own scale: a share of the PPL ratio or of a cosine, or nats."""
    return {"ln_ppl_ratio": math.log1p(within), "cosine": 1 - within}.get(metric, within)


def alike(release: Release) -> list[tuple[str, str]]:
    """The pairs of levels of which the text does not tell which one is nearer to the source: there is no order among them.

    Every other pair differs; the chance that any of those does not is at most 5 % (Holm's procedure over all pairs).
    """
    metric, rows = stray(release)
    tests = {
        (file.level, second.level): _p_value(release, metric, one, other)
        for (one, file), (other, second) in combinations(rows, 2)
    }
    different = holm(tests)
    return [pair for pair in tests if pair not in different]


def _p_value(release: Release, metric: str, one: Measurement, other: Measurement) -> float:
    """How probable the difference of two measurements is where there is none: by the windows that both have, where they tell of
    them, else by their errors as if these were independent, which says less."""
    if metric in one.per_window and metric in other.per_window:
        count = min(len(one.per_window[metric]), len(other.per_window[metric]))
        difference = np.subtract(one.per_window[metric][:count], other.per_window[metric][:count])
        return p_value(difference, 0.0, drawn_from(release))
    first, second = one.values[metric], other.values[metric]
    error = math.hypot(*(found.stderr if math.isfinite(found.stderr) else 0.0 for found in (first, second)))
    apart = abs(first.value - second.value)
    return 2 * NormalDist().cdf(-apart / error) if error else float(apart == 0)


def pareto(release: Release) -> set[str]:
    """The levels that no smaller file beats: it is nearer to the source than every file of its size or less, or not told apart
    from it."""
    (metric, rows), same = stray(release), {frozenset(pair) for pair in alike(release)}
    if not rows:
        return set()
    sign = -1 if METRICS[metric].better == "higher" else 1

    def beaten(row: Measurement, file: Artifact) -> bool:
        return any(
            other.size <= file.size
            and sign * (rival.values[metric].value - row.values[metric].value) < 0
            and frozenset((file.level, other.level)) not in same
            for rival, other in rows
        )

    return {file.level for row, file in rows if not beaten(row, file)}


def stray(release: Release) -> tuple[str, list[tuple[Measurement, Artifact]]]:
    """The metric that tells best how far files stray from their source, and the files that were measured by it; "" if none."""
    rows = measured(release)
    for metric in STRAY:
        if found := [pair for pair in rows if metric in pair[0].values and math.isfinite(pair[0].values[metric].value)]:
            return metric, found
    return "", []


def measured(release: Release) -> list[tuple[Measurement, Artifact]]:
    """The measured files in the engine that users run, in the order of the card."""
    first = next(iter(engines(release)), None)
    rows = {row.level: row for row in release.measurements if row.engine == first}
    return [(rows[file.level], file) for file in release.artifacts if file.level in rows]


def drawn_from(release: Release) -> int | None:
    """How many windows there are, where measuring stopped as soon as it was precise; None where their number was fixed."""
    text = release.evalset
    return text.available if text and text.precision else None
