"""What runs for every change, and what every night only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of a test, of which only the `quick` ones run for every change; tuples are several at once."""
    nightly = pytest.mark.thorough

    def later(value: Any) -> Any:
        return pytest.param(*value, marks=nightly) if isinstance(value, tuple) else pytest.param(value, marks=nightly)

    return [value if value in quick else later(value) for value in values]
