"""The workflows: that linters find no fault in them, and that they do what README's "In CI" says, run here from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import actions
import forge
import linters
import loopback
import pytest
import tiny

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


# --- the whole way ---

TARGET, SOURCE = "me/model-GGUF", "org/model"
CLAIMS = {"repository": "me/models", "branch": "main", "workflow": "release.yml", "environment": "hubq-publish"}
SMALL = " --dataset text.jsonl --windows 2 --no-speed --no-floor"
INSTALLED = {"version": "installed"}


@dataclass
class Place:
    """Somebody's repository, GitHub and its machines, and the Hub."""

    folder: Path
    bare: Path
    hub: loopback.Hub
    github: forge.GitHub
    runner: actions.Runner
    told: list[str] = field(default_factory=list)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder, env=self.environment, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode().strip()

    @property
    def environment(self) -> dict[str, str]:
        """That of the person at work in `folder`."""
        return {**self.runner.environment, "HOME": str(self.folder.parent), "HF_TOKEN": loopback.TOKEN}

    def commit(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text)
        self.git("commit", "-qam", f"Change {path}")
        self.git("push", "-q")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, topics: Path) -> Iterator[Place]:
    """A repository with a text in it, and a model and an empty repository on the Hub."""
    root = tmp_path_factory.mktemp("ci")
    bare, folder = root / "bare", root / "models"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    settings = {"user.name": "me", "user.email": "me@localhost", "init.defaultBranch": "main", "push.autoSetupRemote": "true"}
    (root / ".gitconfig").write_text(
        "".join(f"[{key.partition('.')[0]}]\n{key.partition('.')[2]} = {value}\n" for key, value in settings.items())
    )
    machine = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    machine |= {"MPLCONFIGDIR": str(root / "matplotlib")}  # its list of fonts takes seconds
    runner = actions.Runner(bare, root / "runs", machine)
    with loopback.Hub() as hub, forge.GitHub(bare, runner.tokens) as github:
        told = {
            key: value for key, value in hub.environment(root).items() if key not in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE")
        }
        runner.environment |= github.environment() | told
        hub.add(SOURCE, {path.name: path.read_bytes() for path in tiny.llama(root / "source").iterdir()})
        hub.add(TARGET, {".gitattributes": b"*.gguf filter=lfs diff=lfs merge=lfs -text\n"})
        here = Place(folder, bare, hub, github, runner)
        folder.mkdir()
        for arguments in (["init"], ["remote", "add", "origin", "https://github.com/me/models.git"]):
            here.git(*arguments)
        here.git("config", "remote.origin.pushurl", str(bare))
        shutil.copy(topics, folder / "text.jsonl")
        here.git("add", ".")
        here.git("commit", "-qm", "A text")
        yield here


def commands() -> list[str]:
    """What README's "In CI" says to type."""
    section = (ROOT / "README.md").read_text().partition("\n## In CI\n")[2].partition("\n## ")[0]
    return [line.strip().partition("  #")[0].strip() for line in section.splitlines() if line.startswith("    ")]


@pytest.fixture(scope="module")
def first(place: Place) -> actions.Run:
    """The first run, by README's commands: only the text is a smaller one, and hubq is there already."""
    *prepare, doctor, start = commands()
    for line in prepare:
        line += SMALL if line.startswith("hubq init ") else ""
        done = subprocess.run(
            ["bash", "-ec", line], cwd=place.folder, env=place.environment, check=True, stdout=subprocess.PIPE
        )
        place.told.append(done.stdout.decode())
    done = subprocess.run(
        ["bash", "-ec", f"{doctor} --json"], cwd=place.folder, env=place.environment, check=True, stdout=subprocess.PIPE
    )
    for one in json.loads(done.stdout)["publishers"]:
        place.hub.publishers[one["target"]] = {claim: one[claim] for claim in CLAIMS}
    place.runner.identity = place.hub.identity(**CLAIMS)
    match = re.fullmatch(r"gh workflow run (\S+) -f (\w+)=(\S+)", start)
    assert match
    return place.runner.run(match[1], **{match[2]: match[3]}, **INSTALLED)


