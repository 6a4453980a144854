"""Kullback-Leibler divergence of the variant's next-token distribution from the reference's, in nats per token."""

from __future__ import annotations

from hubq.metrics.table import Scores, mean, quantile
from hubq.nouns import Estimate


def kld(scores: Scores) -> Estimate:
    """The mean over tokens."""
    return mean(scores.kld)


def kld_median(scores: Scores) -> Estimate:
    """The median over tokens."""
    return quantile(scores.kld, 0.5)


def kld_p99(scores: Scores) -> Estimate:
    """The 99 % quantile over tokens: how far off the worst hundredth is."""
    return quantile(scores.kld, 0.99)


def kld_p999(scores: Scores) -> Estimate:
    """The 99.9 % quantile over tokens: how far off the worst thousandth is."""
    return quantile(scores.kld, 0.999)
