"""The parity gate: before a file is pushed, llama.cpp must read it as transformers reads its source.

Each check says "passed", "failed" or "not checked", and why; a failed one stops the push. The source's side is read here anew,
not by what wrote the file. BOS counts as doubled where llama-server would feed two: it cuts one BOS off a rendered conversation
if the file asks for BOS (common/chat.cpp), and then puts one in front (llama_tokenize). A template that writes BOS into a file
that asks for it, as Llama 3's does, is therefore sound.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.checkpoint import AGAIN, few
from hubq.errors import BadSource, HubqError
from hubq.formats.checks import RULES, Bounds, Differs, NotChecked, Outcome, kind, outcome, outputs
from hubq.formats.gguf.levels import LEVELS
from hubq.formats.gguf.origin import own_pairs
from hubq.formats.gguf.probe import PROBE
from hubq.formats.gguf.read import Header, read_set
from hubq.formats.gguf.render import render
from hubq.nouns import Artifact, Check, Measurement, Source
from hubq.parse import read_json
from hubq.tokenize import encode, load_tokenizer, tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from hubq.formats.gguf.engine import Vocabulary

ENGINE = "llama.cpp"
WITHOUT = "llama-cpp-python is not installed"
HANGUL = re.compile("[\uac00-\ud7a3]+")
OTHER_IDS = 0.01  # share of the evaluation text's ids in lines that llama.cpp may read otherwise
SPECIAL = 500  # special tokens whose ids are compared

# well above what levels lose (cards/ has a model of 135 M weights, and small ones lose most), and below what a wrong
# permutation does; under 5 bits they tell little more than that a file is not broken
BOUNDS: Bounds = {
    "tokens": {16: (0.01, 0.9), 8: (0.03, 0.85), 6: (0.1, 0.75), 5: (0.3, 0.5), 4: (1.0, 0.15), 3: (2.0, 0.05), 0: (4.0, 0.0)},
    "vectors": {16: (0.999,), 8: (0.99,), 6: (0.97,), 5: (0.95,), 4: (0.9,), 3: (0.7,), 0: (0.4,)},
}

QUESTION, ANSWER, LAST = "What is the weather in Zürich?", "I do not know yet.", "12 °C and sun."
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
USER, ASSISTANT = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
SYSTEM = {"role": "system", "content": "You are a  helpful assistant.\n"}
ANSWERED = [USER, ASSISTANT, {"role": "user", "content": "And now?"}]
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdef123", "content": LAST},
]
# what is rendered: the whole conversation, and less for templates that refuse some of it
CONVERSATIONS: tuple[dict[str, Any], ...] = (
    {"messages": [SYSTEM, *ANSWERED, *CALLED], "tools": [TOOL], "add_generation_prompt": True},
    {"messages": [SYSTEM, *ANSWERED], "add_generation_prompt": True},
    {"messages": ANSWERED, "add_generation_prompt": True},
    {"messages": ANSWERED, "add_generation_prompt": False},
    {"messages": [USER, ASSISTANT], "add_generation_prompt": False},
)
SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def check(
    artifacts: Sequence[Artifact], source: Source, text: str, measurements: Sequence[Measurement], unmeasured: str = ""
) -> tuple[Check, ...]:
    """Hold each file against its source: tokenizer, chat template, stop tokens and what it computes; of a GGUF its metadata.

    `text` is that of the evaluation, or empty; `measurements` those in llama.cpp, and `unmeasured` says why there are none.
    """
    theirs = _Theirs(source.folder, source.config)
    rows = {row.level: row for row in measurements if row.engine == ENGINE}
    checks, known, found = [], None, {}
    for artifact in artifacts:
        header = read_set(artifact.path)[0]
        if (pairs := own_pairs(header)) != known:  # levels of one model share their metadata
            known, found = pairs, _metadata_checks(header, source, theirs, text)
        row = rows.get(artifact.level)
        scored = outcome(_outputs, artifact, row, "probe" if not text else "evaluation", unmeasured)
        checks += [Check(artifact.level, name, *ended) for name, ended in {**found, RULES[kind(row)][0]: scored}.items()]
    return tuple(checks)


def _metadata_checks(header: Header, source: Source, theirs: _Theirs, text: str) -> dict[str, Outcome]:
    """All checks that need no weights."""
    if not source.config:
        return {
            "metadata": outcome(_same_metadata, header, source),
            "token ids": outcome(_same_vocabulary, header, source, text),
        }
    tokenizer = {key: value for key, value in header.metadata.items() if key.startswith("tokenizer.")}
    return _tokenizer_checks(header.path, tokenizer, theirs, text)


def _tokenizer_checks(path: Path, metadata: Mapping[str, Any], theirs: _Theirs, text: str) -> dict[str, Outcome]:
    """The checks of a tokenizer and its chat template."""
    by_vocabulary: dict[str, Callable[[_Ours], str]] = {
        "token ids": lambda ours: _token_ids(ours, theirs, text),
        "special tokens": lambda ours: _special_tokens(ours.vocab, theirs),
        "conversation": lambda ours: _conversation(ours, theirs),
        "one BOS": lambda ours: _one_bos(ours, theirs),
        "stop tokens": lambda ours: _stop_tokens(ours, theirs),
    }
    found = {"chat template": outcome(_chat_template, metadata, theirs)}
    if not importlib.util.find_spec("llama_cpp"):
        return found | dict.fromkeys(by_vocabulary, ("not checked", WITHOUT))
    from hubq.formats.gguf.engine import vocabulary

    try:
        with vocabulary(path) as vocab:
            ours = _Ours(vocab, metadata, theirs)
            return found | {name: outcome(made, ours) for name, made in by_vocabulary.items()}
    except HubqError as error:
        return found | dict.fromkeys(by_vocabulary, ("failed", error.message))


# --- the two sides ---


@dataclass
class _Theirs:
    """The source's tokenizer, chat templates and special tokens, as transformers takes them."""

    folder: Path
    config: Mapping[str, Any]

    def json(self, name: str) -> dict[str, Any]:
        """A small file of the source; empty where there is none."""
        path = self.folder / name
        try:
            document = read_json(path.read_bytes()) if path.is_file() else {}
        except ValueError as error:
            raise BadSource(f"{name} cannot be read: {error}", AGAIN) from None
        return document if isinstance(document, dict) else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json over special_tokens_map.json."""
        return self.json("special_tokens_map.json") | self.json("tokenizer_config.json")

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """That of tokenizer.json or its older form, if there is one."""
        return load_tokenizer(self.folder)

    @cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens of tokenizer.json and their ids, in the order of these."""
        added = self.tokenizer.get_added_tokens_decoder() if self.tokenizer else {}
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    @cached_property
    def named(self) -> dict[str, str]:
        """The special tokens that the settings name, as templates get them: "bos_token" -> "<s>"; "" where they say none."""
        named = {}
        for name in (f"{name}_token" for name in SPECIAL_NAMES):
            if name in self.settings:
                value = self.settings[name]
                named[name] = str((value.get("content") if isinstance(value, dict) else value) or "")
        return named

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that are put around it."""
        if self.tokenizer is None:
            return self._by_sentencepiece(text)
        before, after = self.around
        return [*before, *encode(self.tokenizer, text, special=False).ids, *after]

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after every text; what the settings say of BOS and EOS wins over tokenizer.json."""
        assert self.tokenizer is not None
        bare, full = self.tokenizer.encode("a", add_special_tokens=False).ids, self.tokenizer.encode("a").ids
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        found = full[:at], full[at + len(bare) :]
        for name, ids in zip(("bos", "eos"), found, strict=True):
            said, token = self.settings.get(f"add_{name}_token"), self.specials.get(self.named.get(f"{name}_token", ""))
            if isinstance(said, bool) and token is not None and said != (token in ids):
                ids[:] = [token] if said else []
        return found

    def _by_sentencepiece(self, text: str) -> list[int]:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(str(self.folder / "tokenizer.model"))
        bos = self.settings.get("add_bos_token") is not False and processor.bos_id() >= 0
        return [processor.bos_id()] * bos + processor.encode(text)

    @cached_property
    def templates(self) -> dict[str, str]:
        """The chat templates by name; files win over the settings, and these over a processor's file."""
        files = {path.stem: path for path in self.folder.glob("additional_chat_templates/*.jinja")}
        if (self.folder / "chat_template.jinja").is_file():
            files["default"] = self.folder / "chat_template.jinja"
        found = self.settings.get("chat_template") or self.json("chat_template.json").get("chat_template")
        named = {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else {"default": found}
        named = {name: path.read_text("utf-8") for name, path in files.items()} or named
        return {name: template for name, template in named.items() if template}


@dataclass
class _Ours:
    """A file's tokenizer in llama.cpp, and every conversation rendered from both sides: {"text": ...} or {"error": ...}."""

    vocab: Vocabulary
    metadata: Mapping[str, Any]
    theirs: _Theirs
    rendered: list[tuple[dict[str, str], dict[str, str]]] = field(init=False)

    def __post_init__(self) -> None:
        ends = {"bos_token": self.vocab.text(self.vocab.bos), "eos_token": self.vocab.text(self.vocab.eos)}
        templates = self.metadata.get(_key("default"), ""), self.theirs.templates.get("default", "")
        sides = ((templates[1], ends | self.theirs.named), (templates[0], ends))
        jobs = [
            {"template": template, "variables": names | conversation}
            for template, names in sides
            for conversation in CONVERSATIONS
        ]
        answers = render(jobs) if any(templates) else []
        self.rendered = list(zip(answers[: len(CONVERSATIONS)], answers[len(CONVERSATIONS) :], strict=True))

    def texts(self) -> Iterator[tuple[str, str]]:
        """(the source's text, the file's) of the conversations that both can render."""
        return ((a["text"], b["text"]) for a, b in self.rendered if "text" in a and "text" in b)

    def fed(self, text: str) -> list[int]:
        """What llama-server feeds the model for a rendered conversation."""
        bos, eos = self.vocab.text(self.vocab.bos), self.vocab.text(self.vocab.eos)
        if self.vocab.adds_bos:
            text = text.removeprefix(bos)
        if self.vocab.adds_eos:
            text = text.removesuffix(eos)
        return self.vocab.encode(text)


def _key(name: str) -> str:
    from gguf import Keys

    return Keys.Tokenizer.CHAT_TEMPLATE if name == "default" else Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)


