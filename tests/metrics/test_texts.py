"""Metrics of encoders, classifiers and rerankers against numbers from scratch, their errors against fresh samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hubq.metrics import METRICS, Labels, Ranked, Vectors, estimates


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(texts: int, seed: int = 0, noise: float = 0.3) -> Vectors:
    """Vectors about a few subjects, and the same with noise."""
    rng = np.random.default_rng(seed)
    ref = rng.normal(size=(6, 16))[rng.integers(6, size=texts)] + rng.normal(size=(texts, 16))
    return Vectors(unit(ref), unit(ref + noise * rng.normal(size=ref.shape)))


def rank(values: list[float]) -> list[float]:
    """Ranks from 1 on by counting, ties in the middle."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def spearman(one: list[float], other: list[float]) -> float:
    return float(np.corrcoef(rank(one), rank(other))[0, 1])


def test_vectors_from_scratch() -> None:
    scores = vectors(25)
    found = {name: estimate.value for name, estimate in estimates(scores).items()}
    cosines = [
        float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(scores.ref, scores.found, strict=True)
    ]
    assert found["cosine"] == pytest.approx(np.mean(cosines)) and found["cosine_min"] == pytest.approx(min(cosines))
    pairs = list(itertools.combinations(range(25), 2))
    alike = [[float(table[i] @ table[j]) for i, j in pairs] for table in (scores.ref, scores.found)]
    assert found["similarity"] == pytest.approx(spearman(*alike), rel=1e-9) and found["similarity"] < 0.99
    shared = 0
    for i in range(25):
        near = [
            sorted((j for j in range(25) if j != i), key=lambda j: -table[i] @ table[j])[:10]
            for table in (scores.ref, scores.found)
        ]
        shared += len(set(near[0]) & set(near[1]))
    assert found["neighbours"] == pytest.approx(shared / 250) and 0.5 < shared / 250 < 1
    assert {estimate.count for estimate in estimates(scores).values()} == {25}


def test_ties_share_their_rank() -> None:
    ref, found = np.array([1.0, 2, 2, 3, 5, 5, 5]), np.array([2.0, 1, 3, 3, 3, 9, 9])
    assert estimates(Ranked(ref, found))["ranking"].value == pytest.approx(spearman(list(ref), list(found)))
    assert np.isnan(estimates(Ranked(np.ones(4), found[:4]))["ranking"].value)


def test_scores_from_scratch() -> None:
    found = estimates(Ranked(np.array([0.0, 2, 4]), np.array([1.0, 2, 3])))
    assert found["ranking"].value == pytest.approx(1)
    assert found["score_rms"].value == pytest.approx(np.sqrt(2 / 3) / np.std([0, 2, 4]))


def test_labels_weigh_texts_by_their_places() -> None:
    scores = Labels([np.array([0.1, 0.3]), np.array([0.8])], [np.array([True, True]), np.array([False])])
    found = estimates(scores)
    assert found["label_kld"].value == pytest.approx(0.4) and found["same_label"].value == pytest.approx(2 / 3)
    residuals = np.array([0.4 - 0.8, 0.8 - 0.4])
    assert found["label_kld"].stderr == pytest.approx(np.sqrt(2 * (residuals**2).sum()) / 3)
    assert found["label_kld"].count == 3


def test_equal_vectors_are_exact() -> None:
    ref = vectors(30).ref
    found = estimates(Vectors(ref, ref.copy()))
    for name in ("cosine", "cosine_min", "similarity", "neighbours"):
        assert found[name].value == pytest.approx(1, abs=1e-12) and found[name].stderr < 1e-9


def test_a_turn_of_all_vectors_shows_in_the_cosine_alone() -> None:
    ref = vectors(40).ref
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
    found = estimates(Vectors(ref, ref @ turn))
    assert found["similarity"].value == pytest.approx(1) and found["neighbours"].value == 1 and found["cosine"].value < 0.5


def test_neighbours_of_few_texts_are_no_number() -> None:
    assert np.isnan(estimates(vectors(19))["neighbours"].value) and estimates(vectors(40))["neighbours"].value < 1


@pytest.mark.parametrize("name", ["cosine", "similarity", "neighbours"])
def test_errors_agree_with_fresh_samples(name: str) -> None:
    fresh = [METRICS[name].estimate(vectors(60, seed)).value for seed in range(60)]
    ours = [METRICS[name].estimate(vectors(60, seed)).stderr for seed in range(8)]
    assert np.mean(ours) == pytest.approx(np.std(fresh), rel=0.35)
    assert METRICS[name].estimate(vectors(60)) == METRICS[name].estimate(vectors(60))


def test_the_error_of_a_rank_correlation_agrees_with_fresh_samples() -> None:
    def drawn(seed: int) -> Ranked:
        ref = np.random.default_rng(seed).normal(size=80)
        return Ranked(ref, ref + 0.3 * np.random.default_rng(seed + 1000).normal(size=80))

    for name in ("ranking", "score_rms"):
        fresh = [METRICS[name].estimate(drawn(seed)).value for seed in range(200)]
        ours = [METRICS[name].estimate(drawn(seed)).stderr for seed in range(20)]
        assert np.mean(ours) == pytest.approx(np.std(fresh), rel=0.3)
