"""A Hub on this machine: a server that speaks the Hub's HTTP API to the real huggingface_hub client, and misbehaves on demand.

    with loopback.Hub() as hub:
        hub.add("org/model", {"config.json": b"{}", "model.safetensors": b"..."})
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))
        assert hub.files("org/model-GGUF")["README.md"].startswith(b"---")

Repositories are called owner/name and live in memory, with their whole history. Files with a suffix in LARGE are stored as
the Hub stores large files: listed with a SHA-256, uploaded ahead of the commit, downloaded by a redirect to a signed address
on another origin (`localhost` instead of `127.0.0.1`). The Xet protocol is not spoken: HF_HUB_DISABLE_XET=1 must be set.

Where `publishers` names the claims of a repository's trusted publisher, a job whose `identity` has them gets a token that may
write there and nowhere else: https://huggingface.co/docs/hub/trusted-publishers
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from machines import HARDWARE, Job, Machines

LARGE = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".bin")
ALWAYS = 1 << 30
TOKEN = "hf_loopbackTokenThatNobodyMaySee"
SECRET = "X-Amz-Signature=signatureThatNobodyMaySee"


def git_blob(data: bytes) -> str:
    """The id that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def environment(home: Path) -> dict[str, str]:
    """The client's settings for tests: what it keeps goes under `home`; no Xet, no telemetry; not offline, as tests may be."""
    kept = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    return kept | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}


def isolate(monkeypatch: Any, home: Path) -> None:
    """The same for a client in this very process, which has read its environment already. `monkeypatch` is pytest's."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@dataclass
class Repo:
    """A repository: `commits` maps ids to trees (path -> bytes) in order; `refs` names some of them, such as main or refs/pr/1.

    `gated`, `private` and `disabled` close it; `requests` are its pull requests, as the Hub lists them.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    gated: bool = False
    private: bool = False
    disabled: bool = False

    @property
    def head(self) -> str:
        """The newest commit of main."""
        return self.refs["main"]

    def commit(self, tree: Mapping[str, bytes], ref: str = "main") -> str:
        """Makes `tree` the newest commit of a branch and returns its id."""
        seed = repr((len(self.commits), sorted((path, git_blob(data)) for path, data in tree.items())))
        name = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[name] = dict(tree)
        self.refs[ref] = name
        return name

    def forget(self, commit: str) -> None:
        """Drops a commit, as a forced push does."""
        del self.commits[commit]


