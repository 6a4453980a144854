"""Releases by GitHub Actions: the workflows for a repository of manifests, and what the Hub must know of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hubq import disk
from hubq.errors import Usage
from hubq.manifest import NAME, read
from hubq.plan import is_repository

ACTION = ("action.yml", "install.sh", "steps.sh", "push.sh", "status.sh", "github.py", "record.py", "tell.py")
WORKFLOW, ENVIRONMENT = "release.yml", "hubq-publish"
FILES = (
    *(f".github/workflows/{name}" for name in (WORKFLOW, "drift.yml")),
    *(f".github/actions/hubq/{name}" for name in ACTION),
)


def files() -> dict[str, bytes]:
    """The workflows and the action that they use, by their places in a repository: hubq's own."""
    here = Path(__file__).parent
    packed = here / "templates" / "ci"
    return {path: (packed / path if packed.is_dir() else here.parent / path).read_bytes() for path in FILES}


def write(folder: Path, force: bool = False) -> dict[str, bool]:
    """Writes them into a repository; each path with whether it changed. Raises Usage, and writes nothing, where the folder is
    not there, or files differ that are there and `force` is not set."""
    if not folder.is_dir():
        raise Usage(f"there is no folder {folder}", "name the repository's")
    changed = {path: _differs(folder / path, content) for path, content in files().items()}
    if not force and (others := [path for path, differs in changed.items() if differs and (folder / path).exists()]):
        raise Usage(f"{folder} has other files of these names: {', '.join(others)}", "--force writes over them")
    for path, content in files().items():
        if changed[path]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            disk.write(folder / path, content)
    return changed


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


@dataclass(frozen=True, slots=True)
class Publisher:
    """What to enter as a trusted publisher of `target` on the Hub: claims of the id token of GitHub Actions.

    https://huggingface.co/docs/hub/trusted-publishers. `repository` is "" where git does not tell.
    """

    target: str
    repository: str
    branch: str
    workflow: str = WORKFLOW
    environment: str = ENVIRONMENT

    @property
    def settings(self) -> str:
        """The page on the Hub."""
        return f"https://huggingface.co/{self.target}/settings"


def publishers(cards: Path) -> list[Publisher]:
    """One for each repository on the Hub that a manifest below `cards` publishes to. Raises Usage where there is none, or a
    manifest cannot be read."""
    found = [target for path in sorted(cards.glob(f"*/{NAME}")) for target in read(path).targets.values()]
    if not (targets := sorted({target for target in found if is_repository(target)})):
        raise Usage(f"no {NAME} in {cards} names a repository on the Hub", "`hubq init MODEL --to owner/name` writes one")
    repository = re.sub(r"^(https://|git@|ssh://git@)github\.com[:/]|\.git$", "", _git(cards, "remote", "get-url", "origin"))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        repository = ""
    branch = _git(cards, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").rpartition("/")[2]
    return [Publisher(target, repository, branch or "main") for target in targets]


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or "" where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
