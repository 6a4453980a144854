"""Statements with an error rate, from window means: when enough is measured, whether files differ, which are within a loss.

A fixed number of windows allows Student's t. Where measuring stopped as soon as it was precise enough, only what holds at all
times at once does: the asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences" (arXiv 2103.06476, theorem 2.2). Looking again and again at the
interval of a fixed number, and stopping when it is narrow, misses the truth in four of ten runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

ALPHA = 0.05  # share of runs that may state something wrong
FIRST = 16  # windows before which a sequence says nothing: it holds for large numbers only
AIM = 64  # windows for which the sequence is narrowest among those of its kind
RHO2 = (-2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))) / AIM

K = TypeVar("K")


def radius(count: int, spread: float) -> float:
    """Half the width of the 95 % confidence sequence of a mean after `count` values of standard deviation `spread`.

    spread * sqrt(2 (t r^2 + 1) / (t^2 r^2) * ln(sqrt(t r^2 + 1) / alpha)); infinite before FIRST values.
    """
    if count < FIRST:
        return math.inf
    growth = count * RHO2 + 1
    return spread * math.sqrt(2 * growth / (count**2 * RHO2) * math.log(math.sqrt(growth) / ALPHA))


def half_width(values: np.ndarray, stopped: bool) -> float:
    """Half the width of the 95 % interval of the mean of `values` [W]: Student's, or with `stopped` the confidence sequence."""
    count, spread = len(values), float(np.std(values, ddof=1))
    if stopped:
        return radius(count, spread)
    low, high = 1.0, 1000.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _student(middle, count - 1) > ALPHA else (low, middle)
    return high * spread / math.sqrt(count)


def needed(spread: float, wanted: float, most: int) -> int:
    """How many values of standard deviation `spread` bring the radius down to `wanted`, `most` at most."""
    return next((count for count in range(FIRST, most) if radius(count, spread) <= wanted), most)


def p_value(values: np.ndarray, truth: float, stopped: bool) -> float:
    """How probable values [W] as far from `truth` are, or farther, if that were their mean; W at least 2.

    Two-sided, by Student's t; with `stopped`, where W depends on the values, the level at which the confidence sequence just
    reaches `truth`.
    """
    count, distance, spread = len(values), abs(float(np.mean(values)) - truth), float(np.std(values, ddof=1))
    if spread == 0 or distance == 0:
        return float(distance == 0)
    if not stopped:
        return _student(distance * math.sqrt(count) / spread, count - 1)
    if count < FIRST:
        return 1.0
    growth = count * RHO2 + 1
    return min(1.0, math.sqrt(growth) * math.exp(-((distance / spread * count) ** 2) * RHO2 / (2 * growth)))


def _student(t: float, freedom: int) -> float:
    """The two tails of Student's distribution beyond `t` (Abramowitz and Stegun 26.7.1)."""
    import mpmath

    return float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def holm(p_values: Mapping[K, float]) -> set[K]:
    """The hypotheses that are rejected while the chance to reject any true one stays within ALPHA (Holm 1979)."""
    rejected: set[K] = set()
    for key, p in sorted(p_values.items(), key=lambda item: item[1]):
        if p > ALPHA / (len(p_values) - len(rejected)):
            break
        rejected.add(key)
    return rejected
