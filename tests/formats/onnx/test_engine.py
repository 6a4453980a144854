"""onnxruntime scores ids as the arithmetic says, and a graph that is wrong ends in a sentence, not in a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from formats.onnx import small

from hubq.errors import BadSource, HubqError
from hubq.formats.onnx import engine, graph
from hubq.sealed import reason

IDS = np.random.Generator(np.random.PCG64(3)).integers(0, small.VOCABULARY, 24)


def by_hand(path: Path, ids: np.ndarray) -> np.ndarray:
    """The small decoder's logits [T, V] in NumPy."""
    held = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in onnx.load(path).graph.initializer}
    x = held["embed.weight"][ids] + held["places.weight"][: len(ids)]
    q, k, v = (
        (x @ held[f"onnx::_model_layers.0_self_attn_{part}_proj_MatMul"]).reshape(len(ids), small.HEADS, -1).swapaxes(0, 1)
        for part in "qkv"
    )
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
    return (x + mixed @ held["onnx::_model_layers.0_self_attn_o_proj_MatMul"]) @ held["embed.weight"].T


@pytest.mark.parametrize("first", [0, 11, 22])
def test_logits_are_those_of_the_arithmetic(tmp_path: Path, first: int) -> None:
    path = small.decoder(tmp_path / "model.onnx")
    with engine.load(path, threads=1) as run:
        found = run(IDS, first)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(path, IDS)[first:-1], rtol=1e-3, atol=1e-3)


def test_the_cache_agrees(tmp_path: Path) -> None:
    assert engine.cache_difference(small.decoder(tmp_path / "model.onnx"), IDS) < 1e-4


def test_a_cache_that_forgets_is_seen(tmp_path: Path) -> None:
    path = small.decoder(tmp_path / "model.onnx")
    proto = onnx.load(path)
    scale = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    proto.graph.initializer.append(scale)
    (node,) = (node for node in proto.graph.node if "present.0.value" in node.output)
    node.output[0] = "values"
    for other in proto.graph.node:
        other.input[:] = ["values" if name == "present.0.value" else name for name in other.input]
    proto.graph.node.append(onnx.helper.make_node("Mul", ["values", "half"], ["present.0.value"], name="fault"))
    onnx.save(proto, path)
    assert engine.cache_difference(path, IDS) > 0.1


def test_good_files_pass_the_trial(tmp_path: Path) -> None:
    engine.load_test(small.decoder(tmp_path / "model.onnx"))
    engine.load_test(small.encoder(tmp_path / "encoder.onnx"))


def broken(path: Path, kind: str) -> Path:
    """A decoder whose head is an operator that onnxruntime does not have, or of shapes that do not fit."""
    proto = onnx.load(small.decoder(path))
    head = proto.graph.node[-1]
    if kind == "operator":
        head.op_type, head.domain = "MatMul3000", "com.microsoft"
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    else:
        (table,) = (tensor for tensor in proto.graph.initializer if tensor.name == "places.weight")
        table.CopyFrom(onnx.numpy_helper.from_array(np.full((64, small.WIDTH), np.nan, np.float32), "places.weight"))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(("kind", "said"), [("operator", "MatMul3000"), ("numbers", "not finite")])
def test_bad_files_fail_the_trial_with_a_reason(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(HubqError, match=f"model.onnx does not run: .*{said}"):
        engine.load_test(broken(tmp_path / "model.onnx", kind))


def test_bad_files_do_not_load(tmp_path: Path) -> None:
    with (
        pytest.raises(HubqError, match=r"onnxruntime cannot load model.onnx: .*MatMul3000"),
        engine.load(broken(tmp_path / "model.onnx", "operator")),
    ):
        pass


def test_ids_out_of_range_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(HubqError, match=r"onnxruntime failed on model.onnx"),
        engine.load(small.decoder(tmp_path / "model.onnx")) as run,
    ):
        run(np.array([1, 5000]), 0)


def test_a_process_that_dies_is_named(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", "import os; os.abort()"], capture_output=True, text=True)
    assert reason(died.stderr.splitlines(), died.returncode) == "it was ended by SIGABRT"


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WHOLE", 0)
    path, data = graph.save(graph.read(small.decoder(tmp_path / "raw.onnx")), tmp_path / "model.onnx")
    data.unlink()
    with pytest.raises(BadSource, match=r"lacks its external data: model\.onnx_data"):
        engine.load_test(path)
    with pytest.raises(BadSource, match=r"lacks its external data: model\.onnx_data"), engine.load(path):
        pass


def test_the_processor_is_always_there() -> None:
    assert engine.providers()[-1] == "CPUExecutionProvider"
