"""Importance matrices: the mean square of what every weight column is multiplied with, as llama.cpp collects and stores them.

A file is either a GGUF of `general.type` imatrix (tools/imatrix/imatrix.cpp writes it, common/imatrix-loader.cpp reads it) or
what llama.cpp wrote before 2025: counted names and arrays without a magic number, with the suffix .dat or .imatrix.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hubq.errors import BadSource
from hubq.formats.gguf.read import ALIGNMENT, ARRAY, MAGIC, MAX_NAME, STRING, Array, Header, read_header
from hubq.formats.gguf.tensors import Tensor

if TYPE_CHECKING:
    from hubq.calibrate import Activation
    from hubq.formats import Expected

SUMS, COUNTS = ".in_sum2", ".counts"
KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
MOST = 1 << 25  # values of an entry; 384 experts of 18,432 columns have a fifth of it
UINT32, F32 = 4, 0  # numbers of a value's and of a tensor's type
AGAIN = "download it again, or make one with llama-imatrix or --imatrix auto"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was seen by one tensor: sums of squares, float32 [experts, columns], and tokens, float32 [experts].

    Files may hold one count for all experts, and old ones do: then there is one row of all sums, and old files' are means per
    chunk times chunks.
    """

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix. `file` and `datasets` are base names; `chunks` of `chunk_size` tokens were seen (0: not known)."""

    file: str
    sha256: str
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    entries: Mapping[str, Entry]

    def importance(self, name: str, shape: Sequence[int]) -> np.ndarray | None:
        """The weight of each column's errors, float32 [experts, columns], or None where nothing is known of a tensor.

        `shape` is rows first. Source: load_imatrix in tools/quantize/quantize.cpp: the mean square, and ones for an expert that
        no token reached. Raises BadSource for an entry of another size, except, as llama.cpp does, for token embeddings.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        experts, columns = shape[0] if len(shape) > 2 else 1, shape[-1]
        if entry.sums.size != experts * columns:
            if name in EMBEDDINGS:
                return None
            sizes = f"{entry.sums.size:,} values instead of {experts * columns:,}"
            raise BadSource(
                f"{self.file} is not of this model: for {name!r} it has {sizes}",
                "take the importance matrix of this model, or make one: --imatrix auto",
            )
        counts = entry.counts[:, None]
        means = np.divide(entry.sums, counts, out=np.ones_like(entry.sums), where=counts > 0)
        return means.reshape(experts, columns)


def key_values(imatrix: Imatrix) -> dict[str, str | int]:
    """The metadata that llama-quantize gives a model (strings and uint32); of several data sets it names the first."""
    table: dict[str, str | int] = {"quantize.imatrix.file": imatrix.file}
    if imatrix.datasets:
        table["quantize.imatrix.dataset"] = imatrix.datasets[0]
    table["quantize.imatrix.entries_count"] = len(imatrix.entries)
    if imatrix.chunks:
        table["quantize.imatrix.chunks_count"] = imatrix.chunks
    return table


