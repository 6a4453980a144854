"""The Hugging Face Hub through huggingface_hub, whose downloads check sizes but not hashes: hubq checks both."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import huggingface_hub as client
from huggingface_hub import errors, utils

from hubq import __version__
from hubq.errors import HubError, HubqError, Moved
from hubq.hub import faults
from hubq.hub.faults import LOG_IN, TRY_AGAIN, again, cap, explain, pause, status, transient
from hubq.hub.files import Content, check_path, end_of, listed, same, sha256, size, verified
from hubq.nouns import RepoFile, Snapshot
from hubq.secrets import scrub_record

ENTRIES = 100_000  # of a listing; the Hub advises against more
ANSWER = 120.0  # seconds to wait for the Hub's answer; the client itself would wait for ever


class HuggingFace:
    """The Hub at `endpoint` (None: HF_ENDPOINT or huggingface.co) with `token` (None: HF_TOKEN or the saved login)."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._api = client.HfApi(endpoint, token, library_name="hubq", library_version=__version__)
        utils.disable_progress_bars()
        for handler in logging.getLogger("huggingface_hub").handlers:
            handler.addFilter(scrub_record)

    def snapshot(self, repo: str, revision: str | None = None) -> Snapshot:
        """See Hub.snapshot."""
        with self._plain_errors(repo, revision):
            commit = self._resolve(repo, revision)
            tree = self._api.list_repo_tree(repo, recursive=True, revision=commit)
            entries = list(islice(tree, ENTRIES + 1))
            if len(entries) > ENTRIES:
                raise HubError(f"{repo} lists more than {ENTRIES:,} files and folders", "hubq takes no such repository")
            files = [_repo_file(entry) for entry in entries if isinstance(entry, client.RepoFile)]
        return Snapshot(repo, commit, tuple(sorted(files, key=lambda file: file.path)))

    def _resolve(self, repo: str, revision: str | None) -> str:
        """The commit of a revision. Raises HubError where the repository has another name now: anybody may take the old one."""
        info = again(lambda: self._api.model_info(repo, revision=revision, timeout=ANSWER))
        if info.id != repo:
            raise HubError(f"{repo} is called {info.id} now", f"write {info.id}, if that is the one you mean")
        if not faults.COMMIT.fullmatch(info.sha or ""):
            raise HubError(f"{repo} has no commit that hubq can pin: the Hub answered {info.sha!r}")
        return str(info.sha)

    def dataset_commit(self, dataset: str, revision: str | None = None) -> str:
        """The commit of a dataset's revision."""
        with self._plain_errors(f"datasets/{dataset}", revision):
            info = again(lambda: self._api.dataset_info(dataset, revision=revision, timeout=ANSWER))
        return str(info.sha)

    def moved(self, snapshot: Snapshot, revision: str | None) -> str:
        """See Hub.moved."""
        with self._plain_errors(snapshot.repo, revision):
            commit = self._resolve(snapshot.repo, revision)
        return "" if commit == snapshot.commit else commit

    def read(self, snapshot: Snapshot, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See Hub.read."""
        file = listed(snapshot, path)
        stop = end_of(file, stop)
        if start >= stop:
            return b""
        with self._plain_errors(snapshot.repo, snapshot.commit):
            data = again(lambda: self._range(snapshot, path, start, stop))
        if len(data) != stop - start:
            raise HubError(f"{path} broke off: {len(data)} of {stop - start} bytes came from {snapshot.repo}", TRY_AGAIN)
        if stop - start == file.size:
            verified(file, data)
        return data

    def _range(self, snapshot: Snapshot, path: str, start: int, stop: int) -> bytes:
        url = client.hf_hub_url(snapshot.repo, path, revision=snapshot.commit, endpoint=self._api.endpoint)
        headers = utils.build_hf_headers(token=self._api.token, library_name="hubq", library_version=__version__)
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with utils.http_stream_backoff("GET", url, headers=headers, timeout=ANSWER, max_retries=0) as response:
            utils.hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skip + stop - start:
                    break
        return bytes(data[skip : skip + stop - start])

    def cached(self, snapshot: Snapshot, path: str) -> bool:
        """See Hub.cached."""
        file = listed(snapshot, path)
        found = client.try_to_load_from_cache(snapshot.repo, path, revision=snapshot.commit)
        return isinstance(found, str) and os.path.getsize(found) == file.size

    def cache(self) -> Path:
        """See Hub.cache."""
        return Path(client.constants.HF_HUB_CACHE)

    def address(self, repo: str, request: str = "") -> str:
        """See Hub.address."""
        place = self._branch(repo, request).replace("refs/pr", "/discussions")
        return f"{self._api.endpoint}/{repo}{place}"

    def pull(
        self, snapshot: Snapshot, paths: Sequence[str], progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[Path, tuple[RepoFile, ...]]:
        """See Hub.pull. The folder is the commit's own in the Hub cache (HF_HOME), shared with all programs."""
        wanted = [listed(snapshot, path) for path in paths]
        folder, files = Path(), []
        for file in wanted:
            local, checked = self._fetch(snapshot, file, progress)
            folder = local.parents[file.path.count("/")]
            files.append(checked)
        return folder, tuple(files)

    def _fetch(self, snapshot: Snapshot, file: RepoFile, progress: Any) -> tuple[Path, RepoFile]:
        """A file in the cache and its listing, checked. What does not match is deleted, then fetched again once."""
        for last in (False, True):
            local = self._download(snapshot, file, progress)
            try:
                checked = verified(file, local)
            except HubError as error:
                _forget(local)
                if last:
                    raise HubError(f"{snapshot.repo}, downloaded twice: {error.message}", error.hint) from None
            else:
                if progress:
                    progress(file.path, file.size, file.size)
                return local, checked
        raise AssertionError("unreachable")

    def _download(self, snapshot: Snapshot, file: RepoFile, progress: Any) -> Path:
        with self._plain_errors(snapshot.repo, snapshot.commit):
            found = again(
                lambda: self._api.hf_hub_download(
                    snapshot.repo, file.path, revision=snapshot.commit, tqdm_class=_meter(file, progress)
                )
            )
        return Path(found)

    def has_token(self) -> bool:
        """See Hub.has_token."""
        with self._plain_errors("the login"):
            return bool(self._api.token or client.get_token())

    def owner(self) -> str:
        """See Hub.owner."""
        return self._account()["name"] if self.has_token() else ""

    def check_writable(self, repo: str, create: bool = True, request: bool = False) -> None:
        """See Hub.check_writable."""
        self._need_token(repo)
        with self._plain_errors(repo), _patience():
            try:
                again(lambda: self._api.auth_check(repo, write=not request))
            except errors.RepositoryNotFoundError:
                if not create:
                    raise HubError(f"{repo} does not exist, and --no-create-repo forbids to create it", LOG_IN) from None
                self._check_creatable(repo)

    def head(self, repo: str, request: str = "") -> Snapshot:
        """See Hub.head."""
        return self.snapshot(repo, self._branch(repo, request) or None)

    def _branch(self, repo: str, request: str) -> str:
        """The branch of the open pull request of this title and account, the oldest of several, or ""."""
        if not request:
            return ""
        mine = self.owner()
        with self._plain_errors(repo), _patience():
            listed = again(lambda: [*self._api.get_repo_discussions(repo, author=mine, discussion_type="pull_request")])
        numbers = [one.num for one in listed if one.title == request and one.author == mine and one.status in ("open", "draft")]
        return f"refs/pr/{min(numbers)}" if numbers else ""

    def _check_creatable(self, repo: str) -> None:
        account = self._account()
        if repo.partition("/")[0] not in {account["name"], *(org["name"] for org in account.get("orgs", []))}:
            raise HubError(f"{repo} does not exist, and {account['name']} cannot create it: the owner is somebody else", LOG_IN)
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"the token cannot write to {repo}: it is for reading only", f"use one with write access: {LOG_IN}")

    def _account(self) -> dict[str, Any]:
        with self._plain_errors("the account"), _patience():
            return again(lambda: self._api.whoami(cache=True))

    def ensure(self, repo: str, private: bool = False) -> None:
        """See Hub.ensure. Without `private` the owner's default visibility applies."""
        self._need_token(repo)
        with self._plain_errors(repo), _patience():
            again(lambda: self._api.create_repo(repo, private=private or None, exist_ok=True))

    def push(
        self,
        repo: str,
        files: Mapping[str, Path | bytes],
        message: str,
        progress: Callable[[str, int, int], None] | None = None,
        head: Snapshot | None = None,
        delete: Collection[str] = (),
        request: str = "",
    ) -> Snapshot:
        """See Hub.push. Needs a token with write access."""
        for path in (*files, *delete):
            check_path(path)
        self._need_token(repo)
        hashes = {path: sha256(content) for path, content in files.items()}
        change = _Change(files, hashes, tuple(delete), message, request, head is not None)
        start = head or self.head(repo, request)
        changed = change.missing(start)
        if not changed:
            return start
        with self._plain_errors(repo), _patience():
            sent = {path: files[path] for path in changed if path in files}
            additions = self._upload(repo, sent, change, progress)
            deletions = [client.CommitOperationDelete(path, is_folder=False) for path in changed if path not in files]
            after = self._commit(start, [*additions, *deletions], change)
        if wrong := change.missing(after):
            raise HubError(
                f"{wrong[0]} in {repo} is not what was pushed: its SHA-256 should be {change.hashes.get(wrong[0])}, "
                f"but at commit {after.commit[:10]} the Hub lists {after.file(wrong[0])}",
                "run the command again: it sends only what differs",
            )
        return after

    def _upload(self, repo: str, files: Mapping[str, Content], change: _Change, progress: Any) -> list[Any]:
        """Sends the content of large files, which no commit refers to yet; returns the operations of the commit."""
        additions = []
        for path, content in files.items():
            report = progress or (lambda *_: None)
            report(path, 0, size(content))
            addition = client.CommitOperationAdd(path, content)
            # An empty .gitignore, or the Hub's own would silently drop files from the commit.
            self._api.preupload_lfs_files(repo, [addition], gitignore_content="", create_pr=bool(change.request))
            if addition.upload_info.sha256.hex() != change.hashes[path]:
                raise HubError(f"{path} was changed while it was uploaded", TRY_AGAIN)
            report(path, size(content), size(content))
            additions.append(addition)
        return additions

    def _commit(self, head: Snapshot, operations: list[Any], change: _Change) -> Snapshot:
        """One commit on top of `head`. After an answer that leaves it open what happened, the Hub's files decide."""
        for wait in (*faults.WAITS, None):
            try:
                return self.snapshot(head.repo, self._send(head, operations, change))
            except errors.HTTPError as error:
                if not (transient(error) or status(error) in (409, 412)):
                    raise
                now = self.head(head.repo, change.request)
                if not change.missing(now):
                    return now
                change.check_unmoved(head, now)
                if wait is None:
                    raise
                if now.commit == head.commit:
                    time.sleep(pause(error, wait))
                head = now
        raise AssertionError("unreachable")

    def _send(self, head: Snapshot, operations: list[Any], change: _Change) -> str:
        """The commit that the Hub made: on main, in the open pull request, or in one that it opens with it."""
        branch = self._branch(head.repo, change.request)
        opening = bool(change.request) and not branch
        return self._api.create_commit(
            head.repo,
            operations,
            commit_message=change.request if opening else change.message,
            commit_description=change.message if opening else None,
            parent_commit=head.commit,
            revision=branch or None,
            create_pr=opening,
        ).oid

    def _need_token(self, repo: str) -> None:
        if not self.has_token():
            raise HubError(f"writing to {repo} needs a token, and there is none", LOG_IN)

    @contextmanager
    def _plain_errors(self, repo: str, revision: str | None = None) -> Iterator[None]:
        """Turns what the client raises into HubError. The cause is dropped: its text may hold signed addresses."""
        _cap_waits()
        try:
            yield
        except HubqError:
            raise
        except (errors.HTTPError, errors.OIDCError, OSError, ValueError, RuntimeError) as error:
            raise explain(error, repo, revision, self._api.endpoint) from None


