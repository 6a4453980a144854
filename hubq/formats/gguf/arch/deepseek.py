"""DeepSeek V2 and V3: latent attention (each head's keys and values are expanded from a few shared numbers), shared experts.

llama.cpp expands queries and attention's output instead of keys and values; hence two tensors for kv_b_proj, that of the keys
transposed, and a single key head, as large as the latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN, StoredTensor
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.arch import Family
from hubq.formats.gguf.arch.llama import FEED_FORWARD, FIRST, ignored, last
from hubq.formats.gguf.hparams import Config, choice, common, experts, number, only, real, rope, rope_settings
from hubq.formats.gguf.tensors import EXPERT, Part, Sizes, Table, Tensor, draw


def expanded(which: str) -> Callable[[Sizes], np.ndarray]:
    """The rows of kv_b_proj that make the keys ("nope") or the values ("value") of each head, where keys come first."""

    def rows(size: Sizes) -> np.ndarray:
        each = np.arange(size["heads"] * (size["nope"] + size["value"])).reshape(size["heads"], -1)
        return (each[:, : size["nope"]] if which == "nope" else each[:, size["nope"] :]).reshape(-1)

    return rows


ATTENTION: Table = {
    "input_layernorm.weight": "hidden",
    "self_attn.kv_a_proj_with_mqa.weight": "latent_and_rope hidden",
    "self_attn.kv_a_layernorm.weight": "latent",
    "self_attn.kv_b_proj.weight": (
        Part("expanded latent", "attn_k_b.weight", "heads latent nope", expanded("nope"), transposed=True),
        Part("expanded latent", "attn_v_b.weight", "heads value latent", expanded("value")),
    ),
    "self_attn.o_proj.weight": "hidden output",
    "post_attention_layernorm.weight": "hidden",
}
QUERY: Table = {"self_attn.q_proj.weight": "query hidden"}
LATENT_QUERY: Table = {
    "self_attn.q_a_proj.weight": "query_latent hidden",
    "self_attn.q_a_layernorm.weight": "query_latent",
    "self_attn.q_b_proj.weight": "query query_latent",
}
EXPERTS: Table = {
    "mlp.gate.weight": "experts hidden",
    f"mlp.experts.{EXPERT}.gate_proj.weight": "expert hidden",
    f"mlp.experts.{EXPERT}.up_proj.weight": "expert hidden",
    f"mlp.experts.{EXPERT}.down_proj.weight": "hidden expert",
    "mlp.shared_experts.gate_proj.weight": "shared hidden",
    "mlp.shared_experts.up_proj.weight": "shared hidden",
    "mlp.shared_experts.down_proj.weight": "hidden shared",
}
CORRECTION: Table = {"mlp.gate.e_score_correction_bias": Part("experts", "exp_probs_b.bias")}

# what transformers takes where config.json does not say
V2 = {"n_shared_experts": 2, "moe_intermediate_size": 1407, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0}
V3 = {"n_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5}
V2 |= {"n_routed_experts": 64, "q_lora_rank": 1536}
V3 |= {"n_routed_experts": 256, "q_lora_rank": 1536, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
V3 |= {"norm_topk_prob": True, "num_nextn_predict_layers": 1}
ATTENTION_SIZES = {"latent": ("kv_lora_rank", 512), "rope": ("qk_rope_head_dim", 64)}
ATTENTION_SIZES |= {"nope": ("qk_nope_head_dim", 128), "value": ("v_head_dim", 128)}
SOFTMAX, SIGMOID = 1, 2  # llama_expert_gating_func_type


def count(config: Config, key: str, most: int) -> int:
    """A whole number of config.json from 0 to `most`, 0 where it is missing. Raises BadSource for something else."""
    value = config.get(key)
    value = 0 if value is None else value
    if type(value) is not int or not 0 <= value <= most:
        raise BadSource(f"config.json: {key} should be a whole number from 0 to {most}, but is {value!r}", AGAIN)
    return value


def sizes(config: Config) -> dict[str, int]:
    hidden, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    only(config, "num_key_value_heads", heads)
    size = {"hidden": hidden, "heads": heads, "kv_heads": 1, "inner": number(config, "intermediate_size")}
    size |= {"vocab": number(config, "vocab_size"), "layers": number(config, "num_hidden_layers")}
    size |= {name: number(config, key, default) for name, (key, default) in ATTENTION_SIZES.items()}
    size |= experts(config, "n_routed_experts", "num_experts_per_tok")
    size["head"] = size["nope"] + size["rope"]
    size["expert"] = number(config, "moe_intermediate_size")
    size["dense"] = count(config, "first_k_dense_replace", size["layers"] - 1)
    size["query_latent"] = 0 if config["q_lora_rank"] is None else number(config, "q_lora_rank")
    return size | {
        "query": heads * size["head"],
        "output": heads * size["value"],
        "expanded": heads * (size["nope"] + size["value"]),
        "latent_and_rope": size["latent"] + size["rope"],
        "shared": size["expert"] * number(config, "n_shared_experts"),
    }


def keys(config: Config, gating: int) -> dict[str, Any]:
    """Hyper-parameters as GGUF keys."""
    size = sizes(config)
    choice(config, "hidden_act", ("silu", "swish"))
    for key, allowed in {"attention_bias": False, "mlp_bias": False, "rope_interleave": True, "moe_layer_freq": 1}.items():
        only(config, key, allowed)
    if size["query_latent"] and (size["layers"] in (26, 27) or (size["layers"], size["vocab"]) == (48, 128256)):
        raise Unsupported(
            f"llama.cpp takes any DeepSeek model of {size['layers']} layers for one without q_lora_rank",
            "look for a model of this family of another size",
        )
    table = common(size, config) | rotary(config, size["rope"]) | groups(config, size)
    table |= {
        ".attention.layer_norm_rms_epsilon": real(config, "rms_norm_eps", 1e-6),
        ".attention.q_lora_rank": size["query_latent"],
        ".attention.kv_lora_rank": size["latent"],
        ".attention.key_length": size["latent_and_rope"],
        ".attention.value_length": size["latent"],
        ".attention.key_length_mla": size["head"],
        ".attention.value_length_mla": size["value"],
        ".leading_dense_block_count": size["dense"],
        ".expert_count": size["experts"],
        ".expert_used_count": size["used"],
        ".expert_shared_count": size["shared"] // size["expert"],
        ".expert_feed_forward_length": size["expert"],
        ".expert_gating_func": gating,
        ".expert_weights_scale": real(config, "routed_scaling_factor"),
    }
    return table


def groups(config: Config, size: Sizes) -> dict[str, Any]:
    """The keys of groups of experts, where a token does not use all groups. Raises BadSource for nonsense."""
    if config.get("n_group") is None:
        return {}
    every, used = number(config, "n_group"), number(config, "topk_group")
    if every == used:
        return {}
    members = size["experts"] // every
    if size["experts"] % every or members < 2 or used > every or used * members < size["used"]:
        raise BadSource(f"config.json: {used} of {every} groups of {size['experts']} experts for a token make no sense", AGAIN)
    return {".expert_group_count": every, ".expert_group_used_count": used}


def rotary(config: Config, head: int) -> dict[str, Any]:
    """The keys of the rotary embedding: yarn scales its values by one factor, and attention's scores by the square of another.

    llama.cpp multiplies scores by the square of `attn_factor` (that of the values) times that of yarn's `log` multiplier.
    Source: transformers' `yarn_apply_mscale` and `_compute_yarn_parameters`.
    """
    settings = rope_settings(config)
    own = {key: settings.pop(key, None) for key in ("attention_factor", "mscale", "mscale_all_dim")}
    table = dict(rope({**config, "rope_parameters": settings}, head, ("default", "yarn")).keys)
    if settings["rope_type"] == "default":
        return table
    own = {key: real(own, key) for key, value in own.items() if value}
    log = 0.1 * math.log(real(settings, "factor"))
    if log <= 0:
        raise BadSource("config.json: yarn's factor should be greater than 1", AGAIN)
    scores = 1 + log * own.get("mscale_all_dim", 0.0)
    values = (1 + log * own["mscale"]) / scores if "mscale" in own and "mscale_all_dim" in own else 1 + log
    values = own.get("attention_factor", values)
    multiplier = (scores / values - 1) / log
    # without a multiplier llama.cpp takes its usual factor, 1 + log, times `attn_factor`
    return table | {
        ".rope.scaling.yarn_log_multiplier": 0.1 * multiplier,
        ".rope.scaling.attn_factor": values if multiplier else values / (1 + log),
    }


def tensors(config: Config, stored: Mapping[str, StoredTensor], correction: Table) -> list[Tensor]:
    """All tensors in file order; the layers behind the last one, which predict further tokens, are left out."""
    size = sizes(config)
    attention = {**ATTENTION, **(LATENT_QUERY if size["query_latent"] else QUERY)}
    more = count(config, "num_nextn_predict_layers", size["layers"])
    predicting = tuple(f"model.layers.{size['layers'] + number}." for number in range(more))

    def layer(block: int) -> Table:
        return {**attention, **(FEED_FORWARD if block < size["dense"] else {**EXPERTS, **correction})}

    def left_out(name: str) -> bool:
        return ignored(config, name) or name.startswith(predicting)

    return draw("deepseek2", size, stored, FIRST, layer, last(config), ignored=left_out)


def complete(config: Config, defaults: Config) -> dict[str, Any]:
    """A config with what transformers takes for missing settings; one that is null stays so."""
    return {**defaults, **config}


def v2_keys(config: Config) -> dict[str, Any]:
    config = complete(config, V2)
    choice(config, "scoring_func", ("softmax",))
    only(config, "norm_topk_prob", False)
    if config.get("topk_method") == "group_limited_greedy":
        if groups(config, sizes(config)):
            raise Unsupported(
                "config.json says topk_method 'group_limited_greedy', and llama.cpp ranks groups of experts in another way",
                "look for a model of this family with `topk_method` greedy, such as DeepSeek-V2-Lite",
            )
    else:
        choice(config, "topk_method", ("greedy",))
    return keys({**config, "n_group": None}, SOFTMAX)


def v2_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    return tensors(complete(config, V2), stored, {})


def v3_keys(config: Config) -> dict[str, Any]:
    config = complete(config, V3)
    choice(config, "scoring_func", ("sigmoid",))
    choice(config, "topk_method", ("noaux_tc",))
    normed = {".expert_weights_norm": True} if config["norm_topk_prob"] else {}
    return keys(config, SIGMOID) | normed


def v3_tensors(config: Config, stored: Mapping[str, StoredTensor]) -> list[Tensor]:
    return tensors(complete(config, V3), stored, CORRECTION)


MODELS = {
    "deepseek_v2": Family(("DeepseekV2ForCausalLM",), "deepseek2", v2_keys, v2_tensors),
    "deepseek_v3": Family(("DeepseekV3ForCausalLM",), "deepseek2", v3_keys, v3_tensors),
}
