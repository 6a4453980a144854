"""The only import of transformers: a model from a config and a stream of weights, the reference.

Nothing in a model's repository but its sanitised config and its numbers reaches transformers, and the same code scores the
source and the weights of a quantized file.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import logging

from hubq.affected import refuse_kernels
from hubq.checkpoint import AGAIN, BUFFERS, CODES, few, open_checkpoint, precision
from hubq.errors import BadSource, Unsupported
from hubq.nouns import Source

Logits = Callable[[np.ndarray, int], torch.Tensor]
Rows = Callable[[np.ndarray, np.ndarray], torch.Tensor]

# task of the Hub -> transformers' classes for it
CLASSES = {
    "text-generation": MODEL_FOR_CAUSAL_LM_MAPPING,
    "fill-mask": MODEL_FOR_MASKED_LM_MAPPING,
    "token-classification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "text-classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "text-ranking": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "feature-extraction": MODEL_MAPPING,
}
NAMES = dict.fromkeys(CLASSES, "a classifier") | {
    "text-generation": "a causal language model",
    "fill-mask": "a masked language model",
    "feature-extraction": "an encoder",
}
UNUSED = ("pooler.",)  # of what the last hidden states do not depend on
WITHOUT = "update transformers, or publish without measurements: --no-eval"
# settings that say how the weights were stored or by what they were written, and have no say in what is computed here
STORAGE = {"model_type", "torch_dtype", "dtype", "transformers_version"}


def source_weights(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a source under their Hub names, decoded to float32 one at a time. Raises what open_checkpoint raises."""
    with open_checkpoint(source.folder, [file.path for file in source.files]) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            if tensor.dtype in CODES:  # others are masks and positions that old versions of transformers stored
                yield name, checkpoint.read(name)


def other_dtype(source: Source) -> str:
    """The 16-bit dtype that users of a source compute in: that of its stored weights, bfloat16 where they have 32 bits."""
    with open_checkpoint(source.folder, [file.path for file in source.files]) as checkpoint:
        return "float16" if precision(checkpoint.tensors) == "f16" else "bfloat16"


@contextmanager
def load(config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], dtype: str = "float32") -> Iterator[Logits]:
    """A model that scores token ids, computing in `dtype`, on the GPU if there is one.

    `config` is a sanitised config.json, `tensors` yields (Hub name, float32 array). The callable takes ids [T] and `first`, and
    returns logits [T - 1 - first, V], float32: those at positions first to T - 2, which predict ids first + 1 to T - 1. Raises
    Unsupported for a kind of model that transformers does not have, BadSource for a config or tensors that do not fit it.
    """
    with load_model(config, tensors, dtype=dtype) as model:
        yield lambda ids, first: _logits(model, ids, first, model.device)


@contextmanager
def load_rows(
    config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], task: str, dtype: str = "float32"
) -> Iterator[Rows]:
    """A model of a task other than text generation, computing in `dtype`, on the GPU if there is one.

    The callable takes ids [T] and the numbers of their segments [T], and returns float32 [R, D]: of feature extraction the last
    hidden states, of classifiers the logits, one row for each token or one for all. Raises what `load` raises.
    """
    with load_model(config, tensors, task, dtype) as model:
        accepts = inspect.signature(model.forward).parameters
        yield lambda ids, segments: _rows(model, ids, segments if "token_type_ids" in accepts else None)


@contextmanager
def load_model(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    task: str = "text-generation",
    dtype: str = "float32",
) -> Iterator[Any]:
    """The transformers model of a config and tensors, in `dtype`, on the GPU if there is one; as `load` says."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("highest")  # no TF32
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = _model(config, tensors, task, dtype).to(device)
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
    return model(input_ids=batch, use_cache=False, logits_to_keep=keep).logits[0].float()


@torch.inference_mode()
def _rows(model: Any, ids: np.ndarray, segments: np.ndarray | None) -> torch.Tensor:
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given |= {} if segments is None else {"token_type_ids": segments}
    output = model(
        **{name: torch.as_tensor(value, dtype=torch.int64, device=model.device)[None] for name, value in given.items()}
    )
    found = output.logits if "logits" in output else output.last_hidden_state
    return found.float().reshape(-1, found.shape[-1])


def _model(config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], task: str, dtype: str) -> Any:
    """The model that a config describes, with these weights: transformers' loader knows its checkpoints' names of all times."""
    build, described = describe(config, task)
    state = {
        name: torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
        for name, array in tensors
        if not name.endswith(BUFFERS)
    }
    body = f"{build.base_model_prefix}."
    if task == "feature-extraction" and any(name.startswith(body) for name in state):
        state = {name: tensor for name, tensor in state.items() if name.startswith(body)}  # without a head
    try:
        model, report = build.from_pretrained(
            None,
            config=described,
            state_dict=state,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        raise BadSource(f"transformers cannot put the weights into its {build.__name__}: {_brief(error)}", WITHOUT) from error
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise BadSource(f"the tensor {name!r} is {list(found)}, config.json makes it {list(wanted)}", AGAIN)
    if unknown := sorted(report["unexpected_keys"]):
        raise BadSource(f"transformers' {build.__name__} has no parameters of these names: {few(unknown)}", AGAIN)
    needless = UNUSED if task == "feature-extraction" else ()
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(needless)):
        raise BadSource(f"the weights lack parameters that config.json calls for: {few(missing)}", AGAIN)
    return model.eval()


def describe(config: Mapping[str, Any], task: str = "text-generation") -> tuple[Any, Any]:
    """transformers' class for a task and settings of a sanitised config.json. Raises Unsupported where it has none."""
    refuse_kernels()
    kind = str(config.get("model_type"))
    settings = {key: value for key, value in config.items() if key not in STORAGE}
    try:
        described = AutoConfig.for_model(kind, **settings)
        return CLASSES[task][type(described)], described
    except Exception as error:  # a config can be wrong in more ways than transformers has names for
        raise Unsupported(
            f"transformers cannot build {NAMES[task]} of type {kind!r} from config.json: {_brief(error)}", WITHOUT
        ) from error


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 200)
