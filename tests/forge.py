"""GitHub's REST API on this machine, as far as our scripts ask it: pull requests and issues of one repository.

    with forge.GitHub(repository, runner.tokens) as github:
        environment = github.environment()
        assert github.pulls[0]["title"] == "..."

`repository` is a bare git repository, `tokens` tells the permissions of each GITHUB_TOKEN.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NEEDS = {"pulls": "pull-requests", "issues": "issues"}  # part of the API -> the permission for it


class GitHub:
    """The server. Issues and pull requests share their numbers, and pull requests are listed among issues, as there."""

    def __init__(self, repository: Path, tokens: Mapping[str, Mapping[str, str]], name: str = "me/models") -> None:
        self.repository, self.tokens, self.name = repository, tokens, name
        self.pulls: list[dict[str, Any]] = []
        self.issues: list[dict[str, Any]] = []
        self.page = 2  # entries of a page, whatever is asked for

    def __enter__(self) -> GitHub:
        handler = type("Handler", (_Handler,), {"github": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What runners tell jobs of the server."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return {"GITHUB_API_URL": url, "GITHUB_SERVER_URL": url, "GITHUB_REPOSITORY": self.name}

    def branches(self) -> list[str]:
        """The names of all branches."""
        command = ["git", "for-each-ref", "--format=%(refname:short)", "refs/heads"]
        return subprocess.run(command, cwd=self.repository, check=True, capture_output=True, text=True).stdout.split()


class _Handler(BaseHTTPRequestHandler):
    github: GitHub
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(address.query).items()}
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        start, _, rest = address.path.partition(f"/repos/{self.github.name}/")
        part, _, number = rest.partition("/")
        permissions = self.github.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "), {})
        if start or part not in NEEDS:
            return self.answer(404, {"message": "Not Found"})
        if permissions.get(NEEDS[part]) != "write":
            return self.answer(403, {"message": "Resource not accessible by integration"})
        if self.command == "GET":
            return self.answer(200, self.listed(part))
        if self.command == "PATCH":
            found = next(one for one in self.github.issues if one["number"] == int(number))
            found.update(self.body)
            return self.answer(200, found)
        self.make(part)

    do_GET = do_POST = do_PATCH = handle_any

    def listed(self, part: str) -> list[dict[str, Any]]:
        """A page of pull requests or issues, the newest first."""
        found = self.github.pulls if part == "pulls" else [*self.github.issues, *self.github.pulls]
        found = sorted(found, key=lambda one: -one["number"])
        if self.query.get("state", "open") != "all":
            found = [one for one in found if one["state"] == self.query.get("state", "open")]
        if "head" in self.query:
            found = [one for one in found if one["head"]["label"] == self.query["head"]]
        if "base" in self.query:
            found = [one for one in found if one["base"]["ref"] == self.query["base"]]
        start = (int(self.query.get("page", 1)) - 1) * self.github.page
        return found[start : start + self.github.page]

    def make(self, part: str) -> None:
        """A new pull request between branches that are there, or a new issue."""
        number = len(self.github.pulls) + len(self.github.issues) + 1
        made = {"number": number, "state": "open", "title": self.body["title"], "body": self.body["body"]}
        if part == "issues":
            self.github.issues.append(made)
            return self.answer(201, made)
        branches, head, base = self.github.branches(), self.body["head"], self.body["base"]
        if head not in branches or base not in branches or any(one["head"]["ref"] == head for one in self.github.pulls):
            return self.answer(422, {"message": "Validation Failed"})
        owner = self.github.name.partition("/")[0]
        made |= {"head": {"ref": head, "label": f"{owner}:{head}"}, "base": {"ref": base}, "pull_request": {}}
        self.github.pulls.append(made)
        self.answer(201, made)

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence."""
