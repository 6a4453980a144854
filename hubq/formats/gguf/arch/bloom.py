"""BLOOM: attention that is weaker the farther it looks back (ALiBi), a norm on the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ignored, last
from hubq.formats.gguf.hparams import Config, common, heads, number, only, real
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw, joined, unfused

FUSED = joined(unfused(0), unfused(1), unfused(2))
FIRST: Table = {
    "word_embeddings.weight": "vocab hidden",
    "word_embeddings_layernorm.weight": Part("hidden", "token_embd_norm.weight"),
    "word_embeddings_layernorm.bias": Part("hidden", "token_embd_norm.bias"),
}
LAYER: Table = {
    "input_layernorm.weight": "hidden",
    "input_layernorm.bias": "hidden",
    "self_attention.query_key_value.weight": Part("fused hidden", rows=FUSED),
    "self_attention.query_key_value.bias": Part("fused", rows=FUSED),
    "self_attention.dense.weight": "hidden hidden",
    "self_attention.dense.bias": "hidden",
    "post_attention_layernorm.weight": Part("hidden", "ffn_norm.weight"),
    "post_attention_layernorm.bias": Part("hidden", "ffn_norm.bias"),
    "mlp.dense_h_to_4h.weight": "inner hidden",
    "mlp.dense_h_to_4h.bias": "inner",
    "mlp.dense_4h_to_h.weight": "hidden inner",
    "mlp.dense_4h_to_h.bias": "hidden",
}
LAST: Table = {"ln_f.weight": "hidden", "ln_f.bias": "hidden"}
HEAD: Table = {"lm_head.weight": "vocab hidden"}


def _usual(config: Config) -> dict[str, Any]:
    """The config with the names and defaults of other families, from either generation's."""

    def either(*names: str) -> int:
        return number(config, next((name for name in names if config.get(name) is not None), names[0]))

    hidden, count = either("n_embed", "hidden_size"), either("n_head", "num_attention_heads")
    return {
        "tie_word_embeddings": True,
        **config,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": either("n_layer", "num_hidden_layers"),
        "num_attention_heads": count,
        "num_key_value_heads": count,
        "head_dim": None,
        "max_position_embeddings": number(config, "seq_length", 2048),  # no limit, but what BLOOM was trained on
    }


def sizes(config: Config) -> dict[str, int]:
    size = heads(config)
    return size | {"fused": 3 * size["hidden"]}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = _usual(config)
    only(config, "apply_residual_connection_post_layernorm", False)
    return common(sizes(config), config) | {".attention.layer_norm_epsilon": real(config, "layer_norm_epsilon", 1e-5)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; the first repositories name them without "transformer."."""
    config = _usual(config)
    before = "" if "word_embeddings.weight" in stored else "transformer."
    first = {before + name: part for name, part in FIRST.items()}
    behind = {**{before + name: part for name, part in LAST.items()}, **last(config, HEAD)}
    return draw("bloom", sizes(config), stored, first, LAYER, behind, f"{before}h.", lambda name: ignored(config, name))


MODELS = {"bloom": Family(("BloomForCausalLM",), "bloom", keys, tensors)}
