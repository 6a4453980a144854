"""What hostile inputs come to: a sentence or nothing, in little time and memory, and nothing outside of their folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS = 10  # of processor time for one input; a machine that does nothing else needs a third of it
BYTES = 512 << 20  # that one input may make memory grow
RUN = Path(__file__).with_name("run.py")
LONGEST = 2000  # characters of a message: what upstream wrote is shortened in it


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case came to; all run before the first is looked at, in processes of their own."""
    import hubq

    paths = {"PYTHONPATH": str(Path(hubq.__file__).parents[1]), "RUST_BACKTRACE": "0"}
    folder = tmp_path_factory.mktemp("hostile")
    ended = subprocess.run([sys.executable, RUN, folder], env=os.environ | paths, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len({row["name"] for row in rows}) == len(rows) > 800
    return {row["name"]: row for row in rows}


def wrong(told: dict[str, dict[str, Any]], fault: Any) -> list[str]:
    return [f"{row['name']}: {fault(row)}" for row in told.values() if fault(row)]


def outcome(row: dict[str, Any]) -> str:
    wanted, ended = row["wanted"], row["ended"]
    right = wanted in ("either", ended) or (wanted == "HubqError" and ended != "accepted")
    return "" if right and not ended.startswith("!") else f"{ended} {row.get('message', '')[:200]!r} instead of {wanted}"


def test_every_input_is_accepted_or_refused_as_it_should_be(told: dict[str, dict[str, Any]]) -> None:
    assert wrong(told, outcome) == []


def test_every_refusal_is_a_sentence_with_a_hint(told: dict[str, dict[str, Any]]) -> None:
    def sentence(row: dict[str, Any]) -> str:
        refused = row["ended"] not in ("accepted",) and not row["ended"].startswith("!")
        return f"{row['message']!r:.200}, {row['hint']!r}" if refused and not (row["message"] and row["hint"]) else ""

    assert wrong(told, sentence) == []


def test_no_input_takes_long(told: dict[str, dict[str, Any]]) -> None:
    assert wrong(told, lambda row: row.get("seconds", 0) > SECONDS and f"{row['seconds']:.1f} s") == []


def test_no_input_takes_much_memory(told: dict[str, dict[str, Any]]) -> None:
    assert wrong(told, lambda row: row.get("grown", 0) > BYTES and f"{row['grown'] >> 20} MiB") == []


def test_no_input_reaches_beyond_its_folder(told: dict[str, dict[str, Any]]) -> None:
    assert wrong(told, lambda row: row.get("outside")) == []
