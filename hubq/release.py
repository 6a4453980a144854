"""The conductor: pulls, builds, measures, writes the card and pushes what a plan says. The only module that acts."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubq import __version__
from hubq.deliver import deliver
from hubq.errors import GateFailed, HubError, HubqError, MissingExtra, Unsupported, Usage
from hubq.formats import cores
from hubq.hub import Hub
from hubq.nouns import Artifact, Measurement, Release, Snapshot, Source
from hubq.plan import NotConverted, Plan, Request, destination, imatrix_facts, kept, plan_in
from hubq.record import merge, plain, read_record
from hubq.sign import KEYLESS, sign
from hubq.store import key

if TYPE_CHECKING:
    from hubq.samples import Samples
    from hubq.score import Budget
    from hubq.text import TextSpec, Windows

SPARE = 64 << 20  # bytes of disk left free beside what is written
RUNTIMES = {"llama.cpp": "llama-cpp-python", "onnxruntime": "onnxruntime"}  # engine -> its package
PROBED = 128  # ids in a window of the text that the gate scores where nothing is measured


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a `step`: pull, convert, plan, calibrate, export, build, measure, check, time, push, or moved.

    `label` is a file, a level or "level engine", or says how the source moved on; `result` what came out of it.
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


def publish(request: Request, tell: Tell = lambda event: None, known: list[Any] | None = None) -> Result:
    """Pull, build, measure, check, write the card, push: whatever of it is not done yet.

    The levels are of one format. `known` keeps the reference's distributions for the next release of the same model.
    """
    with tempfile.TemporaryDirectory() as aside, request.store.locked():
        planned = _plan(Path(aside), request, tell)
        tell(Event("plan", result=planned))
        hub, repo = destination(request.to, f"{planned.name}-{planned.format.WORDS.title}")
        if request.sign not in (None, KEYLESS):
            sign(request.sign, "", {})  # a key that cannot sign should not cost the work
        hub.check_writable(repo, request.create, request.pull_request)
        need = planned.need + SPARE
        if planned.write and planned.free < need:
            raise HubqError(
                f"this takes {need / 1e9:.2f} GB of disk, and {request.store.root} has {planned.free / 1e9:.2f} GB free",
                "name fewer levels, do one after another with --stream, or choose another disk with --work-dir",
            )
        windows = _read_text(request, planned, Path(aside))
        source = _pull(planned, tell)
        planned = _with_imatrix(request, planned, source, tell)
        job = _Job(request, source, windows, hub, repo, tell, [] if known is None else known)
        return _stream(job, planned) if request.stream else _publish(job, planned)


def _plan(aside: Path, request: Request, tell: Tell) -> Plan:
    """The plan, with the model converted by llama.cpp first where that has to be."""
    try:
        return plan_in(aside, request)
    except NotConverted as model:
        _convert(request, model, tell)
        return plan_in(aside, request)


def _convert(request: Request, model: NotConverted, tell: Tell) -> None:
    from hubq.formats.gguf.convert import convert

    checkout = request.llama_cpp
    assert checkout
    snapshot, name = model.snapshot, f"{model.name}-{model.dtype.upper()}.gguf"
    folder, _ = model.hub.pull(snapshot, model.paths, lambda path, done, size: tell(Event("pull", path, done, size)))
    request.store.keep_file(
        "conversions",
        model.key,
        name,
        lambda path: convert(
            checkout,
            folder,
            model.paths,
            model.dtype,
            path,
            lambda done, total: tell(Event("convert", name, done, total)),
            model.name,
        ),
    )
    tell(Event("convert", name, 1, 1, name))


@dataclass(frozen=True, slots=True)
class _Job:
    """What stays the same from level to level. `known` are the reference's distributions, see score.measure."""

    request: Request
    source: Source
    windows: Windows | Samples | None
    hub: Hub
    repo: str
    tell: Tell
    known: list[Any] = field(default_factory=list)


