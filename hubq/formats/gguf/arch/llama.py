"""Llama, Mistral and Mixtral: rotary attention with grouped heads, RMS norms and a gated feed-forward layer or experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.hparams import Config, choice, common, experts, flag, heads, only, real, rope, rope_settings
from hubq.formats.gguf.tensors import EXPERT, Part, Table, Tensor, draw, interleaved

FIRST = {"model.embed_tokens.weight": "vocab hidden"}
LAST = {"model.norm.weight": "hidden", "lm_head.weight": "vocab hidden"}
ATTENTION: Table = {
    "input_layernorm.weight": "hidden",
    "self_attn.q_proj.weight": Part("query hidden", rows=interleaved("heads")),
    "self_attn.k_proj.weight": Part("key hidden", rows=interleaved("kv_heads")),
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.o_proj.weight": "hidden query",
    "post_attention_layernorm.weight": "hidden",
}
# for the families whose graphs turn halves, as transformers does, not neighbours
PROJECTIONS: Table = {
    "self_attn.q_proj.weight": "query hidden",
    "self_attn.k_proj.weight": "key hidden",
    "self_attn.v_proj.weight": "key hidden",
    "self_attn.o_proj.weight": "hidden query",
}
FEED_FORWARD: Table = {
    "mlp.gate_proj.weight": "inner hidden",
    "mlp.up_proj.weight": "inner hidden",
    "mlp.down_proj.weight": "hidden inner",
}
EXPERTS: Table = {
    "block_sparse_moe.gate.weight": "experts hidden",
    f"block_sparse_moe.experts.{EXPERT}.w1.weight": "inner hidden",
    f"block_sparse_moe.experts.{EXPERT}.w2.weight": "hidden inner",
    f"block_sparse_moe.experts.{EXPERT}.w3.weight": "inner hidden",
}
ATTENTION_BIAS: Table = {
    "self_attn.q_proj.bias": Part("query", rows=interleaved("heads")),
    "self_attn.k_proj.bias": Part("key", rows=interleaved("kv_heads")),
    "self_attn.v_proj.bias": "key",
    "self_attn.o_proj.bias": "hidden",
}
MLP_BIAS: Table = {"mlp.gate_proj.bias": "inner", "mlp.up_proj.bias": "inner", "mlp.down_proj.bias": "hidden"}


def last(config: Config, table: Table = LAST) -> Table:
    """What comes behind the layers: without the head where it is the embeddings once more."""
    return {name: part for name, part in table.items() if not (flag(config, "tie_word_embeddings") and name in HEADS)}


HEADS = ("lm_head.weight",)


def ignored(config: Config, name: str) -> bool:
    """Whether a tensor of the checkpoint may be there for nothing: the head of a tied model."""
    return name in HEADS and flag(config, "tie_word_embeddings")


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = heads(config)
    choice(config, "hidden_act", ("silu", "swish"))
    only(rope_settings(config), "partial_rotary_factor", 1)
    table = common(size, config) | dict(rope(config, size["head"]).keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    layer = {**ATTENTION, **FEED_FORWARD}
    layer |= ATTENTION_BIAS if flag(config, "attention_bias") else {}
    layer |= MLP_BIAS if flag(config, "mlp_bias") else {}
    return _draw(config, heads(config), stored, layer)


def _draw(config: Config, size: Mapping[str, int], stored: Mapping[str, StoredTensor], layer: Table) -> list[Tensor]:
    table = draw("llama", size, stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))
    return [*table, *rope(config, size["head"]).tensors]


def mixtral_sizes(config: Config) -> dict[str, int]:
    return heads(config) | experts(config, "num_local_experts", "num_experts_per_tok", (8, 2))


def mixtral_keys(config: Config) -> dict[str, Any]:
    """Those of Llama, and the counts of experts."""
    size = mixtral_sizes(config)
    return keys(config) | {".expert_count": size["experts"], ".expert_used_count": size["used"]}


def mixtral_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; each of an expert's three is stacked over all experts of its layer."""
    return _draw(config, mixtral_sizes(config), stored, {**ATTENTION, **EXPERTS})


MODELS = {
    "llama": Family(("LlamaForCausalLM",), "llama", keys, tensors),
    "mistral": Family(("MistralForCausalLM",), "llama", keys, tensors),
    "mixtral": Family(("MixtralForCausalLM",), "llama", mixtral_keys, mixtral_tensors),
}
