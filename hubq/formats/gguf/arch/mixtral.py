"""Mixtral: Llama whose feed-forward layers are mixtures of experts, of which a router picks a few for each token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import Tensor, llama, number

ARCHITECTURES = ("MixtralForCausalLM",)
GGUF = "llama"

MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS in llama.cpp

ATTENTION = {name: shape for name, shape in llama.LAYER.items() if not name.startswith("mlp.")}
ROUTER = {"block_sparse_moe.gate.weight": "experts hidden"}
# the tensors of each expert: gate, down and up
EXPERT = {"w1.weight": "inner hidden", "w2.weight": "hidden inner", "w3.weight": "inner hidden"}


def dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of a model. Raises BadSource where config.json lacks one or they do not fit together."""
    experts, used = number(config, "num_local_experts", 8), number(config, "num_experts_per_tok", 2)
    if not used <= experts <= MOST_EXPERTS or experts < 2:
        raise BadSource(f"config.json: {used} of {experts} experts for a token make no sense", AGAIN)
    return llama.dimensions(config) | {"experts": experts, "used": used}


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys, without the prefix `llama`."""
    size = dimensions(config)
    return llama.keys(config) | {".expert_count": size["experts"], ".expert_used_count": size["used"]}


def tensors(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; each of an expert's three is stacked over all experts of its layer.

    Raises BadSource for any that is missing, superfluous or of another shape than config.json says.
    """
    size = dimensions(config)
    if size["layers"] * size["experts"] > len(stored):
        wanted = f"{size['layers']} layers of {size['experts']} experts"
        raise BadSource(f"config.json calls for {wanted}, the checkpoint holds {len(stored)} tensors", AGAIN)
    layer = ATTENTION | ROUTER
    for name, shape in EXPERT.items():
        layer |= {f"block_sparse_moe.experts.{expert}.{name}": shape for expert in range(size["experts"])}
    stacks: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for name, found in llama.matched(config, stored, size, layer).items():
        stack = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        sources, _ = stacks.get(stack, ((), ()))
        stacks[stack] = ((*sources, name), (len(sources) + 1, *found) if stack != name else found)
    return llama.listed(config, stacks)
