"""llama-perplexity's numbers of a GGUF: computed as llama.cpp's tool of that name does, and under its names.

They are for comparing with what others published. hubq's own measurements choose windows all over the text and know that tokens
of a window depend on each other; here chunks are the first ones, and errors are those of independent tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hubq.errors import HubqError, Unsupported, Usage
from hubq.formats.gguf.engine import Batched, Vocabulary, batched
from hubq.formats.gguf.read import read_set
from hubq.score import compare, keep

KLD_QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001)
DELTA_QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)


@dataclass(frozen=True, slots=True)
class Row:
    """A number under llama-perplexity's name, and one standard error where it has one; `unit` is fraction, nats or nothing."""

    name: str
    value: float
    stderr: float | None = None
    unit: str = ""


class Scored(NamedTuple):
    """What was seen at S tokens, each [S]: NLL of the base and of the file and the divergence in nats, whether the top one is
    the same."""

    nll_ref: np.ndarray
    nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray


@dataclass(frozen=True, slots=True)
class Result:
    """What was scored, and what was found: `tokens` in all chunks, of `available` chunks in the text."""

    chunks: int
    available: int
    tokens: int
    rows: tuple[Row, ...]


def perplexity(
    path: Path,
    text: Path,
    base: Path | None = None,
    size: int = 512,
    chunks: int | None = None,
    batch: int = 2048,
    progress: Callable[[int, int, float], None] = lambda done, total, ppl: None,
) -> Result:
    """Score the first `chunks` chunks of `size` tokens of a text (None: all); with `base` the divergence from that GGUF, too.

    `batch` is the number of tokens that llama.cpp is given at once, which changes the last digits. The base's logits are
    compared as they are, and never stored: llama-perplexity rounds them to 16 bits. `progress` hears chunks done, all chunks
    and the perplexity so far.
    Raises Usage for a text that is too short, BadSource for what is no GGUF, MissingExtra where llama.cpp is not installed,
    HubqError for files that do not load or do not fit together.
    """
    words = read_text(text)
    for file in filter(None, (path, base)):
        read_set(_present(file))
    with ExitStack() as stack:
        model = stack.enter_context(batched(path, size, batch))
        other = stack.enter_context(batched(base, size, batch)) if base else None
        if other and other.width != model.width:
            raise HubqError(*_misfit(f"{path} has {model.width:,} tokens in its vocabulary, {base} {other.width:,}"))
        ids = _tokens(words, model.vocabulary, text, size)
        if other and not np.array_equal(ids, _tokens(words, other.vocabulary, text, size)):
            raise HubqError(*_misfit(f"{path} and {base} do not turn the text into the same tokens"))
        available = len(ids)
        ids = ids[:chunks]
        found: list[Scored] = []
        for start in range(0, len(ids), model.room):
            found += _scored(model, other, ids[start : start + model.room])
            progress(len(found), len(ids), float(np.exp(np.mean([one.nll for one in found]))))
    scored = Scored(*map(np.concatenate, zip(*found, strict=True)))
    return Result(len(ids), available, len(scored.nll), against(scored) if base else alone(scored.nll))


def _misfit(what: str) -> tuple[str, str]:
    return what, "name a base that the file was made from"


def read_text(path: Path) -> str:
    """A text as llama-perplexity reads it: but for the last line feed. Raises Usage for what is no text."""
    try:
        return _present(path).read_bytes().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise Usage(f"{path} is not text in UTF-8", "convert it first") from None


def _present(path: Path) -> Path:
    if not path.is_file():
        raise Usage(f"there is no file {path}", "check the name")
    return path


