"""SmolLM 3: Llama whose every fourth layer has no rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ATTENTION, FEED_FORWARD
from hubq.formats.gguf.arch.qwen import keys, tensors
from hubq.formats.gguf.hparams import Config, heads, number, only
from hubq.formats.gguf.tensors import Tensor

# settings that config.json may leave out, as transformers fills them in
DEFAULTS: Config = {"num_key_value_heads": 4, "rope_theta": 2000000.0, "tie_word_embeddings": True}
STEP = 4  # llama.cpp's graph leaves every fourth layer without


def _rotary_layers(config: Config, count: int) -> None:
    """Hold the layers that config.json turns against those that llama.cpp does. Raises BadSource and Unsupported."""
    turned = config.get("no_rope_layers")
    if turned is None:
        step = number(config, "no_rope_layer_interval", STEP)
        turned = [int((layer + 1) % step != 0) for layer in range(count)]
    if not isinstance(turned, list) or len(turned) < count or any(value not in (0, 1) for value in turned):
        raise BadSource(f"config.json: no_rope_layers should be 1 or 0 for each of {count} layers", AGAIN)
    if any(bool(turned[layer]) != bool((layer + 1) % STEP) for layer in range(count)):
        raise Unsupported(
            f"config.json says no_rope_layers {turned[:count]}, and llama.cpp turns all layers but every fourth",
            "use a model with no_rope_layer_interval 4",
        )


def smollm3_keys(config: Config) -> dict[str, Any]:
    """Those of Llama."""
    config = {**DEFAULTS, **config}
    _rotary_layers(config, number(config, "num_hidden_layers"))
    only(config, "attention_bias", False)
    only(config, "mlp_bias", False)
    return keys(config)


def smollm3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    config = {**DEFAULTS, **config}
    return tensors("smollm3", config, heads(config), stored, {**ATTENTION, **FEED_FORWARD})


MODELS = {"smollm3": Family(("SmolLM3ForCausalLM",), "smollm3", smollm3_keys, smollm3_tensors)}
