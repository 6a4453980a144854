"""Jobs whose commands really run, each in a folder of its own with what it was given: the release comes out whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
import tiny
from machines import Machines

import hubq
from hubq.engines import Work, jobs
from hubq.engines.jobs import Chain, _Conductor, chains, parcel
from hubq.errors import HubqError, Usage
from hubq.hub import faults
from hubq.hub.huggingface import HuggingFace
from hubq.hub.jobs import Jobs
from hubq.job import Event
from hubq.manifest import EvaluationTable, Manifest, SourceTable, requests
from hubq.shared import Shared
from hubq.steps import Step
from hubq.store import Store

MODEL = "org/Tiny-Llama"
SETTINGS = ["--engine", "jobs", "--store", "org/store", "--image", "registry/hubq:1", "--flavor", "cpu-xl", "--timeout", "30m"]
CHAIN = Chain("gguf:Q8_0", ("a" * 64,), frozenset())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[loopback.Hub]:
    with loopback.Hub() as server:
        server.machines = Machines(tmp_path / "machines")
        yield server


def publish(server: loopback.Hub, root: Path, card: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`hubq publish` of a card, to the folder `root`/out."""
    (root / "out").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hubq", "publish", str(card), "--to", str(root / "out"), *options]
    environment = os.environ | server.environment(root / "home") | {"PYTHONPATH": str(Path(hubq.__file__).parents[1])}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HUBQ_NO_PROGRESS": "1"}
    return subprocess.run(
        [*command, "--work-dir", str(root / "work")], env=environment, capture_output=True, text=True, timeout=500
    )


def published(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "out").rglob("*") if path.is_file()}


