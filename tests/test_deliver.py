"""From a finished release to a commit: what two runs at once end in, and the list of hashes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import loopback
import pytest
import releases
from releases import TARGET, check_whole, put, release

from hubq import deliver as delivering
from hubq.errors import GateFailed, HubError, Moved
from hubq.hub import faults
from hubq.hub.folder import Folder
from hubq.hub.huggingface import HuggingFace

PROGRAM = str(Path(releases.__file__))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[loopback.Hub]:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02))
    with loopback.Hub() as server:
        server.add(TARGET, {"notes.txt": b"written by a person"})
        yield server


@pytest.fixture
def hub(server: loopback.Hub) -> HuggingFace:
    return HuggingFace(server.url, loopback.TOKEN)


def before_commit(server: loopback.Hub, act: Callable[[], object]) -> None:
    server.before_commit = lambda: act() and None


def at_once(commands: list[list[str]], environment: dict[str, str]) -> None:
    runs = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for words in commands]
    try:
        told = [run.communicate(timeout=90)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], told


@pytest.mark.parametrize(
    ("there", "levels"), [("Tiny-F16.gguf", ("BF16",)), ("preset.ini", ("Q8_0",)), ("Q8_0.gguf", ("Q8_0",))]
)
def test_a_file_that_would_be_taken_for_another_is_not_pushed(
    server: loopback.Hub, hub: HuggingFace, there: str, levels: tuple[str, ...]
) -> None:
    server.add(TARGET, {there: b"of somebody else"})
    before = server.files(TARGET)
    with pytest.raises(GateFailed, match="people would load other files than they ask for") as caught:
        put(hub, release(*levels))
    assert there in caught.value.message and "--delete LEVEL" in caught.value.hint and caught.value.exit_code == 3
    assert server.files(TARGET) == before


def test_what_is_deleted_is_in_nobodys_way(hub: HuggingFace) -> None:
    put(hub, release("F16"))
    with pytest.raises(GateFailed, match=r"the tag F16 would load Tiny-BF16.gguf in llama.cpp, and not Tiny-F16.gguf"):
        put(hub, release("BF16"))
    assert [file.level for file in put(hub, release("BF16"), delete=["gguf:F16"]).release.artifacts] == ["gguf:BF16"]


def test_two_processes_at_once_on_the_hub_end_in_the_union(server: loopback.Hub, tmp_path: Path) -> None:
    """Both commits are made for the same state: they wait for each other before the first one lands."""
    server.barrier = threading.Barrier(2)
    commands = [[sys.executable, PROGRAM, level] for level in ("Q8_0", "Q4_0")]
    at_once(commands, os.environ | server.environment(tmp_path / "hf"))
    assert server.barrier is None and len([path for verb, path in server.requests if "/commit/" in path]) == 3
    first, second = list(server.repos[TARGET].commits)[1:]
    check_whole(server.files(TARGET, second), {"Q8_0", "Q4_0"})
    check_whole(server.files(TARGET, first), {"Q8_0"} if "Tiny-Q8_0.gguf" in server.files(TARGET, first) else {"Q4_0"})


MEET = """
import pathlib, runpy, sys, time
from hubq.hub.folder import Folder
real, place = Folder.push, pathlib.Path(sys.argv.pop(1))
def push(*arguments, **options):
    (place / sys.argv[1]).touch()
    while len(list(place.iterdir())) < 2:
        time.sleep(0.005)
    return real(*arguments, **options)
Folder.push = push
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_processes_at_once_in_a_folder_end_in_the_union(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    place = tmp_path / "out" / TARGET
    place.mkdir(parents=True)
    words = [sys.executable, "-c", MEET, str(tmp_path / "met"), PROGRAM]
    at_once([[*words, level, str(tmp_path / "out")] for level in ("Q8_0", "Q4_0")], dict(os.environ))
    check_whole({path.name: path.read_bytes() for path in place.iterdir()}, {"Q8_0", "Q4_0"}, set())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=place, check=True)


