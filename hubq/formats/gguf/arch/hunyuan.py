"""Hunyuan's dense models: Llama's layers with norms of the heads of queries and keys behind the rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD
from hubq.formats.gguf.arch.qwen import ATTENTION, keys, tensors
from hubq.formats.gguf.hparams import Config, heads, only, real, rope_settings
from hubq.formats.gguf.tensors import Tensor

HEAD_NORMS = {"self_attn.query_layernorm.weight": "head", "self_attn.key_layernorm.weight": "head"}
DEFAULTS: Config = {"rms_norm_eps": 1e-5}  # what config.json may leave out, as transformers fills it in


def _stretched(config: Config, head: int) -> Config:
    """The config with the rotary base that `alpha` makes, if the rotary embedding is of type "dynamic" with that.

    Source: transformers' `compute_ntk_alpha_rope_parameters`. Without `alpha` it depends on the length of a text.
    """
    settings = rope_settings(config)
    if settings["rope_type"] != "dynamic" or not settings.get("alpha"):
        return config
    base = real(settings, "rope_theta") * real(settings, "alpha") ** (head / max(1, head - 2))
    return {**config, "rope_parameters": {"rope_type": "default", "rope_theta": base}}


def hunyuan_keys(config: Config) -> dict[str, Any]:
    """Those of Llama."""
    config = {**DEFAULTS, **config}
    only(config, "attention_bias", False)
    return keys(_stretched(config, heads(config)["head"]))


def hunyuan_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    return tensors("hunyuan-dense", config, heads(config), stored, {**ATTENTION, **HEAD_NORMS, **FEED_FORWARD})


MODELS = {"hunyuan_v1_dense": Family(("HunYuanDenseV1ForCausalLM",), "hunyuan-dense", hunyuan_keys, hunyuan_tensors)}
