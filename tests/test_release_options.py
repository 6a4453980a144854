"""Releases with an importance matrix, a custom recipe, parts and level by level, from the model to the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import upstream
from gguf import GGUFReader

from hubq import release
from hubq.errors import HubqError, Usage
from hubq.formats import parse_levels
from hubq.formats.gguf import imatrix
from hubq.formats.gguf.recipe import Custom
from hubq.plan import Request, plan
from hubq.record import commands
from hubq.release import Event, publish
from hubq.store import Store, sha256
from hubq.text import TextSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> tuple[Path, Path]:
    """Two texts that share nothing: every other topic of the manual."""
    lines, folder = topics.read_text().splitlines(keepends=True), tmp_path_factory.mktemp("texts")
    for start, name in enumerate(("measure.jsonl", "calibrate.jsonl")):
        (folder / name).write_text("".join(lines[start::2]))
    return folder / "measure.jsonl", folder / "calibrate.jsonl"


@pytest.fixture
def request_(model: Path, texts: tuple[Path, Path], tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    measure, calibrate = texts
    return Request(
        str(model),
        parse_levels("q8_0,q4_k_m,iq2_xs", matrix=True),
        Store(tmp_path / "work"),
        to=str(tmp_path / "out"),
        text=TextSpec(str(measure), None, windows=3),
        imatrix=TextSpec(str(calibrate), None, windows=6),
        command="hubq publish {model} {build} --windows 3",
        imatrix_options="--imatrix auto --calibration calibrate.jsonl",
    )


def run(request: Request) -> tuple[release.Result, list[Event]]:
    told: list[Event] = []
    return publish(request, told.append), told


def steps(told: list[Event], step: str) -> list[str]:
    return [event.label for event in told if event.step == step and event.result is None]


def test_an_importance_matrix_is_computed_once_published_and_told(request_: Request) -> None:
    result, told = run(request_)
    folder = Path(str(result.target))
    assert steps(told, "calibrate")[-1] == "Tiny-Llama-imatrix.gguf"
    read = imatrix.read(folder / "Tiny-Llama-imatrix.gguf")
    assert (read.chunks, read.chunk_size, read.datasets, len(read.entries)) == (6, 512, ("calibrate.jsonl:all",), 14)
    matrix = result.release.imatrices[0]
    assert matrix.sha256 == sha256(folder / "Tiny-Llama-imatrix.gguf") == read.sha256 and matrix.text is not None
    made = {file.level: (file.imatrix, file.options) for file in result.release.artifacts}
    weighed = (matrix.sha256, request_.imatrix_options)
    assert made == {"gguf:Q8_0": (None, ""), "gguf:Q4_K_M": weighed, "gguf:IQ2_XS": weighed}
    assert commands(result.release) == [
        "hubq publish ./Tiny-Llama --levels q8_0 --windows 3",
        "hubq publish ./Tiny-Llama --levels q4_k_m,iq2_xs --imatrix auto --calibration calibrate.jsonl --windows 3",
    ]
    card = (folder / "README.md").read_text()
    assert "## Importance matrix" in card and matrix.sha256 in card and "calibrate.jsonl" in card
    fields = GGUFReader(folder / "Tiny-Llama-IQ2_XS.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "Tiny-Llama-imatrix.gguf"
    assert fields["quantize.imatrix.chunks_count"].contents() == 6
    again, told = run(request_)
    assert [steps(told, step) for step in ("calibrate", "build", "measure", "push")] == [[], [], [], []]
    assert again.commit == result.commit


def test_a_matrix_of_others_gives_the_bytes_of_the_same_one_computed(request_: Request, tmp_path: Path) -> None:
    first, _ = run(replace(request_, text=None))
    given = tmp_path / "theirs.gguf"
    given.write_bytes((Path(str(first.target)) / "Tiny-Llama-imatrix.gguf").read_bytes())
    (tmp_path / "out2").mkdir()
    request = replace(request_, text=None, imatrix=given, store=Store(tmp_path / "work2"), to=str(tmp_path / "out2"))
    second, told = run(request)
    assert steps(told, "calibrate") == [] and (Path(str(second.target)) / "theirs.gguf").is_file()
    assert second.release.imatrices[0].text is None
    for name in ("Q4_K_M", "IQ2_XS"):
        files = [Path(str(result.target)) / f"Tiny-Llama-{name}.gguf" for result in (first, second)]
        ours, theirs = map(upstream.tensors, files)
        assert all((ours[tensor][1] == theirs[tensor][1]).all() for tensor in ours)


def test_calibrating_on_what_is_measured_is_refused(request_: Request, topics: Path, texts: tuple[Path, Path]) -> None:
    for text in (texts[1], topics):
        spec = TextSpec(str(text), None, windows=None)
        with pytest.raises(Usage, match=r"repeats [\d,]+ runs of 64 tokens of the calibration text"):
            run(replace(request_, text=spec))
    assert not list(request_.store.root.rglob("*.gguf"))


def test_a_lost_matrix_is_computed_again_and_so_are_its_levels(request_: Request) -> None:
    run(replace(request_, text=None))
    kept = next((request_.store.root / "imatrices").glob("*/*.gguf"))
    matrix = imatrix.read(kept)
    entries = {name: imatrix.Entry(entry.sums * 2, entry.counts) for name, entry in matrix.entries.items()}
    imatrix.write(replace(matrix, entries=entries), kept)
    _, told = run(replace(request_, text=None))
    assert set(steps(told, "build")) == {"gguf:Q4_K_M", "gguf:IQ2_XS"}


def test_stream_publishes_level_by_level_and_keeps_no_file(request_: Request, tmp_path: Path) -> None:
    whole, _ = run(request_)
    (tmp_path / "out2").mkdir()
    request = replace(request_, stream=True, store=Store(tmp_path / "work2"), to=str(tmp_path / "out2"))
    planned, other = plan(request), plan(replace(request, stream=False))
    assert planned.write == other.write == other.need and planned.need == max(item.size for item in planned.items)
    result, told = run(request)
    assert [event.label for event in told if event.step == "build" and event.result] == [i.level.id for i in planned.items]
    assert steps(told, "measure").count("reference transformers") == 3  # windows, computed once for all levels
    assert not list((request.store.root / "artifacts").iterdir())
    for path in Path(str(whole.target)).iterdir():
        if path.name != "Tiny-Llama-imatrix.gguf":
            assert path.read_bytes() == (Path(str(result.target)) / path.name).read_bytes(), path.name
    again, told = run(request)
    assert steps(told, "build") == steps(told, "measure") == steps(told, "push") == [] and again.commit == result.commit


def test_stream_goes_on_where_it_was_stopped(request_: Request) -> None:
    request = replace(request_, stream=True, text=None)

    def stop(event: Event) -> None:
        if event.step == "build" and event.label == "gguf:IQ2_XS":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(request, stop)
    result, told = run(request)
    assert set(steps(told, "build")) == {"gguf:IQ2_XS"}
    assert len(result.release.artifacts) == 3


def test_a_split_level_is_released_in_parts_and_measured(request_: Request) -> None:
    request = replace(request_, levels=parse_levels("q8_0"), imatrix=None, split=1_000_000, options="--split-max-size 1M")
    result, _ = run(request)
    folder = Path(str(result.target))
    parts = result.release.artifacts[0].parts
    assert len(parts) > 1 and all(sha256(folder / part.path) == part.sha256 for part in parts)
    record = json.loads((folder / "release.json").read_bytes())
    assert [part["path"] for part in record["files"][0]["parts"]] == [part.path for part in parts]
    assert {row.engine for row in result.release.measurements if row.level == "gguf:Q8_0"} == {"llama.cpp", "weights"}
    assert commands(result.release)[0].endswith("--levels q8_0 --split-max-size 1M --windows 3")
    again, told = run(request)
    assert steps(told, "build") == [] and again.commit == result.commit


def test_a_custom_recipe_is_another_file(request_: Request) -> None:
    request = replace(request_, levels=parse_levels("q4_k_m"), imatrix=None, text=None)
    plain, _ = run(request)
    custom = replace(request, custom=Custom((("attn", "Q8_0"),)), options="--tensor-type attn=Q8_0")
    changed, told = run(custom)
    assert set(steps(told, "build")) == {"gguf:Q4_K_M"}
    assert changed.release.artifacts[0].types["Q8_0"] == 8 != plain.release.artifacts[0].types.get("Q8_0")
    assert commands(changed.release)[0].endswith("--levels q4_k_m --tensor-type attn=Q8_0 --windows 3")


def test_disk_is_counted_before_the_first_byte(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(request_)
    assert planned.need == planned.write == sum(item.size for item in planned.items)
    monkeypatch.setattr(release, "SPARE", planned.free - planned.need + 10**9)
    with pytest.raises(HubqError, match="of disk") as caught:
        run(request_)
    assert "--stream" in caught.value.hint and not list(request_.store.root.rglob("*.gguf"))
