"""A plan as the outputs of a job in GitHub Actions, and what the commands say of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from shelf import hubq


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> Path:
    """A folder with a model, a text and a manifest of both."""
    folder = tmp_path_factory.mktemp("place")
    model = tiny.llama(folder / "Tiny-Llama", dtype="float32")
    options = ["--dataset", topics, "--windows", 2, "--cards", folder / "cards", "--to", folder / "out", "--imatrix", "auto"]
    told = hubq("init", model, "--levels", "q8_0,q4_k_m", *options, "--calibration", topics, "--calibration-windows", 2)
    assert told.exit_code == 0, told.output
    return folder


def test_a_matrix_has_a_job_for_each_level(place: Path) -> None:
    told = hubq("plan", place / "cards/Tiny-Llama", "--github", "--work-dir", place / "work")
    assert told.exit_code == 0, told.output
    found = dict(line.split("=", 1) for line in told.stdout.splitlines())
    assert (found["name"], found["model"], len(found["revision"])) == ("Tiny-Llama", "Tiny-Llama", 64)
    plan = json.loads(hubq("plan", place / "cards/Tiny-Llama", "--json", "--work-dir", place / "work").stdout)["plans"][0]
    steps = {step["name"]: step for step in plan["steps"]}
    jobs = json.loads(found["build"])["include"]
    assert [job["name"] for job in jobs] == ["gguf:Q8_0", "gguf:Q4_K_M", "measure floor (GGUF)"]
    assert [job["id"] for job in jobs] == ["gguf-Q8_0", "gguf-Q4_K_M", "measure-floor-GGUF"]
    assert jobs[1]["keys"].split() == [steps["build gguf:Q4_K_M"]["key"], steps["measure gguf:Q4_K_M"]["key"]]
    (prepare,) = json.loads(found["prepare"])["include"]
    assert prepare["keys"] in steps["build gguf:Q4_K_M"]["needs"]
    (timing,) = json.loads(found["time"])["include"]
    assert timing["keys"] == steps["time GGUF"]["key"] and found["publish"] == steps["publish GGUF"]["key"]
    assert set(steps["publish GGUF"]["needs"]) == {step["key"] for step in steps.values()} - {found["publish"]}
    assert all(step["inputs"] for step in steps.values() if step["kind"] != "time")


def test_a_plan_for_people(place: Path) -> None:
    told = hubq("plan", place / "cards/Tiny-Llama", "--work-dir", place / "work")
    assert "build gguf:Q8_0" in told.stdout and "to do" in told.stdout and "1.48 MB" in told.stdout
    assert not (place / "work").exists(), "a plan touches nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run-step", "{card}", "0" * 64], "has no step 000"),
        (["run-step", "{card}"], "Missing argument"),
        (["run-step", "{place}", "0" * 64], "holds no hubq.toml"),
        (["plan", "{place}/none"], "holds no hubq.toml"),
        (["plan", "{place}/none.toml"], "cannot read"),
        (["publish", "{card}", "--windows", "3"], "--windows: "),
        (["publish", "{card}", "--no-speed"], "--speed: "),
        (["publish", "{card}", "--engine", "cloud"], "no such engine"),
        (["publish", "{card}", "--engine", "local", "--stream"], "--stream works in one process"),
    ],
)
def test_mistakes_are_sentences(place: Path, arguments: list[str], words: str) -> None:
    filled = [argument.format(card=place / "cards/Tiny-Llama", place=place) for argument in arguments]
    told = hubq(*filled, "--work-dir", place / "mistakes")
    assert told.exit_code == 2 or "--stream" in arguments, told.output
    assert words in told.output, told.output


def test_a_card_that_hubq_did_not_write_is_not_lost(place: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "hubq.toml").write_bytes(
        (place / "cards/Tiny-Llama/hubq.toml").read_bytes().replace(b"../..", str(place).encode())
    )
    told = hubq("publish", tmp_path, "--work-dir", tmp_path / "work", "-q")
    assert told.exit_code == 2 and "is not hubq's" in told.output
    assert (tmp_path / "README.md").read_text() == "mine"
