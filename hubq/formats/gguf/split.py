"""Models in several files: which tensors go where, what the files are called and how each says which part it is.

The rules are those of llama.cpp's tools/gguf-split: `--split-max-size` counts tensors with their padding and no metadata, in
decimal units; the first part holds all metadata, the others only the keys below.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubq.errors import Usage

# key -> the number of its type in GGUF and its code in struct
KEYS = {"general.file_type": (4, "I"), "split.no": (2, "H"), "split.tensors.count": (5, "i"), "split.count": (2, "H")}
UNITS = {"M": 1000**2, "G": 1000**3}
MOST_PARTS = 2**16 - 1

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class PartName:
    """The name of a part, taken apart: `whole` is that of the model in one file, `number` counts from 0."""

    whole: str
    number: int
    count: int


def parse_size(text: str, option: str = "--split-max-size") -> int:
    """The bytes that "300M" or "2G" stand for, which an option was given. Raises Usage for anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([MG])", text)
    if not match:
        raise Usage(f"{option} {text}: no size", "write a whole number and M or G, in decimal units: 300M or 2G")
    return int(match[1]) * UNITS[match[2]]


def parts(sizes: Sequence[int], limit: int) -> list[range]:
    """Which tensors each part holds, as ranges of their indices: one range where all fit into `limit` bytes.

    `sizes` are the tensors' bytes in file order, padding included. A tensor that is larger than the limit by itself makes a
    part of its own; only if it is the first, Usage is raised, as llama-gguf-split refuses that.
    """
    if sizes and sizes[0] > limit:
        least = -(-sizes[0] // UNITS["M"])
        raise Usage(f"the first tensor alone has {sizes[0]:,} bytes, more than a part may", f"--split-max-size {least}M")
    starts, filled = [0], 0
    for i, size in enumerate(sizes):
        filled += size
        if filled > limit:
            starts.append(i)
            filled = size
    if len(starts) > MOST_PARTS:
        raise Usage(f"the model would have {len(starts):,} parts, and GGUF counts to {MOST_PARTS:,}", "allow larger ones")
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def part_name(file_name: str, number: int, count: int) -> str:
    """The name of part `number` (from 0) of `count`: Model-Q8_0.gguf -> Model-Q8_0-00001-of-00003.gguf."""
    return f"{file_name.removesuffix('.gguf')}-{number + 1:05}-of-{count:05}.gguf"


def parse_part(file_name: str) -> PartName | None:
    """What the name of a part says, or None for the name of anything else."""
    match = _PART.fullmatch(file_name)
    number, count = (int(match["number"]), int(match["count"])) if match else (0, 0)
    if match is None or not 1 <= number <= count <= MOST_PARTS:
        return None
    return PartName(f"{match['stem']}.gguf", number - 1, count)


def split_keys(number: int, count: int, tensors: int) -> dict[str, int]:
    """The keys of part `number` (from 0) of `count`, for a model of so many tensors, in file order; they follow all others."""
    return {"split.no": number, "split.tensors.count": tensors, "split.count": count}


def pack_keys(keys: Mapping[str, int]) -> bytes:
    """Keys of KEYS as key-value pairs of a GGUF header."""
    packed = bytearray()
    for key, value in keys.items():
        number, code = KEYS[key]
        packed += struct.pack(f"<Q{len(key)}sI{code}", len(key), key.encode(), number, value)
    return bytes(packed)
