"""Steps as processes of this machine: the same release as without, whatever is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny

from hubq.engines import TRIES, Work, carry, local
from hubq.errors import GateFailed, HubqError, Usage
from hubq.job import Event
from hubq.manifest import EvaluationTable, Manifest, SourceTable, requests
from hubq.release import publish
from hubq.steps import Step
from hubq.store import Store


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> Manifest:
    model = tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32")
    return Manifest(
        source=SourceTable(model=str(model)),
        variants={"gguf": ["Q8_0", "Q4_K_M"]},
        evaluation=EvaluationTable(dataset=str(topics), windows=2, floor=False, speed=False),
    )


def work(manifest: Manifest, place: Path, jobs: int | None = None) -> Work:
    (place / "out").mkdir(parents=True)
    return Work("local", manifest, requests(manifest, Store(place / "work"), str(place / "out")), jobs)


def files(done: Work) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(str(done.requests[0].to)).rglob("*") if path.is_file()}


def step(name: str, kind: str = "build", memory: int = 1) -> Step:
    return Step(name, name, kind, "", (), {}, 0, memory)  # type: ignore[arg-type]


def test_a_killed_process_changes_nothing(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = work(manifest, tmp_path / "without")
    publish(without.requests[0])
    one, told, killed = work(manifest, tmp_path / "one", jobs=2), list[Event](), list[str]()
    start = local._start

    def started(done: Work, step: Step, tell: object) -> object:
        process = start(done, step, tell)  # type: ignore[arg-type]
        if step.name == "measure gguf:Q8_0" and not killed:
            killed.append(step.name)
            threading.Thread(target=kill, args=(process.popen.pid,), daemon=True).start()
        return process

    monkeypatch.setattr(local, "_start", started)
    carry(one, told.append)
    assert [event.label for event in told if "was killed" in event.label] == [
        "measure gguf:Q8_0 was killed (exit code -9) and is done again"
    ]
    publish(one.requests[0])
    assert files(one) == files(without)


def kill(pid: int) -> None:
    """Ends a process in the middle of its work."""
    time.sleep(1.5)
    os.kill(pid, signal.SIGKILL)


def test_an_error_of_a_step_is_the_whole_run_s(manifest: Manifest, tmp_path: Path) -> None:
    from dataclasses import replace

    limited = replace(manifest, variants={"gguf": ["Q4_K_M"]}, gates={"gguf:Q4_K_M": {"kld": 1e-9}})
    with pytest.raises(GateFailed, match="gguf:Q4_K_M: kld is"):
        carry(work(limited, tmp_path), lambda event: None)


def test_what_is_killed_every_time_ends_the_run(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = local._start

    def started(*arguments: object) -> object:
        process = start(*arguments)  # type: ignore[arg-type]
        process.popen.kill()
        return process

    monkeypatch.setattr(local, "_start", started)
    with pytest.raises(HubqError, match=f"ended {TRIES} times without a result") as caught:
        carry(work(manifest, tmp_path, jobs=1), lambda event: None)
    assert "--jobs 1" in caught.value.hint


def test_steps_share_memory_and_what_is_timed_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "memory", lambda: 10)
    assert local._fits(step("large", memory=99), [], 2), "what does not fit runs alone"
    assert local._fits(step("b", memory=5), [step("a", memory=5)], 2)
    assert not local._fits(step("b", memory=6), [step("a", memory=5)], 2)
    assert not local._fits(step("c"), [step("a"), step("b")], 2)
    assert not local._fits(step("t", "time"), [step("a")], 2) and not local._fits(step("a"), [step("t", "time")], 2)


def test_there_are_no_other_engines(manifest: Manifest, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(Usage, match="no such engine") as caught:
        carry(replace(work(manifest, tmp_path), engine="cloud"), lambda event: None)
    assert "local, ray, jobs" in caught.value.hint
