"""The work store: what is kept is found again, complete or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hubq.errors import HubqError
from hubq.nouns import Artifact, Estimate, Measurement
from hubq.store import Store, default_root, key, sha256

KEY = "ab" * 32
DATA = bytes(range(256)) * 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "work")


def keep(store: Store, data: bytes = DATA) -> Artifact:
    path = store.aside(KEY) / "M-Q8_0.gguf"
    path.write_bytes(data)
    return store.keep(Artifact("gguf:Q8_0", path, len(data), sha256(path), 2560, {"Q8_0": 2, "F32": 1}, 1, KEY))


# --- keys ---


def test_a_key_is_the_same_everywhere_and_always() -> None:
    facts = {"level": "gguf:Q8_0", "inputs": {"b.safetensors": "00", "a.json": None}, "bos": 1, "name": "Über"}
    expected = "dd2dbfebf12dfb8c0068a0feab6922a70d6ba69f5d4d12d113ce391854dab071"
    assert key(facts) == key(dict(reversed(facts.items()))) == expected
    program = f"from hubq.store import key; print(key({facts!r}))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).strip() == expected


def test_a_key_depends_on_every_fact() -> None:
    facts = {"level": "gguf:Q8_0", "inputs": {"a": "0"}, "n": 1}
    others = [{}, facts | {"n": 2}, facts | {"n": "1"}, facts | {"inputs": {"a": "1"}}, facts | {"inputs": {"b": "0"}}]
    assert len({key(facts), *map(key, others)}) == 6


# --- artifacts ---


def test_what_is_kept_is_found(store: Store) -> None:
    kept = keep(store)
    assert kept.path.read_bytes() == DATA
    assert kept.path == store.root / "artifacts" / KEY / "M-Q8_0.gguf"
    assert store.artifact(KEY) == store.artifact(KEY, check=False) == kept
    assert [path.name for path in (store.root / "artifacts").iterdir()] == [KEY]
    assert str(store.root) not in (kept.path.parent / "record.json").read_text()


def test_a_store_may_move(store: Store, tmp_path: Path) -> None:
    keep(store)
    store.root.rename(tmp_path / "elsewhere")
    found = Store(tmp_path / "elsewhere").artifact(KEY)
    assert found is not None and found.path.read_bytes() == DATA


def test_nothing_is_found_and_nothing_written_where_nothing_was_kept(store: Store) -> None:
    assert store.artifact(KEY) is None
    assert store.measurement(KEY) is None
    assert not store.root.exists()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_removed_and_can_be_made_again(store: Store, name: str) -> None:
    path = keep(store).path
    path.write_bytes(DAMAGE[name](DATA))
    assert store.artifact(KEY) is None
    assert not path.parent.exists()
    assert store.artifact(KEY) is None
    assert keep(store) == store.artifact(KEY)


def test_looking_without_a_check_sees_the_size_and_touches_nothing(store: Store) -> None:
    path = keep(store).path
    path.write_bytes(DAMAGE["one bit"](DATA))
    assert store.artifact(KEY, check=False) is not None
    path.write_bytes(DATA[:-1])
    assert store.artifact(KEY, check=False) is None
    assert path.exists()


def test_a_missing_file_counts_as_none(store: Store) -> None:
    keep(store).path.unlink()
    assert store.artifact(KEY) is None


RECORDS = ["", "{", '{"level": "gguf:Q8', "[]", "{}", "null", '{"path": "M-Q8_0.gguf"}', '{"path": 3}', "\ufffd"]


@pytest.mark.parametrize("content", RECORDS)
def test_a_record_that_a_crash_cut_short_counts_as_none(store: Store, content: str) -> None:
    record = keep(store).path.parent / "record.json"
    record.write_text(content)
    assert store.artifact(KEY) is None
    assert store.artifact(KEY, check=False) is None
    assert keep(store) == store.artifact(KEY)


def test_a_record_of_another_version_counts_as_none(store: Store) -> None:
    record = keep(store).path.parent / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"colour": None}))
    assert store.artifact(KEY) is None


def test_the_rest_of_a_killed_run_is_wiped(store: Store) -> None:
    folder = store.aside(KEY)
    (folder / "M-Q8_0.gguf").write_bytes(b"half a fi")
    (folder / "record.json").write_text("{}")
    assert store.artifact(KEY) is None
    assert store.aside(KEY) == folder
    assert not list(folder.iterdir())


def test_a_file_appears_complete_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(store)
    monkeypatch.undo()
    assert store.artifact(KEY) is None
    assert keep(store) == store.artifact(KEY)


def test_a_record_is_replaced_in_one_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measurement("gguf:Q8_0", "weights", {"kl": Estimate(0.5, 0.25, 8)})
    store.keep_measurement(KEY, measured)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.keep_measurement(KEY, replace(measured, level="gguf:Q4_0"))
    assert store.measurement(KEY) == measured


# --- measurements ---


def test_a_measurement_comes_back_to_the_last_bit(store: Store) -> None:
    values = {"perplexity": Estimate(0.1 + 0.2, 1e-300, 8192), "top1": Estimate(1 / 3, float("inf"), 0)}
    measured = Measurement("gguf:Q4_K_M", "llama.cpp", values)
    store.keep_measurement(KEY, measured)
    assert store.measurement(KEY) == measured
    less = Measurement("gguf:Q4_K_M", "llama.cpp", {"perplexity": Estimate(0.3, 0.1, 512)})
    store.keep_measurement(KEY, less)
    assert store.measurement(KEY) == measured, "the one of more tokens counts"
    names = {path.name for path in (store.root / "measurements").iterdir()}
    assert names == {f"{KEY}-8192.json", f"{KEY}-512.json"}


@pytest.mark.parametrize("content", [*RECORDS, '{"level": "a", "engine": "b", "values": {"kl": {"value": 1}}}'])
def test_a_measurement_cut_short_counts_as_none(store: Store, content: str) -> None:
    measured = Measurement("gguf:Q8_0", "weights", {})
    store.keep_measurement(KEY, measured)
    (store.root / "measurements" / f"{KEY}-0.json").write_text(content)
    assert store.measurement(KEY) is None
    store.keep_measurement(KEY, measured)
    assert store.measurement(KEY) == measured


def test_asdict_knows_every_field_of_the_records(store: Store) -> None:
    record = json.loads((keep(store).path.parent / "record.json").read_text())
    assert record.keys() == asdict(store.artifact(KEY)).keys()


# --- the lock and the folder ---


def test_a_second_run_is_told_where_the_first_one_works(store: Store) -> None:
    with store.locked():
        with pytest.raises(HubqError, match="another hubq is working in") as caught, Store(store.root).locked():
            pass
        assert str(store.root) in caught.value.message and "--work-dir" in caught.value.hint
    with store.locked():
        pass


def test_a_run_that_fails_lets_go_of_the_lock(store: Store) -> None:
    with pytest.raises(ValueError, match="failed"), store.locked():
        raise ValueError("failed")
    with store.locked():
        pass


def test_a_killed_run_lets_go_of_the_lock(store: Store) -> None:
    program = "import os, pathlib, sys; from hubq.store import Store\n"
    program += "with Store(pathlib.Path(sys.argv[1])).locked(): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program, store.root], check=False).returncode == 9
    with store.locked():
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HubqError, match=r"cannot write to .*file") as caught, Store(tmp_path / "file").locked():
        pass
    assert "--work-dir" in caught.value.hint


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUBQ_HOME", str(tmp_path / "a"))
    assert default_root() == tmp_path / "a"
    monkeypatch.setenv("HUBQ_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_root() == tmp_path / "b" / "hubq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "hubq"


# --- looking after it ---


def told(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hubq", "store", *arguments, "--work-dir", str(store.root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def full(store: Store) -> Store:
    """A store with a file, a measurement, an importance matrix, and what a killed run left behind."""
    keep(store)
    store.keep_measurement("cd" * 32, Measurement("gguf:Q8_0", "weights", {"kld": Estimate(0.1, 0.01, 10)}))
    store.keep_file("imatrices", "ef" * 32, "M-imatrix.gguf", lambda path: path.write_bytes(b"matrix") and None)
    (store.aside("12" * 32) / "M-Q4_0.gguf").write_bytes(b"half")
    return store


def test_everything_kept_is_listed(full: Store) -> None:
    document = json.loads(told(full, "list", "--json").stdout)
    found = {(entry["kind"], entry["name"]): entry for entry in document["entries"]}
    assert set(found) == {
        ("artifacts", "M-Q8_0.gguf"),
        ("artifacts", "M-Q4_0.gguf"),
        ("imatrices", "M-imatrix.gguf"),
        ("measurements", f"{'cd' * 32}-10.json"),
    }
    assert found["artifacts", "M-Q4_0.gguf"]["unfinished"]
    assert found["artifacts", "M-Q8_0.gguf"]["size"] > len(DATA)
    assert "4 kept, " in told(full, "list").stdout


def test_a_damaged_file_is_named_and_stays(full: Store) -> None:
    assert told(full, "verify").returncode == 0
    path = full.root / "artifacts" / KEY / "M-Q8_0.gguf"
    path.write_bytes(DATA[:-1] + b"\0")
    made = told(full, "verify")
    assert made.returncode == 3
    assert "M-Q8_0.gguf" in made.stdout
    assert path.exists()


def test_pruning_takes_leftovers_and_damage_and_no_more(full: Store) -> None:
    assert "1 would be deleted" in told(full, "prune", "--dry-run").stdout
    assert "1 deleted" in told(full, "prune").stdout
    assert {entry.kind for entry in full.entries()} == {"artifacts", "imatrices", "measurements"}
    (full.root / "artifacts" / KEY / "M-Q8_0.gguf").write_bytes(b"")
    assert "1 deleted" in told(full, "prune").stdout
    assert {entry.kind for entry in full.entries()} == {"imatrices", "measurements"}


def test_pruning_by_age_and_all(full: Store) -> None:
    os.utime(full.root / "measurements" / f"{'cd' * 32}-10.json", (0, 0))
    assert "2 deleted" in told(full, "prune", "--days", "30").stdout
    assert {entry.kind for entry in full.entries()} == {"artifacts", "imatrices"}
    assert "2 deleted" in told(full, "prune", "--all").stdout
    assert full.entries() == []


def test_pruning_waits_for_nobody(full: Store) -> None:
    with full.locked():
        made = told(full, "prune", "--all")
    assert made.returncode == 1
    assert "another hubq is working" in made.stderr
    assert len(full.entries()) == 4


def test_an_empty_store_has_nothing_to_list(store: Store) -> None:
    made = told(store, "list")
    assert (made.returncode, made.stdout) == (0, f"0 kept, 0 B in {store.root}\n")
    assert not store.root.exists()


def test_a_file_that_cannot_be_made_leaves_nothing(store: Store) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.keep_file("imatrices", "k", "i.gguf", fail)
    assert list((store.root / "imatrices").iterdir()) == []
