"""The "Run it" part of GGUF cards: for which models and files it names which programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import releases
import tiny

from hubq.formats import parse_levels
from hubq.formats.gguf.arch import families
from hubq.formats.gguf.run_it import TRANSFORMERS, usage
from hubq.nouns import Release, RepoFile
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store


def split(made: Release) -> Release:
    """The release with each level in two files."""
    files = []
    for file in made.artifacts:
        names = [f"{file.path.stem}-0000{number}-of-00002.gguf" for number in (1, 2)]
        files.append(replace(file, path=Path(names[0]), parts=tuple(RepoFile(name, 9, file.sha256) for name in names)))
    return replace(made, artifacts=tuple(files))


def test_transformers_reads_what_the_table_says() -> None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    assert set(TRANSFORMERS.values()) <= GGUF_CONFIG_MAPPING.keys()
    ours = {name: kind.gguf for kind in families().values() for name in kind.classes}
    assert all(ours[name].replace("moe", "_moe") == found for name, found in TRANSFORMERS.items())


def test_transformers_reads_a_file(tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = tiny.llama(tmp_path / "Tiny-Llama", num_hidden_layers=1)
    result = publish(Request(str(model), parse_levels("q4_k_m"), Store(tmp_path / "work"), to=str(tmp_path / "out")))
    config = load_gguf_checkpoint(str(Path(result.target) / result.release.artifacts[0].path.name))["config"]
    assert config["model_type"] == "llama" and config["hidden_size"] == 256


def test_programs_for_python_are_named_where_they_take_the_model() -> None:
    made = releases.release("Q8_0", "Q4_K_M")
    text = usage(made)
    assert 'AutoModelForCausalLM.from_pretrained("me/Tiny-GGUF", gguf_file="Tiny-Q4_K_M.gguf")' in text
    assert 'AutoTokenizer.from_pretrained("org/Tiny")' in text
    assert "vllm serve me/Tiny-GGUF:Q4_K_M --tokenizer org/Tiny\n" in text
    for other in (replace(made, architecture="OlmoForCausalLM"), replace(made, source="folder"), replace(made, target="out")):
        assert "vllm" not in usage(other) and "transformers" not in usage(other)


@pytest.mark.parametrize("target", ["me/Tiny-GGUF", "out"])
def test_of_a_model_in_parts_no_command_is_named_that_fails(target: str) -> None:
    text = usage(split(releases.release("Q8_0", "Q4_K_M", target=target, card={"ollama": "made"})))
    assert "ollama run" not in text and "ollama create" not in text and "vllm" not in text and "gguf_file" not in text
    assert "Ollama, transformers and vLLM take no model in several files" in text and "`template`" not in text
    assert "llama-server" in text


@pytest.mark.parametrize(
    ("found", "words"), [("made", "`template` and `params`"), ("unchecked", "was not checked"), ("known", ""), ("", "")]
)
def test_the_card_says_how_ollama_writes_conversations(found: str, words: str) -> None:
    text = usage(releases.release("Q8_0", card={"chat_template": True, "ollama": found}))
    assert words in text
    assert ("`params`" in text) == (found == "made") and ("not checked" in text) == (found == "unchecked")
