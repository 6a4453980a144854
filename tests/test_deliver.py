"""From a finished release to a commit: what two runs at once end in, and the list of hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import loopback
import pytest
import tiny

from hubq import deliver as delivering
from hubq import plan as planning
from hubq.errors import HubError, Moved
from hubq.formats import parse_levels
from hubq.hub.files import sha256
from hubq.hub.huggingface import HuggingFace
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store

TARGET = "me/Tiny-Llama-GGUF"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32", num_hidden_layers=1)


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    loopback.isolate(monkeypatch, tmp_path / "home")
    with loopback.Hub() as server:
        real = planning.connect
        monkeypatch.setattr(
            planning, "connect", lambda place=None: real(place) if place else HuggingFace(server.url, loopback.TOKEN)
        )
        server.add("org/Tiny-Llama", {path.name: path.read_bytes() for path in model.iterdir()})
        server.add(TARGET, {"notes.txt": b"written by a person"})
        yield server


@pytest.fixture
def request_(server: loopback.Hub, tmp_path: Path) -> Request:
    return Request("org/Tiny-Llama", parse_levels("q8_0"), Store(tmp_path / "work"), to=TARGET)


def check_whole(files: dict[str, bytes], levels: set[str], foreign: set[str]) -> None:
    """What release.json and SHA256SUMS list is there, all of it and nothing else, and card and record name the same levels."""
    record = json.loads(files["release.json"])
    assert {entry["level"] for entry in record["files"]} == {f"gguf:{level}" for level in levels}
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert list(sums) == sorted(sums) and sums.keys() == files.keys() - foreign - {"SHA256SUMS"}
    assert {path: sha256(files[path]) for path in sums} == sums
    for entry in record["files"]:
        assert sums[entry["path"]] == entry["sha256"] and entry["path"] in files["README.md"].decode()


PROGRAM = """
import pathlib, sys, time
from hubq import cli
from hubq.hub.folder import Folder
real, place, name = Folder.push, pathlib.Path(sys.argv[1]), sys.argv[2]
def push(*arguments, **options):
    (place / name).touch()
    while len(list(place.iterdir())) < 2:
        time.sleep(0.005)
    return real(*arguments, **options)
