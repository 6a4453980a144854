"""The per-token table that every metric reads, and the statistics that they share.

Tokens of one window share their text, so they are not independent: every standard error here is clustered by window
(Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

from __future__ import annotations

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
    bytes               [W]    int64    UTF-8 bytes of the text of the scored tokens
    """

    nll_ref: np.ndarray
    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray
    bytes: np.ndarray


def itself(nll: np.ndarray, size: np.ndarray) -> Scores:
    """The reference held against itself; `nll` [W, S], `size` [W] in bytes."""
    return Scores(nll, nll, np.zeros_like(nll), np.ones_like(nll, bool), size)


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
