"""Texts for models that predict no next tokens: each by itself, with its special tokens, made once for every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, Unsupported, Usage
from hubq.nouns import EvalSet, Source
from hubq.pooling import DEFAULT, pooling
from hubq.tasks import TASKS, Task
from hubq.text import BEGINNING, TextSpec, choose, read
from hubq.tokenize import load_tokenizer, read_settings, read_table

MASKED = 0.15  # share of the tokens that a mask hides, as BERT was trained (Devlin et al. 2018, arXiv 1810.04805)
QUERY = 12  # words of a text that ask for it, where pairs are scored
FEWEST = 2


@dataclass(frozen=True)
class Samples:
    """The texts to score: their ids [T] and the numbers of their segments [T], both int64; a pair is a text of two segments.

    `places` are those of the labels in what a model gives for a text; `pooling` makes its vector. `text` is the beginning of
    the text that they are from.
    """

    evalset: EvalSet
    task: Task
    ids: Sequence[np.ndarray]
    segments: Sequence[np.ndarray]
    places: Sequence[np.ndarray]
    pooling: str = DEFAULT
    text: str = ""


@dataclass(frozen=True)
class _Encoded:
    """A tokenized text: its ids and segments, and where its own tokens are, which are not special ones."""

    ids: np.ndarray
    segments: np.ndarray
    own: np.ndarray


def samples(source: Source, spec: TextSpec, task: str) -> Samples:
    """The texts that measure a source's variants in a task, and the facts that pin them.

    They are rows of the dataset, or lines of a .txt file, drawn by the spec's seed; blank ones and repetitions do not count.
    Raises Usage where there are fewer than two, Unsupported for a source without tokenizer.json, and what text.read raises.
    """
    if spec.precision is not None:
        raise Usage("--precision is that of a PPL ratio, which this model does not have", "say how many texts: --windows N")
    kind, found = TASKS[task], read(spec)
    texts = list(dict.fromkeys(row for row in found.rows if row.strip()))
    chosen = choose(len(texts), spec.texts, spec.seed)
    pairs = kind.kind == "scores"
    given = _pairs([texts[i] for i in chosen]) if pairs else [texts[i] for i in chosen]
    encoded = _encode(source.folder, given, _longest(source, spec.length))
    if len(encoded) < FEWEST:
        raise Usage(
            f"{found.dataset} has {len(encoded)} texts in rows of its own, too few",
            "give more texts: --dataset FILE.jsonl with one in each line, or .txt, .parquet",
        )
    places = [one.own if kind.places != "whole" else np.zeros(1, np.int64) for one in encoded]
    ids = [one.ids for one in encoded]
    if kind.places == "masked":
        ids, places = _hide(ids, places, _mask(source.folder), spec.seed or 0)
    evalset = EvalSet(
        **found.facts,
        tokens=sum(map(len, ids)),
        available=len(texts),
        windows=len(ids),
        length=max(map(len, ids)),
        seed=spec.seed,
        bos=None,
        ids_sha256=hashlib.sha256(b"".join(np.array([len(one), *one], "<i4").tobytes() for one in ids)).hexdigest(),
        unit="pairs" if pairs else "texts",
    )
    pooled = pooling(source.folder) or DEFAULT if kind.kind == "vectors" else DEFAULT
    return Samples(evalset, kind, ids, [one.segments for one in encoded], places, pooled, found.text[:BEGINNING])


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """A query and a text each: the first words of a text, and the rest of it or, every other time, of the next one."""
    words = [text.split() for text in texts]
    rests = [" ".join(text[QUERY:] or text) for text in words]
    return [(" ".join(text[:QUERY]), rests[(i + i % 2) % len(texts)]) for i, text in enumerate(words)]


def _encode(folder: Path, texts: Sequence[Any], longest: int) -> list[_Encoded]:
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise Unsupported(
            "the model has no tokenizer.json, which says how special tokens are put around a text",
            "write it: AutoTokenizer.from_pretrained('FOLDER').save_pretrained('FOLDER'), or publish with --no-eval",
        )
    tokenizer.enable_truncation(longest)
    try:
        encodings = tokenizer.encode_batch(list(texts))
    finally:
        tokenizer.no_truncation()
    found = [
        _Encoded(
            np.array(encoding.ids, np.int64),
            np.array(encoding.type_ids, np.int64),
            np.flatnonzero(np.array(encoding.special_tokens_mask) == 0),
        )
        for encoding in encodings
    ]
    return [one for one in found if len(one.own)]


def _longest(source: Source, length: int) -> int:
    """The most ids of a text: `length`, or what the model takes."""
    sizes = [length, read_settings(source.folder).get("model_max_length")]
    sizes.append(read_table(source.folder / "sentence_bert_config.json").get("max_seq_length"))
    sizes.append(_positions(source.config))
    return int(min(size for size in sizes if isinstance(size, int | float) and size >= FEWEST))


def _positions(config: Mapping[str, Any]) -> int | None:
    """The positions that a model has; those of RoBERTa and its like count from behind the padding's id."""
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(positions, int):
        return None
    shifted = any(name in str(config.get("model_type")) for name in ("roberta", "camembert", "mpnet", "longformer"))
    return positions - (padding if isinstance(padding, int) else 1) - 1 if shifted else positions


def _mask(folder: Path) -> int:
    """The id of the token that hides others."""
    token = read_settings(folder).get("mask_token") or read_table(folder / "special_tokens_map.json").get("mask_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    tokenizer = load_tokenizer(folder)
    found = tokenizer.token_to_id(str(text)) if tokenizer and text else None
    if found is None:
        raise BadSource("the tokenizer names no mask_token, which a model that fills masks needs", AGAIN)
    return found


def _hide(
    ids: Sequence[np.ndarray], places: Sequence[np.ndarray], mask: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids with a seeded share of those at `places` behind the mask, at least one of each text, and where these are."""
    rng = np.random.Generator(np.random.PCG64(seed))
    hidden = [np.sort(rng.choice(own, max(1, round(MASKED * len(own))), replace=False)) for own in places]
    masked = [one.copy() for one in ids]
    for one, where in zip(masked, hidden, strict=True):
        one[where] = mask
    return masked, hidden
