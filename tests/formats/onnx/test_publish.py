"""The whole way from a model to a release of ONNX files, alone and beside GGUF, with the real exporter and onnxruntime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from test_release_tasks import encoder, source
from transformers import AutoModel

from hubq import card
from hubq.errors import GateFailed, MissingExtra, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.formats.onnx import blocks
from hubq.plan import Request, plan
from hubq.record import read_record
from hubq.release import Event, publish
from hubq.samples import samples
from hubq.store import Store, sha256
from hubq.text import TextSpec

pytestmark = pytest.mark.timeout(1800)  # the first test may make the environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has much to say, with tied embeddings."""
    folder = tmp_path_factory.mktemp("source") / "Tiny-Llama"
    return tiny.llama(folder, dtype="float32", initializer_range=0.1, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all tests: the model is exported once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def request_(model: Path, store: Store, topics: Path, tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    text = TextSpec(str(topics), None, windows=3)
    return Request(
        str(model), parse_levels("onnx:q8"), store, to=str(tmp_path / "out"), text=text, command="hubq publish {model}"
    )


def test_both_formats_come_from_one_command(model: Path, store: Store, topics: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    words = ["publish", model, "--levels", "q8_0,onnx:fp32,onnx:q8,onnx:q4", "--to", tmp_path / "out", "--work-dir", store.root]
    words += ["--dataset", topics, "--windows", "3"]
    command = [sys.executable, "-m", "hubq", *map(str, words)]
    first = subprocess.run([*command, "--json"], capture_output=True, text=True, env=os.environ)
    assert first.returncode == 0, first.stderr
    releases = {one["release"]["files"][0]["level"].partition(":")[0]: one for one in json.loads(first.stdout)["releases"]}
    assert {name: Path(one["target"]).name for name, one in releases.items()} == {
        "gguf": "Tiny-Llama-GGUF",
        "onnx": "Tiny-Llama-ONNX",
    }
    onnx, folder = releases["onnx"]["release"], Path(releases["onnx"]["target"])
    assert onnx["evalset"] == releases["gguf"]["release"]["evalset"]
    losses = {
        (row["level"], row["engine"]): row["metrics"]["kld"]["value"]
        for row in onnx["measurements"]
        if row["level"] not in ("reference", "floor")
    }
    names = [("onnx:fp32", "onnxruntime"), ("onnx:q8", "onnxruntime"), ("onnx:q4", "onnxruntime")]
    assert list(losses) == names and losses[names[0]] < 1e-6 < losses[names[1]] < losses[names[2]]
    for file in onnx["files"]:
        path = folder / file["folder"] / file["path"]
        assert path.parent.name == "onnx" and sha256(path) == file["sha256"]
    assert {check["outcome"] for check in onnx["checks"]} == {"passed"} and len(onnx["checks"]) == 12
    second = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert second.returncode == 0, second.stderr
    rows = [line.split() for line in second.stdout.splitlines()[1:5]]
    assert sorted(row[:2] for row in rows) == sorted(
        [["onnx:fp32", "onnxruntime"], ["onnx:q8", "onnxruntime"], ["gguf:Q8_0", "llama.cpp"], ["onnx:q4", "onnxruntime"]]
    )
    assert "exporting" not in second.stderr
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "q8"}
    card = (folder / "README.md").read_text()
    for words in (
        "# Tiny-Llama ONNX",
        "library_name: transformers.js",
        "](./onnx/model_q4.onnx)",
        'dtype: "q8"',
        "onnxruntime",
    ):
        assert words in card
    assert "llama.cpp" not in card and "GGUF" not in card


def test_a_release_holds_what_transformers_js_needs(request_: Request, model: Path) -> None:
    folder = Path(publish(request_).target)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "levels.svg",
        "loss.svg",
        "onnx/model_quantized.onnx",
        "release.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_matrix_makes_four_bits_better_or_no_worse_and_is_published(request_: Request, topics: Path, tmp_path: Path) -> None:
    plain = publish(replace(request_, levels=parse_levels("onnx:q4"))).release
    (other := tmp_path / "other.txt").write_text("Nothing of it is in the manual, and so it may weigh what was said. " * 400)
    spec = TextSpec(str(other), None, windows=4)
    weighed = publish(replace(request_, levels=parse_levels("onnx:q4"), imatrix=spec, to=str(tmp_path))).release
    assert weighed.imatrices and weighed.artifacts[0].imatrix == weighed.imatrices[0].sha256
    assert weighed.artifacts[0].sha256 != plain.artifacts[0].sha256
    assert (tmp_path / "Tiny-Llama-ONNX" / weighed.imatrices[0].file).is_file()


def test_an_encoder_of_sentences_is_published_with_its_steps(request_: Request, topics: Path, tmp_path: Path) -> None:
    folder = encoder(tmp_path / "source" / "Tiny-Bert", pooling="mean")
    text = TextSpec(str(topics), None, texts=24, length=64)
    result = publish(replace(request_, model=str(folder), text=text, levels=parse_levels("onnx:fp32,onnx:q8")))
    checks = {(check.level, check.name): check.outcome for check in result.release.checks}
    assert {checks["onnx:q8", name] for name in ("runs", "inputs and outputs", "embeddings")} == {"passed"}
    assert checks["onnx:q8", "cache"] == "not checked"
    rows = {row.level: row.values for row in result.release.measurements}
    assert rows["onnx:fp32"]["cosine"].value > 1 - 1e-6 > rows["onnx:q8"]["cosine"].value
    session = onnxruntime.InferenceSession(Path(result.target) / "onnx" / "model_quantized.onnx")
    theirs, cosines = AutoModel.from_pretrained(folder).eval(), []
    for ids in samples(source(folder), text, "feature-extraction").ids:
        feeds = {port.name: np.full((1, len(ids)), port.name == "attention_mask", np.int64) for port in session.get_inputs()}
        found = session.run(["last_hidden_state"], feeds | {"input_ids": ids[None]})[0][0].mean(0)
        with torch.inference_mode():
            wanted = theirs(torch.tensor(ids[None])).last_hidden_state[0].mean(0).numpy()
        cosines.append(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))
    assert rows["onnx:q8"]["cosine"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"):
        assert (Path(result.target) / name).read_bytes() == (folder / name).read_bytes()
    card = result.card["README.md"].decode()
    assert 'backend="onnx", model_kwargs={"file_name": "model_quantized.onnx"}' in card
    assert 'pipeline("feature-extraction",' in card and '{ pooling: "mean", normalize: true }' in card


@pytest.mark.parametrize(
    ("kind", "settings", "metric"),
    [
        ("BertForMaskedLM", {"tie_word_embeddings": True}, "same_label"),
        pytest.param(
            *("BertForSequenceClassification", {"num_labels": 1, "pad_token_id": 0}, "ranking"), marks=pytest.mark.thorough
        ),
    ],
)
def test_classifiers_are_measured(
    request_: Request, topics: Path, tmp_path: Path, kind: str, settings: dict[str, Any], metric: str
) -> None:
    folder = encoder(tmp_path / "source" / "Tiny-Bert", kind, **settings)
    text = TextSpec(str(topics), None, texts=24, length=64)
    result = publish(replace(request_, model=str(folder), text=text, levels=parse_levels("onnx:fp32,onnx:q4")))
    rows = {row.level: row.values for row in result.release.measurements}
    assert rows["reference"] == {} and rows["onnx:fp32"][metric].value > 0.999 > rows["onnx:q4"][metric].value > 0.2
    assert "failed" not in {check.outcome for check in result.release.checks}
    assert card.readme(read_record(result.card["release.json"]), "") and "model-index" not in result.card["README.md"].decode()


def test_a_damaged_level_is_not_pushed(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = blocks.pack

    def larger(*arguments: Any, **settings: Any) -> blocks.Packed:
        packed = pack(*arguments, **settings)
        return replace(packed, scales=packed.scales * np.float32(1.5))

    monkeypatch.setattr(blocks, "pack", larger)
    with pytest.raises(GateFailed, match="onnx:q8: logits: median KL divergence") as caught:
        publish(replace(request_, store=Store(request_.store.root.parent / "fresh")))
    assert caught.value.exit_code == 3
    assert not list(Path(str(request_.to)).rglob("*.onnx"))


def test_without_measurements_logits_are_still_checked(request_: Request) -> None:
    told: list[Event] = []
    release = publish(replace(request_, text=None), told.append).release
    assert {check.name: check.outcome for check in release.checks}["logits"] == "passed" and not release.measurements


def test_what_does_not_fit_is_refused_early(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubq.formats.gguf.recipe import Custom

    with pytest.raises(Usage, match="for GGUF levels"):
        plan(replace(request_, custom=Custom(pure=True)))
    with pytest.raises(Usage, match=r"ONNX files are not made of Model-F16\.gguf"):
        plan(replace(request_, model=f"{request_.model}:Model-F16.gguf"))
    long = tiny.llama(tmp_path / "long", num_hidden_layers=1)
    tiny.config(long, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(Unsupported, match="cannot follow the rotary embedding 'dynamic'"):
        plan(replace(request_, model=str(long)))
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx_ir" else find(name, *rest))
    with pytest.raises(MissingExtra, match="ONNX files need onnx_ir") as caught:
        plan(request_)
    assert caught.value.hint == 'pip install "hubq[onnx]"'
