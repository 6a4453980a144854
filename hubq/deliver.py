"""A finished release -> one commit: merged with the levels that are there, rendered, summed up and pushed.

Two runs at once end in the union of their levels: the one that comes second reads the new state, merges with that, renders the
card again and pushes again. What release.json lists is there, whole, at every commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from hubq import card
from hubq.compare import ENGINES
from hubq.errors import HubError, Moved
from hubq.formats.checks import check_names
from hubq.hub import Hub
from hubq.hub.files import same, sha256
from hubq.nouns import REFERENCE, Release, Snapshot
from hubq.record import merge, read_record
from hubq.sign import SIGNATURE, signed

TRIES = 32  # each one lost means that another run has finished
SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of it: the release as it is now, with all levels, the files of its card, and the repository's state."""

    release: Release
    card: Mapping[str, bytes]
    snapshot: Snapshot


def deliver(
    hub: Hub,
    repo: str,
    release: Release,
    payload: Mapping[str, Path | bytes],
    module: ModuleType,
    message: str,
    progress: Callable[[str, int, int], None] | None = None,
    delete: Collection[str] = (),
    request: str = "",
    sign: Callable[[Mapping[str, str]], bytes] | None = None,
) -> Delivery:
    """One commit of `payload`, files by their places in the repository, with the card of all levels that are there then.

    The levels in `delete` leave the card, and their files the repository. With `request` the commit goes into the pull request
    of that title. `sign` makes a signature of all files (path -> SHA-256); without it one that is outdated by this commit is
    taken away. Raises HubError where somebody else changed a file of the payload to something else in the meantime,
    GateFailed where a name would lead to another file.
    """
    start = head = hub.head(repo, request)
    for left in reversed(range(TRIES)):
        before = read_record(hub.read(head, "release.json")) if head.file("release.json") else None
        gone = _places(before, head, delete) - payload.keys() if before else set()
        whole = in_order(without(merge(release, before, head) if before else release, delete), module)
        _check_names(whole, {file.path for file in head.files} - gone | payload.keys(), module)
        files = card.files(whole, card.usage(whole))
        hashes = sums(whole, {**payload, **files}, head)
        files[SUMS] = checksums(hashes)
        hashes[SUMS] = sha256(files[SUMS])
        current = signed(hub.read(head, SIGNATURE)) == hashes if head.file(SIGNATURE) else False
        if sign and not current:
            files[SIGNATURE] = sign(hashes)
        elif head.file(SIGNATURE) and not current:
            gone |= {SIGNATURE}
        try:
            pushed = hub.push(repo, {**payload, **files}, message, progress, head, sorted(gone), request)
            return Delivery(whole, files, pushed)
        except Moved:
            if not left:
                raise
        head = hub.head(repo, request)
        _check_foreign(start, head, payload)
    raise AssertionError("unreachable")


def _check_names(release: Release, paths: Collection[str], module: ModuleType) -> None:
    """Raises GateFailed where a file of the release would be taken for another one of `paths`, or another one for it."""
    check_names(module, paths, {file.files[0].path: file.level.partition(":")[2] for file in release.artifacts})


def _places(before: Release, head: Snapshot, levels: Collection[str]) -> set[str]:
    """Where the files of levels lie that hubq put there and nobody changed since, as far as no other level needs them."""
    files = [(artifact.level in levels, file) for artifact in before.artifacts for file in artifact.files]
    shared = {file.path for leaves, file in files if not leaves}
    listed = {file.path: file.sha256 for file in head.files}
    return {file.path for leaves, file in files if leaves and listed.get(file.path) == file.sha256} - shared


def without(release: Release, levels: Collection[str]) -> Release:
    """The release without some levels and all that is told of them."""
    artifacts = tuple(file for file in release.artifacts if file.level not in levels)
    used = {file.imatrix for file in artifacts}
    return replace(
        release,
        artifacts=artifacts,
        measurements=tuple(row for row in release.measurements if row.level not in levels),
        checks=tuple(check for check in release.checks if check.level not in levels),
        speeds=tuple(row for row in release.speeds if row.level not in levels),
        imatrices=tuple(matrix for matrix in release.imatrices if matrix.sha256 in used),
    )


def _check_foreign(start: Snapshot, head: Snapshot, payload: Mapping[str, Path | bytes]) -> None:
    for path, content in payload.items():
        if head.file(path) not in (None, start.file(path)) and not same(head.file(path), content, sha256(content)):
            raise HubError(
                f"somebody else changed {path} in {head.repo} during the push, to something else than this run made",
                "find out who writes there, too; then run the command again: it replaces that file",
            )


def in_order(release: Release, module: ModuleType) -> Release:
    """The release with its levels best first, wherever it tells of them."""
    order = {level.id: place for place, level in enumerate(module.LEVELS.values())}
    artifacts = sorted(release.artifacts, key=lambda file: order.get(file.level, len(order)))
    rows = sorted(
        release.measurements,
        key=lambda row: (
            row.level != REFERENCE,
            row.of_file,
            ENGINES.index(row.engine) if row.engine in ENGINES else len(ENGINES),
            order.get(row.level, len(order)),
        ),
    )
    checks = sorted(release.checks, key=lambda check: order.get(check.level, len(order)))
    speeds = sorted(release.speeds, key=lambda speed: order.get(speed.level, len(order)))
    return replace(release, artifacts=tuple(artifacts), measurements=tuple(rows), checks=tuple(checks), speeds=tuple(speeds))


def checksums(hashes: Mapping[str, str]) -> bytes:
    """What `sha256sum -c` takes, sorted by path."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(hashes.items())).encode()


def sums(release: Release, payload: Mapping[str, Path | bytes], head: Snapshot) -> dict[str, str]:
    """Path -> SHA-256 of every file of the release, pushed now or there at `head`."""
    hashes = {file.path: str(file.sha256) for artifact in release.artifacts for file in artifact.files}
    hashes |= {matrix.file: matrix.sha256 for matrix in release.imatrices if matrix.file in payload or head.file(matrix.file)}
    return hashes | {path: sha256(content) for path, content in payload.items() if path not in hashes}
