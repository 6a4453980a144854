"""Writing GGUF files: every level of a model in one pass over its checkpoint.

Sizes are known before the first byte, so a file is its header, then the tensors in order. Each tensor is decoded by slabs of
rows, each slab encoded once per distinct storage type on all cores and appended to every level that wants that type.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from hubq.checkpoint import Checkpoint, StoredTensor
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.arch import Tensor, family
from hubq.formats.gguf.encode import TYPES, encode, overflowed, row_bytes
from hubq.formats.gguf.levels import MIXES
from hubq.formats.gguf.recipe import Model, recipe
from hubq.formats.gguf.vocab import Vocab, read_vocab
from hubq.nouns import Artifact, Recipe

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
SLAB = 1 << 20  # weights decoded at a time by each core: 4 MiB of float32

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that a model's files hold but weights: tensors in file order, hyper-parameters, tokenizer, `general.*` metadata."""

    architecture: str
    tensors: list[Tensor]
    keys: Mapping[str, Any]
    vocab: Vocab
    metadata: gguf.Metadata
    model: Model

    @property
    def weights(self) -> int:
        """The number of weights in the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Layout:
    """One level's file before its weights: its recipe, the bytes up to the first tensor, and the size of the whole."""

    recipe: Recipe
    header: bytes
    size: int


def draw(repo: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Blueprint:
    """The blueprint of a model from the small files in `folder` and the checkpoint's tensors.

    Raises Unsupported or BadSource for whatever cannot be converted.
    """
    module = family(config)
    tensors = module.tensors(config, stored)
    keys = {f"{module.GGUF}{key}" if key.startswith(".") else key: value for key, value in module.keys(config).items()}
    vocab = read_vocab(folder, keys[f"{module.GGUF}.vocab_size"])
    layers, heads = keys[f"{module.GGUF}.block_count"], keys[f"{module.GGUF}.attention.head_count"]
    model = Model(layers, heads, keys[f"{module.GGUF}.attention.head_count_kv"])
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    return Blueprint(module.GGUF, tensors, keys, vocab, _metadata(repo, folder, total), model)


def _metadata(repo: str, folder: Path, weights: int) -> gguf.Metadata:
    """What the gguf package makes of the model card, the configs and the repository's name."""
    load = gguf.Metadata
    try:
        card = load.load_model_card(folder)
        metadata = load.apply_metadata_heuristic(load(), card, load.load_hf_parameters(folder), Path(repo), weights)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSource(f"the model card cannot be read: {error}", "check the front matter of README.md") from None
    sampling = load.load_generation_config(folder)
    for key, name in SAMPLING.items():
        if type(sampling.get(key)) in (int, float) and sampling.get("do_sample", True):
            setattr(metadata, name, sampling[key])
    metadata.name = metadata.name or repo.rsplit("/", 1)[-1]
    metadata.size_label = metadata.size_label or gguf.size_label(weights, weights, 0, 0)
    return metadata


SAMPLING = {"top_k": "sampling_top_k", "top_p": "sampling_top_p", "min_p": "sampling_min_p", "temperature": "sampling_temp"}


def lay_out(blueprint: Blueprint, levels: Sequence[str]) -> dict[str, Layout]:
    """The layout of each level's file."""
    count, keys = _key_values(blueprint)
    layouts = {}
    for level in levels:
        chosen = recipe(level, blueprint.tensors, blueprint.model)
        header = struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, len(blueprint.tensors), count)
        header += keys[:-4] + struct.pack("<I", MIXES[level].file_type) + _tensor_table(blueprint.tensors, chosen)
        header += bytes(-len(header) % ALIGNMENT)
        size = len(header) + sum(_padded(_bytes(tensor, chosen)) for tensor in blueprint.tensors)
        layouts[level] = Layout(chosen, header, size)
    return layouts


def _tensor_table(tensors: Sequence[Tensor], chosen: Recipe) -> bytes:
    """The description of every tensor: name, dimensions with the columns first, type and offset (ggml's docs/gguf.md)."""
    table, offset = bytearray(), 0
    for tensor in tensors:
        name, shape = tensor.name.encode(), tensor.shape
        table += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += struct.pack("<IQ", TYPES[chosen.types[tensor.name]].number, offset)
        offset += _padded(_bytes(tensor, chosen))
    return bytes(table)


def _bytes(tensor: Tensor, chosen: Recipe) -> int:
    return math.prod(tensor.shape[:-1]) * row_bytes(chosen.types[tensor.name], tensor.shape[-1])


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _key_values(blueprint: Blueprint) -> tuple[int, bytes]:
    """The number of key-value pairs and their bytes. The last four are `general.file_type`, all that levels differ in."""
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / "header"
        writer = gguf.GGUFWriter(path, blueprint.architecture)
        writer.add_type(gguf.GGUFType.MODEL)
        blueprint.metadata.set_gguf_meta_model(writer)
        for key, value in blueprint.keys.items():
            _add(writer, key, value)
        blueprint.vocab.write(writer)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(0)
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
    else:
        writer.add_string(key, value)


