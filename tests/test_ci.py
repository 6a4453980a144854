"""What init-ci writes, what doctor --ci says, and the action's scripts by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forge
import pytest
from shelf import hubq

from hubq import ci

ACTION = Path(__file__).parents[1] / ".github/actions/hubq"
TOKEN = "ghs_TokenThatNobodyMaySee"


def git(*arguments: str, at: Path) -> str:
    command = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost", *arguments]
    return subprocess.run(command, cwd=at, check=True, capture_output=True, text=True).stdout.strip()


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_init_ci_writes_the_workflows_and_leaves_what_was_changed(tmp_path: Path) -> None:
    told = hubq("init-ci", tmp_path)
    assert told.exit_code == 0 and written(tmp_path) == ci.files()
    assert all(f"wrote     {tmp_path / path}" in told.stdout for path in ci.FILES) and "hubq doctor --ci" in told.stdout
    changed = tmp_path / ".github/workflows/drift.yml"
    changed.write_text("mine")
    (tmp_path / ".github/actions/hubq/push.sh").unlink()
    told = hubq("init-ci", tmp_path)
    assert told.exit_code == 2 and "drift.yml" in told.stderr and "--force" in told.stderr and "release.yml" not in told.stderr
    assert changed.read_text() == "mine" and not (tmp_path / ".github/actions/hubq/push.sh").exists()
    facts = json.loads(hubq("init-ci", tmp_path, "--force", "--json").stdout)
    assert {one["path"] for one in facts["files"] if one["changed"]} == {
        ".github/workflows/drift.yml",
        ".github/actions/hubq/push.sh",
    }
    assert written(tmp_path) == ci.files()
    assert hubq("init-ci", tmp_path / "nowhere").exit_code == 2


def test_doctor_says_what_to_set_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "cards/X").mkdir(parents=True)
    assert "hubq init" in hubq("doctor", "--ci", "--cards", tmp_path / "cards").stderr
    manifest = tmp_path / "cards/X/hubq.toml"
    source = '[source]\nmodel = "org/X"\n[variants]\ngguf = ["Q8_0"]\nonnx = ["q8"]\n[targets]\n'
    manifest.write_text(f'{source}gguf = "me/X-GGUF"\nonnx = "../out"\n')
    told = hubq("doctor", "--ci", "--cards", tmp_path / "cards").stdout
    assert "huggingface.co/me/X-GGUF/settings" in told and "out" not in told and "owner/name of this repository" in told
    git("init", "-q", at=tmp_path)
    for url in ("https://github.com/me/models.git", "git@github.com:me/models", "ssh://git@github.com/me/models.git"):
        git("config", "remote.origin.url", url, at=tmp_path)
        (one,) = json.loads(hubq("doctor", "--ci", "--cards", tmp_path / "cards", "--json").stdout)["publishers"]
        facts = {"target": "me/X-GGUF", "repository": "me/models", "branch": "main", "workflow": "release.yml"}
        assert one == facts | {"environment": "hubq-publish", "settings": "https://huggingface.co/me/X-GGUF/settings"}
    manifest.write_text("[targets")
    assert hubq("doctor", "--ci", "--cards", tmp_path / "cards").exit_code == 2


@pytest.fixture
def github(tmp_path: Path) -> Iterator[forge.GitHub]:
    """A repository with a manifest, and GitHub around it."""
    git("init", "-q", "-b", "main", str(tmp_path / "first"), at=tmp_path)
    (tmp_path / "first/cards/X").mkdir(parents=True)
    (tmp_path / "first/cards/X/hubq.toml").write_text("")
    git("add", ".", at=tmp_path / "first")
    git("commit", "-qm", "first", at=tmp_path / "first")
    git("clone", "-q", "--bare", str(tmp_path / "first"), str(tmp_path / "bare"), at=tmp_path)
    with forge.GitHub(tmp_path / "bare", {TOKEN: {"pull-requests": "write", "issues": "write"}}) as server:
        yield server


def script(name: str, github: forge.GitHub, at: Path, **environment: str) -> str:
    facts = {"GITHUB_TOKEN": TOKEN, "GITHUB_REF_NAME": "main", "GITHUB_RUN_ID": "7", **environment}
    done = subprocess.run(
        [sys.executable, str(ACTION / name)],
        cwd=at,
        env=os.environ | github.environment() | facts,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def test_the_record_is_one_pull_request(github: forge.GitHub, tmp_path: Path) -> None:
    def record(name: str, **files: str) -> Path:
        git("clone", "-q", str(tmp_path / "bare"), name, at=tmp_path)
        made = tmp_path / f"{name}-made"
        for folder, given in (("X", {"hubq.toml": "", **files}), ("X-ONNX", {"release.json": "{}"})):
            (made / folder).mkdir(parents=True)
            for path, text in given.items():
                (made / folder / path.replace("_", ".")).write_text(text)
        date = f"2026-01-01T00:{ord(name) - 60:02}:00Z"  # so that no commit is like another by chance
        script("record.py", github, tmp_path / name, MANIFEST="cards/X", MADE=str(made), GIT_COMMITTER_DATE=date)
        return tmp_path / name

    def branch(what: str) -> str:
        return git("show", f"hubq/cards/X{what}", at=tmp_path / "bare")

    at = record("A", README_md="one", old_svg="")
    (pull,) = github.pulls
    assert (pull["title"], pull["head"]["ref"], pull["base"]["ref"]) == ("Release of X", "hubq/cards/X", "main")
    assert "cards/X/hubq.toml" in pull["body"] and "/me/models/actions/runs/7" in pull["body"]
    assert branch(":cards/X/README.md") == "one" and git("rev-parse", "main", at=at) in branch("")
    commit = git("rev-parse", "hubq/cards/X", at=tmp_path / "bare")
    assert git("log", "-1", "--format=%an %cn", commit, at=tmp_path / "bare") == "github-actions[bot] github-actions[bot]"

    record("B", README_md="one", old_svg="")
    assert len(github.pulls) == 1 and git("rev-parse", "hubq/cards/X", at=tmp_path / "bare") == commit
    record("C", README_md="two")
    assert len(github.pulls) == 1 and branch(":cards/X/README.md") == "two"
    assert git("ls-tree", "--name-only", "hubq/cards/X", "cards/X/", at=tmp_path / "bare").split() == [
        "cards/X/README.md",
        "cards/X/hubq.toml",
    ]
    assert branch(":cards/X-ONNX/release.json") == "{}"
    git("branch", "-f", "main", "hubq/cards/X", at=tmp_path / "bare")  # merged
    github.pulls[0]["state"] = "closed"
    record("D", README_md="two")
    assert len(github.pulls) == 1
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in (at / ".git").rglob("*") if path.is_file())


def test_an_issue_is_opened_once_and_brought_up_to_date(github: forge.GitHub, tmp_path: Path) -> None:
    def tell(*texts: str, folder: str = "X") -> None:
        findings: list[Any] = [{"kind": "moved", "text": text} for text in texts]
        moved = [{"folder": folder, "source": "org/X", "findings": findings}]
        script("tell.py", github, tmp_path, CARDS="cards", MOVED=json.dumps(moved))

    for number in range(3):  # others' issues and pull requests fill more than a page
        github.pulls.append({"number": 100 + number, "state": "open", "title": "cards/X: org/X moved on", "body": ""})
        github.pulls[-1] |= {"pull_request": {}}
    tell("main is at `abc` now")
    (issue,) = github.issues
    assert issue["title"] == "cards/X: org/X moved on" and "* main is at `abc` now" in issue["body"]
    assert "cards/X/hubq.toml" in issue["body"]
    tell("main is at `abc` now")
    assert len(github.issues) == 1
    tell("main is at `def` now")
    assert len(github.issues) == 1 and "`def`" in issue["body"]
    issue["state"] = "closed"
    tell("main is at `def` now")
    assert len(github.issues) == 1  # somebody decided so
    tell("main is at `fed` now")
    tell("main is at `fed` now", folder="Y")
    assert [one["state"] for one in github.issues] == ["closed", "open", "open"]
