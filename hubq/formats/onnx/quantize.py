"""A level of a model: its normalized graph with the weights in fewer bits, written to a new file.

Blocks are put into the graph here, their levels come from blocks.py. Where the head shares the embedding's weights, MatMulNBits
and GatherBlockQuantized read one tensor: both take a row's levels in the same order, in other shapes. Dynamic 8 bits,
NormalFloat and the change to half precision are onnxruntime's.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from hubq.errors import HubqError
from hubq.formats.onnx import graph
from hubq.formats.onnx.levels import LAYER, Scheme, raised, scheme
from hubq.formats.onnx.targets import suited

BLOCKS = (32, 16)  # sizes of a block in MatMulNBits, the best first; one that divides a row is taken
RAISED_BLOCKS = (64, 32, 16)  # of parts in more bits than the rest
NF4_BLOCK = 64
DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Made:
    """What a level became: `files`, the graph's own first; `types`, the weight matrices of each storage type; and how many of
    them kept theirs because no block divides their rows."""

    files: list[Path]
    types: Mapping[str, int]
    fallbacks: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """Constants that hold a matrix [N, K] in blocks: levels [N, blocks, bytes], scales [N, blocks], perhaps zero points."""

    bits: int
    block: int
    values: list[ir.Value]


@dataclass
class _Work:
    """A graph on its way to a level. `importance` is that of the inputs of modules, as blocks.pack takes it."""

    model: ir.Model
    scheme: Scheme
    importance: Mapping[str, np.ndarray]
    layers: int = 0
    types: Counter[str] = field(default_factory=Counter)
    fallbacks: int = 0
    packed: dict[str, _Packed] = field(default_factory=dict)


def quantize(
    source: Path,
    level_name: str,
    path: Path,
    importance: Mapping[str, np.ndarray] | None = None,
    target: str = "cpu",
) -> Made:
    """Write a level of a normalized float32 graph for a target to `path`, and external data beside it where it is large.

    `importance` maps modules (graph.Weight.module) to how much the error in each of their columns counts, for levels in blocks.
    The same input gives the same bytes. Raises BadSource for a graph that cannot be read, HubqError where the level would
    change what the graph takes and gives.
    """
    model = graph.read(source)
    before = graph.contract(model)
    work = _Work(model, suited(scheme(level_name, before.decoder), target), importance or {}, _layers(model))
    WAYS[work.scheme.way](work)
    if work.scheme.half:
        work.model = _half(work.model)
    graph.forget(work.model)
    common.RemoveUnusedNodesPass()(work.model)
    if (after := graph.contract(work.model)) != before:
        changed = {port.name for port in {*before.inputs, *before.outputs} ^ {*after.inputs, *after.outputs}}
        raise HubqError(f"{level_name} changes the graph's inputs or outputs: {', '.join(sorted(changed))}", "leave it out")
    return Made(graph.save(work.model, path), dict(work.types), work.fallbacks)


def _layers(model: ir.Model) -> int:
    """How many layers a model has, by the names of its parts."""
    return 1 + max((int(found[1]) for weight in graph.weights(model) if (found := LAYER.search(weight.module))), default=-1)


def _keep(work: _Work) -> None:
    work.types[f"float{work.scheme.bits}"] += len(_matrices(work.model))


def _matrices(model: ir.Model) -> set[str]:
    """The names of the constants that MatMuls and embeddings read."""
    tables = [node.inputs[0] for node in graph.embeddings(model)]
    return {str(value.name) for value in (*(weight.value for weight in graph.weights(model)), *tables) if value is not None}


# --- blocks ---


def _blocks(work: _Work) -> None:
    for weight in graph.weights(work.model):
        rows, columns = _sizes(weight.value, weight.transposed)
        if found := _packed(work, weight.value, weight.transposed, columns, weight.module):
            settings = {"K": columns, "N": rows, "bits": found.bits, "block_size": found.block}
            settings["accuracy_level"] = work.scheme.accuracy_level
            _replace(weight.node, "MatMulNBits", [weight.node.inputs[0], *found.values], settings)
    for node in graph.embeddings(work.model):
        table, ids = node.inputs
        assert table is not None
        columns = _sizes(table, True)[1]
        if found := _packed(work, table, True, columns, node.name or ""):
            data = _flat(work.model, node, found.values[0], columns * found.bits // 8)
            settings = {"bits": found.bits, "block_size": found.block, "gather_axis": 0, "quantize_axis": 1}
            _replace(node, "GatherBlockQuantized", [data, ids, *found.values[1:]], settings)


def _packed(work: _Work, value: ir.Value, rows_first: bool, columns: int, module: str) -> _Packed | None:
    """A constant in blocks, packed once whoever reads it; None where no block divides its rows."""
    from hubq.formats.onnx.blocks import pack

    key = f"{value.name}{'' if rows_first else ' turned'}"
    more = raised(work.scheme.raised, module, work.layers)
    block = next((size for size in (RAISED_BLOCKS if more else BLOCKS) if columns % size == 0), None)
    if block is None:
        work.fallbacks += 1
        work.types["float32"] += 1
        return None
    if key not in work.packed:
        array, bits = graph.array_of(value), 8 if more else work.scheme.bits
        found = pack(
            np.ascontiguousarray(array if rows_first else array.T, np.float32),
            bits,
            block,
            importance=work.importance.get(module),
            symmetric=more or work.scheme.symmetric,
            half=work.scheme.half,
        )
        arrays = {f"Q{bits}": found.data, "scales": found.scales, "zero_points": found.zero_points}
        stored = [graph.constant(work.model, f"{value.name}_{name}", held) for name, held in arrays.items() if held is not None]
        work.packed[key] = _Packed(bits, block, stored)
        work.types[f"int{bits}"] += 1
    return work.packed[key]


def _flat(model: ir.Model, node: ir.Node, data: ir.Value, width: int) -> ir.Value:
    """Levels [N, blocks, bytes] as [N, width], by a Reshape that onnxruntime computes when it loads the graph."""
    shape = graph.constant(model, f"{node.name}/rows", np.array([-1, width], np.int64))
    reshape = ir.node("Reshape", [data, shape], name=f"{node.name}/Reshape")
    reshape.outputs[0].name = f"{node.name}/Reshape_output_0"
    model.graph.insert_before(node, reshape)
    return reshape.outputs[0]


def _sizes(value: ir.Value, rows_first: bool) -> tuple[int, int]:
    """N and K of a constant matrix."""
    first, last = graph.array_of(value).shape
    return (first, last) if rows_first else (last, first)


def _replace(node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], settings: Mapping[str, int]) -> None:
    """Put an operator of onnxruntime's own in a node's place, under its name and with its output."""
    assert node.graph is not None
    new = ir.node(op_type, inputs, settings, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], node.outputs, new.outputs)
    new.graph.opset_imports.setdefault(DOMAIN, 1)  # type: ignore[union-attr]


# --- onnxruntime's own ---


def _nf4(work: _Work) -> None:
    """MatMulBnb4 in the place of MatMul; embeddings stay."""
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

    rounder = MatMulBnb4Quantizer(onnx.ModelProto(), MatMulBnb4Quantizer.NF4, NF4_BLOCK)
    for weight in graph.weights(work.model):
        rows, columns = _sizes(weight.value, weight.transposed)
        levels, peaks = rounder.bnb4_block_quant(weight.rows().T)
        arrays = {"NF4": levels, "absmax": peaks}
        stored = [graph.constant(work.model, f"{weight.value.name}_{name}", array) for name, array in arrays.items()]
        settings = {"K": columns, "N": rows, "block_size": NF4_BLOCK, "quant_type": MatMulBnb4Quantizer.NF4}
        _replace(weight.node, "MatMulBnb4", [weight.node.inputs[0], *stored], settings)
        work.types["nf4"] += 1
    work.types["float32"] += len(graph.embeddings(work.model))


def _dynamic(work: _Work) -> None:
    """Whole columns of MatMul in 8 bits, and the embeddings; of encoders all that onnxruntime has in 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    decoder = graph.contract(work.model).decoder
    graph.untie(work.model)
    convolutions = any(node.op_type == "Conv" for node in work.model.graph)  # ConvInteger takes only unsigned ones
    work.types["int8"] += len(_matrices(work.model))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        files = graph.save(work.model, Path(folder, "float.onnx"))
        quantize_dynamic(
            files[0],
            Path(folder, "int8.onnx"),
            op_types_to_quantize=["MatMul", "Gather"] if decoder else None,
            per_channel=True,
            reduce_range=work.scheme.reduced,
            weight_type=QuantType.QUInt8 if work.scheme.unsigned or convolutions else QuantType.QInt8,
            use_external_data_format=len(files) > 1,
            extra_options={"MatMulConstBOnly": True},
        )
        work.model = graph.read(Path(folder, "int8.onnx"))
        ir.external_data.load_to_model(work.model)


def _half(model: ir.Model) -> ir.Model:
    """The graph in float16, its inputs and outputs in float32 still."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        common.ShapeInferencePass(strict_mode=False)(model)  # without the weights: onnx's own fails above 2 GiB
        ir.external_data.load_to_model(model)
        proto = convert_float_to_float16(ir.to_proto(model), keep_io_types=True, disable_shape_infer=True)
    return ir.from_proto(proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools log advice to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


WAYS: dict[str, Callable[[_Work], None]] = {"keep": _keep, "blocks": _blocks, "nf4": _nf4, "dynamic": _dynamic}