def test_sha256sum_finds_a_flipped_byte(tmp_path: Path) -> None:
    place = tmp_path / TARGET
    place.mkdir(parents=True)
    put(Folder(tmp_path), release("Q8_0", "Q4_0", matrix=True))
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=place, check=False).returncode == 0
    (place / "Tiny-Q4_0.gguf").write_bytes(b"x" + (place / "Tiny-Q4_0.gguf").read_bytes()[1:])
    told = subprocess.run(check, cwd=place, check=False, capture_output=True, text=True)
    assert told.returncode == 1 and told.stdout == "Tiny-Q4_0.gguf: FAILED\n"


def test_a_release_that_came_first_is_merged_in(server: loopback.Hub, hub: HuggingFace) -> None:
    before_commit(server, lambda: put(hub, release("Q4_0")))
    made = put(hub, release("Q8_0"))
    check_whole(server.files(TARGET), {"Q8_0", "Q4_0"})
    assert [file.level for file in made.release.artifacts] == ["gguf:Q8_0", "gguf:Q4_0"]
    assert len([path for verb, path in server.requests if verb == "PUT"]) == 2  # no file was sent twice
    assert made.card["README.md"] == server.files(TARGET)["README.md"] and made.snapshot.commit == server.repos[TARGET].head


def test_the_card_does_not_depend_on_who_was_first(server: loopback.Hub, hub: HuggingFace) -> None:
    before_commit(server, lambda: put(hub, release("Q4_0")))
    one = put(hub, release("Q8_0")).card
    server.repos[TARGET].commit({"notes.txt": b"written by a person"})
    before_commit(server, lambda: put(hub, release("Q8_0")))
    assert put(hub, release("Q4_0")).card == one


def test_a_foreign_commit_elsewhere_is_taken_in(server: loopback.Hub, hub: HuggingFace) -> None:
    before_commit(server, lambda: server.add(TARGET, {"notes.txt": b"new notes", "LICENSE": b"MIT"}))
    put(hub, release("Q8_0"))
    assert server.files(TARGET)["notes.txt"] == b"new notes"
    check_whole(server.files(TARGET), {"Q8_0"}, {"notes.txt", "LICENSE"})


def test_a_level_that_somebody_deletes_meanwhile_leaves_the_card(server: loopback.Hub, hub: HuggingFace) -> None:
    put(hub, release("Q4_0"))
    gone = {path: data for path, data in server.files(TARGET).items() if not path.endswith("Q4_0.gguf")}
    before_commit(server, lambda: server.repos[TARGET].commit(gone))
    put(hub, release("Q8_0"))
    check_whole(server.files(TARGET), {"Q8_0"})


def test_the_same_file_with_other_content_stops_the_run(server: loopback.Hub, hub: HuggingFace) -> None:
    before_commit(server, lambda: server.add(TARGET, {"Tiny-Q8_0.gguf": b"GGUF of others"}))
    with pytest.raises(HubError, match=rf"somebody else changed Tiny-Q8_0\.gguf in {TARGET}") as caught:
        put(hub, release("Q8_0"))
    assert server.files(TARGET)["Tiny-Q8_0.gguf"] == b"GGUF of others" and "again" in caught.value.hint
    put(hub, release("Q8_0"))
    check_whole(server.files(TARGET), {"Q8_0"})


def test_the_same_file_with_the_same_content_does_not(server: loopback.Hub, hub: HuggingFace) -> None:
    before_commit(server, lambda: put(hub, release("Q8_0", "Q4_0")))
    put(hub, release("Q8_0"))
    check_whole(server.files(TARGET), {"Q8_0", "Q4_0"})


def test_a_repository_that_never_rests_is_given_up(
    server: loopback.Hub, hub: HuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "TRIES", 3)
    moves: list[int] = []

    def move() -> None:
        moves.append(len(moves))
        server.add(TARGET, {"notes.txt": b"%d" % len(moves)})
        server.before_commit = move

    server.before_commit = move
    with pytest.raises(Moved, match="somebody else changed"):
        put(hub, release("Q8_0"))
    assert len(moves) == 3 and "release.json" not in server.files(TARGET)


def test_hashes_of_all_levels_and_of_the_matrix_stay_listed(server: loopback.Hub, hub: HuggingFace) -> None:
    put(hub, release("Q4_K_M", matrix=True))
    put(hub, release("Q8_0"))
    assert b"  Tiny-imatrix.gguf\n" in server.files(TARGET)["SHA256SUMS"]
    check_whole(server.files(TARGET), {"Q8_0", "Q4_K_M"})
