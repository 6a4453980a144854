"""Tags lead where llama.cpp, the Hub and Ollama lead them."""

from __future__ import annotations

import pytest

from hubq.formats import parse_levels
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


def test_all_levels_of_a_model_may_stand_side_by_side() -> None:
    """Those that `all` stands for; a source's name may hold a level itself."""
    every = {f"Model-{level.name}.gguf": level.name for level in parse_levels("all", matrix=True)}
    assert "Model-BF16.gguf" in every and names.refused(list(every), every) == []


@pytest.mark.parametrize(
    ("others", "level", "fault"),
    [
        (["M-F16.gguf"], "BF16", "the tag F16 would load M-BF16.gguf in llama.cpp, and not M-F16.gguf"),
        (["a-F16.gguf"], "F16", "the tag F16 would load M-F16.gguf in llama.cpp, and not a-F16.gguf"),
        (["a/m-q8_0.gguf"], "Q8_0", "the tag Q8_0 means M-Q8_0.gguf and a/m-q8_0.gguf on the Hub and in Ollama"),
        (["M-Q8_0-Q4_K_M.gguf"], "Q8_0", "the tag Q8_0 would load M-Q8_0-Q4_K_M.gguf in llama.cpp, and not M-Q8_0.gguf"),
        (["preset.ini"], "Q8_0", "with preset.ini in the repository llama.cpp takes no model from it"),
        (["M-imatrix.gguf", "mmproj-M-F16.gguf", "M-Q4_0-00001-of-00002.gguf", "M-Q4_0-00002-of-00002.gguf"], "F16", None),
        (["readme-BF16.md", "b/notes-F16.txt", "M.gguf", "M-Q4_K_L.gguf"], "F16", None),
    ],
)
def test_a_file_is_refused_that_gets_in_the_way_of_another(others: list[str], level: str, fault: str | None) -> None:
    own = f"M-{level}.gguf"
    found = names.refused([own, *others], {own: level})
    assert found == [] if fault is None else fault in found


def test_a_name_that_llama_cpp_takes_for_no_model_is_refused() -> None:
    own = "imatrix-study-Q8_0.gguf"
    assert names.refused([own], {own: "Q8_0"}) == [f"the tag Q8_0 would load nothing in llama.cpp, and not {own}"]


def test_two_files_of_a_level_are_ambiguous() -> None:
    paths = ["a-Q8_0.gguf", "b-Q8_0.gguf"]
    assert names.by_ollama(paths, "q8_0") == paths
    assert names.by_ollama(paths, "B-q8_0.gguf") == ["b-Q8_0.gguf"]
    assert names.misleading(paths, [("a-Q8_0.gguf", "Q8_0")]) == [
        "the tag Q8_0 means a-Q8_0.gguf and b-Q8_0.gguf on the Hub and in Ollama"
    ]
    assert names.by_ollama(["M-Q8_0-00001-of-00002.gguf"], "Q8_0") == []
