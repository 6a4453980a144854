"""Runs `publish` again and again, and lets a fault befall it at each of its writes in turn.

`python boundaries.py FAULT MODEL FOLDER`: FAULT is "kill", or names of errors of the system, which take turns. A write is what
changes the disk: opening a file for writing, a third of a piece written to a level's file, fsync, rename, link, mkdir, remove.
Every run is a process of its own, forked from one that has all imported. Prints JSON: how many writes there are of which kind,
and what was found that must not be.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hubq import release
from hubq.errors import HubError, HubqError
from hubq.formats import parse_levels
from hubq.formats.gguf import write
from hubq.hub import Folder, folder
from hubq.plan import Request
from hubq.store import Store

EVENTS = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.truncate"}
REPO = "Tiny-Llama-GGUF"
PASSED, FAILED, SURVIVED = 0, 3, 4


def publish(model: Path, root: Path, level: str = "q8_0") -> None:
    """The work itself, without the gate, which writes nothing. The target has a level of before."""
    request = Request(str(model), parse_levels(level), Store(root / "work"), to=str(root / "out"))
    (root / "out").mkdir(parents=True, exist_ok=True)
    release.publish(request)


def strike(root: Path, at: int, fault: str, log: Path) -> None:
    """From now on the write number `at` below `root` fails, and those before it are noted in `log`."""
    count, notes = 0, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def befall(kind: str) -> None:
        nonlocal count
        count += 1
        os.write(notes, f"{kind}\n".encode())
        if count != at:
            return
        if fault == "kill":
            os._exit(137)
        number = getattr(errno, fault.split()[at % len(fault.split())])
        raise OSError(number, os.strerror(number))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes) and os.fsdecode(path).startswith(str(root)):
                befall("open")
        elif event in EVENTS and any(
            os.fsdecode(path).startswith(str(root)) for path in arguments[:2] if isinstance(path, str | bytes | Path)
        ):
            befall(event)

    sync, append = os.fsync, write._Level._write

    def fsync(handle: int) -> None:
        befall("fsync")
        sync(handle)

    def partly(level: Any, data: Any) -> None:
        level._file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 3])
        level._file.flush()
        befall("write")
        level._file.seek(-(memoryview(data).nbytes // 3), os.SEEK_CUR)
        append(level, data)

    os.fsync, write._Level._write = fsync, partly  # type: ignore[method-assign]
    sys.addaudithook(hook)


def struck(model: Path, root: Path, at: int, fault: str, log: Path) -> None:
    strike(root, at, fault, log)
    publish(model, root)


def child(work: Callable[[], None]) -> int:
    """What a forked process ended with."""
    number = os.fork()
    if number == 0:
        status = SURVIVED
        try:
            work()
            status = PASSED
        except (HubqError, OSError):
            status = FAILED
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def content(root: Path) -> dict[str, str]:
    """What a reader of the target sees: the SHA-256 of every file, by path; hidden ones are none of a repository."""
    files = (path for path in sorted((root / "out").rglob("*")) if path.is_file())
    names = {path.relative_to(root / "out").as_posix(): path for path in files}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if "/." not in f"/{name}"}


def unsound(root: Path, before: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What is wrong after a fault: final names in the store without sound content, and a target that is neither old nor new."""
    found = [f"{entry.path.name} in the store is damaged" for entry in Store(root / "work").damaged()]
    with suppress(HubError):  # there is none yet
        Folder(root / "out").snapshot(REPO)  # as readers do, who finish what was begun
    seen = content(root)
    return found if seen in (before, wanted) else [*found, f"the target shows {sorted(seen)}"]


def left(root: Path) -> list[str]:
    """What should not outlive a run."""
    found = [str(entry.path) for entry in Store(root / "work").entries() if entry.unfinished]
    return found + [str(path) for path in (root / "out").iterdir() if path.name.startswith(".")]


def main() -> None:
    fault, model, place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve()
    release.checked = lambda job, planned, made: made  # type: ignore[assignment]
    folder.CHUNK = 1 << 16
    publish(model, place / "before", "q4_0")  # here, so that children find the kernels compiled
    shutil.copytree(place / "before", place / "undisturbed")
    publish(model, place / "undisturbed")
    before, wanted = content(place / "before"), content(place / "undisturbed")
    root, log, faults, at = place / "run", place / "log", [], 0
    kinds: Counter[str] = Counter()
    while sum(kinds.values()) >= at:  # until there is no write left to strike
        at += 1
        shutil.copytree(place / "before", root)
        ended = child(partial(struck, model, root, at, fault, log))
        kinds = Counter(log.read_text().splitlines())
        found = unsound(root, before, wanted)
        if sum(kinds.values()) >= at and (ended != 137 if fault == "kill" else ended not in (FAILED, PASSED)):
            found.append(f"it ended with {ended}")
        if fault != "kill":
            # what cannot be removed stays for the next run to remove
            found += [f"{path} is left" for path in left(root) if not path.endswith(".old")]
        if child(partial(publish, model, root)) != PASSED:
            found.append("it does not go on")
        elif content(root) != wanted:
            found.append("afterwards the bytes differ")
        faults += [f"{at}: {what}" for what in [*found, *(f"{path} is left for ever" for path in left(root))]]
        shutil.rmtree(root)
    print(json.dumps({"writes": sum(kinds.values()), "kinds": kinds, "faults": faults}))


if __name__ == "__main__":
    main()
