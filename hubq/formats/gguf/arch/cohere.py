"""Command R (cohere) and Command R7B (cohere2): attention and feed-forward side by side behind one norm, and scaled logits.

The rotary embedding turns neighbours, as llama.cpp does, so no rows move. In cohere2 only layers with a window have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.errors import Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, PROJECTIONS, ignored, last
from hubq.formats.gguf.hparams import (
    WITHOUT_FACTORS,
    Config,
    choice,
    common,
    flag,
    heads,
    number,
    only,
    real,
    rope,
    rope_settings,
    sliding,
)
from hubq.formats.gguf.tensors import Table, Tensor, draw

LAYER: Table = {
    "input_layernorm.weight": "hidden",
    **PROJECTIONS,
    **FEED_FORWARD,
}
HEAD_NORMS: Table = {"self_attn.q_norm.weight": "heads head", "self_attn.k_norm.weight": "kv_heads head"}
NORMED = 64  # llama.cpp looks for norms of queries and keys in models of so many layers and more, and only there

# what transformers takes for settings that config.json leaves out
DEFAULTS = {"vocab_size": 256000, "max_position_embeddings": 8192, "tie_word_embeddings": True}
COHERE = {**DEFAULTS, "rope_theta": 500000.0}
COHERE2 = {**DEFAULTS, "sliding_window": 4096}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = {**COHERE, **config}
    size = heads(config)
    if flag(config, "use_qk_norm") != (size["layers"] >= NORMED):
        raise Unsupported(
            f"llama.cpp takes models of this family to have norms of queries and keys from {NORMED} layers on, and only then",
            f"this one has {size['layers']} layers and `use_qk_norm` {flag(config, 'use_qk_norm')}: use another model",
        )
    # the context that it was trained for: the other setting is what transformers allocated
    return _keys(config, size) | {".context_length": number(config, "model_max_length", config["max_position_embeddings"])}


def cohere2_keys(config: Config) -> dict[str, Any]:
    """Those of Command R, and its windows."""
    config = {**COHERE2, **config}
    only(config, "use_qk_norm", False)
    only(config, "rotary_pct", 1)
    size = heads(config)
    windows = sliding(config, size["layers"], 4)
    window = {".attention.sliding_window": number(config, "sliding_window"), ".attention.sliding_window_pattern": windows}
    return _keys(config, size) | window


def _keys(config: Config, size: Mapping[str, int]) -> dict[str, Any]:
    choice(config, "hidden_act", ("silu", "swish"))
    only(config, "attention_bias", False)
    only(config, "tie_word_embeddings", True)
    only(config, "head_dim", size["hidden"] // size["heads"])
    only(rope_settings(config), "partial_rotary_factor", 1)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {
        ".attention.layer_norm_epsilon": real(config, "layer_norm_eps", 1e-5),
        ".logit_scale": real(config, "logit_scale", 0.0625),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("command-r", {**COHERE, **config}, stored, {**LAYER, **HEAD_NORMS} if flag(config, "use_qk_norm") else LAYER)


def cohere2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("cohere2", {**COHERE2, **config}, stored, LAYER)


def _draw(architecture: str, config: Config, stored: Mapping[str, StoredTensor], layer: Table) -> list[Tensor]:
    size = heads(config)
    return draw(architecture, size, stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))


MODELS = {
    "cohere": Family(("CohereForCausalLM",), "command-r", keys, tensors),
    "cohere2": Family(("Cohere2ForCausalLM",), "cohere2", cohere2_keys, cohere2_tensors),
}
