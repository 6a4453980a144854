"""`hubq status`: what it finds when the source, the target, the record or the card is not as the manifest says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
import releases
from shelf import hubq

from hubq import cards
from hubq.hub import connect
from hubq.record import release_json

MANIFEST = """
[source]
model = "org/Tiny"
revision = "{commit}"
follow = "main"
[targets]
gguf = "me/Tiny-GGUF"
[variants]
gguf = ["Q8_0", "Q4_K_M"]
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Hub]:
    """A Hub with a source and its release, and here its manifest and card."""
    with loopback.Hub() as server:
        server.log_in(monkeypatch, tmp_path / "home")
        monkeypatch.chdir(tmp_path)
        commit = server.add("org/Tiny", {"config.json": b"{}"})
        server.add("me/Tiny-GGUF", {})
        made = releases.put(connect(), releases.release("Q8_0", "Q4_K_M", commit=commit)).release
        (tmp_path / "cards/Tiny").mkdir(parents=True)
        (tmp_path / "cards/Tiny/hubq.toml").write_text(MANIFEST.format(commit=commit))
        cards.keep(tmp_path / "cards/Tiny", [made], "gguf")
        yield server


def found() -> tuple[str, dict[str, str]]:
    """The state, and what was found by its kind."""
    told = hubq("status", "--json")
    assert told.exit_code == 0, told.output
    (card,) = json.loads(told.stdout)["cards"]
    assert (card["folder"], card["source"]) == ("Tiny", "org/Tiny")
    return card["state"], {finding["kind"]: finding["text"] for finding in card["findings"]}


def test_all_is_as_it_should_be(hub: loopback.Hub) -> None:
    assert found() == ("current", {})
    assert hubq("status").stdout.split() == ["current", "Tiny", "org/Tiny"]


def test_the_source_moved(hub: loopback.Hub) -> None:
    now = hub.add("org/Tiny", {"new.txt": b""})
    state, told = found()
    assert state == "moved" and told.keys() == {"moved"}
    assert f'revision = "{now}"' in told["moved"]


def test_the_target_lacks_levels_is_behind_or_empty(hub: loopback.Hub, tmp_path: Path) -> None:
    path = tmp_path / "cards/Tiny/hubq.toml"
    path.write_text(path.read_text().replace('"Q8_0",', '"Q8_0", "Q5_K_M",'))
    assert found() == ("missing level", {"missing level": "me/Tiny-GGUF lacks Q5_K_M: run `hubq publish cards/Tiny`"})
    path.write_text(MANIFEST.format(commit="d" * 40).replace('follow = "main"\n', ""))
    assert found()[0] == "behind"
    hub.add("me/Empty", {})
    path.write_text(path.read_text().replace("me/Tiny-GGUF", "me/Empty"))
    assert found()[0] == "no release"


def test_records_and_cards(hub: loopback.Hub, tmp_path: Path) -> None:
    folder = tmp_path / "cards/Tiny"
    (folder / "README.md").write_text("mine")
    assert found() == ("stale card", {"stale card": "README.md in cards/Tiny: run `hubq card cards/Tiny`"})
    cards.keep(folder, [releases.release("Q8_0", commit="c" * 40)], "gguf")
    assert found()[0] == "differs"
    (folder / "release.json").unlink()
    assert found()[0] == "no card"


def test_a_hub_that_does_not_answer_is_a_finding(hub: loopback.Hub) -> None:
    hub.fail("/api/models/org/Tiny", 403, times=99)
    state, told = found()
    assert state == "unknown" and "org/Tiny cannot be asked" in told["unknown"]


def test_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hubq("status").exit_code == 2
    (tmp_path / "cards").mkdir()
    told = hubq("status")
    assert told.exit_code == 2 and "holds no hubq.toml" in told.output


def test_records_of_two_formats_lie_beside_each_other(tmp_path: Path) -> None:
    made = releases.release("Q8_0")
    (tmp_path / "Tiny").mkdir()
    cards.keep(tmp_path / "Tiny", [made], "gguf")
    assert cards.beside(tmp_path / "Tiny", "onnx", "gguf") == tmp_path / "Tiny-ONNX"
    assert cards.beside(tmp_path / "Tiny", "onnx", "onnx") == tmp_path / "Tiny"
    assert (tmp_path / "Tiny/release.json").read_bytes() == release_json(made)