# --- the checks: each returns what was found equal, or raises ---


def _token_ids(file: _Ours, theirs: _Theirs, text: str) -> str:
    """The ids of texts: all of the probe's, and nearly all of the evaluation's.

    llama.cpp has limits of its own, which no file can mend: it composes no decomposed letters, and of some pre-tokenizers it
    knows the rules for most scripts only. The probe leaves those out. Vocabularies of BERT decompose letters, and of a syllable
    of Hangul llama.cpp then keeps the first alone: these have a probe without.
    """
    vocab, probe = file.vocab, PROBE
    if file.metadata.get("tokenizer.ggml.model") == "bert":
        probe = HANGUL.sub("", PROBE)
    special, source = theirs.tokenizer is not None, tokenizer_files(theirs.folder) or "tokenizer.model"
    ours, wanted = vocab.encode(probe, parse_special=special), theirs.encode(probe)
    _same_ids(ours, wanted, "a probe text", vocab)
    told = f"the {len(ours):,} ids of a probe text are those of {source}"
    ours, wanted = vocab.encode(text, parse_special=special), theirs.encode(text)
    if not text or ours == wanted:
        return told + (f", and the {len(ours):,} of the beginning of the evaluation text" if text else "")
    lines = [(vocab.encode(line, parse_special=special), theirs.encode(line)) for line in text.splitlines(keepends=True)]
    other = sum(len(right) for found, right in lines if found != right)
    if other > OTHER_IDS * len(wanted):
        _same_ids(ours, wanted, "the evaluation text", vocab)
    return f"{told}; in the evaluation text llama.cpp reads lines of {other:,} of {len(wanted):,} ids otherwise"


