"""From a checkpoint's tensors to those of a GGUF and back: names, row orders, stacks, as families declare them in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

import gguf
import numpy as np

from hubq.checkpoint import AGAIN, BUFFERS, CODES, StoredTensor, few
from hubq.errors import BadSource, Unsupported

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF: `shape` is rows first, as in numpy.

    Its values are those of the checkpoint's tensor in `sources`, row by row in the order `rows` (None: as they are); of
    several, stacked along a new first axis in that order; or, where there are no sources, `values` (float32). A `transposed`
    one is stored with the columns of each matrix as its rows, which `rows` then counts. `plus` is added to every value.
    `kept` is its storage type where it is never quantized.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    values: np.ndarray | None = None
    transposed: bool = False
    plus: float = 0.0
    kept: str = "F32"

    @property
    def matrices(self) -> tuple[int, int, int]:
        """It as a stack of matrices: how many, their rows and columns. Each of several sources is a matrix of its own."""
        if len(self.sources) > 1:
            return len(self.sources), math.prod(self.shape[1:-1]), self.shape[-1]
        *stack, rows, columns = (1, 1, *self.shape)
        return math.prod(stack), rows, columns


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes of a checkpoint's tensor, or of some of its rows.

    `stored` are its dimensions in the checkpoint and `shape` those in the GGUF (empty: the same, or the other way round if
    `transposed`), as names of sizes or numbers: "query hidden". `name` is that in the GGUF, behind "blk.N." if it is a
    layer's (empty: what gguf's TensorNameMap says). `rows` gives the order of its rows; the rest is as in Tensor.
    """

    stored: str
    name: str = ""
    shape: str = ""
    rows: Callable[[Sizes], np.ndarray] | None = None
    transposed: bool = False
    plus: float = 0.0


Table = Mapping[str, "str | Part | tuple[Part, ...]"]  # Hub name -> dimensions of what is kept as it is, or what becomes of it
EXPERT = "{experts}"  # stands in Hub names for the number of an expert: all are stacked, as those of any other size in braces
_STACKED = re.compile(r"\{(\w+)\}")


def draw(
    architecture: str,
    size: Sizes,
    stored: Mapping[str, StoredTensor],
    first: Table,
    layer: Table | Callable[[int], Table],
    last: Table,
    prefix: str = "model.layers.",
    ignored: Callable[[str], bool] = lambda name: False,
) -> list[Tensor]:
    """The tensors of a GGUF in file order: those of `first`, of each layer (by its number, where they differ), of `last`.

    size["layers"] layers lie under `prefix`; size["experts"] experts are stacked. Raises BadSource where the checkpoint lacks a
    tensor, has one more (but for `ignored` ones) or one of another shape than `size` says; Unsupported for an architecture
    that the installed gguf package does not know.
    """
    if size["layers"] * size.get("experts", 1) > len(stored):
        wanted = f"{size['layers']} layers" + (f" of {size['experts']} experts" if "experts" in size else "")
        raise BadSource(f"config.json calls for {wanted}, the checkpoint holds {len(stored)} tensors", AGAIN)
    tables: list[tuple[str, str, Table]] = [("", "", first)]
    for block in range(size["layers"]):
        tables.append((f"{prefix}{block}.", f"blk.{block}.", layer(block) if callable(layer) else layer))
    tables.append(("", "", last))
    names = name_map(architecture, size["layers"])
    shapes: dict[str, tuple[int, ...]] = {}
    drawn = []
    for before, blk, table in tables:
        for key, value in table.items():
            parts = (Part(value),) if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
            sources = _sources(before + key, size)
            shapes |= dict.fromkeys(sources, _shape(parts[0].stored, size))
            for part in parts:
                name = blk + part.name if part.name else _name(names, before + key)
                drawn.append((name, part, sources, size, bool(_STACKED.search(key))))
    match(shapes, stored, ignored)  # orders of rows are as long as the config says: only now it is known to be true
    return [_tensor(*facts) for facts in drawn]


def name_map(architecture: str, layers: int) -> gguf.TensorNameMap:
    """The gguf package's names for an architecture. Raises Unsupported where it does not know that."""
    for number, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(number, layers)
    raise Unsupported(
        f"the gguf package {metadata.version('gguf')} does not know the architecture {architecture!r}",
        "pip install --upgrade gguf",
    )


def _name(names: gguf.TensorNameMap, key: str) -> str:
    name = names.get_name(key.replace(f"{EXPERT}.", ""), (".weight", ".bias"))
    assert name, f"gguf's TensorNameMap has no name for {key}: name it in the family's table"
    return name


def _sources(key: str, size: Sizes) -> tuple[str, ...]:
    if not (match := _STACKED.search(key)):
        return (key,)
    return tuple(key.replace(match[0], str(number)) for number in range(size[match[1]]))


