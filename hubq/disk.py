"""What the work store, a folder hub and the folder of cards need of the disk."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path


def sync(folder: Path) -> None:
    """Make a folder's entries durable (not on Windows, where folders cannot be synced)."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(path: Path, data: bytes) -> None:
    """Put a file in its place whole or not at all: written aside, fsynced, renamed."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # another process may be writing the same
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)
