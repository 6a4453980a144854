"""Windows or texts x engines -> measurements. One piece of code for every format and every task.

The reference goes first and what it computes is kept, of as many windows as the memory budget holds; then each variant
is scored on the same windows against it. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hubq.errors import HubqError
from hubq.metrics import Labels, Ranked, Scores, Table, Vectors, estimates, itself
from hubq.nouns import Measurement
from hubq.pooling import POOLS
from hubq.samples import Samples
from hubq.text import Windows

Open = Callable[[], AbstractContextManager[Callable[[np.ndarray, Any], Any]]]
Progress = Callable[[str, int, int], None]

REFERENCE = "reference"  # what stands for a level in the measurement of the source itself
BUDGET = 2 << 30  # bytes of log-probabilities
BLOCK = 1 << 19  # numbers that a core works on at a time: few enough to stay in its cache, enough to be worth waking it for


@dataclass(frozen=True)
class Kept:
    """The reference's distributions over next tokens, or labels, in one window or text: log p = `shifted` - `ln_sum`.

    `shifted` are the logits less their largest, float32 [S, V]; `ln_sum` float64 [S]; `top` the most probable token, int64 [S].
    """

    shifted: torch.Tensor
    ln_sum: torch.Tensor
    top: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the logits."""
        return self.shifted.nbytes

    @property
    def shape(self) -> torch.Size:
        """[S, V]"""
        return self.shifted.shape


@dataclass(frozen=True)
class Columns:
    """One window's columns of the table of scores: `nll` and `kld` in nats, float64 [S]; `same_top`, bool [S]."""

    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray


@dataclass(frozen=True)
class Way:
    """How a kind of task is scored: each function gets the texts, and all but the last the number of one of them.

    `run` calls an opened model. `keep` makes of the reference's output what variants are held against, and what the table of
    scores needs of it; `compare` holds a variant's output against the former. `table` makes the table of the latter and of all
    that was compared; of the latter alone (None) it holds the reference against itself, where it was measured by itself.
    """

    run: Callable[[Any, int, Any], Any]
    keep: Callable[[Any, int, Any], tuple[Any, np.ndarray]]
    compare: Callable[[Any, int, Any, Any], Any]
    table: Callable[[Any, list[np.ndarray], list[Any] | None], Table | None]


def measure(
    texts: Windows | Samples,
    reference: Open,
    variants: Mapping[tuple[str, str], Open],
    budget: int = BUDGET,
    progress: Progress = lambda label, done, total: None,
    known: list[tuple[Any, np.ndarray]] | None = None,
    engine: str = "transformers",
) -> Iterator[Measurement]:
    """Score all windows or texts with the reference and with each variant; yield each measurement as soon as it is complete.

    `variants` maps (level, engine) to what opens it. What opens a model of next tokens gives a callable that maps ids [T] and
    `first` to float32 logits [T - 1 - first, V]; others map ids [T] and segments [T] to float32 [R, D], as
    reference.load_rows says.
    `budget` bounds what is kept of the reference, in bytes: where that is more, every model is loaded again for each batch;
    where it holds all, it stays in `known` for the next call. `progress` hears "level engine", the windows done and all
    windows; `engine` is that of the reference. Raises HubqError where numbers are not finite, or not as many as the
    reference's.
    """
    way, total = WAYS[texts.task.kind], len(texts.ids)
    truth: list[np.ndarray] = []
    seen: dict[tuple[str, str], list[Any]] = {key: [] for key in variants}
    while len(truth) < total:
        start = len(truth)
        batch = known or list(_reference(way, texts, start, reference, (REFERENCE, engine), budget, progress))
        kept = [one for one, _ in batch]
        truth += [own for _, own in batch]
        if known is not None and len(batch) == total:
            known[:] = batch
        if len(truth) == total:
            own = way.table(texts, truth, None)
            yield Measurement(REFERENCE, engine, estimates(own, paired=False) if own else {})
        for key, opened in variants.items():
            seen[key] += _variant(way, texts, start, kept, opened, key, progress)
            if len(truth) == total:
                table = way.table(texts, truth, seen.pop(key))
                assert table
                yield Measurement(*key, estimates(table))


