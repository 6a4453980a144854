"""An exporter's graph: read, held against Optimum's names of inputs and outputs, brought into one form, and written.

In that form a head that shares its weights with the embedding is MatMul(x, Transpose(embedding)): one tensor in the file, and
each level sees what belongs together.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from hubq.errors import BadSource, HubqError, Unsupported

WHOLE = 1_900_000_000  # bytes of weights that one file may hold: protobuf ends at 2 GiB, and names and shapes need room
CHUNK = 2_000_000_000  # bytes of a file of external data: browsers hold less than 2 GiB in one piece
CHUNKS = 100  # that transformers.js fetches at most
SMALL = 1024  # bytes of a tensor that stays in the graph's own file

INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
OUTPUTS = {"logits", "last_hidden_state", "pooler_output", "token_embeddings", "sentence_embedding"}
PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph; named dimensions are free."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What a graph takes and gives. Levels change neither."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def decoder(self) -> bool:
        """Whether the model generates with a cache."""
        return any(port.name.startswith(PAST) for port in self.inputs)


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix that a MatMul multiplies by. `value` holds it as [K, N], or as [N, K] where a Transpose is between them.

    `module` is the name of the part of the model that it belongs to, as exporters write it: model.layers.0.mlp.up_proj.
    """

    node: ir.Node
    value: ir.Value
    transposed: bool

    @property
    def module(self) -> str:
        return ".".join((self.node.name or "").strip("/").split("/")[:-1])

    def rows(self) -> np.ndarray:
        """The weights as [N, K], float32: a row is what makes one output."""
        array = array_of(self.value).astype(np.float32, copy=False)
        return array if self.transposed else np.ascontiguousarray(array.T)


def read(path: Path) -> ir.Model:
    """A graph with its external data mapped. Raises BadSource where it cannot be read or lacks files."""
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx raise what they like
        raise BadSource(f"{path.name} cannot be read as ONNX: {brief(error)}", "export it again") from error
    _beside(path, list(_external(model)))
    return model


def data_files(path: Path) -> list[str]:
    """The names of the files of external data that a graph's file asks for. Raises BadSource where one is not beside it."""
    return list(dict.fromkeys(str(tensor.location) for tensor in _external(read(path))))


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of a model that lies in another file: constants of graphs, branches and functions."""
    held: list[Any] = []
    parts: list[Any] = [model.graph, *model.functions.values()]
    for graph in parts:
        graphs = [graph] if isinstance(graph, ir.Graph) else []
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
                    held += attribute.value if isinstance(attribute.value, list | tuple) else [attribute.value]
                elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    graphs += attribute.value if isinstance(attribute.value, list | tuple) else [attribute.value]
        held += [value.const_value for inner in graphs for value in inner.initializers.values()]
    yield from (tensor for tensor in held if isinstance(tensor, ir.ExternalTensor))


def _beside(path: Path, tensors: list[ir.ExternalTensor]) -> None:
    names = list(dict.fromkeys(str(tensor.location) for tensor in tensors))
    if outside := [name for name in names if not name or Path(name).name != name or "\\" in name]:
        raise BadSource(f"{path.name} has its external data in another folder: {', '.join(outside)}", "export it again")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise BadSource(f"{path.name} lacks its external data: {', '.join(missing)}", f"put it beside {path.name}")
    for tensor in tensors:
        start, size = tensor.offset or 0, (path.parent / str(tensor.location)).stat().st_size
        if not 0 <= start <= start + max(tensor.nbytes, tensor.length or 0) <= size:
            raise BadSource(f"{path.name} claims data of {tensor.location} that is not there", "export it again")


def brief(error: BaseException) -> str:
    """What a library says is wrong, in one line."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")


def contract(model: ir.Model) -> Contract:
    """What a graph takes and gives."""
    return Contract(
        *(
            tuple(
                Port(
                    str(value.name),
                    "" if value.dtype is None else value.dtype.name,
                    tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape or ()),
                )
                for value in values
            )
            for values in (model.graph.inputs, model.graph.outputs)
        )
    )


