"""How Ollama writes a model's conversations: in a Go template, where all others take the Jinja template in the file.

The Hub makes one for Ollama (the npm package @huggingface/ollama-utils, src/chat-template.ts): that of Ollama's own library
where the Jinja template is that of a model there, and else a guess: by the first 128 characters, by the special tokens, by
words that occur. A repository's files `template` and `params` replace what it finds (the Hub's documentation, "Use Ollama with
any GGUF Model on Hugging Face Hub"). They are made here of templates that put the same texts around each message of a role,
whatever the conversation; whether a template does is found by rendering some. One that writes tools as well is left alone: the
Hub's guess may have room for them, and what is made here has not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from hubq.formats.gguf.render import render

# how the SHA-256 of the templates of Ollama's library begins that the Hub knows; bench/ollama_templates.mjs prints them
_KNOWN = """
038f933e058b 08962c2f15d5 09d68eeb5c0e 0ae4c685fa6a 153280e3ff55 15c42cdb73db 19acd33317c8 25b097cb6028 268b6082ceb7
26a59556925c 27288f957f83 2c575663fbb6 2deef6311e03 310930d4a5d6 3802169b2a02 3c4ad5fa60dd 4065869b8ec0 4499b8d49e06
45690185067e 49aa7cb51694 5437d0ad30bb 56a1447ad319 58c1a1f04baa 5a4c7c0b12bd 5a5561f4ea95 5df94cd12534 605841622bcb
627e212836e4 66291cf0045c 672e747c77e9 68e5b97472ce 75f5fed5cd66 780f7a8495e4 78d976a442bc 7a2fad4301dc 7de1c58e208e
872be49dbb63 8a58e18acd9c 8aeba567270f 901b10d47195 90c33aee14aa 9524df67b77a 961bc9dd4cda 993c0af704ba 9ac30df1ee10
9ff2eb30a1d3 a0bc6f6fc7a2 a41fb8727c4f a805e50fed68 abf41beccbd3 ac7498a36a71 b216fe0d948e b48c47f64438 bf61473d7119
cbb504cb43fe cd8e9439f057 d99c0a28fd4e dcaee66df77b df3965ba586f e10ca381b1cc e187bfdc80c8 e84ee90c8a81 e8c6cd531610
ecd6ae513fe1 faf1f8b675be fe689ffbd6a4 febf589225c9
"""
KNOWN = frozenset(_KNOWN.split())
LONGEST = 20_000  # characters of a Go template

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")
WORDS = ("hubqsystem", "hubqquestion", "hubqanswer", "hubqagain")  # stand for contents where a template is taken apart


def _spoken(*contents: str, system: str = "") -> list[Message]:
    """A conversation that begins with a question."""
    asked: list[Message] = [{"role": ROLES[1 + number % 2], "content": text} for number, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *asked] if system else asked


LEARNED = (
    _spoken(*WORDS[1:], system=WORDS[0]),
    _spoken(*WORDS[1:3], system=WORDS[0]),
    _spoken(WORDS[1], system=WORDS[0]),
    _spoken(WORDS[1]),
)
CHECKED = (
    _spoken("Why is the sky blue?"),
    _spoken("Say {{ it }} twice:\n\n'it'", system="You are terse. Answer\nin one word."),
    _spoken("Wie heißt du?", "Ich bin ein Modell.", 'And in "English"?'),
    _spoken("1 + 1?", "2", "2 + 2?", "4\n\nReally: four.", "日本語?", system="Count."),
)
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}


@dataclass(frozen=True, slots=True)
class Form:
    """What stands before and after a message of each role, what stands in place of a system message where there is none, and
    `end`, which asks for an answer."""

    roles: Mapping[str, tuple[str, str]]
    default: str
    end: str

    def write(self, messages: Sequence[Message]) -> str:
        """A conversation as the Go template writes it."""
        texts = [self.roles[message["role"]][0] + message["content"] + self.roles[message["role"]][1] for message in messages]
        return (self.default if messages[0]["role"] != "system" else "") + "".join(texts) + self.end

    def template(self) -> str:
        """The Go template."""
        default = "{{ if not .System }}" + self.default + "{{ end }}" if self.default else ""
        cases = [f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, (before, after) in self.roles.items()]
        return default + "{{ range .Messages }}{{ " + "{{ else ".join(cases) + "{{ end }}{{ end }}" + self.end

    def stop(self) -> list[str]:
        """The text that ends an answer, or where that is blank, that begins a question: generation stops there."""
        ends = (self.roles["assistant"][1].strip(), self.roles["user"][0].strip())
        return [text for text in ends if text][:1]


def judge(metadata: Mapping[str, Any]) -> Literal["", "known", "made", "unchecked"]:
    """What becomes of a file's chat template in Ollama: it is of its own library, `files` has one, or nobody checked.

    Empty where there is no chat template.
    """
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        return ""
    if hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()[:12] in KNOWN:
        return "known"
    return "made" if _form(metadata) else "unchecked"


def files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """`template` and `params` for a repository, where the Hub would guess and the template has a form for it."""
    form = _form(metadata) if judge(metadata) == "made" else None
    if form is None:
        return {}
    return {"template": form.template().encode(), "params": (json.dumps({"stop": form.stop()}) + "\n").encode()}


def _form(metadata: Mapping[str, Any]) -> Form | None:
    return find_form(
        metadata["tokenizer.chat_template"],
        _special(metadata, "bos"),
        _special(metadata, "eos"),
        metadata.get("tokenizer.ggml.add_bos_token"),
    )


def _special(metadata: Mapping[str, Any], name: str) -> str:
    """The text of a special token, "" where the file names none."""
    tokens, number = metadata.get("tokenizer.ggml.tokens"), metadata.get(f"tokenizer.ggml.{name}_token_id")
    if tokens is None or type(number) is not int or not 0 <= number < tokens.count:
        return ""
    return str(tokens.values(number + 1)[number])


@cache
def find_form(template: str, bos: str, eos: str, adds_bos: bool | None) -> Form | None:
    """The form of a Jinja template, held against it on other conversations than it was found by; None where it has none.

    Where the tokenizer puts `bos` in front of a text itself (`adds_bos`; None: that is not known), the Go template does not.
    Contents begin and end with no space: some templates cut that off, which no Go template does.
    """
    if "strftime_now" in template:  # today's date would be in the file
        return None
    wanted = [(messages, False) for messages in LEARNED] + [(messages, True) for messages in (LEARNED[-1], *CHECKED)]
    names: dict[str, Any] = {"bos_token": bos, "eos_token": eos}
    jobs: list[dict[str, Any]] = [
        {"template": template, "variables": {"messages": messages, "add_generation_prompt": ask, **names}}
        for messages, ask in wanted
    ]
    jobs.append({"template": template, "variables": jobs[-1]["variables"] | {"tools": [TOOL]}})
    texts = [answer.get("text") for answer in render(jobs)]
    starts = {bool(bos) and (text or "").startswith(bos) for text in texts}
    if None in texts or (starts != {False} and (len(starts) > 1 or adds_bos is None)):
        return None
    found = [str(text).removeprefix(bos if adds_bos else "") for text in texts]
    form = _taken_apart(*found[: len(LEARNED) + 1])
    if form is None or not _is_literal(form):
        return None
    checked = [*CHECKED, CHECKED[-1]]
    same = all(form.write(messages) == text for messages, text in zip(checked, found[-len(checked) :], strict=True))
    return form if same else None


def _taken_apart(whole: str, answered: str, first: str, bare: str, asked: str) -> Form | None:
    """The form of the conversations LEARNED as they were rendered; `asked` is the last of them with what asks for an answer."""
    texts = ((whole, WORDS), (answered, WORDS[:3]), (first, WORDS[:2]), (bare, WORDS[1:2]))
    parts = [_around(text, words) for text, words in texts]
    if not all(parts):
        return None
    (before, after_system, after_user, after_answer, _), after = parts[0], [part[-1] for part in parts]
    user = _cut(after_answer, after[1], "")
    assistant = _cut(after_user, after[2], "")
    end = _cut(asked, bare, "")
    if user is None or assistant is None or end is None:
        return None
    system, default = _cut(after_system, "", user), _cut(parts[3][0], "", user)
    if system is None or default is None:
        return None
    return Form({"system": (before, system), "user": (user, after[2]), "assistant": (assistant, after[1])}, default, end)


def _around(text: str, words: Sequence[str]) -> list[str]:
    """What stands before, between and behind words; nothing unless each of them and no other occurs, once, in this order."""
    if [text.count(word) for word in WORDS] != [int(word in words) for word in WORDS]:
        return []
    found = re.split("|".join(WORDS), text)
    return found if "".join(part + word for part, word in zip(found, (*words, ""), strict=True)) == text else []


def _cut(text: str, start: str, end: str) -> str | None:
    """A text without its start and end, None where it has not both."""
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        return None
    return text[len(start) : len(text) - len(end)]


def _is_literal(form: Form) -> bool:
    """Whether the texts stand for themselves in a Go template and in UTF-8."""
    texts = [form.default, form.end, *(text for around in form.roles.values() for text in around)]
    whole = form.template()
    return (
        len(whole) <= LONGEST
        and not any("{{" in text + "{" or text.startswith("}") for text in texts)
        and not any("\ud800" <= ch <= "\udfff" for ch in whole)
    )
