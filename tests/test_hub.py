"""The two hubs: the real client against a loopback server that misbehaves, and a folder on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import loopback
import pytest
from loopback import ALWAYS, SECRET, TOKEN

from hubq.errors import HubError
from hubq.hub import connect, faults, folder, huggingface
from hubq.hub.files import check_path, git_blob, sha256
from hubq.hub.folder import Folder
from hubq.hub.huggingface import HuggingFace
from hubq.secrets import scrub

MODEL = {"config.json": b"{}", "README.md": b"# model", "a/model.safetensors": bytes(range(256)) * 40}
RELEASE = {
    "M-Q4_K_M.gguf": b"GGUF4" * 999,
    "M-Q8_0.gguf": b"GGUF8" * 999,
    "README.md": b"---\n---\n# card",
    "release.json": b"{}",
}


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02))


@pytest.fixture
def server() -> Iterator[loopback.Hub]:
    with loopback.Hub() as server:
        server.add("org/model", MODEL)
        server.add("org/target", {".gitattributes": b"", "notes.txt": b"written by a person"})
        yield server


@pytest.fixture
def hub(server: loopback.Hub) -> HuggingFace:
    return HuggingFace(server.url, TOKEN)


def called(server: loopback.Hub, method: str, part: str = "") -> list[str]:
    return [path for verb, path in server.requests if verb == method and part in path]


def stored(server: loopback.Hub, repo: str = "org/target") -> int:
    return len(server.repos[repo].commits)


def leaks(error: HubError) -> bool:
    told = f"{error.message} {error.hint} {error.__cause__}"
    return TOKEN in told or SECRET in told


# Pull


def test_pull_gives_checked_files_under_their_own_names(hub: HuggingFace, server: loopback.Hub) -> None:
    snapshot, seen = hub.snapshot("org/model"), []
    assert not hub.cached(snapshot, "config.json")
    folder_, files = hub.pull(snapshot, ["a/model.safetensors", "config.json"], lambda *step: seen.append(step))
    assert [file.path for file in files] == ["a/model.safetensors", "config.json"]
    for file in files:
        assert (folder_ / file.path).read_bytes() == MODEL[file.path]
        assert file.sha256 == sha256(MODEL[file.path])
    assert seen[-1] == ("config.json", 2, 2) and ("a/model.safetensors", 10240, 10240) in seen
    assert hub.cached(snapshot, "config.json")
    assert not called(server, "GET", "README.md")


def test_a_second_pull_fetches_nothing(hub: HuggingFace, server: loopback.Hub) -> None:
    snapshot = hub.snapshot("org/model")
    first = hub.pull(snapshot, list(MODEL))
    server.requests.clear()
    assert hub.pull(snapshot, list(MODEL)) == first
    assert server.requests == []


def test_the_revision_is_resolved_once(hub: HuggingFace, server: loopback.Hub) -> None:
    snapshot = hub.snapshot("org/model", "main")
    server.add("org/model", {"config.json": b'{"new": 1}'})
    place, _ = hub.pull(snapshot, ["config.json"])
    assert (place / "config.json").read_bytes() == hub.read(snapshot, "config.json") == b"{}"
    assert place.name == snapshot.commit
    assert hub.snapshot("org/model", snapshot.commit) == snapshot != hub.snapshot("org/model")


def test_a_long_listing_comes_in_pages(hub: HuggingFace, server: loopback.Hub) -> None:
    server.page = 2
    assert [file.path for file in hub.snapshot("org/model").files] == sorted(MODEL)
    assert len(called(server, "GET", "/tree/")) == 2


@pytest.mark.parametrize("path", ["config.json", "a/model.safetensors"])
@pytest.mark.parametrize("fault", ["flipped", "cut"])
def test_a_damaged_download_is_fetched_again(hub: HuggingFace, server: loopback.Hub, fault: str, path: str) -> None:
    getattr(server, fault)[path] = 1
    place, _ = hub.pull(hub.snapshot("org/model"), [path])
    assert (place / path).read_bytes() == MODEL[path]


@pytest.mark.parametrize("path", ["config.json", "a/model.safetensors"])
def test_a_file_that_stays_damaged_is_refused_and_not_kept(hub: HuggingFace, server: loopback.Hub, path: str) -> None:
    server.flipped[path] = ALWAYS
    snapshot = hub.snapshot("org/model")
    with pytest.raises(HubError, match=path) as caught:
        hub.pull(snapshot, [path])
    listed, flipped = snapshot.file(path), bytes([MODEL[path][0] ^ 1]) + MODEL[path][1:]
    for wanted in (listed.sha256 or listed.blob, (sha256 if listed.sha256 else git_blob)(flipped), "org/model"):
        assert wanted in caught.value.message
    assert caught.value.hint and not hub.cached(snapshot, path)
    assert len(called(server, "GET", path)) == 2


@pytest.mark.parametrize("damage", [lambda data: data[::-1], lambda data: data[:10]], ids=["same size", "truncated"])
def test_a_damaged_file_in_the_cache_heals(hub: HuggingFace, tmp_path: Path, damage) -> None:
    snapshot = hub.snapshot("org/model")
    place, _ = hub.pull(snapshot, list(MODEL))
    path = place / "a/model.safetensors"
    path.resolve().write_bytes(damage(path.read_bytes()))
    hub.pull(snapshot, list(MODEL))
    assert path.read_bytes() == MODEL["a/model.safetensors"]
    assert len(list((tmp_path / "home/hub/models--org--model/blobs").iterdir())) == 3


def test_read_gives_ranges_and_stores_nothing(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    snapshot, path = hub.snapshot("org/model"), "a/model.safetensors"
    assert hub.read(snapshot, path, 8, 24) == MODEL[path][8:24]
    assert hub.read(snapshot, path, 10230, 99999) == MODEL[path][10230:]
    assert hub.read(snapshot, path, 99999) == b""
    assert hub.read(snapshot, "config.json") == b"{}"
    assert not (tmp_path / "home/hub").exists()
    server.flipped["config.json"] = 1
    with pytest.raises(HubError, match=r"config\.json"):
        hub.read(snapshot, "config.json")


@pytest.mark.parametrize("what", ["GET /api/models/org/model", "/tree/", "HEAD", "GET /cdn"])
def test_a_passing_failure_is_waited_out(hub: HuggingFace, server: loopback.Hub, what: str) -> None:
    server.fail(what, 503, times=1, headers={"Retry-After": "0"} if what == "GET /api/models/org/model" else {})
    place, _ = hub.pull(hub.snapshot("org/model"), ["a/model.safetensors"])
    assert (place / "a/model.safetensors").read_bytes() == MODEL["a/model.safetensors"]


def test_a_file_that_is_not_listed(hub: HuggingFace) -> None:
    with pytest.raises(HubError, match=r"org/model has no file tokenizer\.json"):
        hub.pull(hub.snapshot("org/model"), ["tokenizer.json"])


# What people are told


def test_missing_private_and_gated_repositories(hub: HuggingFace, server: loopback.Hub) -> None:
    with pytest.raises(HubError, match="org/nothing does not exist") as missing:
        hub.snapshot("org/nothing")
    server.repos["org/model"].private = True
    with pytest.raises(HubError, match="private") as private:
        HuggingFace(server.url).snapshot("org/model")
    assert "hf auth login" in missing.value.hint and "hf auth login" in private.value.hint
    server.repos["org/model"].gated = True
    snapshot = hub.snapshot("org/model")
    for act in (lambda: hub.pull(snapshot, ["config.json"]), lambda: hub.read(snapshot, "config.json")):
        with pytest.raises(HubError, match="org/model is gated") as gated:
            act()
        assert f"{server.url}/org/model" in gated.value.hint


def test_a_revision_that_does_not_exist(hub: HuggingFace) -> None:
    with pytest.raises(HubError, match="org/model has no revision v9"):
        hub.snapshot("org/model", "v9")


def test_a_name_that_no_repository_can_have(hub: HuggingFace, server: loopback.Hub) -> None:
    with pytest.raises(HubError):
        hub.snapshot("a/b/c")
    assert not server.requests


def test_no_connection() -> None:
    with pytest.raises(HubError, match=r"no connection to http://127\.0\.0\.1:9") as caught:
        HuggingFace("http://127.0.0.1:9", TOKEN).snapshot("org/model")
    assert "network" in caught.value.hint and not leaks(caught.value)


def test_offline_mode(hub: HuggingFace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        hub.snapshot("org/model")


@pytest.mark.parametrize("what", ["GET /cdn", "PUT /upload", "POST /api/models/org/target/commit", "POST /api/repos"])
def test_a_refusal_leaks_neither_token_nor_signature(hub: HuggingFace, server: loopback.Hub, what: str) -> None:
    server.fail(what, 403, times=ALWAYS)
    with pytest.raises(HubError, match="403") as caught:
        hub.pull(hub.snapshot("org/model"), ["a/model.safetensors"])
        hub.ensure("org/new")
        hub.push("org/target", RELEASE, "release")
    assert "hf auth login" in caught.value.hint and not leaks(caught.value) and stored(server) == 1


def test_the_clients_warnings_do_not_leak_signatures(server: loopback.Hub, tmp_path: Path) -> None:
    server.fail("PUT /upload", 500)
    code = "from hubq.hub import connect; connect().push('org/target', {'x.gguf': b'x'}, 'm')"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | server.environment(tmp_path), capture_output=True, text=True
    )
    assert run.returncode == 0 and server.files("org/target")["x.gguf"] == b"x"
    assert "HTTP Error 500" in run.stderr and "/upload/" in run.stderr
    assert "Signature" not in run.stderr and TOKEN not in run.stderr and run.stdout == ""


def test_scrub() -> None:
    text = f"GET https://me:pw@host/a/b?{SECRET}&x=1 'http://h/c?q=2' Bearer abc {TOKEN} a?b"
    assert scrub(text) == "GET https://host/a/b 'http://h/c' Bearer *** hf_*** a?b"


def test_rights_are_known_before_any_work(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    assert hub.has_token() and hub.owner() == "org"
    for repo in ("org/target", "org/fresh", "club/fresh"):
        hub.check_writable(repo)
    with pytest.raises(HubError, match="somebody else"):
        hub.check_writable("stranger/fresh")
    server.role = "read"
    with pytest.raises(HubError, match="for reading only"):
        HuggingFace(server.url, TOKEN).check_writable("org/fresh")
    server.fail("/auth-check/", 403)
    with pytest.raises(HubError, match="403"):
        hub.check_writable("org/target")
    nobody = HuggingFace(server.url)
    assert not nobody.has_token() and nobody.owner() == ""
    with pytest.raises(HubError, match="needs a token"):
        nobody.check_writable("org/target")
    assert "org/fresh" not in server.repos and not called(server, "POST")


# Push


def test_push_is_one_commit_and_reads_back(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    hub.ensure("org/fresh")
    hub.ensure("org/fresh")
    (tmp_path / "q4").write_bytes(RELEASE["M-Q4_K_M.gguf"])
    seen: list[tuple[str, int, int]] = []
    after = hub.push("org/fresh", RELEASE | {"M-Q4_K_M.gguf": tmp_path / "q4"}, "release", lambda *step: seen.append(step))
    assert len(called(server, "POST", "/commit/")) == 1 and stored(server, "org/fresh") == 2
    assert {path: data for path, data in server.files("org/fresh").items() if path in RELEASE} == RELEASE
    assert after == hub.snapshot("org/fresh") and after.file("M-Q8_0.gguf").sha256 == sha256(RELEASE["M-Q8_0.gguf"])
    assert ("M-Q4_K_M.gguf", 4995, 4995) in seen
    place, _ = hub.pull(after, list(RELEASE))
    assert {path: (place / path).read_bytes() for path in RELEASE} == RELEASE


def test_the_same_push_sends_nothing(hub: HuggingFace, server: loopback.Hub) -> None:
    first = hub.push("org/target", RELEASE, "release")
    server.requests.clear()
    assert hub.push("org/target", RELEASE, "release") == first
    assert [verb for verb, _ in server.requests] == ["GET", "GET"] and stored(server) == 2
    hub.push("org/target", RELEASE | {"release.json": b"{...}"}, "again")
    assert not called(server, "PUT") and stored(server) == 3


def test_foreign_files_stay(hub: HuggingFace, server: loopback.Hub) -> None:
    server.add("org/target", {".gitignore": b"release.json"})
    hub.push("org/target", RELEASE, "release")
    assert server.files("org/target") == {
        ".gitattributes": b"",
        ".gitignore": b"release.json",
        "notes.txt": b"written by a person",
        **RELEASE,
    }


def test_push_without_a_token(server: loopback.Hub) -> None:
    for act in (lambda hub: hub.push("org/target", RELEASE, "release"), lambda hub: hub.ensure("org/x")):
        with pytest.raises(HubError, match="needs a token") as caught:
            act(HuggingFace(server.url))
        assert "hf auth login" in caught.value.hint
    assert not server.requests


def test_a_wrong_token_is_named_as_such(server: loopback.Hub) -> None:
    with pytest.raises(HubError, match="401") as caught:
        HuggingFace(server.url, "hf_wrongToken").push("org/target", RELEASE, "release")
    assert "hf auth login" in caught.value.hint and "wrongToken" not in caught.value.message


def test_a_commit_that_was_answered_with_500_counts(hub: HuggingFace, server: loopback.Hub) -> None:
    server.lost_answers = 1
    assert hub.push("org/target", RELEASE, "release").commit == server.repos["org/target"].head
    assert stored(server) == 2 and len(called(server, "POST", "/commit/")) == 1


def test_a_commit_that_is_never_answered_counts(hub: HuggingFace, server: loopback.Hub, monkeypatch) -> None:
    monkeypatch.setattr(huggingface, "ANSWER", 0.3)
    server.hang, start = 20.0, time.monotonic()
    hub.push("org/target", RELEASE, "release")
    assert stored(server) == 2 and time.monotonic() - start < 10


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_commit_that_did_not_land_is_tried_again(hub: HuggingFace, server: loopback.Hub, status: int) -> None:
    server.fail("/commit/main", status)
    hub.push("org/target", RELEASE, "release")
    assert stored(server) == 2 and len(called(server, "PUT")) == 2


def test_giving_up_leaves_the_repository_as_it_was(hub: HuggingFace, server: loopback.Hub) -> None:
    server.fail("/commit/main", 503, times=3)
    with pytest.raises(HubError, match="503"):
        hub.push("org/target", RELEASE, "release")
    assert stored(server) == 1
    server.requests.clear()
    hub.push("org/target", RELEASE, "release")
    assert stored(server) == 2 and not called(server, "PUT")


def test_a_head_that_moved_elsewhere_does_not_matter(hub: HuggingFace, server: loopback.Hub) -> None:
    server.before_commit = lambda: server.add("org/target", {"notes.txt": b"new notes"})
    hub.push("org/target", RELEASE, "release")
    assert server.files("org/target") == {".gitattributes": b"", "notes.txt": b"new notes", **RELEASE}
    assert stored(server) == 3


def test_a_head_that_moved_under_our_files_stops_the_push(hub: HuggingFace, server: loopback.Hub) -> None:
    server.before_commit = lambda: server.add("org/target", {"README.md": b"# theirs"})
    with pytest.raises(HubError, match=r"somebody else changed README\.md in org/target") as caught:
        hub.push("org/target", RELEASE, "release")
    assert "again" in caught.value.hint and server.files("org/target")["README.md"] == b"# theirs" and stored(server) == 2


@pytest.mark.parametrize("path", ["M-Q8_0.gguf", "README.md"])
def test_what_is_read_back_must_be_what_was_pushed(hub: HuggingFace, server: loopback.Hub, path: str) -> None:
    server.tampered[path] = b"evil!" * 999
    with pytest.raises(HubError, match=f"{path} in org/target is not what was pushed"):
        hub.push("org/target", RELEASE, "release")


def test_a_file_that_changes_during_the_upload(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    (tmp_path / "q4").write_bytes(b"GGUF")
    with pytest.raises(HubError, match=r"M\.gguf was changed"):
        hub.push("org/target", {"M.gguf": tmp_path / "q4"}, "m", lambda *_: (tmp_path / "q4").write_bytes(b"FUGG"))
    assert stored(server) == 1


# Names


@pytest.mark.parametrize(
    "path", ["config.json", "a/b/c.gguf", "größe.txt", "a b.txt", ".gitattributes", "v1..2", "console.txt"]
)
def test_plain_names_pass(path: str) -> None:
    check_path(path)


BAD = [
    "",
    "..",
    ".",
    "../x",
    "a/../x",
    "a/./x",
    "/etc/passwd",
    "a//b",
    "a/",
    "a\\b",
    "..\\x",
    "C:/x",
    "C:x",
    "a/b:c",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize(
    "path", [*BAD, "a\x1b[2J", "x\u202egpj.exe", "\u200bx", "NUL", "a/con.txt", "COM1", "x/lpt9.gguf", "a.", "a "]
)
def test_hostile_names_are_refused_everywhere(path: str, server: loopback.Hub, hub: HuggingFace, tmp_path: Path) -> None:
    for act in (
        lambda: check_path(path),
        lambda: hub.push("org/target", {path: b"x"}, "m"),
        lambda: Folder(tmp_path).push("org/target", {path: b"x"}, "m"),
        lambda: Folder(tmp_path).ensure(path),
    ):
        with pytest.raises(HubError, match="not safe"):
            act()
    assert not server.requests and sorted(os.listdir(tmp_path)) == []


def test_a_hostile_listing_writes_nothing(hub: HuggingFace, server: loopback.Hub, tmp_path: Path) -> None:
    server.add("org/model", {"../../../evil.txt": b"evil"})
    snapshot = hub.snapshot("org/model")
    for act in (hub.pull, lambda snapshot, paths: hub.read(snapshot, paths[0])):
        with pytest.raises(HubError, match="not safe"):
            act(snapshot, ["../../../evil.txt"])
    assert not list(tmp_path.rglob("evil*"))


# A folder as a hub


@pytest.fixture
def shelf(tmp_path: Path) -> Folder:
    for path, data in {**MODEL, ".git/HEAD": b"ref", "a/.cache/x": b"x"}.items():
        (tmp_path / "org/model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "org/model" / path).write_bytes(data)
    hub = connect(tmp_path)
    assert isinstance(hub, Folder)
    hub.ensure("org/target")
    (tmp_path / "org/target/notes.txt").write_bytes(b"written by a person")
    return hub


def held(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_folder_lists_and_gives_its_own_files(shelf: Folder) -> None:
    snapshot = shelf.snapshot("org/model")
    assert [(file.path, file.size, file.sha256) for file in snapshot.files] == [
        (path, len(data), sha256(data)) for path, data in sorted(MODEL.items())
    ]
    assert len(snapshot.commit) == 64 and snapshot == shelf.snapshot("org/model", snapshot.commit)
    place, files = shelf.pull(snapshot, ["config.json"])
    assert place == shelf.root / "org/model" and files == (snapshot.file("config.json"),)
    assert shelf.read(snapshot, "a/model.safetensors", 3, 5) == MODEL["a/model.safetensors"][3:5]
    assert shelf.cached(snapshot, "config.json")


def test_folder_refuses_other_revisions_and_unknown_names(shelf: Folder) -> None:
    with pytest.raises(HubError, match="no revision v2"):
        shelf.snapshot("org/model", "v2")
    with pytest.raises(HubError, match="no repository org/nothing"):
        shelf.snapshot("org/nothing")
    for name in (".hidden/model", "a/b/c"):
        with pytest.raises(HubError, match="not the name of a repository"):
            shelf.snapshot(name)


@pytest.mark.parametrize("size", [10240, 3])
def test_folder_notices_files_that_changed_after_the_listing(shelf: Folder, size: int) -> None:
    snapshot = shelf.snapshot("org/model")
    (shelf.root / "org/model/a/model.safetensors").write_bytes(b"x" * size)
    with pytest.raises(HubError, match=r"a/model\.safetensors " + ("is not" if size == 10240 else "has 3 bytes")):
        shelf.pull(snapshot, ["a/model.safetensors"])
    (shelf.root / "org/model/config.json").unlink()
    with pytest.raises(HubError, match="is gone"):
        shelf.read(snapshot, "config.json")


def test_folder_push_keeps_foreign_files_and_leaves_nothing_behind(shelf: Folder, tmp_path: Path) -> None:
    place, source = tmp_path / "org/target", tmp_path / "q4"
    source.write_bytes(RELEASE["M-Q4_K_M.gguf"])
    (place / ".hidden").write_bytes(b"kept too")
    inode = (place / "notes.txt").stat().st_ino
    after = shelf.push("org/target", RELEASE | {"M-Q4_K_M.gguf": source, "sub/x.bin": b"x"}, "release")
    assert held(place) == {".hidden": b"kept too", "notes.txt": b"written by a person", "sub/x.bin": b"x", **RELEASE}
    assert after == shelf.snapshot("org/target")
    assert (place / "notes.txt").stat().st_ino == inode and (place / "M-Q4_K_M.gguf").stat().st_ino != source.stat().st_ino
    assert sorted(os.listdir(tmp_path / "org")) == ["model", "target"]


def test_folder_push_of_the_same_changes_nothing(shelf: Folder, tmp_path: Path) -> None:
    first = shelf.push("org/target", RELEASE, "release")
    inode = (tmp_path / "org/target").stat().st_ino
    assert shelf.push("org/target", RELEASE, "release") == first
    assert (tmp_path / "org/target").stat().st_ino == inode
    assert shelf.push("org/target", {"README.md": b"# new"}, "again").commit != first.commit


@pytest.mark.parametrize("renames", [0, 1])
def test_folder_push_killed_around_a_rename(shelf: Folder, tmp_path: Path, monkeypatch, renames: int) -> None:
    """Killed before the first rename the old state stands; between the two, the next call finishes the new one."""
    before, done, rename = shelf.snapshot("org/target"), [], os.rename

    def dying(source, target) -> None:
        if len(done) == renames:
            raise SystemExit(137)
        done.append(rename(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "rename", dying)
        with pytest.raises(SystemExit):
            shelf.push("org/target", RELEASE, "release")
    assert (tmp_path / "org/target").exists() == (renames == 0)
    after = Folder(tmp_path).snapshot("org/target")
    expected = {"notes.txt": b"written by a person"} | (RELEASE if renames else {})
    assert held(tmp_path / "org/target") == expected and (after == before) == (renames == 0)
    Folder(tmp_path).push("org/target", RELEASE, "release")
    assert sorted(os.listdir(tmp_path / "org")) == ["model", "target"]
    assert held(tmp_path / "org/target") == {"notes.txt": b"written by a person", **RELEASE}


def test_folder_recovers_from_what_older_crashes_left(shelf: Folder, tmp_path: Path) -> None:
    """An unfinished build is dropped; an old state without a new one comes back."""
    (tmp_path / "org/.target.new").mkdir()
    (tmp_path / "org/.target.new/half.gguf").write_bytes(b"half")
    shelf.push("org/target", {"README.md": b"#"}, "m")
    os.rename(tmp_path / "org/target", tmp_path / "org/.target.old")
    assert shelf.snapshot("org/target").file("README.md").size == 1
    assert sorted(os.listdir(tmp_path / "org")) == ["model", "target"]


def test_folder_push_that_fails_half_way_changes_nothing(shelf: Folder, tmp_path: Path) -> None:
    (tmp_path / "q4").write_bytes(b"GGUF")
    before = shelf.snapshot("org/target")
    with pytest.raises(HubError, match=r"M\.gguf changed"):
        shelf.push(
            "org/target", {"M.gguf": tmp_path / "q4", "z.bin": b"z"}, "m", lambda *_: (tmp_path / "q4").write_bytes(b"F")
        )
    assert sorted(os.listdir(tmp_path / "org")) == ["model", "target"]
    with pytest.raises(HubError, match="No such file"):
        shelf.push("org/target", {"M.gguf": tmp_path / "nothing"}, "m")
    with pytest.raises(HubError, match="dot"):
        shelf.push("org/target", {".secret": b""}, "m")
    assert shelf.snapshot("org/target") == before
    assert sorted(os.listdir(tmp_path / "org")) == ["model", "target"]


def test_folder_writes_need_no_login_but_permission(tmp_path: Path, monkeypatch) -> None:
    hub = Folder(tmp_path / "new" / "shelf")
    hub.check_writable("org/target")
    assert hub.has_token() and hub.owner() == "" and not (tmp_path / "new").exists()
    monkeypatch.setattr(folder.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(HubError, match="may not write"):
        hub.check_writable("org/target")


def test_folder_push_does_not_leave_through_a_link(shelf: Folder, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "org/target/sub").symlink_to(tmp_path / "outside")
    with pytest.raises(HubError, match="link"):
        shelf.push("org/target", {"sub/x": b"x"}, "m")
    assert not list((tmp_path / "outside").iterdir())


# Both


def test_the_door_stays_light() -> None:
    code = "import sys, hubq.hub; assert 'huggingface_hub' not in sys.modules; hubq.hub.connect('.')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'huggingface_hub' not in sys.modules"], check=True)


def test_a_listing_that_promises_nothing_is_refused(shelf: Folder) -> None:
    snapshot = shelf.snapshot("org/model")
    bare = replace(snapshot, files=tuple(replace(file, sha256=None) for file in snapshot.files))
    with pytest.raises(HubError, match="not what the hub lists"):
        shelf.pull(bare, ["config.json"])
