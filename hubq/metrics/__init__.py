"""What is measured: pure functions from the table of per-token scores to an estimate with its standard error.

A metric is a function in a file here and a row of METRICS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hubq.metrics.bits_per_byte import bits_per_byte
from hubq.metrics.delta_p import delta_p
from hubq.metrics.kl import kld, kld_median, kld_p99
from hubq.metrics.perplexity import ln_ppl_ratio, ppl, ppl_ratio
from hubq.metrics.table import Scores, itself
from hubq.metrics.top1 import top1
from hubq.nouns import Estimate

__all__ = ["METRICS", "METRICS_VERSION", "Metric", "Scores", "estimates", "itself"]

METRICS_VERSION = 1  # part of the key of every measurement: raise it when a number changes


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure: `better` says which way is good (zero: closer to it); `paired` ones compare a variant with the reference."""

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "zero"]
    paired: bool
    estimate: Callable[[Scores], Estimate]


_ROWS = (
    Metric("ppl", "PPL", "", "lower", False, ppl),
    Metric("ln_ppl_ratio", "ln PPL ratio", "nats/token", "zero", True, ln_ppl_ratio),
    Metric("ppl_ratio", "PPL ratio", "", "lower", True, ppl_ratio),
    Metric("kld", "Mean KLD", "nats/token", "lower", True, kld),
    Metric("kld_median", "Median KLD", "nats/token", "lower", True, kld_median),
    Metric("kld_p99", "99 % KLD", "nats/token", "lower", True, kld_p99),
    Metric("top1", "Same top token", "fraction", "higher", True, top1),
    Metric("bits_per_byte", "Bits per byte", "bits/byte", "lower", False, bits_per_byte),
    Metric("delta_p", "Mean Δp", "fraction", "zero", True, delta_p),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}  # in the card's order


def estimates(scores: Scores, paired: bool = True) -> dict[str, Estimate]:
    """Every metric of one table; without the paired ones for the reference itself."""
    return {name: metric.estimate(scores) for name, metric in METRICS.items() if paired or not metric.paired}
