"""Tags lead where llama.cpp, the Hub and Ollama lead them."""

from __future__ import annotations

import pytest

from hubq.formats.gguf import names
from hubq.formats.gguf.levels import MIXES

ALL = [f"Model-{level}.gguf" for level in MIXES]


@pytest.mark.parametrize(
    ("paths", "tag", "found"),
    [
        (["M-BF16.gguf", "M-F16.gguf"], "F16", "M-BF16.gguf"),
        (["M-F16.gguf"], "f16", "M-F16.gguf"),
        (["M-IQ4_NL.gguf", "M-Q4_K_M.gguf"], "Q4_NL", "M-IQ4_NL.gguf"),
        (["M-Q4_K_M.gguf"], "Q4_K", None),
        (["Q8_0/M-00002-of-00002.gguf", "Q8_0/M-00001-of-00002.gguf"], "Q8_0", None),
        (["M-Q8_0-00002-of-00002.gguf", "M-Q8_0-00001-of-00002.gguf"], "Q8_0", "M-Q8_0-00001-of-00002.gguf"),
        (["mmproj-M-F16.gguf", "M-imatrix-F16.gguf"], "F16", None),
        (["b/M-Q8_0.gguf", "a/M-Q8_0.gguf"], "Q8_0", "a/M-Q8_0.gguf"),
    ],
)
def test_llama_cpp_takes_the_first_file_in_which_the_tag_occurs(paths: list[str], tag: str, found: str | None) -> None:
    assert names.by_llama_cpp(paths, tag) == found


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("M-Q4_K_M.gguf", "Q4_K_M"),
        ("m.q4_k_m.gguf", "Q4_K_M"),
        ("M-Q8_0-Q4_K_M.gguf", "Q4_K_M"),
        ("M-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("M-IQ4_NL.gguf", "IQ4_NL"),
        ("M-BF16.gguf", "BF16"),
        ("M-Q6_K_L.gguf", "Q6_K_L"),
        ("M-Q4_K_L.gguf", None),
        ("M-Q4_K.gguf", None),
        ("M.gguf", None),
    ],
)
def test_the_hub_takes_the_last_level_that_it_knows(path: str, found: str | None) -> None:
    assert names.label(path) == found


def test_the_hub_knows_every_level_of_ours() -> None:
    assert [names.label(path) for path in ALL] == list(MIXES)


def test_of_our_levels_only_one_pair_gets_in_each_others_way() -> None:
    faults = names.misleading(ALL, [(path, level) for path, level in zip(ALL, MIXES, strict=True)])
    assert faults == ["the tag F16 would load Model-BF16.gguf in llama.cpp, and not Model-F16.gguf"]


def test_two_files_of_a_level_are_ambiguous() -> None:
    paths = ["a-Q8_0.gguf", "b-Q8_0.gguf"]
    assert names.by_ollama(paths, "q8_0") == paths
    assert names.by_ollama(paths, "B-q8_0.gguf") == ["b-Q8_0.gguf"]
    assert names.misleading(paths, [("a-Q8_0.gguf", "Q8_0")]) == [
        "the tag Q8_0 means a-Q8_0.gguf and b-Q8_0.gguf on the Hub and in Ollama"
    ]
    assert names.by_ollama(["M-Q8_0-00001-of-00002.gguf"], "Q8_0") == []
