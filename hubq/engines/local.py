"""Steps as processes of this machine, as many at a time as its memory and its cores allow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from hubq import errors
from hubq.engines import TRIES, Work, threads
from hubq.errors import HubqError
from hubq.formats import cores
from hubq.job import Event, Tell, memory
from hubq.steps import Step

TICK = 0.05  # seconds between looks at the processes


@dataclass(frozen=True)
class _Process:
    step: Step
    popen: subprocess.Popen[str]
    reader: threading.Thread


def carry(work: Work, tell: Tell) -> None:
    """See engines.carry. A process that is killed is started again, up to TRIES times; an error of hubq's ends it all."""
    waiting = {key: step for key, step in work.steps.items() if not step.done}
    done = work.steps.keys() - waiting.keys()
    running: list[_Process] = []
    tries: dict[str, int] = {}
    try:
        while waiting or running:
            for step in list(waiting.values()):
                if set(step.needs) <= done and _fits(step, [one.step for one in running], work.jobs or cores()):
                    running.append(_start(work, waiting.pop(step.key), tell))
                    tries[step.key] = tries.get(step.key, 0) + 1
            for process in [one for one in running if one.popen.poll() is not None]:
                running.remove(process)
                if _ended(process, tries[process.step.key], tell):
                    done |= {process.step.key}
                else:
                    waiting = {process.step.key: process.step, **waiting}
            time.sleep(TICK)
    finally:
        for process in running:
            process.popen.terminate()
        for process in running:
            process.popen.wait()


def _fits(step: Step, running: list[Step], jobs: int) -> bool:
    """Whether there is room for a step beside others; what is timed runs alone."""
    if not running:
        return True
    if "time" in {step.kind, *(one.kind for one in running)}:
        return False
    return len(running) < jobs and step.memory + sum(one.memory for one in running) <= memory()


def _start(work: Work, step: Step, tell: Tell) -> _Process:
    command = [sys.executable, "-m", "hubq", *work.arguments(step.key), "--json"]
    environment = os.environ | {"HUBQ_NO_PROGRESS": "1", "HUBQ_DEBUG": ""}
    if share := threads(step, work.jobs or cores()):
        environment |= {"OMP_NUM_THREADS": share, "NUMBA_NUM_THREADS": share}
    popen = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    reader = threading.Thread(target=_forward, args=(popen, tell), daemon=True)
    reader.start()
    return _Process(step, popen, reader)


def _forward(popen: subprocess.Popen[str], tell: Tell) -> None:
    assert popen.stderr
    for line in popen.stderr:
        tell(Event("log", line.rstrip()))


def _ended(process: _Process, tries: int, tell: Tell) -> bool:
    """Whether a step was done; raises what went wrong in it, or that its process was killed too often."""
    process.reader.join()
    code, step = process.popen.returncode, process.step
    assert process.popen.stdout
    told = process.popen.stdout.read()
    if code == 0:
        return True
    if error := failure(told):
        raise error
    if tries >= TRIES:
        raise HubqError(
            f"{step.name} ended {tries} times without a result (exit code {code})",
            "it may need more memory than there is: run fewer steps at a time with --jobs 1, or leave --engine out",
        )
    tell(Event("log", f"{step.name} was killed (exit code {code}) and is done again"))
    return False


def failure(told: str) -> HubqError | None:
    """The error that a command of hubq told in JSON, if it did."""
    try:
        found: dict[str, Any] = json.loads(told)["error"]
        kind = getattr(errors, str(found["code"]), HubqError)
        return (
            kind(str(found["message"]), str(found["hint"])) if isinstance(kind, type) and issubclass(kind, HubqError) else None
        )
    except (ValueError, KeyError, TypeError):
        return None
