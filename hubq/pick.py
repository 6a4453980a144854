"""Which file of a release to take: the one that loses least of those that fit, by what its release.json tells."""

from __future__ import annotations

from dataclasses import dataclass

from hubq import compare
from hubq.card import file_size
from hubq.errors import BadSource, HubqError, Unsupported, Usage
from hubq.formats import FORMATS, open_format
from hubq.hub import Hub
from hubq.memory import USUAL, memory
from hubq.metrics import METRICS
from hubq.nouns import Artifact, Estimate, Measurement, Release
from hubq.record import read_record


@dataclass(frozen=True, slots=True)
class Choice:
    """A file, the bytes that it needs at `context` tokens, its loss by a metric (None: not measured), and how to run it.

    Where the release does not tell of its cache (`cached` is false), `need` is the file alone.
    """

    file: Artifact
    context: int
    need: int
    cached: bool
    metric: str
    loss: Estimate | None
    command: str


def published(hub: Hub, repo: str, revision: str | None = None) -> Release:
    """What a repository's release.json tells. Raises BadSource where there is none, Unsupported for formats of the future."""
    snapshot = hub.snapshot(repo, revision)
    if not snapshot.file("release.json"):
        raise BadSource(f"{repo} has no release.json: hubq did not publish it", "name a repository that hubq made")
    release = read_record(hub.read(snapshot, "release.json"))
    if other := [file.level for file in release.artifacts if file.level.partition(":")[0] not in FORMATS]:
        raise Unsupported(f"this hubq knows no format of {other[0]}", "pip install --upgrade hubq")
    return release


def pick(release: Release, limit: int, context: int | None = None) -> Choice:
    """The file to take with `limit` bytes of memory, at a context of so many tokens (None: that of the model, or USUAL).

    It is the one with the smallest loss among those that were measured; of those that are not told apart from it, the smallest.
    Where none was measured it is the largest that fits. Raises HubqError where none fits, Usage for a context that is too long.
    """
    if not release.artifacts:
        raise HubqError("release.json tells of no files", "run `hubq publish` again")
    cache = release.cache
    if cache and context and context > cache.context:
        raise Usage(f"--context {context}: the model was trained for {cache.context:,} tokens", "ask for fewer")
    tokens = context or min(USUAL, cache.context if cache else USUAL)
    needs = {file.level: memory(file.size, cache, tokens) if cache else file.size for file in release.artifacts}
    fitting = [file for file in release.artifacts if needs[file.level] <= limit]
    if not fitting:
        least = min(release.artifacts, key=lambda file: needs[file.level])
        raise HubqError(
            f"nothing fits: {_name(least)}, the smallest, needs {file_size(needs[least.level])} for {tokens:,} tokens",
            "try a shorter --context, or publish a smaller level: `hubq levels`",
        )
    metric, rows = compare.stray(release)
    measured = [(row, file) for row, file in rows if file in fitting]
    best = _least(release, measured, metric) if measured else max(fitting, key=lambda file: file.size)
    loss = next((row.values[metric] for row, file in rows if file == best), None)
    command = open_format(best.level.partition(":")[0]).command(release, best, tokens)
    return Choice(best, tokens, needs[best.level], cache is not None, metric, loss, command)


def _least(release: Release, rows: list[tuple[Measurement, Artifact]], metric: str) -> Artifact:
    """The file with the smallest loss, or the smallest one of those that cannot be told from it."""
    sign = -1 if METRICS[metric].better == "higher" else 1
    _, best = min(rows, key=lambda pair: sign * pair[0].values[metric].value)
    same = {best.level, *(level for pair in compare.alike(release) if best.level in pair for level in pair)}
    return min((file for _, file in rows if file.level in same), key=lambda file: file.size)


def _name(file: Artifact) -> str:
    return file.level.partition(":")[2]
