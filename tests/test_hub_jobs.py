"""Jobs through the real client: prices, starting once whatever the answer, how a job ends, and its log without secrets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import loopback
import pytest
from machines import Machines

from hubq.errors import HubError, Usage
from hubq.hub import faults
from hubq.hub.jobs import Flavor, Job, Jobs, Order, seconds

SECRET = "hf_" + "secretThatNobodyMaySee"
HELLO = Order("image", ["python", "-c", "print('hello')"], "cpu-basic", 600, {"hubq": "a" * 64})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[loopback.Hub]:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02))
    with loopback.Hub() as server:
        server.machines = Machines(tmp_path / "machines")
        yield server


@pytest.fixture
def jobs(server: loopback.Hub) -> Jobs:
    return Jobs(server.url, loopback.TOKEN)


def python(program: str, **changes: object) -> Order:
    return replace(HELLO, command=["python", "-c", program], **changes)


def ended(jobs: Jobs, job: Job) -> Job:
    while (job := jobs.look(job)).alive:
        time.sleep(0.05)
    return job


def test_a_price_is_what_the_hub_asks(jobs: Jobs) -> None:
    flavor = jobs.flavor("cpu-basic")
    assert flavor == Flavor("cpu-basic", "2 vCPU, 16 GB", 167, 60)
    assert flavor.price(3600) == pytest.approx(0.01002) and flavor.price(61) == flavor.price(120)
    with pytest.raises(Usage, match="no such machine") as caught:
        jobs.flavor("toaster")
    assert "cpu-basic, cpu-xl" in caught.value.hint


def test_a_price_by_an_unknown_unit_is_no_price(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loopback.HARDWARE[0], "unitLabel", "fortnight")
    with pytest.raises(HubError, match="by the fortnight"):
        jobs.flavor("cpu-basic")


def test_a_job_gets_its_environment_and_nothing_else(jobs: Jobs, server: loopback.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREIGN", "1")
    program = "import os; print([os.environ.get(name) for name in ('GIVEN', 'HF_TOKEN', 'FOREIGN')])"
    job = jobs.start(python(program, env={"GIVEN": "yes"}, secrets={"HF_TOKEN": SECRET}))
    assert ended(jobs, job).stage == "COMPLETED"
    assert server.machines and server.machines.jobs[0].log.strip() == f"['yes', '{SECRET}', None]"
    assert jobs.log(job, 5) == ["['yes', 'hf_***', None]"]
    assert job.url == f"{server.url}/jobs/org/{job.id}"


def test_a_failed_job_tells_why(jobs: Jobs) -> None:
    job = jobs.start(python("print('one'); print('two'); raise SystemExit(3)"))
    last = ended(jobs, job)
    assert (last.stage, last.message) == ("ERROR", "Job failed with exit code: 3") and jobs.log(last, 1) == ["two"]


def test_a_lost_answer_starts_no_second_job(jobs: Jobs, server: loopback.Hub) -> None:
    server.lost_jobs = 1
    job = jobs.start(python("import time; time.sleep(60)"))
    assert server.machines and [one.id for one in server.machines.jobs] == [job.id]
    assert jobs.alive(HELLO.labels) == job and jobs.alive({"hubq": "b" * 64}) is None
    jobs.cancel(job)
    assert ended(jobs, job).stage == "CANCELED" and jobs.alive(HELLO.labels) is None


def test_a_timeout_ends_a_job(jobs: Jobs) -> None:
    job = jobs.start(python("import time; time.sleep(60)", timeout=1))
    assert ended(jobs, job).message == "Job timeout"


def test_no_credit_and_no_login(jobs: Jobs, server: loopback.Hub) -> None:
    server.machines = None
    with pytest.raises(HubError, match="no credit") as caught:
        jobs.start(HELLO)
    assert caught.value.hint == f"add some at {server.url}/settings/billing"
    with pytest.raises(HubError, match="Hugging Face Jobs") as caught:
        Jobs(server.url, "hf_" + "wrongTokenOfSomebody").start(HELLO)
    assert "hf auth login" in caught.value.hint and "wrongToken" not in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_a_time(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "1.5h", "-1m", "0m", "59s", "31d", "1w", "１h"])
def test_no_time(text: str) -> None:
    with pytest.raises(Usage, match="--timeout"):
        seconds(text)
