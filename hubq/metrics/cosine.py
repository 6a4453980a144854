"""How far a text's vector turns: the cosine of the angle between the reference's and the variant's."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Vectors, bootstrap, mean
from hubq.nouns import Estimate


def cosines(scores: Vectors) -> np.ndarray:
    """One for each text, float64 [N]."""
    return (scores.ref * scores.found).sum(axis=1)


def cosine(scores: Vectors) -> Estimate:
    """The mean over texts."""
    return mean(cosines(scores)[:, None])


def cosine_min(scores: Vectors) -> Estimate:
    """The least of all texts: how far off the worst one is."""
    found = cosines(scores)
    return bootstrap(lambda texts: float(found[texts].min()), len(found))
