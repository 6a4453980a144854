"""The Go templates made for Ollama write what the Jinja template writes, and where that cannot be, there is none."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from jinja2 import Environment

from hubq.formats import parse_levels
from hubq.formats.gguf import chat
from hubq.formats.gguf.read import Array
from hubq.formats.gguf.render import render
from hubq.hub import connect
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store
from hubq.verify import verify

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TALKS = {
    "bare": "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}",
    "chatml": CHATML,
    "a default system prompt": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    + CHATML,
    "end of text behind answers": "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "in brackets": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'system' %}"
    "[SYS]{{ m.content }}[/SYS]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "single braces": CHATML.replace("<|im_start|>", "{ x }"),
}
OTHERS = {
    "no system messages": "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML,
    "the system prompt within the first question": "{% for m in messages %}{% if m.role == 'user' %}<u>{% if loop.index == 2 "
    "and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}{% elif m.role == 'assistant' %}<a>"
    "{{ m.content }}{% endif %}{% endfor %}<a>",
    "counted turns": CHATML.replace("{{ m.role }}", "{{ m.role }}{{ loop.index }}"),
    "the last answer alone is kept": "{% for m in messages %}{% if m.role != 'assistant' or loop.index > messages | length - 3 "
    "%}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}<assistant>",
    "tools": CHATML + "{{ tools }}",
    "the date": CHATML + "{{ strftime_now('%Y') }}",
    "an action of Go": CHATML.replace("<|im_start|>", "{{ '{{ .System }}' }}"),
    "a brace before an action": CHATML.replace("\n{{ m.content", "{{ '{' }}{{ m.content"),
    "half a character": CHATML.replace("<|im_end|>", "{{ '\\ud800' }}"),
    "contents in other words": CHATML.replace("m.content", "m.content | upper"),
    "no template": "{% for",
}


def execute(template: str, messages: Sequence[dict[str, str]]) -> str:
    """What Go's text/template makes of a template that uses no more than is used here, by way of Jinja."""
    opened: list[str] = []

    def action(match: re.Match[str]) -> str:
        words = match[1].split()
        condition = "not system" if words[-1] == ".System" else f"m.role == {words[-1]}"
        if words[:2] == ["else", "if"]:
            return f"{{% elif {condition} %}}"
        if words[0] in ("if", "range"):
            opened.append("if" if words[0] == "if" else "for")
            return f"{{% if {condition} %}}" if words[0] == "if" else "{% for m in messages %}"
        return f"{{% end{opened.pop()} %}}" if words == ["end"] else {".Content": "{{ m.content }}"}[words[0]]

    system = any(message["role"] == "system" for message in messages)
    translated = Environment(keep_trailing_newline=True).from_string(re.sub(r"\{\{ (.*?) \}\}", action, template))
    return translated.render(messages=messages, system=system)


TURNS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ .System }}"}],
    [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "5"},
    ],
]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", TALKS)
def test_the_go_template_writes_what_the_jinja_template_writes(name: str, adds_bos: bool) -> None:
    form = chat.find_form(TALKS[name], "<s>", "</s>", adds_bos)
    assert form is not None
    variables = [{"messages": turns, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True} for turns in TURNS]
    for turns, answer in zip(TURNS, render([{"template": TALKS[name], "variables": each} for each in variables]), strict=True):
        assert execute(form.template(), turns) == answer["text"].removeprefix("<s>" if adds_bos else "")


def test_generation_stops_where_an_answer_ends() -> None:
    wanted = {"bare": "<|user|>", "chatml": "<|im_end|>", "end of text behind answers": "</s>", "in brackets": "</s>"}
    for name, stop in wanted.items():
        form = chat.find_form(TALKS[name], "<s>", "</s>", True)
        assert form and form.stop() == [stop]


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_form_gets_no_template(name: str) -> None:
    assert chat.find_form(OTHERS[name], "<s>", "</s>", True) is None


def metadata(template: str, **changes: Any) -> dict[str, Any]:
    tokens = Array("str", 2, b"".join(struct.pack("<Q", len(text)) + text for text in (b"<s>", b"</s>")))
    keys = {"chat_template": template, "ggml.tokens": tokens, "ggml.bos_token_id": 0, "ggml.eos_token_id": 1, **changes}
    return {f"tokenizer.{name.replace('__', '.')}": value for name, value in keys.items()}


def test_a_bos_is_written_once() -> None:
    """By the tokenizer, if it says so; where it says nothing and the template writes one, nobody can tell."""
    template = TALKS["end of text behind answers"]
    for adds, start in ((True, b"{{ range"), (False, b"{{ if not .System }}<s>{{ end }}{{ range")):
        found = metadata(template, ggml__add_bos_token=adds)
        assert chat.judge(found) == "made" and chat.files(found)["template"].startswith(start)
    assert chat.judge(metadata(template)) == "unchecked" and chat.files(metadata(template)) == {}
    assert chat.judge(metadata(CHATML)) == "made"


def test_what_the_hub_knows_is_left_to_it(smollm2: Path) -> None:
    template = json.loads((smollm2 / "tokenizer_config.json").read_text())["chat_template"]
    assert chat.judge(metadata(template)) == "known" and chat.files(metadata(template)) == {}
    assert chat.judge(metadata(template + " ")) != "known"
    assert chat.judge(metadata("")) == chat.judge({}) == "" and chat.files({}) == {}


def test_they_are_published_with_the_files(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "Tiny-Llama", num_hidden_layers=1)
    result = []
    for level in ("q8_0", "q4_0"):
        request = Request(str(model), parse_levels(level), Store(tmp_path / "work"), to=str(tmp_path / "out"))
        result.append(publish(request))
    folder = Path(result[1].target)
    form = chat.find_form(TALKS["bare"], "<|end|>", "<|end|>", False)
    assert form and (folder / "template").read_text() == form.template()
    assert json.loads((folder / "params").read_bytes()) == {"stop": ["<|user|>"]}
    sums = (folder / "SHA256SUMS").read_text()
    assert re.search("(?m)^[0-9a-f]{64}  template$", sums) and re.search("(?m)^[0-9a-f]{64}  params$", sums)
    assert "`template` and `params` beside the files" in (folder / "README.md").read_text()
    assert not verify(connect(folder.parent), folder.name).failed
