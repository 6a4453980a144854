"""Every level loads in onnxruntime, keeps the graph's inputs and outputs, and is as near to its source as its bits allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from formats.onnx import small

from hubq.errors import HubqError
from hubq.formats.onnx import engine, graph, levels, quantize

IDS = np.random.Generator(np.random.PCG64(2)).integers(0, small.VOCABULARY, 24)
# level -> the largest relative error of a decoder's logits; 8-bit activations cost more than 8-bit weights
ERRORS = {
    "fp32": 1e-6,
    "fp16": 0.002,
    "q8": 0.02,
    "int8": 0.04,
    "uint8": 0.04,
    "q4_mixed": 0.2,
    "q4": 0.2,
    "q4f16": 0.2,
    "bnb4": 0.2,
}

GRAPHS = [name for name, row in levels.TABLE.items() if row.decoder.way != "builder"]


def source(folder: Path, head: str = "transposed", width: int = small.WIDTH) -> Path:
    model = graph.read(small.decoder(folder / "raw.onnx", head, width))
    graph.normalize(model)
    return graph.save(model, folder / "model.onnx")[0]


def logits(path: Path) -> np.ndarray:
    with engine.load(path, threads=1) as run:
        return run(IDS, 0)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def hidden(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"input_ids": IDS[None], "attention_mask": np.ones((1, len(IDS)), np.int64)})[0]


@pytest.mark.parametrize("head", ["transposed", "own"])
@pytest.mark.parametrize("level", GRAPHS)
def test_a_decoder_at_every_level(tmp_path: Path, level: str, head: str) -> None:
    path = source(tmp_path, head)
    made = quantize.quantize(path, level, tmp_path / f"{level}.onnx")
    assert error(logits(made.files[0]), logits(path)) < ERRORS[level]
    assert engine.cache_difference(made.files[0], IDS) < 0.1
    assert graph.contract(graph.read(made.files[0])) == graph.contract(graph.read(path))
    assert sum(made.types.values()) == 5 + (head == "own" or level in ("int8", "uint8", "bnb4"))
    assert made.fallbacks == 0


@pytest.mark.parametrize("level", GRAPHS)
def test_an_encoder_at_every_level(tmp_path: Path, level: str) -> None:
    path = small.encoder(tmp_path / "model.onnx")
    made = quantize.quantize(path, level, tmp_path / f"{level}.onnx")
    assert error(hidden(made.files[0]), hidden(path)) < ERRORS[level]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_levels_use_the_operators_that_they_name(tmp_path: Path) -> None:
    path, found = source(tmp_path), {}
    for level in GRAPHS:
        found[level] = operators(quantize.quantize(path, level, tmp_path / "level.onnx").files[0])
    for level in ("q8", "q4", "q4f16"):
        assert found[level].count("MatMulNBits") == 5
        assert found[level].count("MatMul") == 2  # attention's, of two activations
        assert found[level].count("GatherBlockQuantized") == 1
    assert found["int8"].count("MatMulInteger") == found["uint8"].count("MatMulInteger") == 5
    assert found["bnb4"].count("MatMulBnb4") == 5
    encoder = quantize.quantize(small.encoder(tmp_path / "encoder.onnx"), "q8", tmp_path / "level.onnx").files[0]
    assert operators(encoder).count("MatMulInteger") == 2


def bits(path: Path) -> dict[str, int]:
    """The part of the model that each MatMulNBits and GatherBlockQuantized belongs to -> its bits."""
    nodes = [node for node in graph.read(path).graph if "bits" in node.attributes]
    return {node.name.split("/")[-2]: node.attributes["bits"].as_int() for node in nodes}


def test_a_mixture_has_more_bits_where_they_pay(tmp_path: Path) -> None:
    path = source(tmp_path)
    plain, mixed, half = (
        bits(quantize.quantize(path, level, tmp_path / "level.onnx").files[0]) for level in ("q4", "q4_mixed", "q4f16")
    )
    fours = dict.fromkeys(["q_proj", "k_proj", "v_proj", "o_proj", "lm_head", "embed_tokens"], 4)
    assert half == fours
    assert plain == {**fours, "v_proj": 8}
    assert mixed == {**fours, "v_proj": 8, "lm_head": 8, "embed_tokens": 8}
    raised = [layer for layer in range(30) if levels.raised(levels.MIXTURE, f"model.layers.{layer}.mlp.down_proj", 30)]
    assert raised == [0, 1, 2, 27, 28, 29]
    assert not levels.raised(levels.MIXTURE, "model.layers.0.mlp.up_proj", 30)


@pytest.mark.parametrize("level", ["q4", "q4_mixed", "q4f16", "q8"])
def test_head_and_embedding_share_one_tensor(tmp_path: Path, level: str) -> None:
    model = graph.read(quantize.quantize(source(tmp_path), level, tmp_path / "level.onnx").files[0])
    (gather,) = (node for node in model.graph if node.op_type == "GatherBlockQuantized")
    head = next(node for node in model.graph if node.name == "/lm_head/MatMul")
    assert gather.inputs[0].producer().inputs[0] is head.inputs[1]
    assert list(gather.inputs[2:]) == list(head.inputs[2:])
    held = sum(value.const_value.nbytes for value in model.graph.initializers.values() if "embed" in value.name)
    weights = small.VOCABULARY * small.WIDTH
    assert held <= weights * (bits(tmp_path / "level.onnx")["lm_head"] + 1.25) / 8  # with scales and zero points
    assert not any(
        value.const_value.dtype == ir.DataType.FLOAT and value.const_value.size == weights
        for value in model.graph.initializers.values()
    )


def test_an_embedding_is_looked_up_exactly_as_the_head_has_it(tmp_path: Path) -> None:
    """Zero points and an odd number of blocks: 96 columns are 3 blocks."""
    path = quantize.quantize(source(tmp_path, width=96), "q4", tmp_path / "level.onnx").files[0]
    model = graph.read(path)
    (gather,) = (node for node in model.graph if node.op_type == "GatherBlockQuantized")
    head = next(node for node in model.graph if node.name == "/lm_head/MatMul")
    data, scales, zeros = (value.const_value.numpy() for value in head.inputs[1:4])
    nibbles = np.stack([data & 15, data >> 4], -1).reshape(len(data), 3, 32).astype(np.float32)
    offsets = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(data), -1)[:, :3].astype(np.float32)
    wanted = ((nibbles - offsets[..., None]) * scales[..., None]).reshape(len(data), 96)
    model.graph.outputs.append(gather.outputs[0])
    gather.outputs[0].shape, gather.outputs[0].dtype = ir.Shape(["B", "S", 96]), ir.DataType.FLOAT
    shown = graph.save(model, tmp_path / "shown.onnx")[0]
    session = onnxruntime.InferenceSession(shown)
    found = session.run([gather.outputs[0].name], engine._feeds(session, IDS))[0][0]
    np.testing.assert_allclose(found, wanted[IDS], rtol=1e-6)


def test_half_precision_keeps_the_inputs_and_outputs(tmp_path: Path) -> None:
    for level in ("fp16", "q4f16"):
        model = graph.read(quantize.quantize(source(tmp_path), level, tmp_path / "level.onnx").files[0])
        kinds = {value.const_value.dtype for value in model.graph.initializers.values() if value.const_value.size > 100}
        assert ir.DataType.FLOAT16 in kinds
        assert ir.DataType.FLOAT not in kinds
        assert {port.type for port in graph.contract(model).outputs} == {"FLOAT"}


@pytest.mark.parametrize("level", ["fp16", "q8", "int8", "q4", "bnb4"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, level: str) -> None:
    path = source(tmp_path)
    one, other = (quantize.quantize(path, level, tmp_path / name).files[0].read_bytes() for name in ("a.onnx", "b.onnx"))
    assert one == other
    assert str(tmp_path).encode() not in one
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "model.onnx", "raw.onnx"]


def test_large_levels_have_external_data_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WHOLE", 0)
    path = source(tmp_path)
    for level in GRAPHS:
        made = quantize.quantize(path, level, tmp_path / levels.file_name(level).replace("model", "level"))
        assert [file.name for file in made.files[1:]] == [f"{made.files[0].name}_data"]
        assert error(logits(made.files[0]), logits(path)) < ERRORS[level]


def test_rows_that_no_block_divides_stay(tmp_path: Path) -> None:
    path = source(tmp_path, width=72)
    made = quantize.quantize(path, "q4", tmp_path / "level.onnx")
    assert "int4" not in made.types
    assert made.fallbacks > 0
    np.testing.assert_allclose(logits(made.files[0]), logits(path), rtol=1e-5, atol=1e-5)
    narrow = quantize.quantize(source(tmp_path, width=48), "q4", tmp_path / "level.onnx")
    assert {
        node.attributes["block_size"].as_int() for node in graph.read(narrow.files[0]).graph if node.op_type == "MatMulNBits"
    } == {16}


def test_importance_reaches_its_module(tmp_path: Path) -> None:
    path, plain = source(tmp_path), tmp_path / "plain.onnx"
    quantize.quantize(path, "q4", plain)
    weighted = tmp_path / "weighted.onnx"
    importance = np.geomspace(1e-3, 1e3, small.WIDTH).astype(np.float32)
    quantize.quantize(path, "q4", weighted, importance={"model.layers.0.self_attn.q_proj": importance})
    one, other = (
        {v.name: v.const_value.numpy() for v in graph.read(file).graph.initializers.values()} for file in (plain, weighted)
    )
    changed = {name for name in one if not np.array_equal(one[name], other[name])}
    assert changed
    assert all("q_proj" in name for name in changed)


def test_a_renamed_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(work: quantize._Work) -> None:
        work.model.graph.outputs[0].name = "logits_Q4"

    monkeypatch.setitem(quantize.WAYS, "blocks", rename)
    with pytest.raises(HubqError, match="logits, logits_Q4"):
        quantize.quantize(source(tmp_path), "q4", tmp_path / "level.onnx")
    assert not (tmp_path / "level.onnx").exists()


def test_levels_are_in_order_and_have_the_names_of_transformers_js() -> None:
    assert list(levels.LEVELS) == ["fp32", "fp16", "q8", "int8", "uint8", "q4_mixed", "q4", "q4f16", "bnb4", "genai-int4"]
    assert [levels.file_name(name) for name in ("fp32", "q8", "q4f16")] == [
        "model.onnx",
        "model_quantized.onnx",
        "model_q4f16.onnx",
    ]
    bits = [level.bits for name, level in levels.LEVELS.items() if name in GRAPHS]
    assert bits == sorted(bits, reverse=True)
    assert all(level.id == f"onnx:{name}" for name, level in levels.LEVELS.items())
