"""Scoring: the comparison against float64 by brute force, and what measure() does with models, memory and bad numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from hubq import reference, score
from hubq.errors import HubqError
from hubq.metrics.inference import radius
from hubq.nouns import EvalSet, Measurement, RepoFile, Source
from hubq.source import read_config
from hubq.text import Windows

Model = Callable[[np.ndarray, int], torch.Tensor]
VOCABULARY, LENGTH, FIRST = 300, 20, 10
KEY = ("gguf:Q4_K_M", "weights")


def windows(count: int = 5, length: int = LENGTH, vocabulary: int = VOCABULARY) -> Windows:
    ids = np.random.default_rng(1).integers(0, vocabulary, (count, length))
    facts = EvalSet("a.txt", None, "all", "text", "0", ids.size, count, count, length, 0, None, "0", "0")
    return Windows(facts, ids, np.full(count, 40))


def noisy(noise: float = 0.0, spoil: int | None = None, value: float = np.nan, vocabulary: int = VOCABULARY) -> Model:
    """A model whose logits depend on the ids alone, with noise on top; `spoil` is the window whose logits hold `value`."""
    table = np.random.default_rng(2).normal(0, 3, (VOCABULARY, vocabulary))
    table += noise * np.random.default_rng(3).normal(0, 1, table.shape)
    bad = None if spoil is None else windows().ids[spoil]

    def logits(ids: np.ndarray, first: int) -> torch.Tensor:
        found = torch.tensor(table[ids[first:-1]], dtype=torch.float32)
        if bad is not None and np.array_equal(ids, bad):
            found[3, 7] = value
        return found

    return logits


class Shelf:
    """Opens models, and sees to it that no two are open at once."""

    def __init__(self) -> None:
        self.open, self.log = False, []

    def opener(self, name: str, model: Model) -> score.Open:
        @contextmanager
        def opened() -> Iterator[Model]:
            assert not self.open, "two models in memory"
            self.open = True
            self.log.append(name)
            yield model
            self.open = False

        return opened


def test_compare_agrees_with_float64() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 4, (50, 1000)), rng.normal(0, 4, (50, 1000))
    b = np.where(rng.random((50, 1)) < 0.8, a + 0.02 * b, b).astype(np.float32)
    a, targets = a.astype(np.float32), rng.integers(0, 1000, 50)
    found = score.compare(score.keep(torch.from_numpy(a)), torch.from_numpy(b), targets)
    log_p, log_q = (torch.tensor(table, dtype=torch.float64).log_softmax(-1).numpy() for table in (a, b))
    assert np.allclose(found.kld, (np.exp(log_p) * (log_p - log_q)).sum(1), rtol=1e-5, atol=1e-9)
    assert np.allclose(found.nll, -log_q[np.arange(50), targets], rtol=1e-6)
    assert np.array_equal(found.same_top, a.argmax(1) == b.argmax(1))
    assert np.array_equal(found.right_ref, a.argmax(1) == targets) and np.array_equal(found.right, b.argmax(1) == targets)
    assert 0.1 < found.same_top.mean() < 0.95


def test_compare_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(37, 1000, generator=torch.Generator().manual_seed(0)).chunk(2, dim=1)
    targets = np.arange(37)
    whole = score.compare(score.keep(a), b, targets)
    monkeypatch.setattr(score, "BLOCK", 1)
    rows = score.compare(score.keep(a), b, targets)
    for name in ("nll", "kld", "same_top", "right"):
        assert np.allclose(getattr(whole, name), getattr(rows, name), rtol=1e-12)


def test_a_model_held_against_itself_is_equal_to_the_last_digit() -> None:
    logits = noisy()(windows().ids[0], FIRST)
    found = score.compare(score.keep(logits), logits.clone(), windows().ids[0, FIRST + 1 :])
    assert not found.kld.any()
    assert found.same_top.all()


def test_a_constant_on_all_logits_changes_nothing() -> None:
    logits = noisy()(windows().ids[0], FIRST)
    found = score.compare(score.keep(logits), logits + 1000, windows().ids[0, FIRST + 1 :])
    assert np.abs(found.kld).max() < 1e-6


def measured(
    budget: score.Budget = score.BUDGET, **variants: Model
) -> tuple[list[Measurement], Shelf, list[tuple[str, int, int]]]:
    shelf, heard = Shelf(), []
    opened = {(name, "weights"): shelf.opener(name, model) for name, model in variants.items()}
    opener = shelf.opener("reference", noisy())
    found = list(score.measure(windows(), opener, opened, budget, lambda *event: heard.append(event)))
    return found, shelf, heard


def test_measurements_come_in_order_and_the_reference_is_measured_too() -> None:
    found, shelf, heard = measured(one=noisy(0.1), two=noisy(1.0))
    assert [(one.level, one.engine) for one in found] == [("reference", "transformers"), ("one", "weights"), ("two", "weights")]
    assert set(found[0].values) == {"ppl", "bits_per_byte"}
    assert 0 < found[1].values["kld"].value < found[2].values["kld"].value
    assert found[1].values["kld"].count == 5 * (LENGTH - 1 - FIRST)
    assert shelf.log == ["reference", "one", "two"]
    assert [event for event in heard if event[0] == "one weights"] == [("one weights", i, 5) for i in range(1, 6)]


def test_numbers_by_hand() -> None:
    table = windows().ids
    first, second = noisy(), noisy(0.5)
    nll = []
    for model in (first, second):
        log = np.stack([model(row, FIRST).double().log_softmax(-1).numpy() for row in table])
        nll.append(-np.take_along_axis(log, table[:, FIRST + 1 :, None], 2)[..., 0])
    found, *_ = measured(variant=second)
    assert found[0].values["ppl"].value == pytest.approx(np.exp(nll[0].mean()), rel=1e-6)
    assert found[1].values["ppl"].value == pytest.approx(np.exp(nll[1].mean()), rel=1e-6)
    assert found[1].values["ln_ppl_ratio"].value == pytest.approx((nll[1] - nll[0]).mean(), rel=1e-5)
    assert found[0].values["bits_per_byte"].value == pytest.approx(nll[0].sum() / np.log(2) / 200, rel=1e-6)


@pytest.mark.parametrize(("kept", "loads"), [(0, 5), (2, 3), (4, 2), (5, 1)])
def test_a_smaller_budget_costs_loads_and_changes_no_number(kept: int, loads: int) -> None:
    window = (LENGTH - 1 - FIRST) * VOCABULARY * 4
    found, shelf, _ = measured(score.Budget(kept * window), one=noisy(0.1), two=noisy(1.0))
    assert shelf.log == ["reference", "one", "two"] * loads
    assert found == measured(one=noisy(0.1), two=noisy(1.0))[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_by_level_and_window(value: float) -> None:
    with pytest.raises(HubqError, match="gguf:Q4_K_M: weights computes logits that are not finite numbers, first in window 3"):
        measured_pair(noisy(), noisy(0.1, spoil=3, value=value))
    with pytest.raises(HubqError, match=r"reference: transformers computes .* window 2"):
        measured_pair(noisy(spoil=2, value=value), noisy(0.1))


def measured_pair(first: Model, second: Model) -> list[Measurement]:
    shelf = Shelf()
    return list(score.measure(windows(), shelf.opener("reference", first), {KEY: shelf.opener("variant", second)}))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(HubqError, match=r"gguf:Q4_K_M: in weights the vocabulary has 299 tokens, in the source 300"):
        measured_pair(noisy(), noisy(vocabulary=299))


def test_a_real_model_and_a_coarser_copy_of_it(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", hidden_size=64, intermediate_size=96)
    config = read_config((folder / "config.json").read_bytes())
    source = Source("org/m", "0" * 40, folder, config, {}, (RepoFile("model.safetensors", 1),))
    tensors = dict(reference.source_weights(source))
    coarse = {name: np.round(array * 64) / 64 for name, array in tensors.items()}
    found = score.measure(
        windows(3, 64, tiny.VOCABULARY),
        lambda: reference.load(config, tensors.items()),
        {
            ("same", "weights"): lambda: reference.load(config, tensors.items()),
            KEY: lambda: reference.load(config, coarse.items()),
        },
    )
    base, same, other = found
    assert same.values["ppl"] == base.values["ppl"]
    assert same.values["kld"].value == 0 and same.values["top1"].value == 1
    assert other.values["kld"].value > 1e-6
    assert base.values["ppl"].value == pytest.approx(tiny.VOCABULARY, rel=0.2)  # random weights know nothing


# --- as precisely as asked ---


def precise(precision: float | None, count: int = 120) -> Windows:
    """Windows that are scored until PPL ratios are so precise."""
    made = windows(count)
    return replace(made, evalset=replace(made.evalset, precision=precision))


def until(precision: float, budget: score.Budget = score.BUDGET, **variants: Model) -> tuple[dict[str, Measurement], list[str]]:
    shelf = Shelf()
    opened = {(name, "weights"): shelf.opener(name, model) for name, model in variants.items()}
    found = {one.level: one for one in score.measure(precise(precision), shelf.opener("reference", noisy()), opened, budget)}
    return found, shelf.log


def taken(row: Measurement) -> int:
    return row.tokens // (LENGTH - 1 - FIRST)


def test_each_variant_is_scored_until_its_own_ratio_is_precise() -> None:
    found, _ = until(0.05, same=noisy(), near=noisy(0.3), far=noisy(0.4))
    assert taken(found["same"]) == score.FIRST < taken(found["near"]) < taken(found["far"]) < 120
    assert taken(found["reference"]) >= taken(found["far"])
    for name in ("near", "far"):
        means = np.array(found[name].per_window["ln_ppl_ratio"])
        assert len(means) == taken(found[name])
        assert radius(len(means), means.std(ddof=1), 120) <= np.log(1.05) < radius(len(means) - 1, means[:-1].std(ddof=1), 120)


def test_what_stops_a_variant_are_its_own_numbers() -> None:
    together, _ = until(0.05, near=noisy(0.3), far=noisy(0.4))
    alone, _ = until(0.05, near=noisy(0.3))
    small, _ = until(0.05, score.Budget(0), near=noisy(0.3), far=noisy(0.4))
    assert together["near"] == alone["near"] == small["near"] and together["far"] == small["far"]
    assert taken(alone["reference"]) < taken(together["reference"])


def test_stopping_takes_few_loads() -> None:
    _, log = until(0.05, far=noisy(0.4))
    assert len(log) <= 6  # a first look, a second by its spread, and perhaps a last one


def test_a_precision_out_of_reach_takes_all_windows() -> None:
    found, _ = until(1e-6, far=noisy(0.4))
    assert taken(found["far"]) == taken(found["reference"]) == 120


def test_logits_kept_on_disk_are_the_same_and_leave_nothing(tmp_path: Path) -> None:
    found, shelf, _ = measured(score.Budget(1 << 20, tmp_path), one=noisy(0.1), two=noisy(1.0))
    assert found == measured(one=noisy(0.1), two=noisy(1.0))[0]
    assert shelf.log == ["reference", "one", "two"] and list(tmp_path.iterdir()) == []


def test_what_is_kept_serves_the_next_call() -> None:
    known: list[tuple] = []
    for name in ("one", "two"):
        shelf = Shelf()
        opened = {(name, "weights"): shelf.opener(name, noisy(0.1))}
        found = list(score.measure(windows(), shelf.opener("reference", noisy()), opened, known=known))
        assert [one.level for one in found] == ["reference", name]
    assert shelf.log == ["two"] and len(known) == 5
