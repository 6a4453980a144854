"""Steps as jobs on Hugging Face's machines, paid by time: what they cost at most is said first, and --confirm starts them.

    hubq publish cards/X --engine jobs --store owner/name --image IMAGE --flavor cpu-upgrade --timeout 2h [--confirm]

A level's file and its numbers are one job. Jobs see the Hub alone, and share a store by the repository --store: the manifest
and the files that it names go there first, each step that a job has done follows, and in the end the conductor fetches it all.
So what is done is never paid twice, and a job that still runs is waited for instead of starting another one. A job that is lost
is started once more; one that failed by itself is not. The image is one with hubq, such as its container file makes.

Jobs get the token in HUBQ_STORE_TOKEN, or that of the login: it has to read the model and to write to the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubq.engines import Work
from hubq.errors import HubError, HubqError, Usage
from hubq.init import written
from hubq.job import Event, Tell
from hubq.manifest import NAME, Manifest, resolved, with_paths
from hubq.plan import is_repository
from hubq.record import plain
from hubq.shared import Shared, at
from hubq.steps import Step

POLL = 5.0  # seconds between looks at the jobs
STARTS = 2  # of a job that is lost
LINES = 15  # of the log of a job that failed
NEEDED = ("store", "image", "flavor", "timeout")
PASSED = ("HF_ENDPOINT",)  # what jobs are told of this process's environment
OWN = re.compile(r"error: ")  # how hubq begins what went wrong


@dataclass(frozen=True)
class Chain:
    """Steps that one job does, one after the other, and the keys of those of other jobs that go before."""

    name: str
    keys: tuple[str, ...]
    needs: frozenset[str]


def carry(work: Work, tell: Tell) -> None:
    """See engines.carry. Raises Usage, with the price, where nobody confirmed it."""
    settings = dict(work.settings or {})
    if missing := [name for name in NEEDED if not settings.get(name)]:
        raise Usage(f"--engine jobs needs --{missing[0]}", "see `hubq publish --help`")
    from hubq.hub.jobs import Jobs, seconds

    files, limit, service = parcel(work), seconds(settings["timeout"]), Jobs()
    flavor = service.flavor(settings["flavor"])
    shared = at(settings["store"], work.store.root)
    done = _held(shared)
    todo = [chain for chain in chains(work.steps.values()) if not done.issuperset(chain.keys)]
    if todo:
        most = STARTS * len(todo) * flavor.price(limit)
        cost = f"{len(todo)} jobs on {flavor.name} ({flavor.text}), {settings['timeout']} each at most"
        if not settings.get("confirm"):
            raise Usage(
                f"{cost}, and each started once more if it is lost, cost up to ${most:,.2f}", "add --confirm to start them"
            )
        tell(Event("log", f"{cost}: up to ${most:,.2f}"))
        shared.open()
        folder = shared.send_manifest(files)
        _Conductor(service, shared, settings, limit, folder, tell).run(todo, work.jobs or len(todo))
    shared.fetch([*work.steps])


def _held(shared: Shared) -> frozenset[str]:
    """The steps that are done; none where there is no repository yet, which is made once the price is confirmed."""
    try:
        return shared.done()
    except HubError:
        return frozenset()


def chains(steps: Collection[Step]) -> list[Chain]:
    """Steps by what a job does: a level's own together, each other one by itself; what is in need comes later."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.level if ":" in step.level else step.name, []).append(step)
    found = []
    for name, group in groups.items():
        keys = tuple(step.key for step in group)
        found.append(Chain(name, keys, frozenset(need for step in group for need in step.needs) - {*keys}))
    return found


def parcel(work: Work) -> dict[str, bytes]:
    """The manifest as jobs read it, and the files that it names, by place. Raises Usage for what only this machine has."""
    manifest, files = resolved(work.manifest, Path()), dict[str, bytes]()
    model = manifest.source.model
    if work.requests[0].hub or Path(model.partition(":")[0]).is_absolute():
        raise Usage(
            f"{model} is on this machine, where no job can see it", "publish a model of the Hub, or take another --engine"
        )

    def packed(text: str) -> str:
        path = Path(text)
        if not path.is_absolute():
            return text
        place = f"{len(files)}/{path.name}"  # a file's name is part of what pins it
        files[place] = _read(path)
        return f"./{place}"

    targets = {name: target for name, target in manifest.targets.items() if is_repository(target)}
    packable: Manifest = with_paths(replace(manifest, targets=targets), packed)
    return {NAME: written(packable, NAME).encode(), **files}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}", "correct the path in the manifest") from None


