"""Files as a hub lists them: which names are safe to use, and whether bytes are the ones that the listing promises."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

from hubq.errors import HubError
from hubq.nouns import RepoFile, Snapshot

CHUNK = 1 << 20
WHOLE = 100_000_000  # bytes of a file that is read into memory at once; tokenizers take up to a third of it
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
AGAIN = "run the command again; if it fails again, tell the owner of the repository: the file there may be damaged"

Content = Path | bytes


def check_path(path: str) -> None:
    """Raises HubError unless `path` is a plain relative path that stays inside a folder on Linux, macOS and Windows alike.

    Refused: empty, absolute and drive paths, backslashes, `.` and `..`, control and invisible characters, Windows device
    names (learn.microsoft.com/windows/win32/fileio/naming-a-file), and parts that end in a dot or a space.
    """
    bad = not path.isprintable() or any(mark in path for mark in '\\:<>"|?*')
    if bad or not all(_safe(part) for part in path.split("/")):
        raise HubError(f"the file name {path!r} is not safe to use", "ask the repository's owner to rename the file")


def _safe(part: str) -> bool:
    return bool(part) and part[-1] not in ". " and part.split(".")[0].strip().upper() not in DEVICES


def sha256(content: Content) -> str:
    """SHA-256 of a file or of bytes, 64 hexadecimal digits."""
    with open_content(content) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_blob(content: Content) -> str:
    """The SHA-1 by which git names this content, 40 hexadecimal digits (git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    digest = hashlib.sha1(b"blob %d\0" % size(content), usedforsecurity=False)
    with open_content(content) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def size(content: Content) -> int:
    """Length in bytes of a file or of bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def open_content(content: Content) -> io.BufferedReader | io.BytesIO:
    """A stream over a file or over bytes."""
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def listed(snapshot: Snapshot, path: str) -> RepoFile:
    """The listing of `path`, whose name is safe to use. Raises HubError where the name is not safe or there is no such file."""
    check_path(path)
    if file := snapshot.file(path):
        return file
    raise HubError(f"{snapshot.repo} has no file {path} at commit {snapshot.commit[:10]}")


def end_of(file: RepoFile, stop: int | None) -> int:
    """Where a read ends that goes to `stop` or, without one, to the end. Raises HubError for whole files beyond WHOLE."""
    if stop is None and file.size > WHOLE:
        raise HubError(
            f"{file.path} has {file.size:,} bytes, and hubq reads files of its kind up to {WHOLE:,}",
            "tell the owner of the repository: such a file is small everywhere else",
        )
    return file.size if stop is None else min(stop, file.size)


def verified(file: RepoFile, content: Content) -> RepoFile:
    """`file` with its SHA-256 filled in, after `content` was found to be what the listing promises.

    Large files are listed with a SHA-256, small ones with the SHA-1 of git's blob. Raises HubError, with both hashes.
    """
    if size(content) != file.size:
        raise HubError(f"{file.path} has {size(content)} bytes, but the hub lists {file.size}", AGAIN)
    digest = sha256(content)
    got, promised = (digest, file.sha256) if file.sha256 else (git_blob(content), file.blob)
    if got != promised:
        raise HubError(f"{file.path} is not what the hub lists: its hash is {got}, the listing says {promised}", AGAIN)
    return replace(file, sha256=digest)


def same(file: RepoFile | None, content: Content, digest: str) -> bool:
    """Whether the listing `file` (None: not listed) has this content, whose SHA-256 is `digest`."""
    if file is None or file.size != size(content):
        return False
    return file.sha256 == digest if file.sha256 else file.blob == git_blob(content)
