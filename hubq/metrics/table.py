"""The tables that metrics read, one for each kind of task, and the statistics that they share.

Tokens of one window share their text, so they are not independent: every standard error here is clustered by window
(Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hubq.nouns import Estimate

RESAMPLES = 200


@dataclass(frozen=True)
class Scores:
    """What was seen at each of S scored tokens in each of W windows.

    nll_ref, nll        [W, S] float64  minus log-probability of the right token, in nats: the reference's, the variant's
    kld                 [W, S] float64  KL(reference || variant) of the next-token distribution, in nats
    same_top            [W, S] bool     the reference's most probable token is the variant's, too
    right_ref, right    [W, S] bool     the most probable token is the right one: in the reference, in the variant
    bytes               [W]    int64    UTF-8 bytes of the text of the scored tokens
    """

    nll_ref: np.ndarray
    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray
    right_ref: np.ndarray
    right: np.ndarray
    bytes: np.ndarray


def itself(nll: np.ndarray, size: np.ndarray) -> Scores:
    """The reference held against itself; `nll` [W, S], `size` [W] in bytes."""
    same = np.ones_like(nll, bool)
    return Scores(nll, nll, np.zeros_like(nll), same, same, same, size)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """The ratio of two sums over windows, and its standard error clustered by window. Both [W], W at least 2.

    The error is sqrt(W / (W - 1) * sum((n_w - r * d_w)^2)) / sum(d_w).
    """
    count, total = len(numerators), float(np.sum(denominators))
    value = float(np.sum(numerators)) / total
    residuals = numerators - value * denominators
    return value, float(np.sqrt(count / (count - 1) * np.sum(residuals**2)) / total)


def mean(table: np.ndarray) -> Estimate:
    """The mean of a table [W, S] over all tokens."""
    sums = table.sum(axis=1, dtype=np.float64)
    value, stderr = ratio(sums, np.full(len(sums), float(table.shape[1])))
    return Estimate(value, stderr, table.size)


def quantile(table: np.ndarray, q: float) -> Estimate:
    """A quantile of a table [W, S] over all tokens, interpolated linearly; its error by a seeded bootstrap over windows."""
    count = len(table)
    rng = np.random.Generator(np.random.PCG64(0))
    resampled = [np.quantile(table[rng.integers(count, size=count)], q) for _ in range(RESAMPLES)]
    stderr = float(np.std(resampled, ddof=1) * np.sqrt(count / (count - 1)))
    return Estimate(float(np.quantile(table, q)), stderr, table.size)


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate, its error by the delta method."""
    value = float(np.exp(estimate.value))
    return Estimate(value, value * estimate.stderr, estimate.count)


def root(estimate: Estimate) -> Estimate:
    """The square root of an estimate, its error by the delta method."""
    value = float(np.sqrt(estimate.value))
    return Estimate(value, estimate.stderr / (2 * value) if value else 0.0, estimate.count)


# --- of models that predict no next tokens ---

GROUPS = 32  # of texts, of which the jackknife leaves out one at a time


@dataclass(frozen=True)
class Vectors:
    """One vector of each of N texts: `ref` the reference's, `found` the variant's, float64 [N, D], of length 1."""

    ref: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Labels:
    """What was seen at the scored places of each of N texts, of which text n has P_n.

    kld     N times [P_n] float64  KL(reference || variant) of the distribution over labels, in nats
    same    N times [P_n] bool     the reference's most probable label is the variant's, too
    """

    kld: Sequence[np.ndarray]
    same: Sequence[np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """One score of each of N pairs of texts: `ref` the reference's, `found` the variant's, float64 [N]."""

    ref: np.ndarray
    found: np.ndarray


def by_text(rows: Sequence[np.ndarray]) -> Estimate:
    """The mean over all places of N texts, its error clustered by text."""
    value, stderr = ratio(np.array([row.sum(dtype=np.float64) for row in rows]), np.array([float(len(row)) for row in rows]))
    return Estimate(value, stderr, sum(map(len, rows)))


def bootstrap(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    """A statistic of the texts whose indices it is given, its error by a seeded bootstrap over `count` texts."""
    rng = np.random.Generator(np.random.PCG64(0))
    resampled = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    return Estimate(statistic(np.arange(count)), float(np.std(resampled, ddof=1)), count)


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    """A statistic of the texts whose indices it is given, its error by leaving out a group of them at a time.

    For statistics of pairs of texts, where a bootstrap would pair a text with itself. The error is
    sqrt((G - 1) / G * sum((s_g - mean(s))^2)) over G groups (Efron and Tibshirani 1993, chapter 11).
    """
    groups, texts = min(GROUPS, count), np.arange(count)
    left = [statistic(texts[texts % groups != group]) for group in range(groups)]
    spread = np.sum((np.array(left) - np.mean(left)) ** 2)
    return Estimate(statistic(texts), float(np.sqrt((groups - 1) / groups * spread)), count)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays [N]; ties have the mean of their ranks, and NaN stands for no order at all."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / size) if size else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts[:-1] + starts[1:] - 1) / 2, np.diff(starts))
    return ranks
