"""Where models come from and where releases go: the Hugging Face Hub, or a folder that acts as one.

This package is the only one that imports huggingface_hub, and only once `connect` is asked for the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hubq.hub.folder import Files, Folder
from hubq.nouns import RepoFile, Snapshot

__all__ = ["Files", "Folder", "Hub", "Progress", "connect", "dataset_commit"]

Progress = Callable[[str, int, int], None]
"""Called with a file's path, the bytes done so far and its size in bytes."""


class Hub(Protocol):
    """What both hubs do. Every method raises HubError with a hint; no message holds a token or a signed address."""

    def snapshot(self, repo: str, revision: str | None = None) -> Snapshot:
        """`revision` (a branch, tag or commit; None: the newest state) resolved to a commit once, with every file there."""

    def read(self, snapshot: Snapshot, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes `start` to `stop` (None: the end) of a file, straight from the hub; nothing is stored.

        A file that is read whole is checked against the listing.
        """

    def cached(self, snapshot: Snapshot, path: str) -> bool:
        """Whether the file lies on this machine already, with the listed size; `pull` still checks its hash."""

    def cache(self) -> Path | None:
        """The folder that `pull` downloads into, or None where it downloads nothing."""

    def moved(self, snapshot: Snapshot, revision: str | None) -> str:
        """The commit that `revision` means by now, or "" where that is still the snapshot's (of a folder always)."""

    def address(self, repo: str, request: str = "") -> str:
        """Where a person finds a repository: its page, that of its pull request `request`, see `head`, or its folder."""

    def pull(
        self, snapshot: Snapshot, paths: Sequence[str], progress: Progress | None = None
    ) -> tuple[Path, tuple[RepoFile, ...]]:
        """The files on disk, each checked against the listed size and hash: (folder that holds them by path, listings).

        The listings come in the order of `paths`, with SHA-256 filled in. A damaged file is deleted and fetched again once.
        """

    def has_token(self) -> bool:
        """Whether there is a login, valid or not. A folder needs none: True."""

    def owner(self) -> str:
        """The account that the login belongs to; "" without a login and for a folder."""

    def check_writable(self, repo: str, create: bool = True, request: bool = False) -> None:
        """Raises HubError where `ensure` and `push` are known to fail: no token, no right to write; asked before any work.

        Without `create` the repository has to be there; with `request` only a pull request will be opened.
        """

    def head(self, repo: str, request: str = "") -> Snapshot:
        """The state that a push builds on: that of the open pull request called `request` by this account, or the newest."""

    def ensure(self, repo: str, private: bool = False) -> None:
        """Creates the repository where there is none; one that exists stays as it is."""

    def push(
        self,
        repo: str,
        files: Mapping[str, Path | bytes],
        message: str,
        progress: Progress | None = None,
        head: Snapshot | None = None,
        delete: Collection[str] = (),
        request: str = "",
    ) -> Snapshot:
        """All files in one commit, or none of them; returns the snapshot that holds them, read back and compared.

        What is there already is not sent again, and without a difference there is no commit. The files in `delete` go in the
        same commit, all others stay as they are. A commit whose answer was lost counts if the hub holds it. `head` is the
        state that the files were made for: Moved is raised where the repository is in another one by now; without it, only
        where somebody else changed one of the files. With `request` the commit goes into the pull request that `head` tells
        of, which is opened with it if need be. Raises HubError where what was read back differs.
        """


def connect(place: str | Path | None = None, writing: bool = False) -> Hub:
    """The Hugging Face Hub (None; HF_ENDPOINT and HF_TOKEN apply), or the folder `place` as a hub.

    HUBQ_PUSH_TOKEN, where it is set, is the token for `writing`; nothing else ever sees it.
    """
    if place is not None:
        return Folder(Path(place))
    from hubq.hub.huggingface import HuggingFace

    return HuggingFace(token=(writing and os.environ.get("HUBQ_PUSH_TOKEN")) or None)


def dataset_commit(dataset: str, revision: str | None = None) -> str:
    """The commit that a dataset on the Hub is at now, or at a branch or tag. Raises HubError."""
    from hubq.hub.huggingface import HuggingFace

    return HuggingFace().dataset_commit(dataset, revision)
