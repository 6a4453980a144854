"""Finished files -> what is found of them: measured, held against their source, timed. What is in the store is not redone."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq import __version__
from hubq.errors import GateFailed, HubqError, MissingExtra, Unsupported, Usage
from hubq.job import Event, Job, memory
from hubq.nouns import Artifact, Measurement, Release, Source
from hubq.plan import Plan, Request
from hubq.store import key

if TYPE_CHECKING:
    from hubq.samples import Samples
    from hubq.score import Budget
    from hubq.text import TextSpec, Windows

SPARE = 64 << 20  # bytes of disk left free beside what is written
RUNTIMES = {"llama.cpp": "llama-cpp-python", "onnxruntime": "onnxruntime"}  # engine -> its package
PROBED = 128  # ids in a window of the text that the gate scores where nothing is measured
CHECKS_VERSION = 1  # part of the key of what was checked: raise it when a check changes


def windows_of(planned: Plan, source: Source, spec: TextSpec) -> Windows | Samples:
    """What is scored of a text: windows of it, or texts in it where the model predicts no next tokens."""
    from hubq import samples, text

    if planned.blueprint.task != "text-generation":
        return samples.samples(source, spec, planned.blueprint.task)
    return text.windows(source, spec, None if source.config else planned.format.tokenize)


def reference_of(planned: Plan, source: Source) -> tuple[str, Callable[[], Any]]:
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


def measured(job: Job, planned: Plan, release: Release, floor: bool = True) -> Release:
    """The release with its measurements: those that the store holds, and the missing ones; with that of the source in 16 bits
    where `floor` and the request want it. Raises GateFailed where a file loses more than it may."""
    if (windows := job.windows) is None:
        return release
    from hubq import score

    engines = planned.format.engines(job.source)
    if not engines:
        raise MissingExtra("only llama.cpp runs such a model, and llama-cpp-python is missing", 'pip install "hubq[llama]"')
    wanted = [(artifact, engine) for engine in engines for artifact in release.artifacts]
    noise = _floor(job, planned) if floor else {}
    found = _score(job, planned, windows, wanted, noise)
    order = [(score.REFERENCE, reference_of(planned, job.source)[0]), *noise]
    order += [(artifact.level, engine) for artifact, engine in wanted]
    check_gates(job.request.gates, found.values())
    return replace(
        release,
        measurements=tuple(found[pair] for pair in order),
        within=job.request.within,
        evalset=windows.evalset,
        versions={**release.versions, **versions_of(engines)},
        machine=job.measured_on,
    )


def check_gates(gates: Mapping[str, Mapping[str, float]], rows: Iterable[Measurement]) -> None:
    """Raises GateFailed where a measurement is beyond its limit: `gates` maps levels to metrics to the worst allowed value."""
    from hubq.metrics import METRICS

    beyond = []
    for row in rows:
        for name, limit in gates.get(row.level, {}).items():
            if (found := row.values.get(name)) is None:
                raise Usage(
                    f"[gates] {row.level} has a limit on {name}, and {row.engine} measured no such thing of it",
                    f"choose one of: {', '.join(row.values)}",
                )
            worse = found.value < limit if METRICS[name].better == "higher" else abs(found.value) > limit
            if worse or math.isnan(found.value):
                beyond.append(
                    f"{row.level}: {name} is {found.value:.6g} ± {found.stderr:.2g} in {row.engine}, and may be {limit:g}"
                )
    if beyond:
        raise GateFailed(
            "files lose more than they may, and nothing was pushed\n" + "\n".join(beyond),
            "leave these levels out, give them more bits, or change [gates]",
        )


def _score(
    job: Job,
    planned: Plan,
    windows: Windows | Samples,
    wanted: Sequence[tuple[Artifact, str]],
    floor: Mapping[tuple[str, str], Callable[[], Any]] | None = None,
    step: str = "measure",
) -> dict[tuple[str, str], Measurement]:
    """What each engine measures of each file, and of the source itself: what the store holds, and the rest computed."""
    from hubq import score
    from hubq.metrics import METRICS_VERSION

    engine, opened = reference_of(planned, job.source)
    store, module, source, tell = job.request.store, planned.format, job.source, job.tell
    computing = {"config.json", *planned.shards}
    inputs: dict[str, Any] = {"origin": asdict(planned.origin)} if planned.origin else {}
    inputs |= {file.path: file.sha256 for file in source.files if file.path in computing}

    def measured_key(level: str, sha256: str, engine: str) -> str:
        facts = {"evalset": asdict(windows.evalset), "metrics": METRICS_VERSION, "versions": versions_of([engine])}
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


def _floor(job: Job, planned: Plan) -> dict[tuple[str, str], Callable[[], Any]]:
    """The source in the 16 bits that its users compute in, where that is asked for and transformers runs it: (level, engine) ->
    what opens it."""
    from hubq import reference, score

    source, task = job.source, planned.blueprint.task
    if not job.request.floor or reference_of(planned, source)[0] != "transformers":
        return {}
    dtype = "float16" if planned.dtype == "f16" else "bfloat16"

    def opened() -> Any:
        weights = reference.source_weights(source)
        if task == "text-generation":
            return reference.load(source.config, weights, dtype)
        return reference.load_rows(source.config, weights, task, dtype)

    return {(score.FLOOR, f"transformers, {dtype}"): opened}


def checked(job: Job, planned: Plan, release: Release) -> Release:
    """The release with what the parity gate found, of files that the store knows no answer of. Raises GateFailed, which says
    what differs."""
    rows, unmeasured = release.measurements, ""
    if job.windows is None:
        rows, unmeasured = _probe(job, planned, release)
    store, text = job.request.store, job.windows.text if job.windows else ""
    keys = {file.level: _checked_key(job, planned, file, rows, text, unmeasured) for file in release.artifacts}
    found = {level: checks for level, check_key in keys.items() if (checks := store.checks(check_key))}
    if missing := [file for file in release.artifacts if file.level not in found]:
        made = planned.format.check(missing, job.source, text, rows, unmeasured)
        for file in missing:
            found[file.level] = tuple(check for check in made if check.level == file.level)
            store.keep_checks(keys[file.level], found[file.level])
    for level, checks in found.items():
        job.tell(Event("check", level, 1, 1, checks))
    checks = tuple(check for file in release.artifacts for check in found[file.level])
    if failed := [f"{check.level}: {check.name}: {check.detail}" for check in checks if check.outcome == "failed"]:
        raise GateFailed(
            "the files are not what their source is, and nothing was pushed\n" + "\n".join(failed),
            "build them again in a fresh folder: --work-dir DIR; where that does not help, hubq converts this model wrongly",
        )
    return replace(release, checks=checks)


def _checked_key(job: Job, planned: Plan, file: Artifact, rows: Sequence[Measurement], text: str, unmeasured: str) -> str:
    """The key of what the gate finds of a file, by all that it looks at."""
    own = [{"engine": row.engine, "values": row.values} for row in rows if row.level == file.level]
    inputs = {one.path: one.sha256 for one in job.source.files}
    facts: dict[str, Any] = {
        "level": file.level,
        "sha256": file.sha256,
        "inputs": inputs,
        "text": text,
        "unmeasured": unmeasured,
    }
    facts |= {"rows": json.dumps(own, default=asdict, sort_keys=True), "hubq": __version__, "checks": CHECKS_VERSION}
    return key({**facts, "versions": versions_of(planned.format.engines(job.source))})


def _probe(job: Job, planned: Plan, release: Release) -> tuple[tuple[Measurement, ...], str]:
    """The files' logits held against the source's on a few windows of a short text, or why they are not."""
    from hubq import text

    module = planned.format
    if planned.blueprint.task != "text-generation" and not job.source.config:
        return (), "hubq measures encoders in transformers' format only"
    if module.RUNTIME not in module.engines(job.source):
        return (), ""
    if 4 * planned.weights > memory():
        return (), "the source in float32 does not fit into this machine's memory"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.txt"
        path.write_bytes(module.probe_text().encode())
        windows = windows_of(
            planned, job.source, text.TextSpec(str(path), None, windows=None, length=PROBED, seed=None, texts=None)
        )
    try:
        found = _score(job, planned, windows, [(artifact, module.RUNTIME) for artifact in release.artifacts], step="check")
    except Unsupported as error:
        return (), error.message
    return tuple(found.values()), ""


def timed(job: Job, planned: Plan, release: Release) -> Release:
    """The release with the speed of its files, if it is asked for: those that the store holds, and the missing ones."""
    engine, store, found = planned.format.RUNTIME, job.request.store, []
    if not job.request.speed or job.windows is None or engine not in planned.format.engines(job.source):
        return release
    from hubq import speed

    ids = max(job.windows.ids, key=len)
    facts = {"machine": job.timed_on, "cores": job.cores, "versions": versions_of([engine]), "speed": speed.SPEED_VERSION}
    for artifact in release.artifacts:
        speed_key = key({"sha256": artifact.sha256, "level": artifact.level, "ids": ids.tolist(), **facts})
        if (row := store.speed(speed_key)) is None:
            job.tell(Event("time", f"{artifact.level} {engine}"))
            row = replace(speed.speed(artifact, ids), machine=job.timed_on)
            store.keep_speed(speed_key, row)
        job.tell(Event("time", f"{artifact.level} {engine}", 1, 1, row))
        found.append(row)
    return replace(release, speeds=tuple(found))


def versions_of(engines: Sequence[str]) -> dict[str, str]:
    """The packages that numbers depend on."""
    packages = ["datasets", "tokenizers", "torch", "transformers"]
    packages += [RUNTIMES[engine] for engine in engines if engine in RUNTIMES]
    return {name: metadata.version(name) for name in packages}
