"""The tokenizer of a model as GGUF keys, from tokenizer.json, its older forms, or a SentencePiece model (tokenizer.model).

Special token ids, add_bos/add_eos and merges come from the gguf package's SpecialVocab.
"""

from __future__ import annotations

import json
import re
import tempfile
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
from hubq.formats.gguf.tokenizer import (
    ADDED_SCORE,
    OTHER,
    SPACE,
    UNUSED_SCORE,
    Tokens,
    added_type,
    check_size,
    listed,
    spaced_bpe,
    unigram,
    wordpiece,
)
from hubq.tokenize import MISSING, WHOLE, encode, load_tokenizer, read_settings, read_table, tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# texts of the tokens that llama.cpp takes for the end of a turn, and of all at which it stops generating (src/llama-vocab.cpp)
TURN_ENDS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"}
TURN_ENDS |= {"[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"}
ENDS = TURN_ENDS | {"</s>", "<eos>", "[EOS]", "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>"}
ENDS |= {"<|tool_response>", "[e~["}

TABLES = ("tokenizer_config.json", "config.json", "generation_config.json", "chat_template.json")


@dataclass(frozen=True, slots=True)
class Vocab:
    """A vocabulary, one entry per id: `model` and `pre` are `tokenizer.ggml.model` and `.pre`; `scores` may be empty.

    `keys` are more keys of `tokenizer.ggml`; `templates` are the chat templates beside the default one, by name.
    """

    model: str
    pre: str
    tokens: list[str] | list[bytes]
    types: list[int]
    special: gguf.SpecialVocab
    templates: dict[str, str]
    scores: list[float] = field(default_factory=list)
    keys: Mapping[str, bool | bytes] = field(default_factory=dict)

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's keys to a GGUF."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        for name, value in self.keys.items():
            if isinstance(value, bool):
                writer.add_bool(f"tokenizer.ggml.{name}", value)
            else:
                writer.add_array(f"tokenizer.ggml.{name}", value)
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
    settings, tokenizer = read_settings(folder), load_tokenizer(folder)
    if tokenizer is not None:
        check_size(max(tokenizer.get_vocab().values(), default=-1) + 1, size)
    document = json.loads(tokenizer.to_str()) if tokenizer is not None else {}
    original = (folder / "tokenizer.model").is_file()
    if tokenizer is not None and not (original and document["model"]["type"] == "BPE" and not _is_byte_level(document)):
        tokens, special = _from_tokenizer(folder, tokenizer, document, size, settings)
    elif original:  # it says more of SentencePiece's BPE than a tokenizer.json made of it
        tokens, special = _from_sentencepiece(folder, tokenizer, size, settings)
    else:
        raise BadSource(MISSING, AGAIN)
    if len(set(tokens.texts)) < size:
        raise Unsupported("two tokens of the tokenizer have the same text, and llama.cpp loads no such vocabulary", OTHER)
    _name_ends(folder, special, tokens)
    templates = _templates(folder, settings, special)
    return Vocab(tokens.model, tokens.pre, tokens.texts, tokens.types, special, templates, tokens.scores, tokens.keys)


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    model = document["model"]
    return model["type"] == "BPE" and not model.get("byte_fallback") and "ByteLevel" in json.dumps(document["decoder"])


def _from_tokenizer(
    folder: Path, tokenizer: Tokenizer, document: Mapping[str, Any], size: int, settings: Mapping[str, Any]
) -> tuple[Tokens, gguf.SpecialVocab]:
    model = document["model"]
    if model["type"] == "BPE" and not model["merges"]:
        raise BadSource(f"{tokenizer_files(folder)} has no merges", AGAIN)
    if _is_byte_level(document):
        tokens = Tokens("gpt2", recognize(tokenizer), *listed(tokenizer, size), merges=True)
    elif model["type"] == "BPE" and model.get("byte_fallback"):
        tokens = spaced_bpe(tokenizer, document, size)
    elif model["type"] == "WordPiece":
        tokens = wordpiece(tokenizer, document, size)
    elif model["type"] == "Unigram":
        tokens = unigram(tokenizer, document, size)
    else:
        raise Unsupported("the algorithm of tokenizer.json is none that llama.cpp has", OTHER)
    special = _special_of(folder, tokenizer, size, settings, tokens.merges)
    special.special_token_ids |= tokens.special
    for name, at in (("bos", 0), ("eos", -1)):  # written always, as llama.cpp's default depends on the tokenizer
        if not isinstance(settings.get(f"add_{name}_token"), bool):
            special.add_special_token[name] = _adds(tokenizer, special, name, at)
    return tokens, special


def _adds(tokenizer: Tokenizer, special: gguf.SpecialVocab, name: str, at: int) -> bool:
    """Whether the tokenizer puts the special token `name` at the first (0) or the last (-1) place of a text."""
    bare, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    return len(full) > len(bare) and full[at] == special.special_token_ids.get(name)


