"""LFM 2: layers of short convolutions and layers of attention, each before a gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST, ignored, last
from hubq.formats.gguf.arch.qwen import keys, square
from hubq.formats.gguf.hparams import Config, flag, heads, layers, number, only, real
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

EITHER: Table = {
    "operator_norm.weight": "hidden",
    "ffn_norm.weight": "hidden",
    "feed_forward.w1.weight": "inner hidden",
    "feed_forward.w2.weight": "hidden inner",
    "feed_forward.w3.weight": "inner hidden",
}
ATTENTION: Table = {
    **EITHER,
    "self_attn.q_proj.weight": "query hidden",
    "self_attn.k_proj.weight": "key hidden",
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.out_proj.weight": "hidden query",
    "self_attn.q_layernorm.weight": "head",
    "self_attn.k_layernorm.weight": "head",
}
CONVOLUTION: Table = {
    **EITHER,
    "conv.conv.weight": Part("hidden 1 kernel", shape="hidden kernel"),
    "conv.in_proj.weight": "three_hidden hidden",
    "conv.out_proj.weight": "hidden hidden",
}
LAST: Table = {"model.embedding_norm.weight": "hidden", "lm_head.weight": "vocab hidden"}

# settings that config.json may leave out, as transformers fills them in
DEFAULTS: Config = {
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
}


def _settled(config: Config) -> Config:
    """The config with settings that may be missing, under the names that other families use."""
    settings = {**DEFAULTS, **config}
    settings["rms_norm_eps"] = settings["norm_eps"]
    for name, old in ("tie_word_embeddings", "tie_embedding"), ("intermediate_size", "block_ff_dim"):
        settings[name] = settings.get(old, settings.get(name))
    return settings | {"intermediate_size": _inner(settings)}


def _inner(config: Config) -> int:
    """The size of feed-forward layers. Source: transformers' `Lfm2MLP`."""
    size = number(config, "intermediate_size")
    if not flag(config, "block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if config["block_ffn_dim_multiplier"] is None:
        return size
    step = number(config, "block_multiple_of")
    return -(-int(real(config, "block_ffn_dim_multiplier") * size) // step) * step


def _attends(config: Config) -> list[bool]:
    """Which layers attend; the others have convolutions. Raises BadSource."""
    count = number(config, "num_hidden_layers")
    kinds, attending = layers(config, "layer_types", count, ("full_attention", "conv")), config.get("full_attn_idxs")
    if kinds is not None:
        return [kind == "full_attention" for kind in kinds]
    if attending is not None and not isinstance(attending, list):
        raise BadSource(f"config.json: full_attn_idxs should be a list of layers, but is {attending!r}", AGAIN)
    return [attending is None or layer in attending for layer in range(count)]


def lfm2_keys(config: Config) -> dict[str, Any]:
    """Those of Llama, but of no key heads in layers of convolutions, and the length of these."""
    config = _settled(config)
    size = heads(config)
    only(config, "conv_bias", False)
    square(size)
    return keys(config) | {
        ".attention.head_count_kv": [size["kv_heads"] if attends else 0 for attends in _attends(config)],
        ".shortconv.l_cache": number(config, "conv_L_cache"),
    }


def lfm2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = _settled(config)
    size, attends = heads(config), _attends(config)
    size |= {"kernel": number(config, "conv_L_cache"), "three_hidden": 3 * size["hidden"]}

    def layer(number: int) -> Table:
        return ATTENTION if attends[number] else CONVOLUTION

    return draw("lfm2", size, stored, FIRST, layer, last(config, LAST), ignored=lambda name: ignored(config, name))


MODELS = {"lfm2": Family(("Lfm2ForCausalLM", "LFM2ForCausalLM"), "lfm2", lfm2_keys, lfm2_tensors)}
