"""What both the work store and a folder hub need of the disk."""

from __future__ import annotations

import os
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
