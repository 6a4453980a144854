"""The reference model against transformers' own loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from hubq import reference
from hubq.errors import BadSource, Unsupported
from hubq.nouns import RepoFile, Source
from hubq.source import read_config

IDS = np.random.default_rng(0).integers(0, tiny.VOCABULARY, 64)
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def source(folder: Path) -> Source:
    config = read_config((folder / "config.json").read_bytes())
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in sorted(folder.iterdir()))
    return Source(f"org/{folder.name}", "0" * 40, folder, config, {}, files)


def theirs(folder: Path, ids: np.ndarray) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor(ids)[None]).logits[0]


def ours(folder: Path, ids: np.ndarray, first: int) -> torch.Tensor:
    model = source(folder)
    with reference.load(model.config, reference.source_weights(model)) as logits:
        return logits(ids, first)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
        {"shards": 3, "dtype": "float32"},
    ],
    ids=["plain", "tied", "llama3", "biases", "shards"],
)
def test_logits_are_those_of_from_pretrained(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tiny.llama(tmp_path / "model", **(SMALL | changes))
    found = ours(folder, IDS, 31)
    assert found.dtype == torch.float32
    assert found.shape == (32, tiny.VOCABULARY)
    assert torch.equal(found, theirs(folder, IDS)[31:63])


def test_another_family_needs_no_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=tiny.VOCABULARY, num_hidden_layers=2, sliding_window=16, **SMALL)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    assert torch.equal(ours(tmp_path, IDS, 31), theirs(tmp_path, IDS)[31:63])


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(reference.source_weights(source(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("reference") / "model", **SMALL)


def load(folder: Path, tensors: dict[str, np.ndarray], **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    with reference.load(config, tensors.items()):
        pass


def test_missing_and_unknown_and_misshapen_tensors_are_named(folder: Path) -> None:
    tensors, name = weights(folder), "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(BadSource, match=f"lack .*: {name}$"):
        load(folder, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(BadSource, match=r"no parameters of these names: model.layers.2.mlp.up_proj.weight$"):
        load(folder, tensors | {"model.layers.2.mlp.up_proj.weight": tensors["model.layers.1.mlp.up_proj.weight"]})
    with pytest.raises(BadSource, match=rf"{name}' is \[32, 60\], config.json makes it \[32, 64\]"):
        load(folder, tensors | {name: tensors[name][:, :60]})
    load(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unheard_of"},
        {"model_type": None},
        {"num_attention_heads": 0},
        {"hidden_size": "many"},
        {"hidden_act": "?"},
    ],
)
def test_a_config_that_describes_no_model_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises((BadSource, Unsupported), match=r"cannot build|cannot put"):
        load(folder, {}, **changes)


def test_weights_are_freed_on_leaving(folder: Path) -> None:
    model = source(folder)
    with reference.load(model.config, reference.source_weights(model)) as logits:
        assert not logits(IDS, 31).is_meta
    with pytest.raises(RuntimeError):
        logits(IDS, 31)


def test_building_leaves_torch_as_it_was(folder: Path) -> None:
    before = torch.nn.Module.register_parameter
    with pytest.raises(Unsupported):
        load(folder, {}, model_type="unheard_of")
    assert torch.nn.Module.register_parameter is before
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_experts_that_a_checkpoint_keeps_apart_are_put_together(tmp_path: Path) -> None:
    folder = tiny.mixtral(tmp_path / "model", dtype="float32", **SMALL)
    assert torch.allclose(ours(folder, IDS, 31), theirs(folder, IDS)[31:63], rtol=0, atol=1e-6)
    tiny.rewrite(folder, model__layers__1__block_sparse_moe__experts__2__w3__weight=None)
    with pytest.raises(BadSource, match="cannot put the weights into its MixtralForCausalLM"):
        ours(folder, IDS, 31)
    tiny.rewrite(folder, model__layers__1__block_sparse_moe__experts__2__w3__weight=np.zeros((8, 8), np.float32))
    with pytest.raises(BadSource, match="cannot put the weights into its MixtralForCausalLM"):
        ours(folder, IDS, 31)
