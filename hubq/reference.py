"""The only import of transformers: a causal language model from a config and a stream of weights, the reference.

The model is never read with `from_pretrained`: nothing in a model's repository but its sanitised config and its numbers
reaches transformers, and the same code scores the source and the weights of a quantized file.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from hubq.checkpoint import AGAIN, few, open_checkpoint
from hubq.errors import BadSource, Unsupported
from hubq.nouns import Source

Logits = Callable[[np.ndarray, int], torch.Tensor]

# settings that say how the weights were stored or by what they were written, and have no say in what is computed here
STORAGE = {"model_type", "torch_dtype", "dtype", "transformers_version"}


def source_weights(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a source under their Hub names, decoded to float32 one at a time. Raises what open_checkpoint raises."""
    with open_checkpoint(source.folder, [file.path for file in source.files]) as checkpoint:
        for name in checkpoint.tensors:
            yield name, checkpoint.read(name)


@contextmanager
def load(config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[Logits]:
    """A model that scores token ids in float32, on the GPU if there is one.

    `config` is a sanitised config.json, `tensors` yields (Hub name, float32 array). The callable takes ids [T] and `first`, and
    returns logits [T - 1 - first, V], float32: those at positions first to T - 2, which predict ids first + 1 to T - 1. Raises
    Unsupported for a kind of model that transformers does not have, BadSource for a config or tensors that do not fit it.
    """
    with load_model(config, tensors) as model:
        yield lambda ids, first: _logits(model, ids, first, model.device)


@contextmanager
def load_model(config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[Any]:
    """The transformers model of a config and tensors, in float32, on the GPU if there is one; as `load` says."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("highest")  # no TF32
    logging.set_verbosity_error()
    model = _hollow(config)
    _fill(model, tensors, device)
    try:
        yield model
    finally:
        model.to("meta")  # frees the weights, whoever still holds the model
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def _logits(model: Any, ids: np.ndarray, first: int, device: torch.device) -> torch.Tensor:
    batch = torch.as_tensor(ids, dtype=torch.int64, device=device)[None]
    keep = torch.arange(first, len(ids) - 1, device=device)
    return model(input_ids=batch, use_cache=False, logits_to_keep=keep).logits[0]


def _hollow(config: Mapping[str, Any]) -> Any:
    """The model that a config describes, its parameters without storage, its buffers computed."""
    kind = str(config.get("model_type"))
    settings = {key: value for key, value in config.items() if key not in STORAGE}
    try:
        with _parameters_on_meta():
            described = AutoConfig.for_model(kind, **settings)
            model = AutoModelForCausalLM.from_config(described, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # a config can be wrong in more ways than transformers has names for
        reason = textwrap.shorten(str(error), 200)
        raise Unsupported(
            f"transformers cannot build a causal language model of type {kind!r} from config.json: {reason}",
            "update transformers, or publish without measurements: --no-eval",
        ) from error
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While a model is built, its parameters take no memory and no random numbers; buffers get their values."""
    register = torch.nn.Module.register_parameter

    def hollow(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = hollow  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


# a part of a checkpoint's names -> what transformers calls it
RENAMED = {".block_sparse_moe.": ".mlp."}
# a weight of one expert -> the parameter that holds it for all experts, which half of its rows it is, and of how many
STACKED = {"w1": ("gate_up_proj", 0, 2), "w3": ("gate_up_proj", 1, 2), "w2": ("down_proj", 0, 1)}
STACKED |= {"gate_proj": STACKED["w1"], "up_proj": STACKED["w3"], "down_proj": STACKED["w2"]}
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight")


def place(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, slice] | None] | None:
    """Where a checkpoint's tensor lies in transformers' parameters, given their shapes, or None where it has no place.

    That is a parameter's name and, in one that holds all experts of a layer, the expert and its rows.
    """
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    if name in shapes:
        return name, None
    match = _EXPERT.fullmatch(name)
    stack, part, parts = STACKED.get(match["part"], ("", 0, 1)) if match else ("", 0, 1)
    key = f"{match['experts']}.{stack}" if match else ""
    if match is None or key not in shapes or int(match["number"]) >= shapes[key][0]:
        return None
    rows = shapes[key][1] // parts
    return key, (int(match["number"]), slice(part * rows, (part + 1) * rows))


def _fill(model: Any, tensors: Iterable[tuple[str, np.ndarray]], device: torch.device) -> None:
    """Give every parameter its values; tied ones share them. Raises BadSource for names or shapes that do not fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    empty: dict[str, int] = {}  # parameter of many experts -> its weights that are still to come
    unknown = []
    for name, array in tensors:
        if found := place(name, shapes):
            key, index = found
            _fit(name, array.shape, shapes[key] if index is None else (index[1].stop - index[1].start, shapes[key][2]))
            values = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
            if index is None:
                state[key] = values.to(device)
                continue
            if key not in state:
                state[key], empty[key] = torch.empty(shapes[key], device=device), math.prod(shapes[key])
            state[key][index] = values.to(device)
            empty[key] -= values.numel()
        elif not name.endswith("rotary_emb.inv_freq"):  # a buffer that old versions of transformers stored
            unknown.append(name)
    if unknown:
        raise BadSource(f"transformers' {type(model).__name__} has no parameters of these names: {few(sorted(unknown))}", AGAIN)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights(missing_keys=shapes.keys() - state.keys())
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta or empty.get(name)]
    if missing:
        raise BadSource(f"the weights lack parameters that config.json calls for: {few(missing)}", AGAIN)
    model.to(device)


def _fit(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise BadSource(f"the tensor {name!r} is {list(shape)}, config.json makes it {list(wanted)}", AGAIN)
