"""How fast a file runs here, and in how much memory. Each is run in a process of its own, by the engine that users run:

    python -m hubq.speed FORMAT FILE TOKENS REPEATS < IDS

The tests are llama-bench's, on real text: all ids in one go, and the first so many of them one by one from an empty cache.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from hubq.errors import HubqError
from hubq.formats import cores, open_format
from hubq.nouns import Artifact, Speed, Spread
from hubq.sealed import reason

SPEED_VERSION = 2  # part of the key of what is kept: raise it when something else is timed
TOKENS, REPEATS = 128, 3
PATIENCE = 30.0  # seconds, after which a test is not repeated
LIMIT = 3600  # seconds that a file may take
WITHOUT = "publish without it: --no-speed"


class Player(Protocol):
    """A loaded file; `generates` says whether it can go on behind ids that it has seen."""

    generates: bool

    def feed(self, ids: np.ndarray, fresh: bool) -> None:
        """Run ids [T] behind those that went before; `fresh` forgets these first."""


def speed(artifact: Artifact, ids: np.ndarray, tokens: int = TOKENS, repeats: int = REPEATS) -> Speed:
    """Run an artifact in a fresh process on ids [T]: all as a prompt, and the first `tokens` of them one by one.

    Raises HubqError where it does not run.
    """
    name, module = artifact.path.name, artifact.level.partition(":")[0]
    command = [sys.executable, "-m", "hubq.speed", module, str(artifact.path.resolve()), str(tokens), str(repeats)]
    try:
        ended = subprocess.run(
            command, input=json.dumps(ids.tolist()), capture_output=True, text=True, errors="replace", timeout=LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise HubqError(f"{name} has not run after {LIMIT} seconds", WITHOUT) from error
    if ended.returncode:
        told = reason(ended.stderr.strip().splitlines(), ended.returncode)
        raise HubqError(f"the speed of {name} cannot be told: {told}", WITHOUT)
    found = json.loads(ended.stdout)
    spreads = {key: Spread(**value) for key, value in found.items() if isinstance(value, dict)}
    return Speed(artifact.level, **{**found, **spreads})


def _run(module: ModuleType, path: Path, ids: np.ndarray, tokens: int, repeats: int) -> dict[str, Any]:
    """What the fresh process does."""
    opened = module.player(path, len(ids))
    before, start = _peak(), time.perf_counter()
    with opened as player:
        load = time.perf_counter() - start
        player.feed(ids, True)  # the first run makes room and is not counted
        found: dict[str, Any] = {"prompt": _spread(lambda: player.feed(ids, True), len(ids), repeats)}
        if player.generates:
            busy, spent, begin = time.process_time(), energy(), ids[:tokens]
            found["generation"] = _spread(lambda: _generate(player, begin), len(begin), repeats)
            played = len(begin) * found["generation"]["count"]
            found["cpu"] = (time.process_time() - busy) / played
            found["energy"] = used(spent, energy()) / played if spent else None
    facts = {"engine": module.RUNTIME, "threads": cores(), "load": load, "memory": _peak() - before}
    return {**facts, **found, "prompt_tokens": len(ids), "generated_tokens": min(tokens, len(ids))}


def _generate(player: Player, ids: np.ndarray) -> None:
    for place in range(len(ids)):
        player.feed(ids[place : place + 1], place == 0)


def _spread(work: Callable[[], None], tokens: int, repeats: int) -> dict[str, float]:
    """Tokens per second, repeated as often as patience allows."""
    rates: list[float] = []
    begun = time.perf_counter()
    while len(rates) < repeats and (not rates or time.perf_counter() - begun < PATIENCE):
        start = time.perf_counter()
        work()
        rates.append(tokens / (time.perf_counter() - start))
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "count": len(rates)}


def energy(root: Path = Path("/sys/class/powercap")) -> dict[Path, tuple[float, float]]:
    """Joules that each processor package has used since its counter began, and where that begins anew; empty where Linux does
    not tell (https://docs.kernel.org/power/powercap/powercap.html)."""
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):  # most machines let root alone read it
            if (zone / "name").read_text().startswith("package"):
                used, most = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
                found[zone] = (used, most)
    return found


def used(before: dict[Path, tuple[float, float]], after: dict[Path, tuple[float, float]]) -> float:
    """Joules between two readings; a counter that has gone down has begun anew."""
    return sum(after[zone][0] - used + (most if after[zone][0] < used else 0) for zone, (used, most) in before.items())


def _peak() -> int:
    """The most memory that this process has held, in bytes.

    Linux counts in getrusage what the process was before it became this program.
    """
    import resource

    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    try:
        given = np.array(json.load(sys.stdin), np.int64)
        print(json.dumps(_run(open_format(sys.argv[1]), Path(sys.argv[2]), given, int(sys.argv[3]), int(sys.argv[4]))))
    except HubqError as error:
        sys.exit(error.message)
