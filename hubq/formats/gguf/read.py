"""Reading GGUF files: the header, held against the file before anything is allocated for it; the weights stay on the disk.

The format is ggml's docs/gguf.md, little-endian, versions 2 and 3; what is refused here is what ggml/src/gguf.cpp refuses.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubq.checkpoint import AGAIN, POINTER, few
from hubq.errors import BadSource
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.split import parse_part, part_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of files without `general.alignment`
MAX_HEADER = 100_000_000  # bytes; the largest vocabularies need a fifth of it
FIRST_FETCH = 8_000_000  # bytes of a header to ask for first
MOST_ENTRIES = 100_000  # keys, or tensors, of one file
MAX_NAME, MAX_DIMENSIONS = 63, 4  # ggml's GGML_MAX_NAME (with a final zero) and GGML_MAX_DIMS
COUNT = 2**63 - 1  # ggml counts weights in 64 bits with a sign

# number of a value's type -> its name in ggml and its code in struct
SCALARS = {0: "u8 B", 1: "i8 b", 2: "u16 H", 3: "i16 h", 4: "u32 I", 5: "i32 i", 6: "f32 f", 7: "bool ?"}
SCALARS |= {10: "u64 Q", 11: "i64 q", 12: "f64 d"}
STRING, ARRAY = 8, 9
U32 = b"\4\0\0\0"  # a type's number as it is stored

# number of a storage type -> name, weights and bytes of a block: all that hubq writes, and what else occurs in files
STORAGE = {kind.number: (kind.name, kind.block, kind.bytes) for kind in TYPES.values()}
STORAGE |= {24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8)}
STORAGE |= {40: ("NVFP4", 64, 36)}


@dataclass(frozen=True, slots=True)
class Array:
    """An array of metadata, still encoded: `kind` is that of its items ("u32", "str"), `data` their bytes as in the file."""

    kind: str
    count: int
    data: bytes

    def values(self, most: int | None = None) -> list[Any]:
        """The items, or the first `most` of them. Bytes that are not UTF-8 become U+FFFD."""
        count = self.count if most is None else min(most, self.count)
        if self.kind != "str":
            code = next(code for kind, code in map(str.split, SCALARS.values()) if kind == self.kind)
            return list(struct.unpack_from(f"<{count}{code}", self.data))
        items, at = [], 0
        for _ in range(count):
            length = int.from_bytes(self.data[at : at + 8], "little")
            items.append(self.data[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        return items


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `shape` is rows first, `type` a storage type's name, `offset` and `size` are bytes of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """A GGUF file without its weights: `size` in bytes, metadata (arrays as Array), tensors in file order.

    `pairs` are the metadata's keys with their values as in the file. `data` is the offset of the first tensor, `alignment`
    what all offsets are multiples of.
    """

    path: Path
    size: int
    version: int
    metadata: dict[str, Any]
    pairs: dict[str, bytes]
    tensors: tuple[StoredTensor, ...]
    data: int
    alignment: int


def read_header(path: Path) -> Header:
    """The header of one file. Raises BadSource, naming the place, for anything that the format forbids; OSError of the disk."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        _version(path.name, file.read(8), size)
        with mmap.mmap(file.fileno(), min(size, MAX_HEADER), access=mmap.ACCESS_READ) as mapped:
            return _parse(path, mapped, size)


def fetch_header(path: Path, size: int, read: Callable[[int, int], bytes]) -> Header:
    """The header of a file of `size` bytes that lies elsewhere; `read(start, stop)` returns bytes of it.

    `path` is what it is called. Raises as read_header, and what `read` raises.
    """
    length = FIRST_FETCH
    while True:
        data = read(0, min(length, size))
        try:
            return _parse(path, data, size)
        except BadSource:
            if length >= min(size, MAX_HEADER):
                raise
        length *= 4


def _parse(path: Path, content: mmap.mmap | bytes, size: int) -> Header:
    """The header of a file of `size` bytes whose beginning is `content`."""
    version = _version(path.name, content[:8], size)
    cursor = _Cursor(path.name, content, min(len(content), MAX_HEADER))
    tensors, keys = cursor.count("tensors"), cursor.count("keys")
    metadata, pairs = _metadata(cursor, keys)
    alignment = _alignment(cursor, metadata, pairs)
    table = [_tensor(cursor, i) for i in range(tensors)]
    data = cursor.at + -cursor.at % alignment
    return Header(path, size, version, metadata, pairs, _placed(path.name, table, data, alignment, size), data, alignment)


