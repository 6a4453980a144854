"""Metrics against numbers computed by hand, and their standard errors against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from hubq.metrics import METRICS, Scores, estimates, itself, per_window
from hubq.metrics.table import mean, quantile, ratio

HAND = Scores(
    nll_ref=np.array([[1.0, 2.0], [3.0, 2.0]]),
    nll=np.array([[1.5, 2.0], [3.0, 3.5]]),
    kld=np.array([[0.0, 0.1], [0.2, 0.9]]),
    same_top=np.array([[True, True], [True, False]]),
    right_ref=np.array([[True, False], [True, True]]),
    right=np.array([[True, True], [True, False]]),
    bytes=np.array([4, 6]),
)


def correlated(windows: int, tokens: int = 50, seed: int = 0) -> Scores:
    """Tokens that share half of their variance with their window."""
    rng = np.random.default_rng(seed)
    nll_ref = rng.gamma(2, 1, (windows, tokens)) + rng.normal(0, 1, (windows, 1)) ** 2
    nll = nll_ref + rng.normal(0.1, 0.3, (windows, tokens)) + rng.normal(0, 0.3, (windows, 1))
    kld = rng.gamma(0.5, 0.1, (windows, tokens)) * rng.gamma(2, 1, (windows, 1))
    same = rng.random((windows, tokens)) < rng.beta(9, 3, (windows, 1))
    right_ref = rng.random((windows, tokens)) < rng.beta(5, 5, (windows, 1))
    return Scores(nll_ref, nll, kld, same, right_ref, right_ref & same, rng.integers(150, 250, windows))


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "ppl": np.exp(2.5),
        "ln_ppl_ratio": 0.5,
        "ppl_ratio": np.exp(0.5),
        "kld": 0.3,
        "kld_median": 0.15,
        "kld_p99": 0.2 + 0.97 * 0.7,  # rank 2.97 of 0..3
        "kld_p999": 0.2 + 0.997 * 0.7,
        "flips": 0.5,  # one won, one lost
        "delta_p_rms": np.sqrt(((np.exp(-1.5) - np.exp(-1)) ** 2 + (np.exp(-3.5) - np.exp(-2)) ** 2) / 4),
        "top1": 0.75,
        "bits_per_byte": 10 / np.log(2) / 10,
        "delta_p": (np.exp(-1.5) - np.exp(-1) + np.exp(-3.5) - np.exp(-2)) / 4,
    }.items(),
)
def test_values_by_hand(name: str, value: float) -> None:
    estimate = METRICS[name].estimate(HAND)
    assert estimate.value == pytest.approx(value, rel=1e-12)
    assert estimate.count == 4


def test_errors_by_hand() -> None:
    # window means of the paired difference are 0.25 and 0.75: their standard deviation is 0.3536, over sqrt(2) 0.25
    assert METRICS["ln_ppl_ratio"].estimate(HAND).stderr == pytest.approx(0.25)
    assert METRICS["ppl_ratio"].estimate(HAND).stderr == pytest.approx(0.25 * np.exp(0.5))
    # NLL per window 3.5 and 6.5 nats, 4 and 6 bytes, 1 nat a byte: residuals -0.5 and 0.5
    assert METRICS["bits_per_byte"].estimate(HAND).stderr == pytest.approx(np.sqrt(2 * 0.5) / 10 / np.log(2))


def test_the_error_of_a_mean_is_that_of_the_window_means() -> None:
    table = correlated(30).nll
    assert mean(table).stderr == pytest.approx(table.mean(1).std(ddof=1) / np.sqrt(30), rel=1e-12)


@pytest.mark.parametrize(
    "name", ["ppl", "ln_ppl_ratio", "ppl_ratio", "kld", "top1", "bits_per_byte", "delta_p", "delta_p_rms", "flips"]
)
def test_errors_agree_with_the_jackknife(name: str) -> None:
    scores, estimate = correlated(60), METRICS[name].estimate
    keep = ~np.eye(60, dtype=bool)
    left_out = [estimate(Scores(**{name: column[rows] for name, column in vars(scores).items()})).value for rows in keep]
    jackknife = np.sqrt(59 / 60 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert estimate(scores).stderr == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize(("q", "spread"), [(0.5, 0.35), (0.99, 0.6)])
def test_errors_of_quantiles_agree_with_fresh_samples(q: float, spread: float) -> None:
    fresh = [np.quantile(correlated(40, seed=seed).kld, q) for seed in range(300)]
    ours = [quantile(correlated(40, seed=seed).kld, q).stderr for seed in range(10)]
    assert np.mean(ours) == pytest.approx(np.std(fresh), rel=0.2)
    assert np.std(ours) < spread * np.mean(ours)


@pytest.mark.parametrize("name", ["ln_ppl_ratio", "kld", "top1"])
def test_intervals_cover_the_truth_where_those_of_independent_tokens_do_not(name: str) -> None:
    estimate, sims, t = METRICS[name].estimate, 400, 2.093  # 95 % of Student's t with 19 degrees of freedom
    truth = estimate(correlated(20000, seed=999)).value
    found = [estimate(correlated(20, seed=seed)) for seed in range(sims)]
    covered = np.mean([abs(one.value - truth) < t * one.stderr for one in found])
    assert 0.9 < covered < 0.985
    spread = np.std([one.value for one in found])
    table = {"ln_ppl_ratio": lambda s: s.nll - s.nll_ref, "kld": lambda s: s.kld, "top1": lambda s: s.same_top}[name]
    independent = np.mean([table(correlated(20, seed=seed)).std() / np.sqrt(1000) for seed in range(50)])
    assert independent < 0.6 * spread


def test_an_estimate_of_a_ratio_weighs_windows_by_their_size() -> None:
    value, stderr = ratio(np.array([2.0, 30.0]), np.array([1.0, 10.0]))
    assert value == pytest.approx(32 / 11)
    assert stderr == pytest.approx(np.sqrt(2 * ((2 - 32 / 11) ** 2 + (30 - 320 / 11) ** 2)) / 11)


def test_the_reference_held_against_itself() -> None:
    scores = correlated(5)
    same = estimates(itself(scores.nll, scores.bytes))
    assert same["ln_ppl_ratio"].value == same["kld"].value == same["delta_p"].value == same["flips"].value == 0
    assert same["delta_p_rms"].value == same["delta_p_rms"].stderr == 0
    assert same["ppl_ratio"].value == same["top1"].value == 1
    assert same["ppl_ratio"].stderr == 0
    assert set(estimates(itself(scores.nll, scores.bytes), paired=False)) == {"ppl", "bits_per_byte"}


def test_metrics_are_deterministic_and_complete() -> None:
    assert estimates(correlated(7)) == estimates(correlated(7))
    assert list(METRICS) == [
        "ppl", "ln_ppl_ratio", "ppl_ratio", "bits_per_byte", "kld", "kld_median", "kld_p99", "kld_p999", "top1", "flips",
        "delta_p", "delta_p_rms",
        "cosine", "cosine_min", "similarity", "neighbours", "label_kld", "same_label", "ranking", "score_rms",
    ]  # fmt: skip
    for name, metric in METRICS.items():
        assert metric.name == name and metric.title and metric.better in ("lower", "higher", "zero")
        assert metric.estimate.__doc__


def test_the_means_of_windows_are_kept_with_seven_digits() -> None:
    assert per_window(HAND) == {"ln_ppl_ratio": (0.25, 0.75), "kld": (0.05, 0.55)}
    found = per_window(correlated(9))["kld"]
    assert np.allclose(found, correlated(9).kld.mean(1), rtol=1e-6) and all(one == float(f"{one:.7g}") for one in found)
