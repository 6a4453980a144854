"""GLM-4: the current generation (glm4), with norms behind attention and feed-forward too, and the one before (glm).

The rotary embedding turns neighbours in a part of each head, as llama.cpp does, so no rows move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubq.checkpoint import StoredTensor
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FIRST, PROJECTIONS, ignored, last
from hubq.formats.gguf.hparams import WITHOUT_FACTORS, Config, choice, common, flag, heads, only, real, rope
from hubq.formats.gguf.tensors import Table, Tensor, draw

GLM: Table = {
    "input_layernorm.weight": "hidden",
    **PROJECTIONS,
    "post_attention_layernorm.weight": "hidden",
    "mlp.gate_up_proj.weight": "gate_up hidden",
    "mlp.down_proj.weight": "hidden inner",
}
GLM4: Table = {**GLM, "post_self_attn_layernorm.weight": "hidden", "post_mlp_layernorm.weight": "hidden"}
BIAS: Table = {"self_attn.q_proj.bias": "query", "self_attn.k_proj.bias": "key", "self_attn.v_proj.bias": "key"}

# what transformers takes for settings that config.json leaves out
DEFAULTS: dict[str, Any] = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072, "vocab_size": 151552}
DEFAULTS |= {"partial_rotary_factor": 0.5, "attention_bias": True}


def sizes(config: Config) -> dict[str, int]:
    """Those of attention; the rows of gate and up lie behind one another, as llama.cpp has them."""
    size = heads({**DEFAULTS, **config})
    return {**size, "gate_up": 2 * size["inner"]}


def keys(config: Config) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    config, size = {**DEFAULTS, **config}, sizes(config)
    choice(config, "hidden_act", ("silu", "swish"))
    table = common(size, config) | dict(rope(config, size["head"], WITHOUT_FACTORS).keys)
    return table | {".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1.5625e-7)}


def glm_keys(config: Config) -> dict[str, Any]:
    """The same; llama.cpp has no other size of heads here."""
    size = sizes(config)
    only({"head_dim": size["head"]}, "head_dim", size["hidden"] // size["heads"])
    return keys(config)


def tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("glm4", config, stored, GLM4)


def glm_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    """All tensors in file order."""
    return _draw("chatglm", config, stored, GLM)


def _draw(architecture: str, config: Config, stored: Mapping[str, StoredTensor], layer: Table) -> list[Tensor]:
    layer = {**layer, **BIAS} if flag(config, "attention_bias", True) else layer
    return draw(architecture, sizes(config), stored, FIRST, layer, last(config), ignored=lambda name: ignored(config, name))


MODELS = {
    "glm": Family(("GlmForCausalLM",), "chatglm", glm_keys, glm_tensors),
    "glm4": Family(("Glm4ForCausalLM",), "glm4", keys, tensors),
}
