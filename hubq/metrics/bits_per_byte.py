"""Bits per byte: what it costs to code the text with the model; the one number that compares across tokenizers."""

from __future__ import annotations

import numpy as np

from hubq.metrics.table import Scores, ratio
from hubq.nouns import Estimate


def bits_per_byte(scores: Scores) -> Estimate:
    """Sum of NLL in bits / UTF-8 bytes of the scored text."""
    value, stderr = ratio(scores.nll.sum(axis=1) / np.log(2), scores.bytes)
    return Estimate(value, stderr, scores.nll.size)