def _from_sentencepiece(
    folder: Path, tokenizer: Tokenizer | None, size: int, settings: Mapping[str, Any]
) -> tuple[Tokens, gguf.SpecialVocab]:
    model = _model(folder / "tokenizer.model", tokenizer)
    check_size(len(model.pieces), size)
    texts = [f"[PAD{i}]".encode() for i in range(size)]
    scores, types = [UNUSED_SCORE] * size, [int(TokenType.UNUSED)] * size
    for i, piece in enumerate(model.pieces):
        texts[i], scores[i], types[i] = piece.text, piece.score, piece.kind
    for i, text, marked in _added_pieces(folder, settings):
        check_size(i + 1, size)
        texts[i], scores[i], types[i] = text.encode(), ADDED_SCORE, added_type(text, marked)
    for i in range(size):  # llama.cpp looks for user-defined tokens before it marks spaces
        if types[i] == TokenType.USER_DEFINED:
            texts[i] = texts[i].replace(SPACE.encode(), b" ")
    special = _special(folder, size, merges=False)
    special.add_special_token.setdefault("bos", True)  # what SentencePiece models do where nothing else is said
    special.add_special_token.setdefault("eos", False)
    prefix = settings.get("add_prefix_space")
    prefix = prefix if isinstance(prefix, bool) else model.prefix
    return Tokens("llama", "default", texts, types, scores, {"add_space_prefix": prefix}), special


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
    if tokenizer is not None and _bare(encode(tokenizer, CHECK_TEXT, special=False).tokens) != _bare(
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
            pieces += [(int(i), str(text), False) for text, i in read_table(folder / "added_tokens.json").items()]
        for i, entry in settings.get("added_tokens_decoder", {}).items():
            pieces.append((int(i), str(entry["content"]), bool(entry.get("special"))))
        for _, text, _ in pieces:
            text.encode()
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise BadSource("the added tokens of the tokenizer cannot be read", AGAIN) from None
    if any(i < 0 for i, _, _ in pieces):
        raise BadSource("an added token has a negative id", AGAIN)
    return pieces


def _special_of(folder: Path, tokenizer: Tokenizer, size: int, settings: Mapping[str, Any], merges: bool) -> gguf.SpecialVocab:
    """What the gguf package finds in a folder with tokenizer.json, or in one that is made as if it had been there."""
    if tokenizer_files(folder) == WHOLE:
        return _special(folder, size, merges)
    with tempfile.TemporaryDirectory() as aside:
        made = Path(aside)
        tokenizer.save(str(made / WHOLE))
        (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        (made / "config.json").write_text(json.dumps(read_table(folder / "config.json")), encoding="utf-8")
        return _special(made, size, merges)


def _special(folder: Path, size: int, merges: bool) -> gguf.SpecialVocab:
    for name in TABLES:  # the gguf package reads them whatever they hold
        read_table(folder / name)
    try:
        special = gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size)
        special.special_token_ids.pop("cls", None)  # GGUF has no key for it: BOS stands for it
        return special
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadSource(f"the special tokens of the tokenizer cannot be read: {error}", AGAIN) from None


def _name_ends(folder: Path, special: gguf.SpecialVocab, tokens: Tokens) -> None:
    """Name the tokens that end a generation (generation_config.json) where llama.cpp does not know them by their texts."""
    path = folder / "generation_config.json"
    found = read_table(path).get("eos_token_id") if path.is_file() else None
    ends = [i for i in (found if isinstance(found, list) else [found]) if type(i) is int and 0 <= i < len(tokens.texts)]
    named = special.special_token_ids
    if ends:
        named.setdefault("eos", ends[0])
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in tokens.texts]
    known = {named.get(name) for name in ("eos", "eot", "eom")}
    missing = [i for i in dict.fromkeys(ends) if i not in known and texts[i] not in ENDS]
    slots = ("eom", "eot") if TURN_ENDS & set(texts) else ("eot", "eom")  # what llama.cpp finds itself stays
    named.update(zip([slot for slot in slots if slot not in named], missing, strict=False))


def _templates(folder: Path, settings: Mapping[str, Any], special: gguf.SpecialVocab) -> dict[str, str]:
    """The named chat templates, sorted; the default one goes to `special`.

    As in transformers, files replace the settings. chat_template.json is a processor's: it counts where there is no other.
    """
    try:
        found = settings.get("chat_template")
        named = {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else {"default": found or ""}
        files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
        if (folder / "chat_template.jinja").is_file():
            files["default"] = folder / "chat_template.jinja"
        if files:
            named = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        elif (folder / "chat_template.json").is_file() and not any(named.values()):
            named = {"default": read_table(folder / "chat_template.json").get("chat_template") or ""}
        for template in named.values():
            template.encode()
        # names become parts of keys
        templates = {re.sub("[^A-Za-z0-9]", "_", name): named[name] for name in sorted(named) if named[name]}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadSource("the chat template cannot be read", "check chat_template in tokenizer_config.json") from None
    special.chat_template = templates.pop("default", None)
    return templates
