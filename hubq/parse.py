"""Reading JSON that others wrote: what it takes of memory and time is bounded before any of it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MOST = 1_000_000  # values; the headers and indices of the largest models have a fifth of it


def values(data: bytes) -> int:
    """How many values a JSON document can hold at most: its tables, lists and commas."""
    return sum(data.count(mark) for mark in (b"{", b"[", b","))


def read_json(data: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON document; `pairs` makes its tables, see json.loads.

    Raises ValueError for what is no JSON, is nested too deeply, or holds more than MOST values.
    """
    if values(data) > MOST:
        raise ValueError(f"it holds more than {MOST:,} values")
    try:
        return json.loads(data, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
