"""Reading checkpoints: safetensors only, mapped, one slab of rows at a time, never a pickle.

The format is https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header with dtype, shape and
offsets for each tensor, then the data. Everything in a header is checked before anything is allocated for it.

Weights in 8-bit floats (F8_E4M3) are read as the products with the scales of their blocks, which lie beside them in a tensor of
the name behind which "_scale_inv" is added: DeepSeek's format, quant_method "fp8" in transformers.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hubq.errors import BadSource, Unsupported
from hubq.parse import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # as the safetensors library
POINTER = b"version "  # how the text that stands for a large file in a git clone without Git LFS begins
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
WIDTHS |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
# those that weights may have, and their codes in numpy
CODES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"}
SCALE = "_scale_inv"
BLOCK = 128  # rows and columns that share a scale
# how the names of tensors end that old versions of transformers stored, and computes anew
BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attention.masked_bias")
AGAIN = "download the model again, or ask its owner to upload the file again"


def _f8_e4m3() -> np.ndarray:
    """The value of each byte as a float of 4 exponent and 3 mantissa bits, float32 [256]; 127 and 255 are NaN."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    size[bits & 127 == 127] = np.nan
    return np.where(bits < 128, size, -size).astype(np.float32)


_F8_E4M3 = _f8_e4m3()

ReadBytes = Callable[[str, int, int], bytes]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `dtype` as safetensors names it, `shape` in rows first, bytes `start` to `stop` of `path`.

    `scale` is the tensor of the scales of its blocks, if it has them: [rows / BLOCK, columns / BLOCK], rounded up.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: str
    start: int
    stop: int
    scale: StoredTensor | None = None


def shards(paths: Iterable[str], read: Callable[[str], bytes]) -> tuple[str, ...]:
    """The weight files of a repository, from its index if it has one.

    `paths` are all files of the repository, `read` returns a file's bytes. Raises BadSource for a missing shard and for an
    index that cannot be read, Unsupported where there are weights, but no safetensors.
    """
    have = set(paths)
    if INDEX in have:
        wanted = tuple(sorted(set(_weight_map(read(INDEX)).values())))
        if missing := [path for path in wanted if path not in have]:
            raise BadSource(f"{INDEX} names shards that the repository does not hold: {few(missing)}", AGAIN)
        return wanted
    if SINGLE in have:
        return (SINGLE,)
    pickles = sorted(path for path in have if path.endswith((".bin", ".pt", ".pth", ".ckpt")) and "/" not in path)
    if pickles:
        raise Unsupported(
            f"the weights are pickles ({few(pickles)}), and loading a pickle can run code",
            "convert them with https://huggingface.co/spaces/safetensors/convert and try again",
        )
    raise BadSource(f"there are no weights: neither {SINGLE} nor {INDEX}", "check the model's name and revision")


