"""Windows of token ids x engines -> measurements. One piece of code for every format.

The reference goes first and its log-probabilities are kept, of as many windows as the memory budget holds; then each variant
scores the same windows against them. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hubq.errors import HubqError
from hubq.metrics import Scores, estimates, itself
from hubq.nouns import Measurement
from hubq.text import Windows

Logits = Callable[[np.ndarray, int], Any]
Open = Callable[[], AbstractContextManager[Logits]]
Progress = Callable[[str, int, int], None]

REFERENCE = "reference"  # what stands for a level in the measurement of the source itself
BUDGET = 2 << 30  # bytes of log-probabilities
BLOCK = 1 << 19  # numbers that a core works on at a time: few enough to stay in its cache, enough to be worth waking it for


@dataclass(frozen=True)
class Kept:
    """The reference's next-token distributions in one window: log p = `shifted` - `ln_sum`.

    `shifted` are the logits less their largest, float32 [S, V]; `ln_sum` float64 [S]; `top` the most probable token, int64 [S].
    """

    shifted: torch.Tensor
    ln_sum: torch.Tensor
    top: torch.Tensor


@dataclass(frozen=True)
class Columns:
    """One window's columns of the table of scores: `nll` and `kld` in nats, float64 [S]; `same_top`, bool [S]."""

    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray


def measure(
    windows: Windows,
    reference: Open,
    variants: Mapping[tuple[str, str], Open],
    budget: int = BUDGET,
    progress: Progress = lambda label, done, total: None,
    known: list[tuple[Kept, np.ndarray]] | None = None,
    engine: str = "transformers",
) -> Iterator[Measurement]:
    """Score all windows with the reference and with each variant; yield each one's measurement as soon as it is complete.

    `variants` maps (level, engine) to what opens it; an opened model maps ids [T] and `first` to float32 logits
    [T - 1 - first, V]. `budget` bounds the kept log-probabilities, in bytes: where they exceed it, every model is loaded
    again for each batch; where it holds them all, they stay in `known` for the next call. `progress` hears "level engine", the
    windows done and all windows; `engine` is that of the reference. Raises
    HubqError where logits are not finite, or not over the reference's vocabulary.
    """
    total = len(windows.ids)
    truth: list[np.ndarray] = []
    seen: dict[tuple[str, str], list[Columns]] = {key: [] for key in variants}
    while len(truth) < total:
        start = len(truth)
        batch = known or list(_reference(windows.ids, start, reference, (REFERENCE, engine), budget, progress))
        kept = [window for window, _ in batch]
        truth += [nll for _, nll in batch]
        if known is not None and len(batch) == total:
            known[:] = batch
        if len(truth) == total:
            yield Measurement(REFERENCE, engine, estimates(itself(np.stack(truth), windows.bytes), paired=False))
        for key, opened in variants.items():
            seen[key] += _variant(windows.ids, start, kept, opened, key, progress)
            if len(truth) == total:
                yield Measurement(*key, estimates(_table(np.stack(truth), seen.pop(key), windows.bytes)))


def _table(nll_ref: np.ndarray, columns: list[Columns], size: np.ndarray) -> Scores:
    stacked = {name: np.stack([getattr(window, name) for window in columns]) for name in ("nll", "kld", "same_top")}
    return Scores(nll_ref=nll_ref, bytes=size, **stacked)


def _reference(
    ids: np.ndarray, start: int, reference: Open, key: tuple[str, str], budget: int, progress: Progress
) -> Iterator[tuple[Kept, np.ndarray]]:
    """Windows from `start` on with their NLL [S], until all are done or the budget is used up; at least one."""
    first, room = ids.shape[1] // 2, 1
    with reference() as logits:
        window = start
        while window < min(start + room, len(ids)):
            kept = keep(torch.as_tensor(logits(ids[window], first)))
            nll = _nll(kept.shifted, kept.ln_sum, ids[window, first + 1 :])
            _finite(key, window, nll)
            yield kept, nll
            room = max(1, budget // kept.shifted.nbytes)
            window += 1
            progress(" ".join(key), window, len(ids))


def _variant(
    ids: np.ndarray, start: int, kept: list[Kept], opened: Open, key: tuple[str, str], progress: Progress
) -> Iterator[Columns]:
    first = ids.shape[1] // 2
    with opened() as logits:
        for window, reference in enumerate(kept, start):
            found = torch.as_tensor(logits(ids[window], first))
            if found.shape != reference.shifted.shape:
                sizes = found.shape[-1], reference.shifted.shape[-1]
                raise HubqError(
                    f"{key[0]}: in {key[1]} the vocabulary has {sizes[0]:,} tokens, in the source {sizes[1]:,}",
                    "the file belongs to another model: build it again in a fresh folder: --work-dir DIR",
                )
            columns = compare(reference, found, ids[window, first + 1 :])
            _finite(key, window, columns.nll, columns.kld)
            yield columns
            progress(" ".join(key), window + 1, len(ids))


def _finite(key: tuple[str, str], window: int, *columns: np.ndarray) -> None:
    if not all(np.isfinite(column).all() for column in columns):
        raise HubqError(
            f"{key[0]}: {key[1]} computes logits that are not finite numbers, first in window {window}",
            "do not publish it: the weights are damaged, or too large for this level",
        )


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
