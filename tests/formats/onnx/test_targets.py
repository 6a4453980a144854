"""What a target changes is in the file: settings of operators, types of constants; and the file still computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from formats.onnx import small
from formats.onnx.test_quantize import ERRORS, error, hidden, logits, source
from onnx import numpy_helper

from hubq.errors import Usage
from hubq.formats.onnx import quantize, targets


def blocks(path: Path) -> tuple[set[int], set[int]]:
    """accuracy_level and the number of inputs of the MatMulNBits."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    found = {entry.i for node in nodes for entry in node.attribute if entry.name == "accuracy_level"}
    return found, {len(node.input) for node in nodes}


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_decoder_for_every_target(tmp_path: Path, target: str) -> None:
    path, row = source(tmp_path), targets.TARGETS[target]
    made = quantize.quantize(path, "q4", tmp_path / "q4.onnx", target=target)
    assert blocks(made.files[0]) == ({row.accuracy_level}, {3} if row.symmetric else {3, 4})  # 3: the values, in 8 bits
    assert error(logits(made.files[0]), logits(path)) < ERRORS["q4"]


def columns(path: Path) -> tuple[np.dtype, int]:
    """Type and widest span of the weights of MatMulInteger."""
    graph = onnx.load(path).graph
    read = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    held = [numpy_helper.to_array(tensor).astype(int) for tensor in graph.initializer if tensor.name in read]
    kinds = {numpy_helper.to_array(tensor).dtype for tensor in graph.initializer if tensor.name in read}
    (kind,) = kinds
    return kind, max(int(array.max() - array.min()) for array in held)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_an_encoder_for_every_target(tmp_path: Path, target: str) -> None:
    path, row = small.encoder(tmp_path / "model.onnx"), targets.TARGETS[target]
    made = quantize.quantize(path, "q8", tmp_path / "q8.onnx", target=target)
    kind, span = columns(made.files[0])
    assert kind == (np.uint8 if row.unsigned else np.int8)
    assert (span <= 128) == row.reduced
    assert error(hidden(made.files[0]), hidden(path)) < 2 * ERRORS["q8"]


def test_levels_that_name_their_type_keep_it(tmp_path: Path) -> None:
    path = small.encoder(tmp_path / "model.onnx")
    kinds = [
        columns(quantize.quantize(path, name, tmp_path / "x.onnx", target="avx2").files[0])[0] for name in ("int8", "uint8")
    ]
    assert kinds == [np.int8, np.uint8]


def test_an_unknown_target_is_told() -> None:
    with pytest.raises(Usage, match="no target 'avx9'") as caught:
        targets.find("avx9")
    assert "arm64" in caught.value.hint
