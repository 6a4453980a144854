"""Falcon: attention and feed-forward layer side by side, on one norm or on one each; keys and values in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ignored, last
from hubq.formats.gguf.hparams import GELU, WITHOUT_FACTORS, Config, choice, common, flag, heads, number, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw, grouped, joined

FIRST: Table = {"transformer.word_embeddings.weight": "vocab hidden"}
LAST: Table = {"transformer.ln_f.weight": "hidden", "transformer.ln_f.bias": "hidden", "lm_head.weight": "vocab hidden"}
LAYER: Table = {
    "self_attention.query_key_value.weight": Part(
        "fused hidden", rows=joined(grouped("query"), grouped("key"), grouped("value"))
    ),
    "self_attention.dense.weight": "hidden query",
    "mlp.dense_h_to_4h.weight": "inner hidden",
    "mlp.dense_4h_to_h.weight": "hidden inner",
}
ONE_NORM: Table = {"input_layernorm.weight": "hidden", "input_layernorm.bias": "hidden"}
TWO_NORMS: Table = {
    "ln_mlp.weight": "hidden",
    "ln_mlp.bias": "hidden",
    "ln_attn.weight": "hidden",
    "ln_attn.bias": "hidden",
}


def _usual(config: Config) -> dict[str, Any]:
    """The config with the names and defaults of other families."""
    count = number(config, "num_attention_heads")
    new = flag(config, "new_decoder_architecture")
    groups = number(config, "num_kv_heads", count) if new else 1 if flag(config, "multi_query", True) else count
    hidden = number(config, "hidden_size")
    inner = number(config, "ffn_hidden_size", 4 * hidden)
    table = {"num_key_value_heads": groups, "intermediate_size": inner, "head_dim": None}
    return {"tie_word_embeddings": True, "max_position_embeddings": 2048, **config, **table}


def sizes(config: Config) -> dict[str, int]:
    """Those of attention. Raises Unsupported for kinds of Falcon that llama.cpp does not compute."""
    only(config, "alibi", False)
    only(config, "bias", False)
    only(config, "parallel_attn", True)
    only(config, "num_ln_in_parallel_attn", 1, *([2] if flag(config, "new_decoder_architecture") else []))
    choice(config, "activation", GELU, "gelu")
    size = heads(config)
    return size | {"fused": size["query"] + 2 * size["key"]}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = _usual(config)
    size = sizes(config)
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {".attention.layer_norm_epsilon": real(config, "layer_norm_epsilon", 1e-5)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    config = _usual(config)
    norms = 2 if flag(config, "new_decoder_architecture") else 1
    norms = number(config, "num_ln_in_parallel_attn", norms)
    layer = {**(TWO_NORMS if norms == 2 else ONE_NORM), **LAYER}
    behind = last(config, LAST)
    return draw("falcon", sizes(config), stored, FIRST, layer, behind, "transformer.h.", lambda name: ignored(config, name))


MODELS = {"falcon": Family(("FalconForCausalLM",), "falcon", keys, tensors)}
