"""GitHub Actions on this machine, as far as our workflows use it: runs the jobs of a workflow in the order of their needs, each
in a fresh folder with a fresh HOME, and what they `run` by bash.

    runner = actions.Runner(repository, tmp_path, {"PATH": ..., "HF_ENDPOINT": hub.url})
    ran = runner.run("release.yml", manifest="cards/X")
    assert ran.results == {"plan": "success", ...}

`repository` is a bare git repository; workflows, and actions named `$/...`, are taken from its main branch.
https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from expressions import interpolate, string

STATUS = re.compile(r"\b(success|failure|always|cancelled)\(")
FILES = ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")


@dataclass
class Job:
    """One job of a run, or one of its matrix. `seen` are the variables of each script that it ran,
    `codes` their exit codes, `used` the actions."""

    id: str
    folder: Path
    environment: dict[str, str]
    contexts: dict[str, Any]
    result: str = "success"
    seen: list[dict[str, str]] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    log: str = ""
    summary: str = ""
    after: list[tuple[Path, Path]] = field(default_factory=list)  # what is copied at its end, and where to

    @property
    def workspace(self) -> Path:
        """Where the repository is checked out."""
        return self.folder / "workspace"


@dataclass
class Run:
    """What became of a workflow: the result of each job by its id, and the jobs that ran."""

    results: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    def of(self, name: str) -> list[Job]:
        """The jobs of this id."""
        return [job for job in self.jobs if job.id == name]

    @property
    def log(self) -> str:
        """What all of them printed."""
        return "".join(f"--- {job.id}: {job.result}\n{job.log}" for job in self.jobs)


class Runner:
    """Runs workflows. `environment` is what the machine gives every job, `identity` what it gives those with id-token: write,
    `secrets` are those of each environment. `tokens` tells the permissions of every GITHUB_TOKEN that was given out."""

    def __init__(self, repository: Path, root: Path, environment: Mapping[str, str], name: str = "me/models") -> None:
        self.repository, self.root, self.name = repository, root, name
        self.environment, self.identity = dict(environment), dict[str, str]()
        self.secrets: dict[str, dict[str, str]] = {}
        self.tokens: dict[str, dict[str, str]] = {}
        self.caches: dict[str, Path] = {}
        self._numbers = itertools.count(1)

    def run(self, workflow: str, event: str = "workflow_dispatch", **inputs: str) -> Run:
        """Runs .github/workflows/`workflow` of the newest commit of main."""
        self.folder = self.root / f"run-{next(self._numbers)}"
        self.commit = _git("rev-parse", "main", at=self.repository)
        self.sources = _clone(self.repository, self.commit, self.folder / "sources")
        text = (self.sources / ".github/workflows" / workflow).read_text()
        found = yaml.load(text, Loader=yaml.BaseLoader)  # `on` stays a string
        about = found["on"].get(event) if isinstance(found["on"], dict) else None
        defaults = about.get("inputs", {}) if isinstance(about, dict) else {}
        wrong = [key for key, one in defaults.items() if one.get("required") == "true" and key not in inputs]
        assert not wrong and inputs.keys() <= defaults.keys(), f"{workflow} takes other inputs: {wrong or inputs}"
        declared = dict.fromkeys(_inputs(found["on"]), "") | {key: one.get("default", "") for key, one in defaults.items()}
        facts = {"repository": self.name, "event_name": event, "sha": self.commit, "ref": "refs/heads/main", "ref_name": "main"}
        contexts = {"github": facts | {"workflow": found["name"], "run_id": "1"}, "inputs": declared | inputs}
        ran = Run()
        while waiting := [name for name in found["jobs"] if name not in ran.results]:
            ready = [name for name in waiting if set(_needs(found["jobs"][name])) <= ran.results.keys()]
            self._jobs(ready[0], found["jobs"], contexts, ran)
        return ran

    def _jobs(self, name: str, jobs: dict[str, Any], contexts: dict[str, Any], ran: Run) -> None:
        """Runs a job, all of its matrix, or skips it."""
        job = jobs[name]
        needs = {one: {"result": ran.results[one], "outputs": ran.outputs[one]} for one in _needs(job)}
        contexts = contexts | {"needs": needs}
        before = [ran.results[one] for one in _ancestors(name, jobs)]
        functions = _status(all(one == "success" for one in before), "failure" in before)
        ran.outputs[name] = {}
        if not _wanted(job, contexts, functions):
            ran.results[name] = "skipped"
            return
        matrix = interpolate(job.get("strategy", {}).get("matrix"), contexts, functions)
        if matrix is not None and not matrix["include"]:
            raise ValueError(f"the matrix of {name} is empty")
        members = [
            self._job(name, job, contexts | ({"matrix": one} if matrix is not None else {}))
            for one in (matrix["include"] if matrix is not None else [{}])
        ]
        ran.jobs += members
        ran.results[name] = "failure" if any(one.result == "failure" for one in members) else "success"
        for key, value in job.get("outputs", {}).items():
            ran.outputs[name][key] = string(interpolate(value, members[-1].contexts, {}))

    def _job(self, name: str, job: dict[str, Any], contexts: dict[str, Any]) -> Job:
        """Runs one job to its end."""
        assert int(job["timeout-minutes"]) and "env" not in job and "defaults" not in job and "services" not in job
        folder = self.folder / f"{name}-{next(self._numbers)}"
        for part in ("workspace", "home", "temp", "files"):
            (folder / part).mkdir(parents=True)
        permissions = job.get("permissions", {})
        token = f"ghs_{next(self._numbers):04}OfThisJobThatNobodyMaySee"
        self.tokens[token] = permissions
        facts = {f"GITHUB_{key.upper()}": value for key, value in contexts["github"].items()}
        environment = self.environment | facts | {"CI": "true", "GITHUB_ACTIONS": "true", "HOME": str(folder / "home")}
        environment |= {"RUNNER_TEMP": str(folder / "temp"), "GITHUB_WORKSPACE": str(folder / "workspace")}
        if permissions.get("id-token") == "write":
            environment |= self.identity
        place = job.get("environment", {})
        contexts = contexts | {"github": contexts["github"] | {"token": token}, "runner": {"temp": str(folder / "temp")}}
        contexts |= {"secrets": self.secrets.get(place.get("name", ""), {}), "steps": {}}
        running = Job(name, folder, environment, contexts)
        for key in ("name", "concurrency"):  # what is wrong in there raises
            group = job.get(key, "")
            interpolate(group["group"] if isinstance(group, dict) else group, contexts, {})
        running.result = "success" if self._steps(running, job["steps"], contexts, {}) else "failure"
        for source, target in running.after:
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
        return running

    def _steps(self, job: Job, steps: list[dict[str, Any]], contexts: dict[str, Any], inherited: dict[str, str]) -> bool:
        """Runs steps of a job or of an action; whether all went well. `contexts["steps"]` gets their outputs."""
        well = True
        for step in steps:
            functions = _status(well, not well)
            contexts["steps"].setdefault(step.get("id", ""), {"outputs": {}})
            if not _wanted(step, contexts, functions):
                continue
            values = {
                part: {key: string(interpolate(value, contexts, functions)) for key, value in step.get(part, {}).items()}
                for part in ("env", "with")
            }
            environment = inherited | values["env"]
            if "run" in step:
                done, outputs = self._bash(job, step, contexts["github"], environment)
            else:
                done, outputs = self._use(job, step["uses"], values["with"], contexts, environment)
            well = well and done
            contexts["steps"][step.get("id", "")] = {"outputs": outputs, "outcome": "success" if done else "failure"}
        return well

    def _bash(
        self, job: Job, step: dict[str, Any], facts: dict[str, str], given: dict[str, str]
    ) -> tuple[bool, dict[str, str]]:
        """Runs a script; whether it went well, and what it put out. `given` are variables beside those of the job."""
        assert "${{" not in step["run"], "what is given reaches scripts by their environment only"
        files = {name: job.folder / "files" / f"{name}-{next(self._numbers)}" for name in FILES}
        for path in files.values():
            path.touch()
        environment = job.environment | given | {name: str(path) for name, path in files.items()}
        if "action_path" in facts:
            environment["GITHUB_ACTION_PATH"] = facts["action_path"]
        job.seen.append(environment)
        strict = ["-o", "pipefail"] if "shell" in step else []
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", *strict, "-c", step["run"]],
            cwd=job.workspace,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        job.log += f"$ {step['run']}\n{done.stdout}"
        job.codes.append(done.returncode)
        job.environment |= _pairs(files["GITHUB_ENV"].read_text())
        for line in files["GITHUB_PATH"].read_text().splitlines():
            job.environment["PATH"] = f"{line}:{job.environment['PATH']}"
        job.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        return done.returncode == 0, _pairs(files["GITHUB_OUTPUT"].read_text())

    def _use(
        self, job: Job, name: str, values: dict[str, str], contexts: dict[str, Any], given: dict[str, str]
    ) -> tuple[bool, dict[str, str]]:
        """Runs an action: one of the repository by its steps, one of GitHub's by what stands for it here."""
        job.used.append(name)
        if name.startswith("$/"):
            return self._composite(job, self.sources / name[2:], values, contexts, given)
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name), f"{name} is not pinned"
        return getattr(self, "_" + re.sub(r"\W", "_", name.partition("@")[0]))(job, values), {}

    def _composite(
        self, job: Job, place: Path, values: dict[str, str], contexts: dict[str, Any], given: dict[str, str]
    ) -> tuple[bool, dict[str, str]]:
        """Runs an action's steps. They see its inputs, and no secrets but those in `given`."""
        action = yaml.load((place / "action.yml").read_text(), Loader=yaml.BaseLoader)
        steps = action["runs"]["steps"]
        assert values.keys() <= action["inputs"].keys(), f"{place} takes no {values.keys() - action['inputs'].keys()}"
        assert action["runs"]["using"] == "composite" and all("shell" in one for one in steps if "run" in one)
        inside = {"runner": contexts["runner"], "github": contexts["github"] | {"action_path": str(place)}}
        inside["inputs"] = {key: values.get(key, one.get("default", "")) for key, one in action["inputs"].items()}
        inside["steps"] = {step["id"]: {"outputs": {}} for step in steps if "id" in step}
        well = self._steps(job, steps, inside, given)
        return well, {key: string(interpolate(one["value"], inside, {})) for key, one in action.get("outputs", {}).items()}

    def _actions_checkout(self, job: Job, values: dict[str, str]) -> bool:
        assert values == {"persist-credentials": "false"}
        _clone(self.repository, self.commit, job.workspace)
        return True

    def _actions_setup_python(self, job: Job, values: dict[str, str]) -> bool:
        return True

    def _actions_cache(self, job: Job, values: dict[str, str]) -> bool:
        place = Path(values["path"].replace("~", job.environment["HOME"], 1))
        kept = self.root / "caches" / values["key"].replace("/", "--")
        if kept.is_dir():
            shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)
        elif not any(target == kept for _, target in job.after):
            job.after.append((place, kept))
        return True

    def _actions_upload_artifact(self, job: Job, values: dict[str, str]) -> bool:
        """Hidden files stay behind if nobody asks for them."""
        source, target = job.workspace / values["path"], self.folder / "artifacts" / values["name"]
        if not source.is_dir() or not any(source.iterdir()):
            job.log += f"no files in {values['path']}\n"
            return values["if-no-files-found"] != "error"
        if target.exists():
            assert values["overwrite"] == "true", f"there is an artifact {target.name}"
            shutil.rmtree(target)
        hidden = values.get("include-hidden-files") == "true"
        shutil.copytree(source, target, ignore=None if hidden else shutil.ignore_patterns(".*"))
        return True

    def _actions_download_artifact(self, job: Job, values: dict[str, str]) -> bool:
        place, kept = job.workspace / values["path"], self.folder / "artifacts"
        found = [one for one in sorted(kept.iterdir()) if fnmatch(one.name, values.get("pattern", values.get("name", "")))]
        if "name" in values and not found:
            job.log += f"no artifact {values['name']}\n"
            return False
        assert "name" in values or values["merge-multiple"] == "true"
        place.mkdir(parents=True, exist_ok=True)
        for one in found:
            shutil.copytree(one, place, dirs_exist_ok=True)
        return True