def _same_ids(ours: Sequence[int], wanted: Sequence[int], name: str, vocab: Vocabulary) -> None:
    for i, (found, right) in enumerate(zip_longest(ours, wanted)):
        if found != right:
            shown = [f"{token} ({vocab.text(token)!r})" if token is not None else "missing" for token in (found, right)]
            after = "".join(map(vocab.text, ours[max(0, i - 8) : i]))
            raise Differs(f"id {i} of {name} is {shown[0]} in llama.cpp and {shown[1]} in the source, after {after!r}")


def _special_tokens(vocab: Vocabulary, theirs: _Theirs) -> str:
    """Each special token is one id, the same, and BOS and EOS are those that the source names."""
    for name, token in (("bos", vocab.bos), ("eos", vocab.eos)):
        wanted = theirs.named.get(f"{name}_token")
        if wanted and vocab.text(token) != wanted:
            raise Differs(f"{name.upper()} is {vocab.text(token)!r} in llama.cpp and {wanted!r} in the source")
    if not theirs.tokenizer:
        raise NotChecked("there is no tokenizer.json")
    tokens = [(text, i) for text, i in theirs.specials.items() if text == text.strip()][:SPECIAL]
    for text, i in tokens:
        if (found := vocab.encode(text, add_special=False)) != [i]:
            raise Differs(f"{text!r} is {found} in llama.cpp and [{i}] in the source")
    return f"{len(tokens)} special tokens have the source's ids, BOS and EOS among them"


