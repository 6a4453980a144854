"""Reading config.json: settings of the right kind and size, and rotary embeddings as llama.cpp's keys and tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.tensors import Tensor

Config = Mapping[str, Any]
MOST = 2**31 - 1  # llama.cpp keeps sizes in 32 bits
MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS


def number(config: Config, key: str, default: int | None = None) -> int:
    """A positive whole number of config.json. Raises BadSource where it is missing (and has no default) or something else."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= MOST:
        raise BadSource(f"config.json: {key} should be a positive whole number, but is {value!r}", AGAIN)
    return value


def real(config: Config, key: str, default: float | None = None) -> float:
    """A positive number of config.json that float32 can hold. Raises BadSource as `number` does."""
    value: Any = config.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 1e-38 < value < 1e38:
        raise BadSource(f"config.json: {key} should be a positive number, but is {value!r}", AGAIN)
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """A setting of config.json that is on or off. Raises BadSource for something else."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise BadSource(f"config.json: {key} should be true or false, but is {value!r}", AGAIN)
    return value


def choice(config: Config, key: str, allowed: Sequence[str], default: str | None = None) -> str:
    """A setting that llama.cpp computes in the ways `allowed` only (the first one if there is no default).

    Raises Unsupported for another.
    """
    value = config.get(key)
    value = (default or allowed[0]) if value is None else value
    if value not in allowed:
        raise Unsupported(
            f"config.json says {key} {value!r}, and llama.cpp computes {' or '.join(allowed)} for this family",
            f"look for a model of this family with `{key}` {allowed[0]}",
        )
    return str(value)


def only(config: Config, key: str, *allowed: Any) -> None:
    """Refuse a setting that llama.cpp leaves aside, unless it has one of the values that change nothing, or is missing.

    Raises Unsupported.
    """
    value = config.get(key)
    if value is not None and value not in allowed:
        raise Unsupported(
            f"config.json says {key} {value!r}, which llama.cpp does not compute for this family",
            "use a model without that setting",
        )


# llama.cpp's one GELU is tanh's approximation, from a table in half precision; the exact GELU is about as near as that
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu")


def layers(config: Config, key: str, count: int, kinds: Sequence[str]) -> list[str] | None:
    """The kind of each layer, or None where config.json does not say. Raises BadSource for another count or kind."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or any(kind not in kinds for kind in value):
        raise BadSource(f"config.json: {key} should name one of {', '.join(kinds)} for each of {count} layers", AGAIN)
    return value


def sliding(config: Config, count: int, every: int) -> list[bool]:
    """Which of so many layers attend within a window: what `layer_types` says, or all but each `every`-th.

    `sliding_window_pattern` in config.json goes before `every`. Raises BadSource as `layers` does.
    """
    kinds = layers(config, "layer_types", count, ("sliding_attention", "full_attention"))
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    every = number(config, "sliding_window_pattern", every)
    return [(layer + 1) % every != 0 for layer in range(count)]


