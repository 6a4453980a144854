"""Flips: how often quantization turns a right answer into a wrong one, or a wrong one into a right one.

Dutta et al. 2024, "Accuracy is Not All You Need" (arXiv 2407.09141), of the next token in place of a multiple choice.
"""

from __future__ import annotations

from hubq.metrics.table import Scores, mean
from hubq.nouns import Estimate


def flips(scores: Scores) -> Estimate:
    """The fraction of tokens that only one of reference and variant finds most probable where they are right, 0 to 1."""
    return mean(scores.right != scores.right_ref)
