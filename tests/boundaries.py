"""Runs `publish` again and again, and lets a fault befall it at each of its writes in turn.

`python boundaries.py FAULT MODEL FOLDER`: FAULT is "kill" or the name of an error of the system. A write is what changes the
disk: opening a file for writing, a third of a piece written to a level's file, fsync, rename, link, mkdir, remove. Every run
is a process of its own, forked from one that has all imported. Prints JSON: how many writes there are of which kind, and what
was found that must not be.
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
from pathlib import Path
from typing import Any

from hubq import release
from hubq.errors import HubqError
from hubq.formats import parse_levels
from hubq.formats.gguf import write
from hubq.hub import Folder, folder
from hubq.plan import Request
from hubq.record import read_record
from hubq.store import Store

EVENTS = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.truncate"}
PASSED, FAILED, SURVIVED = 0, 3, 4
Struck = Callable[[str], None]


def publish(model: Path, root: Path) -> None:
    """The work itself, without the gate, which writes nothing."""
    request = Request(str(model), parse_levels("q8_0"), Store(root / "work"), to=str(root / "out"))
    (root / "out").mkdir(parents=True, exist_ok=True)
    release.publish(request)


def strike(root: Path, at: int, fault: str, log: Path) -> None:
    """From now on the write number `at` below `root` fails, and those before it are noted in `log`."""
    count, notes = 0, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def struck(kind: str) -> None:
        nonlocal count
        count += 1
        os.write(notes, f"{kind}\n".encode())
        if count != at:
            return
        if fault == "kill":
            os._exit(137)
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes) and os.fsdecode(path).startswith(str(root)):
                struck("open")
        elif event in EVENTS and any(
            os.fsdecode(path).startswith(str(root)) for path in arguments[:2] if isinstance(path, str | bytes | Path)
        ):
            struck(event)

    sync, append = os.fsync, write._Level._write

    def fsync(handle: int) -> None:
        struck("fsync")
        sync(handle)

    def partly(level: Any, data: Any) -> None:
        level._file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 3])
        level._file.flush()
        struck("write")
        level._file.seek(-(memoryview(data).nbytes // 3), os.SEEK_CUR)
        append(level, data)

    os.fsync, write._Level._write = fsync, partly  # type: ignore[method-assign]
    sys.addaudithook(hook)


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


def unsound(root: Path, wanted: dict[str, str]) -> list[str]:
    """What is wrong after a fault: final names in the store without sound content, and a release that is not whole."""
    found = [f"{entry.path.name} in the store is damaged" for entry in Store(root / "work").damaged()]
    seen = content(root)
    if seen and seen != wanted:
        found.append(f"the target shows {sorted(seen)} of {sorted(wanted)}")
    return found


def main() -> None:
    fault, model, place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve()
    release._check = lambda job, planned, made: made  # type: ignore[assignment]
    folder.CHUNK = 1 << 16
    assert child(lambda: publish(model, place / "undisturbed")) == PASSED
    wanted, log, faults = content(place / "undisturbed"), place / "log", []
    kinds: Counter[str] = Counter()
    for at in range(1, 10_000):
        root = place / "run"
        ended = child(lambda at=at, root=root: (strike(root, at, fault, log), publish(model, root)) and None)  # type: ignore[misc]
        kinds = Counter(log.read_text().splitlines())
        if sum(kinds.values()) < at:
            break  # there are no more writes
        if ended not in {"kill": (137,)}.get(fault, (FAILED, PASSED)):
            faults.append(f"{at}: it ended with {ended}")
        faults += [f"{at}: {what}" for what in unsound(root, wanted)]
        if fault != "kill" and ended == FAILED:
            faults += [f"{at}: {entry.path} is left" for entry in Store(root / "work").entries() if entry.unfinished]
        if child(lambda root=root: publish(model, root)) != PASSED:  # type: ignore[misc]
            faults.append(f"{at}: it does not go on")
        elif content(root) != wanted:
            faults.append(f"{at}: afterwards the bytes differ")
        faults += [f"{at}: {entry.path} is left for ever" for entry in Store(root / "work").entries() if entry.unfinished]
        faults += [f"{at}: {path} is left for ever" for path in (root / "out").iterdir() if path.name.startswith(".")]
        shutil.rmtree(root)
    assert read_record(
        Folder(place / "undisturbed" / "out").read(
            Folder(place / "undisturbed" / "out").snapshot(next(iter(wanted)).split("/")[0]), "release.json"
        )
    )
    print(json.dumps({"writes": sum(kinds.values()), "kinds": kinds, "faults": faults}))


if __name__ == "__main__":
    main()
