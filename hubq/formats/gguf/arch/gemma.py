"""Gemma, Gemma 2 and Gemma 3: norms whose weights count from one, and embeddings that llama.cpp itself scales.

Gemma 2 adds windows on every other layer and soft-capping, Gemma 3 norms of queries and keys and two rotary bases. Of a
Gemma 3 that sees (gemma3), the file holds the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, LAST, PROJECTIONS, ignored, last
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
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw, match

NORM = Part("hidden", plus=1.0)
HEAD_NORM = Part("head", plus=1.0)
LAYER: Table = {
    "input_layernorm.weight": NORM,
    **PROJECTIONS,
    "post_attention_layernorm.weight": NORM,
    **FEED_FORWARD,
}
GEMMA2: Table = {**LAYER, "pre_feedforward_layernorm.weight": NORM, "post_feedforward_layernorm.weight": NORM}
GEMMA3: Table = {**GEMMA2, "self_attn.q_norm.weight": HEAD_NORM, "self_attn.k_norm.weight": HEAD_NORM}

# what transformers takes for settings that config.json leaves out
DEFAULTS: dict[str, Any] = {"head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192, "tie_word_embeddings": True}
GEMMA2_DEFAULTS: dict[str, Any] = {**DEFAULTS, "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256}
GEMMA2_DEFAULTS |= {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3_DEFAULTS: dict[str, Any] = {**DEFAULTS, "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256}
GEMMA3_DEFAULTS |= {"vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 4096, "rope_theta": 1e6}

# the numbers of layers by which llama.cpp knows the models that scale queries by hidden size / heads
GEMMA2_LARGEST, GEMMA3_LARGEST = 46, 62


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = {**DEFAULTS, **config}
    choice(config, "hidden_act", ("gelu_pytorch_tanh", "gelu"))  # transformers takes both for the tanh approximation
    only(config, "tie_word_embeddings", True)
    size = heads(config)
    return _keys(config, size) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)


def _keys(config: Config, size: Mapping[str, int]) -> dict[str, Any]:
    """What the three have in common, but for rotary embeddings."""
    only(config, "attention_bias", False)
    only(config, "use_bidirectional_attention", False)
    only(rope_settings(config, "full_attention"), "partial_rotary_factor", 1)
    return common(size, config) | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6)}


def gemma2_keys(config: Config) -> dict[str, Any]:
    """Those of Gemma, its windows and soft-capping."""
    config = {**GEMMA2_DEFAULTS, **config}
    choice(config, "hidden_activation", ("gelu_pytorch_tanh",))
    only(config, "tie_word_embeddings", True)
    size = heads(config)
    _check_scale(config, size, GEMMA2_LARGEST)
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    for cap in caps:
        if config[cap] is None:
            raise Unsupported(
                f"config.json turns {cap} off, and llama.cpp always computes it for this family", "use a model that has it"
            )
    table = _keys(config, size) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | _windows(config, sliding(config, size["layers"], 2)) | {f".{cap}": real(config, cap) for cap in caps}


def gemma3_keys(config: Config) -> dict[str, Any]:
    """Those of Gemma, its windows and the rotary base of the layers with one."""
    config = {**GEMMA3_DEFAULTS, **config}
    choice(config, "hidden_activation", ("gelu_pytorch_tanh",))
    only(config, "attn_logit_softcapping")
    size = heads(config)
    _check_scale(config, size, GEMMA3_LARGEST)
    table = _keys(config, size) | dict(rope(config, size["head"], ("default", "linear"), "full_attention").keys)
    windows = sliding(config, size["layers"], 6)
    if any(windows):
        table |= _windows(config, windows) | {".rope.freq_base_swa": _local_base(config)}
    if config.get("final_logit_softcapping") is not None:
        table[".final_logit_softcapping"] = real(config, "final_logit_softcapping")
    return table


def _check_scale(config: Config, size: Mapping[str, int], largest: int) -> None:
    """Refuse a scale of queries other than the one that llama.cpp computes: there is no key for it."""
    only(config, "query_pre_attn_scalar", size["hidden"] // size["heads"] if size["layers"] == largest else size["head"])


def _windows(config: Config, windows: list[bool]) -> dict[str, Any]:
    return {".attention.sliding_window": number(config, "sliding_window"), ".attention.sliding_window_pattern": windows}


def _local_base(config: Config) -> float:
    """The rotary base of layers with a window, where llama.cpp scales nothing."""
    parameters = config.get("rope_parameters")
    local = parameters.get("sliding_attention") if isinstance(parameters, dict) else None
    settings = {"rope_theta": config.get("rope_local_base_freq"), **(local if isinstance(local, dict) else {})}
    only(settings, "rope_type", "default")
    return real(settings, "rope_theta", 10000.0)


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("gemma", {**DEFAULTS, **config}, stored, LAYER)


def gemma2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("gemma2", {**GEMMA2_DEFAULTS, **config}, stored, GEMMA2)


def gemma3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("gemma3", {**GEMMA3_DEFAULTS, **config}, stored, GEMMA3)


# where a model that sees keeps its language model, and the modules that make it see
TEXT = "language_model."
SIGHT = ("vision_tower", "multi_modal_projector")


def _text(config: Config) -> dict[str, Any]:
    """The settings of the language model in a model that sees."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise BadSource(f"config.json: text_config should be a table, but is {text!r}", AGAIN)
    return {**text, "tie_word_embeddings": flag(config, "tie_word_embeddings", True)}


def seeing_keys(config: Config) -> dict[str, Any]:
    """Those of its language model."""
    return gemma3_keys(_text(config))


def seeing_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """Those of its language model, in file order."""
    match(
        {},
        {name: tensor for name, tensor in stored.items() if name.partition(".")[0] not in SIGHT and not name.startswith(TEXT)},
    )
    text = {name.removeprefix(TEXT): tensor for name, tensor in stored.items() if name.startswith(TEXT)}
    table = gemma3_tensors(_text(config), text)
    return [replace(tensor, sources=tuple(TEXT + source for source in tensor.sources)) for tensor in table]


def _draw(architecture: str, config: Config, stored: Mapping[str, StoredTensor], layer: Table) -> list[Tensor]:
    end = last(config, {**LAST, "model.norm.weight": NORM})
    return draw(architecture, heads(config), stored, FIRST, layer, end, ignored=lambda name: ignored(config, name))


MODELS = {
    "gemma": Family(("GemmaForCausalLM",), "gemma", keys, tensors),
    "gemma2": Family(("Gemma2ForCausalLM",), "gemma2", gemma2_keys, gemma2_tensors),
    "gemma3": Family(("Gemma3ForConditionalGeneration",), "gemma3", seeing_keys, seeing_tensors, left_out=SIGHT),
    "gemma3_text": Family(("Gemma3ForCausalLM",), "gemma3", gemma3_keys, gemma3_tensors),
}
