"""What Optimum's ORTModelForCausalLM generates; runs in the environment that exports, where hubq.sealed.call calls `main`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def main(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """By file of `files`: the ids that the model in folder_in makes of `ids`."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    ids, found = torch.tensor([request["ids"]]), {}
    for file in request["files"]:
        model = ORTModelForCausalLM.from_pretrained(request["folder_in"], subfolder="onnx", file_name=file)
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        found[file] = made[0].tolist()
    return found
