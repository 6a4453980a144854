"""The tokenizer of a model as GGUF keys: byte-level BPE from tokenizer.json, or SentencePiece from tokenizer.model.

Special token ids, add_bos/add_eos, merges and chat templates come from the gguf package's SpecialVocab.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.pretokenizers import recognize

# added tokens that models use as control tokens without marking them special, as llama.cpp's converter knows them
CONTROL = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
CONTROL_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space


@dataclass(frozen=True, slots=True)
class Vocab:
    """A vocabulary, one entry per id: `model` and `pre` are `tokenizer.ggml.model` and `.pre`; `scores` only for SentencePiece."""

    model: str
    pre: str
    tokens: list[str] | list[bytes]
    types: list[int]
    special: gguf.SpecialVocab
    scores: list[float] = field(default_factory=list)
    space_prefix: bool | None = None

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's keys to a GGUF."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        self.special.add_to_gguf(writer, quiet=True)


def read_vocab(folder: Path, size: int) -> Vocab:
    """The tokenizer in `folder`, padded to `size` ids.

    Raises BadSource for a tokenizer that is missing or larger than the model's vocabulary, Unsupported for a kind or a
    pre-tokenizer that is not known.
    """
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder, size, settings)
    if (folder / "tokenizer.json").is_file():
        return _byte_level(folder, size)
    raise BadSource("there is no tokenizer: neither tokenizer.json nor tokenizer.model", AGAIN)


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{path.name} cannot be read: {error}", AGAIN) from None
    if not isinstance(document, dict):
        raise BadSource(f"{path.name} is not a table", AGAIN)
    return document


def _byte_level(folder: Path, size: int) -> Vocab:
    from tokenizers import Tokenizer

    document = _json(folder / "tokenizer.json")
    model = document.get("model") or {}
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in json.dumps(document.get("decoder")):
        raise Unsupported(
            "tokenizer.json is not byte-level BPE, and there is no tokenizer.model",
            "add the SentencePiece model (tokenizer.model) that the tokenizer was made from",
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise BadSource(f"tokenizer.json cannot be read: {error}", AGAIN) from None
    pre = recognize(tokenizer)
    if pre is None:
        raise Unsupported(
            "the pre-tokenizer of tokenizer.json is none that llama.cpp is known to have, and guessing one would damage the model",
            "if llama.cpp supports it, add it to hubq/formats/gguf/pretokenizers.py",
        )
    tokens, types = _tokens(tokenizer, size)
    special = _special(folder, size, merges=True)
    if not special.merges:
        raise BadSource("tokenizer.json has no merges, and there is no merges.txt", AGAIN)
    # written always: llama.cpp's default depends on the pre-tokenizer
    prefix = tokenizer.encode("a").ids[: -len(tokenizer.encode("a", add_special_tokens=False).ids)]
    special.add_special_token.setdefault("bos", bool(prefix) and prefix[0] == special.special_token_ids.get("bos"))
    return Vocab("gpt2", pre, tokens, types, special)


def _tokens(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    _check_size(max(by_id) + 1, size)
    tokens, types = [], []
    for i in range(size):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(int(TokenType.UNUSED))
        elif i not in added:
            tokens.append(by_id[i])
            types.append(int(TokenType.NORMAL))
        else:
            text, kind = _added(by_id[i], added[i].special)
            if not added[i].normalized:  # llama.cpp takes these as already normalized
                text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            tokens.append(text)
            types.append(kind)
    return tokens, types


def _added(text: str, special: bool) -> tuple[str, int]:
    """The text and type of an added token: control, or user-defined (with plain spaces)."""
    if special or text in CONTROL or any(text.startswith(a) and text.endswith(b) for a, b in CONTROL_ENDS):
        return text, int(TokenType.CONTROL)
    return text.replace(SPACE, " "), int(TokenType.USER_DEFINED)


def _sentencepiece(folder: Path, size: int, settings: Mapping[str, Any]) -> Vocab:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(folder / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        raise BadSource(f"tokenizer.model is not a SentencePiece model: {error}", AGAIN) from None
    _check_size(processor.vocab_size(), size)
    tokens = [f"[PAD{i}]".encode() for i in range(size)]
    scores, types = [-10000.0] * size, [int(TokenType.UNUSED)] * size
    for i in range(processor.vocab_size()):
        tokens[i], scores[i], types[i] = processor.IdToPiece(i).encode(), processor.GetScore(i), _kind(processor, i)
    for i, text, special in _added_pieces(folder, settings):
        _check_size(i + 1, size)
        text, types[i] = _added(text, special)
        tokens[i], scores[i] = text.encode(), -1000.0
    special_vocab = _special(folder, size, merges=False)
    special_vocab.add_special_token.setdefault("bos", True)  # what SentencePiece models do where nothing else is said
    prefix = settings.get("add_prefix_space")
    return Vocab("llama", "default", tokens, types, special_vocab, scores, prefix if isinstance(prefix, bool) else None)


def _kind(processor: Any, i: int) -> int:
    kinds = (
        (processor.IsUnknown, TokenType.UNKNOWN),
        (processor.IsControl, TokenType.CONTROL),
        (processor.IsUnused, TokenType.UNUSED),
        (processor.IsByte, TokenType.BYTE),
    )
    return int(next((kind for test, kind in kinds if test(i)), TokenType.NORMAL))


def _added_pieces(folder: Path, settings: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, text, special) of the tokens that were added to a SentencePiece model, from the two places that name them."""
    pieces = []
    try:
        if (folder / "added_tokens.json").is_file():
            pieces += [(int(i), str(text), False) for text, i in _json(folder / "added_tokens.json").items()]
        for i, entry in settings.get("added_tokens_decoder", {}).items():
            pieces.append((int(i), str(entry["content"]), bool(entry.get("special"))))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise BadSource("the added tokens of the tokenizer cannot be read", AGAIN) from None
    if any(i < 0 for i, _, _ in pieces):
        raise BadSource("an added token has a negative id", AGAIN)
    return pieces


def _special(folder: Path, size: int, merges: bool) -> gguf.SpecialVocab:
    try:
        return gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSource(f"the special tokens of the tokenizer cannot be read: {error}", AGAIN) from None


def _check_size(needed: int, size: int) -> None:
    if needed > size:
        raise BadSource(f"the tokenizer has {needed:,} tokens, the model's vocabulary {size:,}", AGAIN)
