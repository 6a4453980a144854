"""Graphs are held against Optimum's names, tied once, and written the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from formats.onnx import small

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.onnx import engine, graph

IDS = np.random.Generator(np.random.PCG64(1)).integers(0, small.VOCABULARY, 24)


def logits(path: Path) -> np.ndarray:
    with engine.load(path, threads=1) as run:
        return run(IDS, 0)


def normalized(path: Path, target: Path) -> Path:
    model = graph.read(path)
    graph.normalize(model)
    return graph.save(model, target)[0]


def test_a_contract_names_inputs_and_outputs(tmp_path: Path) -> None:
    found = graph.contract(graph.read(small.decoder(tmp_path / "model.onnx")))
    assert found.decoder
    assert found.inputs[0] == graph.Port("input_ids", "INT64", ("B", "S"))
    assert found.outputs[0] == graph.Port("logits", "FLOAT", ("B", "S", small.VOCABULARY))
    assert not graph.contract(graph.read(small.encoder(tmp_path / "encoder.onnx"))).decoder


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("input_ids", "tokens", "tokens"),
        ("attention_mask", "position_ids_", "position_ids_"),
        ("past_key_values.0.key", "past_key_values.1.key", "0.key, 1.key"),
        ("logits", "logits_Q4", "logits_Q4"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    proto = onnx.load(small.decoder(tmp_path / "model.onnx"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new if value.name == old else value.name
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    onnx.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(Unsupported, match=said):
        graph.normalize(graph.read(tmp_path / "renamed.onnx"))


@pytest.mark.parametrize("head", ["transposed", "copied", "own"])
def test_normalizing_changes_no_logits(tmp_path: Path, head: str) -> None:
    path = small.decoder(tmp_path / "raw.onnx", head)
    np.testing.assert_allclose(logits(normalized(path, tmp_path / "model.onnx")), logits(path), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("head", "tied"), [("transposed", True), ("copied", True), ("own", False)])
def test_a_head_that_equals_the_embedding_is_stored_once(tmp_path: Path, head: str, tied: bool) -> None:
    model = graph.read(small.decoder(tmp_path / "raw.onnx", head))
    graph.normalize(model)
    *_, last = graph.weights(model)
    assert last.module == "lm_head"
    assert last.transposed == tied
    assert (last.value is graph.embeddings(model)[0].inputs[0]) == tied
    assert ("onnx::head" in model.graph.initializers) == (head == "own")


def test_untying_gives_the_head_a_constant(tmp_path: Path) -> None:
    path = small.decoder(tmp_path / "raw.onnx")
    model = graph.read(path)
    graph.untie(model)
    assert not any(weight.transposed for weight in graph.weights(model))
    np.testing.assert_allclose(logits(graph.save(model, tmp_path / "model.onnx")[0]), logits(path), rtol=1e-5, atol=1e-5)


def test_no_trace_of_the_exporter_is_left(tmp_path: Path) -> None:
    data = normalized(small.decoder(tmp_path / "raw.onnx"), tmp_path / "model.onnx").read_bytes()
    assert b"/home/" not in data
    assert b"pytorch" not in data


@pytest.mark.parametrize("whole", [graph.WHOLE, 0])
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(graph, "WHOLE", whole)
    written = []
    for folder in (tmp_path / "one", tmp_path / "another"):
        folder.mkdir()
        normalized(small.decoder(folder / "raw.onnx"), folder / "model.onnx")
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name != "raw.onnx"})
    assert written[0] == written[1]


def test_large_weights_go_into_chunks_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WHOLE", 0)
    monkeypatch.setattr(graph, "CHUNK", 40_000)
    raw = small.decoder(tmp_path / "raw.onnx")
    model = graph.read(raw)
    files = graph.save(model, tmp_path / "model_q4.onnx")
    names = [path.name for path in files]
    assert names == [
        "model_q4.onnx",
        "model_q4.onnx_data",
        "model_q4.onnx_data_1",
        "model_q4.onnx_data_2",
        "model_q4.onnx_data_3",
    ]
    assert graph.data_files(files[0]) == names[1:]
    assert all(path.stat().st_size <= 40_000 for path in files[1:])
    np.testing.assert_array_equal(logits(files[0]), logits(raw))
    again = graph.save(graph.read(files[0]), tmp_path / "again.onnx")
    assert [path.read_bytes() for path in again[1:]] == [path.read_bytes() for path in files[1:]]


def test_a_smaller_graph_leaves_no_old_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph.read(small.decoder(tmp_path / "raw.onnx"))
    with monkeypatch.context() as large:
        large.setattr(graph, "WHOLE", 0)
        graph.save(model, tmp_path / "model.onnx")
    graph.save(model, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "raw.onnx"]


def test_too_many_chunks_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WHOLE", 0), ("CHUNK", 1), ("CHUNKS", 3)):
        monkeypatch.setattr(graph, name, value)
    model = graph.read(small.decoder(tmp_path / "raw.onnx"))
    with pytest.raises(HubqError, match=r"transformers\.js fetches 3"):
        graph.save(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["raw.onnx"]


def test_missing_and_distant_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WHOLE", 0)
    path, data = graph.save(graph.read(small.decoder(tmp_path / "raw.onnx")), tmp_path / "model.onnx")
    data.unlink()
    for look in (graph.read, graph.data_files):
        with pytest.raises(BadSource, match=r"lacks its external data: model\.onnx_data"):
            look(path)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../secret" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(BadSource, match="another folder"):
        graph.read(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BadSource, match=r"model.onnx cannot be read as ONNX"):
        graph.read(tmp_path / "model.onnx")
