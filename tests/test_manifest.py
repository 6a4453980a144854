"""Manifests: what they say, what they refuse, and that the command line says the same."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from hubq import init
from hubq.errors import Usage
from hubq.manifest import EvaluationTable, Manifest, SourceTable, check, find, read, requests, resolved, schema
from hubq.store import Store

WHOLE = """
[source]
model = "org/model"
revision = "c0ffee"
follow = "main"

[targets]
gguf = "me/Model-GGUF"

[variants]
gguf = ["q8_0", "Q4_K_M"]

[imatrix.calibration]
dataset = "org/calibration"
revision = "b0b0"
split = "train"
windows = 64

[recipe]
tensor_type = ["attn_v=Q8_0"]
split_max_size = "2G"

[evaluation]
dataset = "org/text"
config = "small"
revision = "abcd"
windows = 12
precision = "0.5%"
within = "3%"
floor = false

[gates]
"q4_k_m" = { kl = 0.10, top1 = 0.8 }
"""


def written(folder: Path, text: str = WHOLE) -> Path:
    path = folder / "hubq.toml"
    path.write_text(text)
    return path


def refused(folder: Path, old: str, new: str) -> Usage:
    assert old in WHOLE
    with pytest.raises(Usage) as caught:
        read(written(folder, WHOLE.replace(old, new)))
    assert str(folder) in caught.value.message and caught.value.hint
    return caught.value


def test_all_that_it_says_is_asked_for(tmp_path: Path) -> None:
    (request,) = requests(read(written(tmp_path)), Store(tmp_path / "work"), private=True)
    assert [level.id for level in request.levels] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    assert (request.model, request.to, request.split, request.private) == ("org/model@c0ffee", "me/Model-GGUF", 2 * 10**9, True)
    text = request.text
    assert text is not None
    assert (text.dataset, text.config, text.split, text.field) == ("org/text@abcd", "small", "test", "text")
    assert (text.windows, text.seed, text.precision, request.within, request.floor) == (12, 0, 0.005, 0.03, False)
    assert request.custom is not None and request.custom.tensor_types == (("attn_v", "Q8_0"),)
    assert request.gates == {"gguf:Q4_K_M": {"kld": 0.1, "top1": 0.8}}
    assert request.imatrix == replace(
        text, dataset="org/calibration@b0b0", config=None, split="train", windows=64, texts=64, precision=None
    )
    assert request.command == (
        "hubq publish {model} {build} --dataset org/text@abcd:small --split test --text-field text"
        " --precision 0.5% --within 3% --windows 12 --seed 0"
    )
    assert request.imatrix_options == "--imatrix auto --calibration org/calibration@b0b0:train --calibration-windows 64"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model = ", "modle = ", ("no key source.modle", "did you mean model?")),
        ("[targets]", "[target]", ("no key target", "did you mean targets?")),
        ("windows = 12", "window = 12", ("no key evaluation.window", "did you mean windows?")),
        ("windows = 64", "windoes = 64", ("no key imatrix.calibration.windoes", "did you mean windows?")),
        ('"Q4_K_M"]', '"Q4_K_N"]', ("no level 'gguf:Q4_K_N'", "q4_k_m")),
        ("kl = 0.10", "kll = 0.10", ("'kll', which is no metric", "did you mean")),
        ("kl = 0.10", 'kl = "low"', ("gates.q4_k_m.kl", "valid number")),
        ('"q4_k_m" =', '"q5_k_m" =', ("'q5_k_m' is none of the levels",)),
        ('model = "org/model"\n', "", ("source.model",)),
        ('gguf = "me/Model-GGUF"', 'onnx = "me/Model-ONNX"', ("[targets] onnx",)),
        ("[imatrix.calibration]", '[imatrix]\nfile = "a"\n[imatrix.calibration]', ("either a file or",)),
        ("[source]", "[source", ("no TOML",)),
        ('gguf = ["q8_0", "Q4_K_M"]', 'gguf = "q8_0"', ("variants.gguf", "list")),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    told = refused(tmp_path, old, new)
    assert all(word in told.message for word in words), told.message


def test_gates_need_numbers(tmp_path: Path) -> None:
    head, _, rest = WHOLE.partition("[evaluation]")
    with pytest.raises(Usage, match=r"there is no \[evaluation\]"):
        read(written(tmp_path, head + rest[rest.index("[gates]") :]))


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    told = refused(tmp_path, "[targets]", '["\\u001b[31mtargets"]')
    assert "\x1b" not in told.message


def test_paths_hold_from_the_manifest_s_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("words")
    manifest = Manifest(
        source=SourceTable(model="../model"),
        variants={"gguf": ["Q8_0"]},
        targets={"gguf": "../out"},
        evaluation=EvaluationTable(dataset="../text.txt"),
    )
    found = resolved(manifest, tmp_path / "card")
    assert found.source.model == str(tmp_path / "model") and found.targets == {"gguf": str(tmp_path / "out")}
    assert found.evaluation is not None and found.evaluation.dataset == str(tmp_path / "text.txt")
    ids = resolved(replace(manifest, source=SourceTable(model="org/model:F16")), tmp_path / "card")
    assert ids.source.model == "org/model:F16"


def test_a_folder_or_a_file_names_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert find(tmp_path) == find(str(path)) == path
    assert find("org/model") is None and find(tmp_path.parent) is None


def test_the_schema_takes_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    checked = jsonschema.Draft202012Validator(json.loads(schema()))
    checked.check_schema(checked.schema)
    checked.validate(tomllib.loads(WHOLE))
    for old, new in [("[targets]", "[target]"), ("windows = 12", "window = 12"), ("windows = 12", "windows = []")]:
        assert list(checked.iter_errors(tomllib.loads(WHOLE.replace(old, new)))), new


def test_it_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = read(written(tmp_path))
    text = init.written(manifest, "cards/model")
    assert read(written(tmp_path, text)) == manifest == check(manifest)
    assert init.written(read(written(tmp_path, text)), "cards/model") == text