def _reference(
    way: Way, texts: Any, start: int, reference: Open, key: tuple[str, str], budget: int, progress: Progress
) -> Iterator[tuple[Any, np.ndarray]]:
    """What there is to keep of texts from `start` on, until all are done or the budget is used up; of one at least."""
    total, size, place = len(texts.ids), 0, start
    with reference() as model:
        while place < total and (place == start or size + size // (place - start) <= budget):
            kept, own = way.keep(texts, place, way.run(texts, place, model))
            _finite(key, place, texts, own)
            yield kept, own
            size += kept.nbytes
            place += 1
            progress(" ".join(key), place, total)


def _variant(
    way: Way, texts: Any, start: int, kept: list[Any], opened: Open, key: tuple[str, str], progress: Progress
) -> Iterator[Any]:
    with opened() as model:
        for place, reference in enumerate(kept, start):
            output = way.run(texts, place, model)
            if output.shape[-1] != reference.shape[-1]:
                raise HubqError(
                    f"{key[0]}: in {key[1]} {WIDTHS[texts.task.kind].format(output.shape[-1], reference.shape[-1])}",
                    "the file belongs to another model: build it again in a fresh folder: --work-dir DIR",
                )
            columns = way.compare(texts, place, reference, output)
            _finite(key, place, texts, *(vars(columns).values() if isinstance(columns, Columns) else [columns]))
            yield columns
            progress(" ".join(key), place + 1, len(texts.ids))


def _finite(key: tuple[str, str], place: int, texts: Any, *columns: np.ndarray) -> None:
    if not all(np.isfinite(column).all() for column in columns):
        what = texts.evalset.unit.removesuffix("s")
        raise HubqError(
            f"{key[0]}: {key[1]} computes logits that are not finite numbers, first in {what} {place}",
            "do not publish it: the weights are damaged, or too large for this level",
        )


# --- the kinds of tasks ---


def _targets(windows: Windows, place: int) -> np.ndarray:
    """The right next tokens of a window's second half."""
    ids = windows.ids[place]
    return ids[len(ids) // 2 + 1 :]


def _run_window(windows: Windows, place: int, model: Any) -> torch.Tensor:
    ids = windows.ids[place]
    return torch.as_tensor(model(ids, len(ids) // 2))


def _keep_window(windows: Windows, place: int, logits: torch.Tensor) -> tuple[Kept, np.ndarray]:
    kept = keep(logits)
    return kept, _nll(kept.shifted, kept.ln_sum, _targets(windows, place))


def _compare_window(windows: Windows, place: int, kept: Kept, logits: torch.Tensor) -> Columns:
    return compare(kept, logits, _targets(windows, place))


def _token_table(windows: Windows, nll_ref: list[np.ndarray], columns: list[Columns] | None) -> Scores:
    if columns is None:
        return itself(np.stack(nll_ref), windows.bytes)
    stacked = {name: np.stack([getattr(window, name) for window in columns]) for name in ("nll", "kld", "same_top")}
    return Scores(nll_ref=np.stack(nll_ref), bytes=windows.bytes, **stacked)


def _run_text(samples: Samples, place: int, model: Any) -> torch.Tensor:
    """All rows that a model gives for a text, [R, D]."""
    return torch.as_tensor(model(samples.ids[place], samples.segments[place]))


def _vector(samples: Samples, rows: torch.Tensor) -> np.ndarray:
    """A text's vector of length 1, float64 [D]: rows that are one already stay it, however they are pooled."""
    vector = POOLS[samples.pooling](rows.double().cpu().numpy())
    return vector / np.linalg.norm(vector)


def _keep_label(samples: Samples, place: int, rows: torch.Tensor) -> tuple[Kept, np.ndarray]:
    kept = keep(rows[samples.places[place]])
    return kept, kept.ln_sum.numpy()


def _compare_label(samples: Samples, place: int, kept: Kept, rows: torch.Tensor) -> Columns:
    return compare(kept, rows[samples.places[place]], kept.top.numpy())


def _label_table(samples: Samples, _: list[np.ndarray], columns: list[Columns] | None) -> Labels | None:
    return Labels([one.kld for one in columns], [one.same_top for one in columns]) if columns is not None else None


def _score(samples: Samples, rows: torch.Tensor) -> np.ndarray:
    return rows.double().cpu().numpy().reshape(-1)


def _numbers(numbers: Callable[[Samples, torch.Tensor], np.ndarray], kind: Callable[..., Table]) -> Way:
    """The way of what a text has one array of numbers of, which is small enough to be kept."""
    return Way(
        _run_text,
        lambda samples, place, rows: (numbers(samples, rows),) * 2,
        lambda samples, place, kept, rows: numbers(samples, rows),
        lambda samples, ref, found: None if found is None else kind(np.stack(ref), np.stack(found)),
    )


WAYS: dict[str, Way] = {
    "tokens": Way(_run_window, _keep_window, _compare_window, _token_table),
    "vectors": _numbers(_vector, Vectors),
    "labels": Way(_run_text, _keep_label, _compare_label, _label_table),
    "scores": _numbers(_score, lambda ref, found: Ranked(ref[:, 0], found[:, 0])),
}
# what to say where a variant has another number of them
WIDTHS = {
    "tokens": "the vocabulary has {:,} tokens, in the source {:,}",
    "vectors": "vectors have {:,} numbers, in the source {:,}",
    "labels": "there are {:,} labels, in the source {:,}",
    "scores": "a pair has {:,} scores, in the source {:,}",
}


# --- distributions ---


@torch.inference_mode()
def keep(logits: torch.Tensor) -> Kept:
    """What to keep of the reference's logits [S, V], in main memory."""
    shifted, ln_sum, top = logits.cpu(), [], []
    shifted = shifted - shifted.amax(-1, keepdim=True)
    for rows in _blocks(shifted):
        ln_sum.append(shifted[rows].exp().sum(-1, dtype=torch.float64).log())
        top.append(shifted[rows].argmax(-1))
    return Kept(shifted, torch.cat(ln_sum), torch.cat(top))


@torch.inference_mode()
def compare(reference: Kept, logits: torch.Tensor, targets: np.ndarray) -> Columns:
    """Hold a variant's logits [S, V] of one window against the reference; `targets` [S] are the right tokens.

    KL(reference || variant) is the sum of p (log p - log q) over the vocabulary: terms in float32, sums in float64. Where the
    variant finds several tokens most probable, any of them counts as the same.
    """
    nll, kld, same_top = [], [], []
    for rows in _blocks(logits):
        log_p, ln_p = reference.shifted[rows].to(logits.device), reference.ln_sum[rows].to(logits.device)
        log_q = logits[rows] - logits[rows].amax(-1, keepdim=True)
        scratch = log_q.exp()
        ln_q = scratch.sum(-1, dtype=torch.float64).log()
        nll.append(_nll(log_q, ln_q, targets[rows]))
        same_top.append(log_q.gather(-1, reference.top[rows, None].to(logits.device))[:, 0] == 0)
        torch.sub(log_p, log_q, out=log_q)  # into the two blocks at hand: new ones would cost more than the sums
        terms = torch.exp(log_p, out=scratch).mul_(log_q).sum(-1, dtype=torch.float64)
        kld.append(terms / ln_p.exp() + ln_q - ln_p)
    return Columns(np.concatenate(nll), torch.cat(kld).cpu().numpy(), torch.cat(same_top).cpu().numpy())


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Rows in blocks that stay in the processor's cache."""
    step = max(1, BLOCK // logits.shape[1]) * torch.get_num_threads()
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _nll(shifted: torch.Tensor, ln_sum: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """Minus the log-probability of the right tokens, float64 [S]."""
    index = torch.as_tensor(targets, dtype=torch.int64, device=shifted.device)[:, None]
    return (ln_sum - shifted.gather(-1, index)[:, 0].double()).cpu().numpy()
