"""The conductor: pulls, builds, measures, writes the card and pushes what a plan says. The only module that acts."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubq import __version__
from hubq.deliver import deliver
from hubq.errors import HubError, HubqError, Usage
from hubq.examine import SPARE, checked, measured, reference_of, timed, windows_of
from hubq.formats import cores
from hubq.hub import Hub
from hubq.job import Event, Job, Tell, machine
from hubq.nouns import Artifact, Release, Snapshot, Source
from hubq.plan import NotConverted, Plan, Request, destination, imatrix_facts, kept, plan_in
from hubq.record import merge, plain, read_record
from hubq.sign import KEYLESS, sign
from hubq.steps import Step, done, steps
from hubq.store import key

if TYPE_CHECKING:
    from hubq.samples import Samples
    from hubq.text import Windows

__all__ = ["Event", "Result", "publish", "run_steps"]


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
        hub, repo = _target(request, planned)
        _check_disk(request, planned)
        windows = _read_text(request, planned, Path(aside))
        source = _pull(planned, tell)
        planned = _with_imatrix(request, planned, source, tell)
        job = Job(request, source, windows, hub, repo, tell, [] if known is None else known)
        return _stream(job, planned) if request.stream else _publish(job, planned)


def _target(request: Request, planned: Plan) -> tuple[Hub, str]:
    """The hub and the repository that it goes to, where it is known that it can."""
    hub, repo = destination(request.to, planned.repo)
    if request.sign not in (None, KEYLESS):
        sign(request.sign, "", {})  # a key that cannot sign should not cost the work
    hub.check_writable(repo, request.create, request.pull_request)
    return hub, repo


def _check_disk(request: Request, planned: Plan) -> None:
    need = planned.need + SPARE
    if planned.write and planned.free < need:
        raise HubqError(
            f"this takes {need / 1e9:.2f} GB of disk, and {request.store.root} has {planned.free / 1e9:.2f} GB free",
            "name fewer levels, do one after another with --stream, or choose another disk with --work-dir",
        )


def run_steps(
    request: Request, keys: Collection[str], tell: Tell = lambda event: None
) -> tuple[dict[str, Step], dict[str, Result]]:
    """Do those steps of a request's plan that have these keys, in order, each once and for all: what is done is left alone.

    Returns the steps by their keys, and the results of those that publish. Raises HubqError where a step needs others that the
    store does not hold.
    """
    store, results = request.store, dict[str, Result]()
    with tempfile.TemporaryDirectory() as aside:
        planned = plan_in(Path(aside), request)
        every = {step.key: step for step in steps(request, planned)}
        mine = {step.key: step for step in every.values() if step.key in keys}
        for step in mine.values():
            with store.step_locked(step.key):
                if done(store, step):
                    tell(Event("step", step.name, 1, 1, step))
                    continue
                if waiting := [every[need].name for need in step.needs if not done(store, every[need])]:
                    raise HubqError(
                        f"{step.name} needs what {store.root} does not hold: {', '.join(waiting)}",
                        "run these steps first, in this store or in one that it is filled from",
                    )
                work = _Work(request, planned, Path(aside), every, step, tell)
                store.used.clear()
                store.file("imatrices", planned.imatrix_key)  # what was found as it was planned is used, too
                if result := ACTS[step.kind](work):
                    results[step.key] = result
                if step.kind != "publish":  # pushed once more it would be looked at once more
                    store.keep_step(step.key, {"name": step.name, "machine": machine(), "cores": cores()})
                if step.kind == "calibrate":  # what comes next is planned with the matrix
                    planned = plan_in(Path(aside), request)
                tell(Event("step", step.name, 1, 1, step))
    return mine, results


@dataclass(frozen=True, slots=True)
class _Work:
    """A step to be done, among all steps of its plan by their keys; `aside` holds the model's small files."""

    request: Request
    planned: Plan
    aside: Path
    every: Mapping[str, Step]
    step: Step
    tell: Tell

    @property
    def only(self) -> Plan:
        """The plan with the step's level alone."""
        return replace(self.planned, items=tuple(item for item in self.planned.items if item.level.id == self.step.level))

    def source(self) -> Source:
        """The source with its weights."""
        return _pull(self.planned, self.tell)

    def job(self, source: Source, **facts: Any) -> Job:
        """The job, as far as it is measured and timed."""
        hub, repo = destination(self.request.to, self.planned.repo) if self.step.kind == "publish" else (self.planned.hub, "")
        return Job(self.request, source, _read_text(self.request, self.planned, self.aside), hub, repo, self.tell, **facts)


