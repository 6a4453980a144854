"""What llama.cpp keeps of the tokens before, and computes with, from a file's metadata.

The rules are those of src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp and `load_arch_hparams` of each model there. Only of
architectures that are known to follow them something is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from hubq.formats.gguf.read import Array
from hubq.nouns import Cache

# architectures all of whose layers attend to all tokens
_PLAIN = """
bloom chatglm command-r deepseek2 ernie4_5 ernie4_5-moe falcon gemma glm4 gpt2 gptneox granite granitemoe hunyuan-dense
internlm2 lfm2 llama mpt nemotron olmo olmoe phi2 phi3 qwen2 qwen2moe qwen3 qwen3moe smollm3 stablelm starcoder2
"""
PLAIN = set(_PLAIN.split())
# architectures with layers that attend to a window: of so many in a row the last attends to all tokens
WINDOWED = {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "olmo2": 4}
DEFAULT_WINDOW = 4096  # of gemma2 and exaone4, where a file names none
STATE = 4  # bytes of a number of a recurrent state
MOST_LAYERS = 4096


def cache(metadata: Mapping[str, Any]) -> Cache | None:
    """The cache of a model, or None where it is not known how llama.cpp keeps it."""
    architecture = metadata.get("general.architecture")
    if architecture not in PLAIN | WINDOWED.keys():
        return None
    keys = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    try:
        found = _cache(str(architecture), keys, _count(metadata.get("tokenizer.ggml.tokens")))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):  # not the usual keys, or other values
        return None
    return found if found and _counts(*astuple(found)) else None


def _counts(*numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def _cache(architecture: str, keys: Mapping[str, Any], vocabulary: int) -> Cache | None:
    layers, width = keys["block_count"], keys["embedding_length"]
    if not 0 < layers <= MOST_LAYERS or keys.get("nextn_predict_layers"):  # llama.cpp may load the latter or not
        return None
    heads = _by_layer(keys["attention.head_count"], layers)
    shared = _by_layer(keys.get("attention.head_count_kv", keys["attention.head_count"]), layers)
    narrow_and_recurrent = architecture == "lfm2" and keys.get("attention.sliding_window")  # kept in a way of its own
    if narrow_and_recurrent or not _counts(width, *heads, *shared):
        return None
    usual = width // max(heads[0], 1)
    size = keys.get("attention.key_length", usual)
    if "attention.key_length_mla" not in keys:  # else keys and values are one latent vector
        size += keys.get("attention.value_length", usual)
    numbers = [size * count for count in shared]
    windowed = _windowed(architecture, keys, layers)
    kept = keys.get("shortconv.l_cache", 1) - 1  # of a layer of short convolutions, which has no keys and values
    return Cache(
        full=sum(number for number, narrow in zip(numbers, windowed, strict=True) if not narrow),
        windowed=sum(number for number, narrow in zip(numbers, windowed, strict=True) if narrow),
        window=_window(architecture, keys) if any(windowed) else 0,
        state=STATE * width * kept * shared.count(0),
        context=keys["context_length"],
        scratch=max(vocabulary + 2 * width, _in_layer(keys, width, max(heads) * keys.get("attention.key_length", usual))),
    )


def _in_layer(keys: Mapping[str, Any], width: int, queries: int) -> int:
    """An upper bound of the numbers per token that exist at a time within a layer; the tests hold it against llama.cpp."""

    def longest(prefix: str) -> int:
        return max(_by_layer(keys.get(f"{prefix}feed_forward_length", 0), 1))

    dense, expert = longest(""), longest("expert_")
    experts = keys.get("expert_used_count", 0) * (3 * (expert or dense) + width) + 2 * longest("expert_shared_")
    return 64 + 6 * width + 2 * queries + max(2 * dense, experts)


def _window(architecture: str, keys: Mapping[str, Any]) -> int:
    default = DEFAULT_WINDOW if architecture in ("gemma2", "exaone4") else 0
    return int(keys.get("attention.sliding_window", default))


def _windowed(architecture: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """Which layers attend to a window only."""
    if architecture not in WINDOWED or not _window(architecture, keys) or (architecture == "exaone4" and layers != 64):
        return [False] * layers
    pattern = keys.get("attention.sliding_window_pattern", WINDOWED[architecture])
    if isinstance(pattern, Array):
        return [bool(narrow) for narrow in pattern.values()]
    return [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]


def _by_layer(value: Any, layers: int) -> list[int]:
    return value.values() if isinstance(value, Array) else [value] * layers


def _count(tokens: Any) -> int:
    return tokens.count if isinstance(tokens, Array) else 0
