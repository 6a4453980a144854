"""InternLM 2 and 3: Llama under other names, with query, key and value in one tensor, or with biases of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ATTENTION, ATTENTION_BIAS, FEED_FORWARD, FIRST, MLP_BIAS, ignored, last
from hubq.formats.gguf.hparams import Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Part, Sizes, Table, Tensor, draw, grouped, interleaved

NAMES_FIRST: Table = {"model.tok_embeddings.weight": "vocab hidden"}
NAMES_LAST: Table = {"model.norm.weight": "hidden", "output.weight": "vocab hidden"}
ROPE = ("default", "linear", "dynamic")


def turned(which: str, count: str) -> Callable[[Sizes], np.ndarray]:
    """The rows of "query" or "key" in a fused tensor, for llama.cpp's rotary embedding."""
    return lambda size: grouped(which)(size)[interleaved(count)(size)]


LAYER: Table = {
    "attention_norm.weight": "hidden",
    "attention.wqkv.weight": (
        Part("fused hidden", "attn_q.weight", "query hidden", turned("query", "heads")),
        Part("fused hidden", "attn_k.weight", "key hidden", turned("key", "kv_heads")),
        Part("fused hidden", "attn_v.weight", "key hidden", grouped("value")),
    ),
    "attention.wo.weight": "hidden query",
    "ffn_norm.weight": "hidden",
    "feed_forward.w1.weight": "inner hidden",
    "feed_forward.w2.weight": "hidden inner",
    "feed_forward.w3.weight": "inner hidden",
}


def sizes(config: Config) -> dict[str, int]:
    size = heads(config)
    only(config, "head_dim", size["hidden"] // size["heads"])
    return size | {"fused": size["query"] + 2 * size["key"]}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys. The class itself is not in transformers: defaults are those of its own code."""
    size = sizes(config)
    choice(config, "hidden_act", ("silu", "swish"))
    only({"bias": True, **config}, "bias", False)
    only(config, "tie_word_embeddings", False)
    table = common(size, config) | dict(rope(config, size["head"], ROPE).keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return draw("internlm2", sizes(config), stored, NAMES_FIRST, LAYER, NAMES_LAST, ignored=lambda name: ignored(config, name))


def internlm3(config: Config) -> dict[str, Any]:
    """The config with the defaults of InternLM 3."""
    return {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, **config}


def internlm3_keys(config: Config) -> dict[str, Any]:
    """Those of InternLM 2."""
    config = internlm3(config)
    size = heads(config)
    choice(config, "hidden_act", ("silu", "swish"))
    table = common(size, config) | dict(rope(config, size["head"], (*ROPE, "llama3", "yarn")).keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps")}


def internlm3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order. Its own code says `qkv_bias` and `bias`, transformers says `attention_bias` and `mlp_bias`."""
    config = internlm3(config)
    size = heads(config)
    bias = flag(config, "bias", flag(config, "mlp_bias"))
    biases = {"self_attn.o_proj.bias": "hidden", **MLP_BIAS} if bias else {}
    if flag(config, "qkv_bias", flag(config, "attention_bias")):
        biases |= {name: part for name, part in ATTENTION_BIAS.items() if name != "self_attn.o_proj.bias"}
    layer = {**ATTENTION, **FEED_FORWARD, **biases}
    table = draw("llama", size, stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))
    return [*table, *rope(config, size["head"], (*ROPE, "llama3", "yarn")).tensors]


MODELS = {
    "internlm2": Family(("InternLM2ForCausalLM",), "internlm2", keys, tensors),
    "internlm3": Family(("InternLM3ForCausalLM",), "llama", internlm3_keys, internlm3_tensors),
}
