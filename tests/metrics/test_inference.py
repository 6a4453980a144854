"""Intervals and tests against simulation: what they promise must hold, and what they warn of must happen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hubq.metrics.inference import FIRST, half_width, holm, needed, p_value, radius

MOST = 400
RUNS = 2000


def walks(skewed: bool, total: int, seed: int = 0) -> np.ndarray:
    """Window means of a PPL ratio's logarithm as they come, [RUNS, at most MOST]: draws without replacement from `total` values
    of mean 0."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(4, 0.5, total) - 2 if skewed else rng.standard_t(6, total)
    values -= values.mean()
    return np.stack([rng.permutation(values)[:MOST] for _ in range(RUNS)])


def running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the first 1, 2, ... values of each run."""
    counts = np.arange(1, values.shape[1] + 1)
    means = values.cumsum(1) / counts
    squares = (values**2).cumsum(1) - counts * means**2
    return means, np.sqrt(np.maximum(squares, 0) / np.maximum(counts - 1, 1))


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("total", [100, 592, 20_000])
def test_whoever_looks_after_every_window_is_wrong_in_one_run_of_twenty_at_most(skewed: bool, total: int) -> None:
    means, spreads = running(walks(skewed, total))
    counts = np.arange(FIRST, means.shape[1] + 1)
    sequence = np.array([radius(int(count), 1.0, total) for count in counts])
    seen = slice(FIRST - 1, None)
    missed = (np.abs(means[:, seen]) > sequence * spreads[:, seen] + 1e-9).any(1).mean()
    assert 0.01 < missed <= 0.07  # 5 % of a number that large numbers make true
    naive = 1.96 / np.sqrt(counts) * np.sqrt(1 - counts / (total + 1))
    assert (np.abs(means[:, seen]) > naive * spreads[:, seen] + 1e-9).any(1).mean() > 0.25


@pytest.mark.parametrize("skewed", [False, True])
def test_stopping_when_it_is_narrow_enough_keeps_the_promise(skewed: bool) -> None:
    wanted, missed, taken = 0.4, 0, []
    for values in walks(skewed, 592, seed=1):
        means, spreads = (one[0] for one in running(values[None]))
        stop = next(count for count in range(FIRST, MOST + 1) if radius(count, float(spreads[count - 1]), 592) <= wanted)
        missed += abs(means[stop - 1]) > wanted
        taken.append(stop)
    assert missed / RUNS <= 0.05
    assert FIRST < np.median(taken) < MOST / 2  # it does stop early


def test_the_sequence_costs_about_half_more_than_an_interval_of_a_fixed_number() -> None:
    assert radius(64, 1.0, 10**7) / (1.96 / 8) == pytest.approx(1.6, abs=0.03)
    assert math.isinf(radius(FIRST - 1, 1.0, 100))


def test_of_a_finite_text_less_is_left_to_chance_and_of_all_of_it_nothing() -> None:
    ratios = [radius(count, 1.0, 592) / radius(count, 1.0, 10**7) for count in (16, 100, 300, 500)]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 0.95 and ratios[-1] < 0.6
    assert radius(592, 1.0, 592) == 0 and radius(20, 1.0, 20) == 0
    assert p_value(np.random.default_rng(0).normal(0.1, 1, 50), 0.0, total=50) == 0


def test_needed_is_where_the_radius_arrives() -> None:
    count = needed(0.03, 0.01, 10_000)
    assert radius(count, 0.03, 10_000) <= 0.01 < radius(count - 1, 0.03, 10_000)
    assert needed(0.03, 1e-6, 500) == 500


def test_p_values_of_a_fixed_number_are_students() -> None:
    # t = 2.262 with 9 degrees of freedom cuts off 5 %, 3.250 cuts off 1 %
    values = np.array([-1.0, 1.0] * 5)
    spread = values.std(ddof=1) / math.sqrt(10)
    assert p_value(values, 2.2622 * spread, total=None) == pytest.approx(0.05, abs=1e-4)
    assert p_value(values, 3.2498 * spread, total=None) == pytest.approx(0.01, abs=1e-4)
    assert half_width(values, total=None) == pytest.approx(2.2622 * spread, rel=1e-4)


def test_p_values_of_a_sequence_are_where_it_arrives() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 50)
    edge = values.mean() - radius(50, float(values.std(ddof=1)), 220)
    assert p_value(values, edge, total=220) == pytest.approx(0.05, rel=1e-6)
    assert half_width(values, total=220) == radius(50, float(values.std(ddof=1)), 220)
    assert p_value(values[: FIRST - 1], 9.0, total=220) == 1


def test_values_without_spread() -> None:
    assert p_value(np.zeros(5), 0.0, total=None) == 1 and p_value(np.zeros(5), 0.1, total=220) == 0


def test_holm_by_hand() -> None:
    # 0.01 <= 0.05 / 4, 0.016 <= 0.05 / 3, 0.03 > 0.05 / 2: there it ends
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04, "d": 0.016}) == {"b", "d"}
    assert holm({}) == set() and holm({"a": 0.05}) == {"a"}


def test_holm_keeps_its_promise_where_single_tests_do_not() -> None:
    rng = np.random.default_rng(3)
    wrong = [holm({i: p_value(rng.normal(0, 1, 20), 0.0, total=None) for i in range(6)}) for _ in range(300)]
    assert np.mean([bool(found) for found in wrong]) < 0.08
