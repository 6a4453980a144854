"""Releases made by hand, for tests of what is pushed: files of a few bytes, with all facts that a card needs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from hubq.deliver import Delivery, deliver
from hubq.formats import open_format
from hubq.hub import Hub
from hubq.hub.files import sha256
from hubq.nouns import Artifact, ImportanceMatrix, Release

TARGET = "me/Tiny-GGUF"
MATRIX = b"GGUF of an importance matrix"


def content(level: str) -> bytes:
    """The bytes of a level's file."""
    return f"GGUF {level}".encode() * 99


def release(*levels: str, matrix: bool = False, **changes: Any) -> Release:
    """A release of these levels; with `matrix` they were made with one."""
    used = hashlib.sha256(MATRIX).hexdigest() if matrix else None
    files = [
        Artifact(
            f"gguf:{level}",
            Path(f"Tiny-{level}.gguf"),
            len(content(level)),
            sha256(content(level)),
            1000,
            {level: 3},
            0,
            level,
            imatrix=used,
        )
        for level in levels
    ]
    matrices = (ImportanceMatrix("Tiny-imatrix.gguf", used, ("text:all",), 3, 2, 512),) if used else ()
    facts: dict[str, Any] = {"source": "org/Tiny", "commit": "c" * 40, "architecture": "LlamaForCausalLM", "weights": 1000}
    facts |= {"target": TARGET, "card": {}, "artifacts": tuple(files), "imatrices": matrices}
    facts |= {"command": "hubq publish {model} {build}"}
    return Release(**facts | changes)


def payload(made: Release) -> dict[str, bytes]:
    """The files of a release by their places."""
    files = {file.path.name: content(file.level.partition(":")[2]) for file in made.artifacts}
    return files | {matrix.file: MATRIX for matrix in made.imatrices}


def put(hub: Hub, made: Release, **options: Any) -> Delivery:
    """Delivers a release to TARGET."""
    return deliver(hub, TARGET, made, payload(made), open_format("gguf"), "Add levels", **options)


def check_whole(files: dict[str, bytes], levels: set[str], foreign: set[str] = frozenset({"notes.txt"})) -> None:
    """What release.json and SHA256SUMS list is there, all of it and nothing else, and card and record name the same levels."""
    record = json.loads(files["release.json"])
    assert {entry["level"] for entry in record["files"]} == {f"gguf:{level}" for level in levels}
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert list(sums) == sorted(sums) and sums.keys() == files.keys() - foreign - {"SHA256SUMS"}
    assert {path: sha256(files[path]) for path in sums} == sums
    for entry in record["files"]:
        assert sums[entry["path"]] == entry["sha256"] and entry["path"] in files["README.md"].decode()


if __name__ == "__main__":  # puts a level in a process of its own: LEVEL, and the folder that acts as a hub, if it is one
    from hubq.hub import connect

    put(connect(sys.argv[2] if len(sys.argv) > 2 else None), release(sys.argv[1]))