def read(path: Path) -> Imatrix:
    """The importance matrix of a file in either form. Raises BadSource, naming the file, for one that is damaged or none."""
    try:
        with open(path, "rb") as file:
            read_form = _read_gguf if file.read(4) == MAGIC else _read_legacy
            datasets, chunks, chunk_size, entries = read_form(path, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadSource(f"{path.name} cannot be read: {error.strerror}", "check the name of the importance matrix") from None
    for name, entry in entries.items():
        _check(path.name, name, entry)
    return Imatrix(path.name, digest, tuple(map(_base, datasets)), chunks, chunk_size, dict(sorted(entries.items())))


_Content = tuple[list[str], int, int, dict[str, Entry]]


def _check(file: str, name: str, entry: Entry) -> None:
    for values in (entry.sums, entry.counts):
        if not np.isfinite(values).all() or (values < 0).any():
            what = "sums" if values is entry.sums else "counts"
            raise BadSource(f"{file}: the {what} of {name!r} are not all finite and positive", AGAIN)


def _base(name: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _read_gguf(path: Path, file: BinaryIO) -> _Content:
    header = read_header(path)
    kind = header.metadata.get("general.type", "imatrix")
    if kind != "imatrix":
        raise BadSource(f"{path.name} is a GGUF file of type {kind!r}, not an importance matrix", AGAIN)
    arrays: dict[str, dict[str, np.ndarray]] = {SUMS: {}, COUNTS: {}}
    for tensor in header.tensors:
        name, _, suffix = tensor.name.rpartition(".")
        if f".{suffix}" in arrays:
            if tensor.type != "F32" or not tensor.size:
                raise BadSource(
                    f"{path.name}: {tensor.name!r} should hold F32 values, but is {tensor.type} {tensor.shape}", AGAIN
                )
            if tensor.size > 4 * MOST:
                raise BadSource(f"{path.name}: {tensor.name!r} holds more values than any tensor has", AGAIN)
            arrays[f".{suffix}"][name] = _array(file, tensor.offset, tensor.size // 4)
    sums, counts = arrays[SUMS], arrays[COUNTS]
    if not sums or sums.keys() != counts.keys():
        lone = sorted(sums.keys() ^ counts.keys())
        what = f"the sums and counts of {lone[0]!r} do not come together" if lone else "it has no sums of activations"
        raise BadSource(f"{path.name} is not a sound importance matrix: {what}", AGAIN)
    return *_metadata(header), {name: _entry(path.name, name, sums[name], counts[name]) for name in sums}


def _metadata(header: Header) -> tuple[list[str], int, int]:
    datasets, *numbers = (header.metadata.get(key) for key in KEYS)
    chunks, chunk_size = (n if type(n) is int and 0 <= n < 2**32 else -1 for n in numbers)
    if not (isinstance(datasets, Array) and datasets.kind == "str") or min(chunks, chunk_size) < 0:
        raise BadSource(f"{header.path.name} lacks metadata of an importance matrix: {', '.join(KEYS)}", AGAIN)
    return datasets.values(), chunks, chunk_size


def _entry(file: str, name: str, sums: np.ndarray, counts: np.ndarray) -> Entry:
    if sums.size % counts.size:
        raise BadSource(f"{file}: {name!r} has {sums.size:,} sums and {counts.size:,} counts, which do not fit together", AGAIN)
    return Entry(sums.reshape(counts.size, -1), np.floor(counts.astype(np.float64) + 0.5).astype(np.float32))


def _array(file: BinaryIO, offset: int, count: int) -> np.ndarray:
    file.seek(offset)
    return np.frombuffer(file.read(4 * count), "<f4").astype(np.float32)


def _read_legacy(path: Path, file: BinaryIO) -> _Content:
    source = _Legacy(path.name, file)
    count = source.number()
    if not 0 < count <= source.size // 17:  # bytes of the smallest entry
        raise BadSource(f"{path.name} is not an importance matrix: it does not begin like one", AGAIN)
    entries: dict[str, Entry] = {}
    for _ in range(count):
        name, calls = source.string(1, MAX_NAME), source.number()
        size = source.number()
        if name in entries or calls < 0 or size < 1:
            raise source.fault(f"it has {name!r} twice, or {size:,} values of {calls:,} chunks for it")
        sums = np.frombuffer(source.take(4 * size), "<f4").astype(np.float32)
        entries[name] = Entry(sums[None], np.array([max(calls, 1)], np.float32))
    if not source.left:  # the oldest files end here
        return [], 0, 0, entries
    chunks, dataset = max(0, source.number()), source.string(0, source.left)
    if source.left:
        raise source.fault(f"{source.left:,} bytes follow its end")
    return [dataset] if dataset else [], chunks, 0, entries


class _Legacy:
    """A file in the old form, read from front to back; nothing behind its end is ever asked for."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self._file = name, file
        self.size = self.left = os.fstat(file.fileno()).st_size
        file.seek(0)

    def fault(self, what: str) -> BadSource:
        return BadSource(f"{self.name} is not a sound importance matrix: {what}", AGAIN)

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.fault(f"truncated, or none at all: {size:,} bytes should follow, and {self.left:,} do")
        if size > 4 * MOST:
            raise self.fault(f"{size:,} bytes are more than any tensor has")
        self.left -= size
        return self._file.read(size)

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def string(self, least: int, most: int) -> str:
        length = self.number()
        if not least <= length <= most:
            raise self.fault(f"it holds a name of {length:,} bytes")
        return self.take(length).decode("utf-8", "replace")


def collected(tensor: Tensor) -> bool:
    """Whether llama-imatrix collects for a tensor: those of blocks that are multiplied, not embeddings, nor the output."""
    matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not tensor.name.endswith("_norm.weight")
    return matrix and tensor.name.startswith("blk.") and bool(tensor.sources)


def weights(tensors: Iterable[Tensor], head: bool = False) -> list[str]:
    """The checkpoint's tensors whose inputs make an importance matrix of a model, to be given to calibrate.collect."""
    return [source for tensor in chosen(tensors, head) for source in tensor.sources]


def chosen(tensors: Iterable[Tensor], head: bool) -> list[Tensor]:
    """The tensors that an importance matrix covers: what llama-imatrix collects, and with `head` what it collects with
    --process-output: the output matrix, which tied models have as their token embeddings."""
    tensors = list(tensors)
    last = "output.weight" if any(tensor.name == "output.weight" for tensor in tensors) else "token_embd.weight"
    return [tensor for tensor in tensors if collected(tensor) or (head and tensor.name == last)]


def stand_in(wanted: Expected, tensors: Iterable[Tensor], head: bool = False) -> Imatrix:
    """An importance matrix with the entries and metadata of one that is still to be computed, all weights alike."""
    entries = {}
    for tensor in chosen(tensors, head):
        experts, columns = tensor.shape[0] if len(tensor.shape) > 2 else 1, tensor.shape[-1]
        entries[tensor.name] = Entry(np.ones((experts, columns), np.float32), np.ones(experts, np.float32))
    return Imatrix(wanted.file, "", wanted.datasets, wanted.chunks, wanted.chunk_size, entries)


def write_expected(
    wanted: Imatrix, tensors: Iterable[Tensor], activations: Mapping[str, Activation], path: Path, head: bool = False
) -> None:
    """Write the importance matrix that `wanted` stands in for, from what calibrate.collect found."""
    facts = wanted.datasets, wanted.chunks, wanted.chunk_size
    write(from_activations(activations, tensors, path.name, *facts, head), path)


def from_activations(
    activations: Mapping[str, Activation],
    tensors: Iterable[Tensor],
    file: str,
    datasets: Iterable[str],
    chunks: int,
    chunk_size: int,
    head: bool = False,
) -> Imatrix:
    """The importance matrix of a model from the activations of its checkpoint's tensors; the SHA-256 is that of `write`'s file.

    Of paths only base names are kept.
    """
    entries = {}
    for tensor in sorted(chosen(tensors, head), key=lambda tensor: tensor.name):
        parts = [activations[source] for source in tensor.sources]
        entries[tensor.name] = Entry(
            np.concatenate([part.sums for part in parts]),
            np.concatenate([part.counts for part in parts]).astype(np.float32),
        )
    names = tuple(map(_base, datasets))
    made = Imatrix(_base(file), "", names, chunks, chunk_size, entries)
    digest = hashlib.sha256()
    for piece in _encoded(made):
        digest.update(piece)
    return Imatrix(made.file, digest.hexdigest(), names, chunks, chunk_size, entries)


def write(imatrix: Imatrix, path: Path) -> None:
    """Write an importance matrix as a GGUF, byte for byte as llama-imatrix writes it. Raises OSError of the disk."""
    with open(path, "wb") as file:
        file.writelines(_encoded(imatrix))


def _encoded(imatrix: Imatrix) -> Iterator[bytes]:
    """The file from front to back: metadata, the tensor table, then each entry's sums and counts."""
    arrays: dict[str, np.ndarray] = {}
    for name, entry in sorted(imatrix.entries.items()):
        arrays |= {name + SUMS: entry.sums, name + COUNTS: entry.counts[:, None]}
    header = struct.pack("<4sIQQ", MAGIC, 3, len(arrays), 4) + _string("general.type") + _number(STRING) + _string("imatrix")
    header += _string(KEYS[0]) + struct.pack("<IIQ", ARRAY, STRING, len(imatrix.datasets))
    header += b"".join(map(_string, imatrix.datasets))
    for key, value in zip(KEYS[1:], (imatrix.chunks, imatrix.chunk_size), strict=True):
        header += _string(key) + _number(UINT32) + _number(value)
    offset = 0
    for name, array in arrays.items():
        assert len(name.encode()) <= MAX_NAME, name
        shape = array.shape[::-1] if len(array) > 1 else array.shape[1:]  # ggml drops the last dimensions of size 1
        header += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, F32, offset)
        offset += array.nbytes + -array.nbytes % ALIGNMENT
    yield header + bytes(-len(header) % ALIGNMENT)
    for array in arrays.values():
        yield array.astype("<f4").tobytes() + bytes(-array.nbytes % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _number(value: int) -> bytes:
    return struct.pack("<I", value)
