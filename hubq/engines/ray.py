"""Steps as tasks of a Ray cluster, each of which waits for those that it needs.

    --engine ray               a cluster on this machine that ends with the run; --jobs steps at once (default: one a core)
    --engine ray://HOST:PORT   an existing one, through Ray's client
    --engine ray:ADDRESS       an existing one, from one of its machines; `ray:auto` finds it

On an existing cluster a machine does one step at a time, or --jobs of them; all see the work store at the same place, or share
one by --store. A step has its share of the cores of this machine, or all of another one's: Ray's own choice of the number of
threads is undone. A task whose process or machine dies is done again. What hubq itself raises is final.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubq import __version__
from hubq.engines import TRIES, Work, threads
from hubq.errors import HubqError, MissingExtra
from hubq.formats import cores
from hubq.job import Event, Tell, memory
from hubq.plan import Request
from hubq.record import plain
from hubq.secrets import scrub
from hubq.shared import at, run_shared
from hubq.steps import Step, planned_steps
from hubq.store import Store, default_root

PAUSE = 0.25  # seconds between two looks at what was told
OFTEN = 0.5  # seconds between two events of a step that goes on
ANSWER = 10.0  # seconds that a cluster may take to answer
OBJECTS = 128 << 20  # bytes for what tasks return, which is nothing
THREADS = "OMP_NUM_THREADS"  # Ray sets it to the CPUs of a task
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
INSTALL = f'install the same everywhere: pip install "hubq[ray]=={__version__}"'


@dataclass(frozen=True)
class Errand:
    """What a task is to do: the step `key` of a request, by this `version` of hubq. `shared` is the repository that workers
    share a store by, where they do not see the request's own, with the file `seen` in it."""

    request: Request
    key: str
    version: str
    seen: Path
    shared: str | None


