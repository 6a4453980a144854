"""Windows or texts x engines -> measurements. One piece of code for every format and every task.

The reference goes first and what it computes is kept, of as many windows as the memory budget holds; then each variant
is scored on the same windows against it. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from hubq.errors import HubqError
from hubq.formats import cores
from hubq.metrics import Labels, Ranked, Scores, Table, Vectors, estimates, itself, per_window
from hubq.metrics.inference import FIRST, needed, radius
from hubq.nouns import FLOOR, REFERENCE, Measurement
from hubq.pooling import POOLS
from hubq.samples import Samples
from hubq.text import Windows

Open = Callable[[], AbstractContextManager[Callable[[np.ndarray, Any], Any]]]
Progress = Callable[[str, int, int], None]

__all__ = ["BUDGET", "FLOOR", "REFERENCE", "Budget", "measure"]

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
    """One window's columns of the table of scores: `nll` and `kld` in nats, float64 [S]; the others bool [S]."""

    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray
    right_ref: np.ndarray
    right: np.ndarray


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


@dataclass(frozen=True)
class Budget:
    """How much is kept of the reference's distributions: `size` bytes, in memory or in nameless files in `folder`."""

    size: int = 2 << 30
    folder: Path | None = None


BUDGET = Budget()


def measure(
    texts: Windows | Samples,
    reference: Open,
    variants: Mapping[tuple[str, str], Open],
    budget: Budget = BUDGET,
    progress: Progress = lambda label, done, total: None,
    known: list[tuple[Any, np.ndarray]] | None = None,
    engine: str = "transformers",
) -> Iterator[Measurement]:
    """Score windows or texts with the reference and with each variant; yield each measurement as soon as it is complete.

    `variants` maps (level, engine) to what opens it. What opens a model of next tokens gives a callable that maps ids [T] and
    `first` to float32 logits [T - 1 - first, V]; others map ids [T] and segments [T] to float32 [R, D], as
    reference.load_rows says.
    Where the texts say how precise their PPL ratios shall be, each variant is scored until its own is, and the reference on as
    many windows as the longest of them took; a variant's numbers do not depend on the others.
    `budget` bounds what is kept of the reference: where that is more, every model is loaded again for each batch; where it
    holds all, it stays in `known` for the next call. `progress` hears "level engine", the windows done and all windows;
    `engine` is that of the reference. Raises HubqError where numbers are not finite, or not as many as the reference's.
    """
    torch.set_num_threads(cores())  # wherever this runs: sums in 16 bits depend on their number
    run, total, held = _Run(texts, budget, progress), len(texts.ids), [] if known is None else known
    seen: dict[tuple[str, str], list[Any]] = {key: [] for key in variants}
    while len(run.truth) < total and (seen or not run.truth):
        start = len(run.truth)
        if held and len(held) == start and run.is_full(held):
            held.clear()  # nothing is kept then but the batch at hand
        batch = held[start : run.next_stop(seen)] or run.reference(reference, run.next_stop(seen), held, engine)
        if len(held) == start:
            held += batch
        run.truth += [own for _, own in batch]
        if len(run.truth) == total:
            yield run.itself(engine)
        for key in list(seen):
            run.variant(variants[key], batch, seen[key], key)
            if len(seen[key]) == total or run.precise(seen[key]):
                yield run.measurement(key, seen.pop(key))
    if len(run.truth) < total:
        yield run.itself(engine)


