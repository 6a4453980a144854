"""Room 1: formats. A format is a module with a few agreed names, found by name in the table below and imported when needed.

LEVELS: dict[str, Level]                                  # best first; the card's order
plan(repo, folder, config, stored, levels) -> Plan        # early and exact; raises for what cannot be built
build(plan, checkpoint, paths, progress) -> Iterator[Artifact]
file_name(model, level) -> str
engines() -> tuple[str, ...]                              # the ways to run its files here, the first always there
load(artifact, source, engine)                            # context manager: ids -> logits
usage(release) -> str                                     # the "Run it" part of the card
VERSION: int                                              # raised when the same input gives other bytes
"""

from __future__ import annotations

import importlib
from types import ModuleType

from hubq.errors import Usage
from hubq.nouns import Level

FORMATS = {"gguf": "hubq.formats.gguf"}


def open_format(name: str) -> ModuleType:
    """A format's module."""
    return importlib.import_module(FORMATS[name])


def levels() -> dict[str, Level]:
    """Every level of every format by its full name, in the order of cards."""
    return {level.id: level for name in FORMATS for level in open_format(name).LEVELS.values()}


def parse_levels(text: str) -> tuple[Level, ...]:
    """The levels that a comma-separated list names, in the order of cards: `q4_k_m,gguf:Q8_0`, or `all`.

    Case does not matter, nor does the format where only one has the name. Raises Usage for a name that is none, with the
    nearest ones.
    """
    known = levels()
    if text.strip().lower() == "all":
        return tuple(known.values())
    chosen = {_find(name.strip(), known) for name in text.split(",") if name.strip()}
    if not chosen:
        raise Usage("no level is named", "see `hubq levels`")
    return tuple(level for level in known.values() if level.id in chosen)


def _find(name: str, known: dict[str, Level]) -> str:
    import difflib

    wanted = name.lower()
    found = [level.id for level in known.values() if wanted in (level.id.lower(), level.name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise Usage(f"the level {name!r} could be {' or '.join(found)}", "write the format before it")
    near = difflib.get_close_matches(wanted, [level.name.lower() for level in known.values()], 3)
    raise Usage(f"there is no level {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""), "see `hubq levels`")
