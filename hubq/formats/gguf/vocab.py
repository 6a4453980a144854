"""The tokenizer of a model as GGUF keys: byte-level BPE from tokenizer.json, or SentencePiece from tokenizer.model.

Special token ids, add_bos/add_eos and merges come from the gguf package's SpecialVocab.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from gguf import TokenType

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.pretokenizers import CHECK_TEXT, recognize
from hubq.formats.gguf.spm import BPE, Model, read_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# added tokens that models use as control tokens without marking them special, as llama.cpp's converter knows them
CONTROL = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
CONTROL_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space


@dataclass(frozen=True, slots=True)
class Vocab:
    """A vocabulary, one entry per id: `model` and `pre` are `tokenizer.ggml.model` and `.pre`; `scores` only for SentencePiece.

    `templates` are the chat templates beside the default one, by name.
    """

    model: str
    pre: str
    tokens: list[str] | list[bytes]
    types: list[int]
    special: gguf.SpecialVocab
    templates: dict[str, str]
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
        for name, template in self.templates.items():
            writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), template)
        if self.templates:
            writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, list(self.templates))


def read_vocab(folder: Path, size: int) -> Vocab:
    """The tokenizer in `folder`, padded to `size` ids.

    Raises BadSource for a tokenizer that is missing, damaged or larger than the model's vocabulary, Unsupported for one that
    llama.cpp is not known to reproduce.
    """
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    tokenizer = _tokenizer(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
    document = json.loads(tokenizer.to_str()) if tokenizer is not None else {}
    if tokenizer is not None and _is_byte_level(document):
        return _byte_level(folder, tokenizer, document, size, settings)
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder, tokenizer, size, settings)
    if tokenizer is None:
        raise BadSource("there is no tokenizer: neither tokenizer.json nor tokenizer.model", AGAIN)
    raise Unsupported(
        "tokenizer.json is not byte-level BPE, and there is no tokenizer.model",
        "add the SentencePiece model (tokenizer.model) that the tokenizer was made from",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{path.name} cannot be read: {error}", AGAIN) from None
    if not isinstance(document, dict):
        raise BadSource(f"{path.name} is not a table", AGAIN)
    return document


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode(CHECK_TEXT)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise BadSource(f"tokenizer.json cannot be read: {error}", AGAIN) from None
    return tokenizer


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    model = document["model"]
    return model["type"] == "BPE" and not model.get("byte_fallback") and "ByteLevel" in json.dumps(document["decoder"])


def _byte_level(
    folder: Path, tokenizer: Tokenizer, document: Mapping[str, Any], size: int, settings: Mapping[str, Any]
) -> Vocab:
    pre = recognize(tokenizer)
    if pre is None:
        raise Unsupported(
            "the pre-tokenizer of tokenizer.json is none that llama.cpp is known to have, and a guess would damage the model",
            "if llama.cpp supports it, add it to hubq/formats/gguf/pretokenizers.py",
        )
    if not document["model"]["merges"]:
        raise BadSource("tokenizer.json has no merges", AGAIN)
    tokens, types = _tokens(tokenizer, size)
    special = _special(folder, size, merges=True)
    _say_what_is_added(special, tokenizer, settings)
    return Vocab("gpt2", pre, tokens, types, special, _templates(folder, settings, special))


def _say_what_is_added(special: gguf.SpecialVocab, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Whether texts begin with BOS and end with EOS; written always, as llama.cpp's default depends on the pre-tokenizer."""
    bare, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    for name, at in (("bos", 0), ("eos", -1)):
        if not isinstance(settings.get(f"add_{name}_token"), bool):
            added = len(full) > len(bare) and full[at] == special.special_token_ids.get(name)
            special.add_special_token[name] = added


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    by_id = {i: token for token, i in vocabulary.items()}
    if len(by_id) < len(vocabulary):
        raise BadSource("tokenizer.json gives two tokens the same id", AGAIN)
    _check_size(max(by_id, default=-1) + 1, size)
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(size):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(int(TokenType.UNUSED))
        else:
            tokens.append(by_id[i])
            types.append(_added(by_id[i], added[i].special) if i in added else int(TokenType.NORMAL))
    return tokens, types


def _added(text: str, special: bool) -> int:
    """The type of an added token: control or user-defined."""
    control = special or text in CONTROL or any(text.startswith(a) and text.endswith(b) for a, b in CONTROL_ENDS)
    return int(TokenType.CONTROL if control else TokenType.USER_DEFINED)


