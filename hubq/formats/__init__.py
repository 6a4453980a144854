"""Room 1: formats. A format is a module with a few agreed names, found by name in the table below and imported when needed.

LEVELS: dict[str, Level]                                  # best first; the card's order
ALIASES: dict[str, str]                                   # other names of levels
check_kind(config)                                        # raises where it cannot hold this kind of model
draw(repo, folder, config, stored) -> Blueprint           # a model's files but for levels; raises for what cannot be built
plan(blueprint, levels, options) -> Plan                  # early and exact
build(plan, source, paths, progress) -> Iterator[Artifact]
file_name(model, level) -> str
groups(plan, level) -> dict[str, int]                     # bytes by kind of tensor, where that is known
refused(paths, files) -> list[str]                        # what forbids files (path -> level) in a repository of `paths`
read_imatrix(path) -> Imatrix                             # an importance matrix; raises BadSource
calibrated(plan) -> list[str]                             # the checkpoint's tensors whose inputs make one
write_imatrix(plan, activations, path)                    # the matrix that a plan expects, from those inputs
with_imatrix(plan, imatrix) -> Plan
engines(source) -> tuple[str, ...]                        # the ways to run its files here
load(artifact, source, engine, task)                      # context manager: ids -> logits, or what else the task is scored by
RUNTIME: str                                              # the engine that users run
player(path, count)                                       # context manager: a speed.Player in that engine
probe_text() -> str                                       # a short text to check logits on
check(artifacts, source, text, measurements, unmeasured) -> tuple[Check, ...]    # the parity gate: files against their source
beside(plan, source, release) -> dict[str, bytes]         # the small files of a repository
ollama(plan) -> str                                       # what becomes of the chat template in Ollama, see Release.card
cache(plan) -> Cache | None                               # what running a file takes besides it
command(release, file, context) -> str                    # runs a file of the release in a context of so many tokens
usage(release, level) -> str                              # the "Run it" part of the card, of that level if there is one
VERSION: int                                              # raised when the same input gives other bytes
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from hubq.errors import Usage
from hubq.nouns import Level

if TYPE_CHECKING:
    from hubq.formats.gguf.imatrix import Imatrix
    from hubq.formats.gguf.recipe import Custom

FORMATS = {"gguf": "hubq.formats.gguf", "onnx": "hubq.formats.onnx"}


@dataclass(frozen=True, slots=True)
class Words:
    """What a card says of its format: its `title` and the `library` and `tags` of the front matter, what was `checked` of each
    file before it was pushed, and what `fallbacks` are."""

    title: str
    library: str
    tags: tuple[str, ...]
    checked: str
    fallbacks: str


@dataclass(frozen=True, slots=True)
class Expected:
    """An importance matrix that is still to be computed: its file's name, and the text that it will be made from."""

    file: str
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int


@dataclass(frozen=True, slots=True)
class Options:
    """What shapes a file besides its level: the importance matrix, a custom recipe, the most bytes of one file (`split`), what
    turns a model into graphs, the hardware that it is for."""

    imatrix: Imatrix | Expected | None = None
    custom: Custom | None = None
    split: int | None = None
    exporter: str = "auto"
    target: str | None = None


def cores() -> int:
    """How many cores this process may use: at most OMP_NUM_THREADS, where that is set."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(found, int(most)) if most.isdecimal() and int(most) else found


def open_format(name: str) -> ModuleType:
    """A format's module."""
    return importlib.import_module(FORMATS[name])


def levels() -> dict[str, Level]:
    """Every level of every format by its full name, in the order of cards."""
    return {level.id: level for name in FORMATS for level in open_format(name).LEVELS.values()}


EVERY = {"all": "gguf", **{f"{name}:all": name for name in FORMATS}}


def parse_levels(text: str, matrix: bool = False) -> tuple[Level, ...]:
    """The levels that a comma-separated list names, in the order of cards: `q4_k_m,gguf:Q8_0`.

    `all` names those of GGUF that are not special and can be built, `onnx:all` those of ONNX.
    Case does not matter, nor does the format where only one has the name. `matrix` says whether there is an importance matrix.
    Raises Usage for a name that is none, with the nearest ones, and for a level that needs a matrix where there is none.
    """
    known = levels()
    chosen: set[str] = set()
    for name in filter(None, (name.strip() for name in text.split(","))):
        if name.lower() in EVERY:
            chosen |= {
                level.id
                for level in known.values()
                if level.format == EVERY[name.lower()] and not level.special and (matrix or not level.needs_matrix)
            }
        else:
            chosen.add(_find(name, known))
    if not chosen:
        raise Usage("no level is named", "see `hubq levels`")
    found = tuple(level for level in known.values() if level.id in chosen)
    if needy := [level.name for level in found if level.needs_matrix and not matrix]:
        raise Usage(
            f"{' and '.join(needy)} need{'s' * (len(needy) == 1)} an importance matrix",
            "let hubq compute one with --imatrix auto, or give one with --imatrix FILE",
        )
    return found


def _find(name: str, known: dict[str, Level]) -> str:
    import difflib

    wanted = name.lower()
    for format_name in FORMATS:
        aliases = {alias.lower(): level.lower() for alias, level in open_format(format_name).ALIASES.items()}
        prefix, _, last = wanted.rpartition(":")
        if prefix in ("", format_name):
            wanted = f"{prefix}:{aliases.get(last, last)}".removeprefix(":")
    found = [level.id for level in known.values() if wanted in (level.id.lower(), level.name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise Usage(f"the level {name!r} could be {' or '.join(found)}", "write the format before it")
    near = difflib.get_close_matches(wanted.rpartition(":")[2], [level.name.lower() for level in known.values()], 3)
    raise Usage(f"there is no level {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""), "see `hubq levels`")
