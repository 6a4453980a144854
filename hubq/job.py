"""What is carried from step to step of a release: the plan's source and text, where it goes, and who hears of it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubq.formats import cores
from hubq.hub import Hub
from hubq.nouns import Source
from hubq.plan import Request
from hubq.record import plain

if TYPE_CHECKING:
    from hubq.samples import Samples
    from hubq.text import Windows


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a `step`: pull, convert, plan, calibrate, export, build, measure, check, time, push, moved, step (one of a
    plan), or log (a line of another process).

    `label` is a file, a level or "level engine", or says how the source moved on; `result` what came out of it.
    """

    step: str
    label: str = ""
    done: int = 0
    total: int = 0
    result: Any = None


Tell = Callable[[Event], None]


def memory() -> float:
    """Bytes of memory of this machine; without limit where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


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


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same from level to level. `known` are the reference's distributions, see score.measure.

    `measured_on` and `timed_on` are the machines of the release's numbers, the latter of `cores` that could be used: this one,
    unless they come from elsewhere.
    """

    request: Request
    source: Source
    windows: Windows | Samples | None
    hub: Hub
    repo: str
    tell: Tell
    known: list[Any] = field(default_factory=list)
    measured_on: str = field(default_factory=machine)
    timed_on: str = field(default_factory=machine)
    cores: int = field(default_factory=cores)