class _Run:
    """What is common to all models that are scored on the same texts; `truth` is what the table needs of the reference."""

    def __init__(self, texts: Any, budget: Budget, progress: Progress) -> None:
        self.texts, self.budget, self.progress = texts, budget, progress
        self.way, self.truth = WAYS[texts.task.kind], list[np.ndarray]()

    def is_full(self, held: list[tuple[Any, np.ndarray]]) -> bool:
        """Whether the budget has no room for the reference's distributions in one more text."""
        return _bytes(held) + held[-1][0].nbytes > self.budget.size

    def next_stop(self, seen: Mapping[Any, list[Any]]) -> int:
        """How many texts are to be scored before it is looked again: what the unfinished variants need by their spread."""
        total, wanted, start = len(self.texts.ids), self.texts.evalset.precision, len(self.truth)
        if wanted is None or start < FIRST:
            return total if wanted is None else min(FIRST, total)
        spreads = [float(np.std(self._differences(columns), ddof=1)) for columns in seen.values()]
        available = self.texts.evalset.available
        stop = max(start + 1, *(needed(1.05 * spread, np.log1p(wanted), available) for spread in spreads))
        return min(stop, total)

    def precise(self, columns: list[Any]) -> bool:
        """Whether a variant's PPL ratio is known as precisely as asked."""
        wanted = self.texts.evalset.precision
        if wanted is None or len(columns) < FIRST:
            return False
        spread = float(np.std(self._differences(columns), ddof=1))
        return radius(len(columns), spread, self.texts.evalset.available) <= np.log1p(wanted)

    def _differences(self, columns: list[Columns]) -> np.ndarray:
        """The mean differences of log-likelihood from the reference, float64 [W], of the windows scored so far."""
        return np.array([(one.nll - own).mean() for one, own in zip(columns, self.truth, strict=False)])

    def reference(
        self, opened: Open, stop: int, held: list[tuple[Any, np.ndarray]], engine: str
    ) -> list[tuple[Any, np.ndarray]]:
        """What there is to keep of the next texts, until `stop` or until the budget is used up; of one at least."""
        batch: list[tuple[Any, np.ndarray]] = []
        with opened() as model:
            for place in range(len(self.truth), stop):
                kept, own = self.way.keep(self.texts, place, self.way.run(self.texts, place, model))
                self._check((REFERENCE, engine), place, own)
                folder = self.budget.folder if isinstance(kept, Kept) else None
                batch.append((_aside(kept, folder) if folder else kept, own))
                self.progress(f"{REFERENCE} {engine}", place + 1, len(self.texts.ids))
                if _bytes(held) + _bytes(batch) + kept.nbytes > self.budget.size:
                    break
        return batch

    def variant(self, opened: Open, batch: list[tuple[Any, np.ndarray]], seen: list[Any], key: tuple[str, str]) -> None:
        """Add to `seen` what a variant gives for the next texts, until its PPL ratio is precise enough."""
        with opened() as model:
            for place, (reference, _) in enumerate(batch, len(seen)):
                output = self.way.run(self.texts, place, model)
                if output.shape[-1] != reference.shape[-1]:
                    raise HubqError(
                        f"{key[0]}: in {key[1]} {WIDTHS[self.texts.task.kind].format(output.shape[-1], reference.shape[-1])}",
                        "the file belongs to another model: build it again in a fresh folder: --work-dir DIR",
                    )
                columns = self.way.compare(self.texts, place, reference, output)
                self._check(key, place, *(vars(columns).values() if isinstance(columns, Columns) else [columns]))
                seen.append(columns)
                self.progress(" ".join(key), place + 1, len(self.texts.ids))
                if self.precise(seen):
                    return

    def _check(self, key: tuple[str, str], place: int, *columns: np.ndarray) -> None:
        if not all(np.isfinite(column).all() for column in columns):
            what = self.texts.evalset.unit.removesuffix("s")
            raise HubqError(
                f"{key[0]}: {key[1]} computes logits that are not finite numbers, first in {what} {place}",
                "do not publish it: the weights are damaged, or too large for this level",
            )

    def itself(self, engine: str) -> Measurement:
        """The reference's own measurement."""
        own = self.way.table(self.texts, self.truth, None)
        return Measurement(REFERENCE, engine, estimates(own, paired=False) if own else {})

    def measurement(self, key: tuple[str, str], columns: list[Any]) -> Measurement:
        """A variant's measurement."""
        table = self.way.table(self.texts, self.truth[: len(columns)], columns)
        assert table
        return Measurement(*key, estimates(table), per_window(table))


def _bytes(kept: list[tuple[Any, np.ndarray]]) -> int:
    return sum(one.nbytes for one, _ in kept)


def _aside(kept: Kept, folder: Path) -> Kept:
    """The same with its logits in a file without a name, which is gone when nothing needs it any more, even after a crash."""
    with TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, np.float32, "w+", shape=tuple(kept.shape))
    mapped[:] = kept.shifted.numpy()
    return replace(kept, shifted=torch.from_numpy(mapped))


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
    size = windows.bytes[: len(nll_ref)]
    if columns is None:
        return itself(np.stack(nll_ref), size)
    stacked = {column.name: np.stack([getattr(window, column.name) for window in columns]) for column in fields(Columns)}
    return Scores(nll_ref=np.stack(nll_ref), bytes=size, **stacked)


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
    nll, kld, same_top, right = [], [], [], []
    for rows in _blocks(logits):
        log_p, ln_p = reference.shifted[rows].to(logits.device), reference.ln_sum[rows].to(logits.device)
        log_q = logits[rows] - logits[rows].amax(-1, keepdim=True)
        scratch = log_q.exp()
        ln_q = scratch.sum(-1, dtype=torch.float64).log()
        nll.append(_nll(log_q, ln_q, targets[rows]))
        same_top.append(_is_top(log_q, reference.top[rows]))
        right.append(_is_top(log_q, torch.as_tensor(targets[rows], dtype=torch.int64)))
        torch.sub(log_p, log_q, out=log_q)  # into the two blocks at hand: new ones would cost more than the sums
        terms = torch.exp(log_p, out=scratch).mul_(log_q).sum(-1, dtype=torch.float64)
        kld.append(terms / ln_p.exp() + ln_q - ln_p)
    divergence, same, hit = (torch.cat(rows).cpu().numpy() for rows in (kld, same_top, right))
    return Columns(np.concatenate(nll), divergence, same, reference.top.numpy() == targets, hit)


def _is_top(shifted: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whether tokens [S] are among the most probable ones, of logits less their largest [S, V]."""
    return shifted.gather(-1, tokens.to(shifted.device)[:, None])[:, 0] == 0


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Rows in blocks that stay in the processor's cache."""
    step = max(1, BLOCK // logits.shape[1]) * torch.get_num_threads()
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _nll(shifted: torch.Tensor, ln_sum: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """Minus the log-probability of the right tokens, float64 [S]."""
    index = torch.as_tensor(targets, dtype=torch.int64, device=shifted.device)[:, None]
    return (ln_sum - shifted.gather(-1, index)[:, 0].double()).cpu().numpy()
