"""A GGUF as the source: the files are those that llama-quantize makes of it, measured against it in llama.cpp."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import loopback
import numpy as np
import pytest
import tiny
import upstream

from hubq import plan as planning
from hubq.errors import BadSource, GateFailed, HubqError, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.formats.gguf import origin
from hubq.formats.gguf.levels import MIXES
from hubq.formats.gguf.read import fetch_header, read_header
from hubq.hub.huggingface import HuggingFace
from hubq.plan import Request, locate, plan
from hubq.release import Result, publish
from hubq.store import Store
from hubq.text import TextSpec
from hubq.ui import Screen

CHECKS = ("metadata", "token ids", "logits")


def request(model: Path | str, levels: str, work: Path, **changes: Any) -> Request:
    (work / "out").mkdir(parents=True, exist_ok=True)
    command = "hubq publish {model} {build}"
    return Request(
        str(model), parse_levels(levels), Store(work / "work"), **{"to": str(work / "out"), "command": command, **changes}
    )


def made(result: Result) -> dict[str, Path]:
    """A release's files by level."""
    return {file.level.removeprefix("gguf:"): Path(result.target) / file.path.name for file in result.release.artifacts}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Tiny-Llama-F32, -F16, -BF16 and -Q8_0.gguf, made by hubq of a checkpoint in 32 bits."""
    work = tmp_path_factory.mktemp("source")
    model = tiny.llama(work / "Tiny-Llama", dtype="float32", initializer_range=0.1)
    folder = Path(publish(request(model, "f32,bf16,q8_0,q4_k_m,q2_k", work)).target)
    (other := work / "other").mkdir()
    shutil.copy(made(publish(request(model, "f16", work, to=str(other))))["F16"], folder)
    return folder


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_files_are_those_of_llama_quantize(kind: str, source: Path, tmp_path: Path) -> None:
    given = source / f"Tiny-Llama-{kind}.gguf"
    for level, path in made(publish(request(given, "q4_k_m,q5_0,q8_0,bf16", tmp_path))).items():
        theirs = tmp_path / f"theirs-{level}.gguf"
        upstream.quantize(given, theirs, MIXES[level].file_type, requantize=True)
        ours, wanted = upstream.tensors(path), upstream.tensors(theirs)
        assert ours.keys() == wanted.keys()
        for name, (number, data) in wanted.items():
            assert ours[name][0] == number and np.array_equal(ours[name][1], data), f"{level} {name}"
        assert read_header(path).pairs == read_header(theirs).pairs


def test_they_are_those_of_the_checkpoint(source: Path, tmp_path: Path) -> None:
    files = made(publish(request(source / "Tiny-Llama-F32.gguf", "q4_k_m,q2_k,f16", tmp_path)))
    for level, path in files.items():
        ours, theirs = upstream.tensors(path), upstream.tensors(source / path.name)
        assert all(np.array_equal(ours[name][1], data) for name, (_, data) in theirs.items()), level


def test_a_model_in_parts_is_one(source: Path, tmp_path: Path) -> None:
    parts = publish(request(source / "Tiny-Llama-BF16.gguf", "bf16", tmp_path / "split", split=1_000_000)).release.artifacts[0]
    assert len(parts.parts) > 1
    (folder := tmp_path / "Parts").mkdir()
    for part in parts.parts:
        shutil.copy(parts.path.with_name(part.path), folder)
    for model in (folder / parts.parts[1].path, f"{folder}:BF16", folder):
        result = publish(request(model, "q4_k_m", tmp_path / Path(str(model)).name.replace(":", "-")))
        name = "Parts" if "Parts" in Path(str(model)).name else "Tiny-Llama"
        assert result.release.artifacts[0].path.name == f"{name}-Q4_K_M.gguf"
        wanted = upstream.tensors(source / "Tiny-Llama-BF16.gguf").keys()
        assert upstream.tensors(made(result)["Q4_K_M"]).keys() == wanted
        assert not any(key.startswith("split.") for key in read_header(made(result)["Q4_K_M"]).metadata)
    (folder / parts.parts[2].path).unlink()
    with pytest.raises(BadSource, match="lacks"):
        publish(request(folder, "q4_k_m", tmp_path / "lacking"))


def test_it_is_measured_against_the_file_and_the_card_says_so(source: Path, topics: Path, tmp_path: Path) -> None:
    text = TextSpec(str(topics), None, windows=3)
    result = publish(request(source / "Tiny-Llama-BF16.gguf", "bf16,q4_k_m", tmp_path, text=text))
    rows = {(row.level, row.engine): row for row in result.release.measurements}
    assert rows.keys() == {("reference", "llama.cpp"), ("gguf:BF16", "llama.cpp"), ("gguf:Q4_K_M", "llama.cpp")}
    assert (
        rows["gguf:BF16", "llama.cpp"].values["kld"].value == 0 and rows["gguf:Q4_K_M", "llama.cpp"].values["kld"].value > 0.01
    )
    checks = {check.name: check for check in result.release.checks if check.level == "gguf:Q4_K_M"}
    assert {name: check.outcome for name, check in checks.items()} == dict.fromkeys(
        ["metadata", "token ids", "logits"], "passed"
    )
    card = result.card["README.md"].decode()
    assert "against the source's GGUF, which llama.cpp ran" in card and "transformers" not in card.partition("Made with")[0]
    assert "The source is a GGUF already, Tiny-Llama-BF16.gguf, whose weights are stored in BF16." in card
    assert "hubq publish ./Tiny-Llama-BF16.gguf --levels bf16,q4_k_m" in card and "8 bits per weight" not in card


def test_ids_and_bytes_are_those_of_the_checkpoint(source: Path, topics: Path, tmp_path: Path) -> None:
    model, text = source.parents[1] / "Tiny-Llama", TextSpec(str(topics), None, windows=3)
    one = publish(request(model, "q8_0", tmp_path / "checkpoint", text=text)).release
    other = publish(request(source / "Tiny-Llama-F32.gguf", "q8_0", tmp_path / "file", text=text)).release
    assert one.evalset and other.evalset and one.evalset.ids_sha256 == other.evalset.ids_sha256
    bits = [release.measurements[0].values["bits_per_byte"].value for release in (one, other)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-3)


def test_eight_bits_are_warned_of(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=False) as screen:
        result = publish(request(source / "Tiny-Llama-Q8_0.gguf", "q4_k_m", tmp_path), screen.tell)
    assert "warning: Tiny-Llama-Q8_0.gguf has 8 bits per weight" in capsys.readouterr().err
    assert "**It has 8 bits per weight" in result.card["README.md"].decode()


def test_a_vision_tower_is_named_as_left_out(source: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "Seeing-GGUF").mkdir()
    shutil.copy(source / "Tiny-Llama-F16.gguf", folder / "Seeing-F16.gguf")
    shutil.copy(source / "Tiny-Llama-F16.gguf", folder / "mmproj-Seeing-F16.gguf")
    result = publish(request(folder, "q8_0", tmp_path))
    assert result.release.left_out == ("mmproj-Seeing-F16.gguf",)
    assert "Not converted: mmproj-Seeing-F16.gguf." in result.card["README.md"].decode()


# --- on the Hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    loopback.isolate(monkeypatch, tmp_path / "home")
    with loopback.Hub() as server:
        monkeypatch.setenv("HF_TOKEN", loopback.TOKEN)
        monkeypatch.setattr(planning, "connect", lambda place=None, **_: HuggingFace(server.url, loopback.TOKEN))
        yield server


def test_a_repository_of_files_gives_its_most_precise_one(source: Path, hub: Any, tmp_path: Path) -> None:
    names = ["Tiny-Llama-Q8_0.gguf", "Tiny-Llama-F16.gguf", "Tiny-Llama-Q4_K_M.gguf"]
    hub.add("org/Tiny-Llama-GGUF", {"README.md": tiny.CARD.encode(), **{name: (source / name).read_bytes() for name in names}})
    planned = plan(request("org/Tiny-Llama-GGUF", "q5_k_m", tmp_path, to="org/Other-GGUF"))
    assert planned.shards == ("Tiny-Llama-F16.gguf",) and planned.architecture == "llama"
    assert planned.download == (source / names[1]).stat().st_size + len(tiny.CARD.encode())
    result = publish(request("org/Tiny-Llama-GGUF", "q5_k_m", tmp_path, to="org/Other-GGUF"))
    assert {"Tiny-Llama-Q5_K_M.gguf", "README.md"} <= hub.files("org/Other-GGUF").keys()
    card = result.card["README.md"].decode()
    assert "license: mit" in card and "base_model: org/Tiny-Llama-GGUF" in card
    assert f"hubq publish org/Tiny-Llama-GGUF@{planned.snapshot.commit}:Tiny-Llama-F16.gguf" in card
    named = plan(request("org/Tiny-Llama-GGUF:q8_0", "q5_k_m", tmp_path, to="org/Other-GGUF"))
    assert named.shards == ("Tiny-Llama-Q8_0.gguf",)


def test_only_the_header_is_fetched(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = source / "Tiny-Llama-F32.gguf", []
    monkeypatch.setattr("hubq.formats.gguf.read.FIRST_FETCH", 100)

    def read(start: int, stop: int) -> bytes:
        asked.append(stop)
        return path.read_bytes()[start:stop]

    assert fetch_header(path, path.stat().st_size, read).tensors == read_header(path).tensors
    assert asked == [100 * 4**i for i in range(len(asked))] and asked[-1] < path.stat().st_size / 4


# --- what is refused ---


def keys(path: Path, changes: dict[str, str | None]) -> Path:
    """A copy of a GGUF with other strings in its metadata."""
    reader, target = gguf.GGUFReader(path), path.with_name("changed.gguf")
    writer = gguf.GGUFWriter(target, changes.pop("general.architecture", "llama") or "")
    for key, field in reader.fields.items():
        if key not in changes and not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub)
    for key, value in changes.items():
        if value is not None:
            writer.add_string(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "clip"}, "changed.gguf is no model: it says that it is clip"),
        ({"general.type": "adapter"}, "changed.gguf is no model: it says that it is adapter"),
        ({"general.type": "mmproj"}, "changed.gguf is no model: it says that it is mmproj"),
    ],
)
def test_a_file_that_is_no_model(changes: dict[str, str | None], message: str, source: Path, tmp_path: Path) -> None:
    path = keys(Path(shutil.copy(source / "Tiny-Llama-F32.gguf", tmp_path)), dict(changes))
    with pytest.raises(Unsupported, match=message):
        plan(request(path, "q8_0", tmp_path))


def test_a_quantized_file_and_files_that_are_none(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"Tiny-Llama-Q4_K_M.gguf stores weights as .*Q4_K"):
        plan(request(source / "Tiny-Llama-Q4_K_M.gguf", "q2_k", tmp_path))
    (tmp_path / "not.gguf").write_bytes(b"GGUF" + bytes(100))
    for path, message in ((tmp_path / "not.gguf", "big-endian"), (source / "README.md", "no GGUF file")):
        with pytest.raises((BadSource, Usage), match=message):
            plan(request(path, "q8_0", tmp_path))
    with pytest.raises(Usage, match="there is no folder"):
        locate("./nowhere.gguf", None)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("IQ2_M", "no GGUF file fits 'IQ2_M'"), ("Tiny-Llama-Q", "no GGUF file fits"), ("F16", "2 GGUF files fit 'F16'")],
)
def test_a_file_that_is_not_there_or_not_named_clearly(wanted: str, message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match=message):
        plan(request(f"{source}:{wanted}", "q8_0", tmp_path))


def test_a_matrix_cannot_be_computed(source: Path, topics: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="computes importance matrices") as caught:
        plan(request(source / "Tiny-Llama-F32.gguf", "q4_k_m", tmp_path, imatrix=TextSpec(str(topics), None)))
    assert "llama-imatrix" in str(caught.value.hint)


def test_without_llama_cpp_nothing_measures_it(
    source: Path, topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name, *rest))
    with pytest.raises(HubqError) as caught:
        publish(request(source / "Tiny-Llama-F32.gguf", "q8_0", tmp_path, text=TextSpec(str(topics), None, windows=2)))
    assert "llama" in caught.value.message and 'pip install "hubq[llama]"' in str(caught.value.hint)
    result = publish(request(source / "Tiny-Llama-F32.gguf", "q8_0", tmp_path))
    assert {check.name: check.outcome for check in result.release.checks} == {
        "metadata": "passed",
        "token ids": "not checked",
        "logits": "not checked",
    }


# --- the gate ---


FAULTS = {
    "a wrong pre-tokenizer": lambda pair: pair.replace(b"gpt-2", b"qwen2"),
    "a lost template": lambda pair: b"" if b"tokenizer.chat_template" in pair else pair,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_not_pushed(
    fault: Callable[[bytes], bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = origin.draw

    def faulty(given: origin.Given, left_out: Any) -> Any:
        drawn = draw(given, left_out)
        return replace(drawn, raw=tuple(filter(None, map(fault, drawn.raw))))

    monkeypatch.setattr(origin, "draw", faulty)
    with pytest.raises(GateFailed, match="gguf:Q8_0: metadata: these keys are not as in the source"):
        publish(request(source / "Tiny-Llama-F32.gguf", "q8_0", tmp_path))
    assert not list((tmp_path / "out").rglob("*.gguf"))


def test_a_wrong_order_of_weights_is_not_pushed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = origin.Weights.read

    def turned(self: Any, name: str, rows: Any = None, columns: slice = slice(None)) -> np.ndarray:
        found = read(self, name, rows, columns)
        return found[::-1] if name.endswith("attn_q.weight") else found

    monkeypatch.setattr(origin.Weights, "read", turned)
    with pytest.raises(GateFailed, match="gguf:Q8_0: logits: median KL divergence"):
        publish(request(source / "Tiny-Llama-F32.gguf", "q8_0", tmp_path))