def read_set(path: Path) -> tuple[Header, ...]:
    """The headers of all files of a model, of which `path` is the only one or any part; the first holds the metadata.

    Raises BadSource where a part is missing or is none of this model, and what read_header raises.
    """
    given = read_header(path)
    paths = part_paths(given)
    if missing := [part.name for part in paths if not part.is_file()]:
        told = f"{path.name} is one of {len(paths)} parts, and its folder lacks {few(missing)}"
        raise BadSource(told, "put all into one folder")
    parts = tuple(given if part == path else read_header(part) for part in paths)
    check_set(parts)
    return parts


def part_paths(header: Header) -> list[Path]:
    """Where all parts of the model lie of which this is one; a model in one file is its only part. Raises BadSource."""
    path, count = header.path, _whole(header, "split.count") or 1
    if count == 1:
        return [path]
    name = parse_part(path.name)
    if name is None or name.count != count:
        raise BadSource(
            f"{path.name} says that it is one of {count} parts, but not in its name",
            "name all parts as they were published, like Model-00001-of-00003.gguf",
        )
    return [path.with_name(part_name(name.whole, i, count)) for i in range(count)]


def check_set(parts: Sequence[Header]) -> None:
    """Raises BadSource unless parts say which they are, and together hold as many tensors as they promise, each once."""
    if len(parts) == 1:
        return
    for i, part in enumerate(parts):
        if _whole(part, "split.no") != i or _whole(part, "split.count") != len(parts):
            raise BadSource(f"{part.path.name} says in its metadata that it is another part than its name says", AGAIN)
    names = [tensor.name for part in parts for tensor in part.tensors]
    promised = _whole(parts[0], "split.tensors.count")
    if len(names) != promised or len(set(names)) != promised:
        raise BadSource(
            f"the parts of {parts[0].path.name} are not of one model: some tensors are missing or twice there", AGAIN
        )


