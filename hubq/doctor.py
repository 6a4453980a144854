"""What is installed, and what it unlocks."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from typing import Any

from hubq import __version__, affected
from hubq.store import default_root

# package -> (what it unlocks, how to get it)
PACKAGES = {
    "huggingface_hub": ("pulling from and pushing to the Hub", "pip install huggingface_hub"),
    "gguf": ("writing GGUF files", "pip install gguf"),
    "numba": ("encoding weights", "pip install numba"),
    "datasets": ("text to measure on", "pip install datasets"),
    "torch": ("the reference model and the engine `weights`", "pip install torch"),
    "transformers": ("the reference model and the engine `weights`", "pip install transformers"),
    "onnx": ("writing ONNX files", "pip install 'hubq[onnx]'"),
    "onnxruntime": ("writing ONNX files, and the engine `onnxruntime`: what their users will run", "pip install 'hubq[onnx]'"),
    "onnxruntime-genai": ("the level onnx:genai-int4", "pip install 'hubq[genai]'"),
    "ray": ("`--engine ray`: steps of a release on several machines", "pip install 'hubq[ray]'"),
    "llama-cpp-python": ("the engine `llama.cpp`: what users of the files will run", "pip install 'hubq[llama]'"),
}


def checks() -> list[dict[str, Any]]:
    """Each thing looked for: its `name`, what was `found` (empty: nothing), what it `unlocks`, and the `hint` to get it."""
    rows = [_row("hubq", f"{__version__} on Python {platform.python_version()}", "", "")]
    rows += [_row(name, _version(name), unlocks, hint) for name, (unlocks, hint) in PACKAGES.items()]
    rows += _environments()
    faults = "; ".join(affected.faults()) or "none in the versions that are here"
    rows.append(_row("known faults", faults, "", "pip install --upgrade hubq " + " ".join(affected.LEAST)))
    rows.append(_row("Hub account", _account(), "pushing, and private or gated models", "hf auth login"))
    rows.append(_row("GPU", _gpu() or "none, and none is needed", "measuring faster", ""))
    rows.append(_row("cores", str(os.cpu_count() or 1), "building and measuring in parallel", ""))
    root = default_root()
    where = next(parent for parent in (root, *root.parents) if parent.exists())
    rows.append(
        _row(
            "work store", f"{root}, {shutil.disk_usage(where).free / 1e9:.0f} GB free", "runs that go on where they stopped", ""
        )
    )
    return rows


def _environments() -> list[dict[str, Any]]:
    from hubq.formats.onnx.exporters import EXPORTERS
    from hubq.sealed import state

    rows = []
    for name, exporter in EXPORTERS.items():
        found = state(exporter.environment)
        told = "" if found.status == "absent" else f"{found.status}, {found.size / 1e9:.1f} GB {found.fault}".strip()
        unlocks = "exporting to ONNX" if name == "optimum" else "exporting kinds to ONNX that Optimum does not know"
        hint = f"hubq makes it when it is needed, or `hubq env create {name}`"
        rows.append(_row(f"{exporter.title}'s environment", told, unlocks, hint))
    return rows


def _row(name: str, found: str, unlocks: str, hint: str) -> dict[str, Any]:
    return {"name": name, "found": found, "unlocks": unlocks, "hint": hint}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _account() -> str:
    from hubq.hub import connect

    return "token found" if connect().has_token() else ""


def _gpu() -> str:
    if not _version("torch"):
        return ""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
