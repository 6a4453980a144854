"""What runs for every change, and what every night only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of a test, of which only the `quick` ones run for every change."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.thorough) for value in values]