class _File:
    """A file being written: hashed on the way, complete only after close()."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed by close() or on the way out
        self._hash = hashlib.sha256()
        self.size = 0

    def append(self, data: Any, pad: bool = False) -> None:
        """Write at the end; with `pad` fill up with zeros to where the next tensor may begin."""
        self._file.write(data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        if pad:
            self.append(bytes(-self.size % ALIGNMENT))

    def close(self) -> str:
        """Flush to the disk; returns the SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write(
    blueprint: Blueprint,
    layouts: Mapping[str, Layout],
    checkpoint: Checkpoint,
    paths: Mapping[str, Path],
    progress: Progress = lambda done, total: None,
    threads: int | None = None,
) -> Iterator[Artifact]:
    """Write each level to its new file in `paths`, in one pass; yields an Artifact (without key) for each in the end.

    `progress` is told weights done and weights in all. Raises BadSource for weights that are not finite, Unsupported for
    weights too large for a level's types, OSError of the disk; the files are then incomplete, and the caller's to delete.
    """
    threads = threads or os.cpu_count() or 1
    with ExitStack() as stack:
        files = {level: stack.enter_context(_File(paths[level])) for level in layouts}
        for level, layout in layouts.items():
            files[level].append(layout.header)
        writers = stack.enter_context(ThreadPoolExecutor(threads))
        done, total = 0, blueprint.weights
        for slab, encoded in _encoded(blueprint.tensors, layouts, checkpoint, threads):
            pieces = [encoded[layout.recipe.types[slab.tensor.name]] for layout in layouts.values()]
            list(writers.map(_File.append, files.values(), pieces, repeat(slab.last)))
            if slab.last and slab.tensor.source:
                checkpoint.release(slab.tensor.source)
            done += slab.weights
            progress(done, total)
        digests = list(writers.map(_File.close, files.values()))
        for (level, file), digest in zip(files.items(), digests, strict=True):
            chosen = layouts[level].recipe
            types = dict(Counter(chosen.types.values()))
            yield Artifact(chosen.level, paths[level], file.size, digest, total, types, chosen.fallbacks, key="")


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows `start` to `stop` of a tensor seen as a matrix; `last` ends the tensor."""

    tensor: Tensor
    start: int
    stop: int
    last: bool

    @property
    def weights(self) -> int:
        return (self.stop - self.start) * self.tensor.shape[-1]


def _slabs(tensors: Sequence[Tensor]) -> Iterator[_Slab]:
    for tensor in tensors:
        rows = math.prod(tensor.shape[:-1])
        step = max(1, SLAB // tensor.shape[-1])
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield _Slab(tensor, start, stop, stop == rows)


def _encoded(
    tensors: Sequence[Tensor], layouts: Mapping[str, Layout], checkpoint: Checkpoint, threads: int
) -> Iterator[tuple[_Slab, dict[str, np.ndarray]]]:
    """Every slab in file order with its bytes in each type that a level wants; a few are encoded ahead, on all cores."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[_Slab, Future[dict[str, np.ndarray]]]] = deque()
        try:
            for slab in _slabs(tensors):
                types = {layout.recipe.types[slab.tensor.name] for layout in layouts.values()}
                waiting.append((slab, pool.submit(_encode, slab, types, checkpoint)))
                if len(waiting) > 2 * threads:
                    first, job = waiting.popleft()
                    yield first, job.result()
            while waiting:
                first, job = waiting.popleft()
                yield first, job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(slab: _Slab, types: Iterable[str], checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    rows = _read(slab, checkpoint)
    if not np.isfinite(rows).all():
        raise BadSource(
            f"the tensor {slab.tensor.source!r} holds weights that are not finite (NaN or infinity)",
            "such a model gives no sensible output; ask its owner for a sound checkpoint",
        )
    encoded = {type_name: encode(rows, type_name) for type_name in types}
    for type_name, data in encoded.items():
        if overflowed(data, type_name).size:
            raise Unsupported(
                f"the tensor {slab.tensor.source!r} holds weights too large for {type_name}",
                "leave out the levels that store it so; BF16 and F32 hold any weight",
            )
    return encoded


def _read(slab: _Slab, checkpoint: Checkpoint) -> np.ndarray:
    """A slab's float32 weights [rows, columns], in the order of the GGUF."""
    tensor, columns = slab.tensor, slab.tensor.shape[-1]
    if tensor.values is not None:
        return tensor.values.reshape(-1, columns)[slab.start : slab.stop]
    assert tensor.source is not None
    # a vector is one row of the file, but its entries are the checkpoint's rows
    order = tensor.rows if tensor.rows is not None else slice(None)
    if len(tensor.shape) > 1:
        order = order[slab.start : slab.stop] if isinstance(order, np.ndarray) else slice(slab.start, slab.stop)
    return np.ascontiguousarray(checkpoint.read(tensor.source, order)).reshape(-1, columns)