def _chat_template(metadata: Mapping[str, Any], theirs: _Theirs) -> str:
    """The chat templates are those of the source, byte for byte."""
    ours = {key: value for key, value in metadata.items() if key.startswith(_key("default")) and isinstance(value, str)}
    wanted = {_key("".join(c if c.isascii() and c.isalnum() else "_" for c in name)): t for name, t in theirs.templates.items()}
    for key in ours | wanted:
        if key not in ours:
            raise Differs(f"{key} is lost: the source has a chat template")
        if key not in wanted:
            raise Differs(f"{key} is in the file, and the source has no such template")
        if ours[key] != wanted[key]:
            at = next(i for i, (a, b) in enumerate(zip_longest(ours[key], wanted[key])) if a != b)
            raise Differs(f"{key} differs from the source's from character {at} on")
    return "byte-equal to the source's" if wanted else "none, as in the source"


def _conversation(ours: _Ours, theirs: _Theirs) -> str:
    """Conversations are rendered alike, and llama-server feeds the ids that transformers feeds, a leading BOS aside."""
    if not ours.rendered:
        raise NotChecked("there is no chat template")
    for wanted, found in ours.rendered:
        if wanted != found:
            raise Differs(f"a conversation is {found} with the file's template and tokens, {wanted} with the source's")
    texts = list(ours.texts())
    if not texts:
        raise Differs(f"the chat template renders no conversation: {ours.rendered[-1][0]['error']}")
    # a space that llama.cpp puts behind special tokens for tokenizers of this kind is not the file's
    if theirs.tokenizer and ours.metadata.get("tokenizer.ggml.model") != "llama":
        for wanted_text, text in texts:
            wanted_ids = theirs.tokenizer.encode(wanted_text, add_special_tokens=False).ids
            sides = [ids[1:] if ids[:1] == [ours.vocab.bos] else ids for ids in (ours.fed(text), wanted_ids)]
            if ours.vocab.adds_eos and sides[0][-1:] == [ours.vocab.eos] != sides[1][-1:]:
                sides[0] = sides[0][:-1]
            _same_ids(sides[0], sides[1], "a conversation", ours.vocab)
        told = ", into the same ids"
    else:
        told = ""
    whole = " with a call of a tool" if "text" in ours.rendered[0][0] else ""
    return f"a conversation{whole} is rendered as from the source{told}"


