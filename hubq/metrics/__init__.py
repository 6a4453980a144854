"""What is measured: pure functions from a table of scores to an estimate with its standard error.

A metric is a function in a file here and a row of METRICS, which says of which table: each kind of task has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hubq.metrics.bits_per_byte import bits_per_byte
from hubq.metrics.cosine import cosine, cosine_min, cosines
from hubq.metrics.delta_p import delta_p, delta_p_rms
from hubq.metrics.flips import flips
from hubq.metrics.kl import kld, kld_median, kld_p99, kld_p999
from hubq.metrics.labels import label_kld, same_label
from hubq.metrics.neighbours import neighbours
from hubq.metrics.perplexity import ln_ppl_ratio, ppl, ppl_ratio
from hubq.metrics.ranking import ranking, score_rms
from hubq.metrics.similarity import similarity
from hubq.metrics.table import Labels, Ranked, Scores, Vectors, itself
from hubq.metrics.top1 import top1
from hubq.nouns import Estimate, Measurement

__all__ = [
    "METRICS",
    "METRICS_VERSION",
    "Labels",
    "Metric",
    "Ranked",
    "Scores",
    "Table",
    "Vectors",
    "estimates",
    "headline",
    "itself",
    "per_window",
]

Table = Scores | Vectors | Labels | Ranked

METRICS_VERSION = 2  # part of the key of every measurement: raise it when a number changes


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure of the table `of`: `better` says which way is good (zero: closer to it); `paired` ones compare a variant with
    the reference. `exact` is what the reference has against itself, of those that stand in the first table (None: it does
    not); `short` is its title where there is little room. `each` gives the mean in every window or text, float64 [W], of those
    metrics by which files are compared.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "zero"]
    paired: bool
    estimate: Callable[[Any], Estimate]
    of: type = Scores
    exact: float | None = None
    short: str = ""
    each: Callable[[Any], np.ndarray] | None = None

    @property
    def factor(self) -> int:
        """What a value is multiplied with to be shown: fractions are shown in %."""
        return 100 if self.unit == "fraction" else 1


def _differences(scores: Scores) -> np.ndarray:
    return (scores.nll - scores.nll_ref).mean(axis=1)


def _divergences(scores: Scores) -> np.ndarray:
    return scores.kld.mean(axis=1)


def _by_label(scores: Labels) -> np.ndarray:
    return np.array([row.mean() for row in scores.kld])


_ROWS = (
    Metric("ppl", "PPL", "", "lower", False, ppl),
    Metric("ln_ppl_ratio", "ln PPL ratio", "nats/token", "zero", True, ln_ppl_ratio, each=_differences),
    Metric("ppl_ratio", "PPL ratio", "", "lower", True, ppl_ratio, exact=1),
    Metric("bits_per_byte", "Bits per byte", "bits/byte", "lower", False, bits_per_byte),
    Metric("kld", "Mean KLD", "nats/token", "lower", True, kld, exact=0, short="KLD", each=_divergences),
    Metric("kld_median", "Median KLD", "nats/token", "lower", True, kld_median),
    Metric("kld_p99", "99 % KLD", "nats/token", "lower", True, kld_p99),
    Metric("kld_p999", "99.9 % KLD", "nats/token", "lower", True, kld_p999),
    Metric("top1", "Same top token", "fraction", "higher", True, top1, exact=1, short="top-1 %"),
    Metric("flips", "Flips", "fraction", "lower", True, flips),
    Metric("delta_p", "Mean Δp", "fraction", "zero", True, delta_p),
    Metric("delta_p_rms", "RMS Δp", "fraction", "lower", True, delta_p_rms),
    Metric("cosine", "Mean cosine", "", "higher", True, cosine, Vectors, exact=1, short="cosine", each=cosines),
    Metric("cosine_min", "Least cosine", "", "higher", True, cosine_min, Vectors),
    Metric("similarity", "Similarity rank correlation", "", "higher", True, similarity, Vectors, exact=1, short="rank corr."),
    Metric("neighbours", "Same top-10 neighbours", "fraction", "higher", True, neighbours, Vectors, exact=1, short="top-10 %"),
    Metric("label_kld", "Mean label KLD", "nats", "lower", True, label_kld, Labels, exact=0, short="KLD", each=_by_label),
    Metric("same_label", "Same label", "fraction", "higher", True, same_label, Labels, exact=1, short="same label %"),
    Metric("ranking", "Rank correlation", "", "higher", True, ranking, Ranked, exact=1, short="rank corr."),
    Metric("score_rms", "Difference of scores", "standard deviations", "lower", True, score_rms, Ranked, exact=0),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}  # in the card's order


def headline(rows: Iterable[Measurement]) -> list[Metric]:
    """The metrics of the first table that measurements have, in order."""
    names = {name for row in rows for name in row.values}
    return [metric for metric in _ROWS if metric.exact is not None and metric.name in names]


def estimates(scores: Table, paired: bool = True) -> dict[str, Estimate]:
    """Every metric of one table; without the paired ones for the reference itself."""
    found = [metric for metric in METRICS.values() if isinstance(scores, metric.of) and (paired or not metric.paired)]
    return {metric.name: metric.estimate(scores) for metric in found}


def per_window(scores: Table) -> dict[str, tuple[float, ...]]:
    """The means in each window or text of the metrics by which files are compared, with seven digits."""
    found = [metric for metric in METRICS.values() if isinstance(scores, metric.of) and metric.each]
    return {metric.name: tuple(float(f"{mean:.7g}") for mean in metric.each(scores)) for metric in found if metric.each}
