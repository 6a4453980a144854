"""Packed weights are held against onnxruntime itself, and their errors against plain rounding and exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions

from hubq.formats.onnx.blocks import Packed, pack, unpack

LAYOUTS = [(4, 32, 64), (4, 32, 96), (8, 32, 96), (4, 16, 80), (4, 128, 256), (4, 32, 70), (8, 32, 70), (4, 32, 20)]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(operator: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """What onnxruntime makes of a graph of one operator."""
    node = helper.make_node(operator, [*inputs, *constants], ["y"], domain="com.microsoft", **attributes)
    if operator == "GatherBlockQuantized":  # the weights come before the indices
        node.input[:2] = node.input[1::-1]
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, types[array.dtype], array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def constants(data: np.ndarray, packed: Packed) -> dict[str, np.ndarray]:
    zeros = {} if packed.zero_points is None else {"zero_points": packed.zero_points}
    return {"data": data, "scales": packed.scales, **zeros}


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("bits", "block", "columns"), LAYOUTS)
def test_matmul_in_onnxruntime_uses_the_unpacked_weights(bits: int, block: int, columns: int, symmetric: bool) -> None:
    weights, x = normal(75, columns) + np.float32(0.3), normal(9, columns, seed=1)
    packed = pack(weights, bits, block, symmetric=symmetric)
    attributes = {"K": columns, "N": 75, "bits": bits, "block_size": block}
    expected = x @ unpack(packed, 75, columns, bits, block).T
    y = run("MatMulNBits", {"x": x}, constants(packed.data, packed), **attributes)
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(expected - x @ weights.T).max() < (0.2 if bits == 4 else 0.02) * np.abs(expected).max()


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("bits", "block", "columns"), LAYOUTS)
def test_gather_in_onnxruntime_gives_rows_of_the_unpacked_weights(bits: int, block: int, columns: int, symmetric: bool) -> None:
    weights, ids = normal(75, columns) + np.float32(0.3), np.array([0, 74, 3, 3, 64], np.int64)
    packed = pack(weights, bits, block, symmetric=symmetric)
    data = constants(packed.rows(columns, bits), packed)
    y = run("GatherBlockQuantized", {"ids": ids}, data, bits=bits, block_size=block, gather_axis=0, quantize_axis=1)
    assert np.array_equal(y, unpack(packed, 75, columns, bits, block)[ids])


def rounded(weights: np.ndarray) -> np.ndarray:
    """Plain rounding to 16 levels between the extremes of each 32 weights, with an integer zero point."""
    value = weights.reshape(-1, 32)
    low, high = np.minimum(value.min(1), 0)[:, None], np.maximum(value.max(1), 0)[:, None]
    scale = (high - low) / 15
    zero = np.round(-low / scale)
    return ((np.clip(np.round(value / scale) + zero, 0, 15) - zero) * scale).reshape(weights.shape)


def error(weights: np.ndarray, found: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    return float((importance * (weights.astype(np.float64) - found) ** 2).mean())


def unpacked(weights: np.ndarray, bits: int = 4, **options: object) -> np.ndarray:
    return unpack(pack(weights, bits, **options), *weights.shape, bits, 32)  # type: ignore[arg-type]


def exhaustive(block: np.ndarray) -> float:
    """The least squared error of a block, by 1000 scales at each of the 16 zero points, each refitted."""
    scales = np.linspace(0.5, 1.2, 1000)[:, None] * (max(block.max(), 0) - min(block.min(), 0)) / 15
    best = np.inf
    for zero in range(16):
        levels = np.clip(np.round(block / scales), -zero, 15 - zero)
        squares = np.maximum((levels**2).sum(1), 1e-9)
        best = min(best, ((block**2).sum() - (levels @ block) ** 2 / squares).min())
    return best


def test_the_search_comes_near_the_least_error() -> None:
    weights = normal(256, 32)
    weights[128:] = np.abs(weights[128:])
    least = np.mean([exhaustive(block.astype(np.float64)) for block in weights]) / 32
    assert least <= error(weights, unpacked(weights)) * 1.00001 < least * 1.02


def test_the_search_beats_plain_rounding() -> None:
    weights = normal(128, 576)
    assert error(weights, unpacked(weights)) < 0.91 * error(weights, rounded(weights))


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    weights, importance = normal(128, 576), np.exp(normal(576, seed=1) * 2)
    plain, weighed = unpacked(weights), unpacked(weights, importance=importance)
    assert error(weights, weighed, importance) < 0.85 * error(weights, plain, importance)
    assert error(weights, weighed) > error(weights, plain)


@pytest.mark.parametrize("bits", [4, 8])
def test_half_scales_are_numbers_of_float16(bits: int) -> None:
    packed = pack(normal(70, 96), bits, half=True)
    assert np.array_equal(packed.scales, packed.scales.astype(np.float16))
    assert not np.array_equal(pack(normal(70, 96), bits).scales, packed.scales)


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-45, -1e-30])
def test_blocks_of_one_value(value: float) -> None:
    weights = np.full((3, 64), value, np.float32)
    for symmetric in (False, True):
        assert np.allclose(unpacked(weights, symmetric=symmetric), weights, rtol=1e-6, atol=1e-15)


def test_levels_of_a_grid_come_back_exactly() -> None:
    levels = np.random.default_rng(0).integers(0, 16, (64, 96))
    levels[:, ::32], levels[:, 1::32] = 0, 15
    weights = ((levels - 5) * np.float32(0.125)).astype(np.float32)
    assert np.array_equal(unpacked(weights), weights)


def test_the_bytes_depend_on_the_rows_alone() -> None:
    """Rows packed alone, in company and again are the same; so no thread and no lane has a say."""
    weights = normal(600, 96)
    whole = pack(weights, 4)
    for one in (slice(0, 600), slice(500, 501), slice(130, 330)):
        part = pack(weights[one], 4)
        assert np.array_equal(part.data, whole.data[one])
        assert np.array_equal(part.scales, whole.scales[one])
        assert np.array_equal(part.zero_points, whole.zero_points[one])
