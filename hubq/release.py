"""The conductor: pulls, builds, measures, writes the card and pushes what a plan says. The only module that acts."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hubq import __version__, card, checkpoint
from hubq.errors import HubqError
from hubq.hub import Hub
from hubq.nouns import Artifact, Release, Source
from hubq.plan import Plan, Request, destination, plan_in
from hubq.record import merge, read_record
from hubq.source import used
from hubq.store import key

if TYPE_CHECKING:
    from hubq.text import Windows

SPARE = 64 << 20  # bytes of disk left free beside what is written


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a `step`: plan, pull, build, measure or push.

    `label` is a file, a level or "level engine"; `result` what came out of it.
    """

    step: str
    label: str = ""
    done: int = 0
    total: int = 0
    result: Any = None


Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished release: where it went, the commit, and the card's files by name."""

    release: Release
    target: str
    commit: str
    card: Mapping[str, bytes]


def publish(request: Request, tell: Tell = lambda event: None) -> Result:
    """Pull, build, measure, write the card, push: whatever of it is not done yet."""
    with tempfile.TemporaryDirectory() as aside, request.store.locked():
        planned = plan_in(Path(aside), request)
        tell(Event("plan", result=planned))
        hub, repo = destination(request.to, planned.name)
        hub.check_writable(repo)
        if planned.write and planned.free < planned.write + SPARE:
            raise HubqError(
                f"the levels need {planned.write / 1e9:.2f} GB and {request.store.root} has {planned.free / 1e9:.2f} GB free",
                "name fewer levels, or choose another disk with --work-dir",
            )
        windows = _read_text(request, planned, Path(aside))
        source = _pull(planned, tell)
        artifacts = _build(request, planned, source, tell)
        release = _describe(request, planned, source, artifacts, repo)
        if windows is not None:
            release = _measure(request, planned, source, release, windows, tell)
        hub.ensure(repo, request.private)
        release = _with_earlier_levels(hub, repo, release, planned.format)
        files = card.files(release, planned.format.usage(release))
        payload: dict[str, Path | bytes] = {artifact.path.name: artifact.path for artifact in artifacts}
        message = f"Add {', '.join(item.level.name for item in planned.items)} of {source.repo}@{source.commit[:12]}"
        pushed = hub.push(repo, {**payload, **files}, message, lambda path, done, size: tell(Event("push", path, done, size)))
    return Result(release, planned.target, pushed.commit, files)


def _with_earlier_levels(hub: Hub, repo: str, release: Release, module: ModuleType) -> Release:
    """The release together with the levels that earlier runs put there, best first."""
    head = hub.snapshot(repo)
    merged = merge(release, read_record(hub.read(head, "release.json")), head) if head.file("release.json") else release
    order = {level.id: place for place, level in enumerate(module.LEVELS.values())}
    artifacts = tuple(sorted(merged.artifacts, key=lambda file: order.get(file.level, len(order))))
    levels = ",".join(file.level.partition(":")[2].lower() for file in artifacts)
    return replace(merged, artifacts=artifacts, command=re.sub(r"--levels \S+", f"--levels {levels}", merged.command))


def _read_text(request: Request, planned: Plan, aside: Path) -> Windows | None:
    """The text to measure on, tokenized, before anything is built: a missing one should not cost the work."""
    if request.text is None:
        return None
    from hubq import text

    snapshot = planned.snapshot
    return text.windows(Source(snapshot.repo, snapshot.commit, aside, planned.config, planned.card, ()), request.text)


def _pull(planned: Plan, tell: Tell) -> Source:
    """The source on disk, checked."""
    snapshot = planned.snapshot
    paths = [*used(snapshot), *planned.shards]
    folder, files = planned.hub.pull(snapshot, paths, lambda path, done, size: tell(Event("pull", path, done, size)))
    return Source(snapshot.repo, snapshot.commit, folder, planned.config, planned.card, files)


