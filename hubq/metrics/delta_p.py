"""Change of the right token's probability: below zero, the variant is less sure of the truth than the reference."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Scores, mean, root
from hubq.nouns import Estimate


def delta_p(scores: Scores) -> Estimate:
    """The mean of p(variant) - p(reference), -1 to 1."""
    return mean(_changes(scores))


def delta_p_rms(scores: Scores) -> Estimate:
    """The root mean square of the same: how far a probability strays, either way."""
    return root(mean(_changes(scores) ** 2))


def _changes(scores: Scores) -> np.ndarray:
    return np.exp(-scores.nll) - np.exp(-scores.nll_ref)
