"""Whether the variant scores pairs of texts as the reference does: their order, and how far the scores are apart."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Ranked, jackknife, rank_correlation
from hubq.nouns import Estimate


def ranking(scores: Ranked) -> Estimate:
    """Spearman's rank correlation of the scores of all pairs, -1 to 1."""
    return jackknife(lambda pairs: rank_correlation(scores.ref[pairs], scores.found[pairs]), len(scores.ref))


def score_rms(scores: Ranked) -> Estimate:
    """The root mean square of the differences of scores, in standard deviations of the reference's."""

    def statistic(pairs: np.ndarray) -> float:
        ref, found = scores.ref[pairs], scores.found[pairs]
        return float(np.sqrt(((found - ref) ** 2).mean()) / ref.std()) if ref.std() else float("nan")

    return jackknife(statistic, len(scores.ref))
