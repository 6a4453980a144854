"""The conductor: plans a release, then pulls, builds, measures, writes the card and pushes. The only module that acts.

plan(request) -> Plan              touches nothing
publish(request, tell) -> Result   does what is missing; `tell` hears an Event of every step
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hubq import __version__, card, checkpoint
from hubq.errors import BadSource, HubError, HubqError, Usage
from hubq.formats import open_format
from hubq.hub import Hub, connect
from hubq.nouns import Artifact, Level, Release, Snapshot, Source
from hubq.record import merge, read_record
from hubq.source import read_card, read_config, used
from hubq.store import Store, key

if TYPE_CHECKING:
    from hubq.text import TextSpec, Windows

SPARE = 64 << 20  # bytes of disk left free beside what is written


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    `model` is a Hub id with an optional @revision, or a folder; `hub` a folder to look for ids in, instead of the Hub; `to` a
    Hub id or a folder that acts as a hub (None: the user's account on the Hub); without `text` nothing is measured.
    """

    model: str
    levels: tuple[Level, ...]
    store: Store
    to: str | None = None
    hub: Path | None = None
    text: TextSpec | None = None
    private: bool = False
    command: str = ""


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
class Item:
    """One level of a plan: the file's name and exact size, its key, and the finished file if the store has it."""

    level: Level
    file: str
    size: int
    key: str
    artifact: Artifact | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What publishing will do. In bytes: `download` is not on this machine yet, `write` is to be built, `free` on its disk."""

    snapshot: Snapshot
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    weights: int
    shards: tuple[str, ...]
    items: tuple[Item, ...]
    target: str
    download: int
    write: int
    free: int
    format: ModuleType
    blueprint: Any

    @property
    def name(self) -> str:
        """The model's name without its owner, fit for a file name."""
        return _name(self.snapshot.repo)


@dataclass(frozen=True, slots=True)
class Result:
    """A finished release: where it went, the commit, and the card's files by name."""

    release: Release
    target: str
    commit: str
    card: Mapping[str, bytes]


def locate(model: str, hub: Path | None) -> tuple[Hub, str, str | None]:
    """(hub, repository, revision) of a model as a person writes it: `org/model`, `org/model@revision`, or a folder."""
    folder = Path(model).expanduser()
    if hub is None and (folder.is_dir() or model.startswith((".", "/", "~"))):
        if not folder.is_dir():
            raise Usage(f"there is no folder {model}", "check the path, or write a Hub id as org/model")
        folder = folder.resolve()
        return connect(folder.parent), folder.name, None
    repo, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) and hub is None:
        raise Usage(f"{model!r} is neither a Hub id nor a folder", "write org/model, org/model@revision or ./folder")
    return connect(hub), repo, revision or None


def destination(to: str | None, name: str) -> tuple[Hub, str]:
    """(hub, repository) that a release goes to: `to`, or the user's account; a folder acts as a hub and holds {name}-GGUF."""
    if to is None:
        hub = connect()
        if not hub.owner():
            raise HubError(
                "there is no account to publish to: nobody is logged in", "run `hf auth login`, or say where with --to"
            )
        return hub, f"{hub.owner()}/{name}-GGUF"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", to, re.ASCII) and not Path(to).is_dir():
        return connect(), to
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        return connect(Path(to).expanduser().resolve()), f"{name}-GGUF"
    raise Usage(f"--to {to}: neither a Hub id nor a folder", "write owner/name, or ./folder for a folder that acts as a hub")


def plan(request: Request) -> Plan:
    """What `publish` would do, exactly, touching nothing. Raises all that is known to fail before the weights are fetched."""
    with tempfile.TemporaryDirectory() as aside:
        return _plan(request, Path(aside))


def _plan(request: Request, aside: Path) -> Plan:
    hub, repo, revision = locate(request.model, request.hub)
    snapshot = hub.snapshot(repo, revision)
    if snapshot.file("config.json") is None:
        raise BadSource(f"{repo} has no config.json", "hubq reads models in transformers' format; check the id or the folder")
    config = read_config(hub.read(snapshot, "config.json"))
    paths = [file.path for file in snapshot.files]
    shards = checkpoint.shards(paths, lambda path: hub.read(snapshot, path))
    for path in used(snapshot):
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        (aside / path).write_bytes(hub.read(snapshot, path))
    stored = _stored(hub, snapshot, shards)
    module = open_format(request.levels[0].format)
    blueprint = module.plan(repo, aside, config, stored, request.levels)
    readme = aside / "README.md"
    front = dict(read_card(readme.read_bytes())) if readme.is_file() else {}
    front["chat_template"] = blueprint.has_chat_template
    items = tuple(_item(request, module, snapshot, shards, blueprint.sizes, level) for level in request.levels)
    files = [*used(snapshot), *shards]
    return Plan(
        snapshot=snapshot,
        config=config,
        card=front,
        weights=blueprint.weights,
        shards=shards,
        items=items,
        target=_target_name(request, _name(repo)),
        download=sum(snapshot.size(path) for path in files if not hub.cached(snapshot, path)),
        write=sum(item.size for item in items if item.artifact is None),
        free=shutil.disk_usage(_existing(request.store.root)).free,
        format=module,
        blueprint=blueprint,
    )


