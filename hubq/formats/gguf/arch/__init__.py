"""Model families: how a checkpoint in Hub format becomes a GGUF's metadata and tensors. One file per family.

A family file is named after the `model_type` it serves (others are in TWINS) and holds

    ARCHITECTURES: tuple[str, ...]                        # the names in config.json's `architectures` that it converts
    GGUF: str                                             # `general.architecture`
    keys(config) -> dict[str, Any]                        # GGUF key -> value; one that begins with "." gets the prefix `GGUF`
    tensors(config, stored) -> list[Tensor]               # in file order; stored: the checkpoint's tensors by name
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN, StoredTensor, few
from hubq.errors import BadSource, Unsupported

TWINS = {"mistral": "llama"}
MOST = 2**31 - 1  # llama.cpp keeps sizes in 32 bits


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF: `shape` is rows first, as in numpy.

    Its values are those of the checkpoint's tensor in `sources`, row by row in the order `rows` (None: as they are); of
    several, stacked along a new first axis in that order; or, where there are no sources, `values` (float32).
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    values: np.ndarray | None = None


def families() -> list[str]:
    """The `model_type`s that hubq converts."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} | set(TWINS))


def family(config: Mapping[str, Any]) -> ModuleType:
    """The family file for a model. Raises Unsupported by name where there is none, BadSource where config.json does not say."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not (isinstance(architectures, list) and architectures and isinstance(model_type, str) and model_type):
        raise BadSource("config.json names no architecture", "check that the repository holds a transformers model")
    name = TWINS.get(model_type, model_type)
    if model_type in families():
        module = importlib.import_module(f"{__name__}.{name}")
        if architectures[0] in module.ARCHITECTURES:
            return module
    kind = f"{few([str(architectures[0])])} (model type {model_type!r})"
    raise Unsupported(
        f"hubq does not convert {kind} to GGUF; it knows {', '.join(families())}",
        "a new family is one file in hubq/formats/gguf/arch, see CONTRIBUTING.md",
    )


def number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of config.json. Raises BadSource where it is missing (and has no default) or something else."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= MOST:
        raise BadSource(f"config.json: {key} should be a positive whole number, but is {value!r}", AGAIN)
    return value


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number of config.json that float32 can hold. Raises BadSource as `number` does."""
    value: Any = config.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 1e-38 < value < 1e38:
        raise BadSource(f"config.json: {key} should be a positive number, but is {value!r}", AGAIN)
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """A setting of config.json that is on or off, and off where it is missing. Raises BadSource for something else."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadSource(f"config.json: {key} should be true or false, but is {value!r}", AGAIN)
    return bool(value)


def match(
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Hold a checkpoint against the tensors that its config calls for, but for `ignored` ones.

    Raises BadSource naming what is missing, superfluous or misshapen.
    """
    if missing := [name for name in shapes if name not in stored]:
        raise BadSource(f"the checkpoint lacks tensors that config.json calls for: {few(missing)}", AGAIN)
    if extra := sorted(name for name in stored if name not in shapes and not ignored(name)):
        raise BadSource(
            f"the checkpoint holds tensors that this family does not have: {few(extra)}",
            "hubq drops no tensor silently; if the model is of another family, fix `architectures` in config.json",
        )
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise BadSource(f"the tensor {name!r} is {list(stored[name].shape)}, config.json makes it {list(shape)}", AGAIN)
