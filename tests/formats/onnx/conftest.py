"""The real environment that Optimum exports in: made once, in build/sealed, which takes some minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).parents[3] / "build" / "sealed"


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBQ_HOME", str(HOME))
        yield