def _stored(hub: Hub, snapshot: Snapshot, shards: Sequence[str]) -> dict[str, checkpoint.StoredTensor]:
    def read(path: str, start: int, stop: int) -> bytes:
        return hub.read(snapshot, path, start, stop)

    headers = [checkpoint.read_header(path, snapshot.size(path), read) for path in shards]
    index = hub.read(snapshot, checkpoint.INDEX) if snapshot.file(checkpoint.INDEX) else None
    return checkpoint.merge(headers, index)


def _item(
    request: Request, module: ModuleType, snapshot: Snapshot, shards: Sequence[str], sizes: Mapping[str, int], level: Level
) -> Item:
    inputs = {file.path: file.sha256 or file.blob for file in snapshot.files if file.path in {*used(snapshot), *shards}}
    made_by = {"format": module.VERSION, "gguf": metadata.version("gguf")}
    recipe_key = key({"level": level.id, "repo": snapshot.repo, "inputs": inputs, **made_by})
    file = module.file_name(_name(snapshot.repo), level)
    return Item(level, file, sizes[level.id], recipe_key, request.store.artifact(recipe_key, check=False))


def _name(repo: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", repo.rsplit("/", 1)[-1]).strip("-.") or "model"


def _target_name(request: Request, name: str) -> str:
    if request.to is None and not connect().owner():
        return f"(your account)/{name}-GGUF"
    hub, repo = destination(request.to, name)
    return hub.address(repo)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def publish(request: Request, tell: Tell = lambda event: None) -> Result:
    """Pull, build, measure, write the card, push: whatever of it is not done yet."""
    with tempfile.TemporaryDirectory() as aside, request.store.locked():
        planned = _plan(request, Path(aside))
        tell(Event("plan", result=planned))
        hub, repo = destination(request.to, planned.name)
        hub.check_writable(repo)
        if planned.write and planned.free < planned.write + SPARE:
            raise HubqError(
                f"the levels need {planned.write / 1e9:.2f} GB and {request.store.root} has {planned.free / 1e9:.2f} GB free",
                "name fewer levels, or choose another disk with --work-dir",
            )
        windows = _read_text(request, planned, Path(aside))
        source = _pull(request, planned, tell)
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
    order = [level.id for level in module.LEVELS.values()]
    artifacts = tuple(sorted(merged.artifacts, key=lambda file: order.index(file.level)))
    levels = ",".join(file.level.partition(":")[2].lower() for file in artifacts)
    return replace(merged, artifacts=artifacts, command=re.sub(r"--levels \S+", f"--levels {levels}", merged.command))


def _read_text(request: Request, planned: Plan, aside: Path) -> Windows | None:
    """The text to measure on, tokenized, before anything is built: a missing one should not cost the work."""
    if request.text is None:
        return None
    from hubq import text

    snapshot = planned.snapshot
    return text.windows(Source(snapshot.repo, snapshot.commit, aside, planned.config, planned.card, ()), request.text)


def _pull(request: Request, planned: Plan, tell: Tell) -> Source:
    """The source on disk. Weights are left out where nothing is left to build or measure."""
    hub, _, _ = locate(request.model, request.hub)
    snapshot = planned.snapshot
    paths = [*used(snapshot), *planned.shards]
    folder, files = hub.pull(snapshot, paths, lambda path, done, size: tell(Event("pull", path, done, size)))
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

    def measured_key(level: str, sha256: str, engine: str) -> str:
        inputs = {file.path: file.sha256 for file in source.files if file.path in {"config.json", *planned.shards}}
        facts = {"evalset": asdict(windows.evalset), "metrics": METRICS_VERSION, "versions": _versions([engine])}
        return key({"level": level, "sha256": sha256, "engine": engine, "inputs": inputs, **facts})

    keys = {(artifact.level, engine): measured_key(artifact.level, artifact.sha256, engine) for artifact, engine in wanted}
    keys[score.REFERENCE] = measured_key("reference", "", score.REFERENCE[1])
    found = {pair: kept for pair, pair_key in keys.items() if (kept := store.measurement(pair_key))}
    for measurement in found.values():
        tell(Event("measure", f"{measurement.level} {measurement.engine}", 1, 1, measurement))
    if found.keys() != keys.keys():
        missing = {
            (artifact.level, engine): _opener(module, artifact, source, engine)
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


def _opener(module: ModuleType, artifact: Artifact, source: Source, engine: str) -> Callable[[], Any]:
    return lambda: module.load(artifact, source, engine)


def _versions(engines: Sequence[str]) -> dict[str, str]:
    packages = ["datasets", "tokenizers", "torch", "transformers", *(["llama-cpp-python"] if "llama.cpp" in engines else [])]
    return {name: metadata.version(name) for name in packages}


def machine() -> str:
    """The kind of machine, without its name: system, processor family and number of cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
