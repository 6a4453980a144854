"""Machines for the jobs of the loopback Hub: each job's command really runs, in a fresh folder, with what the job was given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hubq

HARDWARE = [
    {"name": "cpu-basic", "prettyName": "CPU Basic", "cpu": "2 vCPU", "ram": "16 GB", "unitCostMicroUSD": 167},
    {"name": "cpu-xl", "prettyName": "CPU XL", "cpu": "16 vCPU", "ram": "124 GB", "unitCostMicroUSD": 16667},
]
BREATH = 1.5  # seconds that a machine lives which is lost


@dataclass
class Job:
    """A job: what was asked for, its process, and what ended it if that was not the process itself."""

    id: str
    owner: str
    spec: dict[str, Any]
    folder: Path
    process: subprocess.Popen[bytes]
    stage: str = ""
    message: str = ""

    @property
    def log(self) -> str:
        """All that the command printed."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self, stage: str, message: str = "") -> None:
        """End the machine, as by somebody who pulls the plug."""
        if self.process.poll() is None:
            self.stage, self.message = stage, message
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def facts(self) -> dict[str, Any]:
        """The job as the Hub tells of it; values of secrets are not told."""
        code = self.process.poll()
        stage, message = self.stage, self.message
        if not stage:
            stage = "RUNNING" if code is None else "ERROR" if code else "COMPLETED"
            message = f"Job failed with exit code: {code}" if code else ""
        told = {
            name: self.spec.get(name) for name in ("dockerImage", "command", "arguments", "environment", "flavor", "labels")
        }
        told |= {"secrets": dict.fromkeys(self.spec.get("secrets", {}), None), "status": {"stage": stage, "message": message}}
        owner = {"id": "1", "name": self.owner, "type": "user"}
        return told | {"id": self.id, "createdAt": "2026-01-01T00:00:00.000Z", "owner": owner}


class Machines:
    """The machines below `root`. The next `lost` ones die soon after their start."""

    def __init__(self, root: Path) -> None:
        self.root, self.jobs, self.lost = root, [], 0  # type: Path, list[Job], int

    def start(self, owner: str, spec: dict[str, Any]) -> Job:
        """Run a job's command. The image gives Python, hubq and folders for caches, and nothing else comes from here."""
        folder = self.root / f"job{len(self.jobs)}"
        folder.mkdir(parents=True)
        image = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(Path(hubq.__file__).parents[1])}
        image |= {"HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        image |= {"TOKENIZERS_PARALLELISM": "false"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                spec["command"],
                cwd=folder,
                env=image | spec["environment"] | spec.get("secrets", {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        job = Job(f"{len(self.jobs):024x}", owner, spec, folder, process)
        self.jobs.append(job)
        threading.Thread(target=self._watch, args=(job, spec["timeoutSeconds"], self.lost > 0), daemon=True).start()
        self.lost -= self.lost > 0
        return job

    def _watch(self, job: Job, seconds: float, is_lost: bool) -> None:
        try:
            job.process.wait(BREATH if is_lost else seconds)
        except subprocess.TimeoutExpired:
            job.stop("ERROR", "Job was lost with its machine" if is_lost else "Job timeout")

    def close(self) -> None:
        """End what runs."""
        for job in self.jobs:
            job.stop("CANCELED")
