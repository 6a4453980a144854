"""Small graphs as exporters make them: an attention decoder with a cache and a tied head, and an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS = 96, 64, 4


class Builder:
    """Nodes and constants of a graph, by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.Generator(np.random.PCG64(7))

    def add(self, kind: str, name: str, *inputs: str, output: str = "", **settings: object) -> str:
        node = helper.make_node(
            kind, inputs, [output or f"{name}_out"], name=name, doc_string="/home/someone/model.py", **settings
        )
        self.nodes.append(node)
        return node.output[0]

    def weight(self, name: str, *shape: int) -> str:
        self.constants[name] = (self.random.standard_normal(shape) * 2 / np.sqrt(shape[0])).astype(np.float32)
        return name

    def integers(self, name: str, *values: int) -> str:
        self.constants[name] = np.array(values, np.int64)
        return name

    def linear(self, module: str, value: str, width: int, out: int) -> str:
        name = f"{module}/MatMul"
        return self.add("MatMul", name, value, self.weight(f"onnx::{name.replace('/', '_')}", width, out))

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        held = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "main_graph", inputs, outputs, held)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="pytorch")
        made.doc_string = "/home/someone/export.py"
        return made


def _value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def decoder(path: Path, head: str = "transposed", width: int = WIDTH) -> Path:
    """A decoder of one layer. `head` is `transposed` (MatMul of a Transpose of the embedding), `copied` (its own constant with
    the embedding's numbers) or `own` (other numbers)."""
    made = Builder()
    table = made.weight("embed.weight", VOCABULARY, width)
    x = made.add("Gather", "/model/embed_tokens/Gather", table, "input_ids")
    places = made.add("Gather", "/model/places/Gather", made.weight("places.weight", 64, width), "position_ids")
    x = made.add("Add", "/model/Add", x, places)
    q, k, v = (made.linear(f"/model/layers.0/self_attn/{part}_proj", x, width, width) for part in "qkv")
    split = made.integers("split", 0, 0, HEADS, width // HEADS)
    heads = {}
    for part, value in (("q", q), ("k", k), ("v", v)):
        turned = made.add("Reshape", f"/model/{part}/Reshape", value, split)
        heads[part] = made.add("Transpose", f"/model/{part}/Transpose", turned, perm=[0, 2, 1, 3])
    keys = made.add("Concat", "/model/k/Concat", "past_key_values.0.key", heads["k"], axis=2, output="present.0.key")
    values = made.add("Concat", "/model/v/Concat", "past_key_values.0.value", heads["v"], axis=2, output="present.0.value")
    scores = made.add("MatMul", "/model/scores/MatMul", heads["q"], made.add("Transpose", "/k/T", keys, perm=[0, 1, 3, 2]))
    scores = made.add("Mul", "/model/scale/Mul", scores, "scale")
    made.constants["scale"] = np.array((width // HEADS) ** -0.5, np.float32)
    # a key is seen from its own place on: places of the keys are those of the mask's ones
    made.integers("one", 1), made.integers("two", 2)
    seen = made.add("Sub", "/mask/Sub", made.add("CumSum", "/mask/CumSum", "attention_mask", made.integers("axis", 1)), "one")
    later = made.add(
        "Less",
        "/mask/Less",
        made.add("Unsqueeze", "/mask/own", "position_ids", "two"),
        made.add("Unsqueeze", "/mask/keys", seen, "one"),
    )
    made.constants["low"] = np.array(-1e4, np.float32)
    hidden = made.add("Where", "/mask/Where", made.add("Unsqueeze", "/mask/heads", later, "one"), "low", scores)
    mixed = made.add("MatMul", "/model/mixed/MatMul", made.add("Softmax", "/model/Softmax", hidden, axis=-1), values)
    mixed = made.add("Transpose", "/model/mixed/Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = made.add("Reshape", "/model/mixed/Reshape", mixed, made.integers("join", 0, 0, width))
    x = made.add("Add", "/model/residual/Add", x, made.linear("/model/layers.0/self_attn/o_proj", mixed, width, width))
    if head == "transposed":
        turned = made.add("Transpose", "/lm_head/Transpose", table, perm=[1, 0])
    else:
        turned = made.weight("onnx::head", width, VOCABULARY)
        if head == "copied":
            made.constants[turned] = np.ascontiguousarray(made.constants[table].T)
    made.add("MatMul", "/lm_head/MatMul", x, turned, output="logits")
    cache = ["B", HEADS, "P", width // HEADS]
    model = made.model(
        [
            _value("input_ids", TensorProto.INT64, "B", "S"),
            _value("attention_mask", TensorProto.INT64, "B", "P + S"),
            _value("position_ids", TensorProto.INT64, "B", "S"),
            *(_value(f"past_key_values.0.{part}", TensorProto.FLOAT, *cache) for part in ("key", "value")),
        ],
        [
            _value("logits", TensorProto.FLOAT, "B", "S", VOCABULARY),
            *(_value(f"present.0.{part}", TensorProto.FLOAT, "B", HEADS, "P + S", width // HEADS) for part in ("key", "value")),
        ],
    )
    onnx.save(model, path)
    return path


def encoder(path: Path) -> Path:
    """An encoder of one layer of feed-forward, which averages what the mask shows."""
    made = Builder()
    x = made.add("Gather", "/embeddings/Gather", made.weight("embed.weight", VOCABULARY, WIDTH), "input_ids")
    shown = made.add("Cast", "/mask/Cast", "attention_mask", to=TensorProto.FLOAT)
    x = made.add("Mul", "/mask/Mul", x, made.add("Unsqueeze", "/mask/Unsqueeze", shown, made.integers("last", 2)))
    x = made.add("Relu", "/up/Relu", made.linear("/encoder/up", x, WIDTH, 2 * WIDTH))
    made.add("MatMul", "/encoder/down/MatMul", x, made.weight("down", 2 * WIDTH, WIDTH), output="last_hidden_state")
    ids = [_value(name, TensorProto.INT64, "B", "S") for name in ("input_ids", "attention_mask")]
    onnx.save(made.model(ids, [_value("last_hidden_state", TensorProto.FLOAT, "B", "S", WIDTH)]), path)
    return path
