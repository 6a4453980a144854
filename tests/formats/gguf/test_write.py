"""Files of every level, held against what llama.cpp makes of our BF16 file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import upstream
from gguf import GGUFReader
from nightly import mostly

from hubq.checkpoint import open_checkpoint
from hubq.errors import BadSource, Unsupported, Usage
from hubq.formats.gguf import imatrix
from hubq.formats.gguf.blueprint import Blueprint, of_checkpoint
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.imatrix import Imatrix
from hubq.formats.gguf.layout import lay_out
from hubq.formats.gguf.levels import LEVELS, MIXES
from hubq.formats.gguf.read import read_header
from hubq.formats.gguf.recipe import Custom
from hubq.formats.gguf.write import write
from hubq.nouns import Artifact
from hubq.source import read_config

PLAIN = [level.name for level in LEVELS.values() if not level.needs_matrix]
TYPE_NAMES = {kind.number: name for name, kind in TYPES.items()}


def blueprint(folder: Path) -> Blueprint:
    config = read_config((folder / "config.json").read_bytes())
    with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
        return of_checkpoint(f"org/{folder.name}", folder, config, checkpoint.tensors)


def build(
    folder: Path,
    out: Path,
    levels: Sequence[str],
    threads: int | None = None,
    imatrix: Imatrix | None = None,
    custom: Custom | None = None,
    split: int | None = None,
) -> dict[str, Artifact]:
    out.mkdir(parents=True, exist_ok=True)
    drawn = blueprint(folder)
    paths = {level: out / f"{level}.gguf" for level in levels}
    layouts = lay_out(drawn, levels, imatrix, custom, split)
    with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
        artifacts = list(write(drawn, layouts, checkpoint, paths, threads=threads, imatrix=imatrix))
    for level, artifact in zip(levels, artifacts, strict=True):
        assert artifact.size == layouts[level].size
    return {artifact.level.removeprefix("gguf:"): artifact for artifact in artifacts}


def random_imatrix(folder: Path, missing: Sequence[str] = ()) -> Imatrix:
    """Mean squares for every matrix of a model's blocks, none for one of its experts."""
    random, entries = np.random.default_rng(3), {}
    for tensor in filter(imatrix.collected, blueprint(folder).tensors):
        experts, columns = tensor.shape[0] if len(tensor.shape) > 2 else 1, tensor.shape[-1]
        counts = np.where(np.arange(experts) == 2, 0, 100).astype(np.float32)
        entries[tensor.name] = imatrix.Entry(
            random.chisquare(1, (experts, columns)).astype(np.float32) * counts[:, None], counts
        )
    return Imatrix("m.gguf", "0" * 64, ("text",), 4, 512, {name: entries[name] for name in entries if name not in missing})


# model -> its levels. Rows of 576 weights are no multiple of the 128 that Q1_0 packs; of SmolLM2, llama.cpp takes half a
# minute for each level with a code book
BUILT = {"tiny_llama": PLAIN, "smollm2": [level for level in PLAIN if level != "Q1_0" and not level.startswith("IQ")]}
REAL = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0")  # levels of the real model that run for every change
QUICK = [*(("tiny_llama", level) for level in PLAIN), *(("smollm2", level) for level in REAL)]
every_built = pytest.mark.parametrize(
    ("model", "level"), mostly([(model, level) for model in BUILT for level in BUILT[model]], QUICK)
)

