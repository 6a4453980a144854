"""The level for onnxruntime-genai: its own runtime runs it, and its builder's graphs compute what transformers computes."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from families import Variant, make
from nightly import mostly

from hubq import sealed
from hubq.errors import HubqError, MissingExtra, Unsupported
from hubq.formats import parse_levels
from hubq.formats.onnx import engine, genai
from hubq.plan import Request, plan
from hubq.release import publish
from hubq.store import Store, sha256
from hubq.text import TextSpec

pytestmark = pytest.mark.timeout(1800)

# the builder takes a matrix with as many rows as there are tokens for the head: no other matrix may have them
SHAPE: dict[str, Any] = {"intermediate_size": 640}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
VARIANTS = {
    "LlamaForCausalLM": Variant("LlamaForCausalLM", {**SHAPE, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "Qwen2ForCausalLM": Variant("Qwen2ForCausalLM", SHAPE),
    "Qwen3ForCausalLM": Variant("Qwen3ForCausalLM", {**SHAPE, "head_dim": 64}),
}
IDS = np.random.default_rng(0).integers(2, tiny.VOCABULARY, 60)
FILES = {"genai_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "Tiny-Llama"
    return tiny.llama(folder, dtype="float32", initializer_range=0.03, tie_word_embeddings=True, **SHAPE)


@pytest.fixture
def request_(model: Path, topics: Path, tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    text = TextSpec(str(topics), None, windows=2)
    return Request(str(model), parse_levels("onnx:genai-int4"), Store(tmp_path / "store"), to=str(tmp_path / "out"), text=text)


def test_the_table_is_complete() -> None:
    assert VARIANTS.keys() == genai.ARCHITECTURES


@pytest.mark.parametrize("name", mostly(VARIANTS, [*VARIANTS][:1]))
def test_the_builder_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = make(VARIANTS[name], tmp_path / "model")
    options = ["-i", str(folder), "-o", str(tmp_path / "made"), "-p", "fp32", "-e", "cpu", "-c", str(tmp_path / "cache")]
    sealed.run_module("onnxruntime_genai.models.builder", [*options, "--extra_options", "hf_token=false"])
    (tmp_path / "level").mkdir()
    genai._put_in_order(tmp_path / "made", path := tmp_path / "level" / "model.onnx")
    reference = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = reference(torch.from_numpy(IDS[None])).logits[0].numpy()
    with engine.load(path) as run:
        found = run(np.append(IDS, 0), 0)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_a_level_is_a_folder_that_is_measured_and_pushed(request_: Request) -> None:
    result = publish(request_)
    file = result.release.artifacts[0]
    folder = Path(result.target)
    assert {path.name for path in (folder / genai.FOLDER).iterdir()} == FILES
    assert {Path(part.path).name for part in file.files} == FILES and file.types["int4"] > 10
    assert all(sha256(folder / part.path) == part.sha256 for part in file.files)
    assert {check.outcome for check in result.release.checks} == {"passed"}
    assert 0 < result.release.measurements[-1].values["kld"].value < 0.5
    assert result.release.versions["onnxruntime-genai"] == "0.18.0" and "optimum-onnx" not in result.release.versions
    card = (folder / "README.md").read_text()
    assert f'og.Model("{genai.FOLDER}")' in card and "transformers.js_config" not in (folder / "config.json").read_text()
    genai.load_test(folder / genai.FOLDER / "model.onnx")
    held = json.loads((folder / genai.FOLDER / "genai_config.json").read_text())
    assert held["model"]["decoder"]["filename"] == "model.onnx"


@pytest.mark.thorough
def test_the_same_folder_twice(request_: Request, model: Path, tmp_path: Path) -> None:
    from hubq.nouns import RepoFile, Source

    files = tuple(RepoFile(name, 0, "") for name in os.listdir(model))
    source = Source("tiny", "0" * 40, model, {}, {}, files)
    hashes = []
    for name in "ab":
        (tmp_path / name).mkdir()
        made, _ = genai.build(source, tmp_path / name / "model.onnx")
        hashes.append([sha256(path) for path in made])
    assert hashes[0] == hashes[1] and str(tmp_path).encode() not in (tmp_path / "a" / "model.onnx").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".genai")]


def test_what_is_refused_early(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(Variant("MistralForCausalLM"), tmp_path / "mistral")
    with pytest.raises(Unsupported, match="build 'MistralForCausalLM'"):
        plan(replace(request_, model=str(folder)))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime_genai" else find(name, *rest)
    )
    with pytest.raises(MissingExtra, match="needs onnxruntime-genai") as caught:
        plan(request_)
    assert caught.value.hint == 'pip install "hubq[genai]"'


def test_a_builder_that_fails_leaves_nothing(request_: Request, model: Path, tmp_path: Path) -> None:
    folder = make(VARIANTS["LlamaForCausalLM"], tmp_path / "broken")
    tiny.rewrite(folder, model__layers__0__mlp__up_proj__weight=np.zeros((3, 3), np.float32))
    with pytest.raises(HubqError):
        publish(replace(request_, model=str(folder)))
    assert not list((tmp_path / "store" / "artifacts").iterdir()) and not list((tmp_path / "out").rglob("*.onnx"))