def card(server: loopback.Hub, topics: Path, folder: Path) -> Path:
    """A manifest of a model on the Hub and a text beside it, and with an importance matrix that has to travel."""
    made = tiny.llama(folder / "Tiny-Llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    commit = server.add(MODEL, {path.name: path.read_bytes() for path in made.iterdir()})
    place = folder / "card"
    place.mkdir()
    lines = topics.read_bytes().splitlines(keepends=True)
    (place / "text.jsonl").write_bytes(b"".join(lines[::2]))
    (place / "other.jsonl").write_bytes(b"".join(lines[1::2]))
    (place / "hubq.toml").write_text(
        f"""
[source]
model = "{MODEL}"
revision = "{commit}"
[variants]
gguf = ["IQ4_XS"]
[imatrix.calibration]
dataset = "./other.jsonl"
windows = 2
[evaluation]
dataset = "./text.jsonl"
windows = 2
floor = false
speed = false
"""
    )
    return place


def test_jobs_make_the_same_release_and_one_may_be_lost(server: loopback.Hub, topics: Path, tmp_path: Path) -> None:
    place, machines = card(server, topics, tmp_path), server.machines
    assert machines
    asked = publish(server, tmp_path, place, *SETTINGS)
    assert asked.returncode == 2 and machines.jobs == [] and "org/store" not in server.repos
    assert "2 jobs on cpu-xl (16 vCPU, 124 GB), 30m each at most" in asked.stderr
    assert "up to $2.00" in asked.stderr and "add --confirm" in asked.stderr
    machines.lost = 1
    done = publish(server, tmp_path, place, *SETTINGS, "--confirm")
    assert done.returncode == 0, done.stderr + "".join(job.log for job in machines.jobs)
    assert "was lost (Job was lost with its machine) and is started once more" in done.stderr
    assert [job.facts["status"]["stage"] for job in machines.jobs] == ["ERROR", "COMPLETED", "COMPLETED"]
    for job in machines.jobs:
        assert job.spec["secrets"] == {"HF_TOKEN": loopback.TOKEN} and job.spec["timeoutSeconds"] == 1800
        assert loopback.TOKEN not in json.dumps({**job.spec, "secrets": {}}) and loopback.TOKEN not in job.log
    alone = publish(server, tmp_path / "alone", place)
    assert alone.returncode == 0, alone.stderr
    assert published(tmp_path) == published(tmp_path / "alone")
    again = publish(server, tmp_path, place, *SETTINGS)  # nothing is left to be paid
    assert again.returncode == 0 and len(machines.jobs) == 3


# --- the conductor ---


@pytest.fixture
def conductor(server: loopback.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Conductor:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(jobs, "POLL", 0.1)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    shared = Shared(HuggingFace(server.url, loopback.TOKEN), "org/store", tmp_path / "work")
    shared.open()
    settings = {"store": "org/store", "image": "registry/hubq:1", "flavor": "cpu-basic"}
    return _Conductor(Jobs(server.url, loopback.TOKEN), shared, settings, 600, f"manifests/{'0' * 64}", lambda event: None)


def test_a_job_that_fails_by_itself_is_not_paid_twice(conductor: _Conductor, server: loopback.Hub) -> None:
    """There is no such manifest."""
    with pytest.raises(HubqError, match="gguf:Q8_0 failed on cpu-basic: Job failed with exit code: 1") as caught:
        conductor.run([CHAIN], 1)
    assert "error: org/store holds no manifest" in caught.value.message and "/jobs/org/" in caught.value.hint
    assert server.machines and len(server.machines.jobs) == 1


def test_the_log_of_a_failed_job_is_harmless(conductor: _Conductor, monkeypatch: pytest.MonkeyPatch) -> None:
    order = "import sys; print('error: \\x1b[31mred', 'hf_' + 'a' * 30); sys.exit(1)"
    send = Jobs._send
    monkeypatch.setattr(Jobs, "_send", lambda self, given: send(self, _with(given, ["python", "-c", order])))
    with pytest.raises(HubqError) as caught:
        conductor.run([CHAIN], 1)
    assert "error: [31mred hf_***" in caught.value.message and "\x1b" not in caught.value.message


def _with(order: Any, command: list[str]) -> Any:
    from dataclasses import replace

    return replace(order, command=command)


def test_a_running_job_is_waited_for(conductor: _Conductor, server: loopback.Hub) -> None:
    first = conductor._start(CHAIN)
    assert conductor._start(CHAIN) == first and server.machines and len(server.machines.jobs) == 1
    assert conductor._start(Chain("other", ("b" * 64,), frozenset())) != first


def test_an_interruption_stops_what_is_paid_for(conductor: _Conductor, server: loopback.Hub) -> None:
    def tell(event: Event) -> None:
        if "b is on its way" in event.label:
            raise KeyboardInterrupt

    conductor.tell = tell
    with pytest.raises(KeyboardInterrupt):
        conductor.run([Chain("a", ("a" * 64,), frozenset()), Chain("b", ("b" * 64,), frozenset())], 2)
    assert server.machines and [job.facts["status"]["stage"] for job in server.machines.jobs] == ["CANCELED", "CANCELED"]


def test_an_interruption_while_one_is_started_stops_it_too(
    conductor: _Conductor, server: loopback.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Jobs._send

    def interrupted(self: Jobs, order: Any) -> Any:
        send(self, order)
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "_send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conductor.run([CHAIN], 1)
    assert server.machines and [job.facts["status"]["stage"] for job in server.machines.jobs] == ["CANCELED"]


def test_chains_wait_for_what_they_need() -> None:
    def step(key: str, name: str, level: str, *needs: str) -> Step:
        return Step(key, name, "build", level, needs, {}, 0, 0)

    found = chains(
        [
            step("i", "calibrate", ""),
            step("b", "build gguf:Q8_0", "gguf:Q8_0", "i"),
            step("m", "measure gguf:Q8_0", "gguf:Q8_0", "b"),
            step("f", "measure floor", "floor"),
            step("t", "time", "", "b"),
        ]
    )
    assert [(chain.name, chain.keys, chain.needs) for chain in found] == [
        ("calibrate", ("i",), frozenset()),
        ("gguf:Q8_0", ("b", "m"), frozenset("i")),
        ("measure floor", ("f",), frozenset()),
        ("time", ("t",), frozenset("b")),
    ]


# --- what jobs are given ---


def work(tmp_path: Path, model: str, dataset: str, **settings: Any) -> Work:
    evaluation = EvaluationTable(dataset=dataset, windows=2)
    manifest = Manifest(source=SourceTable(model=model), variants={"gguf": ["Q8_0"]}, evaluation=evaluation)
    return Work("jobs", manifest, requests(manifest, Store(tmp_path)), settings=settings)


def test_a_parcel_holds_what_the_manifest_names(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    files = parcel(work(tmp_path, "org/model", str(tmp_path / "text.txt")))
    assert files["0/text.txt"] == b"text" and b'dataset = "./0/text.txt"' in files["hubq.toml"]
    assert str(tmp_path).encode() not in files["hubq.toml"]


def test_what_is_on_this_machine_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="where no job can see it"):
        parcel(work(tmp_path, str(tmp_path), "org/text"))
    with pytest.raises(Usage, match="cannot read"):
        parcel(work(tmp_path, "org/model", str(tmp_path / "missing.txt")))


@pytest.mark.parametrize("missing", ["store", "image", "flavor", "timeout"])
def test_nothing_is_guessed(missing: str, tmp_path: Path) -> None:
    given = {"store": "org/store", "image": "i", "flavor": "cpu-basic", "timeout": "1h"}
    with pytest.raises(Usage, match=f"--engine jobs needs --{missing}"):
        jobs.carry(work(tmp_path, "org/model", "org/text", **{**given, missing: None}), lambda event: None)
