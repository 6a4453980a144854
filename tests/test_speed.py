"""Speeds are of the file at hand in a process of its own, and what does not run is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from formats.gguf.test_engine import build
from formats.onnx import small

from hubq.errors import HubqError
from hubq.formats import open_format
from hubq.nouns import Artifact
from hubq.speed import energy, speed, used
from hubq.store import Store

IDS = np.arange(1, 41)


def onnx_file(path: Path) -> Artifact:
    return Artifact("onnx:fp32", path, path.stat().st_size, "0" * 64, 1, {}, 0, "")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A decoder in both formats, and an encoder."""
    folder = tmp_path_factory.mktemp("speed")
    _, built = build(tiny.llama(folder / "model"), ["Q8_0"])
    decoder, encoder = small.decoder(folder / "model.onnx"), small.encoder(folder / "encoder.onnx")
    return {"gguf": built["Q8_0"], "onnx": onnx_file(decoder), "encoder": onnx_file(encoder)}


@pytest.mark.parametrize("kind", ["gguf", "onnx", "encoder"])
def test_a_file_is_timed(files: dict[str, Artifact], kind: str) -> None:
    found = speed(files[kind], IDS, tokens=24, repeats=3)
    assert (found.level, found.engine) == (files[kind].level, "llama.cpp" if kind == "gguf" else "onnxruntime")
    assert (found.prompt_tokens, found.generated_tokens) == (40, 24)
    assert found.prompt.count == 3
    assert 0 < found.prompt.low <= found.prompt.median <= found.prompt.high
    assert 0 < found.load < 60
    assert 0 < found.memory < 1 << 30
    if kind == "encoder":
        assert found.generation is None
        assert found.cpu is None
    else:
        assert found.generation is not None
        assert found.cpu is not None
        assert found.cpu > 0


def counter(folder: Path, name: str, used: int) -> None:
    """A zone of Linux's powercap with a counter in microjoules that ends at 1000 J."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in {"name": name, "energy_uj": str(used), "max_energy_range_uj": "1000000000"}.items():
        (folder / file).write_text(content + "\n")


def test_joules_are_those_of_the_packages_and_counters_may_begin_anew(tmp_path: Path) -> None:
    counter(tmp_path / "intel-rapl:0", "package-0", 998_000_000)
    counter(tmp_path / "intel-rapl:1", "package-1", 5_000_000)
    counter(tmp_path / "intel-rapl:0:0", "dram", 7_000_000)
    before = energy(tmp_path)
    counter(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    counter(tmp_path / "intel-rapl:1", "package-1", 9_500_000)
    assert used(before, energy(tmp_path)) == pytest.approx(3 + 4.5)
    assert energy(tmp_path / "none") == {}


@pytest.mark.parametrize(("kind", "room"), [("gguf", 256), ("onnx", 64)])
def test_ids_go_behind_those_before_until_there_is_no_room(files: dict[str, Artifact], kind: str, room: int) -> None:
    """That is the context which llama.cpp was asked for, and the graph's table of positions."""
    with open_format(kind).player(files[kind].path, room) as player:
        player.feed(np.ones(room - 8, np.int64), True)
        player.feed(IDS[:8], False)
        with pytest.raises(HubqError, match="failed on"):
            player.feed(IDS[:1], False)
        player.feed(IDS, True)


def test_a_file_that_does_not_run_is_named(files: dict[str, Artifact], tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(files["gguf"].path.read_bytes()[:-4096])
    cut = Artifact("gguf:Q8_0", path, path.stat().st_size, "0" * 64, 1, {}, 0, "")
    with pytest.raises(HubqError, match=r"the speed of cut\.gguf cannot be told: llama\.cpp cannot load cut\.gguf"):
        speed(cut, IDS)


def test_a_store_gives_back_what_it_keeps(files: dict[str, Artifact], tmp_path: Path) -> None:
    found, store = speed(files["onnx"], IDS, tokens=2, repeats=1), Store(tmp_path)
    assert store.speed("a" * 64) is None
    store.keep_speed("a" * 64, found)
    assert store.speed("a" * 64) == found
