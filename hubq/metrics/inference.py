"""Statements with an error rate, from window means: when enough is measured, whether files differ, which are within a loss.

A fixed number of windows allows Student's t. Where measuring stopped as soon as it was precise enough, only what holds at all
times at once does: the asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences" (arXiv 2103.06476, theorem 2.2). Looking again and again at the
interval of a fixed number, and stopping when it is narrow, misses the truth in four of ten runs.

The windows of a text are drawn without replacement, and what is estimated is the mean over all of them: after t of N windows
Z_t = (sum of x - t mean) / (N - t) is a martingale whose variance grows by spread^2 / (N - t)^2 with each (Waudby-Smith and
Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020, section 2). The sequence is that of Z_t, and has
no width left when all windows are scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

ALPHA = 0.05  # share of runs that may state something wrong
FIRST = 16  # windows before which a sequence says nothing: it holds for large numbers only
AIM = 64  # windows for which the sequence is narrowest among those of its kind
GROWTH = -2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))  # at AIM, which makes it narrowest there

K = TypeVar("K")


def radius(count: int, spread: float, total: int) -> float:
    """Half the width of the 95 % confidence sequence of the mean of `total` values, of which `count` had the given `spread`.

    spread * (1 + 2 / t) * (N - t) / t * sqrt(2 (v r + 1) / r * ln(sqrt(v r + 1) / alpha)), with v the sum of 1 / (N - i)^2 for
    i to t and r such that v r is GROWTH after AIM values; infinite before FIRST values. The second factor is for the spread's
    own uncertainty, as Student's t has one.
    """
    if count < FIRST:
        return math.inf
    if count >= total:
        return 0.0
    growth, scale = _clock(count, total)
    return spread * scale * math.sqrt(2 * growth * math.log(math.sqrt(growth) / ALPHA))


def _clock(count: int, total: int) -> tuple[float, float]:
    """Of radius: v r + 1, and what stands before the square root, with that of r below it."""
    rho = GROWTH / _passed(min(AIM, total // 2), total)
    return _passed(count, total) * rho + 1, (1 + 2 / count) * (total - count) / count / math.sqrt(rho)


def _passed(count: int, total: int) -> float:
    """The sum of 1 / (N - i)^2 for i from 1 to t: the difference of two trigamma functions (Abramowitz and Stegun 6.4.12)."""
    first, last = ((1 / x + 1 / (2 * x * x) + 1 / (6 * x**3)) for x in (total - count, total))
    return first - last


def half_width(values: np.ndarray, total: int | None) -> float:
    """Half the width of the 95 % interval of the mean of `values` [W]: Student's, or the confidence sequence for `total`."""
    count, spread = len(values), float(np.std(values, ddof=1))
    if total is not None:
        return radius(count, spread, total)
    low, high = 1.0, 1000.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _student(middle, count - 1) > ALPHA else (low, middle)
    return high * spread / math.sqrt(count)


def needed(spread: float, wanted: float, total: int) -> int:
    """How many of `total` values of standard deviation `spread` bring the radius down to `wanted`."""
    return next((count for count in range(FIRST, total) if radius(count, spread, total) <= wanted), total)


def p_value(values: np.ndarray, truth: float, total: int | None) -> float:
    """How probable values [W] as far from `truth` are, or farther, if that were their mean; W at least 2.

    Two-sided, by Student's t; where W depends on the values, which are of `total`, the level at which the confidence sequence
    just reaches `truth`.
    """
    count, distance, spread = len(values), abs(float(np.mean(values)) - truth), float(np.std(values, ddof=1))
    if spread == 0 or distance == 0:
        return float(distance == 0)
    if total is None:
        return _student(distance * math.sqrt(count) / spread, count - 1)
    if count < FIRST:
        return 1.0
    if count >= total:
        return 0.0  # nothing is left to chance
    growth, scale = _clock(count, total)
    return min(1.0, math.sqrt(growth) * math.exp(-((distance / spread / scale) ** 2) / (2 * growth)))


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
