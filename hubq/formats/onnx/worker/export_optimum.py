"""Exports a model with Optimum. Runs in the environment of optimum.txt, without hubq: hubq.sealed.call calls `main`."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Export the model in folder_in, in Hub format, to folder_out.

    The request has Optimum's name of a `task` and a `dtype` (float32 or float16). The answer has `graphs`, each with its
    `file`, `inputs`, `outputs` and `data` (file of external data -> bytes needed), and `versions`; or only `unsupported`, the
    tasks that Optimum has for a model of this kind; or only `misfits`, names of parameters that the weights lack or have in
    another shape: transformers would fill them with random numbers.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if importlib.util.find_spec("kernels"):  # transformers 4.57 would load from it what a config names (CVE-2026-4372)
        raise RuntimeError("the package kernels is in the environment: make it again with hubq env remove optimum")
    import onnx
    import optimum.version
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager
    from optimum.exporters.utils import DisableCompileContextManager

    folder, out, task = Path(request["folder_in"]), Path(request["folder_out"]), request["task"]
    transformers.utils.logging.disable_progress_bar()
    tasks = _tasks(TasksManager, json.loads((folder / "config.json").read_text()).get("model_type"))
    if task not in tasks:
        return {"unsupported": sorted(tasks)}
    tell("loading the model")
    with DisableCompileContextManager():
        model, report = _load(TasksManager, folder, task, getattr(torch, request["dtype"]))
    if misfits := _misfits(report, task):
        return {"misfits": misfits}
    model.config.use_cache = task.endswith("-with-past")
    tell(f"tracing the model for {task}")
    onnx_export_from_model(model, out, task=task, device="cpu", do_validation=False)
    tell("reading what came out")
    packages = {"onnx": onnx, "optimum": optimum.version, "torch": torch, "transformers": transformers}
    return {
        "graphs": [_describe(onnx, path) for path in sorted(out.glob("*.onnx"))],
        "versions": {name: package.__version__ for name, package in packages.items()},
    }


def _tasks(manager: Any, kind: Any) -> list[str]:
    try:
        return list(manager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers"))
    except (KeyError, AttributeError):
        return []


def _load(manager: Any, folder: Path, task: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of what it found in the weights."""
    kind = manager.get_model_class_for_task(task, framework="pt", library="transformers")
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )


def _misfits(report: dict[str, Any], task: str) -> list[str]:
    """Parameters without weights, but for those that features do not depend on: the pooler has an output of its own."""
    names = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return sorted(name for name in names if not (task == "feature-extraction" and name.startswith("pooler.")))


def _describe(onnx: Any, path: Path) -> dict[str, Any]:
    """Names and external data of a graph, as its file tells."""
    model = onnx.load(path, load_external_data=False)
    held = {tensor.name for tensor in model.graph.initializer}
    return {
        "file": path.name,
        "inputs": [value.name for value in model.graph.input if value.name not in held],
        "outputs": [value.name for value in model.graph.output],
        "data": _external(onnx, model),
    }


def _external(onnx: Any, model: Any) -> dict[str, int]:
    """The bytes that a graph needs of each file of external data."""
    needed: dict[str, int] = {}
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if onnx.external_data_helper.uses_external_data(tensor):
            at = onnx.external_data_helper.ExternalDataInfo(tensor)
            needed[at.location] = max(needed.get(at.location, 0), int(at.offset or 0) + int(at.length or 0))
    return needed
