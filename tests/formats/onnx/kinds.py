"""The kinds of decoders that Optimum exports; runs in the environment that exports, where hubq.sealed.call calls `main`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def main(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """What Optimum's own table says of `task`."""
    import optimum.exporters.onnx.model_configs  # fills the table
    from optimum.exporters.tasks import TasksManager

    assert optimum.exporters.onnx
    table = TasksManager._SUPPORTED_MODEL_TYPE
    return {"kinds": sorted(kind for kind, exporters in table.items() if request["task"] in exporters.get("onnx", {}))}