def _shape(dimensions: str, size: Sizes) -> tuple[int, ...]:
    return tuple(int(word) if word.isdigit() else size[word] for word in dimensions.split())


def _tensor(name: str, part: Part, sources: tuple[str, ...], size: Sizes, stacked: bool) -> Tensor:
    shape = _shape(part.shape or part.stored, size)
    if part.transposed and not part.shape:
        shape = shape[::-1]
    rows = part.rows(size) if part.rows else None
    return Tensor(name, (len(sources), *shape) if stacked else shape, sources, rows, None, part.transposed, part.plus)


def match(
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, StoredTensor],
    ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Hold a checkpoint against the tensors that its config calls for, but for BUFFERS and `ignored` ones.

    Raises BadSource naming what is missing, superfluous or misshapen, Unsupported for weights of an unreadable type.
    """
    if missing := [name for name in shapes if name not in stored]:
        raise BadSource(f"the checkpoint lacks tensors that config.json calls for: {few(missing)}", AGAIN)
    if extra := sorted(name for name in stored if not (name in shapes or name.endswith(BUFFERS) or ignored(name))):
        raise BadSource(
            f"the checkpoint holds tensors that this family does not have: {few(extra)}",
            "hubq drops no tensor silently; if the model is of another family, fix `architectures` in config.json",
        )
    for name, shape in shapes.items():
        if stored[name].dtype not in CODES:
            raise Unsupported(
                f"the tensor {name!r} is stored as {stored[name].dtype}; hubq reads F32, F16, BF16 and F8_E4M3 with scales",
                "quantize from the original, unquantized checkpoint",
            )
        if stored[name].shape != shape:
            raise BadSource(f"the tensor {name!r} is {list(stored[name].shape)}, config.json makes it {list(shape)}", AGAIN)


# --- orders of rows ---


def interleaved(heads: str, head: str = "head") -> Callable[[Sizes], np.ndarray]:
    """For llama.cpp's rotary embedding, which turns neighbours: each head's two halves, side by side, interleaved."""

    def rows(size: Sizes) -> np.ndarray:
        return np.arange(size[heads] * size[head]).reshape(size[heads], 2, -1).swapaxes(1, 2).reshape(-1)

    return rows


def unfused(which: int, of: int = 3, heads: str = "heads", head: str = "head") -> Callable[[Sizes], np.ndarray]:
    """The rows of query, key or value (`which`) where each head's lie behind one another: [heads, of, head]."""

    def rows(size: Sizes) -> np.ndarray:
        return np.arange(size[heads] * of * size[head]).reshape(size[heads], of, -1)[:, which].reshape(-1)

    return rows


def grouped(which: str) -> Callable[[Sizes], np.ndarray]:
    """The rows of "query", "key" or "value" where each key head's lie together: its query heads, itself, its value."""

    def rows(size: Sizes) -> np.ndarray:
        group = size["heads"] // size["kv_heads"]
        of = {"query": slice(group), "key": slice(group, group + 1), "value": slice(group + 1, None)}[which]
        return np.arange(size["query"] + 2 * size["key"]).reshape(size["kv_heads"], group + 2, -1)[:, of].reshape(-1)

    return rows


def joined(*orders: Callable[[Sizes], np.ndarray]) -> Callable[[Sizes], np.ndarray]:
    """One order after another."""
    return lambda size: np.concatenate([order(size) for order in orders])


# --- and back ---


def restore(
    tensors: Iterable[Tensor], stored: Mapping[str, StoredTensor], read: Callable[[Tensor], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors from those of a GGUF, float32, each as soon as it is whole; rows that the GGUF lacks are zeros.

    `read` gives a tensor's values in its shape. Tensors of the checkpoint that the GGUF has nothing of are left out.
    """
    growing: dict[str, tuple[np.ndarray, int]] = {}  # and how many of its rows are there
    for tensor in tensors:
        if not tensor.sources:
            continue
        values = read(tensor) - np.float32(tensor.plus) if tensor.plus else read(tensor)
        for source, array in zip(tensor.sources, values if len(tensor.sources) > 1 else [values], strict=True):
            shape = stored[source].shape
            if tensor.transposed:
                array = array.swapaxes(-1, -2)
            if tensor.rows is None:
                yield source, array.reshape(shape)
                continue
            columns = shape[1:] and shape[-1:]  # as Checkpoint.read counts rows: through all matrices of a stack
            whole, filled = growing.pop(source, (np.zeros(shape, np.float32), 0))
            whole.reshape(-1, *columns)[tensor.rows] = array.reshape(-1, *columns)
            filled += len(tensor.rows)
            if filled == len(whole.reshape(-1, *columns)):
                yield source, whole
            else:
                growing[source] = (whole, filled)
    for source, (whole, _) in growing.items():
        yield source, whole