Built = Callable[[str], dict[str, Artifact]]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Every level of a model, built once."""

    @cache
    def build_all(model: str) -> dict[str, Artifact]:
        return build(request.getfixturevalue(model), tmp_path_factory.mktemp(model), BUILT[model])

    return build_all


def assert_equals_llama_cpp(ours_path: Path, theirs_path: Path) -> None:
    ours, theirs = upstream.tensors(ours_path), upstream.tensors(theirs_path)
    assert ours.keys() == theirs.keys()
    for name, (kind, data) in ours.items():
        assert kind == theirs[name][0], name
        assert np.array_equal(data, theirs[name][1]), name


@every_built
def test_every_level_equals_llama_cpp(built: Built, model: str, level: str, tmp_path: Path) -> None:
    upstream.quantize(built(model)["BF16"].path, tmp_path / "theirs.gguf", MIXES[level].file_type)
    assert_equals_llama_cpp(built(model)[level].path, tmp_path / "theirs.gguf")


def test_8_bit_floats_give_the_file_of_what_they_stand_for(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, plain = (tiny.llama(tmp_path / name / "Tiny", num_hidden_layers=1, dtype="float32") for name in ("fp8", "plain"))
    stored, meant = load_file(folder / "model.safetensors"), load_file(plain / "model.safetensors")
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        rows, columns = stored[name].shape
        stored[name] = stored[name].to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.5
        scales = stored[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
        meant[name] = stored[name].float() * scales[:rows, :columns]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    tiny.config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    ours = build(folder, tmp_path / "a", ["BF16", "Q4_K_M"])
    assert [file.sha256 for file in ours.values()] == [
        file.sha256 for file in build(plain, tmp_path / "b", ["BF16", "Q4_K_M"]).values()
    ]


KINDS: dict[str, Callable[[Path], Path]] = {
    "dense": lambda folder: tiny.llama(folder, num_key_value_heads=8, tie_word_embeddings=True),
    "grouped": lambda folder: tiny.llama(folder, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1),
    "mixture": lambda folder: tiny.mixtral(folder, num_local_experts=8, intermediate_size=256),
}


@pytest.fixture(scope="module", params=KINDS)
def weighed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Imatrix, dict[str, Artifact]]:
    folder = KINDS[request.param](tmp_path_factory.mktemp(request.param) / "M")
    matrix = random_imatrix(folder)
    return matrix, build(folder, tmp_path_factory.mktemp(request.param), list(MIXES), imatrix=matrix)


WEIGHED = [level for level in MIXES if not level.startswith("IQ")] + ["IQ1_S", "IQ2_XS", "IQ3_S", "IQ4_XS"]


@pytest.mark.parametrize("level", mostly(MIXES, WEIGHED))
def test_every_level_equals_llama_cpp_with_an_importance_matrix(
    weighed: tuple[Imatrix, dict[str, Artifact]], level: str, tmp_path: Path
) -> None:
    matrix, built = weighed
    shapes = {tensor.name: tuple(reversed(tensor.shape)) for tensor in GGUFReader(built["BF16"].path).tensors}
    means = {name: np.ascontiguousarray(matrix.importance(name, shapes[name])) for name in matrix.entries}
    upstream.quantize(built["BF16"].path, tmp_path / "theirs.gguf", MIXES[level].file_type, matrix=means)
    assert_equals_llama_cpp(built[level].path, tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = KINDS["mixture"](tmp_path_factory.mktemp("mixture") / "M")
    return build(folder, tmp_path_factory.mktemp("mixture"), PLAIN)


@pytest.mark.parametrize("level", PLAIN)
def test_every_level_of_a_mixture_equals_llama_cpp(mixture: dict[str, Artifact], level: str, tmp_path: Path) -> None:
    upstream.quantize(mixture["BF16"].path, tmp_path / "theirs.gguf", MIXES[level].file_type)
    assert_equals_llama_cpp(mixture[level].path, tmp_path / "theirs.gguf")


@every_built
def test_artifact_tells_the_truth(built: Built, model: str, level: str) -> None:
    artifact = built(model)[level]
    data = artifact.path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.size, artifact.sha256)
    counts = Counter(TYPE_NAMES[kind] for kind, _ in upstream.tensors(artifact.path).values())
    assert counts == artifact.types and artifact.fallbacks <= counts.total()


def test_file_type_and_weights_are_those_of_the_model(tmp_path: Path) -> None:
    built = build(tiny.llama(tmp_path / "model"), tmp_path / "out", PLAIN)
    for level, artifact in built.items():
        header = read_header(artifact.path)
        assert header.metadata["general.file_type"] == MIXES[level].file_type
        assert artifact.weights == sum(int(np.prod(tensor.shape)) for tensor in header.tensors)


@every_built
def test_llama_cpp_loads_it_and_computes(built: Built, model: str, level: str) -> None:
    import llama_cpp

    loaded = llama_cpp.Llama(str(built(model)[level].path), n_ctx=64, logits_all=True, verbose=False)
    loaded.eval(loaded.tokenize(b"The truth value of an object"))
    assert np.isfinite(loaded.scores[: loaded.n_tokens]).all()


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
    with pytest.raises(BadSource, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*not finite.* first in row 3$"):
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


def test_one_thread_and_many_weigh_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = KINDS["mixture"](tmp_path / "M")
    matrix, levels = random_imatrix(folder), ["Q4_K_M", "IQ2_XS", "IQ3_S", "IQ1_M", "IQ4_XS"]
    once = build(folder, tmp_path / "once", levels, threads=1, imatrix=matrix)
    monkeypatch.setattr("hubq.formats.gguf.write.SLAB", 3000)
    again = build(folder, tmp_path / "again", levels, threads=5, imatrix=matrix)
    assert {level: file.sha256 for level, file in once.items()} == {level: file.sha256 for level, file in again.items()}


def test_a_matrix_is_named_in_the_files_that_it_shaped(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "M")
    matrix = random_imatrix(folder)
    built = build(folder, tmp_path / "out", ["Q8_0", "Q4_K_M"], imatrix=matrix)
    assert (built["Q8_0"].imatrix, built["Q4_K_M"].imatrix) == (None, matrix.sha256)
    fields = {level: GGUFReader(built[level].path).fields for level in built}
    assert not any(key.startswith("quantize") for key in fields["Q8_0"])
    found = {key: field.contents() for key, field in fields["Q4_K_M"].items() if key.startswith("quantize.imatrix")}
    assert found == imatrix.key_values(matrix)
    assert build(folder, tmp_path / "plain", ["Q8_0"])["Q8_0"].sha256 == built["Q8_0"].sha256


def test_a_level_without_the_matrix_that_it_needs_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "M")
    with pytest.raises(Usage, match=r"IQ2_XS needs an importance matrix$"):
        build(folder, tmp_path / "out", ["IQ2_XS"])
    partial = random_imatrix(folder, missing=["blk.1.ffn_up.weight"])
    with pytest.raises(Usage, match=r"nothing for blk\.1\.ffn_up\.weight$"):
        build(folder, tmp_path / "out", ["IQ2_XS"], imatrix=partial)


def test_parts_hold_what_one_file_holds(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "M", num_hidden_layers=4)
    whole = build(folder, tmp_path / "whole", ["Q8_0"])["Q8_0"]
    parts = build(folder, tmp_path / "parts", ["Q8_0"], split=1_000_000)["Q8_0"]
    names = [f"Q8_0-{i + 1:05}-of-{len(parts.parts):05}.gguf" for i in range(len(parts.parts))]
    assert len(names) > 2 and [part.path for part in parts.files] == names and parts.path.name == names[0]
    found = {}
    for part in parts.files:
        data = parts.path.with_name(part.path).read_bytes()
        assert (part.size, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        found |= upstream.tensors(parts.path.with_name(part.path))
    expected = upstream.tensors(whole.path)
    assert found.keys() == expected.keys()
    assert all(found[name][0] == kind and np.array_equal(found[name][1], data) for name, (kind, data) in expected.items())
    assert upstream.token_ids(parts.path, "The truth") == upstream.token_ids(whole.path, "The truth")


def test_a_custom_recipe_equals_llama_cpp(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "M")
    custom = Custom((("attn_q", "Q8_0"), (r"blk\.1\.ffn", "Q6_K")), output="Q5_0", embedding="F16")
    built = build(folder, tmp_path / "out", ["BF16"]) | build(folder, tmp_path / "out", ["Q4_K_M"], custom=custom)
    types = [(pattern, TYPES[kind].number) for pattern, kind in custom.tensor_types]
    changes = {"tensor_types": types, "output": TYPES["Q5_0"].number, "embedding": TYPES["F16"].number}
    upstream.quantize(built["BF16"].path, tmp_path / "theirs.gguf", MIXES["Q4_K_M"].file_type, **changes)
    assert_equals_llama_cpp(built["Q4_K_M"].path, tmp_path / "theirs.gguf")


def test_hundreds_of_shards_need_few_handles(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "M", num_hidden_layers=40, shards=300)
    assert len(list(folder.glob("*.safetensors"))) > 200
    import resource

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 24, most))
    try:
        assert build(folder, tmp_path / "out", ["Q8_0"])["Q8_0"].size
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
