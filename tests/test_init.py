"""`hubq init`: what the command line says, pinned, as hubq.toml."""

from __future__ import annotations

import json
from pathlib import Path

import loopback
import pytest
from shelf import hubq

from hubq.manifest import read, resolved

DATA = "d" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> loopback.Hub:
    with loopback.Hub() as server:
        server.log_in(monkeypatch, tmp_path / "home")
        monkeypatch.chdir(tmp_path)
        server.datasets["Salesforce/wikitext"] = DATA
        yield server


def test_model_and_texts_are_pinned_to_commits(hub: loopback.Hub, tmp_path: Path) -> None:
    commit = hub.add("org/Model", {"config.json": b"{}"})
    told = hubq("init", "org/Model", "--levels", "q8_0,q4_k_m", "--imatrix", "auto")
    assert told.exit_code == 0, told.output
    assert "hint: hubq publish cards/Model" in told.stdout
    manifest = read(tmp_path / "cards/Model/hubq.toml")
    assert (manifest.source.model, manifest.source.revision, manifest.source.follow) == ("org/Model", commit, "main")
    assert manifest.targets == {"gguf": "org/Model-GGUF"} and manifest.variants == {"gguf": ["Q8_0", "Q4_K_M"]}
    assert manifest.evaluation is not None and manifest.imatrix is not None and manifest.imatrix.calibration is not None
    texts = (manifest.evaluation, manifest.imatrix.calibration)
    assert [(text.dataset, text.config, text.revision, text.split) for text in texts] == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", DATA, "test"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", DATA, "train"),
    ]
    assert json.loads((tmp_path / "cards/hubq.schema.json").read_text())["title"] == "hubq.toml"
    assert not list((tmp_path / "cards").rglob("*.part"))


def test_a_model_is_enough(hub: loopback.Hub, tmp_path: Path) -> None:
    hub.add("org/Model", {"config.json": b"{}"})
    assert hubq("init", "org/Model").exit_code == 0
    assert read(tmp_path / "cards/Model/hubq.toml").variants == {"gguf": ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]}


def test_a_branch_is_followed_and_pinned(hub: loopback.Hub, tmp_path: Path) -> None:
    commit = hub.add("org/Model", {"config.json": b"{}"})
    hub.repos["org/Model"].refs["v1"] = commit
    hub.add("org/Model", {"new.txt": b""})
    assert hubq("init", "org/Model@v1", "--levels", "q8_0", "--to", "me/Other", "--no-eval").exit_code == 0
    source = read(tmp_path / "cards/Model/hubq.toml").source
    assert (source.model, source.revision, source.follow) == ("org/Model", commit, "v1")


def test_a_manifest_is_not_lost(hub: loopback.Hub, tmp_path: Path) -> None:
    hub.add("org/Model", {"config.json": b"{}"})
    command = ["init", "org/Model", "--levels", "q8_0", "--no-eval"]
    assert hubq(*command).exit_code == 0
    path = tmp_path / "cards/Model/hubq.toml"
    path.write_text(path.read_text() + "# mine\n")
    told = hubq(*command)
    assert told.exit_code == 2 and "exists" in told.output and path.read_text().endswith("# mine\n")
    assert hubq(*command, "--force").exit_code == 0 and "# mine" not in path.read_text()


def test_paths_are_seen_from_the_manifest(hub: loopback.Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("words")
    command = ["init", "./model", "--levels", "q8_0,onnx:q8", "--to", "./out", "--dataset", "text.txt"]
    assert hubq(*command).exit_code == 0
    path = tmp_path / "cards/model/hubq.toml"
    assert 'model = "../../model"' in path.read_text() and str(tmp_path) not in path.read_text()
    found = resolved(read(path), path.parent)
    assert found.source.model == str(tmp_path / "model")
    assert found.targets == {"gguf": str(tmp_path / "out"), "onnx": str(tmp_path / "out")}
    assert found.evaluation is not None and found.evaluation.dataset == str(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["org/Model", "--levels", ""], "no level is named"),
        (["org/None", "--levels", "q8_0"], "org/None"),
        (["org/Model", "--levels", "q8_0,onnx:q8", "--to", "me/X"], "one repository, for levels of two formats"),
        (["org/Model", "--levels", "q8_0", "--dataset", "org/none"], "org/none"),
        (["nonsense", "--levels", "q8_0"], "neither a Hub id nor a folder"),
    ],
)
def test_nothing_is_written_of_what_cannot_be(hub: loopback.Hub, tmp_path: Path, arguments: list[str], words: str) -> None:
    hub.add("org/Model", {"config.json": b"{}"})
    told = hubq("init", *arguments)
    assert told.exit_code in (1, 2) and words in told.output and "hint:" in told.output, told.output
    assert not (tmp_path / "cards").exists()
