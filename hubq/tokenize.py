"""The tokenizer of a model's folder, for all who split text: tokenizer.json, or what older repositories have in its place.

vocab.json and merges.txt hold the vocabulary and the merges of byte-level BPE, but not how text is split before. STYLES says
that by the type of the model, as transformers' classes do it (5.23, models/*/tokenization_*.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, HubqError, Unsupported
from hubq.parse import read_json, values

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer

WHOLE = "tokenizer.json"
PARTS = ("vocab.json", "merges.txt")
CONFIG, SETTINGS, NAMES, ADDED = "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MISSING = "there is no tokenizer: neither tokenizer.json nor tokenizer.model, nor vocab.json with merges.txt"
CHECK = "Is it 10\u202f°C,\n or 1 0?"  # a damaged tokenizer fails on it

# kind of step -> how many times as long it can make a text, besides what it puts in
GROWTH = {"ByteLevel": 2, "Precompiled": 16, "NFKC": 16, "NFKD": 16, "NFD": 4, "BertNormalizer": 4}
MOST_GROWTH = 1000
LONGEST = 10_000  # characters of a pattern; those of models have some hundreds
MOST = 5_000_000  # values in tokenizer.json: the largest have three million

SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))  # in transformers' order
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True, slots=True)
class Style:
    """How text is split for a vocabulary in vocab.json.

    `classes` are the tokenizers in transformers that split so, `special` their special tokens where no file names others.
    `words` is the pattern of words (empty: GPT-2's, which ByteLevel has built in). `composed`: letters are composed first
    (NFC). `enclosed`: every text stands between cls_token and sep_token.
    """

    classes: tuple[str, ...]
    special: Mapping[str, str]
    words: str = ""
    composed: bool = False
    enclosed: bool = False


_END = "<|endoftext|>"
GPT2 = Style(("GPT2Tokenizer", "CodeGenTokenizer"), {"bos_token": _END, "eos_token": _END, "unk_token": _END})
QWEN2 = Style(
    ("Qwen2Tokenizer",),
    {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    composed=True,
)
ROBERTA = Style(
    ("RobertaTokenizer",),
    dict(zip(SPECIAL, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True)),
    enclosed=True,
)
# model type -> how its tokenizer splits. Not those that split otherwise than transformers' class for their vocab.json:
# StarCoder2, Granite and SmolLM name GPT2Tokenizer, but each digit is a word to them
STYLES = {"gpt2": GPT2, "phi": GPT2, "roberta": ROBERTA}
STYLES |= dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), QWEN2)


def tokenizer_files(folder: Path) -> str:
    """The files that `load_tokenizer` reads a tokenizer from, in words; empty where there are none."""
    if (folder / WHOLE).is_file():
        return WHOLE
    parts = all((folder / name).is_file() for name in PARTS) and not (folder / "tokenizer.model").is_file()
    return " and ".join(PARTS) if parts else ""


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in `folder`, without truncation and padding; None where there is only a SentencePiece model, or nothing.

    The same one is given to all who ask: leave it as it is. Raises BadSource for files that cannot be read, Unsupported for a
    vocab.json whose tokenizer splits text in an unknown way.
    """
    name = tokenizer_files(folder)
    paths = [folder / file for file in (WHOLE, *PARTS, CONFIG, SETTINGS, NAMES, ADDED)][: 1 if name == WHOLE else None]
    state = tuple(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"" for path in paths)
    return _load(folder, name, state) if name else None


@lru_cache(maxsize=1)
def _load(folder: Path, name: str, state: tuple[bytes, ...]) -> Tokenizer:
    """See load_tokenizer; `state` are the hashes of the files."""
    from tokenizers import Tokenizer

    if values((folder / name.partition(" ")[0]).read_bytes()) > MOST:
        raise BadSource(f"{name} is larger than any tokenizer: it holds more than {MOST:,} values", AGAIN)
    try:
        tokenizer = Tokenizer.from_file(str(folder / WHOLE)) if name == WHOLE else _build(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _check_steps(tokenizer)
        tokenizer.encode(CHECK)
    except (KeyboardInterrupt, SystemExit, HubqError):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise BadSource(f"{name} cannot be read: {error}", AGAIN) from None
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> Encoding:
    """A text's tokens, with the special ones around it unless `special` is False.

    Raises BadSource where the library panics, as it does over a pattern that would take for ever.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=special)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BadSource(f"the tokenizer cannot split a text: {error}", AGAIN) from None


def _check_steps(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose steps, each of which may lengthen a text, could together make it MOST_GROWTH times as long.

    Raises BadSource, and for a pattern without end, too.
    """
    growth = 1
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        for step in _steps(json.loads(part.__getstate__()) if part is not None else None):
            growth *= GROWTH.get(str(step["type"]), 1) * max(1, len(str(step.get("content") or step.get("prepend") or "")))
            if len(str(step.get("pattern"))) > LONGEST:
                raise BadSource("a pattern of the tokenizer is longer than any that models have", AGAIN)
            if growth > MOST_GROWTH:
                raise BadSource("the tokenizer makes texts longer without end: its steps replace little by much", AGAIN)


def _steps(section: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a section of tokenizer.json, sequences unfolded."""
    if isinstance(section, dict):
        inner = section.get("normalizers", section.get("pretokenizers"))
        yield from [section] if inner is None else (step for part in inner for step in _steps(part))


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; behind vocab.json with what special_tokens_map.json says, and special tokens that go unnamed."""
    settings = read_table(folder / SETTINGS)
    if tokenizer_files(folder) in ("", WHOLE):
        return settings
    return {**_style(folder, settings).special, **_said(folder, settings)}


def read_table(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; empty where there is no file. Raises BadSource for one that cannot be read."""
    try:
        document = read_json(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise BadSource(f"{path.name} cannot be read: {error}", AGAIN) from None
    if not isinstance(document, dict):
        raise BadSource(f"{path.name} is not a table", AGAIN)
    return document


# --- a tokenizer from vocab.json and merges.txt ---


def _style(folder: Path, settings: Mapping[str, Any]) -> Style:
    config = read_table(folder / CONFIG)
    kind, named = str(config.get("model_type")), settings.get("tokenizer_class") or config.get("tokenizer_class")
    style = STYLES.get(kind)
    if style is None or (named and str(named).removesuffix("Fast") not in style.classes):
        raise Unsupported(
            f"there is no tokenizer.json, and vocab.json does not say how the {named or 'tokenizer'} of {kind} splits text",
            "add the tokenizer.json of the model that it was trained from, or transformers' own: "
            "AutoTokenizer.from_pretrained('FOLDER').save_pretrained('FOLDER')",
        )
    return style


def _said(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the files say; of the two that name special tokens the newer one is told by the tokens that it lists."""
    return {**settings} if "added_tokens_decoder" in settings else {**settings, **read_table(folder / NAMES)}


def _build(folder: Path) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    settings = read_settings(folder)
    style, prefix = _style(folder, settings), settings.get("add_prefix_space") is True
    tokenizer = Tokenizer(models.BPE.from_file(*(str(folder / name) for name in PARTS)))
    if style.composed:
        tokenizer.normalizer = normalizers.NFC()
    words = [pre_tokenizers.Split(Regex(style.words), "isolated")] if style.words else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not words)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, folder, settings)
    tokenizer.post_processor = _post_processor(tokenizer, style, settings)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Add the tokens that the files list by their ids, and then the special ones that they only name."""
    said = _said(folder, read_table(folder / SETTINGS))
    named, extra = dict(_named(settings)), _extra(settings)
    listed = _listed(folder, settings, {token.content for token in (*named.values(), *extra)})
    for i, token in sorted(listed.items()):
        tokenizer.add_tokens([token])
        if (found := tokenizer.token_to_id(token.content)) != i:
            raise BadSource(
                f"the added token {token.content!r} is listed with id {i}, and behind vocab.json it has {found}", AGAIN
            )
    # what goes unnamed is left out where the vocabulary lacks it: no model has a row for it
    known = [token for name, token in named.items() if name in said or tokenizer.token_to_id(token.content) is not None]
    texts = {token.content for token in listed.values()}
    tokenizer.add_tokens([token for token in (*known, *extra) if token.content not in texts])


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """The special tokens that have names, as "bos_token"."""
    names = [name for name in settings if name.endswith("_token") and name not in SPECIAL]
    for name in (*SPECIAL, *names):
        value = settings.get(name)
        if isinstance(value, str) or (isinstance(value, dict) and "content" in value):
            yield name, _token(value, special=True)


def _extra(settings: Mapping[str, Any]) -> list[AddedToken]:
    """The special tokens that have no names, or names of this model's own."""
    found = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [_token(value, special=True) for value in (found.values() if isinstance(found, dict) else found)]


def _listed(folder: Path, settings: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """The added tokens by id, from the newer of the two places that list them; those in `special` are special."""
    if "added_tokens_decoder" in settings:
        entries = settings["added_tokens_decoder"].items()
        return {int(i): _token(entry, bool(entry.get("special")) or entry["content"] in special) for i, entry in entries}
    return {int(i): _token(text, special=text in special) for text, i in read_table(folder / ADDED).items()}


def _token(value: str | Mapping[str, Any], special: bool) -> AddedToken:
    from tokenizers import AddedToken

    entry = {"content": value} if isinstance(value, str) else value
    return AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in FLAGS if flag in entry}, special=special)


def _post_processor(tokenizer: Tokenizer, style: Style, settings: Mapping[str, Any]) -> Any:
    """What puts special tokens around a text."""
    from tokenizers import processors

    texts = {name: token.content for name, token in _named(settings)}

    def end(name: str) -> tuple[str, int]:
        token = tokenizer.token_to_id(texts.get(name, ""))
        if token is None:
            raise BadSource(f"the vocabulary lacks the {name}, which every text gets", AGAIN)
        return texts[name], token

    if style.enclosed:
        prefix = settings.get("add_prefix_space") is True
        return processors.RobertaProcessing(end("sep_token"), end("cls_token"), trim_offsets=True, add_prefix_space=prefix)
    adds = {name for name in texts if settings.get(f"add_{name}") is True}
    bos, eos = ([end(name)] if name in adds else [] for name in ("bos_token", "eos_token"))
    one, other = (
        [*(f"{text}:{i}" for text, _ in bos), f"${part}:{i}", *(f"{text}:{i}" for text, _ in eos)]
        for i, part in enumerate("AB")
    )
    return processors.TemplateProcessing(single=one, pair=[*one, *other], special_tokens=[*bos, *eos])
