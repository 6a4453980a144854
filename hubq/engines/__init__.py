"""Who does the steps of a plan besides this process: others on this machine, a Ray cluster, jobs on Hugging Face.

An engine here is what carries steps, found by its name; the engines of measurements, which run models, are another thing.

carry(work, tell)    # does every step that does not publish, by their needs; raises what made one fail for good

Afterwards the store holds all that `release.publish` needs, and that pushes it: no other process needs to be able to write.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubq.errors import Unsupported, Usage
from hubq.formats import cores
from hubq.init import written
from hubq.job import Tell
from hubq.manifest import Manifest, resolved
from hubq.nouns import FLOOR
from hubq.plan import Request
from hubq.steps import Step, planned_steps
from hubq.store import Store

ENGINES = {"local": "hubq.engines.local", "ray": "hubq.engines.ray", "jobs": "hubq.engines.jobs"}
TRIES = 3  # of a step whose process was killed


@dataclass(frozen=True)
class Work:
    """What is to be carried: the manifest, what it asks for, and by which `engine`, with an address behind a colon if need be.

    `jobs` is how many steps are done at a time (None: the engine's choice), `settings` are what one engine alone is told.
    """

    engine: str
    manifest: Manifest
    requests: list[Request]
    jobs: int | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def store(self) -> Store:
        """The store that the steps are done in."""
        return self.requests[0].store

    @cached_property
    def steps(self) -> dict[str, Step]:
        """The steps that do not publish, by their keys, in an order that respects their needs."""
        found = [step for request in self.requests for step in planned_steps(request)[1]]
        return {step.key: step for step in found if step.kind != "publish"}

    @cached_property
    def path(self) -> Path:
        """The manifest as a file in the store, with absolute paths."""
        return self.store.keep_manifest(written(resolved(self.manifest, Path()), "hubq.toml").encode())

    def arguments(self, key: str) -> list[str]:
        """The arguments of hubq that do a step in the store."""
        request = self.requests[0]
        hub = ["--hub", str(request.hub.resolve())] if request.hub else []
        return ["run-step", str(self.path), key, "--work-dir", str(self.store.root.resolve()), *hub]


def threads(step: Step, jobs: int) -> str | None:
    """OMP_NUM_THREADS of a step that has neighbours, or None where it may use all cores: what is timed, and sums in 16 bits,
    which depend on the number of threads. Those in 32 bits were not seen to."""
    return None if jobs == 1 or step.kind == "time" or step.level == FLOOR else str(max(1, cores() // jobs))


def carry(work: Work, tell: Tell) -> None:
    """Have the steps done by the engine of that name. Raises Usage where there is none, Unsupported for what has no steps."""
    name = work.engine.partition(":")[0]
    if name not in ENGINES:
        raise Usage(f"--engine {work.engine}: there is no such engine", f"it is one of: {', '.join(ENGINES)}")
    for request in work.requests:
        if request.stream or request.llama_cpp:
            option = "--stream" if request.stream else "--llama-cpp"
            raise Unsupported(f"{option} works in one process", "leave --engine out")
    importlib.import_module(ENGINES[name]).carry(work, tell)
