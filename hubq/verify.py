"""Does a published release hold what it says? For anybody: its hashes, its record and card, and on request its bytes, built
again from the pinned source, and its numbers, measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hubq import __version__, card
from hubq.checkpoint import few
from hubq.deliver import SUMS
from hubq.errors import BadSource, HubError, Usage
from hubq.hub import Hub, Progress
from hubq.nouns import REFERENCE, Artifact, Measurement, Release, Snapshot
from hubq.record import read_record
from hubq.sign import SIGNATURE, Signer, check, signed
from hubq.source import HUB_ID
from hubq.store import sha256

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
# options of `hubq publish` that shape files; a record may name no others
SHAPING = {"--imatrix", "--calibration", "--calibration-windows", "--seed", "--text-field", "--tensor-type", "--pure"}
SHAPING |= {"--output-tensor-type", "--token-embedding-type", "--split-max-size", "--target", "--exporter"}
# and those that say what was measured
MEASURING = {"--dataset", "--split", "--text-field", "--windows", "--precision", "--seed"}


@dataclass(frozen=True, slots=True)
class Fact:
    """What was found of one thing that a release says: `name` is a file or a level, `what` the claim."""

    name: str
    what: str
    outcome: Literal["true", "false", "not checked"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found of a repository at a commit."""

    repo: str
    commit: str
    facts: tuple[Fact, ...]

    @property
    def failed(self) -> bool:
        """Whether something is not as the release says."""
        return any(fact.outcome == "false" for fact in self.facts)


@dataclass(frozen=True, slots=True)
class Again:
    """How to make files again: `levels` of which to compare bytes, with `measure` their numbers, too.

    `hub` is a folder to take the source from, `model` another place of it, `dataset` the text where it was a local file, and
    `work` the work folder; `llama_cpp` is as in plan.Request.
    """

    levels: tuple[str, ...]
    measure: bool = False
    hub: Path | None = None
    model: str | None = None
    dataset: str | None = None
    work: Path | None = None
    llama_cpp: Path | None = None


def verify(
    hub: Hub,
    repo: str,
    revision: str | None = None,
    remote: bool = False,
    again: Again | None = None,
    progress: Progress | None = None,
    signer: Signer | None = None,
    sources: Hub | None = None,
) -> Report:
    """Check what a repository's release says. With `remote` large files are compared by the hash that the hub lists, and not
    downloaded; with `signer` the signature is checked; `sources` is where the source is looked for, if not there.

    Raises HubError where it cannot be read, BadSource where it has no readable release.json.
    """
    snapshot = hub.snapshot(repo, revision)
    if not snapshot.file("release.json"):
        raise BadSource(f"{repo} has no release.json: hubq did not publish it", "see `hubq audit` for what can be said of it")
    release = read_record(hub.read(snapshot, "release.json"))
    found = [*_listed(snapshot, release), *_sums(hub, snapshot, release), _card(hub, snapshot, release)]
    found += [*_recipes(hub, snapshot, release), *_inputs(sources or hub, release)]
    if signer:
        found.append(_signature(hub, snapshot, release, signer))
    if not remote:
        found += _downloaded(hub, snapshot, release, progress)
    if again:
        found += _again(hub, snapshot, release, again)
    return Report(repo, snapshot.commit, tuple(found))


def _listed(snapshot: Snapshot, release: Release) -> Iterator[Fact]:
    """Every file of release.json is there, with the SHA-256 that it tells."""
    for artifact in release.artifacts:
        for file in artifact.files:
            listed = snapshot.file(file.path)
            if listed is None:
                yield Fact(file.path, "is there", "false", "release.json names it")
            elif listed.sha256 is None:
                yield Fact(file.path, "has the SHA-256 of release.json", "not checked", "the hub lists none")
            else:
                yield _same(file.path, "has the SHA-256 of release.json", listed.sha256, str(file.sha256))


def _same(name: str, what: str, found: str, wanted: str) -> Fact:
    return Fact(name, what, "true") if found == wanted else Fact(name, what, "false", f"it is {found}, and should be {wanted}")


def _sums(hub: Hub, snapshot: Snapshot, release: Release) -> Iterator[Fact]:
    """SHA256SUMS names every file of the release, and what it says of each is so."""
    if not snapshot.file(SUMS):
        yield Fact(SUMS, "is there", "false", "hubq publishes one with every release")
        return
    try:
        sums = read_sums(hub.read(snapshot, SUMS))
    except BadSource as error:
        yield Fact(SUMS, "can be read", "false", error.message)
        return
    for path, wanted in sums.items():
        listed = snapshot.file(path)
        if listed is None:
            yield Fact(path, "is there", "false", f"{SUMS} names it")
        else:
            found = listed.sha256 or hashlib.sha256(hub.read(snapshot, path)).hexdigest()
            yield _same(path, f"has the SHA-256 of {SUMS}", found, wanted)
    files = {"README.md", "release.json", *(file.path for artifact in release.artifacts for file in artifact.files)}
    if missing := sorted(files - sums.keys()):
        yield Fact(SUMS, "names every file of the release", "false", f"it lacks {', '.join(missing)}")


