"""A work store on a hub: machines that share no disk do the steps of one release through a repository.

The repository holds entries of a store at their places below its root, of every step that is done all that its record names:

    steps/KEY.json             what a step made or used: {"name": ..., "entries": ["artifacts/KEY", "measurements/KEY.json"]}
    artifacts/KEY/FILE ...     the entries
    manifests/KEY/FILE ...     a manifest and the files beside it, for machines that have none; KEY is that of their bytes

A step's record and its entries come in one commit: where there is a record, all is there. Of two machines that made the same
entry the first is kept. What is fetched is checked against the repository's hashes and appears in the store whole.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from hubq.disk import sync
from hubq.errors import BadSource, HubqError, Moved
from hubq.hub import Hub, connect
from hubq.job import Tell
from hubq.nouns import Snapshot
from hubq.plan import Request
from hubq.release import Result, run_steps
from hubq.steps import Step, planned_steps
from hubq.store import key

FOLDERS = ("artifacts", "imatrices", "conversions", "exports")
RECORDS = ("measurements", "speeds", "checks")
PLACE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[0-9a-f]{{64}}|(?:{'|'.join(RECORDS)})/[0-9a-f]{{64}}(?:-[0-9]+)?\.json")
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0)  # seconds to wait at most before a commit that somebody else outran


@dataclass(frozen=True)
class Shared:
    """The repository `repo` of `hub` as the store that machines share; `root` is the store of this one."""

    hub: Hub
    repo: str
    root: Path

    def open(self) -> frozenset[str]:
        """Make sure that the repository is there and can be written; the keys of the steps that are done.

        Raises HubError where it cannot. A new one is private.
        """
        self.hub.check_writable(self.repo)
        self.hub.ensure(self.repo, private=True)
        return self.done()

    def done(self) -> frozenset[str]:
        """The keys of the steps that are done."""
        places = [file.path.split("/") for file in self.hub.head(self.repo).files]
        return frozenset(place[1].removesuffix(".json") for place in places if place[0] == "steps" and len(place) == 2)

    def carry(self, step: str, needs: Sequence[str], run: Callable[[], object]) -> None:
        """Do a step by `run` unless it is done already: fetch what its `needs` made, run it, send what it made."""
        if step not in self.done():
            self.fetch(needs)
            run()
            self.send(step)

    def fetch(self, steps: Sequence[str]) -> None:
        """Bring what steps made or used into the store. Raises HubqError for a step that is not done, BadSource for a record
        that hubq did not write."""
        head = self.hub.head(self.repo)
        for step in steps:
            record = _record(step)
            if not head.file(record):
                raise HubqError(f"{self.repo} does not hold step {step[:12]} that this one needs", "do that step first")
            for entry in read_entries(self.hub.read(head, record), f"{record} of {self.repo}"):
                self._fetch(head, entry)
            self._fetch(head, record)

    def send(self, step: str) -> None:
        """Commit what a step made or used, as its record in the store names it, with the record; nothing if that is there."""
        record = _record(step)
        entries = read_entries((self.root / record).read_bytes(), record)
        for wait in (*WAITS, None):
            head = self.hub.head(self.repo)
            if head.file(record):
                return
            missing = [entry for entry in [*entries, record] if not _below(head, entry)]
            files: dict[str, Path | bytes] = {
                place: self.root / place for entry in missing for place in _files(self.root, entry)
            }
            try:
                self.hub.push(self.repo, files, f"Add step {step[:12]}", head=head)
                return
            except Moved:  # by another machine that sent a step of its own
                if wait is None:
                    raise
                time.sleep(random.uniform(0, wait))

    def send_manifest(self, files: Mapping[str, bytes]) -> str:
        """Commit a manifest and what lies beside it, by their names; returns the folder in the repository."""
        folder = f"manifests/{key({name: data.hex() for name, data in files.items()})}"
        self.hub.push(self.repo, {f"{folder}/{name}": data for name, data in files.items()}, "Add a manifest")
        return folder

    def fetch_manifest(self, folder: str) -> Path:
        """The folder of a manifest that was sent, in the store. Raises HubqError where there is none."""
        head = self.hub.head(self.repo)
        if not re.fullmatch("manifests/[0-9a-f]{64}", folder) or not _below(head, folder):
            raise HubqError(f"{self.repo} holds no manifest {folder}", "check the name, and the repository given with --store")
        self._fetch(head, folder)
        return self.root / folder

    def _fetch(self, head: Snapshot, entry: str) -> None:
        """An entry in the store, whole or not at all. One that is there stays: other steps may be reading it."""
        target = self.root / entry
        if target.exists():
            return
        places = _below(head, entry)
        if not places:
            raise BadSource(
                f"{self.repo} holds no {entry}, which a record there names", "delete the record, and do its step again"
            )
        folder, _ = self.hub.pull(head, places)
        aside = target.with_name(f"{target.name}.{uuid4().hex}.part")
        try:
            for place in places:
                _place(folder / place, aside / place.removeprefix(entry).lstrip("/"))
            os.rename(aside, target)
            sync(target.parent)
        except OSError:
            if not target.exists():  # or another process was faster
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)


def at(place: str, root: Path) -> Shared:
    """The store at `place`, a repository on the Hub as owner/name or a folder that acts as one, and its local `root`."""
    if not place.startswith((".", "/", "~")):
        return Shared(connect(writing=True), place, root)
    folder = Path(place).expanduser().resolve()
    return Shared(connect(folder.parent), folder.name, root)


def run_shared(
    request: Request, keys: Collection[str], tell: Tell, shared: Shared | None = None
) -> tuple[dict[str, Step], dict[str, Result]]:
    """`release.run_steps`, with what the steps need fetched before, and what they made sent afterwards."""
    if shared is None:
        return run_steps(request, keys, tell)
    mine = {step.key: step for step in planned_steps(request)[1] if step.key in keys}
    results: dict[str, Result] = {}
    for step in mine.values():
        run = partial(run_steps, request, [step.key], tell)
        if step.kind == "publish":
            shared.fetch(step.needs)
            results |= run()[1]
        else:
            shared.carry(step.key, step.needs, run)
    return mine, results


def read_entries(data: bytes, name: str) -> tuple[str, ...]:
    """The entries that a step's record names. Raises BadSource where it is none, or leads out of a store."""
    try:
        entries = [str(entry) for entry in json.loads(data)["entries"]]
    except (ValueError, TypeError, KeyError):
        entries = [""]
    if not all(PLACE.fullmatch(entry) for entry in entries):
        raise BadSource(f"{name} is no record of a step", "delete it, and do the step again")
    return tuple(entries)


def _record(step: str) -> str:
    return f"steps/{step}.json"


def _below(head: Snapshot, entry: str) -> list[str]:
    """The files of an entry in the repository."""
    return [file.path for file in head.files if file.path == entry or file.path.startswith(f"{entry}/")]


def _files(root: Path, entry: str) -> list[str]:
    """The files of an entry in the store, by their places below its root."""
    place = root / entry
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path.relative_to(root).as_posix() for path in found if path.is_file()]


def _place(source: Path, target: Path) -> None:
    """A file on disk, durable: a link to what was pulled where the disk is the same, since stores never write into files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
