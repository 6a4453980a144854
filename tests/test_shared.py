"""A store on a hub: what one machine sends another one gets, whole, checked, and whoever was first."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import loopback
import pytest

from hubq import shared as module
from hubq.errors import BadSource, HubError, HubqError, Moved
from hubq.hub import Folder, Hub
from hubq.hub.huggingface import HuggingFace
from hubq.shared import Shared, read_entries

REPO = "org/store"
STEP, OTHER, KEY, ROW = "a" * 64, "b" * 64, "c" * 64, "d" * 64 + "-765"
GGUF = b"GGUF" * 1000
Machine = Callable[[str], Shared]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[loopback.Hub]:
    loopback.isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(module, "WAITS", (0.05,) * 8)
    with loopback.Hub() as server:
        yield server


@pytest.fixture(params=["folder", "hub"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, server: loopback.Hub) -> Machine:
    """Machines by their names, each with a store of its own, and one repository for all."""
    hub: Hub = Folder(tmp_path / "shared") if request.param == "folder" else HuggingFace(server.url, loopback.TOKEN)

    def made(name: str) -> Shared:
        found = Shared(hub, REPO, tmp_path / name)
        found.open()
        return found

    return made


def write(root: Path, place: str, data: bytes) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_bytes(data)


def do(root: Path, step: str = STEP, row: bytes = b"{}") -> None:
    """A step that made an artifact and a measurement."""
    write(root, f"artifacts/{KEY}/Tiny-Q8_0.gguf", GGUF)
    write(root, f"artifacts/{KEY}/record.json", b"{}")
    write(root, f"measurements/{ROW}.json", row)
    entries = [f"artifacts/{KEY}", f"measurements/{ROW}.json"]
    write(root, f"steps/{step}.json", json.dumps({"name": "build", "entries": entries}).encode())


def held(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_one_machine_sends_another_gets(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    assert here.done() == frozenset()
    do(here.root)
    here.send(STEP)
    assert there.done() == {STEP}
    there.fetch([STEP])
    assert held(there.root) == held(here.root)
    there.fetch([STEP])  # nothing more to do
    there.send(STEP)


def test_a_step_is_done_once(machine: Machine) -> None:
    here, there, ran = machine("here"), machine("there"), []
    here.carry(STEP, [], lambda: (ran.append("here"), do(here.root)))
    there.carry(STEP, [], lambda: ran.append("there"))
    there.carry(OTHER, [STEP], lambda: (ran.append((there.root / f"artifacts/{KEY}").is_dir()), do(there.root, OTHER)))
    assert ran == ["here", True] and here.done() == {STEP, OTHER}


def test_a_missing_need_is_told(machine: Machine) -> None:
    with pytest.raises(HubqError, match=f"does not hold step {STEP[:12]}"):
        machine("here").carry(OTHER, [STEP], lambda: pytest.fail("it ran without what it needs"))


def test_of_two_that_made_the_same_the_first_is_kept(machine: Machine) -> None:
    here, there, third = machine("here"), machine("there"), machine("third")
    do(here.root, STEP, b"first")
    do(there.root, OTHER, b"second")
    here.send(STEP)
    there.send(OTHER)
    third.fetch([STEP, OTHER])
    assert (third.root / f"measurements/{ROW}.json").read_bytes() == b"first"


def test_two_machines_send_at_once(machine: Machine) -> None:
    machines = [machine(f"machine{number}") for number in range(3)]
    steps, failed = [str(number) * 64 for number in range(3)], []
    for one, step in zip(machines, steps, strict=True):
        do(one.root, step)

    def send(one: Shared, step: str) -> None:
        try:
            one.send(step)
        except HubqError as error:
            failed.append(error)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(machines, steps, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = machine("last")
    last.fetch(steps)
    assert failed == [] and {f"steps/{step}.json" for step in steps} <= held(last.root).keys()


def test_a_push_that_is_outrun_goes_on_top(server: loopback.Hub, tmp_path: Path) -> None:
    here = Shared(HuggingFace(server.url, loopback.TOKEN), REPO, tmp_path / "here")
    here.open()
    do(here.root)
    server.before_commit = lambda: server.add(REPO, {f"measurements/{ROW}.json": b"faster"}) and None
    here.send(STEP)
    files = server.files(REPO)
    assert files[f"measurements/{ROW}.json"] == b"faster" and files[f"artifacts/{KEY}/Tiny-Q8_0.gguf"] == GGUF
    assert server.met == ["race"] and here.done() == {STEP}


def test_one_that_is_outrun_for_ever_gives_up(server: loopback.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Shared(HuggingFace(server.url, loopback.TOKEN), REPO, tmp_path / "here")
    here.open()
    do(here.root)
    monkeypatch.setattr(module, "WAITS", (0.01,))

    def race() -> None:
        server.add(REPO, {"notes.txt": os.urandom(9)})
        server.before_commit = race

    server.before_commit = race
    with pytest.raises(Moved):
        here.send(STEP)


def test_a_damaged_file_is_not_taken(server: loopback.Hub, tmp_path: Path) -> None:
    hub = HuggingFace(server.url, loopback.TOKEN)
    here, there = Shared(hub, REPO, tmp_path / "here"), Shared(hub, REPO, tmp_path / "there")
    here.open()
    do(here.root)
    here.send(STEP)
    server.flipped[f"artifacts/{KEY}/Tiny-Q8_0.gguf"] = 2
    with pytest.raises(HubError, match="not what the hub lists"):
        there.fetch([STEP])
    assert not (there.root / "artifacts" / KEY).exists() and not list(there.root.rglob("*.part"))
    there.fetch([STEP])
    assert held(there.root) == held(here.root)


def test_a_new_store_is_private(server: loopback.Hub, tmp_path: Path) -> None:
    Shared(HuggingFace(server.url, loopback.TOKEN), REPO, tmp_path).open()
    assert server.repos[REPO].private


def test_a_record_without_its_entries(machine: Machine) -> None:
    here = machine("here")
    entries = [f"artifacts/{KEY}"]
    here.hub.push(REPO, {f"steps/{STEP}.json": json.dumps({"entries": entries}).encode()}, "Add half of it")
    with pytest.raises(BadSource, match="which a record there names"):
        here.fetch([STEP])


@pytest.mark.parametrize(
    "entry", ["../x", "/etc/passwd", f"artifacts/../{KEY}", f"artifacts/{KEY}/..", f"steps/{KEY}.json", "", 7, None]
)
def test_records_lead_nowhere_else(entry: object) -> None:
    with pytest.raises(BadSource, match="no record of a step"):
        read_entries(json.dumps({"name": "build", "entries": [entry]}).encode(), "it")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"entries": 1}', b"\xff", b'"entries"'])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(BadSource):
        read_entries(data, "it")


def test_a_manifest_travels(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    folder = here.send_manifest({"hubq.toml": b"[source]", "text.txt": b"text"})
    assert here.send_manifest({"hubq.toml": b"[source]", "text.txt": b"text"}) == folder
    found = there.fetch_manifest(folder)
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {"hubq.toml": b"[source]", "text.txt": b"text"}
    for other in (f"manifests/{KEY}", "manifests/../steps", "steps"):
        with pytest.raises(HubqError, match="holds no manifest"):
            there.fetch_manifest(other)
