"""The files of each level before their weights: recipe, headers and sizes, exact before the first byte is written.

The format is ggml's docs/gguf.md; a level is one file, or several as llama-gguf-split makes them.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from hubq.errors import Usage
from hubq.formats.gguf.blueprint import Blueprint
from hubq.formats.gguf.encode import TYPES, row_bytes
from hubq.formats.gguf.imatrix import Imatrix, key_values
from hubq.formats.gguf.levels import MIXES
from hubq.formats.gguf.recipe import Custom, recipe, unmeasured
from hubq.formats.gguf.split import pack_keys, parts, split_keys
from hubq.formats.gguf.tensors import Tensor
from hubq.nouns import Recipe

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


@dataclass(frozen=True, slots=True)
class Part:
    """One file: `header` is all before its first tensor, `tensors` which ones it holds, `size` the bytes of the whole."""

    header: bytes
    tensors: range
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One level's files. `weighted` says whether an importance matrix has a say in their bytes."""

    recipe: Recipe
    parts: tuple[Part, ...]
    weighted: bool

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(part.size for part in self.parts)


def lay_out(
    blueprint: Blueprint,
    levels: Sequence[str],
    imatrix: Imatrix | None = None,
    custom: Custom | None = None,
    split: int | None = None,
) -> dict[str, Layout]:
    """The layout of each level, in files of `split` bytes at most.

    Raises Usage for a level that needs an importance matrix where there is nothing for a tensor, and what recipe and
    split.parts raise.
    """
    covered = imatrix.entries.keys() if imatrix else None
    pairs = blueprint.pairs()
    keys = {False: _keys(pairs, {}), True: _keys(pairs, key_values(imatrix) if imatrix else {})}
    layouts = {}
    for level in levels:
        chosen = recipe(level, blueprint.tensors, blueprint.model, covered, custom or Custom())
        if lacking := unmeasured(level, chosen, covered):
            raise _unmeasured(level, lacking, imatrix is None)
        weighted = any(TYPES[kind].weighted and name in (covered or ()) for name, kind in chosen.types.items())
        sizes = [_padded(_bytes(tensor, chosen)) for tensor in blueprint.tensors]
        ranges = parts(sizes, split) if split else [range(len(sizes))]
        layouts[level] = Layout(
            chosen, tuple(_part(blueprint, chosen, keys[weighted], ranges, i, sizes) for i in range(len(ranges))), weighted
        )
    return layouts


def _unmeasured(level: str, lacking: Sequence[str], none: bool) -> Usage:
    if none:
        return Usage(f"{level} needs an importance matrix", "add --imatrix auto, or --imatrix FILE")
    return Usage(
        f"{level} needs an importance matrix, and the one given has nothing for {lacking[0]}"
        + (f" and {len(lacking) - 1} more tensors" if len(lacking) > 1 else ""),
        "use a matrix that was made for this model: --imatrix auto",
    )


def _part(
    blueprint: Blueprint, chosen: Recipe, keys: tuple[int, bytes], ranges: Sequence[range], number: int, sizes: Sequence[int]
) -> Part:
    """The number-th of a level's files. The first holds all metadata, as llama.cpp wants it."""
    tensors = [blueprint.tensors[i] for i in ranges[number]]
    count, pairs = keys if number == 0 else (0, b"")
    own = {"general.file_type": MIXES[chosen.level.partition(":")[2]].file_type} if number == 0 else {}
    own |= split_keys(number, len(ranges), len(blueprint.tensors)) if len(ranges) > 1 else {}
    count, pairs = count + len(own), pairs + pack_keys(own)
    header = struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, len(tensors), count) + pairs
    header += _tensor_table(tensors, chosen)
    header += bytes(-len(header) % ALIGNMENT)
    return Part(header, ranges[number], len(header) + sum(sizes[i] for i in ranges[number]))


def _tensor_table(tensors: Sequence[Tensor], chosen: Recipe) -> bytes:
    """The description of every tensor: name, dimensions with the columns first, type and offset."""
    table, offset = bytearray(), 0
    for tensor in tensors:
        name, shape = tensor.name.encode(), tensor.shape
        table += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += struct.pack("<IQ", TYPES[chosen.types[tensor.name]].number, offset)
        offset += _padded(_bytes(tensor, chosen))
    return bytes(table)


def _bytes(tensor: Tensor, chosen: Recipe) -> int:
    return math.prod(tensor.shape[:-1]) * row_bytes(chosen.types[tensor.name], tensor.shape[-1])


# parts of a tensor's name -> what it belongs to; the first that fits counts
GROUPS = (
    ("token_embd", "embeddings"),
    ("_exps", "experts"),
    ("ffn", "feed-forward"),
    ("attn", "attention"),
    ("ssm", "state space"),
    ("output.weight", "output"),
)


def groups(blueprint: Blueprint, layout: Layout) -> dict[str, int]:
    """Bytes of a level's tensors by what they belong to, the largest first; "other" are norms, biases and the like."""
    found: Counter[str] = Counter()
    for tensor in blueprint.tensors:
        matrix = len(tensor.shape) > 1
        name = next((group for part, group in GROUPS if part in tensor.name and matrix), "other")
        found[name] += _bytes(tensor, layout.recipe)
    return dict(found.most_common())


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _keys(pairs: tuple[int, bytes], matrix: Mapping[str, Any]) -> tuple[int, bytes]:
    """The number of key-value pairs and their bytes, but for `general.file_type`."""
    own = {**matrix, "general.quantization_version": gguf.GGML_QUANT_VERSION}
    return pairs[0] + len(own), pairs[1] + b"".join(_pair(key, value) for key, value in own.items())


def _pair(key: str, value: int | str) -> bytes:
    """A key-value pair as in a GGUF header: a string, or a number of 32 bits without a sign."""
    packed = struct.pack("<Q", len(key)) + key.encode()
    if isinstance(value, int):
        return packed + struct.pack("<II", gguf.GGUFValueType.UINT32, value)
    data = value.encode()
    return packed + struct.pack("<IQ", gguf.GGUFValueType.STRING, len(data)) + data
