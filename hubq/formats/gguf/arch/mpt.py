"""MPT: attention that is weaker the farther it looks back (ALiBi), norms without biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import ignored, last
from hubq.formats.gguf.hparams import Config, choice, common, heads, number, only, real
from hubq.formats.gguf.tensors import Table, Tensor, draw

FIRST: Table = {"transformer.wte.weight": "vocab hidden"}
LAYER: Table = {
    "norm_1.weight": "hidden",
    "attn.Wqkv.weight": "fused hidden",
    "attn.out_proj.weight": "hidden hidden",
    "norm_2.weight": "hidden",
    "ffn.up_proj.weight": "inner hidden",
    "ffn.down_proj.weight": "hidden inner",
}
LAST: Table = {"transformer.norm_f.weight": "hidden", "lm_head.weight": "vocab hidden"}


def _usual(config: Config) -> dict[str, Any]:
    """The config with the names and defaults of other families."""
    hidden, count = number(config, "d_model", 2048), number(config, "n_heads", 16)
    return {
        "tie_word_embeddings": True,
        **config,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": number(config, "n_layers", 24),
        "num_attention_heads": count,
        "num_key_value_heads": count,
        "head_dim": None,
        "max_position_embeddings": number(config, "max_seq_len", 2048),
    }


def sizes(config: Config) -> dict[str, int]:
    size = heads(config)
    return size | {"fused": 3 * size["hidden"]}


def attention(config: Config) -> dict[str, Any]:
    """The settings of attention. Raises Unsupported for those that transformers or llama.cpp leave aside."""
    settings = config.get("attn_config") or {}
    if not isinstance(settings, dict):
        raise BadSource(f"config.json: attn_config should be a table, but is {settings!r}", AGAIN)
    choice(settings, "attn_type", ("multihead_attention",))
    only(settings, "alibi", True)
    for name in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        only(settings, name, False)
    only(settings, "softmax_scale")
    return settings


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = _usual(config)
    settings = attention(config)
    only(config, "expansion_ratio", 4)
    only(config, "no_bias", True)
    only(config, "logit_scale")
    choice(config, "norm_type", ("low_precision_layernorm", "layernorm"))
    table = common(sizes(config), config)
    table[".attention.layer_norm_epsilon"] = real(config, "layer_norm_epsilon", 1e-5)
    table[".attention.max_alibi_bias"] = real(settings, "alibi_bias_max", 8)
    return table | ({".attention.clamp_kqv": real(settings, "clip_qkv")} if settings.get("clip_qkv") else {})


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    config, behind = _usual(config), last(_usual(config), LAST)
    return draw("mpt", sizes(config), stored, FIRST, LAYER, behind, "transformer.blocks.", lambda name: ignored(config, name))


MODELS = {"mpt": Family(("MPTForCausalLM", "MptForCausalLM"), "mpt", keys, tensors)}