def check(found: Contract) -> None:
    """Hold a graph against Optimum's names. Raises Unsupported for one that transformers.js and Optimum could not run."""
    inputs, outputs = ({port.name for port in ports} for ports in (found.inputs, found.outputs))
    past = {name.removeprefix(PAST) for name in inputs if name.startswith(PAST)}
    present = {name.removeprefix(PRESENT) for name in outputs if name.startswith(PRESENT)}
    unknown = sorted(
        (inputs - INPUTS - {PAST + name for name in past}) | (outputs - OUTPUTS - {PRESENT + name for name in present})
    )
    if unknown:
        raise Unsupported(f"the graph has inputs or outputs that Optimum's have not: {', '.join(unknown)}", WITH_PAST)
    if missing := sorted(({"input_ids", "attention_mask"} if past else {"input_ids"}) - inputs):
        raise Unsupported(f"the graph lacks inputs: {', '.join(missing)}", WITH_PAST)
    if not outputs & ({"logits"} if past else OUTPUTS):
        raise Unsupported(f"the graph lacks an output: {'logits' if past else ' or '.join(sorted(OUTPUTS))}", WITH_PAST)
    if odd := sorted(past ^ present):
        raise Unsupported(f"the graph's cache does not come out as it goes in: {', '.join(odd)}", WITH_PAST)


WITH_PAST = "export it with Optimum: text-generation-with-past for a decoder, feature-extraction for an encoder"


def normalize(model: ir.Model) -> None:
    """Bring a graph into the one form, in place: no traces of the exporter, one tensor for tied embeddings.

    Raises Unsupported for inputs and outputs that are not Optimum's.
    """
    check(contract(model))
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=SMALL)(model)
    forget(model)
    tie(model)
    common.RemoveUnusedNodesPass()(model)


def forget(model: ir.Model) -> None:
    """Drop what says where and by what a graph was made."""
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.producer_name, model.producer_version, model.domain, model.model_version = "hubq", None, None, None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.doc_string = None
        value.metadata_props.clear()


def embeddings(model: ir.Model) -> list[ir.Node]:
    """The Gathers that look up token ids in a constant matrix [V, D]."""
    ids = next((value for value in model.graph.inputs if value.name == "input_ids"), None)
    return [
        node
        for node in model.graph
        if node.op_type == "Gather" and node.inputs[1] is ids and is_matrix(node.inputs[0]) and _axis(node) == 0
    ]


def weights(model: ir.Model) -> list[Weight]:
    """The constant matrices of a graph's MatMuls, in the graph's order."""
    return [found for node in model.graph if node.op_type == "MatMul" and (found := _weight(node))]


def _weight(node: ir.Node) -> Weight | None:
    value = node.inputs[1]
    if value is not None and is_matrix(value):
        return Weight(node, value, False)
    turn = value.producer() if value is not None else None
    turned = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else None
    return Weight(node, turned, True) if turned is not None and is_matrix(turned) else None


def _axis(node: ir.Node) -> int:
    found = node.attributes.get("axis")
    return 0 if found is None else found.as_int()


def is_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a constant matrix of floats."""
    held = None if value is None or not value.is_initializer() else value.const_value
    return held is not None and len(held.shape) == 2 and held.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def array_of(value: ir.Value) -> np.ndarray:
    """The numbers of a constant."""
    assert value.const_value is not None
    return value.const_value.numpy()


def tie(model: ir.Model) -> None:
    """Make a head whose stored weights equal the embedding's read those: one tensor instead of two."""
    for table in {id(node.inputs[0]): node.inputs[0] for node in embeddings(model)}.values():
        assert table is not None and table.const_value is not None
        for weight in weights(model):
            if weight.value is not table and _same(weight, table):
                turned = _transpose(table, weight)
                weight.node.replace_input_with(1, turned)
                break


