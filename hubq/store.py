"""The work store: finished files and measurements by the key of what made them, so that a second run does only what is missing.

    ROOT/artifacts/KEY/{FILE, record.json}     an Artifact; the folder appears by one rename, complete and fsynced
    ROOT/measurements/KEY-TOKENS.json          a Measurement of so many tokens
    ROOT/speeds/KEY.json                       a Speed
    ROOT/checks/KEY.json                       what the parity gate found of a file
    ROOT/steps/KEY.json                        what a step of a plan made or used, as places below ROOT
    ROOT/manifests/KEY.toml                    a manifest of a plan whose steps are done by other processes
    ROOT/imatrices/KEY/FILE                    an importance matrix; the folder appears as those of artifacts do
    ROOT/conversions/KEY/FILE                  a GGUF that llama.cpp converted, likewise
    ROOT/exports/KEY/model.onnx                a graph in float32 that all ONNX levels are made of, likewise
    ROOT/artifacts/KEY.part/                   being written; left behind by a killed run, wiped by the next

Runs that publish take turns; steps of plans, told apart by their keys, are done side by side, by several machines, too.
A key is the SHA-256 of everything that the content depends on. What is found is checked against its record before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from hubq.disk import sync, write
from hubq.errors import HubqError
from hubq.nouns import Artifact, Check, Estimate, Measurement, RepoFile, Speed, Spread

T = TypeVar("T")

FILES = ("artifacts", "imatrices", "conversions", "exports")
RECORDS = ("measurements", "speeds", "checks", "steps", "manifests")


def default_root() -> Path:
    """Where the store is unless somebody says otherwise: HUBQ_HOME, or hubq in the user's cache folder."""
    if home := os.environ.get("HUBQ_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubq"


def key(facts: Mapping[str, Any]) -> str:
    """The SHA-256 of facts as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(files: Sequence[RepoFile]) -> str:
    """The SHA-256 of what consists of files: that of the only one, or of their hashes in a row."""
    hashes = [str(file.sha256) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """Something kept at `path`: its `kind` is a folder of the store, `name` that of its file, `size` in bytes, `made` seconds
    since 1970; `unfinished` is what a killed run left behind."""

    kind: str
    path: Path
    name: str
    size: int
    made: float
    unfinished: bool


class Store:
    """A work store below `root`. Nothing is written before something is kept.

    `used` are the places below `root` that were found or kept since it was emptied: what another machine needs, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: set[str] = set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out. Raises HubqError where another one is at work here, or the folder cannot be written."""
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise HubqError(
                f"another hubq is working in {self.root}", "wait for it, or give this run a --work-dir of its own"
            ) from None
        except OSError as error:
            raise HubqError(f"cannot write to {self.root}: {error.strerror}", "choose another folder with --work-dir") from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def step_locked(self, key: str) -> Iterator[None]:
        """Wait until no other process does this step."""
        from filelock import FileLock

        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / key)
            lock.acquire()
        except OSError as error:
            raise HubqError(f"cannot write to {self.root}: {error.strerror}", "choose another folder with --work-dir") from None
        try:
            yield
        finally:
            lock.release()

    def artifact(self, key: str, check: bool = True) -> Artifact | None:
        """The finished file of a key, or None.

        With `check` its size and SHA-256 are held against the record, and a damaged one is removed.
        """
        folder = self.root / "artifacts" / key
        artifact = _read(folder / "record.json", lambda facts: _artifact(facts, folder))
        if artifact is None:
            return None
        if _is_sound(artifact, folder, check):
            self.used.add(f"artifacts/{key}")
            return artifact
        if check:
            shutil.rmtree(folder)
        return None

    def aside(self, key: str) -> Path:
        """An empty folder to write the file of a key in."""
        return self._aside(self.root / "artifacts" / key)

    def _aside(self, folder: Path) -> Path:
        aside = folder.with_name(f"{folder.name}.part")
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
        return aside

    def keep(self, artifact: Artifact) -> Artifact:
        """Take over complete, fsynced files from their `aside` folder under their key."""
        folder = self.root / "artifacts" / artifact.key
        write(artifact.path.parent / "record.json", _json({**asdict(artifact), "path": artifact.path.name}))
        self._take_over(artifact.path.parent, folder)
        self.used.add(f"artifacts/{artifact.key}")
        return replace(artifact, path=folder / artifact.path.name)

    def _take_over(self, aside: Path, folder: Path) -> None:
        sync(aside)
        if folder.exists():  # without a record that can be read
            shutil.rmtree(folder)
        os.rename(aside, folder)
        sync(folder.parent)

    def drop(self, key: str) -> None:
        """Delete the artifact of a key: its files are somewhere else now."""
        shutil.rmtree(self.root / "artifacts" / key)

    def file(self, kind: str, key: str) -> Path | None:
        """The file of a key, the first by name, or None; `kind` is "imatrices", "conversions" or "exports"."""
        found = next(iter(sorted((self.root / kind / key).glob("*"))), None)
        if found:
            self.used.add(f"{kind}/{key}")
        return found

    def keep_file(self, kind: str, key: str, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file of a kind, with others beside it if need be, and keep it under a key by its name."""
        folder = self.root / kind / key
        aside = self._aside(folder)
        try:
            write(aside / name)
            for path in aside.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            self._take_over(aside, folder)
            self.used.add(f"{kind}/{key}")
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return folder / name

    def entries(self) -> list[Entry]:
        """All that is kept, and what killed runs left behind, by kind and name."""
        found = []
        for kind in (*FILES, *RECORDS):
            for place in sorted((self.root / kind).glob("*")):
                files = [path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
                shown = [path.name for path in files if path.name != "record.json"] if place.is_dir() else [place.name]
                size = sum(path.stat().st_size for path in files)
                made = max((path.stat().st_mtime for path in files), default=place.stat().st_mtime)
                found.append(Entry(kind, place, min(shown, default=place.name), size, made, place.suffix == ".part"))
        return found

    def damaged(self) -> list[Entry]:
        """The artifacts that are not what their records say, read whole."""
        return [
            entry
            for entry in self.entries()
            if entry.kind == "artifacts" and not entry.unfinished and not self._is_sound(entry)
        ]

    def _is_sound(self, entry: Entry) -> bool:
        found = _read(entry.path / "record.json", lambda facts: _artifact(facts, entry.path))
        return found is not None and _is_sound(found, entry.path, check=True)

    def remove(self, entry: Entry) -> None:
        """Delete what is kept."""
        shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()

    def measurement(self, key: str) -> Measurement | None:
        """The measurement of a key, the one of most tokens, or None."""
        names = [path.name for path in (self.root / "measurements").glob(f"{key}-*.json")]
        found = [(row.tokens, name, row) for name in names if (row := self._record("measurements", name, _measurement, False))]
        if not found:
            return None
        _, name, row = max(found, key=lambda one: one[:2])
        self.used.add(f"measurements/{name}")
        return row

    def keep_measurement(self, key: str, measurement: Measurement) -> None:
        """Write a measurement under its key; one of fewer tokens stays beside it."""
        self._keep("measurements", f"{key}-{measurement.tokens}.json", asdict(measurement))

    def speed(self, key: str) -> Speed | None:
        """The speed of a key, or None."""
        return self._record("speeds", f"{key}.json", _speed)

    def keep_speed(self, key: str, speed: Speed) -> None:
        """Write a speed under its key."""
        self._keep("speeds", f"{key}.json", asdict(speed))

    def checks(self, key: str) -> tuple[Check, ...] | None:
        """What the parity gate found of a file, by its key, or None."""
        return self._record("checks", f"{key}.json", lambda facts: tuple(Check(**check) for check in facts["checks"]))

    def keep_checks(self, key: str, checks: Sequence[Check]) -> None:
        """Write what the parity gate found under its key."""
        self._keep("checks", f"{key}.json", {"checks": [asdict(check) for check in checks]})

    def step(self, key: str) -> dict[str, Any] | None:
        """The record of a step that is done, where all that it names is there: its name, `entries`, and the `machine`."""
        found = self._record("steps", f"{key}.json", dict)
        return found if found and all((self.root / entry).exists() for entry in found["entries"]) else None

    def keep_step(self, key: str, facts: Mapping[str, Any]) -> None:
        """Record that a step is done, by what was used since `used` was emptied."""
        self._keep("steps", f"{key}.json", {**facts, "entries": sorted(self.used)})

    def keep_manifest(self, data: bytes) -> Path:
        """Write a manifest under its SHA-256."""
        path = self.root / "manifests" / f"{hashlib.sha256(data).hexdigest()}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)
        return path

    def _record(self, kind: str, name: str, make: Callable[[dict[str, Any]], T], note: bool = True) -> T | None:
        found = _read(self.root / kind / name, make)
        if found is not None and note:
            self.used.add(f"{kind}/{name}")
        return found

    def _keep(self, kind: str, name: str, facts: Mapping[str, Any]) -> None:
        (self.root / kind).mkdir(parents=True, exist_ok=True)
        write(self.root / kind / name, _json(facts))
        self.used.add(f"{kind}/{name}")


def _is_sound(artifact: Artifact, folder: Path, check: bool) -> bool:
    """Whether the files are there with their sizes; with `check`, whether they have their SHA-256, too."""
    files = [(folder / PurePosixPath(file.path).name, file) for file in artifact.files]
    if not all(path.is_file() and path.stat().st_size == file.size for path, file in files):
        return False
    return not check or all(sha256(path) == file.sha256 for path, file in files)


def _artifact(facts: Mapping[str, Any], folder: Path) -> Artifact:
    parts = tuple(RepoFile(**part) for part in facts["parts"])
    return Artifact(**{**facts, "path": folder / facts["path"], "parts": parts})


def _measurement(facts: Mapping[str, Any]) -> Measurement:
    values = {name: Estimate(**value) for name, value in facts["values"].items()}
    per_window = {name: tuple(means) for name, means in facts["per_window"].items()}
    return Measurement(**{**facts, "values": values, "per_window": per_window})


def _speed(facts: Mapping[str, Any]) -> Speed:
    spreads = {name: Spread(**value) for name, value in facts.items() if isinstance(value, dict)}
    return Speed(**{**facts, **spreads})


def _read(path: Path, make: Callable[[dict[str, Any]], T]) -> T | None:
    """What a record tells, or None where there is none (or one that a crash cut short, or another version of hubq wrote)."""
    try:
        return make(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True).encode()
