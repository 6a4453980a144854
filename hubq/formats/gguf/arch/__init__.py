"""Model families: how a checkpoint in Hub format becomes a GGUF's metadata and tensors. One file per family.

A family's file holds MODELS: for each `model_type` of config.json that it converts, a Family. Tables in it say what becomes of
each tensor (see tensors.py), functions which keys describe the model (see hparams.py).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hubq.checkpoint import StoredTensor, few
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Family:
    """How one kind of model is converted.

    `classes` are the names in config.json's `architectures`, `gguf` is `general.architecture`. `keys` maps a config to
    GGUF's keys and values; one that begins with "." gets the prefix `gguf`. `tensors` maps a config and the checkpoint's
    tensors to those of the GGUF, in file order. Both raise BadSource and Unsupported. An `encoder` predicts no next token: what
    it computes are the last hidden states. `left_out` are the modules of the checkpoint that a file does not hold, such as a
    vision tower; people are told.
    """

    classes: tuple[str, ...]
    gguf: str
    keys: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: Callable[[Mapping[str, Any], Mapping[str, StoredTensor]], list[Tensor]]
    encoder: bool = False
    left_out: tuple[str, ...] = ()


@cache
def families() -> dict[str, Family]:
    """What hubq converts, by `model_type`."""
    found: dict[str, Family] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        found |= importlib.import_module(f"{__name__}.{module}").MODELS
    return dict(sorted(found.items()))


def family(config: Mapping[str, Any]) -> Family:
    """The family of a model. Raises Unsupported by name where there is none, BadSource where config.json does not say."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not (isinstance(architectures, list) and architectures and isinstance(model_type, str) and model_type):
        raise BadSource("config.json names no architecture", "check that the repository holds a transformers model")
    known = families()
    if model_type in known and architectures[0] in known[model_type].classes:
        return known[model_type]
    kind = f"{few([str(architectures[0])])} (model type {model_type!r})"
    raise Unsupported(
        f"hubq does not convert {kind} to GGUF; `hubq families` lists what it knows",
        "let llama.cpp convert it: --llama-cpp DIR, a folder with its source; or start from a GGUF in F32, BF16 or F16",
    )