def _signature(hub: Hub, snapshot: Snapshot, release: Release, signer: Signer) -> Fact:
    """The signature is the signer's, and of every file of the release as it is."""
    what = "is the signer's, of every file as it is"
    if not snapshot.file(SIGNATURE):
        return Fact(SIGNATURE, "is there", "false", "the release is not signed")

    def digest(path: str) -> str:
        if (listed := snapshot.file(path)) is None:
            raise BadSource(f"{path} is signed, and not there", "")
        return listed.sha256 or hashlib.sha256(hub.read(snapshot, path)).hexdigest()

    try:
        data = hub.read(snapshot, SIGNATURE)
        check(data, digest, signer)
        files = {SUMS, "README.md", "release.json", *(file.path for one in release.artifacts for file in one.files)}
        missing = sorted(files - signed(data).keys())
    except BadSource as error:
        return Fact(SIGNATURE, what, "false", error.message)
    return Fact(SIGNATURE, what, "false" if missing else "true", f"it lacks {few(missing)}" if missing else "")


def read_sums(data: bytes) -> dict[str, str]:
    """What a file of sha256sum says: path -> SHA-256. Raises BadSource for a line that is none."""
    sums = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not (match := _LINE.fullmatch(line)):
            raise BadSource(f"line {number} of {SUMS} is no hash with a name", "see `sha256sum --help` for how one looks")
        sums[match[2]] = match[1]
    return sums


def _card(hub: Hub, snapshot: Snapshot, release: Release) -> Fact:
    """README.md is what release.json makes."""
    what = "follows from release.json"
    made = release.versions.get("hubq")
    if made != __version__:
        return Fact("README.md", what, "not checked", f"it was written by hubq {made}, and this is {__version__}")
    if not snapshot.file("README.md"):
        return Fact("README.md", "is there", "false")
    wanted = card.readme(release, card.usage(release))
    same = hub.read(snapshot, "README.md") == wanted.encode()
    return Fact("README.md", what, "true" if same else "false", "" if same else "somebody changed it, or other code wrote it")


def _recipes(hub: Hub, snapshot: Snapshot, release: Release) -> Iterator[Fact]:
    """The tensors of GGUF files are stored as release.json tells, by the headers alone."""
    from hubq.formats.gguf.read import fetch_header

    for artifact in release.artifacts:
        files = [file.path for file in artifact.files if snapshot.file(file.path)]
        if not artifact.recipe or len(files) < len(artifact.files):
            continue
        stored: dict[str, str] = {}
        what = "stores its tensors as release.json says"
        try:
            for path in files:
                header = fetch_header(Path(path), snapshot.size(path), partial(hub.read, snapshot, path))
                stored |= {tensor.name: tensor.type for tensor in header.tensors}
        except BadSource as error:
            yield Fact(files[0], what, "false", error.message)
            continue
        off = sorted(name for name in stored.keys() | artifact.recipe if stored.get(name) != artifact.recipe.get(name))
        yield Fact(files[0], what, "false" if off else "true", f"other is {few(off)}" if off else "")


def _inputs(hub: Hub, release: Release) -> Iterator[Fact]:
    """The source still holds, at the pinned commit, the files that were read."""
    if not release.inputs or not HUB_ID.fullmatch(release.source):
        return
    what = f"is what {release.source} holds at {release.commit[:12]}"
    try:
        source = hub.snapshot(release.source, release.commit if len(release.commit) == 40 else None)
    except HubError as error:
        yield Fact("source", "is there", "not checked", error.message)
        return
    for file in release.inputs:
        listed = source.file(file.path)
        if listed is None:
            yield Fact(file.path, what, "false", "it is not there")
        elif listed.sha256:
            yield _same(file.path, what, listed.sha256, str(file.sha256))


def _downloaded(hub: Hub, snapshot: Snapshot, release: Release, progress: Progress | None) -> Iterator[Fact]:
    """The content of every file is what the hub lists."""
    for artifact in release.artifacts:
        for file in artifact.files:
            if not snapshot.file(file.path):
                continue
            try:
                folder, _ = hub.pull(snapshot, [file.path], progress)
                yield _same(file.path, "was downloaded whole", sha256(folder / file.path), str(file.sha256))
            except HubError as error:
                yield Fact(file.path, "was downloaded whole", "false", error.message)


# --- making it again ---


def _again(hub: Hub, snapshot: Snapshot, release: Release, again: Again) -> Iterator[Fact]:
    """The levels, built again from the pinned source by `hubq publish` into a folder, and held against those published."""
    if not again.model and not HUB_ID.fullmatch(release.source):
        raise Usage(f"the release was made of a folder called {release.source}", "name the folder with --source")
    known = {artifact.level: artifact for artifact in release.artifacts}
    for level in _wanted(again.levels, known):
        with tempfile.TemporaryDirectory() as folder:
            yield from _made(hub, snapshot, release, known[level], again, Path(folder))


