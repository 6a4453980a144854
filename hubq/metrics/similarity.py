"""Whether pairs of texts that the reference finds more alike than others are so in the variant, too."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Vectors, jackknife, rank_correlation
from hubq.nouns import Estimate


def similarity(scores: Vectors) -> Estimate:
    """Spearman's rank correlation of the cosines of all pairs of texts, -1 to 1."""
    ref, found = (vectors @ vectors.T for vectors in (scores.ref, scores.found))

    def statistic(texts: np.ndarray) -> float:
        rows, columns = np.triu_indices(len(texts), 1)
        pairs = texts[rows], texts[columns]
        return rank_correlation(ref[pairs], found[pairs])

    return jackknife(statistic, len(ref))
