"""Makes the folder MANIFEST, and those beside it, what a release left in MADE: in a pull request, one for them all."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from github import ask

AUTHOR = {"NAME": "github-actions[bot]", "EMAIL": "41898282+github-actions[bot]@users.noreply.github.com"}


def main() -> None:
    """Does nothing where the folder is so already."""
    folder = os.environ["MANIFEST"].strip("/")
    branch, base = f"hubq/{folder}", os.environ["GITHUB_REF_NAME"]
    made = {f"{folder.rpartition('/')[0] or '.'}/{path.name}": path for path in sorted(Path(os.environ["MADE"]).iterdir())}
    for place, path in made.items():
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(path, place)
    git("add", "--", *made)
    if not git("status", "--porcelain", "--", *made):
        return print(f"{folder} is as it was")
    title = f"Release of {folder.rpartition('/')[2]}"
    git("commit", "--quiet", "--message", title, "--", *made)
    push(branch)
    owner = os.environ["GITHUB_REPOSITORY"].partition("/")[0]
    if not ask("GET", f"pulls?state=open&base={quote(base)}&head={quote(f'{owner}:{branch}')}"):
        run = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/actions/runs/{os.environ['GITHUB_RUN_ID']}"
        body = f"What hubq published from `{folder}/hubq.toml`: the card and its record, made by {run}."
        ask("POST", "pulls", {"title": title, "head": branch, "base": base, "body": body})
    print(f"{branch} has the record")


def push(branch: str) -> None:
    """Makes HEAD the branch of the remote, unless what it has there is the same."""
    there = git("ls-remote", "origin", f"refs/heads/{branch}").split()
    if there:
        git("fetch", "--quiet", "--depth=1", "origin", there[0])
        if git("rev-parse", f"{there[0]}^{{tree}}") == git("rev-parse", "HEAD^{tree}"):
            return
    git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")


def git(*arguments: str) -> str:
    """What git prints. The token reaches it by its environment, so that it is in no file and no list of processes."""
    token = base64.b64encode(f"x-access-token:{os.environ['GITHUB_TOKEN']}".encode()).decode()
    environment = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in AUTHOR.items()}
    environment |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{os.environ['GITHUB_SERVER_URL']}/.extraheader"}
    environment |= {"GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {token}"}
    done = subprocess.run(["git", *arguments], env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