@dataclass(frozen=True, slots=True)
class _Change:
    """What a push shall do: files with their SHA-256, and paths to delete; `strict` where it suits one state only."""

    files: Mapping[str, Content]
    hashes: Mapping[str, str]
    delete: tuple[str, ...]
    message: str
    request: str
    strict: bool

    def missing(self, now: Snapshot) -> list[str]:
        """The paths that are not yet as they shall be."""
        unlike = [path for path, content in self.files.items() if not same(now.file(path), content, self.hashes[path])]
        return unlike + [path for path in self.delete if now.file(path)]

    def check_unmoved(self, head: Snapshot, now: Snapshot) -> None:
        """Raises Moved where this may not be committed on top of `now`, which was meant for `head`."""
        moved = [path for path in (*self.files, *self.delete) if now.file(path) != head.file(path)]
        if moved or (self.strict and now.commit != head.commit):
            raise Moved(
                f"somebody else changed {', '.join(moved) or 'files'} in {head.repo} during the push; nothing was committed",
                "run the command again, and not twice at the same time",
            ) from None


def _repo_file(entry: Any) -> RepoFile:
    if entry.lfs:
        return RepoFile(entry.path, entry.lfs.size, sha256=entry.lfs.sha256)
    return RepoFile(entry.path, entry.size, blob=entry.blob_id)


def _forget(path: Path) -> None:
    """Deletes a cached file: the link in the snapshot's folder, and every link behind it down to the content."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _meter(file: RepoFile, progress: Callable[[str, int, int], None] | None) -> type:
    """A class with those methods of tqdm that the client's downloads call, as its parameter `tqdm_class` wants one."""

    class Meter:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.done = initial

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, count: int) -> None:
            self.done += count
            if progress:
                progress(file.path, self.done, file.size)

        def ignore(self, *_: Any, **__: Any) -> None:
            return None

        close = update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    return Meter


def _cap_waits() -> None:
    """The client's session may be a new one at any time."""
    hooks = client.get_session().event_hooks["response"]
    if cap not in hooks:
        hooks.append(cap)


@contextmanager
def _patience() -> Iterator[None]:
    """Within this, requests without a timeout of their own wait ANSWER seconds."""
    session = client.get_session()
    before, session.timeout = session.timeout, ANSWER
    try:
        yield
    finally:
        session.timeout = before
