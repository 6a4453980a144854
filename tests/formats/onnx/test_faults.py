"""What goes wrong on the way from a model to ONNX files ends in a clear error; nothing bad is pushed or left half-written.

A disk without room is a limit on the size of files, which the exporter in its own environment inherits.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from hubq.errors import BadSource, HubqError
from hubq.formats import parse_levels
from hubq.formats.onnx import blocks, quantize
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store

pytestmark = pytest.mark.timeout(1800)  # the first test may make the environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32")


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One that holds the exported graph."""
    store, out = Store(tmp_path_factory.mktemp("store")), tmp_path_factory.mktemp("out")
    publish(Request(str(model), parse_levels("onnx:fp32"), store, to=str(out)))
    return store


@pytest.fixture
def request_(model: Path, store: Store, tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    return Request(str(model), parse_levels("onnx:q4"), store, to=str(tmp_path / "out"))


def within(limit: int, *words: object) -> str:
    """What hubq says on the way to its failure, with files of at most `limit` bytes."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "hubq", "publish", *map(str, words), "--no-eval", "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, preexec_fn=limited)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def left(folder: Path) -> list[str]:
    """What is half-written below a folder, and the graphs in it."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".onnx")) or path.name[0] == "."]


def test_no_room_for_a_level(model: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    before = left(store.root)
    said = within(500_000, model, "--levels", "onnx:q8", "--to", tmp_path / "out", "--work-dir", store.root)
    assert "File too large" in said and "hint: free some space" in said
    assert left(store.root) == before and left(tmp_path / "out") == []


def test_no_room_for_the_graph(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    said = within(500_000, model, "--levels", "onnx:q8", "--to", tmp_path / "out", "--work-dir", tmp_path / "work")
    assert "error: " in said and "hint: " in said
    assert [name for name in left(tmp_path / "work") if name.endswith(".onnx")] == [] and left(tmp_path / "out") == []


def test_a_quantizer_whose_file_does_not_load(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = blocks.pack

    def shorter(*arguments: Any, **settings: Any) -> blocks.Packed:
        packed = pack(*arguments, **settings)
        return replace(packed, scales=packed.scales[:-1])

    monkeypatch.setattr(blocks, "pack", shorter)
    before = left(request_.store.root)
    with pytest.raises(HubqError, match=r"model_q4\.onnx does not run: onnxruntime"):
        publish(request_)
    assert left(request_.store.root) == before and left(Path(str(request_.to))) == []


def test_a_quantizer_that_renames_an_output(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def renaming(work: Any) -> None:
        next(value for value in work.model.graph.outputs if value.name == "logits").name = "logits_Q4"

    monkeypatch.setitem(quantize.WAYS, "blocks", renaming)
    before = left(request_.store.root)
    with pytest.raises(HubqError, match=r"q4 changes the graph's inputs or outputs: logits, logits_Q4"):
        publish(request_)
    assert left(request_.store.root) == before and left(Path(str(request_.to))) == []


def test_an_exported_graph_without_its_data(request_: Request, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubq.formats.onnx import graph

    source = next((store.root / "exports").rglob("model.onnx"))
    model = graph.read(source)
    monkeypatch.setattr(graph, "WHOLE", 1000)  # as if it were too large for one file
    files = graph.save(model, source)
    held = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(BadSource, match=r"model\.onnx lacks its external data: model\.onnx_data"):
        publish(request_)
    assert left(Path(str(request_.to))) == []
    files[1].write_bytes(held)
