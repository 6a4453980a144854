"""What the files of a model hold besides weights, drawn from its small files and its tensors' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from hubq.checkpoint import StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import family
from hubq.formats.gguf.recipe import Model
from hubq.formats.gguf.tensors import Tensor
from hubq.formats.gguf.vocab import Vocab, read_vocab

SAMPLING = {"top_k": "sampling_top_k", "top_p": "sampling_top_p", "min_p": "sampling_min_p", "temperature": "sampling_temp"}


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that a model's files hold but weights: tensors in file order, hyper-parameters, tokenizer, `general.*` metadata.

    `predicts` says whether it is a model of next tokens; encoders are not. `left_out` are the modules of the checkpoint that
    the files do not hold.
    """

    tensors: list[Tensor]
    keys: Mapping[str, Any]
    vocab: Vocab
    metadata: gguf.Metadata
    model: Model
    predicts: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """The number of weights in the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def draw(repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Blueprint:
    """The blueprint of a model from the small files in `folder` and the checkpoint's tensors.

    Raises Unsupported or BadSource for whatever cannot be converted.
    """
    kind = family(config)
    tensors = kind.tensors(config, stored)
    keys = {f"{kind.gguf}{key}" if key.startswith(".") else key: value for key, value in kind.keys(config).items()}

    def size(key: str, default: int = 0) -> int:
        value = keys.get(f"{kind.gguf}.{key}", default)
        return value[0] if isinstance(value, list) else value  # of a list by layer llama.cpp's mixes look at the first

    vocab = read_vocab(folder, size("vocab_size"))
    model = Model(
        layers=size("block_count"),
        heads=size("attention.head_count"),
        kv_heads=size("attention.head_count_kv", size("attention.head_count")),
        experts=size("expert_count"),
        architecture=kind.gguf,
    )
    left_out = tuple(module for module in kind.left_out if any(name.startswith(f"{module}.") for name in stored))
    metadata = _metadata(repo, folder, tensors, model.experts)
    return Blueprint(tensors, keys, vocab, metadata, model, not kind.encoder, left_out)


def _metadata(repo: str, folder: Path, tensors: list[Tensor], experts: int) -> gguf.Metadata:
    """What the gguf package makes of the model card, the configs and the repository's name."""
    load = gguf.Metadata
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    try:
        card = load.load_model_card(folder)
        metadata = load.apply_metadata_heuristic(load(), card, load.load_hf_parameters(folder), Path(repo), total)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSource(f"the model card cannot be read: {error}", "check the front matter of README.md") from None
    sampling = load.load_generation_config(folder)
    for key, name in SAMPLING.items():
        if type(sampling.get(key)) in (int, float) and sampling.get("do_sample", True):
            setattr(metadata, name, sampling[key])
    metadata.name = metadata.name or repo.rsplit("/", 1)[-1]
    expert = sum(math.prod(tensor.shape[1:]) for tensor in tensors if len(tensor.shape) == 3)
    shared = total - sum(math.prod(tensor.shape) for tensor in tensors if len(tensor.shape) == 3)
    metadata.size_label = metadata.size_label or gguf.size_label(total, shared, expert, experts)
    return metadata