def _stream(job: _Job, planned: Plan) -> Result:
    """Publish one level after another, each in a commit of its own, and keep no file; levels that are there are left alone."""
    _ensure(job)
    there = _published(job.hub.head(job.repo, _title(job, planned)), job.hub)
    measured = there and (job.windows is None or there.evalset == job.windows.evalset)
    keys = {file.key for file in there.artifacts} if there and measured else set()
    left = [item for item in planned.items if item.key not in keys]
    for item in left[:-1]:
        _publish(job, replace(planned, items=(item,)))
        job.request.store.drop(item.key)
    result = _publish(job, replace(planned, items=tuple(left[-1:])))
    for item in left[-1:]:
        job.request.store.drop(item.key)
    return result


def _ensure(job: _Job) -> None:
    """Creates the repository, if that is wanted; one that a pull request goes to is left as it is."""
    if job.request.create:
        job.hub.ensure(job.repo, job.request.private)


def _title(job: _Job, planned: Plan) -> str:
    return planned.title if job.request.pull_request else ""


def _published(head: Snapshot, hub: Hub) -> Release | None:
    """What release.json tells of a repository, without files that are not there any more; None where there is none."""
    if not head.file("release.json"):
        return None
    before = read_record(hub.read(head, "release.json"))
    return merge(replace(before, artifacts=(), measurements=()), before, head)


def _publish(job: _Job, planned: Plan) -> Result:
    """Build, measure, check and push a plan's levels in one commit, with the card of all levels that are there then."""
    request, source, hub, repo, tell = job.request, job.source, job.hub, job.repo, job.tell
    artifacts = _build(request, planned, source, tell)
    release = _describe(request, planned, source, artifacts, repo)
    if job.windows is not None and artifacts:
        release = _measure(job, planned, release, job.windows)
    if artifacts:
        release = _check(job, planned, release)
    if request.speed and job.windows is not None and artifacts:
        release = _time(job, planned, release, job.windows)
    release = replace(release, newer=_newer(job, planned))
    _ensure(job)
    payload: dict[str, Path | bytes] = {
        file.path: artifact.path.with_name(PurePosixPath(file.path).name) for artifact in artifacts for file in artifact.files
    }
    payload |= planned.format.beside(planned.blueprint, source, release)
    if release.imatrices and planned.imatrix in release.imatrices and planned.imatrix_file:
        payload[planned.imatrix_file.name] = planned.imatrix_file
    message = f"Add {', '.join(item.level.name for item in planned.items)} of {source.repo}@{source.commit[:12]}"
    title = _title(job, planned)
    made = deliver(
        hub,
        repo,
        release,
        payload,
        planned.format,
        message,
        lambda path, done, size: tell(Event("push", path, done, size)),
        [level.id for level in request.delete],
        title,
        partial(sign, request.sign, repo.rpartition("/")[2]) if request.sign else None,
    )
    target = hub.address(repo, title) if title else planned.target
    return Result(made.release, target, made.snapshot.commit, made.card)


def _newer(job: _Job, planned: Plan) -> str:
    """The commit that the source has moved on to since the plan was made, or ""; with `require_latest` that is an error.

    A source that cannot be asked any more is no reason to throw the work away.
    """
    repo, commit, strict = planned.snapshot.repo, planned.snapshot.commit, job.request.require_latest
    try:
        newer = planned.hub.moved(planned.snapshot, planned.revision)
    except HubError as error:
        if strict:
            raise
        job.tell(Event("moved", f"it cannot be told whether {repo} has moved on: {error.message}"))
        return ""
    if newer and strict:
        raise HubError(
            f"{repo} moved from {commit[:12]} to {newer[:12]} while this ran, and nothing was pushed",
            "run the command again: it takes the newest commit",
        )
    if newer:
        job.tell(
            Event("moved", f"{repo} has moved on to {newer[:12]}; these files are of {commit[:12]}, as card and record say")
        )
    return newer


