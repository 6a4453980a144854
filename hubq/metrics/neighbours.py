"""Whether a search would find the same texts: how many of the nearest neighbours of a text stay its nearest neighbours."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Vectors, jackknife
from hubq.nouns import Estimate

NEAREST = 10


def neighbours(scores: Vectors) -> Estimate:
    """The mean over texts of the share of the reference's 10 nearest texts that are among the variant's, 0 to 1.

    Not a number of fewer than 20 texts, where most would be.
    """
    tables = [vectors @ vectors.T for vectors in (scores.ref, scores.found)]
    for table in tables:
        np.fill_diagonal(table, -np.inf)  # a text is no neighbour of its own

    def statistic(texts: np.ndarray) -> float:
        if len(texts) < 2 * NEAREST:
            return float("nan")
        near = [np.zeros((len(texts), len(texts)), bool) for _ in tables]
        for marks, table in zip(near, tables, strict=True):
            nearest = np.argpartition(table[np.ix_(texts, texts)], -NEAREST, axis=1)[:, -NEAREST:]
            np.put_along_axis(marks, nearest, True, axis=1)
        return float((near[0] & near[1]).sum() / (NEAREST * len(texts)))

    return jackknife(statistic, len(scores.ref))
