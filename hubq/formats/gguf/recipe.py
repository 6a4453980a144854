"""Which storage type each tensor gets at a level: llama.cpp's choices (llama-quant.cpp), without an importance matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubq.formats.gguf.arch import Tensor
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.levels import MIXES
from hubq.nouns import Recipe


@dataclass(frozen=True, slots=True)
class Model:
    """What the choice of types depends on besides the tensors: numbers of layers, attention heads and key-value heads."""

    layers: int
    heads: int
    kv_heads: int

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for Llama 70B, whose attention values it spares."""
        return self.layers == 80 and self.heads != self.kv_heads


# condition of a mix's rule -> does it hold for the i-th of n tensors of its category?
CONDITIONS: dict[str, Callable[[int, int, Model], bool]] = {
    "always": lambda i, n, model: True,
    "first_2": lambda i, n, model: i < 2,
    "first_4": lambda i, n, model: i < 4,
    "first_eighth": lambda i, n, model: i < n // 8,
    "first_sixteenth": lambda i, n, model: i < n // 16,
    "more_bits": lambda i, n, model: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
    "grouped_by_4": lambda i, n, model: model.heads // model.kv_heads >= 4,
}

# part of a tensor's name -> category; the first that fits
CATEGORIES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_output.weight": "attn_output",
    "ffn_down": "ffn_down",
}

# a row whose length the type's block does not divide is stored in this type instead, and where that does not fit either in F16
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

FLOATS = ("F32", "F16", "BF16")


def recipe(level: str, tensors: Sequence[Tensor], model: Model) -> Recipe:
    """The recipe of a level ("Q4_K_M") for the tensors of one model."""
    mix = MIXES[level]
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    places = _places(tensors, model)
    types, fallbacks = {}, 0
    for tensor in tensors:
        if not quantizable(tensor):
            types[tensor.name] = "F32"
            continue
        wanted = mix.base if mix.base in FLOATS else _wanted(level, tensor, places.get(tensor.name), tied, model)
        types[tensor.name] = fitting(wanted, tensor.shape[-1]) if mix.base not in FLOATS else wanted
        fallbacks += types[tensor.name] != wanted
    return Recipe(f"gguf:{level}", types, fallbacks)


def quantizable(tensor: Tensor) -> bool:
    """Whether a tensor may be stored in less than 32 bits: matrices may, vectors and norms may not."""
    return len(tensor.shape) >= 2 and tensor.name.endswith("weight") and "_norm.weight" not in tensor.name


def fitting(wanted: str, columns: int) -> str:
    """The type itself, or its fallback where its blocks do not divide a row of so many columns."""
    for type_name in (wanted, FALLBACK.get(wanted, wanted)):
        if columns % TYPES[type_name].block == 0:
            return type_name
    return "F16"


def _places(tensors: Sequence[Tensor], model: Model) -> dict[str, tuple[str, int, int]]:
    """Tensor name -> (category, its place among the category's tensors by layer, how many llama.cpp counts there)."""
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        category = next((category for part, category in CATEGORIES.items() if part in tensor.name), None)
        if category:
            found.setdefault(category, []).append(tensor.name)
    places: dict[str, tuple[str, int, int]] = {}
    for category, names in found.items():
        count = len(names) if category == "attn_v" else model.layers
        places |= {name: (category, i, count) for i, name in enumerate(sorted(names, key=_layer))}
    return places


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _wanted(level: str, tensor: Tensor, place: tuple[str, int, int] | None, tied: bool, model: Model) -> str:
    base = MIXES[level].base
    if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
        return "Q8_0" if base == "Q8_0" or tensor.shape[-1] % TYPES[base].block else "Q6_K"
    if place is None:
        return base
    category, i, count = place
    rules = MIXES[level].rules.get(category, ())
    wanted = next((type_name for condition, type_name in rules if CONDITIONS[condition](i, count, model)), base)
    return "Q5_K" if category == "attn_v" and model.is_70b and wanted in ("Q3_K", "Q4_K") else wanted