class Hub:
    """The server. Set its faults before the request that should meet them; `requests` lists (method, path) as they came."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.datasets: dict[str, str] = {}  # datasets by their ids, of which only the newest commit is told
        self.requests: list[tuple[str, str]] = []
        self.role = "write"  # of the token, as whoami tells it
        self.page = 1000  # entries per page of a tree listing
        self.flipped: dict[str, int] = {}  # path -> how many more downloads of it have one bit flipped
        self.cut: dict[str, int] = {}  # path -> how many more downloads of it end one byte early
        self.dropped: dict[str, list[int]] = {}  # path -> after how many bytes its next downloads lose the connection
        self.asked: list[str] = []  # the Range of every download that had one
        self.whole: list[str] = []  # the path of every one that had none
        self.ranges = True  # whether downloads obey Range
        self.renamed: dict[str, str] = {}  # old name of a repository -> its name now
        self.tampered: dict[str, bytes] = {}  # path -> what a commit stores in place of what was sent
        self.before_commit: Callable[[], None] | None = None  # called once, as if by somebody else who is faster
        self.barrier: threading.Barrier | None = None  # every client's first commit waits there for the others'
        self.lost_answers = 0  # how many more commits land, but are answered with 500
        self.hang = 0.0  # seconds that the next commit's answer takes after the commit landed
        self.met: list[str] = []  # the faults that a request really met, by name
        self.publishers: dict[str, dict[str, str]] = {}  # repository -> the claims that its trusted publisher must have
        self.identities: dict[str, dict[str, str]] = {}  # id token, or what a job asks for one with -> its claims
        self.tokens: dict[str, str] = {}  # token of a trusted publisher -> the only repository that it may write to
        self.machines: Machines | None = None  # that run jobs
        self.lost_jobs = 0  # how many more jobs start, but are answered with 500
        self.lock = threading.RLock()  # commits come one by one
        self._failures: list[list[Any]] = []
        self._closed = threading.Event()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self.machines:
            self.machines.close()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that lead a subprocess to this hub, logged in with write access."""
        return environment(home) | {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN}

    def log_in(self, monkeypatch: Any, home: Path) -> None:
        """The same for a client in this very process. `monkeypatch` is pytest's."""
        isolate(monkeypatch, home)
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    def identity(self, **claims: str) -> dict[str, str]:
        """Variables of a job of GitHub Actions that has `id-token: write`, with these claims."""
        asking = f"askingFor{len(self.identities)}ThatNobodyMaySee"
        self.identities[asking] = claims
        return {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/id-token?v=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": asking}

    def add(self, repo: str, files: Mapping[str, bytes]) -> str:
        """Commits `files` on top of what the repository holds, which is created if need be; returns the commit."""
        target = self.repos.setdefault(repo, Repo())
        return target.commit({**(target.commits[target.head] if target.commits else {}), **files})

    def files(self, repo: str, revision: str | None = None) -> dict[str, bytes]:
        """All files of a commit (default: the newest), by path."""
        found = self.repos[repo]
        return found.commits[found.refs.get(revision or "main", revision or "")]

    def fail(self, what: str, status: int, times: int = 1, headers: Mapping[str, str] | None = None) -> None:
        """Answers the next `times` requests whose "METHOD /path" contains `what` with `status`."""
        self._failures.append([what, status, times, dict(headers or {})])

    def _fault(self, request: str) -> tuple[int, dict[str, str]] | None:
        for failure in self._failures:
            if failure[0] in request and failure[2] > 0:
                failure[2] -= 1
                self.met.append("refused")
                return failure[1], failure[3]
        return None


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.headers = status, message, {"X-Error-Code": code} if code else {}
        self.headers["X-Error-Message"] = message


class _Handler(BaseHTTPRequestHandler):
    """Routes of the API, as huggingface_hub calls them."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, or the client waits 40 ms for each answer
    ROUTES = (
        (r"GET /id-token", "id_token"),
        (r"POST /oauth/token", "exchange"),
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/repos/create", "create"),
        (r"POST /api/validate-yaml", "validate"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        (r"GET /api/datasets/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "dataset"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/auth-check(/write)?", "auth_check"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/discussions", "discussions"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (r"PUT /upload/(?P<oid>\w+)", "upload"),
        (r"POST /verify/(?P<oid>\w+)", "verify"),
        (r"(HEAD|GET) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        (r"GET /api/jobs/hardware", "hardware"),
        (r"GET /api/jobs/(?P<owner>[^/]+)", "jobs"),
        (r"POST /api/jobs/(?P<owner>[^/]+)", "start_job"),
        (r"GET /api/jobs/(?P<owner>[^/]+)/(?P<name>\w+)", "job"),
        (r"POST /api/jobs/(?P<owner>[^/]+)/(?P<name>\w+)/cancel", "cancel_job"),
        (r"GET /api/jobs/(?P<owner>[^/]+)/(?P<name>\w+)/logs", "job_log"),
        (r"(HEAD|GET) /cdn/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)", "cdn"),
    )

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(address.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(address.path)
        self.hub.requests.append((self.command, path))
        if fault := self.hub._fault(f"{self.command} {path}"):
            return self.answer(fault[0], {"error": f"fault {fault[0]}"}, fault[1])
        try:
            for pattern, name in self.ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {address.path}"):
                    given = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    self.named = given.get("repo")
                    if (new := self.hub.renamed.get(given.get("repo") or "")) and name != "cdn":
                        return self.answer(307, b"", {"Location": self.path.replace(str(given["repo"]), new, 1)})
                    return getattr(self, name)(**given)
            raise _Refused(404, f"no such route: {self.command} {path}")
        except _Refused as refused:
            self.answer(refused.status, {"error": refused.message}, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def may(self, action: str) -> None:
        """Refuses a wrong token always, and none where something is written."""
        given = self.headers.get("Authorization")
        if (token := (given or "").removeprefix("Bearer ")) in self.hub.tokens:
            if action == "write" and self.hub.tokens[token] != self.named:
                raise _Refused(403, "this token may write to another repository only")
        elif given not in (None, f"Bearer {TOKEN}"):
            raise _Refused(401, "Invalid credentials in Authorization header")
        if action == "write" and given is None:
            raise _Refused(401, "Invalid username or password.")

    def repository(self, repo: str) -> Repo:
        self.may("read")
        found = self.hub.repos.get(repo)
        if found is None or (found.private and "Authorization" not in self.headers):
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if found.disabled:
            raise _Refused(403, "Access to this resource is disabled.", "DisabledRepo")
        return found

    def commit_of(self, repo: str, revision: str | None) -> str:
        found = self.repository(repo)
        commit = found.refs.get(revision or "main", revision or "")
        if commit not in found.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        sha = hashlib.sha256(data).hexdigest()
        if not path.endswith(LARGE):
            return {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
        lfs = {"oid": sha, "size": len(data), "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": len(data), "oid": git_blob(pointer), "lfs": lfs}

    def id_token(self) -> None:
        """GitHub's endpoint, not the Hub's."""
        claims = self.hub.identities.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if claims is None:
            raise _Refused(401, "no such job")
        value = f"identity{len(self.hub.identities)}.ThatNobodyMaySee"
        self.hub.identities[value] = claims | {"aud": self.query["audience"]}
        self.answer(200, {"value": value})

    def exchange(self) -> None:
        asked = json.loads(self.body)
        kinds = ("urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:token-type:id_token")
        if (asked["grant_type"], asked["subject_token_type"]) != kinds:
            raise _Refused(400, "invalid_request")
        claims, resource = self.hub.identities.get(asked["subject_token"], {}), asked["resource"]
        wanted = self.hub.publishers.get(resource)
        if wanted is None or resource not in self.hub.repos or not (wanted | {"aud": self.hub.url}).items() <= claims.items():
            raise _Refused(400, "invalid_grant")
        token = f"hf_jwt_loopback{len(self.hub.tokens):010}.ThatNobodyMaySee"
        self.hub.tokens[token] = resource
        self.answer(200, {"access_token": token, "token_type": "bearer", "expires_in": 3600})

    def whoami(self) -> None:
        self.may("write")
        self.answer(
            200, {"type": "user", "name": "org", "orgs": [{"name": "club"}], "auth": {"accessToken": {"role": self.hub.role}}}
        )

    def auth_check(self, repo: str) -> None:
        self.may("write")
        self.repository(repo)
        self.answer(200, {})

    def create(self) -> None:
        self.may("write")
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        self.hub.add(repo, {".gitattributes": b"*.gguf filter=lfs diff=lfs merge=lfs -text\n"})
        self.hub.repos[repo].private = asked.get("visibility") == "private"
        self.answer(200, {"url": f"{self.hub.url}/{repo}"})

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def info(self, repo: str, revision: str | None) -> None:
        commit = self.commit_of(repo, revision)
        found = self.hub.repos[repo]
        siblings = [{"rfilename": path} for path in found.commits[commit]]
        self.answer(200, {"id": repo, "sha": commit, "private": found.private, "tags": [], "siblings": siblings})

    def dataset(self, repo: str, revision: str | None) -> None:
        if repo not in self.hub.datasets:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        self.answer(200, {"id": repo, "sha": self.hub.datasets[repo], "tags": [], "siblings": []})

    def refs(self, repo: str) -> None:
        head = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.commit_of(repo, None)}
        self.answer(200, {"branches": [head], "tags": [], "converts": []})

    def tree(self, repo: str, revision: str) -> None:
        """Folders are listed too, as the Hub does; a page ends in a Link to the next."""
        files = self.hub.files(repo, self.commit_of(repo, revision))
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        entries += [self.entry(path, data) for path, data in sorted(files.items())]
        if self.query.get("recursive", "").lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"]]
        start = int(self.query.get("cursor", 0))
        stop = start + self.hub.page
        link = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?recursive=True&cursor={stop}>; rel="next"'}
        self.answer(200, entries[start:stop], link if stop < len(entries) else {})

    def paths_info(self, repo: str, revision: str) -> None:
        files = self.hub.files(repo, self.commit_of(repo, revision))
        asked = parse_qs(self.body.decode()).get("paths", [])
        self.answer(200, [self.entry(path, files[path]) for path in asked if path in files])

    def preupload(self, repo: str, revision: str) -> None:
        """A .gitignore in the repository drops files unless the client sends its own, as on the Hub."""
        self.may("write")
        asked, files = json.loads(self.body), self.hub.files(repo, self.commit_of(repo, revision))
        ignored = asked.get("gitIgnore", files.get(".gitignore", b"").decode()).split()
        modes = []
        for path in (file["path"] for file in asked["files"]):
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = (
                (hashlib.sha256(files[path]).hexdigest() if mode == "lfs" else git_blob(files[path])) if path in files else None
            )
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": path in ignored, "oid": oid})
        self.answer(200, {"files": modes})

    def batch(self, repo: str) -> None:
        self.may("write")
        self.repository(repo)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"http://localhost:{self.server.server_port}/upload/{item['oid']}?{SECRET}", "header": {}}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in self.hub.uploads else item | {"actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "The content does not match its hash")
        self.hub.uploads[oid] = self.body
        self.answer(200, b"")

    def verify(self, oid: str) -> None:
        self.answer(200 if oid in self.hub.uploads else 404, {})

    def commit(self, repo: str, revision: str) -> None:
        self.may("write")
        lines = [json.loads(line) for line in self.body.splitlines()]
        if (barrier := self.hub.barrier) and barrier.wait(120) == 0:
            self.hub.barrier = None
        if self.hub.before_commit:
            act, self.hub.before_commit = self.hub.before_commit, None
            self.hub.met.append("race")
            act()
        with self.hub.lock:
            self.commit_now(repo, revision, lines)

    def commit_now(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> None:
        found, opening, header = self.hub.repos[repo], "create_pr" in self.query, lines[0]["value"]
        head = self.commit_of(repo, revision)
        if opening:
            head = self.commit_of(repo, header.get("parentCommit", head))
        elif header.get("parentCommit", head) != head:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(found.commits[head])
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] != "deletedFile":
                tree[path] = self.hub.tampered.get(path, self.content(line))
                self.hub.met += ["tampered"] * (path in self.hub.tampered)
            elif tree.pop(path, None) is None:
                raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        if opening:
            revision = f"refs/pr/{self.open_request(repo, header['summary'])}"
        name = found.commit(tree, revision)
        if self.hub.hang:
            seconds, self.hub.hang = self.hub.hang, 0.0
            self.hub._closed.wait(seconds)
        if self.hub.lost_answers:
            self.hub.lost_answers -= 1
            self.hub.met.append("lost answer")
            raise _Refused(500, "Internal Error")
        page = {"pullRequestUrl": f"{self.hub.url}/{repo}/discussions/{revision.rpartition('/')[2]}"} if opening else {}
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{name}", "commitOid": name, "success": True} | page)

    def open_request(self, repo: str, title: str, author: str = "org") -> int:
        """A new pull request."""
        number = len(self.hub.repos[repo].requests) + 1
        facts = {"num": number, "title": title, "author": {"name": author}, "status": "open", "isPullRequest": True}
        facts |= {"createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": repo, "type": "model"}}
        self.hub.repos[repo].requests.append(facts)
        return number

    def discussions(self, repo: str) -> None:
        """Two a page."""
        found = self.repository(repo).requests
        found = [one for one in found if one["author"]["name"] == self.query.get("author", one["author"]["name"])]
        start = 2 * int(self.query.get("p", 0))
        self.answer(200, {"count": len(found), "start": start, "discussions": found[start : start + 2]})

    def content(self, line: dict[str, Any]) -> bytes:
        if line["key"] == "file":
            return base64.b64decode(line["value"]["content"])
        if line["key"] == "lfsFile" and line["value"]["oid"] in self.hub.uploads:
            return self.hub.uploads[line["value"]["oid"]]
        raise _Refused(400, f"cannot commit {line['key']}")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_of(repo, revision)
        if self.hub.repos[repo].gated:
            raise _Refused(403, f"Access to model {repo} is restricted and you are not in the authorized list.", "GatedRepo")
        data = self.hub.files(repo, commit).get(path)
        if data is None:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit}
        if not path.endswith(LARGE):
            return self.send_file(path, data, headers | {"ETag": f'"{git_blob(data)}"'})
        etag = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        location = f"http://localhost:{self.server.server_port}/cdn/{repo}/{commit}/{path}?{SECRET}"
        self.answer(302, b"", headers | {"Location": location})

    def cdn(self, repo: str, revision: str, path: str) -> None:
        if self.query.get("X-Amz-Signature") != SECRET.partition("=")[2] or "Authorization" in self.headers:
            raise _Refused(403, "wrong signature, or a token that has no business here")
        self.send_file(path, self.hub.files(repo, revision)[path], {})

    def send_file(self, path: str, data: bytes, headers: Mapping[str, str]) -> None:
        """The bytes, or those in Range, with the faults that are due."""
        if self.command == "GET":
            if "Range" in self.headers:
                self.hub.asked.append(self.headers["Range"])
            else:
                self.hub.whole.append(path)
            if self.due(self.hub.flipped, path):
                self.hub.met.append("flipped")
                data = bytes([data[0] ^ 1]) + data[1:]
            if self.due(self.hub.cut, path):
                self.hub.met.append("cut")
                data = data[:-1]
            if drops := self.hub.dropped.get(path):
                self.hub.met.append("dropped")
                return self.break_off(data, drops.pop(0), headers)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match or not self.hub.ranges:
            return self.answer(200, data, headers)
        start, stop = int(match[1]), min(int(match[2] or len(data)), len(data) - 1) + 1
        self.answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def break_off(self, data: bytes, count: int, headers: Mapping[str, str]) -> None:
        """The first bytes of an answer (of what is left after Range), and the end of the connection."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(match[1]) if match and self.hub.ranges else 0
        given = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send_response(206 if start else 200)
        for name, value in {**headers, **given, "Content-Length": str(len(data) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[start : start + count])
        self.wfile.flush()
        with contextlib.suppress(OSError):  # the client may be gone already
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    @staticmethod
    def due(faults: dict[str, int], path: str) -> bool:
        faults[path] = faults.get(path, 0) - 1
        return faults[path] >= 0

    def hardware(self) -> None:
        self.answer(200, [{"unitCostUSD": one["unitCostMicroUSD"] / 1e6, "unitLabel": "minute", **one} for one in HARDWARE])

    def started(self, owner: str, name: str | None = None) -> list[Job]:
        """The account's jobs, or the one of a name."""
        self.may("write")
        machines = self.hub.machines
        found = [job for job in (machines.jobs if machines else []) if job.owner == owner and name in (None, job.id)]
        if name and not found:
            raise _Refused(404, "Job not found")
        return found

    def jobs(self, owner: str) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        stages, labels = asked.get("stage", []), dict(label.split("=", 1) for label in asked.get("label", []))
        found = [job.facts for job in self.started(owner)]
        found = [job for job in found if not stages or job["status"]["stage"] in stages]
        self.answer(200, [job for job in found if labels.items() <= (job["labels"] or {}).items()])

    def start_job(self, owner: str) -> None:
        self.may("write")
        if self.hub.machines is None:
            raise _Refused(402, "Pre-paid credit balance is insufficient")
        job = self.hub.machines.start(owner, json.loads(self.body))
        if self.hub.lost_jobs:
            self.hub.lost_jobs -= 1
            raise _Refused(500, "Internal Error")
        self.answer(200, job.facts)

    def job(self, owner: str, name: str) -> None:
        self.answer(200, self.started(owner, name)[0].facts)

    def cancel_job(self, owner: str, name: str) -> None:
        self.started(owner, name)[0].stop("CANCELED")
        self.answer(200, {})

    def job_log(self, owner: str, name: str) -> None:
        """Server-sent events, a line of the log each."""
        lines = self.started(owner, name)[0].log.splitlines()[-int(self.query.get("tail", 10**9)) :]
        events = [json.dumps({"data": line, "timestamp": "2026-01-01T00:00:00.000Z"}) for line in lines]
        self.answer(200, "".join(f"data: {event}\n\n" for event in events).encode(), {"Content-Type": "text/event-stream"})