@dataclass
class _Conductor:
    """Starts jobs, watches them and stops them."""

    service: Any
    shared: Shared
    settings: Mapping[str, Any]
    timeout: int
    folder: str
    tell: Tell

    def run(self, todo: list[Chain], most: int) -> None:
        """Until all chains are done. One that fails stops none that runs, since those are paid for, but no other one starts."""
        waiting, running, starts = [*todo], dict[Chain, Any](), dict[Chain, int]()
        open_keys = {key for chain in todo for key in chain.keys}
        failed: HubqError | None = None
        try:
            while running or (waiting and not failed):
                for chain in [one for one in waiting if not one.needs & open_keys and not failed][: most - len(running)]:
                    waiting.remove(chain)
                    running[chain] = None
                    running[chain] = self._start(chain)
                    self.tell(Event("log", f"{chain.name} is on its way: {running[chain].url}"))
                    starts[chain] = starts.get(chain, 0) + 1
                time.sleep(POLL)
                for chain, job in [*running.items()]:
                    running[chain] = now = self._look(chain, job)
                    if now.alive:
                        continue
                    del running[chain]
                    if now.stage == "COMPLETED" and {*chain.keys} <= self.shared.done():
                        open_keys -= {*chain.keys}
                    elif starts[chain] < STARTS and self._is_lost(now):
                        self.tell(Event("log", f"{chain.name} was lost ({plain(now.message)}) and is started once more"))
                        waiting.insert(0, chain)
                    else:
                        failed = failed or self._failure(chain, now)
        finally:
            for chain, job in running.items():  # also the one that was being started
                if job := job or self.service.alive(self._labels(chain)):
                    self.service.cancel(job)
        if failed:
            raise failed

    def _command(self, chain: Chain) -> list[str]:
        return ["hubq", "run-step", self.folder, *chain.keys, "--store", str(self.settings["store"])]

    def _labels(self, chain: Chain) -> dict[str, str]:
        """What tells a job from all others, and a name for people."""
        told = json.dumps([self._command(chain), self.settings["image"], self.settings["flavor"]])
        name = re.sub("[^A-Za-z0-9]+", "-", chain.name)
        return {"hubq": hashlib.sha256(told.encode()).hexdigest(), "name": f"hubq-{name}"[:99]}

    def _start(self, chain: Chain) -> Any:
        """A new job, or the one that somebody started for the same steps and that still runs."""
        from hubq.hub.jobs import Order

        order = Order(
            image=self.settings["image"],
            command=self._command(chain),
            flavor=self.settings["flavor"],
            timeout=self.timeout,
            labels=self._labels(chain),
            env={"HUBQ_NO_PROGRESS": "1", **{name: os.environ[name] for name in PASSED if name in os.environ}},
            secrets={"HF_TOKEN": os.environ.get("HUBQ_STORE_TOKEN") or self.service.token()},
        )
        return self.service.alive(order.labels) or self.service.start(order)

    def _look(self, chain: Chain, job: Any) -> Any:
        now = self.service.look(job)
        if now.stage != job.stage:
            self.tell(Event("log", f"{chain.name} is {plain(now.stage).lower()}"))
        return now

    def _is_lost(self, job: Any) -> bool:
        """Whether a job ended by no fault of its own: hubq said nothing, its time was not up, and nobody stopped it."""
        if job.stage != "ERROR" or re.search(r"(?i)time.?out", job.message):
            return False
        return not any(OWN.match(line) for line in self.service.log(job, LINES))

    def _failure(self, chain: Chain, job: Any) -> HubqError:
        log = "\n".join(f"  {plain(line)}" for line in self.service.log(job, LINES))
        why = plain(job.message) or plain(job.stage).lower()
        return HubqError(
            f"{chain.name} failed on {self.settings['flavor']}: {why}\n{log}", f"see {job.url}; what is done is kept"
        )