def _same(weight: Weight, table: ir.Value) -> bool:
    held = weight.value.const_value
    assert held is not None and table.const_value is not None
    shape = tuple(held.shape) if weight.transposed else tuple(held.shape)[::-1]
    return shape == tuple(table.const_value.shape) and np.array_equal(weight.rows(), array_of(table))


def _transpose(table: ir.Value, weight: Weight) -> ir.Value:
    name = f"{weight.node.name}/Transpose"
    turn = ir.node("Transpose", [table], {"perm": [1, 0]}, name=name)
    turn.outputs[0].name = f"{name}_output_0"
    weight.node.graph.insert_before(weight.node, turn)  # type: ignore[union-attr]
    return turn.outputs[0]


def untie(model: ir.Model) -> None:
    """Give each MatMul behind a Transpose its own constant [K, N], for quantizers that see no other."""
    for weight in weights(model):
        if weight.transposed:
            constant(model, f"{weight.value.name}_transposed", np.ascontiguousarray(array_of(weight.value).T))
            weight.node.replace_input_with(1, model.graph.initializers[f"{weight.value.name}_transposed"])
    common.RemoveUnusedNodesPass()(model)


def constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of a graph, or the one of that name."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


# --- writing ---


def save(model: ir.Model, path: Path) -> list[Path]:
    """Write a graph, and its weights beside it as `<file>_data`, `<file>_data_1` ... where they are too large for one file.

    Returns the files written, the graph's own first. The same graph gives the same bytes, and no half-written file has their
    names.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
        parts = _write(model, Path(aside), path.name)
        for old in _chunk_names(path.name):  # of an earlier, larger one
            with suppress(FileNotFoundError):
                (path.parent / old).unlink()
        for name in reversed(parts):
            os.replace(Path(aside, name), path.parent / name)
    return [path.parent / name for name in parts]


def _write(model: ir.Model, folder: Path, name: str) -> list[str]:
    held = [value for value in model.graph.initializers.values() if value.const_value is not None]
    before = [(value, value.const_value) for value in held]
    try:
        names = _write_data(model, held, folder, name)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in before:
            value.const_value = tensor
    _write_bytes(folder / name, proto.SerializeToString(deterministic=True))
    return [name, *names]


def _write_data(model: ir.Model, held: list[ir.Value], folder: Path, name: str) -> list[str]:
    large = [value for value in held if _bytes(value) >= SMALL]
    if sum(map(_bytes, large)) <= WHOLE:
        for value in held:  # an external tensor would keep its reference
            value.const_value = _in_memory(value)
        return []
    names = []
    for file, chunk in zip(_chunk_names(name), _chunks(large), strict=False):
        tensors = [value.const_value for value in chunk]
        for value, tensor in zip(
            chunk,
            ir.external_data.convert_tensors_to_external(tensors, folder, file),  # type: ignore[arg-type]
            strict=True,
        ):
            value.const_value = tensor
        names.append(file)
    return names


def _bytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.nbytes)


def _in_memory(value: ir.Value) -> ir.TensorProtocol:
    held = value.const_value
    assert held is not None
    return ir.Tensor(held.numpy(), dtype=held.dtype, name=held.name) if isinstance(held, ir.ExternalTensor) else held


def _chunk_names(name: str) -> list[str]:
    return [f"{name}_data" + (f"_{number}" if number else "") for number in range(CHUNKS)]


def _chunks(values: list[ir.Value]) -> Iterator[list[ir.Value]]:
    """Values in their order, in groups of at most CHUNK bytes; raises HubqError for too many."""
    groups: list[list[ir.Value]] = []
    size = CHUNK
    for value in values:
        size += _bytes(value)
        if size > CHUNK:
            groups.append([])
            size = _bytes(value)
        groups[-1].append(value)
    if len(groups) > CHUNKS:
        raise HubqError(f"the weights need {len(groups)} files, transformers.js fetches {CHUNKS}", "choose a smaller level")
    yield from groups


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
