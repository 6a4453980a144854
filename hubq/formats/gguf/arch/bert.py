"""BERT: an encoder with learned positions and a norm behind each sum. Its GGUF computes the last hidden states, no head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.hparams import GELU, Config, choice, common, heads, number, only, real
from hubq.formats.gguf.tensors import Part, Sizes, Table, Tensor, draw

FIRST: Table = {
    "embeddings.word_embeddings.weight": Part("vocab hidden", "token_embd.weight"),
    "embeddings.token_type_embeddings.weight": Part("types hidden", "token_types.weight"),
    "embeddings.position_embeddings.weight": Part("context hidden", "position_embd.weight"),
    "embeddings.LayerNorm.weight": Part("hidden", "token_embd_norm.weight"),
    "embeddings.LayerNorm.bias": Part("hidden", "token_embd_norm.bias"),
}
LAYER: Table = {
    "attention.self.query.weight": Part("hidden hidden", "attn_q.weight"),
    "attention.self.query.bias": Part("hidden", "attn_q.bias"),
    "attention.self.key.weight": Part("hidden hidden", "attn_k.weight"),
    "attention.self.key.bias": Part("hidden", "attn_k.bias"),
    "attention.self.value.weight": Part("hidden hidden", "attn_v.weight"),
    "attention.self.value.bias": Part("hidden", "attn_v.bias"),
    "attention.output.dense.weight": Part("hidden hidden", "attn_output.weight"),
    "attention.output.dense.bias": Part("hidden", "attn_output.bias"),
    "attention.output.LayerNorm.weight": Part("hidden", "attn_output_norm.weight"),
    "attention.output.LayerNorm.bias": Part("hidden", "attn_output_norm.bias"),
    "intermediate.dense.weight": Part("inner hidden", "ffn_up.weight"),
    "intermediate.dense.bias": Part("inner", "ffn_up.bias"),
    "output.dense.weight": Part("hidden inner", "ffn_down.weight"),
    "output.dense.bias": Part("hidden", "ffn_down.bias"),
    "output.LayerNorm.weight": Part("hidden", "layer_output_norm.weight"),
    "output.LayerNorm.bias": Part("hidden", "layer_output_norm.bias"),
}
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
HEADS = ("cls.", "lm_head.", "pooler.")


def sizes(config: Config) -> dict[str, int]:
    size = heads({**config, "num_key_value_heads": None, "head_dim": None})
    return size | {"types": number(config, "type_vocab_size", 2), "context": number(config, "max_position_embeddings", 512)}


def encoder_keys(size: Sizes, config: Config) -> dict[str, Any]:
    """The keys that all encoders have. What pooling makes of the hidden states, config.json does not say."""
    keys = common(size, {**config, "head_dim": None})
    return keys | {".attention.causal": False, "tokenizer.ggml.token_type_count": size["types"]}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    choice(config, "hidden_act", GELU, "gelu")
    only(config, "position_embedding_type", "absolute")
    only(config, "is_decoder", False)
    epsilon = real(config, "layer_norm_eps", 1e-12)
    return encoder_keys(sizes(config), config) | {".attention.layer_norm_epsilon": epsilon}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return drawn(sizes(config), stored, FIRST, "bert.")


def drawn(size: Sizes, stored: Mapping[str, StoredTensor], first: Table, model: str) -> list[Tensor]:
    """The tensors of a checkpoint in which all names begin with `model`, or none; heads and pooler are left out."""
    before = model if any(name.startswith(model) for name in stored) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in stored)

    def named(table: Table, prefix: str = "") -> Table:
        return {prefix + _old(name) if old else prefix + name: part for name, part in table.items()}

    def ignored(name: str) -> bool:
        return name.removeprefix(before).startswith(HEADS) or name.endswith("embeddings.position_ids")

    return draw("bert", size, stored, named(first, before), named(LAYER), {}, f"{before}encoder.layer.", ignored)


def _old(name: str) -> str:
    for now, then in OLD_NAMES.items():
        name = name.replace(now, then)
    return name


MODELS = {"bert": Family(("BertModel", "BertForMaskedLM"), "bert", keys, tensors, encoder=True)}
