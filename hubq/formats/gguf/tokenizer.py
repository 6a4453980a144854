"""The vocabulary in tokenizer.json for llama.cpp's tokenizers: SentencePiece's BPE and Unigram, and WordPiece.

Each of them treats text in one fixed way, so a tokenizer.json that treats it otherwise is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, Unsupported

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# added tokens that models use as control tokens without marking them special, as llama.cpp's converter knows them
CONTROL = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
CONTROL_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
# control tokens of Gemma 4 that a chat's reader has to see
VISIBLE = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}

UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0  # as llama.cpp's converter sets them

OTHER = "use a model whose tokenizer llama.cpp has: byte-level BPE, SentencePiece BPE with byte_fallback, WordPiece or Unigram"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A vocabulary, one entry per id: `model` and `pre` are `tokenizer.ggml.model` and `.pre`.

    `scores` may be empty. `keys` are more keys of `tokenizer.ggml`; `special` are ids of special tokens that the algorithm
    uses; `merges`: whether llama.cpp needs the merges of BPE.
    """

    model: str
    pre: str
    texts: list[str] | list[bytes]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    keys: Mapping[str, bool | bytes] = field(default_factory=dict)
    special: Mapping[str, int] = field(default_factory=dict)
    merges: bool = False


def listed(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id; ids up to `size` that the tokenizer lacks are unused."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    by_id = {i: token for token, i in vocabulary.items()}
    if len(by_id) < len(vocabulary):
        raise BadSource("the tokenizer gives two tokens the same id", AGAIN)
    check_size(max(by_id, default=-1) + 1, size)
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(size):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(int(TokenType.UNUSED))
        else:
            tokens.append(by_id[i])
            types.append(added_type(by_id[i], added[i].special) if i in added else int(TokenType.NORMAL))
    return tokens, types


def check_size(needed: int, size: int) -> None:
    if needed > size:
        raise BadSource(f"the tokenizer has {needed:,} tokens, the model's vocabulary {size:,}", AGAIN)


def added_type(text: str, special: bool) -> int:
    """The type of an added token: control or user-defined."""
    control = special or text in CONTROL or any(text.startswith(a) and text.endswith(b) for a, b in CONTROL_ENDS)
    return int(TokenType.CONTROL if control else TokenType.USER_DEFINED)


def _steps(section: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a section of tokenizer.json: sequences are unfolded."""
    if section is None:
        return []
    parts = section.get("normalizers" if "normalizers" in section else "pretokenizers")
    return [step for part in parts for step in _steps(part)] if parts is not None else [section]


# --- SentencePiece BPE ---

PREPEND = {"type": "Prepend", "prepend": SPACE}
ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}  # finds no spaces left


def _metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


# steps before BPE -> whether a space goes in front of a text; Metaspace adds none before a space, and "first" none behind a
# special token, while llama.cpp does: files made from the same SentencePiece model differ so
PREFIXES: list[tuple[list[Any], bool]] = [
    ([PREPEND, ESCAPE], True),
    ([ESCAPE], False),
    ([ESCAPE, SPLIT], False),
    ([_metaspace("always", False)], True),
    ([_metaspace("first", False)], True),
    ([_metaspace("never", False)], False),
]
UNKNOWN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")  # settings of BPE


def spaced_bpe(tokenizer: Tokenizer, document: Mapping[str, Any], size: int) -> Tokens:
    """BPE on characters with bytes for the ones it lacks, as converted from SentencePiece.

    llama.cpp merges by the scores of tokens ("llama"), or by the merges themselves, as Gemma 4 does it.
    """
    model = document["model"]
    steps = [*_steps(document["normalizer"]), *_steps(document["pre_tokenizer"])]
    prefix = next((prefix for known, prefix in PREFIXES if known == steps), None)
    if prefix is None or any(model.get(setting) for setting in UNKNOWN) or not set(BYTES) <= set(model["vocab"]):
        raise Unsupported("tokenizer.json is BPE with byte_fallback, but treats text in a way that llama.cpp does not", OTHER)
    texts, types = listed(tokenizer, size)
    for byte in BYTES:
        types[model["vocab"][byte]] = int(TokenType.BYTE)
    normal = [text for text, kind in zip(texts, types, strict=True) if kind == TokenType.NORMAL]
    ranked = _ranked([tuple(merge) for merge in model["merges"]], model["vocab"], set(normal))
    by_scores = ranked is not None and not VISIBLE & set(texts)
    begins = tokenizer.encode("a").ids[0] != tokenizer.encode("a", add_special_tokens=False).ids[0]  # with BOS
    if not by_scores and (prefix or not begins or any(set(text) > {"\n"} for text in normal)):
        raise Unsupported("the merges of tokenizer.json are not those of a SentencePiece model", OTHER)
    types = [int(TokenType.USER_DEFINED) if text in VISIBLE else kind for text, kind in zip(texts, types, strict=True)]
    texts = [spaced(text, kind) for text, kind in zip(texts, types, strict=True)]
    if not by_scores:
        return Tokens("gemma4", "gemma4", texts, types, [ADDED_SCORE] * size, {"add_space_prefix": False}, merges=True)
    scores = _scores(texts, types, [*(ranked or []), *normal])
    return Tokens("llama", "default", texts, types, scores, {"add_space_prefix": prefix})


def spaced(text: str, kind: int) -> str:
    """A token's text for llama.cpp, which looks for user-defined tokens before it marks spaces."""
    return text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else text


def _ranked(merges: list[tuple[str, ...]], vocabulary: Mapping[str, int], normal: set[str]) -> list[str] | None:
    """The normal tokens that merges make, first merged first; None where to merge any neighbours that form a token differs."""
    ranked = [token for token, _ in groupby("".join(merge) for merge in merges) if token in normal]
    known = set(merges)
    possible = (
        (token[:n], token[n:])
        for token in vocabulary
        for n in range(1, len(token))
        if (n == 1 or token[:n] in vocabulary) and (n == len(token) - 1 or token[n:] in vocabulary)
    )
    return ranked if len(set(ranked)) == len(ranked) and all(pair in known for pair in possible) else None


def _scores(texts: list[str], types: list[int], order: list[str]) -> list[float]:
    """The scores of SentencePiece: minus the place of a normal token in `order`, where its first place counts."""
    places = {text: -float(place) for place, text in enumerate(dict.fromkeys(order))}
    fixed = {TokenType.BYTE: 0.0, TokenType.UNUSED: UNUSED_SCORE}
    return [
        places[text] if kind == TokenType.NORMAL else fixed.get(TokenType(kind), ADDED_SCORE)
        for text, kind in zip(texts, types, strict=True)
    ]


# --- WordPiece ---


def wordpiece(tokenizer: Tokenizer, document: Mapping[str, Any], size: int) -> Tokens:
    """BERT's tokenizer; llama.cpp marks the beginning of a word where BERT marks its continuation.

    Where BERT strips accents, llama.cpp strips more: Indic vowel signs, and of a Korean syllable all but its first consonant.
    """
    model, normalizer, ends = document["model"], document["normalizer"] or {}, tokenizer.encode("").ids
    exact = (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and document["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and model["continuing_subword_prefix"] == "##"
        and model["unk_token"] in model["vocab"]
        and len(ends) == 2  # llama.cpp puts a token at either end of every text
    )
    if not exact:
        raise Unsupported("tokenizer.json is WordPiece, but treats text in another way than BERT and llama.cpp do", OTHER)
    texts, types = listed(tokenizer, size)
    texts = [_phantom(text) if kind != TokenType.CONTROL else text for text, kind in zip(texts, types, strict=True)]
    keys = {f"normalizer.{name}": normalizer[name] for name in ("lowercase", "strip_accents") if normalizer[name] is not None}
    special = {"bos": ends[0], "sep": ends[1], "unk": model["vocab"][model["unk_token"]]}
    return Tokens("bert", "default", texts, types, keys=keys, special=special)


def _phantom(text: str) -> str:
    return text[2:] if text.startswith("##") else SPACE + text


# --- Unigram ---

TRIM = {"type": "Strip", "strip_left": False, "strip_right": True}
ONE = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content} for content in (" ", SPACE)]
WORDS = {"type": "WhitespaceSplit"}


def unigram(tokenizer: Tokenizer, document: Mapping[str, Any], size: int) -> Tokens:
    """SentencePiece's language model of pieces, as T5 and XLM-RoBERTa have it: runs of spaces count as one.

    llama.cpp never gives a token to a space at the end of a text; a tokenizer.json without TRIM or WORDS does.
    """
    model = document["model"]
    steps = [*_steps(document["normalizer"]), *_steps(document["pre_tokenizer"])]
    charsmap, inner = steps[:1], steps[1:-1]
    exact = (
        [step["type"] for step in charsmap] == ["Precompiled"]
        and steps[-1] == _metaspace("always", True)
        and all(step in (TRIM, *ONE, WORDS) for step in inner)
        and inner[-1:] not in ([], [TRIM])
        and not any(SPACE in text.lstrip(SPACE) for text, _ in model["vocab"])  # reaches over the beginning of a word
    )
    if not exact or model["unk_id"] is None or model.get("byte_fallback"):
        raise Unsupported("tokenizer.json is Unigram, but treats text in another way than llama.cpp does", OTHER)
    texts, types = listed(tokenizer, size)
    types[model["unk_id"]] = int(TokenType.UNKNOWN)
    scores = [UNUSED_SCORE if kind == TokenType.UNUSED else ADDED_SCORE for kind in types]
    scores[: len(model["vocab"])] = [float(score) for _, score in model["vocab"]]
    texts = [spaced(text, kind) for text, kind in zip(texts, types, strict=True)]
    table = base64.b64decode(charsmap[0]["precompiled_charsmap"])
    keys: dict[str, bool | bytes] = {"add_space_prefix": True, "remove_extra_whitespaces": True, "precompiled_charsmap": table}
    return Tokens("t5", "default", texts, types, scores, keys, {"unk": model["unk_id"]})
