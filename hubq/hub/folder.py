"""A folder that acts as a hub: `root/owner/name/` or `root/name/` holds the files of one repository.

It has one state and no history: the commit is a hash of the listing. Files and folders whose names begin with a dot are kept
but not listed. A push builds the new state beside the old one and swaps them by renaming:

    name -> .name.old,  .name.new -> name,  .name.old is deleted

Killed between the two, the next call finishes the swap: `.name.new` is complete by then.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubq.disk import sync
from hubq.errors import HubError, Moved
from hubq.hub.files import CHUNK, Content, check_path, end_of, listed, open_content, same, sha256, size, verified
from hubq.nouns import RepoFile, Snapshot

if sys.platform != "win32":
    import fcntl


class Folder:
    """The folder `root` as a hub; it need not exist before the first push."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def snapshot(self, repo: str, revision: str | None = None) -> Snapshot:
        """See Hub.snapshot. Reads every file, since the listing holds every file's SHA-256."""
        folder = self._find(repo)
        with _plain_errors(folder):
            snapshot = self._listing(repo, folder)
        if revision not in (None, "main", snapshot.commit):
            raise HubError(
                f"{folder} has no revision {revision}: a folder holds one state only, now {snapshot.commit}",
                "leave the revision out",
            )
        return snapshot

    def read(self, snapshot: Snapshot, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See Hub.read."""
        file = listed(snapshot, path)
        stop = end_of(file, stop)
        with self._existing(snapshot, path).open("rb") as stream:
            stream.seek(start)
            data = stream.read(max(0, stop - start))
        if len(data) == file.size:
            verified(file, data)
        return data

    def cached(self, snapshot: Snapshot, path: str) -> bool:
        """See Hub.cached."""
        file, found = listed(snapshot, path), self._folder(snapshot.repo) / path
        return found.is_file() and size(found) == file.size

    def cache(self) -> None:
        """See Hub.cache."""

    def moved(self, snapshot: Snapshot, revision: str | None) -> str:
        """See Hub.moved. Files that changed since are found when they are pulled."""
        return ""

    def address(self, repo: str, request: str = "") -> str:
        """See Hub.address."""
        return str(self._folder(repo))

    def pull(
        self, snapshot: Snapshot, paths: Sequence[str], progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[Path, tuple[RepoFile, ...]]:
        """See Hub.pull. Copies nothing: the folder is the repository's own."""
        files = []
        for path in paths:
            files.append(verified(listed(snapshot, path), self._existing(snapshot, path)))
            if progress:
                progress(path, files[-1].size, files[-1].size)
        return self._find(snapshot.repo), tuple(files)

    def has_token(self) -> bool:
        """See Hub.has_token."""
        return True

    def owner(self) -> str:
        """See Hub.owner."""
        return ""

    def check_writable(self, repo: str, create: bool = True, request: bool = False) -> None:
        """See Hub.check_writable."""
        if request:
            raise HubError("a folder has no pull requests", "leave --pr out, or name a repository on the Hub with --to")
        if not create:
            self._find(repo)
        above = next(place for place in self._folder(repo).parents if place.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise HubError(f"hubq may not write to {above}", "correct its permissions or choose another folder")

    def head(self, repo: str, request: str = "") -> Snapshot:
        """See Hub.head."""
        return self.snapshot(repo)

    def ensure(self, repo: str, private: bool = False) -> None:
        """See Hub.ensure. `private` has no meaning here: the folder's permissions decide."""
        folder = self._folder(repo)
        with _plain_errors(folder), _alone(folder):
            _recover(folder)
            folder.mkdir(exist_ok=True)

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
        """See Hub.push. `message` is not kept. Pushed files are copied, the others stay the very same files."""
        for path in (*files, *delete):
            check_path(path)
            if _hidden(path):
                raise HubError(f"{path} begins with a dot, and a folder does not list such files", "rename the file")
        folder = self._find(repo)
        with _plain_errors(folder):
            hashes = {path: sha256(content) for path, content in files.items()}
        with _plain_errors(folder), _alone(folder):
            _recover(folder)
            now = _listing(repo, folder)
            if head and head.commit != now.commit:
                raise Moved(f"somebody else changed {folder} during the push; nothing was changed", "run the command again")
            changed = {path: files[path] for path in files if not same(now.file(path), files[path], hashes[path])}
            gone = [path for path in delete if now.file(path)]
            if not changed and not gone:
                return now
            after = self._build(repo, changed, gone, hashes, progress)
            try:
                os.rename(folder, _beside(folder, "old"))
            except OSError:
                shutil.rmtree(_beside(folder, "new"), ignore_errors=True)
                raise
            _recover(folder)
        return after

    def _build(
        self, repo: str, changed: Mapping[str, Content], gone: Sequence[str], hashes: Mapping[str, str], progress: Any
    ) -> Snapshot:
        """The new state beside the old one, on disk and read back; where that fails nothing of it stays."""
        folder = self._folder(repo)
        fresh = _beside(folder, "new")
        try:
            _write(folder, fresh, changed, gone, progress)
            after = _listing(repo, fresh)
            for path, content in changed.items():
                if not same(after.file(path), content, hashes[path]):
                    raise HubError(f"{path} changed while it was copied to {folder}", "run the command again")
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return after

    def _listing(self, repo: str, folder: Path) -> Snapshot:
        return _listing(repo, folder)

    def _folder(self, repo: str) -> Path:
        check_path(repo)
        if repo.count("/") > 1 or _hidden(repo):
            raise HubError(f"{repo!r} is not the name of a repository", "write it as owner/name")
        return (self.root / repo).resolve()

    def _find(self, repo: str) -> Path:
        folder = self._folder(repo)
        if not folder.is_dir() and _beside(folder, "old").exists():
            with _alone(folder):
                _recover(folder)
        if not folder.is_dir():
            raise HubError(f"{self.root} holds no repository {repo}", f"put its files into {folder}")
        return folder

    def _existing(self, snapshot: Snapshot, path: str) -> Path:
        found = self._find(snapshot.repo) / path
        if not found.is_file():
            raise HubError(f"{found} is gone since the folder was listed", "run the command again")
        return found


class Files(Folder):
    """Some files of the folder `root` as a hub of one repository, whatever that is called; nothing is pushed there."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(root)
        self._names = names

    def _listing(self, repo: str, folder: Path) -> Snapshot:
        return _pinned(repo, folder, self._names)

    def _folder(self, repo: str) -> Path:
        return self.root


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _beside(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


def _listing(repo: str, folder: Path) -> Snapshot:
    """All files of a folder."""
    names = (Path(top, name) for top, _, found in os.walk(folder) for name in found)
    paths = sorted((name.relative_to(folder).as_posix(), name) for name in names)
    return _pinned(repo, folder, [path for path, name in paths if not _hidden(path) and name.is_file()])


def _pinned(repo: str, folder: Path, paths: Sequence[str]) -> Snapshot:
    """Files with their SHA-256. The commit is the SHA-256 over the listing."""
    files, digest = [], hashlib.sha256()
    for path in paths:
        files.append(RepoFile(path, size(folder / path), sha256(folder / path)))
        digest.update(f"{path}\0{files[-1].size}\0{files[-1].sha256}\n".encode())
    return Snapshot(repo, digest.hexdigest(), tuple(files))


def _write(folder: Path, fresh: Path, changed: Mapping[str, Content], gone: Sequence[str], progress: Any) -> None:
    """The new state in `fresh`, on disk: `folder`'s files as hard links less those `gone`, and the changed ones as copies."""
    shutil.copytree(folder, fresh, symlinks=True, copy_function=_link)
    for path in gone:
        (fresh / path).unlink()
    for path, content in changed.items():
        target = fresh / path
        if not target.resolve().is_relative_to(fresh.resolve()):
            raise HubError(f"{path} would leave {folder}: a folder on its way is a link", "remove the link")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # the old file is a hard link: never write into it
        _copy(path, content, target, progress)
    for top, _, _ in os.walk(fresh):
        sync(Path(top))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _copy(path: str, content: Content, target: Path, progress: Any) -> None:
    total, done = size(content), 0
    with open_content(content) as source, target.open("xb") as stream:
        while chunk := source.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if progress:
                progress(path, done, total)
        stream.flush()
        os.fsync(stream.fileno())


def _recover(folder: Path) -> None:
    """Finishes a swap, from wherever it stopped, and removes a new state that was never completed."""
    old, fresh = _beside(folder, "old"), _beside(folder, "new")
    if old.exists() and not folder.exists():
        os.rename(fresh if fresh.exists() else old, folder)
        sync(folder.parent)
    for rest in (old, fresh):
        if rest.exists():
            shutil.rmtree(rest)


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HubError(f"{error.filename or folder}: {error.strerror}", "free some space or correct the permissions") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other hubq processes from writing beside `folder` until the end of the block (not on Windows)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