Folder.push = push
sys.argv[1:] = sys.argv[3:]
cli.main()
"""


def at_once(program: list[str], arguments: list[list[str]], environment: dict[str, str]) -> list[str]:
    """Two processes, started together; what each of them said."""
    runs = [
        subprocess.Popen([*program, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in arguments
    ]
    told = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    return [out for out, _ in told]


def publishing(model: str, level: str, to: str, work: Path) -> list[str]:
    return ["publish", model, "--levels", level, "--to", to, "--no-eval", "--work-dir", str(work), "--json"]


def test_two_processes_at_once_on_the_hub_end_in_the_union(server: loopback.Hub, tmp_path: Path) -> None:
    server.barrier = threading.Barrier(2)
    wanted = [publishing("org/Tiny-Llama", level, TARGET, tmp_path / level) for level in ("q8_0", "q4_0")]
    told = at_once([sys.executable, "-m", "hubq"], wanted, os.environ | server.environment(tmp_path / "hf"))
    assert len(server.repos[TARGET].commits) == 3 and server.barrier is None
    check_whole(server.files(TARGET), {"Q8_0", "Q4_0"}, {"notes.txt"})
    assert sorted(len(json.loads(text)["release"]["files"]) for text in told) == [1, 2]
    commits = [json.loads(text)["commit"] for text in told]
    for commit, level in zip(commits, ("Q8_0", "Q4_0"), strict=True):
        first = {"Q8_0", "Q4_0"} if commit == server.repos[TARGET].head else {level}
        check_whole(server.files(TARGET, commit), first, {"notes.txt"})


def test_two_processes_at_once_in_a_folder_end_in_the_union(model: Path, tmp_path: Path) -> None:
    for name in ("barrier", "out"):
        (tmp_path / name).mkdir()
    wanted = [
        [str(tmp_path / "barrier"), level, *publishing(str(model), level, str(tmp_path / "out"), tmp_path / level)]
        for level in ("q8_0", "q4_0")
    ]
    at_once([sys.executable, "-c", PROGRAM], wanted, dict(os.environ))
    place = tmp_path / "out" / "Tiny-Llama-GGUF"
    check_whole({path.name: path.read_bytes() for path in place.iterdir()}, {"Q8_0", "Q4_0"}, set())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=place, check=True)


def test_a_release_that_came_first_is_merged_in(server: loopback.Hub, request_: Request, tmp_path: Path) -> None:
    other = replace(request_, levels=parse_levels("q4_0"), store=Store(tmp_path / "other"))
    server.before_commit = lambda: publish(other) and None
    made = publish(request_)
    check_whole(server.files(TARGET), {"Q8_0", "Q4_0"}, {"notes.txt"})
    assert [file.level for file in made.release.artifacts] == ["gguf:Q8_0", "gguf:Q4_0"]
    assert len([1 for verb, path in server.requests if verb == "PUT"]) == 2  # no file was sent twice
    assert made.card["README.md"] == server.files(TARGET)["README.md"]


def test_a_foreign_commit_elsewhere_is_taken_in(server: loopback.Hub, request_: Request) -> None:
    server.before_commit = lambda: server.add(TARGET, {"notes.txt": b"new notes", "LICENSE": b"MIT"}) and None
    publish(request_)
    assert server.files(TARGET)["notes.txt"] == b"new notes"
    check_whole(server.files(TARGET), {"Q8_0"}, {"notes.txt", "LICENSE"})


def test_a_level_that_somebody_deletes_meanwhile_leaves_the_card(server: loopback.Hub, request_: Request) -> None:
    publish(replace(request_, levels=parse_levels("q4_0")))
    gone = {path: data for path, data in server.files(TARGET).items() if not path.endswith("Q4_0.gguf")}
    server.before_commit = lambda: server.repos[TARGET].commit(gone) and None
    publish(request_)
    check_whole(server.files(TARGET), {"Q8_0"}, {"notes.txt"})


def test_the_same_file_with_other_content_stops_the_run(server: loopback.Hub, request_: Request) -> None:
    server.before_commit = lambda: server.add(TARGET, {"Tiny-Llama-Q8_0.gguf": b"GGUF of others"}) and None
    with pytest.raises(HubError, match=r"somebody else changed Tiny-Llama-Q8_0\.gguf in me/Tiny-Llama-GGUF") as caught:
        publish(request_)
    assert server.files(TARGET)["Tiny-Llama-Q8_0.gguf"] == b"GGUF of others" and "again" in caught.value.hint
    publish(request_)
    check_whole(server.files(TARGET), {"Q8_0"}, {"notes.txt"})


def test_a_repository_that_never_rests_is_given_up(
    server: loopback.Hub, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "TRIES", 3)
    moves: list[int] = []

    def move() -> None:
        moves.append(len(moves))
        server.add(TARGET, {"notes.txt": b"%d" % len(moves)})
        server.before_commit = move

    server.before_commit = move
    with pytest.raises(Moved, match="somebody else changed"):
        publish(request_)
    assert len(moves) == 3 and "release.json" not in server.files(TARGET)


def test_hashes_of_all_levels_and_of_the_matrix_stay_listed(server: loopback.Hub, request_: Request, topics: Path) -> None:
    from hubq.text import TextSpec

    text = TextSpec(str(topics), None, windows=2)
    publish(replace(request_, levels=parse_levels("q4_k_m", matrix=True), imatrix=text))
    publish(replace(request_, levels=parse_levels("q8_0")))
    assert "Tiny-Llama-imatrix.gguf" in server.files(TARGET)
    check_whole(server.files(TARGET), {"Q8_0", "Q4_K_M"}, {"notes.txt"})
