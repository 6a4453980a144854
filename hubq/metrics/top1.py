"""Top-1 agreement: how often reference and variant find the same token most probable."""

from __future__ import annotations

from hubq.metrics.table import Scores, mean
from hubq.nouns import Estimate


def top1(scores: Scores) -> Estimate:
    """The fraction of tokens, 0 to 1."""
    return mean(scores.same_top)
