"""A plan as data: steps with keys, inputs, sizes and needs, so that anything that runs processes can carry it.

    calibrate | export  ->  build LEVEL  ->  measure LEVEL  \
                        ->  time                             ->  publish
                            measure floor                   /

A step's key is the SHA-256 of all that its outcome depends on; what a finished step made or used is named by its record in the
work store. Everything but `publish` can be done anywhere, in any order that respects the needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hubq import __version__
from hubq.examine import CHECKS_VERSION, versions_of
from hubq.metrics import METRICS_VERSION
from hubq.nouns import FLOOR, Source
from hubq.plan import Item, Plan, Request, plan
from hubq.score import BUDGET
from hubq.store import Store, key
from hubq.text import pin

BASE = 1 << 30  # bytes of memory that a process with its libraries takes
SLAB = 256 << 20  # and the slabs of rows that are encoded at a time


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, called `name`: `needs` are the keys of the steps that go before, `inputs` the source's files that it
    reads with their hashes, `size` the bytes that it writes and `memory` those that it takes at most, both estimated but for
    files that are built; `done` says whether the store holds what it makes."""

    key: str
    name: str
    kind: Literal["calibrate", "export", "build", "measure", "time", "publish"]
    level: str
    needs: tuple[str, ...]
    inputs: Mapping[str, str | None]
    size: int
    memory: int
    done: bool = False


def done(store: Store, step: Step) -> bool:
    """Whether the store holds what a step makes. Publishing is never done: it is looked at what is there."""
    return step.kind != "publish" and store.step(step.key) is not None


def steps(request: Request, planned: Plan) -> tuple[Step, ...]:
    """The steps of a request's plan, in an order that respects their needs; the last one publishes."""
    listed = {file.path: file.sha256 or file.blob for file in planned.snapshot.files}
    inputs = {path: listed[path] for path in planned.paths}
    first = [*_calibrate(planned, inputs), *_export(planned, inputs)]
    needs = tuple(step.key for step in first)
    builds = [_build(planned, item, needs, inputs) for item in planned.items]
    after = [*_measures(request, planned, builds, inputs), *_time(request, planned, builds)]
    every = [*first, *builds, *after]
    last = {"publish": [step.key for step in every], "target": planned.target, "private": request.private}
    small = {path: digest for path, digest in inputs.items() if path not in planned.shards}
    every.append(Step(key(last), f"publish {planned.format.WORDS.title}", "publish", "", _keys(every), small, 0, BASE))
    return tuple(_with_state(request.store, step) for step in every)


def planned_steps(request: Request) -> tuple[Plan, tuple[Step, ...]]:
    """A request's plan and its steps; touches nothing."""
    planned = plan(request)
    return planned, steps(request, planned)


def _with_state(store: Store, step: Step) -> Step:
    return replace(step, done=done(store, step))


def _keys(found: Iterable[Step]) -> tuple[str, ...]:
    return tuple(step.key for step in found)


def _calibrate(planned: Plan, inputs: Mapping[str, str | None]) -> list[Step]:
    if planned.calibration is None or not planned.blueprint.weighted:
        return []
    name = f"calibrate {planned.blueprint.imatrix.file}"
    memory = BASE + 4 * planned.weights
    return [Step(key({"calibrate": planned.imatrix_key}), name, "calibrate", "", (), inputs, 0, memory)]


def _export(planned: Plan, inputs: Mapping[str, str | None]) -> list[Step]:
    facts = [planned.format.intermediate(planned.blueprint, item.level.name) for item in planned.items]
    if not any(facts):
        return []
    made = key({"export": next(filter(None, facts)), "inputs": inputs})
    size = 4 * planned.weights
    return [Step(made, f"export {planned.snapshot.repo}", "export", "", (), inputs, size, BASE + 3 * size)]


def _build(planned: Plan, item: Item, needs: tuple[str, ...], inputs: Mapping[str, str | None]) -> Step:
    whole = planned.format.intermediate(planned.blueprint, item.level.name)  # graphs are held whole, rows of a GGUF in slabs
    memory = BASE + (16 * planned.weights if whole else SLAB)
    return Step(item.key, f"build {item.level.id}", "build", item.level.id, needs, inputs, item.size, memory)


def _measures(request: Request, planned: Plan, builds: list[Step], inputs: Mapping[str, str | None]) -> list[Step]:
    """One for each level, and one for the source in 16 bits."""
    facts = _measuring(request, planned)
    memory = BASE + 4 * planned.weights + (request.logits or BUDGET.size) * (request.text is not None)
    found = [
        Step(
            key({"measure": build.key, "gates": dict(request.gates.get(build.level, {})), **facts}),
            f"measure {build.level}",
            "measure",
            build.level,
            (build.key,),
            inputs,
            0,
            memory + build.size,
        )
        for build in builds
    ]
    if request.text is None or not request.floor:
        return found
    floor = key({"measure": FLOOR, "inputs": inputs, **facts})
    return [Step(floor, f"measure {FLOOR} ({planned.format.WORDS.title})", "measure", FLOOR, (), inputs, 0, memory), *found]


def _time(request: Request, planned: Plan, builds: list[Step]) -> list[Step]:
    """All files by themselves and on one machine, or their speeds would not compare."""
    if request.text is None or not request.speed:
        return []
    from hubq.speed import SPEED_VERSION

    facts = {"time": _keys(builds), "speed": SPEED_VERSION, **_measuring(request, planned)}
    memory = BASE + max(build.size for build in builds)
    return [Step(key(facts), f"time {planned.format.WORDS.title}", "time", "", _keys(builds), {}, 0, memory)]


def _measuring(request: Request, planned: Plan) -> dict[str, Any]:
    """What decides a number besides the file."""
    source = Source(planned.snapshot.repo, planned.snapshot.commit, Path(), planned.config, {}, (), planned.gguf)
    text = request.text and {**asdict(request.text), "dataset": pin(request.text.dataset)}
    versions = versions_of(planned.format.engines(source))
    return {"text": text, "metrics": METRICS_VERSION, "checks": CHECKS_VERSION, "hubq": __version__, "versions": versions}
