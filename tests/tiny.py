"""Tiny random models in Hub format, made from transformers' own classes and a tokenizer trained on Python's manual."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 512
CARD = "---\nlicense: mit\nlanguage: en\npipeline_tag: text-generation\n---\n\n# A tiny random model\n"


@cache
def _tokenizer() -> str:
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    return tokenizer.to_str()


def tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer of 512 tokens, split as GPT-2 splits, with a chat template."""
    (folder / "tokenizer.json").write_text(_tokenizer())
    settings = {
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "chat_template": "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 1024}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}


def llama(folder: Path, seed: int = 0, shards: int = 1, dtype: str = "bfloat16", **changes: Any) -> Path:
    """Write a random Llama; `changes` go to its LlamaConfig. 256 divides its rows unless `changes` say otherwise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _save(folder, LlamaForCausalLM, LlamaConfig(**{**SHAPE, **changes}), seed, shards, dtype)


def mixtral(folder: Path, seed: int = 0, shards: int = 1, dtype: str = "bfloat16", **changes: Any) -> Path:
    """Write a random Mixtral of 4 experts, stored one by one as on the Hub; `changes` go to its MixtralConfig."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**{**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2, **changes})
    return _save(folder, MixtralForCausalLM, config, seed, shards, dtype)


def _save(folder: Path, kind: Any, config: Any, seed: int, shards: int, dtype: str) -> Path:
    import torch

    torch.manual_seed(seed)
    model = kind(config).to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(weight.nbytes for weight in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=size // shards + 1 if shards == 1 else size // shards)
    tokenizer(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def rewrite(folder: Path, name: str = "model.safetensors", **changes: np.ndarray | None) -> None:
    """Change tensors of a float32 checkpoint: a new array, or None to drop it. Dots in names are written as two underscores."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / name)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, folder / name, metadata={"format": "pt"})


def config(folder: Path, **changes: Any) -> None:
    """Change entries of config.json; None removes one."""
    document = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
