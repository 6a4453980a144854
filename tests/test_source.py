"""A repository's small files: which ones are used, and that reading them runs nothing and ends in no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.nouns import RepoFile, Snapshot
from hubq.source import read_card, read_config, used

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def config(**changes: Any) -> dict[str, Any]:
    return read_config(json.dumps(LLAMA | changes).encode())


def test_only_known_small_files_are_used() -> None:
    wanted = ["LICENSE", "LICENSE.txt", "README.md", "config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"]
    wanted += ["modules.json", "1_Pooling/config.json"]
    others = [
        "model.safetensors",
        "modeling_llama.py",
        "pytorch_model.bin",
        "sub/config.json",
        "LICENSE/../../evil",
        "additional_chat_templates/../../evil.jinja",
        "additional_chat_templates/sub/evil.jinja",
        "2_Dense/config.json",
        "sub/1_Pooling/config.json",
        "../1_Pooling/config.json",
        "Config.json",
    ]
    snapshot = Snapshot("org/model", "0" * 40, tuple(RepoFile(path, 1) for path in sorted(wanted + others)))
    assert sorted(used(snapshot)) == sorted(wanted)


# --- config.json ---


def test_a_sound_config_comes_back() -> None:
    assert config(rope_scaling={"factor": 2.0}) == LLAMA | {"rope_scaling": {"factor": 2.0}}


def test_keys_that_could_load_code_are_dropped_at_any_depth() -> None:
    hostile = {
        "_attn_implementation": "evil/kernel",
        "_experts_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "trust_remote_code": True,
        "text_config": {
            "_attn_implementation": "evil/kernel",
            "experts_implementation": "evil/kernel",
            "layers": [{"_name_or_path": "x", "trust_remote_code": 1, "n": 2}],
        },
        "list": [[{"__class__": "x", "kept_": 3}]],
    }
    assert config(**hostile) == LLAMA | {"text_config": {"layers": [{"n": 2}]}, "list": [[{"kept_": 3}]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\x00", "cannot be read"),
        (b"<html>", "cannot be read"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"a":' * 5000, "cannot be read"),
        (b"[]", "is not a table"),
        (b'"text"', "is not a table"),
        (b"null", "is not a table"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_config_that_is_none(content: bytes, message: str) -> None:
    with pytest.raises(BadSource, match=f"config.json {message}") as caught:
        read_config(content)
    assert caught.value.hint


@pytest.mark.parametrize("depth", [100, 300, 450, 600, 800, 900, 950, 980, 990, 995])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_no_depth_ends_in_another_error(depth: int, brackets: str) -> None:
    opened, closed = (b'{"a":', b"}") if brackets == "{}" else (b"[", b"]")
    content = b'{"deep": ' + opened * depth + b"1" + closed * depth + b"}"
    try:
        assert "deep" in read_config(content)
    except BadSource as error:
        assert "cannot be read" in error.message


@pytest.mark.parametrize("auto_map", [{"AutoModelForCausalLM": "modeling.Model"}, {}, None])
def test_code_that_a_model_brings_is_never_named_again(auto_map: Any) -> None:
    assert "auto_map" not in config(auto_map=auto_map, text_config={"auto_map": auto_map})["text_config"]
    assert "auto_map" not in config(auto_map=auto_map)


@pytest.mark.parametrize(
    ("setting", "method"),
    [({"quant_method": "gptq", "bits": 4}, "'gptq'"), ({"bits": 4}, "None"), ([1], "None"), ("awq", "None")],
)
def test_a_quantized_model_is_refused(setting: Any, method: str) -> None:
    with pytest.raises(Unsupported, match=rf"quantized already \({method}\)") as caught:
        config(quantization_config=setting)
    assert "original" in caught.value.hint


def test_8_bit_floats_with_scales_are_read_as_what_they_stand_for() -> None:
    assert "quantization_config" not in config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


def test_no_quantization_is_no_quantization() -> None:
    assert config(quantization_config=None)["quantization_config"] is None


@given(JSON | st.dictionaries(st.sampled_from(["auto_map", "quantization_config", "_x", "text_config"]), JSON))
@settings(max_examples=200, deadline=None)
def test_no_config_ends_in_another_error(document: Any) -> None:
    allowed(lambda: read_config(json.dumps(document).encode()))


@given(st.binary(max_size=60))
def test_no_garbage_ends_in_another_error(content: bytes) -> None:
    allowed(lambda: read_config(content))
    assert isinstance(read_card(content), dict)
    assert isinstance(read_card(b"---\n" + content), dict)


def allowed(work: Callable[[], Any]) -> None:
    try:
        work()
    except HubqError as error:
        assert error.message and error.hint


# --- the model card ---


def test_the_front_matter_of_a_card() -> None:
    card = "\ufeff---\nlicense: mit\nlanguage:\n- en\n- de\n---\n\n# A model\n\n---\nlicense: gpl\n---\n"
    assert read_card(card.encode()) == {"license": "mit", "language": ["en", "de"]}
    assert read_card(card.replace("\n", "\r\n").encode()) == {"license": "mit", "language": ["en", "de"]}


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# A model\n",
        "---\n---\n",
        "---\n- a list\n---\n",
        "---\njust text\n---\n",
        "---\na: [1\n---\n",
        "---\na: b: c\n---\n",
        "---\na: !!python/object/apply:os.system ['echo hacked > /tmp/hacked']\n---\n",
        "---\na: !!python/name:os.system\n---\n",
        "---\na: !!int ''\n---\n",
        "---\na: !!float ''\n---\n",
        "---\na: !!bool maybe\n---\n",
        "---\na: !!timestamp never\n---\n",
        "---\na: 2001-99-99\n---\n",
        "---\na: 2001-01-01 00:00:00 +99:99\n---\n",
        "---\n? [a, b]\n: [c]\n? {d: e}\n: f\n---\n",
        "---\na: *b\n---\n",
        "---\na: " + "9" * 5000 + "\n---\n",
        "---\na: " + "[" * 5000 + "\n---\n",
        "---\n" + "- " * 3000 + "\n---\n",
        "---\na: \x00\n---\n",
    ],
    ids=lambda card: repr(card[4:44]),
)
def test_a_card_that_says_nothing(card: str) -> None:
    assert read_card(card.encode()) == {}


def test_a_card_of_bytes_that_are_no_text() -> None:
    assert read_card(b"---\nlicense: mit\nname: \xff\xfe\n---\n")["license"] == "mit"


TAGS = [
    "!!int",
    "!!float",
    "!!bool",
    "!!timestamp",
    "!!binary",
    "!!null",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!str",
    "!x",
    "&a",
    "*a",
]
YAML = st.lists(
    st.tuples(
        st.sampled_from(["", "a: ", "- ", "? ", "<<: ", "  b: "]),
        st.sampled_from(["", *TAGS]),
        st.sampled_from(["", "1", "-", "x", "''", "[", "{a: 1}", "[[a, b]]", "2001-13-45", "0x", "1:99:99", "~", "|", ">"]),
    ),
    max_size=6,
)


@given(YAML)
@settings(max_examples=300, deadline=None)
def test_no_card_ends_in_another_error(lines: list[tuple[str, str, str]]) -> None:
    front = "\n".join(f"{start}{tag} {value}" for start, tag, value in lines)
    assert isinstance(read_card(f"---\n{front}\n---\n".encode()), dict)
