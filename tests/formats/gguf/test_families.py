"""Every family of models: llama.cpp computes from our files what transformers computes from the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import upstream
from families import SHAPE, make, original, variants
from formats.gguf.test_write import assert_equals_llama_cpp, build

from hubq import reference
from hubq.checkpoint import open_checkpoint
from hubq.formats.gguf.arch import families
from hubq.formats.gguf.engine import decoded
from hubq.formats.gguf.levels import MIXES
from hubq.nouns import RepoFile, Source
from hubq.source import read_config

VARIANTS = variants()
POSITIONS = 64
IDS = np.random.default_rng(1).integers(2, SHAPE["vocab_size"], POSITIONS)

every_variant = pytest.mark.parametrize("name", VARIANTS)
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A variant in Hub format, written once."""
    return cache(lambda name: make(VARIANTS[name], tmp_path_factory.mktemp("variant") / "Tiny"))


def is_encoder(folder: Path) -> bool:
    return families()[json.loads((folder / "config.json").read_text())["model_type"]].encoder


def expected(folder: Path) -> np.ndarray:
    """transformers' logits, or the last hidden states of an encoder."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if is_encoder(folder) else AutoModelForCausalLM
    model = kind.from_pretrained(original(folder), dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        output = model(torch.from_numpy(IDS)[None])
    return (output.last_hidden_state if is_encoder(folder) else output.logits)[0].numpy()


def computed(path: Path, encoder: bool) -> np.ndarray:
    """llama.cpp's logits, or an encoder's last hidden states, without flash attention and with a cache in single precision."""
    single, off = llama_cpp.GGML_TYPE_F32, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings = {"n_ctx": POSITIONS, "n_batch": POSITIONS, "n_ubatch": POSITIONS, "type_k": single, "type_v": single}
    settings |= {"embedding": True, "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_NONE} if encoder else {"logits_all": True}
    model = llama_cpp.Llama(str(path), **settings, flash_attn_type=off, verbose=False)
    if not encoder:
        model.eval(IDS.tolist())
        return np.array(model.scores[:POSITIONS])
    ids = (llama_cpp.llama_token * POSITIONS)(*IDS.tolist())  # the batch holds no reference to it
    assert llama_cpp.llama_encode(model.ctx, llama_cpp.llama_batch_get_one(ids, POSITIONS)) == 0
    hidden = llama_cpp.llama_get_embeddings(model.ctx)
    return np.ctypeslib.as_array(hidden, (POSITIONS, model.n_embd())).copy()


@every_variant
def test_logits_are_those_of_transformers(name: str, made: Made, tmp_path: Path) -> None:
    folder = made(name)
    wanted, found = expected(folder), computed(build(folder, tmp_path, ["F32"])["F32"].path, is_encoder(folder))
    assert wanted.std() > 0.1
    assert np.abs(found - wanted).max() < VARIANTS[name].tolerance * wanted.std()


@every_variant
def test_a_level_equals_that_of_llama_cpp_and_loads(name: str, made: Made, tmp_path: Path) -> None:
    built = build(made(name), tmp_path, ["BF16", "Q4_K_M"])
    upstream.quantize(built["BF16"].path, tmp_path / "theirs.gguf", MIXES["Q4_K_M"].file_type)
    assert_equals_llama_cpp(built["Q4_K_M"].path, tmp_path / "theirs.gguf")
    assert np.isfinite(computed(built["Q4_K_M"].path, is_encoder(made(name)))).all()


@every_variant
def test_the_checkpoint_comes_back(name: str, made: Made, tmp_path: Path) -> None:
    """What the engine `weights` decodes is the checkpoint, and the reference takes a causal language model that it knows."""
    folder = made(name)
    config = read_config((folder / "config.json").read_bytes())
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in folder.iterdir())
    source = Source("org/tiny", "0" * 40, folder, config, {}, files)
    restored = dict(decoded(build(folder, tmp_path, ["F32"])["F32"].path, source))
    with open_checkpoint(folder, [file.path for file in files]) as checkpoint:
        for key, values in restored.items():
            np.testing.assert_allclose(values, checkpoint.read(key), rtol=0, atol=1e-6)
    if is_encoder(folder) or original(folder) != folder:
        return
    with reference.load(config, restored.items()) as logits:
        assert np.abs(logits(IDS, 0).numpy() - expected(folder)[:-1]).max() < 1e-3


def test_every_family_has_variants(made: Made) -> None:
    shown = {json.loads((made(name) / "config.json").read_text())["model_type"] for name in VARIANTS}
    assert shown == set(families())
