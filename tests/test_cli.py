"""The command line: what goes to which stream, exit codes, JSON, and what a mistake looks like."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny


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
    for command in ("publish", "levels", "doctor", "--version", "Exit codes"):
        assert command in told.stdout


def test_levels_lists_every_level_best_first() -> None:
    table, document = hubq("levels"), json.loads(hubq("levels", "--json").stdout)
    names = [level["id"] for level in document["levels"]]
    assert document["status"] == "ok" and len(names) == 17
    assert names.index("gguf:Q8_0") < names.index("gguf:Q4_K_M") < names.index("gguf:Q2_K")
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == names


def test_doctor_tells_what_is_there_and_never_a_token() -> None:
    told = hubq("doctor", HF_TOKEN="hf_abcdefghijklmnopqrstuvwxyz012345")
    assert told.returncode == 0 and "llama-cpp-python" in told.stdout and "transformers" in told.stdout
    assert "hf_abc" not in told.stdout + told.stderr
    assert {"name", "found", "unlocks", "hint"} == set(json.loads(hubq("doctor", "--json").stdout)["checks"][0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("./nowhere", "--levels", "q8_0"), 2, "there is no folder ./nowhere"),
        (("a b c", "--levels", "q8_0"), 2, "'a b c' is neither a Hub id nor a folder"),
        (("{model}", "--levels", "q4km"), 2, "there is no level 'q4km'; did you mean q4_k_m"),
        (("{model}", "--levels", ","), 2, "no level is named"),
        (("{model}", "--levels", "q8_0", "--windows", "few"), 2, "--windows few"),
        (("{model}", "--levels", "q8_0", "--to", "nonsense"), 2, "--to nonsense"),
        (("{model}", "--levels", "q8_0", "--to", "{tmp}", "--dataset", "{tmp}/no.txt"), 2, "no.txt"),
    ],
)
def test_mistakes_are_sentences_with_a_hint(
    arguments: tuple[str, ...], code: int, message: str, model: Path, tmp_path: Path
) -> None:
    given = [argument.format(model=model, tmp=tmp_path) for argument in arguments]
    told = hubq("publish", *given, "--work-dir", str(tmp_path / "work"))
    assert told.returncode == code and told.stdout == ""
    last = told.stderr.splitlines()[-2:]
    assert last[0].startswith("error: ") and message in last[0]
    assert last[1].startswith("hint: ") and "Traceback" not in told.stderr
    document = json.loads(hubq("publish", *given, "--work-dir", str(tmp_path / "work"), "--json").stdout)
    assert document["status"] == "failed" and message in document["error"]["message"]


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
    assert document["write"] == sum(level["size"] for level in document["levels"]) and len(document["levels"]) == 17


def test_names_from_upstream_are_no_markup(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[red]evil"
    shutil.copytree(model, folder)
    (folder / "LICENSE[bold]").write_text("mine")
    arguments = ("--levels", "q8_0", "--no-eval", "--to", str(tmp_path), "--work-dir", str(tmp_path / "work"))
    told = hubq("publish", str(folder), *arguments)
    assert told.returncode == 0, told.stderr
    assert "[red]evil @ " in told.stderr and "pulled    LICENSE[bold]" in told.stderr
