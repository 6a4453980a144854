"""A real Ray cluster of two workers on this machine: the same release as without one, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import hubq
from hubq.engines import ray
from hubq.errors import GateFailed, HubqError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(hubq.__file__).parents[1]), "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes no time."""
    folder = tmp_path_factory.mktemp("source") / "Tiny-Llama"
    return tiny.llama(folder, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=1)


def start(model: Path, topics: Path, root: Path, *options: str) -> subprocess.Popen[str]:
    """`hubq publish` with numbers but without speeds, which are never the same."""
    (root / "out").mkdir(parents=True)
    command = [sys.executable, "-m", "hubq", "publish", str(model), "--levels", "q8_0,q4_0", "--dataset", str(topics)]
    command += ["--windows", "2", "--no-speed", "--to", str(root / "out"), "--work-dir", str(root / "work"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, cwd=root, **pipes)  # type: ignore[call-overload]


def ended(process: subprocess.Popen[str]) -> str:
    """What it told on its way."""
    _, told = process.communicate(timeout=500)
    assert process.returncode == 0, told
    return told


def published(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "out").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(model: Path, topics: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The release as one process makes it."""
    root = tmp_path_factory.mktemp("plain")
    ended(start(model, topics, root))
    return published(root)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """(process, what it is called) of all that a process started."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone since
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    for one in found - {pid}:
        try:
            yield one, Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue


def kill(process: subprocess.Popen[str], task: str) -> None:
    """SIGKILL to the worker that does a task, as soon as it has a model in llama.cpp."""
    while process.poll() is None:
        for worker, name in descendants(process.pid):
            if name.startswith(f"ray::{task}") and "libllama" in Path(f"/proc/{worker}/maps").read_text():
                os.kill(worker, signal.SIGKILL)
                return
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="only Linux tells which processes there are")
def test_a_killed_worker_changes_nothing(model: Path, topics: Path, tmp_path: Path, plain: dict[str, bytes]) -> None:
    process = start(model, topics, tmp_path, "--engine", "ray", "--jobs", "2")
    kill(process, "measure gguf:Q8_0")
    told = ended(process)
    assert "measure gguf:Q8_0 was lost with its worker and is done again" in told
    assert published(tmp_path) == plain
    assert "ray" not in told.replace("measure", "").lower() and "Traceback" not in told


@pytest.mark.thorough
def test_workers_share_a_store_by_a_repository(model: Path, topics: Path, tmp_path: Path, plain: dict[str, bytes]) -> None:
    """Workers that do not see this store have one of their own each."""
    store = tmp_path / "hub" / "store"
    process = start(model, topics, tmp_path, "--engine", "ray", "--jobs", "1", "--store", str(store))
    ended(process)
    assert published(tmp_path) == plain
    assert {path.name for path in store.iterdir()} >= {"artifacts", "checks", "measurements", "steps"}


def test_an_error_comes_back_as_it_was(tmp_path: Path) -> None:
    error = ray._told(GateFailed("files lose more than they may", "give them more bits"))
    assert (error.code, error.hint, error.exit_code) == ("GateFailed", "give them more bits", 3)
    lacking = ray._told(ModuleNotFoundError("No module named 'hubq'"))
    assert "lacks a package" in lacking.message and "pip install" in lacking.hint
    assert "hf_***" in ray._told(ValueError("hf_" + "a" * 20)).message


@pytest.mark.thorough
def test_a_failing_step_ends_it_with_its_own_error(model: Path, topics: Path, tmp_path: Path) -> None:
    """A level beyond its limit, found by a worker: exit code 3, nothing pushed, no worker left."""
    (tmp_path / "hubq.toml").write_text(
        f"""
[source]
model = {json.dumps(str(model))}
[variants]
gguf = ["Q4_0"]
[evaluation]
dataset = {json.dumps(str(topics))}
windows = 2
speed = false
floor = false
[gates]
"gguf:Q4_0" = {{ kl = 1e-9 }}
"""
    )
    command = [sys.executable, "-m", "hubq", "publish", str(tmp_path), "--engine", "ray", "--jobs", "2", "--json"]
    command += ["--to", str(tmp_path / "out"), "--work-dir", str(tmp_path / "work")]
    (tmp_path / "out").mkdir()
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    error = json.loads(ended.stdout)["error"]
    assert ended.returncode == 3 and error["code"] == "GateFailed" and "kld is" in error["message"], ended.stderr
    assert list((tmp_path / "out").rglob("*")) == [] and "Traceback" not in ended.stderr


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    import ray as package

    with (
        pytest.raises(HubqError, match=r"127\.0\.0\.1:1 cannot be used: .*refused") as caught,
        ray._cluster(package, "127.0.0.1:1", None),
    ):
        pass
    assert caught.value.hint