def _tokens(text: str, vocabulary: Vocabulary, name: Path, size: int) -> np.ndarray:
    """The ids of all whole chunks of a text, int64 [C, T]; the text is tokenized as one."""
    if vocabulary.adds_eos:
        raise Unsupported("the tokenizer ends every text with EOS, and llama-perplexity refuses those", "use hubq publish")
    ids = np.array(vocabulary.encode(text, parse_special=False), np.int64)
    if len(ids) < 2 * size:
        raise Usage(
            f"{name} has {len(ids):,} tokens, and {2 * size:,} are needed: two contexts of {size:,}",
            "take a longer text, or a smaller --ctx-size",
        )
    return ids[: len(ids) // size * size].reshape(-1, size)


def _scored(model: Batched, base: Batched | None, ids: np.ndarray) -> Iterator[Scored]:
    """What is seen in each of some chunks; the file itself is the base where there is none."""
    first = ids.shape[1] // 2
    logits = torch.from_numpy(model(_begun(ids, model), first))[:, :-1]
    truth = torch.from_numpy(base(_begun(ids, base), first))[:, :-1] if base else logits
    for place, targets in enumerate(ids[:, first + 1 :]):
        kept = keep(truth[place])
        right = kept.shifted.gather(-1, torch.from_numpy(targets)[:, None])[:, 0].double()
        columns = compare(kept, logits[place], targets)
        yield Scored((kept.ln_sum - right).numpy(), columns.nll, columns.kld, columns.same_top)


def _begun(ids: np.ndarray, model: Batched) -> np.ndarray:
    """Chunks whose first token gave way to BOS, where the vocabulary wants texts to begin with it."""
    if not model.vocabulary.adds_bos or model.vocabulary.bos is None:
        return ids
    begun = ids.copy()
    begun[:, 0] = model.vocabulary.bos
    return begun


# --- statistics ---


def alone(nll: np.ndarray) -> tuple[Row, ...]:
    """The perplexity of one file; `nll` [N]."""
    return (_exponential("PPL", nll),)


def against(scored: Scored) -> tuple[Row, ...]:
    """What llama-perplexity says with --kl-divergence."""
    nll_ref, nll, kld, same_top = scored
    delta = np.exp(-nll) - np.exp(-nll_ref)
    ppl, ppl_ref = np.exp(nll.mean()), np.exp(nll_ref.mean())
    mse, rms = delta**2, float(np.sqrt((delta**2).mean()))
    return (
        _exponential("Mean PPL(Q)", nll),
        _exponential("Mean PPL(base)", nll_ref),
        Row("Cor(ln(PPL(Q)), ln(PPL(base)))", float(np.corrcoef(nll, nll_ref)[0, 1]), unit="fraction"),
        _mean("Mean ln(PPL(Q)/PPL(base))", nll - nll_ref, "nats"),
        _exponential("Mean PPL(Q)/PPL(base)", nll - nll_ref),
        Row("Mean PPL(Q)-PPL(base)", float(ppl - ppl_ref), _stderr(ppl * nll - ppl_ref * nll_ref)),
        _mean("Mean KLD", kld, "nats"),
        *_spread("KLD", kld, KLD_QUANTILES, "nats"),
        _mean("Mean Δp", delta, "fraction"),
        *_spread("Δp", delta, DELTA_QUANTILES, "fraction"),
        Row("RMS Δp", rms, _stderr(mse) / (2 * rms) if rms else 0.0, "fraction"),
        _mean("Same top p", same_top, "fraction"),
    )


def _mean(name: str, values: np.ndarray, unit: str) -> Row:
    return Row(name, float(values.mean()), _stderr(values), unit)


def _stderr(values: np.ndarray) -> float:
    """The standard error of a mean of independent values."""
    return float(np.std(values) / np.sqrt(len(values) - 1))


def _exponential(name: str, values: np.ndarray) -> Row:
    """exp of a mean, its error by the delta method."""
    value = float(np.exp(values.mean()))
    return Row(name, value, value * _stderr(values))


def _spread(name: str, values: np.ndarray, quantiles: tuple[float, ...], unit: str) -> Iterator[Row]:
    """The largest value, quantiles, interpolated linearly, and the least."""
    yield Row(f"Maximum {name}", float(values.max()), unit=unit)
    for q in quantiles:
        yield Row(f"Median {name}" if q == 0.5 else f"{100 * q:.1f}% {name}", float(np.quantile(values, q)), unit=unit)
    yield Row(f"Minimum {name}", float(values.min()), unit=unit)