def _read_text(request: Request, planned: Plan, aside: Path) -> Windows | Samples | None:
    """The text to measure on, tokenized, before anything is built: a missing one should not cost the work."""
    if request.text is None:
        return None
    snapshot, gguf = planned.snapshot, planned.gguf and aside / planned.gguf
    source = Source(snapshot.repo, snapshot.commit, aside, planned.config, planned.card, (), gguf)
    _reference(planned, source)
    windows = _windows(planned, source, request.text)
    from hubq import text

    if isinstance(windows, text.Windows) and planned.calibration and (shared := text.shared_runs(windows, planned.calibration)):
        raise Usage(
            f"the text to measure on repeats {shared:,} runs of 64 tokens of the calibration text",
            "numbers on what the files were fitted to mean little: choose another text with --calibration or --dataset",
        )
    return windows


def _windows(planned: Plan, source: Source, spec: TextSpec) -> Windows | Samples:
    """What is scored of a text: windows of it, or texts in it where the model predicts no next tokens."""
    from hubq import samples, text

    if planned.blueprint.task != "text-generation":
        return samples.samples(source, spec, planned.blueprint.task)
    return text.windows(source, spec, None if source.config else planned.format.tokenize)


def _reference(planned: Plan, source: Source) -> tuple[str, Callable[[], Any]]:
    """The engine that runs the source, and what opens it: transformers, or llama.cpp for a GGUF that only it knows.

    Raises Unsupported where neither can.
    """
    from hubq import reference

    task = planned.blueprint.task
    if source.config:
        try:
            reference.describe(source.config, task)
            if task != "text-generation":
                return "transformers", lambda: reference.load_rows(source.config, reference.source_weights(source), task)
            return "transformers", lambda: reference.load(source.config, reference.source_weights(source))
        except Unsupported:
            if source.gguf is None:
                raise
    return planned.format.RUNTIME, lambda: planned.format.load_source(source)


def _with_imatrix(request: Request, planned: Plan, source: Source, tell: Tell) -> Plan:
    """The plan with the importance matrix computed, if it needs one that is not there."""
    windows, module = planned.calibration, planned.format
    if windows is None or planned.imatrix or not planned.blueprint.weighted:
        return planned
    from hubq import calibrate, reference

    name = planned.blueprint.imatrix.file
    with reference.load_model(source.config, reference.source_weights(source)) as model:
        activations = calibrate.collect(
            model,
            module.calibrated(planned.blueprint),
            windows.ids,
            lambda done: tell(Event("calibrate", name, done, len(windows.ids))),
        )
    path = request.store.keep_file(
        "imatrices", planned.imatrix_key, name, lambda path: module.write_imatrix(planned.blueprint, activations, path)
    )
    made = module.read_imatrix(path)
    return replace(
        planned,
        blueprint=module.with_imatrix(planned.blueprint, made),
        imatrix=imatrix_facts(made, windows.evalset),
        imatrix_file=path,
    )


def _pull(planned: Plan, tell: Tell) -> Source:
    """The source on disk, checked."""
    snapshot = planned.snapshot
    folder, files = planned.hub.pull(snapshot, planned.paths, lambda path, done, size: tell(Event("pull", path, done, size)))
    gguf = planned.gguf and folder / planned.gguf
    return Source(snapshot.repo, snapshot.commit, folder, planned.config, planned.card, files, gguf)


