"""The workflows: that linters find no fault in them, and that they do what README's "In CI" says, run here from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import actions
import forge
import linters
import loopback
import pytest
import tiny

import hubq
from hubq import ci
from hubq.engines.github import outputs
from hubq.steps import Step

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


# --- what runs them here ---

SMALL_WORKFLOW = r"""
name: Small
on:
  workflow_dispatch:
    inputs:
      word: {type: string, default: none}
permissions: {}
jobs:
  first:
    timeout-minutes: 1
    outputs:
      matrix: ${{ steps.one.outputs.matrix }}
    steps:
      - id: one
        run: |
          echo 'matrix={"include":[{"n":"1"},{"n":"2"}]}' >>"$GITHUB_OUTPUT"
          printf 'A<<END\nx\ny\nEND\n' >>"$GITHUB_ENV"
          echo "$WORD" >>"$GITHUB_STEP_SUMMARY"
        env:
          WORD: ${{ inputs.word }}-${{ github.event_name }}
      - if: env_is_no_context
        run: "true"
  none:
    needs: first
    if: inputs.word == 'other'
    timeout-minutes: 1
    steps: [{run: "true"}]
  after-none:
    needs: none
    timeout-minutes: 1
    steps: [{run: "true"}]
  each:
    needs: [first, none]
    if: ${{ !cancelled() && needs.none.result != 'failure' }}
    timeout-minutes: 1
    strategy:
      matrix: ${{ fromJSON(needs.first.outputs.matrix) }}
    steps:
      - run: test "$N" = 1
        env:
          N: ${{ matrix.n }}
      - run: echo reached
      - if: failure()
        run: echo sorry
  last:
    needs: each
    timeout-minutes: 1
    steps: [{run: "true"}]
