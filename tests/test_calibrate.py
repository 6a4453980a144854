"""Collected activations against sums taken by hand, with hooks and with the weights as the checkpoint names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from hubq import calibrate
from hubq.errors import BadSource, Unsupported

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
WINDOWS = np.random.default_rng(0).integers(0, 64, (3, 96))
EXPERTS = 4


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def llama() -> PreTrainedModel:
    return random_model(LlamaConfig(**SHAPE, tie_word_embeddings=True))


def linears(model: PreTrainedModel) -> list[str]:
    """The names of all weights that are multiplied, but for the head."""
    modules = model.base_model.named_modules(prefix=model.base_model_prefix)
    return [f"{name}.weight" for name, module in modules if isinstance(module, torch.nn.Linear)]


def squares(rows: torch.Tensor) -> np.ndarray:
    return rows.double().square().reshape(-1, rows.shape[-1]).sum(0)[None].numpy()


@torch.inference_mode()
def inputs(model: PreTrainedModel, names: list[str], windows: np.ndarray) -> dict[str, tuple[torch.Tensor, ...]]:
    """What modules are called with, all windows as one batch."""
    seen = {}
    hooks = []
    for name in names:
        keep = lambda module, arguments, name=name: seen.setdefault(name, arguments) and None  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    model(torch.tensor(windows))
    for hook in hooks:
        hook.remove()
    return seen


def test_sums_are_those_of_hooks(llama: PreTrainedModel) -> None:
    names, heard = linears(llama), []
    found = calibrate.collect(llama, names, WINDOWS, heard.append)
    assert len(names) == 14 and list(found) == names and heard == [1, 2, 3]
    by_hand = inputs(llama, [name.removesuffix(".weight") for name in names], WINDOWS)
    for name, activation in found.items():
        assert activation.sums.dtype == np.float32 and activation.counts.tolist() == [WINDOWS.size]
        np.testing.assert_allclose(activation.sums, squares(by_hand[name.removesuffix(".weight")][0]), rtol=1e-5)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_weights_may_have_their_inputs_as_rows(prefix: str) -> None:
    """As those of GPT-2 have, whose first checkpoints name them without a prefix."""
    model = random_model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=96))
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    names = [f"h.{layer}.{part}" for layer in range(2) for part in parts]
    found = calibrate.collect(model, [f"{prefix}{name}.weight" for name in names], WINDOWS)
    by_hand = inputs(model, [f"transformer.{name}" for name in names], WINDOWS)
    for name in names:
        activation, rows = found[f"{prefix}{name}.weight"], by_hand[f"transformer.{name}"][0]
        assert activation.counts.tolist() == [WINDOWS.size] and activation.sums.shape == (
            1,
            128 if "mlp.c_proj" in name else 32,
        )
        np.testing.assert_allclose(activation.sums, squares(rows), rtol=1e-5)


def mixture(kind: str) -> tuple[PreTrainedConfig, str, dict[str, str]]:
    """A config, and how its checkpoints name what is below a layer: the mixture, and gate, up and down of an expert."""
    if kind == "mixtral":
        config: PreTrainedConfig = MixtralConfig(**SHAPE, num_local_experts=EXPERTS, num_experts_per_tok=2)
        return config, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 8}
    return Qwen3MoeConfig(**SHAPE, **experts), "mlp", {part: f"{part}_proj" for part in ("gate", "up", "down")}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_get_what_is_routed_to_them(tmp_path: Path, kind: str) -> None:
    config, block, parts = mixture(kind)
    model = random_model(config)
    model.save_pretrained(tmp_path)
    stored = {name: torch.from_numpy(array) for name, array in load_file(tmp_path / "model.safetensors").items()}
    weights = [name for name, array in stored.items() if array.dim() == 2 and name.startswith("model.layers.")]
    found = calibrate.collect(model, weights, WINDOWS)
    assert len(weights) == 2 * (4 + 1 + 3 * EXPERTS) and found.keys() == set(weights)
    by_hand = inputs(model, [f"model.layers.{layer}.mlp.experts" for layer in range(2)], WINDOWS)
    for layer in range(2):
        rows, routed, _ = by_hand[f"model.layers.{layer}.mlp.experts"]
        prefix = f"model.layers.{layer}.{block}"
        np.testing.assert_allclose(found[f"{prefix}.gate.weight"].sums, squares(rows), rtol=1e-5)
        for expert in range(EXPERTS):
            mine = rows[(routed == expert).any(1)]
            gate, up, down = (f"{prefix}.experts.{expert}.{parts[part]}.weight" for part in ("gate", "up", "down"))
            inner = torch.nn.functional.silu(mine @ stored[gate].T) * (mine @ stored[up].T)
            for name, wanted in ((gate, mine), (up, mine), (down, inner)):
                assert found[name].counts.tolist() == [len(mine)] and 0 < len(mine) < len(rows)
                np.testing.assert_allclose(found[name].sums, squares(wanted), rtol=1e-4)


def test_stacked_experts_can_be_had_at_once() -> None:
    model = random_model(mixture("mixtral")[0])
    name, apart = "model.layers.1.mlp.experts.down_proj", "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    found = calibrate.collect(model, [name, *map(apart.format, range(EXPERTS))], WINDOWS[:1])
    for expert in range(EXPERTS):
        np.testing.assert_array_equal(found[name].sums[expert], found[apart.format(expert)].sums[0])
        assert found[name].counts[expert] == found[apart.format(expert)].counts[0]


def test_experts_that_no_token_reaches_count_nothing() -> None:
    model = random_model(mixture("mixtral")[0])
    names = [f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight" for expert in range(EXPERTS)]
    found = calibrate.collect(model, names, WINDOWS[:1, :1])
    assert sorted(int(found[name].counts[0]) for name in names) == [0, 0, 1, 1]
    assert [found[name].sums.any() for name in names] == [found[name].counts.any() for name in names]


def test_the_model_is_left_as_it_was() -> None:
    model = random_model(mixture("mixtral")[0])
    before, logits = model.get_experts_implementation(), model(torch.tensor(WINDOWS)).logits
    assert before != {"": "eager"}
    calibrate.collect(model, ["model.layers.0.self_attn.q_proj.weight"], WINDOWS)
    assert model.get_experts_implementation() == before
    assert torch.equal(model(torch.tensor(WINDOWS)).logits, logits)


def test_no_logits_are_computed(llama: PreTrainedModel) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the head was run")

    llama.lm_head.register_forward_pre_hook(refuse)
    calibrate.collect(llama, linears(llama), WINDOWS)


def test_activations_that_are_not_finite_are_named(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[3] = 1e30
    message = "'model.layers.0.mlp.down_proj.weight' is multiplied with are not finite"
    with pytest.raises(BadSource, match=message):
        calibrate.collect(llama, linears(llama), WINDOWS[:1])


def test_weights_that_are_not_seen_are_named(llama: PreTrainedModel) -> None:
    for name in ("model.layers.9.mlp.up_proj.weight", "model.layers.0.mlp.experts.0.w1.weight"):
        with pytest.raises(Unsupported, match=f"transformers' LlamaForCausalLM has no parameters for these weights: {name}$"):
            calibrate.collect(llama, [name], WINDOWS)
    with pytest.raises(Unsupported, match=r"cannot be seen: model.norm.weight$"):
        calibrate.collect(llama, ["model.norm.weight"], WINDOWS)
