"""Tiny variants of every family, for tests/formats/gguf/test_families.py. One file per file in hubq/formats/gguf/arch.

A file holds VARIANTS: name -> Variant. Between them they should show whatever a family's tables and keys tell apart: tied or
not, biases, grouped heads, kinds of rotary embedding, windows, experts, shared experts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny


@dataclass(frozen=True)
class Variant:
    """A model of random weights: the name of its class in transformers, and settings of its config.

    The usual settings of `SHAPE` are there already. `rewrite` may change the tensors that transformers saves (name -> float32)
    into what repositories of that kind hold, `config` entries of config.json; where transformers does not know that kind,
    `original` keeps beside it what was saved. `tolerance` is the greatest difference of logits allowed, in their standard
    deviations.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    original: bool = False
    tolerance: float = 1e-3


# 256 divides rows, so that levels need no fallback
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": tiny.VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}


def variants() -> dict[str, Variant]:
    """Every variant as "file-name"."""
    found = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for name, variant in importlib.import_module(f"{__name__}.{module}").VARIANTS.items():
            found[f"{module}-{name}"] = variant
    return found


def original(folder: Path) -> Path:
    """What transformers can load to compute what the model in `folder` should: that model, or the one that it was made from."""
    kept = folder.with_name("Original")
    return kept if kept.exists() else folder


def make(variant: Variant, folder: Path) -> Path:
    """Write the model in Hub format, with random norms and biases: fresh ones are ones and zeros, which hides mistakes."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    kind = getattr(transformers, variant.model)
    settings = {**SHAPE, **variant.settings}
    torch.manual_seed(0)
    model = kind(kind.config_class(**{key: value for key, value in settings.items() if value is not ...}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            parameter.copy_(parameter.bfloat16())  # so that a BF16 file holds the same
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder)
    if variant.original:
        model.save_pretrained(folder.with_name("Original"))
    if variant.rewrite:
        tensors = variant.rewrite(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if variant.config:
        tiny.config(folder, **variant.config)
    tiny.tokenizer(folder)
    (folder / "README.md").write_text(tiny.CARD)
    return folder
