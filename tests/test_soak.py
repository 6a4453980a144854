"""Many publishes with random faults, and at the end every release is whole.

HUBQ_SOAK_SEED chooses other faults; a failure shows the seed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import loopback
import pytest
import tiny
from releases import check_whole

from hubq import plan as planning
from hubq.errors import HubqError
from hubq.formats import parse_levels
from hubq.hub.huggingface import HuggingFace
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store

KILLS = 3
LEVELS = ("Q8_0", "Q4_0")
FRESH = 0.7  # the share of publishes to a new repository; elsewhere often nothing is left to commit
ASKED = (
    "GET /api/models/org/Tiny",
    "/tree/",
    "HEAD",
    "GET /cdn",
    "/preupload/",
    "/objects/batch",
    "PUT /upload",
    "/commit/main",
)
STATUSES = (408, 429, 500, 502, 503, 504, 401, 403)


class Soak:
    """The parts of a run: what was tried, and what every repository has to hold."""

    def __init__(self, server: loopback.Hub, place: Path, seed: int) -> None:
        self.server, self.place, self.random = server, place, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.failed = 0
        self.seen: dict[str, int] = {}  # commits of a repository that were looked at
        self.good: dict[str, bytes] = {}  # what the files of all levels are, made without faults
        self.expected: dict[str, set[str]] = {}
        network = [self.refuse, self.refuse, self.flip, self.cut, self.drop, self.lose, self.race, self.meddle, self.alter]
        self.acts: list[Callable[[str], None]] = [*network, self.rot, self.poison]

    def request(self, target: str, levels: set[str], work: str = "work") -> Request:
        names = ",".join(level for level in LEVELS if level in levels)
        return Request("org/Tiny", parse_levels(names.lower()), Store(self.place / work), to=target)

    # --- faults ---

    def refuse(self, target: str) -> None:
        times = self.random.choice((1, 2, loopback.ALWAYS))
        self.server.fail(self.random.choice(ASKED), self.random.choice(STATUSES), times)

    def flip(self, target: str) -> None:
        self.forget_cache()
        self.server.flipped["model.safetensors"] = self.random.choice((1, 1, loopback.ALWAYS))

    def cut(self, target: str) -> None:
        self.forget_cache()
        self.server.cut["model.safetensors"] = self.random.choice((1, 2))

    def drop(self, target: str) -> None:
        self.forget_cache()
        self.server.dropped["model.safetensors"] = [self.random.randrange(100_000) for _ in range(self.random.choice((1, 2)))]

    def lose(self, target: str) -> None:
        self.server.lost_answers = self.random.choice((1, 2))

    def race(self, target: str) -> None:
        other = {self.random.choice(LEVELS)}

        def act() -> None:
            publish(self.request(target, other, "elsewhere"))
            self.expected[target] |= other

        self.server.before_commit = act

    def meddle(self, target: str) -> None:
        self.server.before_commit = lambda: self.server.add(target, {"notes.txt": self.random.randbytes(9)}) and None

    def rot(self, target: str) -> None:
        for path in (self.place / "work" / "artifacts").glob("*/*.gguf"):
            damage(path, self.random)

    def poison(self, target: str) -> None:
        for path in (self.place / "home").rglob("model.safetensors"):
            damage(path.resolve(), self.random)

    def alter(self, target: str) -> None:
        self.server.tampered[f"Tiny-{self.random.choice(LEVELS)}.gguf"] = b"evil"

    def forget_cache(self) -> None:
        shutil.rmtree(self.place / "home", ignore_errors=True)

    def heal(self) -> None:
        server = self.server
        server._failures.clear()
        for faults in (server.flipped, server.cut, server.dropped, server.tampered):
            faults.clear()
        server.lost_answers, server.before_commit = 0, None

    # --- rounds ---

    def target(self) -> str:
        """A new repository, or one that holds something already."""
        self.server.uploads.clear()
        if self.expected and self.random.random() > FRESH:
            return self.random.choice(list(self.expected))
        target = f"org/Tiny-{len(self.expected)}"
        self.expected[target] = set()
        self.server.add(target, {"notes.txt": b""})
        return target

    def round(self, target: str, levels: set[str]) -> None:
        """A publish with faults, again without those where it failed, and a look at all that was committed."""
        for act in self.random.sample(self.acts, self.random.choice((1, 2, 3))):
            self.faults[act.__name__] += 1
            act(target)
        altered = bool(self.server.tampered)
        try:
            publish(self.request(target, levels))
        except HubqError:
            self.failed += 1
            self.heal()
            publish(self.request(target, levels))
        self.heal()
        self.expected[target] |= levels
        self.look(target, skip=altered)

    def kill(self, target: str, levels: set[str], moment: str) -> None:
        """A process of its own, killed when the Hub sees a request; then the same again, to its end."""
        self.faults["kill"] += 1
        command = [sys.executable, "-m", "hubq", "publish", "org/Tiny", "--levels", ",".join(levels).lower(), "--to", target]
        command += ["--no-eval", "--work-dir", str(self.place / "work")]
        seen = len(self.server.requests)
        victim = subprocess.Popen(
            command,
            env=os.environ | self.server.environment(self.place / "home"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while victim.poll() is None:
            if any(moment in f"{verb} {path}" for verb, path in self.server.requests[seen:]):
                break
            threading.Event().wait(0.002)
        victim.kill()
        victim.communicate()
        publish(self.request(target, levels))
        self.expected[target] |= levels
        self.look(target)

    def look(self, target: str, skip: bool = False) -> None:
        """At every commit since the last look what release.json lists is whole; now it is all levels that ever came.

        With `skip` only the last one counts: the Hub itself altered a file on the way.
        """
        commits = list(self.server.repos[target].commits)
        for commit in commits[-1:] if skip else commits[self.seen.get(target, 0) :]:
            files = self.server.files(target, commit)
            if "release.json" in files:
                held = {level for level in LEVELS if f"Tiny-{level}.gguf" in files}
                check_whole(files, held, files.keys() & {"notes.txt", ".gitattributes"})
                assert all(files[f"Tiny-{level}.gguf"] == self.good[f"Tiny-{level}.gguf"] for level in held)
                assert commit != commits[-1] or held == self.expected[target]
        self.seen[target] = len(commits)


def damage(path: Path, source: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Soak]:
    seed = int(os.environ.get("HUBQ_SOAK_SEED", "20"))
    print(f"HUBQ_SOAK_SEED={seed}")
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    model = tiny.llama(tmp_path / "Tiny", dtype="float32", num_hidden_layers=1)
    (model / "tokenizer_config.json").write_text("{}")  # no chat template, whose check takes a process
    with loopback.Hub() as server:
        monkeypatch.setattr(planning, "connect", lambda place=None, **_: HuggingFace(server.url, loopback.TOKEN))
        server.add("org/Tiny", {path.name: path.read_bytes() for path in model.iterdir()})
        yield Soak(server, tmp_path, seed)


@pytest.mark.parametrize("rounds", [18, pytest.param(50, marks=pytest.mark.thorough)])
def test_publishes_with_random_faults_end_in_whole_releases(soak: Soak, rounds: int) -> None:
    first = soak.target()
    publish(soak.request(first, set(LEVELS)))
    soak.expected[first] |= set(LEVELS)
    soak.good = dict(soak.server.files(first))
    for number in range(rounds):
        target, levels = soak.target(), set(soak.random.choice((LEVELS, LEVELS[:1], LEVELS[1:])))
        if number % (rounds // KILLS) == 3:
            soak.kill(target, levels, soak.random.choice(("GET /cdn", "PUT /upload", "/commit/", "/preupload/")))
        else:
            soak.round(target, levels)
    for target in soak.expected:
        soak.look(target, skip=True)
    lost = sum(len(levels) for levels in soak.expected.values()) - sum(
        f"Tiny-{level}.gguf" in soak.server.files(target) for target in soak.expected for level in soak.expected[target]
    )
    tried = sum(soak.faults.values())
    print(f"faults that requests met: {dict(Counter(soak.server.met))}")
    print(f"{rounds} publishes, {tried} faults ({dict(soak.faults)}), {soak.failed} stopped and run again, {lost} files lost")
    assert lost == 0 and tried >= rounds and len(soak.faults) > min(8, rounds // 3) and 3 * len(soak.server.met) > 2 * rounds
