"""What the files of a model hold besides weights, drawn from its small files and its tensors' shapes."""

from __future__ import annotations

import math
import struct
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from hubq.checkpoint import StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import family
from hubq.formats.gguf.pooling import pooling
from hubq.formats.gguf.read import Array, Header, fetch_header
from hubq.formats.gguf.recipe import Model
from hubq.formats.gguf.tensors import Tensor
from hubq.formats.gguf.vocab import Vocab, read_vocab
from hubq.pooling import lost_steps
from hubq.source import read_card

SAMPLING = {"top_k": "sampling_top_k", "top_p": "sampling_top_p", "min_p": "sampling_min_p", "temperature": "sampling_temp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint(ABC):
    """All that a model's files hold but weights: tensors in file order, and what `pairs` gives.

    `task` is what the files are for, one of tasks.TASKS: encoders extract features, whatever head the source has. `left_out`
    are the parts of the source that the files do not hold.
    """

    tensors: list[Tensor]
    model: Model
    task: str = "text-generation"
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """The number of weights in the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""

    @abstractmethod
    def pairs(self) -> tuple[int, bytes]:
        """The number of key-value pairs of a file's header and their bytes, but for those that depend on its level."""

    def header(self) -> Header:
        """The header of a file without weights, but for what depends on its level."""
        count, pairs = self.pairs()
        data = struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, 0, count) + pairs
        return fetch_header(Path("header.gguf"), len(data), lambda start, stop: data[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn(Blueprint):
    """The blueprint of a checkpoint: hyper-parameters, tokenizer, `general.*` metadata."""

    keys: Mapping[str, Any]
    vocab: Vocab
    metadata: gguf.Metadata

    @property
    def has_chat_template(self) -> bool:
        """See Blueprint."""
        return bool(self.vocab.special.chat_template)

    def pairs(self) -> tuple[int, bytes]:
        """See Blueprint. Raises BadSource for values that GGUF has no form for."""
        try:
            return self._pairs()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadSource(f"the model's card, settings or tokenizer hold what no GGUF can: {error}", "correct them") from None

    def _pairs(self) -> tuple[int, bytes]:
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / "header"
            writer = gguf.GGUFWriter(path, self.model.architecture)
            writer.add_type(gguf.GGUFType.MODEL)
            self.metadata.set_gguf_meta_model(writer)
            for key, value in self.keys.items():
                _add(writer, key, value)
            self.vocab.write(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            data = path.read_bytes()
        return struct.unpack_from("<Q", data, 16)[0], data[24:]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied(Blueprint):
    """The blueprint of a model that is a GGUF already: its pairs as they are."""

    raw: tuple[bytes, ...]
    chats: bool

    @property
    def has_chat_template(self) -> bool:
        """See Blueprint."""
        return self.chats

    def pairs(self) -> tuple[int, bytes]:
        """See Blueprint."""
        return len(self.raw), b"".join(self.raw)


def of_checkpoint(repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Drawn:
    """The blueprint of a model from the small files in `folder` and the checkpoint's tensors.

    Raises Unsupported or BadSource for whatever cannot be converted.
    """
    kind = family(config)
    tensors = kind.tensors(config, stored)
    own = kind.keys(config) | (pooling(folder) if kind.encoder else {})
    keys = {f"{kind.gguf}{key}" if key.startswith(".") else key: value for key, value in own.items()}
    modules = [module for module in kind.left_out if any(name.startswith(f"{module}.") for name in stored)]
    model = model_facts(kind.gguf, keys)
    return Drawn(
        tensors=tensors,
        model=model,
        task="feature-extraction" if kind.encoder else "text-generation",
        left_out=(*modules, *(lost_steps(folder) if kind.encoder else ())),
        keys=keys,
        vocab=read_vocab(folder, _size(keys, f"{kind.gguf}.vocab_size")),
        metadata=_metadata(repo, folder, tensors, model.experts),
    )


def model_facts(architecture: str, keys: Mapping[str, Any]) -> Model:
    """What recipes depend on, from a file's hyper-parameters."""
    return Model.read(architecture, lambda key, default: _size(keys, f"{architecture}.{key}", default))


def _size(keys: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = keys.get(key, default)
    if isinstance(value, Array):
        value = value.values(1)
    value = value[0] if isinstance(value, list) and value else value  # of a list by layer llama.cpp's mixes look at the first
    return value if type(value) is int else default


def _metadata(repo: str, folder: Path, tensors: list[Tensor], experts: int) -> gguf.Metadata:
    """What the gguf package makes of the model card, the configs and the repository's name."""
    load = gguf.Metadata
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    try:
        card = dict(read_card((folder / "README.md").read_bytes())) if (folder / "README.md").is_file() else {}
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