def _build(request: Request, planned: Plan, source: Source, tell: Tell) -> tuple[Artifact, ...]:
    """The plan's files in its order: those that the store holds, checked, and the missing ones in one pass."""
    store = request.store
    found = {item.level.id: artifact for item in planned.items if (artifact := kept(store, item.key, planned.imatrix, True))}
    missing = {item.level.id: item for item in planned.items if item.level.id not in found}
    for artifact in found.values():
        tell(Event("build", artifact.level, artifact.size, artifact.size, artifact))
    if missing:
        paths = {level: store.aside(item.key) / item.file for level, item in missing.items()}

        def progress(done: int, total: int) -> None:
            for level in missing:
                tell(Event("build", level, done, total))

        source = _prepared(request, planned, source, [item.level.name for item in missing.values()], tell)
        with _cleared(paths.values()):
            for artifact in planned.format.build(planned.blueprint, source, paths, progress):
                item = missing[artifact.level]
                finished = store.keep(replace(artifact, key=item.key, options=item.options))
                found[artifact.level] = finished
                tell(Event("build", artifact.level, artifact.size, artifact.size, finished))
    return tuple(found[item.level.id] for item in planned.items)


def _prepared(request: Request, planned: Plan, source: Source, levels: Sequence[str], tell: Tell) -> Source:
    """The source with the graph that levels are made of, where the format makes one for any of these."""
    module, store = planned.format, request.store
    facts = next(filter(None, (module.intermediate(planned.blueprint, level) for level in levels)), None)
    if facts is None:
        return source
    pinned = {file.path: file.sha256 for file in source.files if file.path in {"config.json", *planned.shards}}
    graph_key = key({**facts, "inputs": pinned})
    found = store.file("exports", graph_key) or store.keep_file(
        "exports",
        graph_key,
        "model.onnx",
        lambda path: module.make_intermediate(planned.blueprint, source, path, lambda line: tell(Event("export", plain(line)))),
    )
    return replace(source, graph=found)


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
    groups = planned.format.groups
    return Release(
        source=source.repo,
        commit=source.commit,
        architecture=planned.architecture,
        weights=planned.weights,
        target=target,
        card={**planned.card, "ollama": planned.format.ollama(planned.blueprint)},
        artifacts=tuple(replace(file, groups=groups(planned.blueprint, file.level.partition(":")[2])) for file in artifacts),
        versions={"hubq": __version__, **planned.format.versions(planned.blueprint)},
        command=request.command.replace("{model}", _again(planned)).replace("{windows}", _count(request, planned)),
        imatrices=(planned.imatrix,) if planned.imatrix and any(file.imatrix for file in artifacts) else (),
        left_out=planned.blueprint.left_out,
        origin=planned.origin,
        inputs=source.files,
        environment=_environment(),
        cache=planned.format.cache(planned.blueprint),
    )


def _environment() -> str:
    """The SHA-256 of the names and versions of all packages that are installed, a line each."""
    found = sorted({f"{package.name}=={package.version}".lower() for package in metadata.distributions()})
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _count(request: Request, planned: Plan) -> str:
    """How many windows or texts the command line asks for."""
    spec = request.text
    count = spec and (spec.windows if planned.blueprint.task == "text-generation" else spec.texts)
    return "all" if count is None else str(count)


def _again(planned: Plan) -> str:
    """The source as the command line takes it, pinned where the Hub can find it."""
    repo, commit, origin = planned.snapshot.repo, planned.snapshot.commit, planned.origin
    file = f":{planned.gguf}" if origin and not origin.converter else ""
    converter = " --llama-cpp DIR" if origin and origin.converter else ""
    if "/" not in repo:
        return f"./{origin.file if origin and file else repo}{converter}"
    return (f"{repo}@{commit}{file}" if len(commit) == 40 else f"{repo}{file} --hub FOLDER") + converter


def _measure(job: _Job, planned: Plan, release: Release, windows: Windows | Samples) -> Release:
    """The release with its measurements: those that the store holds, and the missing ones."""
    from hubq import score

    engines = planned.format.engines(job.source)
    if not engines:
        raise MissingExtra("only llama.cpp runs such a model, and llama-cpp-python is missing", 'pip install "hubq[llama]"')
    wanted = [(artifact, engine) for engine in engines for artifact in release.artifacts]
    found = _score(job, planned, windows, wanted, _floor(job, planned))
    order = [(score.REFERENCE, _reference(planned, job.source)[0]), *_floor(job, planned)]
    order += [(artifact.level, engine) for artifact, engine in wanted]
    return replace(
        release,
        measurements=tuple(found[pair] for pair in order),
        within=job.request.within,
        evalset=windows.evalset,
        versions={**release.versions, **_versions(engines)},
        machine=machine(),
    )


