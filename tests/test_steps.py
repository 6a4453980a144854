"""A plan as data: its keys, what needs what, and that steps done anywhere end in the same release."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from hubq.errors import GateFailed, HubqError
from hubq.formats import parse_levels
from hubq.plan import Request
from hubq.release import publish, run_steps
from hubq.steps import done, planned_steps
from hubq.store import Store
from hubq.text import TextSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32")


def request(model: Path, topics: Path, place: Path, name: str = "one", **changes: object) -> Request:
    """A request with a store and a target of its own."""
    (place / name / "out").mkdir(parents=True)
    facts: dict[str, object] = {"text": TextSpec(str(topics), None, windows=2), "floor": True, **changes}
    command = "hubq publish {model} {build}"
    levels = parse_levels("q8_0,q4_k_m", matrix=True)
    return Request(str(model), levels, Store(place / name / "work"), to=str(place / name / "out"), command=command, **facts)  # type: ignore[arg-type]


def files(request: Request) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(str(request.to)).rglob("*")) if path.is_file()}


def by_name(request: Request) -> dict[str, str]:
    return {step.name: step.key for step in planned_steps(request)[1]}


def test_steps_in_stores_of_their_own_end_in_the_same_bytes(model: Path, topics: Path, tmp_path: Path) -> None:
    """As on machines that share nothing: a store for each level, and one that is filled from them."""
    whole = request(model, topics, tmp_path, "whole", imatrix=TextSpec(str(topics), None, seed=1, windows=3))
    publish(whole)
    spread = replace(whole, to=str(tmp_path / "spread"))
    (tmp_path / "spread").mkdir()
    first = replace(spread, store=Store(tmp_path / "first"))
    steps = planned_steps(first)[1]
    assert [step.name for step in steps] == [
        "calibrate Tiny-Llama-imatrix.gguf",
        "build gguf:Q8_0",
        "build gguf:Q4_K_M",
        "measure floor (GGUF)",
        "measure gguf:Q8_0",
        "measure gguf:Q4_K_M",
        "publish GGUF",
    ]
    assert not any(step.done for step in steps)
    run_steps(first, {step.key for step in steps[:2]})  # the level is built with the matrix that was just made
    stores = [first.store]
    for level in ("gguf:Q8_0", "gguf:Q4_K_M", "floor"):
        stores.append(Store(tmp_path / level.replace(":", "-")))
        shutil.copytree(first.store.root / "imatrices", stores[-1].root / "imatrices")
        shutil.copytree(first.store.root / "steps", stores[-1].root / "steps")
        run_steps(replace(spread, store=stores[-1]), {step.key for step in steps if step.level == level})
    last = replace(spread, store=Store(tmp_path / "last"))
    for store in stores:
        for step in steps:
            for entry in (store.step(step.key) or {"entries": []})["entries"]:
                copy = shutil.copytree if (store.root / entry).is_dir() else shutil.copy
                (last.store.root / entry).parent.mkdir(parents=True, exist_ok=True)
                if not (last.store.root / entry).exists():
                    copy(store.root / entry, last.store.root / entry)
            if (store.root / "steps" / f"{step.key}.json").exists():
                (last.store.root / "steps").mkdir(exist_ok=True)
                shutil.copy(store.root / "steps" / f"{step.key}.json", last.store.root / "steps")
    _, results = run_steps(last, {steps[-1].key})
    assert files(last) == files(whole) and len(results) == 1
    assert all(done(last.store, step) for step in steps[:-1])


def test_a_step_is_done_once_and_names_what_it_needs(model: Path, topics: Path, tmp_path: Path) -> None:
    wanted = request(model, topics, tmp_path)
    keys = by_name(wanted)
    with pytest.raises(HubqError, match=r"measure gguf:Q8_0 needs what .* does not hold: build gguf:Q8_0"):
        run_steps(wanted, {keys["measure gguf:Q8_0"]})
    run_steps(wanted, {keys["build gguf:Q8_0"]})
    file = next((wanted.store.root / "artifacts").glob("*/*.gguf"))
    before = file.stat().st_mtime_ns
    run_steps(wanted, {keys["build gguf:Q8_0"]})
    assert file.stat().st_mtime_ns == before
    with pytest.raises(HubqError, match="publish GGUF needs"):
        run_steps(wanted, {keys["publish GGUF"]})
    assert not files(wanted)
    shutil.rmtree(file.parent)
    assert not done(wanted.store, planned_steps(wanted)[1][0]), "a record of what is not there counts for nothing"


def test_keys_change_with_what_a_step_depends_on_and_with_nothing_else(model: Path, topics: Path, tmp_path: Path) -> None:
    wanted = request(model, topics, tmp_path)
    keys = by_name(wanted)
    assert by_name(replace(wanted, store=Store(tmp_path / "elsewhere"), command="other")) == keys
    assert wanted.text is not None
    other = by_name(replace(wanted, text=replace(wanted.text, windows=3)))
    assert {name for name in keys if keys[name] == other[name]} == {"build gguf:Q8_0", "build gguf:Q4_K_M"}
    gated = by_name(replace(wanted, gates={"gguf:Q8_0": {"kld": 1.0}}))
    assert {name for name in keys if keys[name] != gated[name]} == {"measure gguf:Q8_0", "publish GGUF"}
    words = tmp_path / topics.name
    words.write_text(topics.read_text() + '{"text": "more"}\n')
    longer = by_name(replace(wanted, text=replace(wanted.text, dataset=str(words))))
    assert longer["measure gguf:Q8_0"] != keys["measure gguf:Q8_0"]


def test_publishing_reads_no_weights_and_builds_nothing(
    model: Path, topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(model, topics, tmp_path)
    *others, last = planned_steps(wanted)[1]
    run_steps(wanted, {step.key for step in others})

    def no(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    for name in ("build", "load", "check"):
        monkeypatch.setattr(f"hubq.formats.gguf.{name}", no)
    monkeypatch.setattr("hubq.reference.load", no)
    pulled: list[str] = []
    run_steps(wanted, {last.key}, lambda event: pulled.append(event.label) if event.step == "pull" else None)
    assert pulled and not [name for name in pulled if name.endswith(".safetensors")]
    record = json.loads(files(wanted)["release.json"])
    assert [one["path"] for one in record["inputs"] if one["path"].endswith(".safetensors")] and record["machine"]


def test_a_file_beyond_its_limit_is_not_pushed(model: Path, topics: Path, tmp_path: Path) -> None:
    wanted = request(model, topics, tmp_path, gates={"gguf:Q4_K_M": {"kld": 1e-9, "top1": 0.1}, "gguf:Q8_0": {"kld": 1.0}})
    with pytest.raises(GateFailed, match=r"gguf:Q4_K_M: kld is [0-9.e-]+ ± .* in llama.cpp, and may be 1e-09") as caught:
        publish(wanted)
    assert caught.value.exit_code == 3 and not files(wanted)
    assert "Q8_0" not in caught.value.message and "top1" not in caught.value.message
    keys = by_name(wanted)
    run_steps(wanted, {keys["build gguf:Q4_K_M"], keys["build gguf:Q8_0"], keys["measure gguf:Q8_0"]})
    with pytest.raises(GateFailed):
        run_steps(wanted, {keys["measure gguf:Q4_K_M"]})
    publish(replace(wanted, gates={"gguf:Q4_K_M": {"top1": 0.1}}))
    assert "Tiny-Llama-Q4_K_M.gguf" in files(wanted)
    with pytest.raises(GateFailed, match="top1 is"):
        publish(replace(wanted, gates={"gguf:Q4_K_M": {"top1": 1.1}}))
