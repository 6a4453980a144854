"""Nomic BERT: BERT with rotary attention, a gated feed-forward layer, and biases in norms only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.bert import HEADS, encoder_keys
from hubq.formats.gguf.hparams import Config, choice, heads, number, only, real, rope
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

FIRST: Table = {
    "embeddings.word_embeddings.weight": Part("vocab hidden", "token_embd.weight"),
    "embeddings.token_type_embeddings.weight": Part("types hidden", "token_types.weight"),
    "emb_ln.weight": Part("hidden", "token_embd_norm.weight"),
    "emb_ln.bias": Part("hidden", "token_embd_norm.bias"),
}
LAYER: Table = {
    "attn.Wqkv.weight": Part("qkv hidden", "attn_qkv.weight"),
    "attn.out_proj.weight": Part("hidden hidden", "attn_output.weight"),
    "norm1.weight": Part("hidden", "attn_output_norm.weight"),
    "norm1.bias": Part("hidden", "attn_output_norm.bias"),
    "mlp.fc11.weight": Part("inner hidden", "ffn_up.weight"),
    "mlp.fc12.weight": Part("inner hidden", "ffn_gate.weight"),
    "mlp.fc2.weight": Part("hidden inner", "ffn_down.weight"),
    "norm2.weight": Part("hidden", "layer_output_norm.weight"),
    "norm2.bias": Part("hidden", "layer_output_norm.bias"),
}

# name in transformers -> that in the model's own code
OLD_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}
# settings of the model's own code -> the value that llama.cpp computes
FIXED = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "moe_every_n_layers": 0,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "use_rms_norm": False,
}
TRAINED, THETA = 2048, 1000.0  # transformers' defaults


def renamed(config: Config) -> dict[str, Any]:
    """A config under transformers' names; positions beyond those of the training call for another rotary embedding."""
    settings = dict(config)
    for now, then in OLD_NAMES.items():
        if settings.get(now) is None:
            settings[now] = settings.get(then)
    trained = min(number(config, "n_positions", TRAINED), number(config, "max_trained_positions", TRAINED))
    settings["max_position_embeddings"] = number(config, "max_position_embeddings", trained)
    settings["rope_theta"] = settings["rope_theta"] or THETA
    return settings | {"num_key_value_heads": None}


def sizes(config: Config) -> dict[str, int]:
    size = heads({**config, "head_dim": None})
    return size | {"qkv": 3 * size["hidden"], "types": number(config, "type_vocab_size", 2)}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = renamed(config)
    size = sizes(config)
    choice(config, "hidden_act", ("silu", "swish"))
    only(config, "head_dim", size["head"])
    only(config, "rotary_emb_scale_base")
    for key, value in FIXED.items():
        only(config, key, value)
    keys = encoder_keys(size, config) | dict(rope(config, size["head"], ("default",)).keys)
    return keys | {".attention.layer_norm_epsilon": real(config, "layer_norm_eps", 1e-12)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order; the head of a model of masked words is left out."""
    before = "nomic_bert." if any(name.startswith("nomic_bert.") for name in stored) else ""
    first = {before + name: part for name, part in FIRST.items()}

    def ignored(name: str) -> bool:
        return name.startswith(HEADS)

    return draw("nomic-bert", sizes(renamed(config)), stored, first, LAYER, {}, f"{before}encoder.layers.", ignored)


MODELS = {"nomic_bert": Family(("NomicBertModel", "NomicBertForMaskedLM"), "nomic-bert", keys, tensors, encoder=True)}