def heads(config: Config) -> dict[str, int]:
    """The sizes of attention under the usual names. Raises BadSource where they are missing or do not fit together."""
    hidden, count = number(config, "hidden_size"), number(config, "num_attention_heads")
    if hidden % count and config.get("head_dim") is None:
        raise BadSource(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {count}", AGAIN)
    kv_heads = number(config, "num_key_value_heads", count)
    head = number(config, "head_dim", max(1, hidden // count))
    if head % 2 or count % kv_heads:
        raise BadSource(
            f"config.json: {count} query heads, {kv_heads} key heads and a head size of {head} do not fit together", AGAIN
        )
    return {
        "hidden": hidden,
        "heads": count,
        "kv_heads": kv_heads,
        "head": head,
        "query": count * head,
        "key": kv_heads * head,
        "inner": number(config, "intermediate_size"),
        "vocab": number(config, "vocab_size"),
        "layers": number(config, "num_hidden_layers"),
    }


def experts(config: Config, count: str, used: str, defaults: tuple[int, int] | None = None) -> dict[str, int]:
    """How many experts there are, and how many a token uses, from these two settings. Raises BadSource for nonsense."""
    all_experts, few = number(config, count, defaults and defaults[0]), number(config, used, defaults and defaults[1])
    if not few <= all_experts <= MOST_EXPERTS or all_experts < 2:
        raise BadSource(f"config.json: {few} of {all_experts} experts for a token make no sense", AGAIN)
    return {"experts": all_experts, "used": few}


def common(size: Mapping[str, int], config: Config) -> dict[str, Any]:
    """The keys that nearly every architecture has, from the sizes of `heads`."""
    keys: dict[str, Any] = {
        ".vocab_size": size["vocab"],
        ".context_length": number(config, "max_position_embeddings"),
        ".embedding_length": size["hidden"],
        ".block_count": size["layers"],
        ".feed_forward_length": size["inner"],
        ".attention.head_count": size["heads"],
        ".attention.head_count_kv": size["kv_heads"],
    }
    if size["head"] * size["heads"] != size["hidden"] or config.get("head_dim") is not None:
        keys |= {".attention.key_length": size["head"], ".attention.value_length": size["head"]}
    return keys


# --- rotary embeddings ---

# the kinds of scaling in transformers -> the settings that each needs
ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": (),  # the default one as far as the context reaches, which is as far as llama.cpp computes it
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": (),
}
WITHOUT_FACTORS = ("default", "linear", "yarn")  # for the graphs of llama.cpp that take no tensor of factors
OLD_NAMES = {"su": "longrope"}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embeddings: the keys that describe them and the tensors of factors that some kinds have."""

    keys: Mapping[str, Any]
    tensors: tuple[Tensor, ...] = ()


def rope_settings(config: Config, kind: str | None = None, theta: float = 10000.0) -> dict[str, Any]:
    """The rotary settings under transformers' current names, from where either generation of config.json keeps them.

    `kind` is that of the layers ("full_attention") where a model has several; `theta` the family's default base. Raises
    BadSource for settings that make no sense.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(settings, dict) and kind is not None and isinstance(settings.get(kind), dict):
        settings = settings[kind]
    if not isinstance(settings, dict):
        raise BadSource(f"config.json: the rotary settings should be a table, but are {settings!r}", AGAIN)
    settings = dict(settings)
    name = settings.pop("type", "default")
    settings.setdefault("rope_type", name)
    settings["rope_type"] = OLD_NAMES.get(str(settings["rope_type"]), settings["rope_type"])
    settings.setdefault("rope_theta", theta if config.get("rope_theta") is None else config["rope_theta"])
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if settings.get(key) is None and config.get(key) is not None:
            settings[key] = config[key]
    return settings


def rope(
    config: Config, head: int, kinds: Sequence[str] = ("default", "linear", "llama3", "yarn"), kind: str | None = None
) -> Rope:
    """The rotary embedding of heads of so many dimensions, as llama.cpp's keys (without the prefix) and tensors.

    `kinds` are those that the family's graph in llama.cpp computes; `kind` as in rope_settings. Raises Unsupported for another
    kind, BadSource for settings that make no sense.
    """
    settings = rope_settings(config, kind)
    name = settings["rope_type"]
    if not isinstance(name, str) or name not in kinds:
        raise Unsupported(
            f"hubq does not convert rotary embeddings of type {name!r} for this family; it knows {', '.join(kinds)}",
            "a new kind is a few lines in hubq/formats/gguf/hparams.py, see CONTRIBUTING.md",
        )
    settings |= {key: real(settings, key) for key in ("rope_theta", *ROPE[name])}
    turned = int(head * real(settings, "partial_rotary_factor", 1.0))
    if not 0 < turned <= head or turned % 2:
        raise BadSource(f"config.json: partial_rotary_factor turns {turned} of {head} dimensions, which makes no sense", AGAIN)
    keys: dict[str, Any] = {".rope.dimension_count": turned, ".rope.freq_base": settings["rope_theta"]}
    if name == "linear":
        return Rope(keys | {".rope.scaling.type": "linear", ".rope.scaling.factor": settings["factor"]})
    if name == "llama3":
        return Rope(keys, (_factors("rope_freqs.weight", llama3_factors(settings, turned)),))
    if name == "yarn":
        return Rope(keys | _yarn(config, settings))
    if name == "longrope":
        return _longrope(config, settings, turned, keys)
    return Rope(keys)


def _factors(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, values=values)


def llama3_factors(settings: Config, head: int) -> np.ndarray:
    """The divisor of each rotary frequency in Llama 3.1 scaling, float32 [head / 2].

    Source: transformers' `_compute_llama3_parameters`. Wavelengths below `low` stay, those above `high` are stretched by
    `factor`, those between get a blend.
    """
    base, (factor, slow, fast, context) = settings["rope_theta"], (settings[key] for key in ROPE["llama3"])
    if not slow < fast:
        raise BadSource("config.json: low_freq_factor should be less than high_freq_factor", AGAIN)
    factors = []
    for pair in range(head // 2):
        turns = context / (2 * math.pi * base ** (2 * pair / head))
        blend = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        factors.append(1 / ((1 - blend) / factor + blend))
    return np.array(factors, np.float32)


def _yarn(config: Config, settings: Config) -> dict[str, Any]:
    """Source: transformers' `_compute_yarn_parameters`; llama.cpp computes the usual attention factor itself."""
    factor = settings["factor"]
    context = number(settings, "original_max_position_embeddings", number(config, "max_position_embeddings"))
    keys: dict[str, Any] = {
        ".rope.scaling.type": "yarn",
        ".rope.scaling.factor": factor,
        ".rope.scaling.original_context_length": context,
        ".rope.scaling.yarn_beta_fast": real(settings, "beta_fast", 32.0),
        ".rope.scaling.yarn_beta_slow": real(settings, "beta_slow", 1.0),
    }
    attention = settings.get("attention_factor")
    if attention is None and (settings.get("mscale") or settings.get("mscale_all_dim")):
        raise Unsupported(
            "hubq does not convert yarn with mscale for this family", "a few lines in its file in hubq/formats/gguf/arch"
        )
    if attention is not None:
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        keys[".rope.scaling.attn_factor"] = real(settings, "attention_factor") / usual
    return keys


def _longrope(config: Config, settings: Config, turned: int, keys: Mapping[str, Any]) -> Rope:
    """Source: transformers' `_compute_longrope_parameters`; llama.cpp takes the long factors beyond the original context."""
    context, longest = (
        number(settings, "original_max_position_embeddings", number(config, "max_position_embeddings")),
        number(config, "max_position_embeddings"),
    )
    tensors = []
    for name in ("long", "short"):
        values = settings.get(f"{name}_factor")
        sound = isinstance(values, list) and len(values) == turned // 2
        if not sound or not all(type(value) in (int, float) and 0 < value < 1e30 for value in values or []):
            raise BadSource(f"config.json: {name}_factor should be a list of {turned // 2} numbers", AGAIN)
        tensors.append(_factors(f"rope_factors_{name}.weight", np.array(values, np.float32)))
    scale = real(settings, "factor", longest / context)
    usual = math.sqrt(1 + math.log(scale) / math.log(context)) if scale > 1 else 1.0
    keys = {
        **keys,
        ".rope.scaling.type": "longrope",
        ".rope.scaling.original_context_length": context,
        ".rope.scaling.attn_factor": real(settings, "attention_factor", usual),
    }
    return Rope(keys, tuple(tensors))
