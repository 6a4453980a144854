"""Exports a decoder with mobius, which builds the graph from a definition of its own instead of tracing transformers.

Runs in the environment of mobius.txt, without hubq: hubq.sealed.call calls `main`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"


def main(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Export the model in folder_in, in Hub format, to folder_out.

    Request and answer are those of export_optimum. `misfits` are also names of weights that the graph has no place for: mobius
    leaves them out without a word.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import mobius
    import onnx
    import onnx_ir
    import torch
    import transformers
    from mobius._registry import registry
    from onnx_ir.passes.common import InlinePass

    folder, out = Path(request["folder_in"]), Path(request["folder_out"])
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in registry or request["task"] != TASK:
        return {"unsupported": [TASK] if config.get("model_type") in registry else []}
    tell("building the graph")
    unused = _watch_weights(mobius.ModelPackage)
    # "default" keeps to ONNX's own operators: graphs fused for a provider fail for partial rotary embeddings and others
    package = mobius.build(str(folder), dtype="f32" if request["dtype"] == "float32" else "f16", execution_provider="default")
    model = package["model"]
    empty = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings", True) else set()
    if misfits := sorted({*empty, *unused} - tied):
        return {"misfits": misfits}
    model.graph.name = "main_graph"  # it was the folder's
    InlinePass()(model)
    tell("writing the graph")
    package.save(str(out), progress_bar=False)
    packages = {"onnx": onnx, "onnx-ir": onnx_ir, "mobius-onnx": mobius, "torch": torch, "transformers": transformers}
    return {
        "graphs": [_describe(model, out / "model.onnx", out / "model.onnx.data")],
        "versions": {name: package.__version__ for name, package in packages.items()},
    }


def _watch_weights(kind: Any) -> list[str]:
    """A list that will hold the names of the weights that a package has no place for."""
    unused: list[str] = []
    apply = kind.apply_weights

    def watched(package: Any, weights: dict[str, Any], **settings: Any) -> None:
        unused.extend(weights.keys() - {name for model in package.values() for name in model.graph.initializers})
        apply(package, weights, **settings)

    kind.apply_weights = watched
    return unused


def _describe(model: Any, path: Path, data: Path) -> dict[str, Any]:
    """Names and external data of the graph."""
    return {
        "file": path.name,
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [value.name for value in model.graph.outputs],
        "data": {data.name: data.stat().st_size} if data.is_file() else {},
    }
