"""Whether the variant labels as the reference does: the distributions over labels, and the most probable one."""

from __future__ import annotations

from hubq.metrics.table import Labels, by_text
from hubq.nouns import Estimate


def label_kld(scores: Labels) -> Estimate:
    """The mean over places of KL(reference || variant), in nats."""
    return by_text(scores.kld)


def same_label(scores: Labels) -> Estimate:
    """The fraction of places with the same most probable label, 0 to 1."""
    return by_text(scores.same)
