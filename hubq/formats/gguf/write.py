"""Writing GGUF files: every level of a model in one pass over its checkpoint.

Sizes are known before the first byte, so a file is its header, then its tensors in order. Each tensor is decoded by slabs of
rows, each slab encoded once per distinct storage type on all cores and appended to every level that wants that type.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hubq.checkpoint import Checkpoint
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.blueprint import Blueprint
from hubq.formats.gguf.encode import encode, overflowed
from hubq.formats.gguf.imatrix import Imatrix
from hubq.formats.gguf.layout import ALIGNMENT, Layout
from hubq.formats.gguf.split import part_name
from hubq.formats.gguf.tensors import Tensor
from hubq.nouns import Artifact, RepoFile
from hubq.store import joint_sha256

SLAB = 1 << 20  # weights decoded at a time by each core: 4 MiB of float32

Progress = Callable[[int, int], None]


def write(
    blueprint: Blueprint,
    layouts: Mapping[str, Layout],
    checkpoint: Checkpoint,
    paths: Mapping[str, Path],
    progress: Progress = lambda done, total: None,
    threads: int | None = None,
    imatrix: Imatrix | None = None,
) -> Iterator[Artifact]:
    """Write each level to its new file in `paths`, in one pass; yields an Artifact (without key) for each in the end.

    A level that is split goes into files beside that path, named after it. `progress` is told weights done and weights in all.
    Raises BadSource for weights that are not finite, Unsupported for weights too large for a level's types, OSError of the
    disk; the files are then incomplete, and the caller's to delete.
    """
    threads = threads or os.cpu_count() or 1
    needed = Counter(source for tensor in blueprint.tensors for source in tensor.sources)
    for name in checkpoint.tensors.keys() - needed.keys():
        checkpoint.release(name)
    with ExitStack() as stack:
        levels = {level: stack.enter_context(_Level(paths[level], layout)) for level, layout in layouts.items()}
        writers = stack.enter_context(ThreadPoolExecutor(threads))
        done, total = 0, blueprint.weights
        for slab, encoded in _encoded(_slabs(blueprint.tensors, imatrix), layouts, checkpoint, threads):
            pieces = [encoded[layout.recipe.types[slab.tensor.name]] for layout in layouts.values()]
            list(writers.map(_Level.append, levels.values(), repeat(slab), pieces))
            if slab.ends_source and slab.source:
                needed[slab.source] -= 1
                if not needed[slab.source]:
                    checkpoint.release(slab.source)
            done += slab.weights
            progress(done, total)
        made = list(writers.map(_Level.close, levels.values()))
        for level, files in zip(layouts, made, strict=True):
            weighted = imatrix.sha256 if imatrix and layouts[level].weighted else None
            yield _artifact(layouts[level], paths[level], files, total, weighted)


def _artifact(layout: Layout, path: Path, files: Sequence[RepoFile], weights: int, imatrix: str | None) -> Artifact:
    chosen = layout.recipe
    return Artifact(
        level=chosen.level,
        path=path.with_name(files[0].path),
        size=layout.size,
        sha256=joint_sha256(files),
        weights=weights,
        types=dict(Counter(chosen.types.values())),
        recipe=dict(chosen.types),
        fallbacks=chosen.fallbacks,
        key="",
        parts=tuple(files) if len(files) > 1 else (),
        imatrix=imatrix,
    )


class _Level:
    """The files of a level being written one after another, each hashed on the way and complete only after close()."""

    def __init__(self, path: Path, layout: Layout) -> None:
        count = len(layout.parts)
        names = [part_name(path.name, number, count) if count > 1 else path.name for number in range(count)]
        self._waiting = deque((path.with_name(name), part) for name, part in zip(names, layout.parts, strict=True))
        self._finished: list[RepoFile] = []
        self._begin()

    def _begin(self) -> None:
        self._path, self._part = self._waiting.popleft()
        self._file: BinaryIO = open(self._path, "xb")  # noqa: SIM115 - closed by _finish() or on the way out
        self._hash, self._size = hashlib.sha256(), 0
        self._write(self._part.header)

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._finished.append(RepoFile(self._path.name, self._size, self._hash.hexdigest()))

    def append(self, slab: _Slab, data: np.ndarray) -> None:
        """Write the bytes of the next slab; a tensor is filled up with zeros to where the next one may begin."""
        if slab.index not in self._part.tensors:
            self._finish()
            self._begin()
        self._write(data)
        if slab.last:
            self._write(bytes(-self._size % ALIGNMENT))

    def close(self) -> list[RepoFile]:
        """Flush to the disk; returns the files."""
        self._finish()
        return self._finished

    def __enter__(self) -> _Level:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows `start` to `stop` of the matrix-th matrix of the index-th tensor.

    `source` is the checkpoint's tensor they are from, of which this tensor's last slab `ends_source`; `last` ends the tensor
    itself; `importance` is that of the matrix's columns, float32 [columns].
    """

    index: int
    tensor: Tensor
    matrix: int
    start: int
    stop: int
    source: str | None
    ends_source: bool
    last: bool
    importance: np.ndarray | None

    @property
    def weights(self) -> int:
        return (self.stop - self.start) * self.tensor.shape[-1]


