from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shelf import CARDS, files, hubq, put

from hubq import cards
from hubq.errors import BadSource, Unsupported, Usage
from hubq.record import release_json


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda root: shutil.rmtree(root), Usage, "no folder"),
        (lambda root: shutil.rmtree(root / "one"), BadSource, "no card"),
        (lambda root: (root / "one/release.json").write_text("{"), BadSource, "one/release.json"),
        (lambda root: (root / "one/release.json").write_text('{"schema": 99}'), Unsupported, "schema 99"),
        (lambda root: (root / "one").rename(root / "a<b"), BadSource, "a<b"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change: Any, error: type[Exception], words: str) -> None:
    put(tmp_path / "cards/one", CARDS["SmolLM2-135M-Instruct"])
    change(tmp_path / "cards")
    with pytest.raises(error, match=re.escape(words)):
        cards.read_cards(tmp_path / "cards")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    odd = replace(CARDS["SmolLM2-135M-Instruct"], artifacts=files("a", 1000, {"tflite:Q1": 1.0}), measurements=())
    (tmp_path / "one").mkdir()
    (tmp_path / "one/release.json").write_bytes(release_json(odd))
    with pytest.raises(BadSource, match="tflite"):
        cards.read_cards(tmp_path)


def test_check_tells_what_does_not_follow_and_card_makes_it_so(tmp_path: Path) -> None:
    root = tmp_path / "cards"
    put(root / "one", CARDS["SmolLM2-135M-Instruct"])
    old = replace(CARDS["Qwen3-0.6B"], versions={"hubq": "0.0.1"})
    put(root / "two", old)
    (root / "notes").mkdir()  # no card
    assert hubq("cards", "check", "--cards", root).exit_code == 0
    (root / "one/README.md").write_text("changed by hand")
    next((root / "two").glob("*.svg")).unlink()
    record = (root / "two/release.json").read_bytes()

    told = hubq("cards", "check", "--cards", root)
    assert told.exit_code == 3
    assert re.search(r"stale +\S+/one/README.md\n", told.stdout) and f"hubq card {root / 'one'}" in told.stdout
    assert re.search(r"missing +\S+/two/\w+.svg \(release.json is of hubq 0.0.1, and this is ", told.stdout)
    document = json.loads(hubq("cards", "check", "--cards", root, "--json").stdout)
    assert document["status"] == "failed" and {file["state"] for file in document["files"]} == {"current", "stale", "missing"}

    wrote = hubq("card", root / "one")
    assert wrote.exit_code == 0 and "README.md" in wrote.stdout and ".svg" not in wrote.stdout
    assert json.loads(hubq("card", root / "two/release.json", "--json").stdout)["changed"] != []
    assert json.loads(hubq("card", root / "two", "--json").stdout)["changed"] == []
    assert (root / "two/release.json").read_bytes() == record
    assert hubq("cards", "check", "--cards", root).exit_code == 0
    assert not [path for path in root.rglob(".*")]


def test_card_leaves_a_published_folder_alone(tmp_path: Path) -> None:
    put(tmp_path / "one", CARDS["SmolLM2-135M-Instruct"])
    (tmp_path / "one/SHA256SUMS").write_text("")
    cards.render(tmp_path / "one", CARDS["SmolLM2-135M-Instruct"])  # nothing changed
    (tmp_path / "one/README.md").write_text("other")
    told = hubq("card", tmp_path / "one")
    assert told.exit_code == 2 and "SHA256SUMS" in told.stderr
    assert (tmp_path / "one/README.md").read_text() == "other"


def test_the_cards_of_this_repository_follow_from_their_records() -> None:
    folder = Path(__file__).parents[1] / "cards"
    known = cards.read_cards(folder)
    assert len(known) >= 3
    for one in known:
        made = cards.rendered(one.release)
        assert (folder / one.folder / "README.md").read_bytes() == made["README.md"], f"hubq card cards/{one.folder}"
        assert all((folder / one.folder / name).is_file() for name in made)
