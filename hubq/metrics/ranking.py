"""Whether the variant puts pairs of texts into the order that the reference puts them in."""

from __future__ import annotations

from hubq.metrics.table import Ranked, jackknife, rank_correlation
from hubq.nouns import Estimate


def ranking(scores: Ranked) -> Estimate:
    """Spearman's rank correlation of the scores of all pairs, -1 to 1."""
    return jackknife(lambda pairs: rank_correlation(scores.ref[pairs], scores.found[pairs]), len(scores.ref))