def _one_bos(ours: _Ours, theirs: _Theirs) -> str:
    """Texts begin with as many BOS as in the source, and conversations with one, or with as many as the template writes."""
    bos = ours.vocab.bos
    count, most = _begins(ours.vocab.encode("a"), bos), _begins(theirs.encode("a"), bos)
    if count > most:
        raise Differs(f"llama.cpp puts {count} BOS in front of a text, and the source {most}")
    for wanted, text in ours.texts():
        most = max(1, _begins(theirs.tokenizer.encode(wanted, add_special_tokens=False).ids if theirs.tokenizer else [], bos))
        if (count := _begins(ours.fed(text), bos)) > most:
            raise Differs(f"llama-server would begin a conversation with {count} BOS")
    return "llama.cpp begins a text with BOS, once" if ours.vocab.adds_bos else "llama.cpp adds no BOS, as the source"


def _begins(ids: Sequence[int], token: int | None) -> int:
    return next((i for i, found in enumerate(ids) if found != token), len(ids))


def _stop_tokens(ours: _Ours, theirs: _Theirs) -> str:
    """llama.cpp stops at every token that the source stops at, and at what its template puts after an answer.

    A token that opens an answer (Phi-3's <|assistant|>) cannot end one, though generation_config.json may list it.
    """
    ids = theirs.json("generation_config.json").get("eos_token_id", theirs.config.get("eos_token_id"))
    stops = {i: ours.vocab.text(i) for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)}
    texts = [wanted.get("text", "") for wanted, _ in ours.rendered]
    if texts:
        *_, opened, closed, answered = texts
        opening = opened.removeprefix(closed) if opened != closed and opened.startswith(closed) else ""
        stops = {i: text for i, text in stops.items() if not (text and text in opening)}
        after = answered.rpartition(ANSWER)[2].lstrip()
        stops |= {i: text for text, i in theirs.specials.items() if ANSWER in answered and after.startswith(text)}
    if wrong := [f"{text!r} ({i})" for i, text in stops.items() if not ours.vocab.ends(i)]:
        raise Differs(f"llama.cpp does not stop at {few(wrong)}, and the source does")
    if not stops:
        raise NotChecked("the source names none")
    return f"llama.cpp stops at {few([repr(text) for text in stops.values()])}"


def _same_metadata(header: Header, source: Source) -> str:
    """Every key of the source's metadata has the same bytes in the file, but for those that say how it is stored."""
    assert source.gguf
    ours, theirs = own_pairs(header), own_pairs(read_set(source.gguf)[0])
    if wrong := [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]:
        raise Differs(f"these keys are not as in the source: {few(wrong)}")
    return f"{len(theirs)} keys are as in the source"


def _same_vocabulary(header: Header, source: Source, text: str) -> str:
    """llama.cpp makes the same ids of texts with the file as with the source."""
    assert source.gguf
    if not importlib.util.find_spec("llama_cpp"):
        raise NotChecked(WITHOUT)
    from hubq.formats.gguf.engine import vocabulary

    try:
        with vocabulary(header.path) as ours, vocabulary(source.gguf) as theirs:
            for name, sample in (("a probe text", PROBE), ("the evaluation text", text)):
                _same_ids(ours.encode(sample), theirs.encode(sample), name, ours)
            return f"the {len(ours.encode(PROBE + text)):,} ids of texts are those of the source"
    except HubqError as error:
        raise Differs(error.message) from error


def _outputs(artifact: Artifact, row: Measurement | None, text: str, unmeasured: str) -> str:
    """What the file computes stays within the bounds of its bits."""
    if row is None:
        raise NotChecked(unmeasured or (WITHOUT if not importlib.util.find_spec("llama_cpp") else "no file was scored"))
    return outputs(row, min(LEVELS[artifact.level.partition(":")[2]].bits, artifact.bits_per_weight), BOUNDS, text)
