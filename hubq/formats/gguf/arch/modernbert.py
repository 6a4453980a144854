"""ModernBERT: an encoder with rotary attention, within a window in most layers, norms before and a gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.hparams import Config, choice, common, heads, layers, number, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

FIRST: Table = {
    "embeddings.tok_embeddings.weight": Part("vocab hidden", "token_embd.weight"),
    "embeddings.norm.weight": Part("hidden", "token_embd_norm.weight"),
}
LAYER: Table = {
    "attn.Wqkv.weight": Part("qkv hidden", "attn_qkv.weight"),
    "attn.Wo.weight": Part("hidden hidden", "attn_output.weight"),
    "mlp_norm.weight": Part("hidden", "ffn_norm.weight"),
    "mlp.Wi.weight": Part("gate_and_up hidden", "ffn_up.weight"),
    "mlp.Wo.weight": Part("hidden inner", "ffn_down.weight"),
}
FURTHER: Table = {"attn_norm.weight": Part("hidden", "attn_norm.weight"), **LAYER}  # the first layer has none
LAST: Table = {"final_norm.weight": Part("hidden", "output_norm.weight")}
HEADS = ("head.", "decoder.")
THETA = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}


def sizes(config: Config) -> dict[str, int]:
    size = heads({**config, "num_key_value_heads": None, "head_dim": None})
    return size | {"qkv": 3 * size["hidden"], "gate_and_up": 2 * size["inner"]}


def windows(config: Config, count: int) -> list[bool]:
    """Which layers attend within a window. Raises BadSource where config.json makes no sense."""
    kinds = layers(config, "layer_types", count, tuple(THETA))
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    every = number(config, "global_attn_every_n_layers", 3)
    return [layer % every > 0 for layer in range(count)]


def rotary(config: Config, kind: str, head: int) -> dict[str, Any]:
    old, theta = THETA[kind]
    return dict(rope({**config, "rope_theta": config.get(old) or theta}, head, ("default",), kind).keys)


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = sizes(config)
    for bias in ("attention_bias", "mlp_bias", "norm_bias"):
        only(config, bias, False)
    keys = common(size, {**config, "head_dim": None}) | rotary(config, "full_attention", size["head"])
    return keys | {
        ".attention.causal": False,
        ".attention.layer_norm_epsilon": real(config, "norm_eps", 1e-5),
        ".attention.sliding_window": number(config, "local_attention", 128),
        ".attention.sliding_window_pattern": windows(config, size["layers"]),
        ".rope.freq_base_swa": rotary(config, "sliding_attention", size["head"])[".rope.freq_base"],
        ".hidden_activation": choice(config, "hidden_activation", ("gelu", "silu")),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; the head of a model of masked words is left out."""
    before = "model." if any(name.startswith("model.") for name in stored) else ""

    def layer(block: int) -> Table:
        return FURTHER if block else LAYER

    def named(table: Table) -> Table:
        return {before + name: part for name, part in table.items()}

    def ignored(name: str) -> bool:
        return name.startswith(HEADS)

    return draw("modern-bert", sizes(config), stored, named(FIRST), layer, named(LAST), f"{before}layers.", ignored)


MODELS = {"modernbert": Family(("ModernBertModel", "ModernBertForMaskedLM"), "modern-bert", keys, tensors, encoder=True)}
