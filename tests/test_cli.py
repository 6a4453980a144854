"""The command line: what goes to which stream, exit codes, JSON, and what a mistake looks like."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from hubq.cli import app
from hubq.formats import levels, parse_levels

LEVELS = levels()


def hubq(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hubq", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama")


def test_help_names_every_command() -> None:
    told = hubq("--help")
    assert told.returncode == 0 and told.stderr == ""
    for command in ("publish", "levels", "show", "doctor", "--version", "Exit codes"):
        assert command in told.stdout


def test_families_lists_every_model_type_with_its_classes() -> None:
    from hubq.formats.gguf.arch import families

    table, document = hubq("families").stdout, json.loads(hubq("families", "--json").stdout)
    assert [row["model_type"] for row in document["families"]] == list(families())
    lines = [line.split() for line in table.splitlines()[1:]]
    assert [line[0] for line in lines] == list(families())
    assert next(line for line in lines if line[0] == "mistral") == ["mistral", "MistralForCausalLM", "llama"]


def test_levels_lists_every_level_by_precision() -> None:
    table, document = hubq("levels").stdout, json.loads(hubq("levels", "--json").stdout)
    names = [level["id"] for level in document["levels"]]
    groups = ["16-32 bit", "5-8 bit", "3-4 bit", "1-2 bit"]
    assert document["status"] == "ok" and set(names) == set(LEVELS)
    assert list(dict.fromkeys(level["group"] for level in document["levels"])) == groups
    assert names.index("gguf:Q8_0") < names.index("gguf:Q4_K_M") < names.index("gguf:Q2_K")
    lines = [line.strip() for line in table.splitlines()[1:]]
    assert [line.split()[0] for line in lines if line not in groups] == names
    assert [line for line in lines if line in groups] == groups
    needed = {level["id"] for level in document["levels"] if level["needs_matrix"]}
    assert needed == {line.split()[0] for line in lines if " needed " in line}
    assert "gguf:IQ2_XS" in needed and "gguf:Q4_K_M" not in needed


def test_doctor_tells_what_is_there_and_never_a_token() -> None:
    told = hubq("doctor", HF_TOKEN="hf_abcdefghijklmnopqrstuvwxyz012345")
    assert told.returncode == 0 and "llama-cpp-python" in told.stdout and "transformers" in told.stdout
    assert "hf_abc" not in told.stdout + told.stderr
    assert {"name", "found", "unlocks", "hint"} == set(json.loads(hubq("doctor", "--json").stdout)["checks"][0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("./nowhere", "--levels", "q8_0"), 2, "there is no folder or GGUF file ./nowhere"),
        (("a b c", "--levels", "q8_0"), 2, "'a b c' is neither a Hub id nor a folder"),
        (("{model}", "--levels", "q4km"), 2, "there is no level 'q4km'; did you mean q4_k_m"),
        (("{model}", "--levels", ","), 2, "no level is named"),
        (("{model}", "--levels", "q8_0", "--windows", "few"), 2, "--windows few"),
        (("{model}", "--levels", "q8_0", "--precision", "0.5"), 2, "--precision 0.5: not a share in percent"),
        (("{model}", "--levels", "q8_0", "--within", "a lot%"), 2, "--within a lot%: not a share in percent"),
        (("{model}", "--levels", "q8_0", "--logits-budget", "tape:4G"), 2, "neither of memory nor of disk"),
        (("{model}", "--levels", "q8_0", "--logits-budget", "disk:4"), 2, "--logits-budget 4: no size"),
        (("{model}", "--levels", "q8_0", "--to", "nonsense"), 2, "--to nonsense"),
        (("{model}", "--levels", "q8_0", "--to", "{tmp}", "--dataset", "{tmp}/no.txt"), 2, "no.txt"),
        (("{model}", "--levels", "q8_0", "--to", "{tmp}", "--target", "avx2"), 2, "the same for all hardware"),
        (("{model}", "--levels", "onnx:q4", "--to", "{tmp}", "--target", "avx9", "--no-eval"), 2, "no target 'avx9'"),
    ],
)
def test_mistakes_are_sentences_with_a_hint(
    arguments: tuple[str, ...], code: int, message: str, model: Path, tmp_path: Path
) -> None:
    given = [argument.format(model=model, tmp=tmp_path) for argument in arguments]
    command = ["publish", *given, "--work-dir", str(tmp_path / "work")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == code and told.stdout == ""
    last = told.stderr.splitlines()[-2:]
    assert last[0].startswith("error: ") and message in last[0]
    assert last[1].startswith("hint: ") and "Traceback" not in told.stderr
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert document["status"] == "failed" and message in document["error"]["message"]


def test_levels_that_cannot_be_told_apart_are_refused_before_anything_is_pulled(model: Path, tmp_path: Path) -> None:
    arguments = ("publish", str(model), "--levels", "bf16,f16", "--to", str(tmp_path), "--work-dir", str(tmp_path / "work"))
    told = hubq(*arguments, "--dry-run")
    assert told.returncode == 3 and told.stdout == ""
    assert "the tag F16 would load Tiny-Llama-BF16.gguf in llama.cpp, and not Tiny-Llama-F16.gguf" in told.stderr
    assert "hint: publish one of these files only" in told.stderr and not list(tmp_path.iterdir())


DELETIONS = [
    ("q8_0", (), 2, "Q8_0 cannot be published and deleted at once"),
    ("onnx:q4", ("--yes",), 2, "--delete onnx:q4: no level of that format is published"),
    ("q4_0", (), 2, "--delete Q4_0: nobody is there to confirm it"),
]


@pytest.mark.parametrize(("levels", "options", "code", "message"), DELETIONS)
def test_nothing_is_deleted_without_a_word(
    model: Path, tmp_path: Path, levels: str, options: tuple[str, ...], code: int, message: str
) -> None:
    words = ["publish", str(model), "--levels", "q8_0", "--to", str(tmp_path), "--delete", levels, *options]
    told = hubq(*words, "--work-dir", str(tmp_path / "work"))
    assert told.returncode == code and message in told.stderr and "hint:" in told.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_options_exit_with_2() -> None:
    assert hubq("publish").returncode == hubq("publish", "x", "--nonsense").returncode == hubq("nonsense").returncode == 2


def test_a_folder_that_cannot_be_written_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told = hubq(
        "publish", str(model), "--levels", "q8_0", "--no-eval", "--to", str(tmp_path), "--work-dir", str(tmp_path / "file/x")
    )
    assert told.returncode == 1 and "error: cannot write to" in told.stderr and "hint: " in told.stderr


def test_publish_puts_data_on_stdout_and_talk_on_stderr(model: Path, tmp_path: Path) -> None:
    arguments = ("publish", str(model), "--levels", "Q8_0,gguf:q4_0", "--no-eval", "--to", str(tmp_path))
    arguments += ("--work-dir", str(tmp_path / "work"))
    told = hubq(*arguments)
    assert told.returncode == 0
    assert "gguf:Q8_0" in told.stdout and "README.md" in told.stdout and "\x1b" not in told.stdout + told.stderr
    assert "built     gguf:Q4_0" in told.stderr
    document = json.loads(hubq(*arguments, "--json", "--quiet").stdout)
    assert document["status"] == "ok" and [entry["level"] for entry in document["release"]["files"]] == [
        "gguf:Q8_0",
        "gguf:Q4_0",
    ]


def test_a_dry_run_shows_the_plan_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    arguments = (
        "publish",
        str(model),
        "--levels",
        "all",
        "--to",
        str(tmp_path),
        "--work-dir",
        str(tmp_path / "work"),
        "--dry-run",
    )
    told = hubq(*arguments)
    assert told.returncode == 0 and "to build" in told.stdout and "gguf:Q2_K" in told.stdout
    assert list(tmp_path.iterdir()) == []
    document = json.loads(hubq(*arguments, "--json").stdout)
    assert document["write"] == sum(level["size"] for level in document["levels"])
    assert [level["level"] for level in document["levels"]] == [level.id for level in parse_levels("all")]


def test_names_from_upstream_are_no_markup(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[red]evil"
    shutil.copytree(model, folder)
    (folder / "LICENSE[bold]").write_text("mine")
    arguments = ("--levels", "q8_0", "--no-eval", "--to", str(tmp_path), "--work-dir", str(tmp_path / "work"))
    told = hubq("publish", str(folder), *arguments)
    assert told.returncode == 0, told.stderr
    assert "[red]evil @ " in told.stderr and "pulled    LICENSE[bold]" in told.stderr


def gguf_file(path: Path, name: str = "A model", **texts: str) -> Path:
    """A GGUF of two tensors that calls itself Q8_0 and holds two arrays and a chat template."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(7)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 2000)
    writer.add_array("general.tags", ["a", "b"])
    writer.add_chat_template("{{ messages }}")
    writer.add_float32("x.bound", float("inf"))
    for key, text in texts.items():
        writer.add_string(key, text)
    packed = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_show_tells_what_is_in_a_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "M-Q8_0.gguf")
    told = hubq("show", str(path), "--tensors")
    lines = [line.split() for line in told.stdout.splitlines()]
    assert told.returncode == 0 and told.stderr == ""
    assert ["level", "Q8_0"] in lines and ["weights", "320"] in lines and ["name", "A", "model"] in lines
    assert ["Q8_0", "1", "256", "272", "B", "80.0%"] in lines and ["F32", "1", "64", "256", "B", "20.0%"] in lines
    assert ["token_embd.weight", "4", "x", "64", "Q8_0", "272"] in lines
    assert ["tokenizer.ggml.scores", "2,000", "x", "f32"] in lines and ["general.tags", "2:", "a,", "b"] in lines
    assert "14 characters, SHA-256 " in told.stdout and "messages" not in told.stdout
    assert "token_embd" not in hubq("show", str(path)).stdout


