"""The workflows: that linters find no fault in them, and that they do what README's "In CI" says, run here from end to end."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import linters
import pytest

import hubq
from hubq import ci

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github/actions").glob("*/action.yml"))
SCRIPTS = [*sorted((ROOT / ".github/actions").glob("*/*.sh")), *sorted((ROOT / ".ci").iterdir())]

# a fault -> what it is in the workflow of releases, and what takes its place
FAULTS = {
    "template-injection": ("run: bash", "run: echo ${{ inputs.manifest }}; bash"),
    "unpinned-uses": ("@668228422ae6a00e4ad889ee87cd7109ec5666a7", "@v5"),
    "excessive-permissions": ("permissions: {}", "permissions: write-all"),
    "artipacked": ("persist-credentials: false", "persist-credentials: true"),
    "secrets-outside-env": ("    environment:\n      name: hubq-build", "    env:\n      name: hubq-build"),
}


def test_zizmor_finds_nothing() -> None:
    assert linters.zizmor(ROOT / ".github") == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_zizmor_would_find(fault: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    old, new = FAULTS[fault]
    for path in (tmp_path / ".github").rglob("*.yml"):
        path.write_text(path.read_text().replace(old, new))
    assert fault in linters.zizmor(tmp_path / ".github")


def test_schemas_are_kept(tmp_path: Path) -> None:
    assert linters.schemas(WORKFLOWS, ACTIONS) == ""
    (tmp_path / "wrong.yml").write_text(WORKFLOWS[0].read_text().replace("runs-on", "runs-at"))
    assert "runs-on" in linters.schemas([tmp_path / "wrong.yml"], ACTIONS)


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    assert linters.actionlint(WORKFLOWS) == []
    wrong = (ROOT / ".github/workflows/release.yml").read_text().replace("matrix.keys", "matrix.keys && need.plan")
    (tmp_path / "wrong.yml").write_text(wrong)
    assert any("need" in one for one in linters.actionlint([tmp_path / "wrong.yml"]))


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    assert linters.shellcheck(SCRIPTS) == ""
    (tmp_path / "wrong.sh").write_text("#!/usr/bin/env bash\ncd $WORK\n")
    assert "SC2086" in linters.shellcheck([tmp_path / "wrong.sh"])


def test_every_action_is_pinned_to_one_commit_with_its_version() -> None:
    uses = [line for path in [*WORKFLOWS, *ACTIONS] for line in re.findall(r"uses: (.+)", path.read_text())]
    pins = {line for line in uses if not line.startswith("$/")}
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in pins)
    assert len({line.partition("@")[0] for line in pins}) == len(pins)


def test_what_init_ci_writes_is_what_is_here_and_installs_this_version() -> None:
    assert {path: (ROOT / path).read_bytes() for path in ci.FILES} == ci.files()
    here = {path for path in (ROOT / ".github/actions/hubq").iterdir() if path.is_file()}
    assert here == {ROOT / path for path in ci.FILES if "actions" in path}
    assert f"inputs.version || '{hubq.__version__}'" in ci.files()[".github/actions/hubq/action.yml"].decode()
