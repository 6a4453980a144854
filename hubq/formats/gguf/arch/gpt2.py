"""GPT-2: learned positions, layer norms, a plain feed-forward layer; weights are stored with the inputs as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.hparams import GELU, Config, choice, common, flag, heads, number, only, real
from hubq.formats.gguf.tensors import Part, Table, Tensor, draw

# the names of sizes in this family's config.json -> the usual ones
NAMES = {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
NAMES |= {"n_positions": "max_position_embeddings"}

PREFIX = "transformer."  # what the first checkpoints lack
HEAD = "lm_head.weight"
MASK = ".attn.bias"

FIRST: Table = {"wte.weight": "vocab hidden", "wpe.weight": "positions hidden"}
LAYER: Table = {
    "ln_1.weight": "hidden",
    "ln_1.bias": "hidden",
    "attn.c_attn.weight": Part("hidden qkv", transposed=True),
    "attn.c_attn.bias": "qkv",
    "attn.c_proj.weight": Part("hidden hidden", transposed=True),
    "attn.c_proj.bias": "hidden",
    "ln_2.weight": "hidden",
    "ln_2.bias": "hidden",
    "mlp.c_fc.weight": Part("hidden inner", transposed=True),
    "mlp.c_fc.bias": "inner",
    "mlp.c_proj.weight": Part("inner hidden", transposed=True),
    "mlp.c_proj.bias": "hidden",
}
LAST: Table = {"ln_f.weight": "hidden", "ln_f.bias": "hidden"}


def usual(config: Config) -> dict[str, Any]:
    """config.json under the usual names of sizes, with what follows from them: heads are equal parts of the hidden size."""
    table = {NAMES.get(key, key): value for key, value in config.items()}
    inner = number(table, "n_inner", 4 * number(table, "hidden_size"))
    return table | {"num_key_value_heads": None, "head_dim": None, "intermediate_size": inner}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config = usual(config)
    choice(config, "activation_function", GELU, "gelu_new")
    only(config, "scale_attn_weights", True)
    only(config, "scale_attn_by_inverse_layer_idx", False)
    only(config, "add_cross_attention", False)
    return common(heads(config), config) | {".attention.layer_norm_epsilon": real(config, "layer_norm_epsilon", 1e-5)}


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    config = usual(config)
    size = heads(config)
    size |= {"qkv": 3 * size["hidden"], "positions": number(config, "max_position_embeddings")}
    tied = flag(config, "tie_word_embeddings", True)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in stored) else ""
    first, last = ({prefix + name: part for name, part in table.items()} for table in (FIRST, LAST))
    return draw(
        "gpt2",
        size,
        stored,
        first,
        LAYER,
        last if tied else last | {HEAD: "vocab hidden"},
        prefix=f"{prefix}h.",
        ignored=lambda name: name.endswith(MASK) or (name == HEAD and tied),
    )


MODELS = {"gpt2": Family(("GPT2LMHeadModel",), "gpt2", keys, tensors)}