def _whole(header: Header, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if type(value) is int else None


def _version(file: str, start: bytes, size: int) -> int:
    if start == POINTER:
        raise BadSource(f"{file} is a pointer of Git LFS, not the file that it points to", "git lfs pull")
    if start[:4] != MAGIC or size < 24:
        raise BadSource(f"{file} is not a GGUF file: it does not begin like one", "give the name of a .gguf file")
    version = int.from_bytes(start[4:], "little")
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0:
        raise BadSource(
            f"{file} is a big-endian GGUF file: hubq reads little-endian ones", "look for a little-endian file of this model"
        )
    hint = "take a newer file of this model" if version < min(VERSIONS) else "update hubq"
    raise BadSource(f"{file} is GGUF version {version}: hubq reads {' and '.join(map(str, VERSIONS))}", hint)


class _Cursor:
    """A place in a header; nothing behind `end` is ever read."""

    def __init__(self, file: str, data: mmap.mmap | bytes, end: int) -> None:
        self.file, self.data, self.end = file, data, end
        self.at, self.place = 8, "the counts"

    def fault(self, what: str, hint: str = AGAIN) -> BadSource:
        """The error to raise for what is wrong at this place."""
        return BadSource(f"{self.file} is damaged in {self.place}: {what}", hint)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        left = self.end - self.at
        if size > left:
            raise self.fault(f"it claims {size:,} bytes, and {left:,} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        """The next number, by its code in struct."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> bytes:
        """The next string, behind its length."""
        return self.take(self.number("Q"))

    def count(self, what: str) -> int:
        """How many entries of a kind follow."""
        count = self.number("Q")
        if count > MOST_ENTRIES:
            raise self.fault(f"it would have {count:,} {what}, and {MOST_ENTRIES:,} are the most that hubq reads")
        return count

    def strings(self, count: int) -> bytes:
        """The next `count` strings as they are, lengths included."""
        fault = self.fault(f"its {count:,} strings do not fit into the {self.end - self.at:,} bytes that are left")
        if 8 * count > self.end - self.at:
            raise fault
        at, last, length = self.at, self.end - 8, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                raise fault
            at += 8 + length(self.data, at)[0]
        return self.take(at - self.at)


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    metadata: dict[str, Any] = {}
    pairs: dict[str, bytes] = {}
    for i in range(count):
        cursor.place, start = f"metadata entry {i + 1} of {count}", cursor.at
        key = _text(cursor, cursor.string())
        if not key or key in metadata:
            raise cursor.fault(f"the key {key!r} is given twice" if key else "its key is empty")
        cursor.place = f"the metadata entry {few([key])}"
        metadata[key] = _value(cursor)
        pairs[key] = cursor.data[start : cursor.at]
    return metadata, pairs


def _text(cursor: _Cursor, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise cursor.fault("its name is not UTF-8") from None


def _value(cursor: _Cursor) -> Any:
    kind = cursor.number("I")
    if kind == STRING:
        return cursor.string().decode("utf-8", "replace")
    if kind == ARRAY:
        return _array(cursor)
    return cursor.number(_scalar(cursor, kind)[1])


def _array(cursor: _Cursor) -> Array:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == ARRAY:
        raise cursor.fault(
            "it is an array of arrays, which ggml does not read", "ask its owner for a file that llama.cpp loads"
        )
    if kind == STRING:
        return Array("str", count, cursor.strings(count))
    name, code = _scalar(cursor, kind)
    return Array(name, count, cursor.take(count * struct.calcsize("<" + code)))


def _scalar(cursor: _Cursor, kind: int) -> list[str]:
    if kind not in SCALARS:
        raise cursor.fault(f"there is no type of values with the number {kind}")
    return SCALARS[kind].split()


def _alignment(cursor: _Cursor, metadata: dict[str, Any], pairs: dict[str, bytes]) -> int:
    key = "general.alignment"
    alignment = metadata.get(key, ALIGNMENT)
    stored = pairs[key][8 + len(key) :][:4] if key in pairs else U32
    if stored != U32 or type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        cursor.place = f"the metadata entry {key}"
        raise cursor.fault("it is no power of two, or no u32")
    return alignment


def _tensor(cursor: _Cursor, index: int) -> StoredTensor:
    """The next entry of the tensor table; its offset is still that from the first tensor."""
    cursor.place = f"the description of tensor {index + 1}"
    if (length := cursor.number("Q")) > MAX_NAME:
        raise cursor.fault(f"its name would have {length:,} bytes, and ggml allows {MAX_NAME}")
    name = _text(cursor, cursor.take(length))
    cursor.place = f"the description of the tensor {name!r}"
    if (dimensions := cursor.number("I")) > MAX_DIMENSIONS:
        raise cursor.fault(f"it would have {dimensions:,} dimensions, and ggml knows {MAX_DIMENSIONS}")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))[::-1]
    if math.prod(max(1, length) for length in shape) > COUNT:
        raise cursor.fault(f"its shape {list(shape)} is more than 64 bits can count")
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in STORAGE:
        raise cursor.fault(
            f"hubq knows no storage type with the number {number}", "update hubq, or take another file of the model"
        )
    kind, block, size = STORAGE[number]
    columns = shape[-1] if shape else 1
    if columns % block:
        raise cursor.fault(f"{kind} packs {block} weights at a time, and its rows have {columns:,}")
    return StoredTensor(name, shape, kind, offset, math.prod(shape) // block * size)


def _placed(file: str, table: Sequence[StoredTensor], data: int, alignment: int, size: int) -> tuple[StoredTensor, ...]:
    """The tensors with offsets in the file. They must follow each other in order, padded, each name once, to the file's end."""
    expected, names, placed = 0, set(), []
    for tensor in table:
        if tensor.name in names:
            raise BadSource(f"{file} is damaged: it holds the tensor {tensor.name!r} twice", AGAIN)
        if tensor.offset != expected:
            raise BadSource(f"{file} is damaged: the tensor {tensor.name!r} does not begin where the one before it ends", AGAIN)
        names.add(tensor.name)
        placed.append(StoredTensor(tensor.name, tensor.shape, tensor.type, data + expected, tensor.size))
        expected += tensor.size + -tensor.size % alignment
    if placed and (end := placed[-1].offset + placed[-1].size) > size:
        raise BadSource(f"{file} is truncated: its tensors need {end:,} bytes, the file has {size:,}", AGAIN)
    return tuple(placed)
