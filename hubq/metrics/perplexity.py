"""Perplexity: the exponential of the mean negative log-likelihood, and how much a variant's differs on the same tokens."""

from __future__ import annotations

from hubq.metrics.table import Scores, exponential, mean
from hubq.nouns import Estimate


def ppl(scores: Scores) -> Estimate:
    """exp(mean NLL) of the variant."""
    return exponential(mean(scores.nll))


def ln_ppl_ratio(scores: Scores) -> Estimate:
    """ln(PPL of the variant / PPL of the reference): the mean of the paired differences of NLL, in nats per token."""
    return mean(scores.nll - scores.nll_ref)


def ppl_ratio(scores: Scores) -> Estimate:
    """PPL of the variant / PPL of the reference, paired."""
    return exponential(ln_ppl_ratio(scores))