def test_show_as_json_holds_everything(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "M-Q8_0.gguf", **{"quantize.imatrix.dataset": "wiki"})
    document = json.loads(hubq("show", str(path), "--json").stdout, parse_constant=pytest.fail)
    (model,) = document["models"]
    assert document["status"] == "ok" and model["architecture"] == "llama" and model["level"] == "Q8_0"
    assert model["size"] == path.stat().st_size and model["weights"] == 320
    assert model["bits_per_weight"] == {"file": 8 * model["size"] / 320, "weights": 8 * (272 + 256) / 320}
    assert model["imatrix"] == {"dataset": "wiki"} and model["metadata"]["x.bound"] == "inf"
    assert model["metadata"]["tokenizer.chat_template"] == "{{ messages }}"
    assert model["metadata"]["general.tags"] == ["a", "b"] and model["metadata"]["tokenizer.ggml.scores"]["count"] == 2000
    assert [tensor["shape"] for tensor in model["tensors"]] == [[4, 64], [64]]
    assert path.read_bytes()[model["tensors"][1]["offset"] :][:256] == np.ones(64, np.float32).tobytes()


def test_show_gives_each_of_several_models_a_line(tmp_path: Path) -> None:
    first, second = gguf_file(tmp_path / "one.gguf"), gguf_file(tmp_path / "two.gguf")
    told = hubq("show", str(tmp_path), str(first))
    assert [line.split()[0] for line in told.stdout.splitlines()[1:]] == [str(first), str(second)]
    assert hubq("show", str(tmp_path), "--tensors").returncode == 2


def test_text_in_a_file_cannot_upset_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J[red]\u202e:smile:"
    path = gguf_file(tmp_path / "M.gguf", name=evil, **{f"key {evil}": evil * 99})
    told = hubq("show", str(path))
    assert told.returncode == 0 and r"\x1b[2J[red]\u202e:smile:" in told.stdout
    assert not {"\x1b", "\u202e"} & set(told.stdout) and max(map(len, told.stdout.splitlines())) <= 160


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("nope.gguf", 2, "there is no file"), ("", 2, "there is no .gguf file"), ("note.gguf", 1, "note.gguf is not a GGUF file")],
)
def test_show_refuses_other_files(name: str, code: int, message: str, tmp_path: Path) -> None:
    if name == "note.gguf":
        (tmp_path / name).write_text("Not a model, but a note that somebody left here.")
    told = hubq("show", str(tmp_path / name))
    assert told.returncode == code and told.stdout == "" and f"error: {message}" in told.stderr and "hint: " in told.stderr