def _wanted(names: Sequence[str], known: Collection[str]) -> list[str]:
    """The levels that somebody names, in full or without the format. Raises Usage for one that the release does not have."""
    short = {level.partition(":")[2].lower(): level for level in known} | {level.lower(): level for level in known}
    if unknown := [name for name in names if name.lower() not in {"all", *short}]:
        raise Usage(f"the release has no level {unknown[0]}", f"it has {', '.join(known)}")
    return list(known) if "all" in map(str.lower, names) else [short[name.lower()] for name in names]


def _made(hub: Hub, snapshot: Snapshot, release: Release, artifact: Artifact, again: Again, folder: Path) -> Iterator[Fact]:
    (folder / "out").mkdir()
    command = _command(hub, snapshot, release, artifact, again, folder)
    ended = subprocess.run([sys.executable, "-m", "hubq", *command], stdout=subprocess.PIPE, text=True, errors="replace")
    document = json.loads(ended.stdout or "{}")
    if ended.returncode:
        told = document.get("error", {}).get("message", f"hubq publish ended with code {ended.returncode}")
        yield Fact(artifact.level, "can be built again", "false", told)
        return
    record = document["release"]
    yield _same(artifact.level, "was built from the pinned commit", record["source"]["commit"], release.commit)
    (made,) = record["files"]
    yield _same(artifact.level, "has the same bytes when it is built again", made["sha256"], artifact.sha256)
    if again.measure:
        yield from _numbers(release, artifact.level, record)


def _command(hub: Hub, snapshot: Snapshot, release: Release, artifact: Artifact, again: Again, folder: Path) -> list[str]:
    """The arguments of `hubq publish`. What the record says is data of others: only options that are known go on."""
    pinned = f"{release.source}@{release.commit}" if len(release.commit) == 40 else release.source
    options = _only(_words(artifact.options), SHAPING)
    if "--imatrix" in options and artifact.imatrix and options[options.index("--imatrix") + 1] != "auto":
        options[options.index("--imatrix") + 1] = str(_matrix(hub, snapshot, release, artifact.imatrix))
    command = ["publish", again.model or pinned, "--levels", artifact.level, *options, "--to", str(folder / "out")]
    command += ["--work-dir", str(again.work or folder / "work"), "--no-speed", "--no-floor", "--json"]
    command += ["--hub", str(again.hub)] if again.hub else []
    command += ["--llama-cpp", str(again.llama_cpp)] if again.llama_cpp else []
    if not again.measure:
        return [*command, "--no-eval"]
    measured = _only(_words(release.command.replace("{model}", "").replace("{build}", ""))[2:], MEASURING)
    if again.dataset and "--dataset" in measured:
        measured[measured.index("--dataset") + 1] = again.dataset
    return command + measured


def _words(command: str) -> list[str]:
    """A command of the record, word by word. Raises BadSource where a shell could not read it."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BadSource(f"release.json holds a command that no shell reads: {error}", "verify without --rebuild") from None


def _only(words: Sequence[str], known: set[str]) -> list[str]:
    """The options among `words` that are known, each with its value."""
    kept, keeping = [], False
    for word in words:
        if word.startswith("--"):
            keeping = word in known
        if keeping:
            kept.append(word)
    return kept


def _matrix(hub: Hub, snapshot: Snapshot, release: Release, wanted: str) -> Path:
    """The importance matrix that the repository holds."""
    name = next(matrix.file for matrix in release.imatrices if matrix.sha256 == wanted)
    folder, _ = hub.pull(snapshot, [name])
    return folder / name


def _numbers(release: Release, level: str, record: Mapping[str, Any]) -> Iterator[Fact]:
    """Every number lies within the error that the release states."""
    rows = {(row["level"], row["engine"]): row["metrics"] for row in record["measurements"]}
    precision = release.evalset and release.evalset.precision  # then other files had a say in the reference's windows
    for row in release.measurements:
        if row.level != level and (precision or row.level != REFERENCE):
            continue
        found = rows.get((row.level, row.engine))
        if found is None:
            yield Fact(f"{row.level} {row.engine}", "has the same numbers", "not checked", "the engine is not here")
        else:
            yield _within(row, found)


def _within(row: Measurement, found: Mapping[str, Any]) -> Fact:
    name, what = f"{row.level} {row.engine}", "has the same numbers within their errors"
    off = [
        f"{metric} is {found[metric]['value']:.6g}, and was {stated.value:.6g} ± {stated.stderr:.2g}"
        for metric, stated in row.values.items()
        if metric in found
        and not abs(found[metric]["value"] - stated.value) <= max(stated.stderr, 1e-12 + 1e-6 * abs(stated.value))
        if math.isfinite(stated.value)
    ]
    return Fact(name, what, "false" if off else "true", "; ".join(off))
