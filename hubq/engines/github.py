"""A plan as jobs of GitHub Actions: what a workflow needs to make a matrix of it.

https://docs.github.com/en/actions/how-tos/write-workflows/choose-what-workflows-do/run-job-variations
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from hubq.plan import Plan, Request
from hubq.steps import Step


def outputs(name: str, requests: Sequence[Request], plans: Sequence[tuple[Plan, Sequence[Step]]]) -> dict[str, str]:
    """The outputs of a job that plans, for a manifest in the folder `name`: matrices of jobs as JSON, each with a `name`, an
    `id` that may be a file's name, and the `keys` of its steps; and what else jobs go by.

    `prepare` is what all levels are made of, `build` each level's file and numbers, `time` the speeds, `publish` the rest.
    """
    steps = [step for _, found in plans for step in found]
    snapshot = plans[0][0].snapshot
    return {
        "name": name,
        "model": snapshot.repo,
        "revision": snapshot.commit,
        "targets": " ".join(request.to or "" for request in requests),
        "prepare": _matrix([step] for step in steps if step.kind in ("calibrate", "export")),
        "build": _matrix(_by_level(steps)),
        "time": _matrix([step] for step in steps if step.kind == "time"),
        "publish": " ".join(step.key for step in steps if step.kind == "publish"),
    }


def _by_level(steps: Iterable[Step]) -> list[list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in steps:
        if step.kind in ("build", "measure"):
            found.setdefault(step.level if ":" in step.level else step.name, []).append(step)
    return list(found.values())


def _matrix(jobs: Iterable[Sequence[Step]]) -> str:
    """What two formats need alike is one job."""
    include = {}
    for steps in jobs:
        name, keys = steps[0].level if ":" in steps[0].level else steps[0].name, " ".join(step.key for step in steps)
        include[keys] = {"name": name, "id": re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-"), "keys": keys}
    return json.dumps({"include": list(include.values())}, separators=(",", ":"))
