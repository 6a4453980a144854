"""EXAONE 4: norms behind attention and feed-forward instead of before them, norms of queries and keys.

The large model has windows on most layers, and rotary embeddings on those only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.errors import Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, PROJECTIONS, ignored, last
from hubq.formats.gguf.hparams import Config, choice, common, heads, number, only, real, rope, rope_settings, sliding
from hubq.formats.gguf.tensors import Table, Tensor, draw

LAYER: Table = {
    **PROJECTIONS,
    "self_attn.q_norm.weight": "head",
    "self_attn.k_norm.weight": "head",
    "post_attention_layernorm.weight": "hidden",
    **FEED_FORWARD,
    "post_feedforward_layernorm.weight": "hidden",
}
LARGE = 64  # llama.cpp computes windows in models of so many layers, and only there

# what transformers takes for settings that config.json leaves out
DEFAULTS = {"vocab_size": 102400, "max_position_embeddings": 2048, "sliding_window": 4096}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = {**DEFAULTS, **config}
    choice(config, "hidden_act", ("silu", "swish"))
    only(rope_settings(config), "partial_rotary_factor", 1)
    size = heads(config)
    only(config, "head_dim", size["hidden"] // size["heads"])
    table = common(size, config) | dict(rope(config, size["head"]).keys)
    table |= {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-5)}
    if (config["sliding_window"] is not None) != (size["layers"] == LARGE):
        raise Unsupported(
            f"llama.cpp computes windows in models of this family with {LARGE} layers, and only there",
            f"this one has {size['layers']} layers and `sliding_window` {config['sliding_window']}: use another model",
        )
    if config["sliding_window"] is None:
        return table
    windows = sliding(config, size["layers"], 4)
    window = {".attention.sliding_window": number(config, "sliding_window"), ".attention.sliding_window_pattern": windows}
    return table | window


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    config = {**DEFAULTS, **config}
    size = heads(config)
    table = draw("exaone4", size, stored, FIRST, LAYER, last(config), ignored=lambda name: ignored(config, name))
    return [*table, *rope(config, size["head"]).tensors]


MODELS = {"exaone4": Family(("Exaone4ForCausalLM",), "exaone4", keys, tensors)}