def _score(
    job: _Job,
    planned: Plan,
    windows: Windows | Samples,
    wanted: Sequence[tuple[Artifact, str]],
    floor: Mapping[tuple[str, str], Callable[[], Any]] | None = None,
    step: str = "measure",
) -> dict[tuple[str, str], Measurement]:
    """What each engine measures of each file, and of the source itself: what the store holds, and the rest computed."""
    from hubq import score
    from hubq.metrics import METRICS_VERSION

    engine, opened = _reference(planned, job.source)
    store, module, source, tell = job.request.store, planned.format, job.source, job.tell
    computing = {"config.json", *planned.shards}
    inputs: dict[str, Any] = {"origin": asdict(planned.origin)} if planned.origin else {}
    inputs |= {file.path: file.sha256 for file in source.files if file.path in computing}

    def measured_key(level: str, sha256: str, engine: str) -> str:
        facts = {"evalset": asdict(windows.evalset), "metrics": METRICS_VERSION, "versions": _versions([engine])}
        facts |= {"task": windows.task.name, "pooling": getattr(windows, "pooling", "")}
        return key({"level": level, "sha256": sha256, "engine": engine, "inputs": inputs, **facts})

    keys = {(artifact.level, engine): measured_key(artifact.level, artifact.sha256, engine) for artifact, engine in wanted}
    keys |= {pair: measured_key(pair[0], "", pair[1]) for pair in ((score.REFERENCE, engine), *(floor or ()))}
    found = {pair: kept for pair, pair_key in keys.items() if (kept := store.measurement(pair_key))}
    for measurement in found.values():
        tell(Event(step, f"{measurement.level} {measurement.engine}", 1, 1, measurement))
    if found.keys() != keys.keys():
        missing: dict[tuple[str, str], Callable[[], Any]] = {
            (artifact.level, engine): partial(module.load, artifact, source, engine, windows.task.name)
            for artifact, engine in wanted
            if (artifact.level, engine) not in found
        }
        missing |= {pair: opener for pair, opener in (floor or {}).items() if pair not in found}
        for measurement in score.measure(
            windows,
            opened,
            missing,
            _budget(job.request),
            progress=lambda label, done, total: tell(Event(step, label, done, total)),
            known=job.known if windows.task.kind == "tokens" else None,  # files of two formats may be for two tasks
            engine=engine,
        ):
            pair = (measurement.level, measurement.engine)
            if pair not in found or measurement.tokens > found[pair].tokens:  # the reference is run in any case
                store.keep_measurement(keys[pair], measurement)
                tell(Event(step, " ".join(pair), 1, 1, measurement))
                found[pair] = measurement
    return found


def _budget(request: Request) -> Budget:
    """How much of the reference's distributions is kept, and where."""
    from hubq.score import BUDGET, Budget

    size = BUDGET.size if request.logits is None else request.logits
    if not request.logits_on_disk:
        return Budget(size)
    request.store.root.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(request.store.root).free) < size + SPARE:
        raise HubqError(
            f"--logits-budget asks for {size / 1e9:.2f} GB of disk, and {request.store.root} has {free / 1e9:.2f} GB free",
            "ask for less: the models are loaded more often then",
        )
    return Budget(size, request.store.root)


def _floor(job: _Job, planned: Plan) -> dict[tuple[str, str], Callable[[], Any]]:
    """The source in the 16 bits that its users compute in, where that is asked for and transformers runs it: (level, engine) ->
    what opens it."""
    from hubq import reference, score

    source, task = job.source, planned.blueprint.task
    if not job.request.floor or _reference(planned, source)[0] != "transformers":
        return {}
    dtype = reference.other_dtype(source)

    def opened() -> Any:
        weights = reference.source_weights(source)
        if task == "text-generation":
            return reference.load(source.config, weights, dtype)
        return reference.load_rows(source.config, weights, task, dtype)

    return {(score.FLOOR, f"transformers, {dtype}"): opened}


