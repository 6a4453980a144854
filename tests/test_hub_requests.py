"""Pull requests on the Hub, and levels that leave a release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
from loopback import TOKEN
from releases import TARGET, check_whole, put, release

from hubq.errors import HubError
from hubq.hub import Hub, faults
from hubq.hub.folder import Folder
from hubq.hub.huggingface import HuggingFace

TITLE = "Add GGUF levels of org/Tiny with hubq"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[loopback.Hub]:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02))
    with loopback.Hub() as server:
        server.add(TARGET, {"notes.txt": b"written by a person"})
        yield server


@pytest.fixture
def hub(server: loopback.Hub) -> HuggingFace:
    return HuggingFace(server.url, TOKEN)


def proposed(server: loopback.Hub, number: int = 1) -> dict[str, bytes]:
    return server.files(TARGET, f"refs/pr/{number}")


def test_a_pull_request_is_opened_with_its_commit_and_resumed(hub: HuggingFace, server: loopback.Hub) -> None:
    made = put(hub, release("Q8_0"), request=TITLE)
    assert server.files(TARGET) == {"notes.txt": b"written by a person"}
    check_whole(proposed(server), {"Q8_0"})
    assert [one["title"] for one in server.repos[TARGET].requests] == [TITLE]
    assert made.snapshot.commit == server.repos[TARGET].refs["refs/pr/1"]
    assert hub.address(TARGET, TITLE) == f"{server.url}/{TARGET}/discussions/1"
    put(hub, release("Q4_0"), request=TITLE)
    check_whole(proposed(server), {"Q8_0", "Q4_0"})
    assert put(hub, release("Q4_0"), request=TITLE).snapshot.commit == server.repos[TARGET].refs["refs/pr/1"]
    assert len(server.repos[TARGET].requests) == 1 and len(server.repos[TARGET].commits) == 3
    assert server.files(TARGET) == {"notes.txt": b"written by a person"}


def test_only_an_open_pull_request_of_ours_is_resumed(hub: HuggingFace, server: loopback.Hub) -> None:
    for author, title, status in (
        ("stranger", TITLE, "open"),
        ("org", "something else", "open"),
        ("org", TITLE, "closed"),
        ("org", TITLE, "merged"),
        ("org", TITLE, "open"),
        ("org", TITLE, "open"),
    ):
        number = len(server.repos[TARGET].requests) + 1
        requests = server.repos[TARGET].requests
        requests.append({"num": number, "title": title, "author": {"name": author}, "status": status, "isPullRequest": True})
        requests[-1] |= {"createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": TARGET, "type": "model"}}
        server.repos[TARGET].refs[f"refs/pr/{number}"] = server.repos[TARGET].head
    put(hub, release("Q8_0"), request=TITLE)
    check_whole(proposed(server, 5), {"Q8_0"})
    changed = [ref for ref, commit in server.repos[TARGET].refs.items() if "Tiny-Q8_0.gguf" in server.files(TARGET, commit)]
    assert changed == ["refs/pr/5"]


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(hub: HuggingFace, server: loopback.Hub) -> None:
    server.lost_answers = 1
    put(hub, release("Q8_0"), request=TITLE)
    assert len(server.repos[TARGET].requests) == 1
    server.lost_answers = 1
    put(hub, release("Q4_0"), request=TITLE)
    check_whole(proposed(server), {"Q8_0", "Q4_0"})
    assert len(server.repos[TARGET].requests) == 1 and len(server.repos[TARGET].commits) == 3


def test_two_runs_at_once_in_one_pull_request_end_in_the_union(hub: HuggingFace, server: loopback.Hub) -> None:
    put(hub, release("Q6_K"), request=TITLE)
    server.before_commit = lambda: put(hub, release("Q4_0"), request=TITLE) and None
    put(hub, release("Q8_0"), request=TITLE)
    check_whole(proposed(server), {"Q8_0", "Q6_K", "Q4_0"})


def test_a_pull_request_needs_no_right_to_write(hub: HuggingFace, server: loopback.Hub) -> None:
    server.fail("/auth-check/write", 403, loopback.ALWAYS)
    hub.check_writable(TARGET, request=True)
    with pytest.raises(HubError, match="403"):
        hub.check_writable(TARGET)
    with pytest.raises(HubError, match="somebody else"):
        hub.check_writable("stranger/nothing", request=True)


def test_a_folder_has_no_pull_requests(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no pull requests") as caught:
        Folder(tmp_path).check_writable(TARGET, request=True)
    assert "--pr" in caught.value.hint


def test_a_repository_that_may_not_be_created_has_to_be_there(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    hub.check_writable(TARGET, create=False)
    with pytest.raises(HubError, match="org/fresh does not exist, and --no-create-repo forbids"):
        hub.check_writable("org/fresh", create=False)
    with pytest.raises(HubError, match="no repository org/fresh"):
        Folder(tmp_path).check_writable("org/fresh", create=False)
    assert "org/fresh" not in server.repos and not list(tmp_path.glob("org"))


# --- levels that leave ---


@pytest.fixture(params=["hub", "folder"])
def place(request: pytest.FixtureRequest, server: loopback.Hub, hub: HuggingFace, tmp_path: Path) -> Hub:
    (tmp_path / TARGET).mkdir(parents=True)
    (tmp_path / TARGET / "notes.txt").write_bytes(b"written by a person")
    return hub if request.param == "hub" else Folder(tmp_path)


def files(place: Hub) -> dict[str, bytes]:
    head = place.snapshot(TARGET)
    return {file.path: place.read(head, file.path) for file in head.files}


def test_a_level_leaves_files_card_and_record_in_one_commit(place: Hub) -> None:
    put(place, release("Q6_K", "Q4_0", matrix=True))
    put(place, release("Q8_0"), delete=["gguf:Q4_0", "gguf:Q2_K"])
    assert "Tiny-Q4_0.gguf" not in files(place) and "Q4_0" not in files(place)["README.md"].decode()
    check_whole(files(place), {"Q8_0", "Q6_K"})
    after = put(place, release("Q8_0"), delete=["gguf:Q4_0"]).snapshot
    assert after == place.snapshot(TARGET)


def test_only_files_that_hubq_put_there_are_deleted(place: Hub, server: loopback.Hub) -> None:
    put(place, release("Q4_0"))
    place.push(TARGET, {"Tiny-Q4_0.gguf": b"GGUF of others", "Tiny-Q5_0.gguf": b"GGUF of a person"}, "m")
    put(place, release("Q8_0"), delete=["gguf:Q4_0", "gguf:Q5_0"])
    assert files(place)["Tiny-Q4_0.gguf"] == b"GGUF of others" and "Tiny-Q5_0.gguf" in files(place)
    check_whole(files(place), {"Q8_0"}, {"notes.txt", "Tiny-Q4_0.gguf", "Tiny-Q5_0.gguf"})


def test_a_deletion_whose_answer_was_lost_counts(hub: HuggingFace, server: loopback.Hub) -> None:
    put(hub, release("Q8_0", "Q4_0"))
    server.lost_answers = 1
    put(hub, release("Q8_0"), delete=["gguf:Q4_0"])
    check_whole(server.files(TARGET), {"Q8_0"})
    assert len(server.repos[TARGET].commits) == 3


def test_a_level_that_another_run_puts_back_meanwhile_leaves_too(hub: HuggingFace, server: loopback.Hub) -> None:
    put(hub, release("Q8_0", "Q4_0"))
    server.before_commit = lambda: put(hub, release("Q6_K")) and None
    put(hub, release("Q8_0"), delete=["gguf:Q4_0"])
    check_whole(server.files(TARGET), {"Q8_0", "Q6_K"})


# --- what an earlier run left ---


def test_a_release_without_a_record_is_repaired_and_foreign_files_stay(place: Hub) -> None:
    place.push(TARGET, {"Tiny-Q8_0.gguf": b"half a GGUF", "Tiny-Q4_0.gguf": b"GGUF of a person", "README.md": b"# old"}, "m")
    put(place, release("Q8_0"))
    check_whole(files(place), {"Q8_0"}, {"notes.txt", "Tiny-Q4_0.gguf"})
    assert files(place)["Tiny-Q4_0.gguf"] == b"GGUF of a person"
