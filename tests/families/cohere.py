"""Command R (cohere) and Command R7B (cohere2)."""

from __future__ import annotations

import numpy as np

from families import Variant

TIED = {"tie_word_embeddings": True, "logit_scale": 0.25}
COHERE2 = {**TIED, "sliding_window": 16, "num_hidden_layers": 3}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
NORMED = {"use_qk_norm": True, "num_hidden_layers": 64, "intermediate_size": 256}


def random_norms(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Norms of queries and keys have two dimensions, and are made as ones."""
    random = np.random.default_rng(2)
    norms = [name for name in tensors if name.endswith(("q_norm.weight", "k_norm.weight"))]
    return tensors | {name: random.uniform(0.5, 1.5, tensors[name].shape).astype(np.float32) for name in norms}


VARIANTS = {
    "plain": Variant("CohereForCausalLM", {**TIED, "layer_norm_eps": 1e-3}, config={"model_max_length": 512}),
    "yarn": Variant("CohereForCausalLM", {**TIED, "num_key_value_heads": None, "rope_parameters": YARN}),
    "norms of queries and keys": Variant("CohereForCausalLM", {**TIED, **NORMED}, random_norms),
    "2": Variant(
        "Cohere2ForCausalLM", {**COHERE2, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
    ),
    "2 by pattern": Variant("Cohere2ForCausalLM", COHERE2, config={"layer_types": None, "sliding_window_pattern": 2}),
}
