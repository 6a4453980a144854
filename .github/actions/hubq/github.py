"""What GitHub's REST API is asked; of Python's own library only, since the jobs that run this install nothing."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

MANY = 100


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a request about this repository, by the token in GITHUB_TOKEN. Raises HTTPError where GitHub refuses."""
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    url = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def every(path: str) -> Iterator[dict[str, Any]]:
    """The entries of a list, page by page."""
    page = 1
    while entries := ask("GET", f"{path}&per_page={MANY}&page={page}"):
        yield from entries
        page += 1
