"""The table of formats, and levels as people write them."""

from __future__ import annotations

import inspect

import pytest

from hubq import formats
from hubq.errors import Usage
from hubq.formats import FORMATS, levels, open_format, parse_levels
from hubq.nouns import Level

AGREED = {
    "plan": ["blueprint", "levels", "options"],
    "build": ["plan", "source", "paths", "progress"],
    "file_name": ["model", "level"],
    "engines": ["source"],
    "load": ["artifact", "source", "engine", "task"],
    "refused": ["paths", "files"],
    "beside": ["plan", "source", "release"],
    "ollama": ["plan"],
    "cache": ["plan"],
    "command": ["release", "file", "context"],
    "usage": ["release", "level"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_agreed_names(name: str) -> None:
    module = open_format(name)
    for function, parameters in AGREED.items():
        assert list(inspect.signature(getattr(module, function)).parameters) == parameters, function
    assert type(module.VERSION) is int
    for key, level in module.LEVELS.items():
        assert (level.format, level.name) == (name, key)
        assert level.bits > 0 and level.summary


def test_levels_are_listed_best_first_by_their_full_names() -> None:
    table = levels()
    assert list(table)[:3] == ["gguf:F32", "gguf:BF16", "gguf:F16"] and list(table)[-1] == "onnx:genai-int4"
    assert all(key == level.id for key, level in table.items())
    assert len({level.name.lower() for level in table.values()}) == len(table)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Q8_0", ["Q8_0"]),
        ("q8_0", ["Q8_0"]),
        ("onnx:q4,q8_0,ONNX:Q8", ["Q8_0", "q8", "q4"]),
        ("onnx:all", ["fp32", "fp16", "q8", "q4", "q4f16"]),
        ("GGUF:q8_0", ["Q8_0"]),
        ("q2_k, gguf:Q8_0 ,Q4_K_M,", ["Q8_0", "Q4_K_M", "Q2_K"]),
        ("q4_k_m,Q4_K_M,gguf:q4_k_m", ["Q4_K_M"]),
        ("Bf16", ["BF16"]),
        ("q4_k,GGUF:Q5_K", ["Q5_K_M", "Q4_K_M"]),
    ],
)
def test_levels_as_people_write_them(text: str, names: list[str]) -> None:
    assert [level.name for level in parse_levels(text)] == names


@pytest.mark.parametrize("text", ["all", " ALL "])
def test_all_means_all_that_can_be_built(text: str) -> None:
    every = tuple(level for level in levels().values() if not level.special and level.format == "gguf")
    assert {level.name for level in levels().values()} - {level.name for level in every} > {"MXFP4_MOE", "TQ2_0", "Q1_0", "F16"}
    assert parse_levels(text, matrix=True) == every
    assert parse_levels(text) == tuple(level for level in every if not level.needs_matrix)


def test_a_level_that_needs_an_importance_matrix_says_so_early() -> None:
    with pytest.raises(Usage, match="IQ2_XS needs an importance matrix"):
        parse_levels("q8_0,iq2_xs")
    assert [level.name for level in parse_levels("q8_0,iq2_xs", matrix=True)] == ["Q8_0", "IQ2_XS"]


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_no_level(text: str) -> None:
    with pytest.raises(Usage, match="no level is named") as caught:
        parse_levels(text)
    assert caught.value.hint == "see `hubq levels`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q4_m", "there is no level 'q4_m'; did you mean .*q4_k_m"),
        ("Q8_0,q4km", "there is no level 'q4km'; did you mean q4_k_m"),
        ("int7", "there is no level 'int7'"),
        ("onnx:q8_0", "there is no level 'onnx:q8_0'"),
        ("gguf:", "there is no level 'gguf:'"),
    ],
)
def test_a_level_that_is_none(text: str, message: str) -> None:
    with pytest.raises(Usage, match=message) as caught:
        parse_levels(text)
    assert caught.value.hint == "see `hubq levels`"


def test_a_name_that_two_formats_have_needs_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {id: Level(id, 8, "eight bits") for id in ("gguf:Q8", "onnx:q8", "onnx:q4")}
    monkeypatch.setattr(formats, "levels", lambda: table)
    with pytest.raises(Usage, match="'q8' could be gguf:Q8 or onnx:q8") as caught:
        parse_levels("q8")
    assert caught.value.hint
    assert [level.id for level in parse_levels("onnx:Q8,q4,gguf:q8")] == ["gguf:Q8", "onnx:q8", "onnx:q4"]
