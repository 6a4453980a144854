"""Manifests against their records and what is published: what moved on, what is missing, what is stale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubq.cards import Card, beside, check, read_release
from hubq.errors import HubError, Usage
from hubq.hub import connect
from hubq.manifest import NAME, Manifest, chosen, read, resolved
from hubq.nouns import Release
from hubq.plan import destination, is_repository, locate, repository
from hubq.record import plain, read_record, release_json

KINDS = ("unknown", "moved", "no release", "behind", "missing level", "no card", "differs", "stale card")  # the worst first


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as its manifest says: its `kind` is one of KINDS, `text` says what it is and what to do."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class State:
    """How the release of the manifest in a `folder` stands, with the `source` that it is of."""

    folder: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def state(self) -> str:
        """The worst that was found, or "current"."""
        return min((finding.kind for finding in self.findings), key=KINDS.index, default="current")


def status(folder: Path, hub: Path | None = None) -> list[State]:
    """How the releases of a folder's manifests stand, by the names of their folders. `hub` is where ids are looked for.

    Raises Usage where there is no manifest, or one cannot be read. What the Hub does not answer is a finding.
    """
    if not folder.is_dir():
        raise Usage(f"there is no folder {folder}", "name the folder of cards with --cards")
    paths = sorted(folder.glob(f"*/{NAME}"))
    if not paths:
        raise Usage(f"{folder} holds no {NAME}", "write one with `hubq init MODEL --levels LEVELS`")
    return [_state(path, hub) for path in paths]


def _state(path: Path, hub: Path | None) -> State:
    manifest = resolved(read(path), path.parent)
    findings = [*_source(manifest, hub), *_target(manifest, path), *_card(path)]
    return State(path.parent.name, plain(manifest.source.model), tuple(findings))


def _source(manifest: Manifest, hub: Path | None) -> list[Finding]:
    """Whether the source has moved on since it was pinned."""
    source = manifest.source
    if source.follow is None or source.revision is None:
        return []
    try:
        found, repo, _, _ = locate(source.model, hub)
        now = found.snapshot(repo, source.follow).commit
    except HubError as error:
        return [Finding("unknown", f"{plain(source.model)} cannot be asked: {error.message}")]
    if now == source.revision:
        return []
    text = f"{plain(source.model)} moved from {source.revision[:12]} to {now[:12]} on {plain(source.follow)}"
    return [Finding("moved", f"{text}: set revision = {now!r} and publish again".replace("'", '"'))]


def _target(manifest: Manifest, path: Path) -> list[Finding]:
    """Whether all levels are published, of the pinned commit, and as the record beside the manifest says."""
    again, findings = f"run `hubq publish {path.parent}`", []
    for name, target in manifest.targets.items():
        try:
            release = _published(manifest, name, target)
        except HubError as error:
            findings.append(Finding("unknown", f"{plain(target)} cannot be asked: {error.message}"))
            continue
        if release is None:
            findings.append(Finding("no release", f"{plain(target)} holds no release of hubq: {again}"))
            continue
        if manifest.source.revision not in (None, release.commit):
            text = f"{plain(target)} is of commit {release.commit[:12]}, and {str(manifest.source.revision)[:12]} is pinned"
            findings.append(Finding("behind", f"{text}: {again}"))
        there = {file.level for file in release.artifacts}
        if missing := [level.name for level in chosen(manifest) if level.format == name and level.id not in there]:
            findings.append(Finding("missing level", f"{plain(target)} lacks {', '.join(missing)}: {again}"))
        own = beside(path.parent, name, next(iter(manifest.variants))) / "release.json"
        if own.is_file() and own.read_bytes() != release_json(release):
            findings.append(Finding("differs", f"{own} is not what {plain(target)} holds: {again}"))
    return findings


def _published(manifest: Manifest, name: str, target: str) -> Release | None:
    """What the target of a format holds, if hubq published there."""
    model, _, file = manifest.source.model.partition(":")
    where = (connect(), target) if is_repository(target) else destination(target, repository(model, bool(file), name))
    hub, repo = where
    head = hub.head(repo)
    return read_record(hub.read(head, "release.json")) if head.file("release.json") else None


def _card(path: Path) -> list[Finding]:
    """Whether the record beside the manifest is there, and the card follows from it."""
    folder = path.parent
    if not (folder / "release.json").is_file():
        return [Finding("no card", f"{folder} holds no release.json: `hubq publish {folder}` writes it")]
    wrong = [fact.name for fact in check(folder, Card(folder.name, read_release(folder))) if fact.state != "current"]
    return [Finding("stale card", f"{', '.join(wrong)} in {folder}: run `hubq card {folder}`")] if wrong else []
