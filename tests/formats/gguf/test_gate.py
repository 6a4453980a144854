"""The parity gate: what is sound passes, and a fault of each kind stops the push."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from formats.gguf.test_engine import build

from hubq.errors import GateFailed
from hubq.formats import parse_levels
from hubq.formats.checks import outcome as ended
from hubq.formats.gguf import blueprint, gate
from hubq.formats.gguf.blueprint import Blueprint
from hubq.formats.gguf.render import render
from hubq.nouns import Artifact, Check, Estimate, Measurement
from hubq.plan import Request
from hubq.release import Event, publish
from hubq.store import Store
from hubq.text import TextSpec

TEXT = "It's 2024, and DON'T  stop: naïve 你好 🚀\n\n"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has much to say, so that a fault shows; with a BOS that its template writes, and a stop token of its own."""
    folder = tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32", initializer_range=0.1)
    settings = {"bos_token": "<|user|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    return folder


Plant = Callable[[Callable[[Blueprint], Blueprint]], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Lets every blueprint have a fault."""
    draw = blueprint.of_checkpoint

    def planted(fault: Callable[[Blueprint], Blueprint]) -> None:
        for place in ("hubq.formats.gguf.blueprint.of_checkpoint", "formats.gguf.test_engine.of_checkpoint"):
            monkeypatch.setattr(place, lambda *arguments: fault(draw(*arguments)))

    return planted


def checked(model: Path, tmp_path: Path, **files: Any) -> dict[str, Check]:
    """What the gate finds of a file without weighing logits; `files` go into the source as JSON before the gate looks at it."""
    folder = shutil.copytree(model, tmp_path / "model")
    source, artifacts = build(folder, ["Q8_0"])
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return {check.name: check for check in gate.check(list(artifacts.values()), source, TEXT, ())}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.outcome == "failed"}


def test_a_sound_file_passes(model: Path, tmp_path: Path) -> None:
    checks = checked(model, tmp_path)
    assert {name: check.outcome for name, check in checks.items()} == {
        "chat template": "passed",
        "token ids": "passed",
        "special tokens": "passed",
        "conversation": "passed",
        "one BOS": "passed",
        "stop tokens": "passed",
        "logits": "not checked",
    }
    assert "of the beginning of the evaluation text" in checks["token ids"].detail
    assert "a call of a tool" in checks["conversation"].detail and "'<|end|>'" in checks["stop tokens"].detail


def test_what_llama_cpp_itself_reads_otherwise_is_told_up_to_a_share(model: Path, tmp_path: Path) -> None:
    """It composes no letters, as this tokenizer does."""
    folder = shutil.copytree(model, tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    source, artifacts = build(folder, ["Q8_0"])

    def found(text: str) -> Check:
        return next(check for check in gate.check(list(artifacts.values()), source, text, ()) if check.name == "token ids")

    few, many = found(100 * TEXT + "cafe\u0301\n"), found("cafe\u0301 au lait\n" + TEXT)
    assert few.outcome == "passed" and "in the evaluation text llama.cpp reads lines of" in few.detail
    assert many.outcome == "failed" and "of the evaluation text is" in many.detail


# --- faults, one of each kind ---


def vocab(**changes: Any) -> Callable[[Blueprint], Blueprint]:
    return lambda drawn: replace(drawn, vocab=replace(drawn.vocab, **changes))


def special(change: Callable[[Any], None]) -> Callable[[Blueprint], Blueprint]:
    def fault(drawn: Blueprint) -> Blueprint:
        change(drawn.vocab.special)
        return drawn

    return fault


def swapped_ids(given: Any) -> None:
    ids = given.special_token_ids
    ids["bos"], ids["eos"] = ids["eos"], ids["bos"]


def swapped_texts(drawn: Blueprint) -> Blueprint:
    first, second, *rest = drawn.vocab.tokens
    return vocab(tokens=[second, first, *rest])(drawn)


def plain(drawn: Blueprint) -> Blueprint:
    """Special tokens that are taken for text."""
    return vocab(types=[1] * len(drawn.vocab.types))(drawn)


def template(text: str | None) -> Callable[[Blueprint], Blueprint]:
    return special(lambda given: setattr(given, "chat_template", text))


FAULTS: dict[str, tuple[Callable[[Blueprint], Blueprint], set[str]]] = {
    "wrong pre-tokenizer": (vocab(pre="llama-bpe"), {"token ids"}),
    "unknown pre-tokenizer": (vocab(pre="nonesuch"), {"token ids", "special tokens", "conversation", "one BOS", "stop tokens"}),
    "lost template": (template(None), {"chat template", "conversation"}),
    "changed template": (template(TEMPLATE.replace("\n{% endfor", "{% endfor")), {"chat template", "conversation"}),
    "template with two BOS": (template("{{ bos_token }}" + TEMPLATE), {"chat template", "conversation", "one BOS"}),
    "added BOS": (special(lambda given: given.add_special_token.update(bos=True)), {"token ids", "one BOS"}),
    "swapped special ids": (special(swapped_ids), {"special tokens", "conversation"}),
    "swapped special tokens": (swapped_texts, {"special tokens", "conversation"}),
    "special tokens as text": (plain, {"special tokens", "conversation"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, model: Path, tmp_path: Path, plant: Plant) -> None:
    fault, expected = FAULTS[name]
    plant(fault)
    found = checked(model, tmp_path)
    assert failed(found) == expected, found


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"chat_template.json": '{"chat_template": "b"}'}, {"default": TEMPLATE}),
        ({"chat_template.jinja": "a", "chat_template.json": '{"chat_template": "b"}'}, {"default": "a"}),
        ({"additional_chat_templates/tools.jinja": "t"}, {"tools": "t"}),
        ({"tokenizer_config.json": "{}", "chat_template.json": '{"chat_template": "b"}'}, {"default": "b"}),
    ],
)
def test_templates_are_sought_where_transformers_looks(
    files: dict[str, str], wanted: dict[str, str], model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    source, artifacts = build(folder, ["Q8_0"])
    assert gate._Theirs(folder, {}).templates == wanted
    found = {check.name: check for check in gate.check(list(artifacts.values()), source, "", ())}
    assert found["chat template"].outcome == "passed"


def test_all_stop_tokens_must_stop(model: Path, tmp_path: Path) -> None:
    found = checked(model, tmp_path, generation_config={"eos_token_id": [0, 77]})
    assert failed(found) == {"stop tokens"} and "(77)" in found["stop tokens"].detail


def test_what_opens_an_answer_need_not_end_one(model: Path, tmp_path: Path) -> None:
    found = checked(model, tmp_path, generation_config={"eos_token_id": [0, 1]})
    assert not failed(found)


def test_what_ends_a_turn_must_stop(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    turns = "{% for m in messages %}{{ m.content }}<|user|>{% endfor %}"
    folder = shutil.copytree(model, tmp_path / "other")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": turns}))
    found = checked(folder, tmp_path)
    assert failed(found) == {"stop tokens"} and "'<|user|>' (1)" in found["stop tokens"].detail


def test_settings_may_say_that_texts_begin_with_bos(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    folder = shutil.copytree(model, tmp_path / "other")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    found = checked(folder, tmp_path)
    assert not failed(found) and found["one BOS"].detail == "llama.cpp begins a text with BOS, once"


# --- logits ---


def measured(kld: float, top1: float, level: str = "gguf:Q8_0") -> Measurement:
    values = {"kld_median": Estimate(kld, 0.0, 100), "top1": Estimate(top1, 0.0, 100)}
    return Measurement(level, "llama.cpp", values)


@pytest.mark.parametrize(
    ("level", "size", "kld", "top1", "outcome"),
    [
        ("Q8_0", 8.5, 0.009, 0.95, "passed"),
        ("Q8_0", 8.5, 0.031, 0.95, "failed"),
        ("Q8_0", 8.5, 0.009, 0.84, "failed"),
        ("Q8_0", 5.5, 0.29, 0.6, "passed"),
        ("Q8_0", 8.5, float("nan"), 0.95, "failed"),
        ("BF16", 16.01, 0.02, 0.99, "failed"),
        ("Q2_K", 6.0, 1.2, 0.4, "passed"),
        ("Q2_K", 2.6, 9.0, 0.4, "failed"),
    ],
)
def test_logits_have_bounds(level: str, size: float, kld: float, top1: float, outcome: str) -> None:
    weights = 1_000_000
    file = Artifact(f"gguf:{level}", Path("a.gguf"), int(size * weights / 8), "", weights, {}, 0, "")
    found, detail = ended(gate._outputs, file, measured(kld, top1), "probe", "")
    assert found == outcome
    assert outcome == "passed" or f"same top tokens {100 * top1:.4g} %" in detail


# --- templates that nobody vouches for ---


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 'a' * 10 ** 7 }}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ x.y.z }}",
    ],
)
def test_a_hostile_template_is_an_error_or_nothing(template: str) -> None:
    answer = render([{"template": template, "variables": {}}])[0]
    assert set(answer) == {"error"} or answer == {"text": ""}


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr("hubq.formats.gguf.render.SECONDS", 1)
    assert render([{"template": loop, "variables": {}}]) == [{"error": "it takes more than 1 seconds or 512 MiB"}]


def test_templates_are_rendered_as_in_transformers(model: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{%- for m in messages %}\n  {% if loop.index > 2 %}{% break %}{% endif %}\n{% generation %}{{ m | tojson }}"
        "{% endgeneration %}{% endfor %}{{ {'b': 'é<', 'a': [1]} | tojson(indent=2) }}{{ strftime_now('%Y') }}\n"
    )
    conversation = gate.CONVERSATIONS[0]
    theirs, _ = render_jinja_template([conversation["messages"]], chat_template=template)
    assert render([{"template": template, "variables": conversation}]) == [{"text": theirs[0]}]


# --- the whole way ---


@pytest.fixture
def request_(model: Path, topics: Path, tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    text = TextSpec(str(topics), None, windows=2, length=256)
    return Request(str(model), parse_levels("q8_0"), Store(tmp_path / "work"), to=str(tmp_path / "out"), text=text)


def unpermuted(drawn: Blueprint) -> Blueprint:
    return replace(drawn, tensors=[replace(tensor, rows=None) for tensor in drawn.tensors])


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_permutation_is_not_pushed(evaluated: bool, stream: bool, request_: Request, plant: Plant) -> None:
    plant(unpermuted)
    request = replace(request_, stream=stream, text=request_.text if evaluated else None)
    with pytest.raises(GateFailed, match="gguf:Q8_0: logits: median KL divergence") as caught:
        publish(request)
    assert caught.value.exit_code == 3
    assert not list(Path(str(request.to)).rglob("*.gguf")) and not list(Path(str(request.to)).rglob("README.md"))


def test_what_was_checked_is_told(request_: Request, tmp_path: Path) -> None:
    told: list[Event] = []
    result = publish(replace(request_, text=None, levels=parse_levels("q8_0,q4_0")), told.append)
    checks = result.release.checks
    assert {check.level for check in checks} == {"gguf:Q8_0", "gguf:Q4_0"}
    assert {check.outcome for check in checks} == {"passed"}
    assert [event.label for event in told if isinstance(event.result, tuple)] == ["gguf:Q8_0", "gguf:Q4_0"]
    card = result.card["README.md"].decode()
    assert "## Checked" in card and "on the probe text" in card and "Not evaluated" in card


def test_without_llama_cpp_the_card_says_so(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name, *rest))
    result = publish(request_)
    outcomes = {check.name: check.outcome for check in result.release.checks}
    assert outcomes.pop("chat template") == "passed" and set(outcomes.values()) == {"not checked"} and len(outcomes) == 6
    assert "not checked; llama-cpp-python is not installed" in result.card["README.md"].decode()