def _sentencepiece(folder: Path, tokenizer: Tokenizer | None, size: int, settings: Mapping[str, Any]) -> Vocab:
    model = _model(folder / "tokenizer.model", tokenizer)
    _check_size(len(model.pieces), size)
    tokens = [f"[PAD{i}]".encode() for i in range(size)]
    scores, types = [-10000.0] * size, [int(TokenType.UNUSED)] * size
    for i, piece in enumerate(model.pieces):
        tokens[i], scores[i], types[i] = piece.text, piece.score, piece.kind
    for i, text, special in _added_pieces(folder, settings):
        _check_size(i + 1, size)
        tokens[i], scores[i], types[i] = text.encode(), -1000.0, _added(text, special)
    for i in range(size):  # llama.cpp looks for user-defined tokens before it marks spaces
        if types[i] == TokenType.USER_DEFINED:
            tokens[i] = tokens[i].replace(SPACE.encode(), b" ")
    special_vocab = _special(folder, size, merges=False)
    special_vocab.add_special_token.setdefault("bos", True)  # what SentencePiece models do where nothing else is said
    special_vocab.add_special_token.setdefault("eos", False)
    prefix = settings.get("add_prefix_space")
    prefix = prefix if isinstance(prefix, bool) else model.prefix
    return Vocab("llama", "default", tokens, types, special_vocab, _templates(folder, settings, special_vocab), scores, prefix)


def _model(path: Path, tokenizer: Tokenizer | None) -> Model:
    """A SentencePiece model that llama.cpp's tokenizer `llama` reproduces: BPE with bytes for what it has no piece for."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        model = read_model(path.read_bytes())
    except (OSError, RuntimeError, ValueError) as error:
        raise BadSource(f"tokenizer.model is not a SentencePiece model: {error}", AGAIN) from None
    original = "use a model whose tokenizer is SentencePiece BPE with byte_fallback, or byte-level BPE"
    if model.algorithm != BPE or sum(piece.kind == TokenType.BYTE for piece in model.pieces) != 256:
        raise Unsupported("tokenizer.model is not BPE with byte_fallback, and llama.cpp would split text otherwise", original)
    if tokenizer is None and not model.verbatim:
        raise Unsupported("tokenizer.model normalizes text, and llama.cpp would not", original)
    if tokenizer is not None and _bare(tokenizer.encode(CHECK_TEXT, add_special_tokens=False).tokens) != _bare(
        processor.encode(CHECK_TEXT, return_type=str)
    ):
        raise Unsupported(
            "tokenizer.json and tokenizer.model split text in different ways, and llama.cpp follows the latter",
            "remove the one that does not belong to the model",
        )
    return model


def _bare(pieces: list[str]) -> list[str]:
    """Pieces without the space in front of a text: the setting add_prefix_space decides about it."""
    return pieces[1:] if pieces[:1] == [SPACE] else pieces


def _added_pieces(folder: Path, settings: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, text, special) of the tokens that were added to a SentencePiece model, from the two places that name them."""
    pieces = []
    try:
        if (folder / "added_tokens.json").is_file():
            pieces += [(int(i), str(text), False) for text, i in _json(folder / "added_tokens.json").items()]
        for i, entry in settings.get("added_tokens_decoder", {}).items():
            pieces.append((int(i), str(entry["content"]), bool(entry.get("special"))))
        for _, text, _ in pieces:
            text.encode()
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise BadSource("the added tokens of the tokenizer cannot be read", AGAIN) from None
    if any(i < 0 for i, _, _ in pieces):
        raise BadSource("an added token has a negative id", AGAIN)
    return pieces


def _special(folder: Path, size: int, merges: bool) -> gguf.SpecialVocab:
    try:
        return gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadSource(f"the special tokens of the tokenizer cannot be read: {error}", AGAIN) from None


def _templates(folder: Path, settings: Mapping[str, Any], special: gguf.SpecialVocab) -> dict[str, str]:
    """The named chat templates, sorted; the default one goes to `special`. Files win over settings, as in transformers."""
    try:
        found = settings.get("chat_template")
        if (folder / "chat_template.json").is_file():
            found = _json(folder / "chat_template.json").get("chat_template", found)
        if (folder / "chat_template.jinja").is_file():
            found = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        named = {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else {"default": found or ""}
        for path in (folder / "additional_chat_templates").glob("*.jinja"):
            named[path.stem] = path.read_text(encoding="utf-8")
        for template in named.values():
            template.encode()
        # names become parts of keys
        templates = {re.sub("[^A-Za-z0-9]", "_", name): named[name] for name in sorted(named) if named[name]}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadSource("the chat template cannot be read", "check chat_template in tokenizer_config.json") from None
    special.chat_template = templates.pop("default", None)
    return templates


def _check_size(needed: int, size: int) -> None:
    if needed > size:
        raise BadSource(f"the tokenizer has {needed:,} tokens, the model's vocabulary {size:,}", AGAIN)
