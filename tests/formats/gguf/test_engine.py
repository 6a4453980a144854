"""Both engines on files that hubq wrote, against the model that the files were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import llama_cpp  # noqa: F401  the engine that users run is tested wherever the tests run
import numpy as np
import pytest
import tiny
import torch

from hubq import reference
from hubq.checkpoint import open_checkpoint
from hubq.errors import HubqError, MissingExtra, Usage
from hubq.formats.gguf import engine
from hubq.formats.gguf.blueprint import of_checkpoint
from hubq.formats.gguf.layout import lay_out
from hubq.formats.gguf.split import part_name
from hubq.formats.gguf.write import write
from hubq.nouns import Artifact, RepoFile, Source
from hubq.source import read_config

IDS = np.random.default_rng(0).integers(0, tiny.VOCABULARY, 64)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def build(folder: Path, levels: list[str], split: int | None = None) -> tuple[Source, dict[str, Artifact]]:
    config = read_config((folder / "config.json").read_bytes())
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in sorted(folder.iterdir()))
    source = Source(f"org/{folder.name}", "0" * 40, folder, config, {}, files)
    with open_checkpoint(folder, [file.path for file in files]) as checkpoint:
        drawn = of_checkpoint(source.repo, folder, config, checkpoint.tensors)
        paths = {level: folder.parent / f"{level}.gguf" for level in levels}
        artifacts = list(write(drawn, lay_out(drawn, levels, split=split), checkpoint, paths))
    return source, {artifact.level.partition(":")[2]: artifact for artifact in artifacts}


def logits(artifact: Artifact, source: Source, name: str, ids: np.ndarray = IDS, first: int = 31) -> torch.Tensor:
    with engine.load(artifact, source, name) as model:
        return torch.as_tensor(model(ids, first))


def truth(source: Source, first: int = 31) -> torch.Tensor:
    with reference.load(source.config, reference.source_weights(source)) as model:
        return model(IDS, first)


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, dict[str, Artifact]]:
    folder = tiny.llama(tmp_path_factory.mktemp(request.param) / "model", initializer_range=0.1, **MODELS[request.param])
    return build(folder, ["F32", "BF16", "Q8_0"])


Built = tuple[Source, dict[str, Artifact]]


def test_a_lossless_file_has_the_weights_of_its_source(built: Built) -> None:
    source, artifacts = built
    expected = dict(reference.source_weights(source))
    for level in ("F32", "BF16"):
        found = dict(engine.decoded(artifacts[level].path, source))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert torch.equal(logits(artifacts[level], source, "weights"), truth(source))


def test_what_a_checkpoint_holds_for_nothing_does_not_replace_what_was_decoded(tmp_path: Path) -> None:
    """The stored head of a tied model, in place of the decoded embeddings, would make the file look better than it is."""
    folder = tiny.llama(tmp_path / "model", dtype="float32", num_hidden_layers=1, tie_word_embeddings=True)
    with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
        embeddings = checkpoint.read("model.embed_tokens.weight")
    tiny.rewrite(folder, lm_head__weight=embeddings)
    source, artifacts = build(folder, ["Q8_0"])
    assert "lm_head.weight" not in dict(engine.decoded(artifacts["Q8_0"].path, source))


def test_experts_are_decoded_to_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    source, artifacts = build(tiny.mixtral(tmp_path / "model"), ["BF16"])
    expected, found = dict(reference.source_weights(source)), dict(engine.decoded(artifacts["BF16"].path, source))
    assert found.keys() == expected.keys() and sum(".experts." in name for name in found) == 2 * 4 * 3
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_model_in_parts_is_the_same_model(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    source, whole = build(folder, ["Q8_0"])
    whole_path = whole["Q8_0"].path.rename(tmp_path / "whole.gguf")
    _, split = build(folder, ["Q8_0"], split=10**6)
    assert split["Q8_0"].path.name == "Q8_0-00001-of-00002.gguf" and len(list(tmp_path.glob("Q8_0*"))) == 2
    for name in engine.available():
        assert torch.equal(logits(split["Q8_0"], source, name), logits(at(whole_path, whole["Q8_0"]), source, name))
    (tmp_path / part_name("Q8_0.gguf", 1, 2)).unlink()
    with pytest.raises(HubqError, match=r"its folder lacks Q8_0-00002-of-00002.gguf"):
        dict(engine.decoded(split["Q8_0"].path, source))


def test_llama_cpp_computes_the_same_model(built: Built) -> None:
    source, artifacts = built
    expected = truth(source)
    found = logits(artifacts["F32"], source, "llama.cpp")
    assert found.shape == expected.shape == (32, tiny.VOCABULARY)
    assert found.dtype == torch.float32
    scale = expected.std().item()
    assert (found - expected).abs().max().item() < 0.02 * scale  # its cache has 16 bits
    assert (found - expected.roll(1, 0)).abs().max().item() > scale


@pytest.mark.parametrize("name", ["weights", "llama.cpp"])
def test_a_lossy_file_is_near_but_not_equal(built: Built, name: str) -> None:
    source, artifacts = built
    expected, found = truth(source), logits(artifacts["Q8_0"], source, name)
    error = ((found - expected).std() / expected.std()).item()
    assert 1e-3 < error < 0.05


def test_llama_cpp_begins_each_window_afresh(built: Built) -> None:
    source, artifacts = built
    other = np.roll(IDS, 5)
    with engine.load(artifacts["BF16"], source, "llama.cpp") as model:
        first = model(IDS, 31)
        model(other, 31)
        assert np.array_equal(model(IDS, 31), first)
        assert np.array_equal(model(IDS[:40], 19)[12:], model(IDS[:40], 31))
    assert np.array_equal(logits(artifacts["BF16"], source, "llama.cpp").numpy(), first)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Artifact]:
    source, artifacts = build(tiny.llama(tmp_path_factory.mktemp("one") / "model"), ["BF16"])
    return source, artifacts["BF16"]


One = tuple[Source, Artifact]


def at(path: Path, artifact: Artifact) -> Artifact:
    return Artifact("gguf:BF16", path, path.stat().st_size, "", artifact.weights, {}, 0, "")


@pytest.mark.parametrize("name", ["weights", "llama.cpp"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_files_are_named(one: One, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    source, artifact = one
    data = artifact.path.read_bytes()
    (tmp_path / "damaged.gguf").write_bytes(data[: len(data) // 2] if damage == "cut" else b"GARBAGE" * 99)
    with pytest.raises(HubqError, match=r"damaged.gguf.*: .") as caught:
        logits(at(tmp_path / "damaged.gguf", artifact), source, name)
    assert "no reason" not in caught.value.message and caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_llama_cpp_is_quiet(one: One, capfd: pytest.CaptureFixture[str]) -> None:
    logits(one[1], one[0], "llama.cpp")
    assert capfd.readouterr() == ("", "")


def test_ids_outside_the_vocabulary_are_refused(one: One) -> None:
    with pytest.raises(HubqError, match=r"llama.cpp failed on BF16.gguf with code -1: .*invalid token"):
        logits(one[1], one[0], "llama.cpp", ids=IDS + tiny.VOCABULARY)


def test_a_file_that_lacks_a_tensor_is_refused(one: One, tmp_path: Path) -> None:
    source, artifact = one
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((tiny.VOCABULARY, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(HubqError, match=r"part.gguf lacks tensors: blk.0.attn_norm.weight, .* and \d+ more"):
        logits(at(tmp_path / "part.gguf", artifact), source, "weights")


def test_engines_by_name(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.available() == ("llama.cpp", "weights")
    with pytest.raises(Usage, match="no engine 'vllm'"):
        engine.load(one[1], one[0], "vllm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert engine.available() == ("weights",)
    with pytest.raises(MissingExtra, match="llama-cpp-python") as caught:
        engine.load(one[1], one[0], "llama.cpp")
    assert "pip install" in caught.value.hint
