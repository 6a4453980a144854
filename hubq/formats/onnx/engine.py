"""How an ONNX file scores text: by onnxruntime, as users will run it. The only module that runs graphs.

A graph that is wrong can end the process that loads it, so each file is tried in a fresh one first:

    python -m hubq.formats.onnx.engine FILE
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hubq.errors import HubqError, MissingExtra
from hubq.formats import cores
from hubq.formats.onnx import graph
from hubq.sealed import reason

Logits = Callable[[np.ndarray, int], np.ndarray]
Rows = Callable[[np.ndarray, np.ndarray], np.ndarray]

AGAIN = "build it again in a fresh folder: --work-dir DIR"
EXTRA = 'pip install "hubq[onnx]"'
# in this order; the last one is always there
PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "DmlExecutionProvider")
CPU = "CPUExecutionProvider"
TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16}
ROWS = ("logits", "last_hidden_state")  # the output that is scored of a model that predicts no next tokens
SILENT = 4  # onnxruntime's log: fatal errors only; others are raised as well
TRIAL = 600  # seconds that a trial may take


def providers() -> list[str]:
    """The execution providers that are here, the fastest first."""
    present = _onnxruntime().get_available_providers()
    return [name for name in PROVIDERS if name in present] + [CPU]


@contextmanager
def load(path: Path, threads: int | None = None, providers: list[str] | None = None) -> Iterator[Logits]:
    """A decoder that scores token ids with an empty cache: a callable like that of reference.load.

    It takes ids [T] and `first`, and returns logits [T - 1 - first, V], float32. `threads` are those of one operator (None: as
    many as this process may use); `providers` onnxruntime's execution providers, CPU alone if not given. Raises BadSource
    where the file or its external data is missing, HubqError with onnxruntime's reason where it does not load or run.
    """
    session = open_session(path, threads, providers)
    yield lambda ids, first: _run(session, path, _feeds(session, ids), ["logits"])["logits"][0, first:-1].astype(np.float32)


@contextmanager
def load_rows(path: Path, threads: int | None = None, providers: list[str] | None = None) -> Iterator[Rows]:
    """A model of a task other than text generation: a callable like that of reference.load_rows. Raises as `load`."""
    session = open_session(path, threads, providers)
    present = [port.name for port in session.get_outputs()]
    name = next(name for name in (*ROWS, present[0]) if name in present)

    def run(ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
        found = _run(session, path, _feeds(session, ids, segments=segments), [name])[name]
        return found.reshape(-1, found.shape[-1]).astype(np.float32)

    yield run


def cache_difference(path: Path, ids: np.ndarray, threads: int | None = None) -> float:
    """How far logits with the cache are from those without it, at the worst place: root mean square over the vocabulary, in
    standard deviations of the logits.

    The second half of ids [T] goes through the model one at a time, each with the cache that the ones before it left.
    """
    session, half = open_session(path, threads), len(ids) // 2
    whole = step(session, path, ids)["logits"][0].astype(np.float32)
    found = step(session, path, ids[:half])
    rows = [*found["logits"][0]]
    for place in range(half, len(ids)):
        found = step(session, path, ids[place : place + 1], found, place)
        rows.append(found["logits"][0, 0])
    return float(np.sqrt(((np.stack(rows) - whole) ** 2).mean(-1)).max() / whole.std())


def step(
    session: Any, path: Path, ids: np.ndarray, before: Mapping[str, np.ndarray] | None = None, start: int = 0
) -> dict[str, np.ndarray]:
    """What a decoder gives for ids [T] that `start` others went before; `before` is what it gave for those."""
    past = {name.replace(graph.PRESENT, graph.PAST): value for name, value in (before or {}).items() if name != "logits"}
    return _run(session, path, _feeds(session, ids, past, start))


class _Player:
    """A session as speed.Player has it; `generates` where the graph has a cache."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session, self._path = session, path
        self._given: dict[str, np.ndarray] = {}
        self._count = 0
        self.generates = any(port.name.startswith(graph.PAST) for port in session.get_inputs())

    def feed(self, ids: np.ndarray, fresh: bool) -> None:
        if fresh:
            self._given, self._count = {}, 0
        self._given = step(self._session, self._path, ids, self._given, self._count)
        self._count += len(ids)


def player(path: Path, count: int) -> AbstractContextManager[_Player]:
    """A file in onnxruntime, as speed.Player; it needs no room beforehand. Raises as `load`, when it is entered."""
    _onnxruntime()
    return _player(path)


@contextmanager
def _player(path: Path) -> Iterator[_Player]:
    yield _Player(open_session(path), path)


def load_test(path: Path) -> None:
    """Load a file in a fresh process and run it on two ids. Raises BadSource for missing external data, HubqError with
    onnxruntime's reason for a file that does not load or run, or that ends the process."""
    graph.data_files(path)
    _onnxruntime()
    command = [sys.executable, "-m", "hubq.formats.onnx.engine", str(path.resolve())]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TRIAL)
    except subprocess.TimeoutExpired as error:
        raise HubqError(f"onnxruntime has not loaded {path.name} after {TRIAL} seconds", AGAIN) from error
    if ended.returncode:
        raise HubqError(f"{path.name} does not run: {reason(ended.stderr.strip().splitlines(), ended.returncode)}", AGAIN)


def _try(path: Path) -> None:
    """What the fresh process does."""
    session = open_session(path, None)
    found = _run(session, path, _feeds(session, np.zeros(2, np.int64)))
    if bad := [name for name, value in found.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]:
        raise HubqError(f"{path.name} gives numbers that are not finite: {', '.join(bad)}", AGAIN)


def open_session(path: Path, threads: int | None = None, chosen: list[str] | None = None) -> Any:
    """onnxruntime's session of a file. Raises as `load`."""
    graph.data_files(path)  # onnxruntime would name a path instead of what to do
    api = _onnxruntime()
    options = api.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = SILENT
    try:
        return api.InferenceSession(path, options, providers=chosen or [CPU])
    except Exception as error:  # onnxruntime's errors have no common base
        raise HubqError(f"onnxruntime cannot load {path.name}: {graph.brief(error)}", AGAIN) from error


def _feeds(
    session: Any,
    ids: np.ndarray,
    past: Mapping[str, np.ndarray] | None = None,
    start: int = 0,
    segments: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """A graph's inputs for one sequence of ids [T] that `start` others went before, whose cache is `past`.

    `segments` [T] are the numbers of a pair's texts, zeros if not given.
    """
    count = len(ids)
    known = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, start + count)),
        "position_ids": np.arange(start, start + count)[None],
        "token_type_ids": np.zeros((1, count)) if segments is None else segments[None],
        **(past or {}),
    }
    return {
        port.name: np.asarray(known[port.name] if port.name in known else _empty(port.shape), TYPES[port.type])
        for port in session.get_inputs()
    }


def _empty(shape: list[int | str]) -> np.ndarray:
    """A cache of nothing: one sequence, no positions."""
    return np.zeros([1, *(dim if isinstance(dim, int) else 0 for dim in shape[1:])])


def _run(session: Any, path: Path, feeds: Mapping[str, np.ndarray], wanted: list[str] | None = None) -> dict[str, np.ndarray]:
    names = wanted or [port.name for port in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise HubqError(f"onnxruntime failed on {path.name}: {graph.brief(error)}", AGAIN) from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("the engine onnxruntime is not installed", EXTRA) from error
    return onnxruntime


if __name__ == "__main__":
    try:
        _try(Path(sys.argv[1]))
    except HubqError as error:
        sys.exit(f"{error.message}")