def _inputs(on: Any) -> set[str]:
    """The names of all inputs, of whatever event."""
    return {
        key for event in (on.values() if isinstance(on, dict) else ()) if event for key in _mapping(event).get("inputs", {})
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _needs(job: dict[str, Any]) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else needs


def _ancestors(name: str, jobs: dict[str, Any]) -> set[str]:
    direct = set(_needs(jobs[name]))
    return direct.union(*(_ancestors(one, jobs) for one in direct))


def _status(well: bool, failed: bool) -> dict[str, Any]:
    return {"success": lambda: well, "failure": lambda: failed, "always": lambda: True, "cancelled": lambda: False}


def _wanted(thing: dict[str, Any], contexts: dict[str, Any], functions: dict[str, Any]) -> bool:
    """Whether a job or step runs. An `if` that asks for no status means that all before went well, skipped ones included."""
    condition = thing.get("if", "true").strip()
    condition = condition.removeprefix("${{").removesuffix("}}")
    if not STATUS.search(condition):
        condition = f"success() && ({condition})"
    return bool(interpolate("${{" + condition + "}}", contexts, functions))


def _pairs(text: str) -> dict[str, str]:
    """NAME=VALUE lines, and NAME<<END with lines up to END."""
    pairs, lines = {}, iter(text.splitlines())
    for line in lines:
        if match := re.fullmatch(r"([\w-]+)<<(\S+)", line):
            pairs[match[1]] = "\n".join(itertools.takewhile(lambda one, end=match[2]: one != end, lines))  # type: ignore[misc]
        else:
            name, equals, value = line.partition("=")
            assert equals, f"{line!r} is no output"
            pairs[name] = value
    return pairs


def _clone(repository: Path, commit: str, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(repository), str(folder)], check=True)
    _git("checkout", "-q", "--detach", commit, at=folder)
    return folder


def _git(*arguments: str, at: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=at, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()
