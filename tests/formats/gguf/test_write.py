"""Files of every level, held against what llama.cpp makes of our BF16 file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import upstream
from gguf import GGUFReader

from hubq.checkpoint import open_checkpoint
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.levels import MIXES
from hubq.formats.gguf.blueprint import Blueprint, draw
from hubq.formats.gguf.layout import lay_out
from hubq.formats.gguf.write import write
from hubq.nouns import Artifact
from hubq.source import read_config

TYPE_NAMES = {kind.number: name for name, kind in TYPES.items()}


def blueprint(folder: Path) -> Blueprint:
    config = read_config((folder / "config.json").read_bytes())
    with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
        return draw(f"org/{folder.name}", folder, config, checkpoint.tensors)


def build(folder: Path, out: Path, levels: Sequence[str], threads: int | None = None) -> dict[str, Artifact]:
    out.mkdir(parents=True, exist_ok=True)
    drawn = blueprint(folder)
    paths = {level: out / f"{level}.gguf" for level in levels}
    with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
        artifacts = list(write(drawn, lay_out(drawn, levels), checkpoint, paths, threads=threads))
    return {artifact.level.removeprefix("gguf:"): artifact for artifact in artifacts}


@pytest.fixture(scope="module", params=["tiny_llama", "smollm2"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = request.getfixturevalue(request.param)
    return build(folder, tmp_path_factory.mktemp(request.param), list(MIXES))


@pytest.mark.parametrize("level", MIXES)
def test_every_level_equals_llama_cpp(built: dict[str, Artifact], level: str, tmp_path: Path) -> None:
    theirs_path = tmp_path / "theirs.gguf"
    upstream.quantize(built["BF16"].path, theirs_path, MIXES[level].file_type)
    ours, theirs = upstream.tensors(built[level].path), upstream.tensors(theirs_path)
    assert ours.keys() == theirs.keys()
    for name, (kind, data) in ours.items():
        assert kind == theirs[name][0], name
        assert np.array_equal(data, theirs[name][1]), name


@pytest.mark.parametrize("level", MIXES)
def test_artifact_tells_the_truth(built: dict[str, Artifact], level: str) -> None:
    artifact = built[level]
    data = artifact.path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.size, artifact.sha256)
    counts = Counter(TYPE_NAMES[kind] for kind, _ in upstream.tensors(artifact.path).values())
    assert counts == artifact.types and artifact.fallbacks <= counts.total()


def test_file_type_and_weights_are_those_of_the_model(tmp_path: Path) -> None:
    built = build(tiny.llama(tmp_path / "model"), tmp_path / "out", list(MIXES))
    for level, artifact in built.items():
        reader = GGUFReader(artifact.path)
        assert reader.fields["general.file_type"].contents() == MIXES[level].file_type
        assert artifact.weights == sum(int(np.prod(tensor.shape)) for tensor in reader.tensors)


@pytest.mark.parametrize("level", MIXES)
def test_llama_cpp_loads_it_and_computes(built: dict[str, Artifact], level: str) -> None:
    import llama_cpp

    model = llama_cpp.Llama(str(built[level].path), n_ctx=64, logits_all=True, verbose=False)
    model.eval(model.tokenize(b"The truth value of an object"))
    assert np.isfinite(model.scores[: model.n_tokens]).all()


def test_threads_and_slabs_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.llama(tmp_path / "model")
    levels = ["F16", "Q8_0", "Q4_K_M", "Q3_K_S"]
    once = build(folder, tmp_path / "once", levels, threads=1)
    monkeypatch.setattr("hubq.formats.gguf.write.SLAB", 3000)
    again = build(folder, tmp_path / "again", levels, threads=5)
    assert {level: artifact.sha256 for level, artifact in once.items()} == {
        level: artifact.sha256 for level, artifact in again.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_is_read_exactly(dtype: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tiny.llama(tmp_path / "model", dtype=dtype)
    reader = GGUFReader(build(folder, tmp_path / "out", ["F32"])["F32"].path)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    stored = load_file(folder / "model.safetensors")
    assert np.array_equal(
        found["blk.1.ffn_down.weight"], stored["model.layers.1.mlp.down_proj.weight"].to(torch.float32).numpy()
    )


def test_shards_give_the_bytes_of_a_single_file(tmp_path: Path) -> None:
    whole = build(tiny.llama(tmp_path / "whole" / "M"), tmp_path / "a", ["Q4_K_M"])["Q4_K_M"]
    folder = tiny.llama(tmp_path / "sharded" / "M", shards=4)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert build(folder, tmp_path / "b", ["Q4_K_M"])["Q4_K_M"].sha256 == whole.sha256


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", dtype="float32")
    bad = np.zeros((512, 256), np.float32)
    bad[3, 7] = value
    tiny.rewrite(folder, model__layers__1__mlp__up_proj__weight=bad)
    with pytest.raises(BadSource, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*not finite"):
        build(folder, tmp_path / "out", ["Q8_0"])


def test_weights_too_large_for_a_type_are_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", dtype="float32")
    tiny.rewrite(folder, model__layers__0__mlp__up_proj__weight=np.full((512, 256), 1e8, np.float32))
    with pytest.raises(Unsupported, match=r"model\.layers\.0\.mlp\.up_proj\.weight.*too large for F16"):
        build(folder, tmp_path / "out", ["F16"])
    assert build(folder, tmp_path / "bf16", ["BF16"])["BF16"].size


def test_llama_70b_keeps_its_attention_values(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 80, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1}
    built = build(tiny.llama(tmp_path / "model", **shape), tmp_path / "out", ["BF16", "Q3_K_M", "Q4_K_S", "Q2_K"])
    for level in ("Q3_K_M", "Q4_K_S", "Q2_K"):
        upstream.quantize(built["BF16"].path, tmp_path / "theirs.gguf", MIXES[level].file_type)
        ours, theirs = upstream.tensors(built[level].path), upstream.tensors(tmp_path / "theirs.gguf")
        assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}


def test_no_path_and_no_host_in_a_file(tmp_path: Path) -> None:
    data = build(tiny.llama(tmp_path / "model"), tmp_path / "out", ["Q8_0"])["Q8_0"].path.read_bytes()
    assert str(tmp_path).encode() not in data
