"""InternLM 2, which is a Llama under other names, and InternLM 3."""

from __future__ import annotations

import numpy as np

from families import SHAPE, Variant

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A Llama's tensors with query, key and value of each group in one, and InternLM 2's names."""
    found = {}
    for name, values in tensors.items():
        if name.endswith("q_proj.weight"):
            parts = [tensors[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            heads = tensors[name.replace("q_proj", "k_proj")].shape[0] // HEAD
            groups = [part.reshape(heads, -1, SHAPE["hidden_size"]) for part in parts]
            whole = np.concatenate(groups, axis=1).reshape(-1, SHAPE["hidden_size"])
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = whole
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            for ours, theirs in NAMES.items():
                name = name.replace(f"{ours}.weight", f"{theirs}.weight")
            found[name] = values
    return found


HEAD = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
TWO = {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}
TWO |= {"attention_bias": None, "mlp_bias": None, "head_dim": None}
OLD = {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
THREE = {"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}
BIASES = {"attention_bias": True, "mlp_bias": True}
THEIRS = {"attention_bias": None, "mlp_bias": None, "qkv_bias": True, "bias": True}

VARIANTS = {
    "2": Variant("LlamaForCausalLM", rewrite=fused, config=TWO, original=True),
    "2 of old": Variant("LlamaForCausalLM", {"num_key_value_heads": 1}, fused, {**TWO, **OLD}, original=True),
    "3": Variant("LlamaForCausalLM", {"head_dim": 128, "rope_parameters": DYNAMIC}, config=THREE),
    "3 with biases": Variant("LlamaForCausalLM", BIASES, config=THREE),
    "3 of old": Variant("LlamaForCausalLM", BIASES, config={**THREE, **THEIRS, **OLD}),
}