class Heard:
    """An actor that keeps what tasks tell until it is taken."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.begun: set[str] = set()

    def begin(self, name: str) -> None:
        """Note that a step begins; one that began before was lost."""
        if name in self.begun:
            self.events.append(Event("log", f"{name} was lost with its worker and is done again"))
        self.begun.add(name)

    def hear(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def take(self) -> list[Event]:
        """All events since the last time."""
        taken, self.events = self.events, []
        return taken


def carry(work: Work, tell: Tell) -> None:
    """See engines.carry. Raises MissingExtra without Ray, HubqError for a cluster that cannot be reached or used."""
    before = [*sys.path]
    try:
        import ray
    except ImportError:
        raise MissingExtra("--engine ray needs Ray, which is not installed", 'pip install "hubq[ray]"') from None
    place = (work.settings or {}).get("store")
    shared = at(place, work.store.root) if place else None
    done = shared.open() if shared else {step.key for step in work.steps.values() if step.done}
    try:
        with _cluster(ray, work.engine.partition(":")[2], work.jobs) as room:
            _run(ray, work, tell, room, done, place)
    finally:
        sys.path[:] = before  # where Ray puts packages of its own, which are none of the release's environment
    if shared:
        shared.fetch([*work.steps])


def _run(ray: Any, work: Work, tell: Tell, room: _Room, done: Collection[str], place: str | None) -> None:
    """Hand out all steps that are not done, and wait for them."""
    heard = ray.remote(num_cpus=0, max_restarts=-1)(Heard).remote()
    run = ray.remote(max_calls=1, max_retries=TRIES - 1)(_task())  # a process a step: what it took is given back
    tasks: dict[str, Any] = {}
    for request in work.requests:
        for step in planned_steps(request)[1]:
            if step.key in work.steps and step.key not in done:
                errand = pickle.dumps(Errand(request, step.key, __version__, work.path, place))
                asked = run.options(name=step.name, **room.asked(step))
                needs = [tasks[need] for need in step.needs if need in tasks]
                tasks[step.key] = asked.remote(step.name, room.threads(step), errand, heard, *needs)
    _wait(ray, tasks, heard, tell)


def _task() -> Callable[..., None]:
    """What a worker runs. It is sent by value: hubq may not be imported before the threads are set, since torch looks once."""

    def step(name: str, threads: str | None, errand: bytes, heard: Any, *needs: None) -> None:
        import os

        import ray

        ray.get(heard.begin.remote(name))
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        from hubq.engines.ray import do

        do(errand, heard)

    return step


def do(errand: bytes, heard: Any) -> None:
    """Do an errand in a worker, and tell `heard` how it goes."""
    import ray

    given: Errand = pickle.loads(errand)
    if given.version != __version__:
        raise HubqError(f"a worker has hubq {__version__}, and this is {given.version}", INSTALL)
    request = given.request
    if given.shared:
        request = replace(request, store=Store(default_root()))
    elif not given.seen.is_file():
        raise HubqError(
            f"a worker does not see {request.store.root}",
            "name a folder that all machines share with --work-dir, or a repository with --store owner/name",
        )
    last = 0.0

    def tell(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if event.result is not None or event.done == event.total or now - last > OFTEN:
            last = now
            with suppress(ray.exceptions.RayError):  # what nobody hears is lost, and the step goes on
                ray.get(heard.hear.remote(event))

    run_shared(request, [given.key], tell, at(given.shared, request.store.root) if given.shared else None)


def _wait(ray: Any, tasks: dict[str, Any], heard: Any, tell: Tell) -> None:
    """Until all tasks are done; raises what the first one raises that fails, and stops the others."""
    left = [*tasks.values()]
    try:
        while left:
            done, left = ray.wait(left, timeout=PAUSE)
            with suppress(ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
                for event in ray.get(heard.take.remote()):
                    tell(event)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise _told(error.cause) from None
    except ray.exceptions.RayError as error:
        raise HubqError(
            f"a step was lost {TRIES} times with its worker: {plain(str(error).splitlines()[0])}",
            "it may need more memory than the machine has: run fewer steps at a time with --jobs 1",
        ) from None
    finally:
        for task in left:
            with suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)


def _told(cause: Exception) -> HubqError:
    """What went wrong in a worker, as hubq says it."""
    if isinstance(cause, HubqError):
        return cause
    if isinstance(cause, ImportError):
        return HubqError(f"a worker lacks a package: {plain(cause)}", INSTALL)
    return HubqError(
        f"a step failed in its worker: {type(cause).__name__}: {plain(scrub(str(cause)))}", "run it with --engine local"
    )


@dataclass(frozen=True)
class _Room:
    """What a machine of a cluster has: the CPUs of the smallest, and the memory of the largest; a step takes `cpus` of them."""

    smallest: float
    memory: float
    cpus: float
    jobs: int = 1

    def threads(self, step: Step) -> str | None:
        """OMP_NUM_THREADS of a step: its share of this machine, where the cluster is here."""
        return os.environ.get(THREADS) or threads(step, self.jobs)

    def asked(self, step: Step) -> dict[str, float]:
        """What a step asks for. One that needs more memory than any machine has is not refused, but has it alone; what is timed
        has the CPUs alone."""
        return {"num_cpus": self.smallest if step.kind == "time" else self.cpus, "memory": min(step.memory, int(self.memory))}


@contextmanager
def _cluster(ray: Any, address: str, jobs: int | None) -> Iterator[_Room]:
    """A cluster, and how much room a machine of it has: the one at `address`, or a new one on this machine."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    count = jobs or (1 if address else cores())
    folder = None if address else tempfile.mkdtemp(prefix="hubq-", dir="/tmp" if os.path.isdir("/tmp") else None)
    settings: dict[str, Any] = {"address": f"ray:{address}" if address.startswith("//") else address}
    if folder:  # its name is short, since sockets lie in it
        settings = {"num_cpus": count, "include_dashboard": False, "object_store_memory": OBJECTS, "_temp_dir": folder}
        settings["_memory"] = int(min(memory(), 1 << 50))
    try:
        _start(ray, settings)
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU", 0) >= 1]
        if not machines:
            raise HubqError(f"the Ray cluster at {address} has no machine with a CPU", "see `ray status` there")
        smallest = min(one["CPU"] for one in machines)
        yield _Room(smallest, max(one.get("memory", 0) for one in machines), max(1, smallest // count), 1 if address else count)
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, settings: dict[str, Any]) -> None:
    """Connect to a cluster, or start one."""
    host, _, port = str(settings.get("address", "")).rpartition("/")[2].rpartition(":")
    try:
        if port.isdecimal():  # Ray itself waits for minutes where nobody answers
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        address = settings.get("address")
        where = f"the Ray cluster at {address} cannot be used" if address else "no Ray cluster could be started"
        raise HubqError(f"{where}: {plain(str(error).strip().splitlines()[-1])}", "see `ray status` there") from None