def _slabs(tensors: Sequence[Tensor], imatrix: Imatrix | None) -> Iterator[_Slab]:
    for index, tensor in enumerate(tensors):
        matrices, rows, columns = tensor.matrices
        importance = imatrix.importance(tensor.name, tensor.shape) if imatrix else None
        step = max(1, SLAB // columns)
        for matrix in range(matrices):
            many = len(tensor.sources) > 1
            source = tensor.sources[matrix if many else 0] if tensor.sources else None
            for start in range(0, rows, step):
                stop = min(rows, start + step)
                last = stop == rows and matrix == matrices - 1
                yield _Slab(
                    index,
                    tensor,
                    matrix,
                    start,
                    stop,
                    source,
                    last or (many and stop == rows),
                    last,
                    None if importance is None else importance[matrix if len(importance) > 1 else 0],
                )


def _encoded(
    slabs: Iterable[_Slab], layouts: Mapping[str, Layout], checkpoint: Checkpoint, threads: int
) -> Iterator[tuple[_Slab, dict[str, np.ndarray]]]:
    """Every slab in file order with its bytes in each type that a level wants; a few are encoded ahead, on all cores."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[_Slab, Future[dict[str, np.ndarray]]]] = deque()
        try:
            for slab in slabs:
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
            f"the tensor {slab.source!r} holds weights that are not finite (NaN or infinity), first in {_place(slab, rows)}",
            "such a model gives no sensible output; ask its owner for a sound checkpoint",
        )
    encoded = {type_name: encode(rows, type_name, importance=slab.importance) for type_name in types}
    for type_name, data in encoded.items():
        if overflowed(data, type_name).size:
            raise Unsupported(
                f"the tensor {slab.source!r} holds weights too large for {type_name}",
                "leave out the levels that store it so; BF16 and F32 hold any weight",
            )
    return encoded


def _place(slab: _Slab, rows: np.ndarray) -> str:
    """Where in the checkpoint's tensor the first weight is that is not finite."""
    row, column = (int(n) for n in np.argwhere(~np.isfinite(rows))[0])
    tensor, (_, count, _) = slab.tensor, slab.tensor.matrices
    row += slab.start + (0 if len(tensor.sources) > 1 else slab.matrix * count)
    if tensor.transposed:
        return f"column {row}"
    if count == 1:
        return f"place {column}"
    return f"row {row if tensor.rows is None else int(tensor.rows[row])}"


def _read(slab: _Slab, checkpoint: Checkpoint) -> np.ndarray:
    """A slab's float32 weights [rows, columns], in the order of the GGUF."""
    tensor, (_, rows, columns) = slab.tensor, slab.tensor.matrices
    matrix = 0 if len(tensor.sources) > 1 else slab.matrix
    if slab.source is None:
        assert tensor.values is not None
        return tensor.values.reshape(-1, columns)[matrix * rows + slab.start : matrix * rows + slab.stop]
    if tensor.transposed:
        part = slice(matrix * columns, (matrix + 1) * columns)
        order = part if tensor.rows is None else tensor.rows[part]
        values = checkpoint.read(slab.source, order, slice(slab.start, slab.stop)).T
    else:
        # a vector is one row of the file, but its entries are the checkpoint's rows
        is_vector = len(checkpoint.tensors[slab.source].shape) == 1
        part = slice(None) if is_vector else slice(matrix * rows + slab.start, matrix * rows + slab.stop)
        values = checkpoint.read(slab.source, part if tensor.rows is None else tensor.rows[part])
    values = values + np.float32(tensor.plus) if tensor.plus else values
    return np.ascontiguousarray(values).reshape(-1, columns)