def _weight_map(data: bytes) -> Mapping[str, str]:
    try:
        weight_map = read_json(data)["weight_map"]
        names = list(weight_map.values())
        sound = bool(names) and all(name.endswith(".safetensors") and "/" not in name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise BadSource(f"{INDEX} is not an index of safetensors files", AGAIN)
    return weight_map


def read_header(path: str, size: int, read: ReadBytes) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. `size` is the file's size in bytes; `read(path, start, stop)` returns bytes of it.

    Raises BadSource for anything that the format forbids: truncation, overlap, holes, sizes that do not fit the shape, names
    given twice; Unsupported for a dtype that is not in WIDTHS.
    """
    start = read(path, 0, 8) if size >= 8 else b""
    if start == POINTER:
        raise BadSource(f"{path} is a pointer of Git LFS, not the weights that it points to", "git lfs pull")
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise BadSource(f"{path} is not a safetensors file: its header would be {length:,} bytes of a file of {size:,}", AGAIN)
    try:
        header = read_json(read(path, 8, 8 + length), _unique)
    except ValueError as error:
        raise BadSource(f"the header of {path} cannot be read: {error}", AGAIN) from None
    if not isinstance(header, dict):
        raise BadSource(f"the header of {path} is not a table of tensors", AGAIN)
    header.pop("__metadata__", None)
    tensors = [_stored(path, name, entry, 8 + length) for name, entry in header.items()]
    _tile(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is given twice")
    return table


def _stored(path: str, name: str, entry: Any, base: int) -> StoredTensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= 8
        sound = sound and all(type(n) is int and 0 <= n < 2**63 for n in [*shape, start, stop])
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise BadSource(f"{path} describes the tensor {name!r} in a way that the format does not allow", AGAIN)
    if dtype not in WIDTHS:
        raise Unsupported(
            f"the tensor {name!r} in {path} is stored as {dtype}, a type that hubq does not know",
            "quantize from the original, unquantized checkpoint",
        )
    if stop - start != math.prod(shape) * WIDTHS[dtype]:
        raise BadSource(f"{path}: the size of the tensor {name!r} does not fit its shape {shape}", AGAIN)
    return StoredTensor(name, dtype, tuple(shape), path, base + start, base + stop)


def _tile(path: str, tensors: list[StoredTensor], base: int, size: int) -> None:
    """Tensors must cover the data without holes or overlaps, to the last byte."""
    end = base
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            raise BadSource(f"{path}: the tensor {tensor.name!r} does not begin where the one before it ends", AGAIN)
        end = tensor.stop
    if end > size:
        raise BadSource(f"{path} is truncated: its tensors need {end:,} bytes, the file has {size:,}", AGAIN)
    if end < size:
        raise BadSource(f"{path} has {size - end:,} bytes behind its last tensor", AGAIN)


def merge(headers: Iterable[Mapping[str, StoredTensor]], index: bytes | None) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint from its shards' headers, held against the index (its bytes, if there is one).

    Scales are put to their weights. Raises BadSource for a tensor in two shards, and for any difference between the index and
    the shards; Unsupported for 8-bit weights without scales for blocks of BLOCK x BLOCK.
    """
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for name, tensor in header.items():
            if name in tensors:
                raise BadSource(f"the tensor {name!r} is in {tensors[name].path} and in {tensor.path}", AGAIN)
            tensors[name] = tensor
    if index is not None:
        wanted = _weight_map(index)
        if missing := sorted(name for name, path in wanted.items() if name not in tensors or tensors[name].path != path):
            raise BadSource(f"the index promises tensors that the shards do not hold: {few(missing)}", AGAIN)
        if extra := sorted(tensors.keys() - wanted.keys()):
            raise BadSource(f"the shards hold tensors that the index does not name: {few(extra)}", AGAIN)
    return _with_scales(tensors)


def precision(tensors: Mapping[str, StoredTensor]) -> str:
    """The narrowest of the dtypes bf16, f16 and f32 that holds what matrices are stored as."""
    dtypes = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    return "bf16" if dtypes <= {"BF16", "F8_E4M3"} else "f16" if dtypes <= {"F16"} else "f32"


def _with_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name, tensor in found.items():
        if tensor.dtype != "F8_E4M3":
            continue
        scale, wanted = tensors.get(name + SCALE), tuple(-(-count // BLOCK) for count in tensor.shape)
        if scale is None or scale.dtype == "F8_E4M3" or len(wanted) != 2 or scale.shape != wanted:
            raise Unsupported(
                f"the tensor {name!r} is stored as F8_E4M3 without scales for blocks of {BLOCK} x {BLOCK}",
                "quantize from the original, unquantized checkpoint",
            )
        found[name] = replace(tensor, scale=scale)
    lonely = [
        name for name in tensors if name.endswith(SCALE) and getattr(found.get(name.removesuffix(SCALE)), "scale", None) is None
    ]
    return found | {name: tensors[name] for name in lonely}


def few(names: list[str], most: int = 4) -> str:
    """Names for a sentence: the first ones, and how many more there are. Those that could upset a terminal are quoted."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


class Checkpoint:
    """The tensors of a model on disk. Use as a context manager, or call close().

    A shard is mapped when it is first read and let go with its last tensor: hundreds of them need neither memory nor handles.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = dict(tensors)
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._needed = Counter(tensor.path for tensor in tensors.values())

    def read(self, name: str, rows: slice | np.ndarray | None = None, columns: slice = slice(None)) -> np.ndarray:
        """Rows of one tensor as float32, decoded exactly: `rows` (None: all) of a vector's entries, a matrix's rows, or the
        rows of all matrices of a stack, one after another; of matrices only these `columns`."""
        tensor = self.tensors[name]
        raw = np.frombuffer(
            self._map(tensor.path),
            dtype=CODES[tensor.dtype],
            count=math.prod(tensor.shape),
            offset=tensor.start,
        )
        if tensor.scale:
            return self._scaled(tensor, raw.reshape(tensor.shape), slice(None) if rows is None else rows, columns)
        if rows is None:
            raw = raw.reshape(tensor.shape)
        else:
            raw = raw.reshape(-1, tensor.shape[-1])[rows, columns] if len(tensor.shape) > 1 else raw[rows]
        return _float32(raw, tensor.dtype)

    def _scaled(self, tensor: StoredTensor, raw: np.ndarray, rows: slice | np.ndarray, columns: slice) -> np.ndarray:
        """Weights times the scales of their blocks, as transformers' Fp8Dequantize."""
        assert tensor.scale
        scale = np.frombuffer(
            self._map(tensor.scale.path),
            dtype=CODES[tensor.scale.dtype],
            count=math.prod(tensor.scale.shape),
            offset=tensor.scale.start,
        ).reshape(tensor.scale.shape)
        wide = _float32(scale, tensor.scale.dtype)
        row, column = np.arange(tensor.shape[0])[rows] // BLOCK, np.arange(tensor.shape[1])[columns] // BLOCK
        return _F8_E4M3[raw[rows, columns]] * wide[np.ix_(row, column)]

    def _map(self, path: str) -> mmap.mmap:
        with self._lock:
            if path not in self._maps:
                with open(self._folder / path, "rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[path]

    def release(self, name: str) -> None:
        """Say that a tensor will not be read (again): its pages leave memory, and its shard is unmapped if it was the last."""
        tensor = self.tensors[name]
        with self._lock:
            self._needed[tensor.path] -= 1
            mapped = self._maps.get(tensor.path) if self._needed[tensor.path] else self._maps.pop(tensor.path, None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            start = tensor.start - tensor.start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, start, tensor.stop - start)

    def close(self) -> None:
        """Unmap the files. Arrays read before stay valid: they are copies."""
        self._maps.clear()  # each goes with the last array that looks into it

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)


def file_reader(folder: Path) -> ReadBytes:
    """A `read(path, start, stop)` for files below a folder."""

    def read(path: str, start: int, stop: int) -> bytes:
        with open(folder / path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    return read


def open_checkpoint(folder: Path, paths: Iterable[str]) -> Checkpoint:
    """Open the safetensors below `folder`; `paths` are the repository's files.

    Raises what shards, read_header and merge raise.
    """
    have = set(paths)
    read = file_reader(folder)
    names = shards(have, lambda path: (folder / path).read_bytes())
    headers = [read_header(name, (folder / name).stat().st_size, read) for name in names]
    index = (folder / INDEX).read_bytes() if INDEX in have else None
    return Checkpoint(folder, merge(headers, index))