def _check(job: _Job, planned: Plan, release: Release) -> Release:
    """The release with what the parity gate found. Raises GateFailed, which says what differs."""
    rows, unmeasured = release.measurements, ""
    if job.windows is None:
        rows, unmeasured = _probe(job, planned, release)
    text = job.windows.text if job.windows else ""
    checks = planned.format.check(release.artifacts, job.source, text, rows, unmeasured)
    for artifact in release.artifacts:
        job.tell(Event("check", artifact.level, 1, 1, tuple(check for check in checks if check.level == artifact.level)))
    if failed := [f"{check.level}: {check.name}: {check.detail}" for check in checks if check.outcome == "failed"]:
        raise GateFailed(
            "the files are not what their source is, and nothing was pushed\n" + "\n".join(failed),
            "build them again in a fresh folder: --work-dir DIR; where that does not help, hubq converts this model wrongly",
        )
    return replace(release, checks=checks)


def _probe(job: _Job, planned: Plan, release: Release) -> tuple[tuple[Measurement, ...], str]:
    """The files' logits held against the source's on a few windows of a short text, or why they are not."""
    from hubq import text

    module = planned.format
    if planned.blueprint.task != "text-generation" and not job.source.config:
        return (), "hubq measures encoders in transformers' format only"
    if module.RUNTIME not in module.engines(job.source):
        return (), ""
    if 4 * planned.weights > _memory():
        return (), "the source in float32 does not fit into this machine's memory"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.txt"
        path.write_bytes(module.probe_text().encode())
        windows = _windows(
            planned, job.source, text.TextSpec(str(path), None, windows=None, length=PROBED, seed=None, texts=None)
        )
    try:
        found = _score(job, planned, windows, [(artifact, module.RUNTIME) for artifact in release.artifacts], step="check")
    except Unsupported as error:
        return (), error.message
    return tuple(found.values()), ""


def _time(job: _Job, planned: Plan, release: Release, windows: Windows | Samples) -> Release:
    """The release with the speed of its files: those that the store holds, and the missing ones."""
    from hubq import speed

    engine, store, found = planned.format.RUNTIME, job.request.store, []
    if engine not in planned.format.engines(job.source):
        return release
    ids = max(windows.ids, key=len)
    facts = {"machine": release.machine, "cores": cores(), "versions": _versions([engine]), "speed": speed.SPEED_VERSION}
    for artifact in release.artifacts:
        speed_key = key({"sha256": artifact.sha256, "level": artifact.level, "ids": ids.tolist(), **facts})
        if (timed := store.speed(speed_key)) is None:
            job.tell(Event("time", f"{artifact.level} {engine}"))
            timed = speed.speed(artifact, ids)
            store.keep_speed(speed_key, timed)
        job.tell(Event("time", f"{artifact.level} {engine}", 1, 1, timed))
        found.append(timed)
    return replace(release, speeds=tuple(found))


def _memory() -> float:
    """Bytes of memory of this machine; without limit where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _versions(engines: Sequence[str]) -> dict[str, str]:
    packages = ["datasets", "tokenizers", "torch", "transformers"]
    packages += [RUNTIMES[engine] for engine in engines if engine in RUNTIMES]
    return {name: metadata.version(name) for name in packages}


def machine() -> str:
    """The kind of machine, without its name: system, processor and number of cores."""
    parts = [f"{platform.system()} {platform.machine()}", _processor(), f"{os.cpu_count()} cores"]
    return ", ".join(filter(None, parts))


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return plain(re.sub(r"\((R|TM|r|tm)\)|@.*", "", names[0])) if names else ""