def test_readme_leads_to_a_release(place: Place, first: actions.Run) -> None:
    expected = dict.fromkeys(("plan", "build", "publish", "record"), "success")
    assert first.results == expected | {"prepare": "skipped", "time": "skipped"}, first.log
    files = place.hub.files(TARGET)
    assert {"model-Q4_K_M.gguf", "model-Q8_0.gguf", "README.md", "release.json", "SHA256SUMS"} <= files.keys()
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256(files[name]).hexdigest() == digest
    record = json.loads(files["release.json"])
    assert {row["level"] for row in record["measurements"]} == {"reference", "gguf:Q4_K_M", "gguf:Q8_0"}
    (job,) = first.of("publish")
    assert "gguf:Q4_K_M" in job.summary and "|" in job.summary


def test_only_the_publish_job_may_write_to_the_hub(place: Place, first: actions.Run) -> None:
    assert set(place.hub.tokens.values()) == {TARGET}
    for job in first.jobs:
        given = {name for seen in job.seen for name, value in seen.items() if value}
        assert ("ACTIONS_ID_TOKEN_REQUEST_TOKEN" in given) == (job.id == "publish")
        assert ("GITHUB_TOKEN" in given) == (job.id == "record")
        assert not given & {"HF_TOKEN", "HUBQ_PUSH_TOKEN"}
        assert any(name.startswith("actions/cache@") for name in job.used) == (job.id == "build")
        assert "ThatNobodyMaySee" not in job.log


def test_the_model_is_downloaded_once(place: Place, first: actions.Run) -> None:
    assert len(first.of("build")) == 2
    pulled = [path for method, path in place.hub.requests if method == "GET" and path.startswith("/cdn/") and SOURCE in path]
    assert len(pulled) == 1


def test_the_record_is_a_pull_request(place: Place, first: actions.Run) -> None:
    (pull,) = place.github.pulls
    branch = pull["head"]["ref"]
    done = subprocess.run(
        ["git", "diff", "--name-status", "main", branch], cwd=place.bare, check=True, capture_output=True, text=True
    )
    changed = dict(line.split("\t")[::-1] for line in done.stdout.splitlines())
    assert {"cards/model/README.md", "cards/model/release.json"} <= changed.keys()
    assert set(changed.values()) == {"A"} and all(path.startswith("cards/model/") for path in changed)
    record = subprocess.run(
        ["git", "show", f"{branch}:cards/model/release.json"], cwd=place.bare, check=True, capture_output=True
    )
    assert record.stdout == place.hub.files(TARGET)["release.json"]


def test_a_second_run_changes_nothing_and_takes_a_secret_as_well(place: Place, first: actions.Run) -> None:
    subprocess.run(["git", "branch", "-f", "main", place.github.pulls[0]["head"]["ref"]], cwd=place.bare, check=True)
    place.git("pull", "-q", str(place.bare), "main")
    before = dict(place.hub.repos[TARGET].commits)
    place.hub.publishers.clear()
    place.runner.secrets["hubq-publish"] = {"HUBQ_PUSH_TOKEN": loopback.TOKEN}
    ran = place.runner.run("release.yml", manifest="cards/model", **INSTALLED)
    assert ran.results == first.results, ran.log
    assert place.hub.repos[TARGET].commits == before
    assert len(place.github.pulls) == 1 and "as it was" in ran.log
    assert not any("HUBQ_PUSH_TOKEN" in seen for job in ran.jobs if job.id != "publish" for seen in job.seen)


def test_what_is_beyond_its_gate_is_not_pushed(place: Place, first: actions.Run) -> None:
    path = "cards/model/hubq.toml"
    manifest = (place.folder / path).read_text()
    place.commit(path, f'{manifest}\n[gates]\n"gguf:Q4_K_M" = {{ kl = 1e-9 }}\n')
    before = dict(place.hub.repos[TARGET].commits)
    ran = place.runner.run("release.yml", manifest="cards/model", **INSTALLED)
    place.commit(path, manifest)
    assert (ran.results["build"], ran.results["publish"], ran.results["record"]) == ("failure", "skipped", "skipped")
    assert {max(job.codes) for job in ran.of("build")} == {0, 3}, ran.log
    assert place.hub.repos[TARGET].commits == before and "1e-09" in ran.log


def test_a_model_that_moved_on_is_told_once(place: Place, first: actions.Run) -> None:
    def night() -> dict[str, str]:
        return place.runner.run("drift.yml", **INSTALLED).results

    assert night() == {"status": "success", "tell": "skipped"}
    commit = place.hub.add(SOURCE, {"more.txt": b"more"})
    assert night() == {"status": "success", "tell": "success"} == night()
    (issue,) = place.github.issues
    assert issue["title"] == f"cards/model: {SOURCE} moved on" and commit in issue["body"]