"""


def run_small(tmp_path: Path, text: str, **inputs: str) -> actions.Run:
    folder = tmp_path / "small"
    (folder / ".github/workflows").mkdir(parents=True)
    (folder / ".github/workflows/small.yml").write_text(text)
    settings = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "small"]):
        subprocess.run(["git", *settings, *arguments], cwd=folder, check=True)
    return actions.Runner(folder, tmp_path / "runs", {"PATH": os.environ["PATH"]}).run("small.yml", **inputs)


def test_the_runner_skips_and_fails_as_github_does(tmp_path: Path) -> None:
    ran = run_small(tmp_path, SMALL_WORKFLOW.replace("env_is_no_context", "success()"), word="a")
    expected = {"first": "success", "none": "skipped", "after-none": "skipped", "each": "failure", "last": "skipped"}
    assert ran.results == expected
    (first,) = ran.of("first")
    assert first.summary == "a-workflow_dispatch\n" and first.seen[1]["A"] == "x\ny"
    well, ill = ran.of("each")
    assert (well.result, ill.result) == ("success", "failure")
    assert "reached\n" in well.log and "sorry\n" not in well.log
    assert "reached\n" not in ill.log and "sorry\n" in ill.log and ill.codes == [1, 0]


def test_the_runner_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no env_is_no_context"):
        run_small(tmp_path / "a", SMALL_WORKFLOW)
    with pytest.raises(ValueError, match="inputs has no wrod"):
        run_small(tmp_path / "b", SMALL_WORKFLOW.replace("env_is_no_context", "inputs.wrod"))
    sound = SMALL_WORKFLOW.replace("env_is_no_context", "success()")
    with pytest.raises(AssertionError, match="takes other inputs"):
        run_small(tmp_path / "c", sound, wrod="a")
    with pytest.raises(AssertionError, match="environment only"):
        run_small(tmp_path / "d", sound.replace("echo reached", "echo ${{ inputs.word }}"))


def test_what_two_formats_need_alike_is_one_job() -> None:
    def step(name: str, kind: Any, key: str, level: str = "") -> Step:
        return Step(key, name, kind, level, (), {}, 0, 0)

    plans = [
        [
            step("calibrate a.gguf", "calibrate", "c"),
            step(f"time {name}", "time", f"{name}-time"),
            step("publish", "publish", name),
        ]
        for name in ("gguf", "onnx")
    ]
    plans[0] += [step("build gguf:Q8_0", "build", "b", "gguf:Q8_0"), step("measure gguf:Q8_0", "measure", "m", "gguf:Q8_0")]
    planned: Any = SimpleNamespace(snapshot=SimpleNamespace(repo="org/model", commit="0" * 40))
    requests: list[Any] = [SimpleNamespace(to="me/model-GGUF"), SimpleNamespace(to="me/model-ONNX")]
    told = outputs("model", requests, [(planned, one) for one in plans])
    prepare, build, time = (json.loads(told[name])["include"] for name in ("prepare", "build", "time"))
    assert [one["keys"] for one in prepare] == ["c"] and [one["keys"] for one in build] == ["b m"]
    assert build[0]["name"] == "gguf:Q8_0" and re.fullmatch(r"[\w.-]+", build[0]["id"])
    assert [one["keys"] for one in time] == ["gguf-time", "onnx-time"] and time[0]["id"] != time[1]["id"]
    assert told["publish"] == "gguf onnx" and told["targets"] == "me/model-GGUF me/model-ONNX"


# --- scripts by themselves ---


def script(name: str, at: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {"GITHUB_PATH": str(at / "path"), "GITHUB_STEP_SUMMARY": str(at / "summary"), "RUNNER_TEMP": str(at / "temp")}
    (at / "temp").mkdir(exist_ok=True)
    command = ["bash", "-e", str(ROOT / ".github/actions/hubq" / name)]
    return subprocess.run(command, cwd=at, env=os.environ | told | environment, capture_output=True, text=True, check=False)


def test_each_push_gets_a_token_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "hubq").write_text('#!/bin/sh\necho "$2 $3 to ${HF_OIDC_RESOURCE-a secret}" >>"$LOG"\n')
    (tmp_path / "hubq").chmod(0o755)
    given = {"STEPS": "KEY1 KEY2", "TARGETS": "me/A me/B", "MANIFEST": "cards/A", "WORK": "work"}
    given |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MADE": "made"}
    for folder in ("A", "A-ONNX", "B"):
        (tmp_path / "cards" / folder).mkdir(parents=True)
    for log, more in (("oidc", {}), ("secret", {"HUBQ_PUSH_TOKEN": "hf_push"})):
        assert script("push.sh", tmp_path, **given, **more, LOG=str(tmp_path / log)).returncode == 0
    assert (tmp_path / "oidc").read_text() == "cards/A KEY1 to me/A\ncards/A KEY2 to me/B\n"
    assert (tmp_path / "secret").read_text() == "cards/A KEY1 to a secret\ncards/A KEY2 to a secret\n"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["A", "A-ONNX"]


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lets pip leave out all that hubq needs, and hubq find it nevertheless: links to all packages but itself."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "hubq" not in path.name:
            (folder / path.name).symlink_to(path)
    return {"PIP_NO_DEPS": "1", "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, dependencies: dict[str, str]) -> Path:
    """What .ci/wheel makes and tries."""
    folder = tmp_path_factory.mktemp("wheel") / "dist"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")}
    subprocess.run(
        [ROOT / ".ci/wheel", folder, "--no-deps"],
        env=environment | {"PYTHON": sys.executable, "PYTHONPATH": dependencies["PYTHONPATH"]},
        check=True,
    )
    return folder


def test_the_wheel_is_made_and_installs(dist: Path, dependencies: dict[str, str], tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    given = {**dependencies, "HUBQ_VERSION": str(wheel), "EXTRAS": "", "WHEELS": str(tmp_path / "wheels")}
    done = script("install.sh", tmp_path, **given)
    assert done.returncode == 0 and done.stdout == f"hubq {hubq.__version__}\n", done.stderr
    assert {path.name for path in (tmp_path / "wheels").iterdir()} == {wheel.name, "version.txt"}
    assert (tmp_path / "path").read_text() == f"{tmp_path}/temp/hubq-environment/bin\n"
    shutil.rmtree(tmp_path / "temp")
    done = script("install.sh", tmp_path, **given, PIP_INDEX_URL="http://127.0.0.1:9", HUBQ_PUSH_TOKEN="x")  # from wheels only
    assert done.returncode == 0 and "Retrying" not in done.stderr, done.stderr


def test_another_version_than_that_of_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/version.txt").write_text("hubq 9.9.9\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = script("install.sh", tmp_path, HUBQ_VERSION="installed", WHEELS=str(tmp_path / "wheels"), PATH=path)
    assert done.returncode == 1 and f"this machine has hubq {hubq.__version__}, but the plan is of hubq 9.9.9" in done.stdout


@pytest.mark.parametrize(("tag", "words"), [("v9.9.9", "hubq/__init__.py has 1.2.3"), ("v1.2.3", "CHANGELOG.md has no")])
def test_a_tag_that_does_not_fit_is_refused(tag: str, words: str, tmp_path: Path) -> None:
    for path, text in {"hubq/__init__.py": '__version__ = "1.2.3"\n', "CHANGELOG.md": "## [1.2.2]\n"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / ".ci").mkdir()
    program = shutil.copy(ROOT / ".ci/wheel", tmp_path / ".ci")
    environment = os.environ | {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": tag}
    done = subprocess.run([program, tmp_path / "dist"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and words in done.stderr


# --- keyless ---

PUSH = "import sys; from hubq.hub import connect; connect(writing=True).push(sys.argv[1], {'a.txt': b'a'}, 'a')"
CLAIMS = {"repository": "me/models", "branch": "main", "workflow": "release.yml", "environment": "hubq-publish"}


@pytest.mark.parametrize(
    ("change", "repo", "words"),
    [
        ({}, "me/A", ""),
        ({}, "me/B", "403"),  # a token for A
        ({"branch": "other"}, "me/A", "no token for me/A"),
        ({"repository": "others/models"}, "me/A", "no token for me/A"),
    ],
)
def test_the_hub_trusts_one_job_with_one_repository(change: dict[str, str], repo: str, words: str, tmp_path: Path) -> None:
    with loopback.Hub() as hub:
        for name in ("me/A", "me/B"):
            hub.add(name, {".gitattributes": b""})
        hub.publishers["me/A"] = CLAIMS
        environment = os.environ | hub.environment(tmp_path) | hub.identity(**CLAIMS | change)
        environment |= {"GITHUB_ACTIONS": "true", "HF_OIDC_RESOURCE": "me/A", "HF_TOKEN": ""}
        command = [sys.executable, "-c", PUSH, repo]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (words == "") and words in done.stderr, done.stderr
        assert ("a.txt" in hub.files(repo)) == (words == "") and "ThatNobodyMaySee" not in done.stderr


# --- the whole way ---

TARGET, SOURCE = "me/model-GGUF", "org/model"
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
    assert re.search(r"^\| \S*Q4\\?_K\\?_M \|", job.summary, re.M), job.summary


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
    assert place.hub.whole.count("model.safetensors") == 1


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


@pytest.mark.thorough
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
    text = (place.folder / "cards/model/hubq.toml").read_text()
    (place.folder / "cards/gated").mkdir()
    gated = re.sub(r"(?m)^gguf = \[.*\]$", 'gguf = ["Q8_0"]', text) + '\n[gates]\n"gguf:Q8_0" = { kl = 1e-9 }\n'
    (place.folder / "cards/gated/hubq.toml").write_text(gated)
    place.git("add", "cards/gated")
    place.git("commit", "-qm", "A gate")
    place.git("push", "-q")
    before = dict(place.hub.repos[TARGET].commits)
    ran = place.runner.run("release.yml", manifest="cards/gated", **INSTALLED)
    assert (ran.results["build"], ran.results["publish"], ran.results["record"]) == ("failure", "skipped", "skipped")
    (job,) = ran.of("build")
    assert job.codes[-1] == 3 and "1e-09" in job.log, ran.log
    assert place.hub.repos[TARGET].commits == before
    place.git("rm", "-rq", "cards/gated")
    place.git("commit", "-qm", "No gate")
    place.git("push", "-q")


def test_a_model_that_moved_on_is_told_once(place: Place, first: actions.Run) -> None:
    def night() -> dict[str, str]:
        return place.runner.run("drift.yml", **INSTALLED).results

    assert night() == {"status": "success", "tell": "skipped"}
    commit = place.hub.add(SOURCE, {"more.txt": b"more"})
    assert night() == {"status": "success", "tell": "success"} == night()
    (issue,) = place.github.issues
    assert issue["title"] == f"cards/model: {SOURCE} moved on" and commit in issue["body"]


@pytest.mark.thorough
@pytest.mark.timeout(1800)  # it may have to make the exporter's environment
def test_two_targets_with_all_that_a_release_has(place: Place, first: actions.Run) -> None:
    """Exported, timed, measured against the source in 16 bits, in two formats: a push for each, by a token for each."""
    line = f"mkdir two && cd two && hubq init {SOURCE} --levels q8_0,onnx:q8 --dataset ../text.jsonl --windows 2"
    subprocess.run(["bash", "-ec", line], cwd=place.folder, env=place.environment, check=True)
    (path,) = (place.folder / "two").rglob("hubq.toml")
    path.write_text(path.read_text().replace('"org/model-', '"me/both-'))
    place.git("add", "two")
    place.git("commit", "-qm", "Two formats")
    place.git("push", "-q")
    targets = {"me/both-GGUF", "me/both-ONNX"}
    for target in targets:
        place.hub.add(target, {".gitattributes": b""})
        place.hub.publishers[target] = CLAIMS
    place.runner.secrets.clear()
    place.runner.environment["HUBQ_HOME"] = str(ROOT / "build/sealed")  # where the exporter's environment is
    before = len(place.hub.tokens)
    ran = place.runner.run("release.yml", manifest=str(path.parent.relative_to(place.folder)), **INSTALLED)
    expected = dict.fromkeys(("plan", "prepare", "build", "time", "publish", "record"), "success")
    assert ran.results == expected, ran.log
    assert set(list(place.hub.tokens.values())[before:]) == targets
    assert "model-Q8_0.gguf" in place.hub.files("me/both-GGUF")
    assert "onnx/model_quantized.onnx" in place.hub.files("me/both-ONNX")
    assert [len(ran.of(name)) for name in ("prepare", "build", "time")] == [1, 4, 2]
    branch = f"hubq/{path.parent.relative_to(place.folder)}"
    for target, folder in (("me/both-GGUF", path.parent), ("me/both-ONNX", path.parent.with_name("model-ONNX"))):
        show = ["git", "-C", str(place.bare), "show", f"{branch}:{folder.relative_to(place.folder)}/release.json"]
        assert subprocess.run(show, stdout=subprocess.PIPE, check=True).stdout == place.hub.files(target)["release.json"]