def _calibrate(work: _Work) -> None:
    _with_imatrix(work.request, work.planned, work.source(), work.tell)


def _export(work: _Work) -> None:
    _prepared(work.request, work.planned, work.source(), [item.level.name for item in work.planned.items], work.tell)


def _build_one(work: _Work) -> None:
    _check_disk(work.request, work.only)
    _build(work.request, work.only, work.source(), work.tell)


def _measure_one(work: _Work) -> None:
    """A level's numbers and checks; of no level those of the source in 16 bits."""
    job, planned = work.job(work.source()), work.only
    release = _describe(job, planned, _build(work.request, planned, job.source, work.tell))
    release = measured(job, planned, release, floor=not planned.items)
    if planned.items:
        checked(job, planned, release)


def _time_all(work: _Work) -> None:
    job = work.job(work.source())
    timed(job, work.planned, _describe(job, work.planned, _build(work.request, work.planned, job.source, work.tell)))


def _publish_all(work: _Work) -> Result:
    """Pushes what the other steps made; no weights are read, and nothing is built or measured."""
    _target(work.request, work.planned)
    machines: dict[str, list[dict[str, Any]]] = {"measure": [], "time": []}
    for need in work.step.needs:
        machines.setdefault(work.every[need].kind, []).append(work.request.store.step(need) or {})
    timed_on = next(iter(machines["time"]), {"machine": "", "cores": 0})
    facts = {"timed_on": timed_on["machine"], "cores": timed_on["cores"]}
    facts |= {"measured_on": "; ".join(dict.fromkeys(record["machine"] for record in machines["measure"]))}
    return _publish(work.job(_pull(work.planned, work.tell, weights=False), **facts), work.planned)


ACTS: dict[str, Callable[[_Work], Result | None]] = {
    "calibrate": _calibrate,
    "export": _export,
    "build": _build_one,
    "measure": _measure_one,
    "time": _time_all,
    "publish": _publish_all,
}


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


def _stream(job: Job, planned: Plan) -> Result:
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


def _ensure(job: Job) -> None:
    """Creates the repository, if that is wanted; one that a pull request goes to is left as it is."""
    if job.request.create:
        job.hub.ensure(job.repo, job.request.private)


def _title(job: Job, planned: Plan) -> str:
    return planned.title if job.request.pull_request else ""


def _published(head: Snapshot, hub: Hub) -> Release | None:
    """What release.json tells of a repository, without files that are not there any more; None where there is none."""
    if not head.file("release.json"):
        return None
    before = read_record(hub.read(head, "release.json"))
    return merge(replace(before, artifacts=(), measurements=()), before, head)


def _publish(job: Job, planned: Plan) -> Result:
    """Build, measure, check and push a plan's levels in one commit, with the card of all levels that are there then."""
    request, source, hub, repo, tell = job.request, job.source, job.hub, job.repo, job.tell
    artifacts = _build(request, planned, source, tell)
    release = _describe(job, planned, artifacts)
    if artifacts:
        release = timed(job, planned, checked(job, planned, measured(job, planned, release)))
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


def _newer(job: Job, planned: Plan) -> str:
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
    reference_of(planned, source)
    windows = windows_of(planned, source, request.text)
    from hubq import text

    if isinstance(windows, text.Windows) and planned.calibration and (shared := text.shared_runs(windows, planned.calibration)):
        raise Usage(
            f"the text to measure on repeats {shared:,} runs of 64 tokens of the calibration text",
            "numbers on what the files were fitted to mean little: choose another text with --calibration or --dataset",
        )
    return windows


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


def _pull(planned: Plan, tell: Tell, weights: bool = True) -> Source:
    """The source on disk, checked; without `weights` those files are only listed whose hash the hub tells."""
    snapshot = planned.snapshot
    listed = {} if weights else {path: file for path in planned.shards if (file := snapshot.file(path)) and file.sha256}
    wanted = [path for path in planned.paths if path not in listed]
    folder, files = planned.hub.pull(snapshot, wanted, lambda path, done, size: tell(Event("pull", path, done, size)))
    known = {**listed, **{file.path: file for file in files}}
    gguf = planned.gguf and folder / planned.gguf
    return Source(
        snapshot.repo, snapshot.commit, folder, planned.config, planned.card, tuple(known[path] for path in planned.paths), gguf
    )


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


def _describe(job: Job, planned: Plan, artifacts: tuple[Artifact, ...]) -> Release:
    request, source, groups = job.request, job.source, planned.format.groups
    return Release(
        source=source.repo,
        commit=source.commit,
        architecture=planned.architecture,
        weights=planned.weights,
        target=job.repo,
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