def _build(request: Request, planned: Plan, source: Source, tell: Tell) -> tuple[Artifact, ...]:
    """The plan's files in its order: those that the store holds, checked, and the missing ones in one pass."""
    store = request.store
    found = {item.level.id: artifact for item in planned.items if (artifact := store.artifact(item.key))}
    missing = {item.level.id: item for item in planned.items if item.level.id not in found}
    for artifact in found.values():
        tell(Event("build", artifact.level, artifact.size, artifact.size, artifact))
    if missing:
        paths = {level: store.aside(item.key) / item.file for level, item in missing.items()}

        def progress(done: int, total: int) -> None:
            for level in missing:
                tell(Event("build", level, done, total))

        with (
            _cleared(paths.values()),
            checkpoint.open_checkpoint(source.folder, [file.path for file in source.files]) as opened,
        ):
            for artifact in planned.format.build(planned.blueprint, opened, paths, progress):
                kept = store.keep(replace(artifact, key=missing[artifact.level].key))
                found[artifact.level] = kept
                tell(Event("build", artifact.level, artifact.size, artifact.size, kept))
    return tuple(found[item.level.id] for item in planned.items)


@contextmanager
def _cleared(paths: Iterable[Path]) -> Iterator[None]:
    """Unfinished files do not outlive a failure."""
    try:
        yield
    except BaseException:
        for path in paths:
            shutil.rmtree(path.parent, ignore_errors=True)
        raise


def _describe(request: Request, planned: Plan, source: Source, artifacts: tuple[Artifact, ...], target: str) -> Release:
    packages = ("gguf", "numba", "numpy")
    return Release(
        source=source.repo,
        commit=source.commit,
        architecture=str(planned.config["architectures"][0]),
        weights=planned.weights,
        target=target,
        card=planned.card,
        artifacts=artifacts,
        versions={"hubq": __version__, **{name: metadata.version(name) for name in packages}},
        command=request.command.replace("{model}", _again(source)),
    )


def _again(source: Source) -> str:
    """The source as the command line takes it, pinned where the Hub can find it."""
    if "/" not in source.repo:
        return f"./{source.repo}"
    return f"{source.repo}@{source.commit}" if len(source.commit) == 40 else f"{source.repo} --hub FOLDER"


def _measure(request: Request, planned: Plan, source: Source, release: Release, windows: Windows, tell: Tell) -> Release:
    """The release with its measurements: those that the store holds, and the missing ones."""
    from hubq import reference, score
    from hubq.metrics import METRICS_VERSION

    store, module = request.store, planned.format
    wanted = [(artifact, engine) for engine in module.engines() for artifact in release.artifacts]

    computing = {"config.json", *planned.shards}
    inputs = {file.path: file.sha256 for file in source.files if file.path in computing}

    def measured_key(level: str, sha256: str, engine: str) -> str:
        facts = {"evalset": asdict(windows.evalset), "metrics": METRICS_VERSION, "versions": _versions([engine])}
        return key({"level": level, "sha256": sha256, "engine": engine, "inputs": inputs, **facts})

    keys = {(artifact.level, engine): measured_key(artifact.level, artifact.sha256, engine) for artifact, engine in wanted}
    keys[score.REFERENCE] = measured_key("reference", "", score.REFERENCE[1])
    found = {pair: kept for pair, pair_key in keys.items() if (kept := store.measurement(pair_key))}
    for measurement in found.values():
        tell(Event("measure", f"{measurement.level} {measurement.engine}", 1, 1, measurement))
    if found.keys() != keys.keys():
        missing = {
            (artifact.level, engine): partial(module.load, artifact, source, engine)
            for artifact, engine in wanted
            if (artifact.level, engine) not in found
        }
        for measurement in score.measure(
            windows,
            lambda: reference.load(source.config, reference.source_weights(source)),
            missing,
            progress=lambda label, done, total: tell(Event("measure", label, done, total)),
        ):
            pair = (measurement.level, measurement.engine)
            store.keep_measurement(keys[pair], measurement)
            found[pair] = measurement
            tell(Event("measure", " ".join(pair), 1, 1, measurement))
    order = [score.REFERENCE, *((artifact.level, engine) for artifact, engine in wanted)]
    return replace(
        release,
        measurements=tuple(found[pair] for pair in order),
        evalset=windows.evalset,
        versions={**release.versions, **_versions(module.engines())},
        machine=machine(),
    )


def _versions(engines: Sequence[str]) -> dict[str, str]:
    packages = ["datasets", "tokenizers", "torch", "transformers", *(["llama-cpp-python"] if "llama.cpp" in engines else [])]
    return {name: metadata.version(name) for name in packages}


def machine() -> str:
    """The kind of machine, without its name: system, processor family and number of cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
