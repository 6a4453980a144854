"""Who exports what: the tables are what the exporters say, and mobius' graphs compute what transformers computes.

The environments are the real ones. They are made once, in build/sealed: that takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from families import Variant, make
from nightly import mostly

from hubq import sealed
from hubq.errors import HubqError, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.formats.onnx import engine, graph
from hubq.formats.onnx.export import DECODER, choose, export
from hubq.formats.onnx.exporters import DECODERS, EXPORTERS, OPTIMUM
from hubq.formats.onnx.quantize import quantize
from hubq.plan import Request, plan
from hubq.release import publish
from hubq.store import Store, sha256
from hubq.text import TextSpec

pytestmark = pytest.mark.timeout(1800)  # the first test may make the environments

HERE = Path(__file__).parent
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
SCALED = {**YARN, "llama_4_scaling_beta": 0.1, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
SCALES = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 4.0}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SHARED = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "norm_topk_prob": True}
# what Optimum does not know, each kind with something that could be left out
LATER = {
    "apertus": Variant("ApertusForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "diffllama": Variant("DiffLlamaForCausalLM", {"attention_bias": True}),
    "exaone4": Variant("Exaone4ForCausalLM", {"layer_types": ["full_attention"] * 2, "sliding_window": None}),
    "glm4": Variant("Glm4ForCausalLM", {"head_dim": 64, "attention_bias": False, "partial_rotary_factor": 0.5}),
    "granitemoe": Variant("GraniteMoeForCausalLM", {**MIXTURE, **SCALES}),
    "ministral3": Variant("Ministral3ForCausalLM", {"head_dim": 64, "rope_parameters": SCALED}),
    "mixtral": Variant("MixtralForCausalLM", {**MIXTURE, "tie_word_embeddings": True}),
    "olmoe": Variant("OlmoeForCausalLM", {**EXPERTS, "norm_topk_prob": True}),
    "qwen2_moe": Variant("Qwen2MoeForCausalLM", {**EXPERTS, **SHARED}),
    "starcoder2": Variant("Starcoder2ForCausalLM", {"use_bias": True}),
}
# what both know
BOTH = {
    "gemma2": Variant("Gemma2ForCausalLM", {"head_dim": 64, "sliding_window": 256, "final_logit_softcapping": 8.0}),
    "llama": Variant("LlamaForCausalLM", {"rope_parameters": LLAMA3, "attention_bias": True, "tie_word_embeddings": True}),
    "phi3": Variant("Phi3ForCausalLM"),
    "qwen2": Variant("Qwen2ForCausalLM"),
    "qwen3": Variant("Qwen3ForCausalLM", {"head_dim": 64}),
}
IDS = np.random.default_rng(0).integers(2, tiny.VOCABULARY, 60)


def made(folder: Path, tmp_path: Path) -> Path:
    """mobius' graph of a model, in its normal form."""
    exported = export(folder, os.listdir(folder), DECODER, tmp_path / "out", lambda line: None, "mobius")
    model = graph.read(tmp_path / "out" / exported.graphs[0].file)
    graph.normalize(model)
    graph.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def logits(folder: Path, kind: str) -> np.ndarray:
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(IDS[None])).logits[0].numpy()


def test_the_tables_are_complete() -> None:
    assert LATER.keys() == DECODERS["mobius"] - DECODERS["optimum"] and BOTH.keys() == DECODERS["mobius"] & DECODERS["optimum"]


def test_optimum_exports_what_the_table_says(tmp_path: Path) -> None:
    found = sealed.call(OPTIMUM, HERE / "kinds.py", {"task": DECODER}, tmp_path, tmp_path, lambda line: None)
    assert set(found["kinds"]) == DECODERS["optimum"]


QUICK = {"apertus", "qwen2_moe"}  # a gated one, and a mixture with shared experts
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough) for name in LATER | BOTH]


@pytest.mark.parametrize("name", NAMES)
def test_mobius_builds_what_transformers_computes(name: str, tmp_path: Path) -> None:
    variant = (LATER | BOTH)[name]
    folder = make(variant, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == name
    assert choose(config, DECODER) == ("mobius" if name in LATER else "optimum") and choose(config, DECODER, "mobius")
    path = made(folder, tmp_path)
    expected = logits(folder, variant.model)
    with engine.load(path) as run:
        found = run(np.append(IDS, 0), 0)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert engine.cache_difference(path, IDS) < 1e-4
    model = graph.read(path)
    assert len(graph.embeddings(model)) == 1
    tied = [weight for weight in graph.weights(model) if weight.transposed]
    assert len(tied) == config.get("tie_word_embeddings", False)


@pytest.mark.thorough
def test_the_same_graph_twice(tmp_path: Path) -> None:
    folder = make(BOTH["llama"], tmp_path / "model")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = made(folder, tmp_path / "a"), made(folder, tmp_path / "b")
    assert sha256(first) == sha256(second)
    assert str(tmp_path).encode() not in first.read_bytes()


@pytest.mark.parametrize("level", mostly(["fp16", "q8", "q4", "q4f16", "bnb4", "int8"], ["q8", "q4"]))
def test_levels_of_its_graphs_run(level: str, level_source: Path, tmp_path: Path) -> None:
    quantized = quantize(level_source, level, tmp_path / "level.onnx")
    engine.load_test(quantized.files[0])
    assert engine.cache_difference(quantized.files[0], IDS[:32]) < 0.1
    with engine.load(level_source) as run, engine.load(quantized.files[0]) as run_level:
        reference, found = run(IDS, 0), run_level(IDS, 0)
    assert np.corrcoef(reference.ravel(), found.ravel())[0, 1] > (0.95 if "4" in level else 0.99)
    assert not quantized.fallbacks


@pytest.fixture(scope="module")
def level_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apertus")
    return made(make(Variant("ApertusForCausalLM", {"initializer_range": 0.03}), folder / "model"), folder)


def test_a_kind_that_only_mobius_knows_is_published(topics: Path, tmp_path: Path) -> None:
    longer = {**LATER["exaone4"].settings, "max_position_embeddings": 1024}  # mobius' graphs take no position beyond
    folder = make(Variant("Exaone4ForCausalLM", longer), tmp_path / "source" / "Tiny-Exaone")
    (tmp_path / "out").mkdir()
    text = TextSpec(str(topics), None, windows=2)
    levels = parse_levels("onnx:fp32,onnx:q8,onnx:q4")
    request = Request(str(folder), levels, Store(tmp_path / "store"), to=str(tmp_path / "out"), text=text)
    planned = plan(request)
    assert "mobius exports the graph" in planned.blueprint.notes
    release = publish(request).release
    assert release.versions["mobius-onnx"] == "0.1.0" and "optimum-onnx" not in release.versions
    assert {file.options for file in release.artifacts} == {"--exporter mobius"}
    assert {check.outcome for check in release.checks} == {"passed"}


# --- what is refused, before anything is fetched or made ---


def config(**settings: Any) -> dict[str, Any]:
    return {"model_type": "apertus", "max_position_embeddings": 4096, **settings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sliding_window": 512}, "sliding windows"),
        ({"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}, "sliding windows"),
        ({"rope_parameters": YARN}, "the rotary embedding 'yarn'"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "cannot follow the rotary embedding 'longrope'"),
    ],
)
def test_settings_that_mobius_would_leave_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        choose(config(**settings), DECODER)


def test_settings_that_change_nothing() -> None:
    harmless: list[dict[str, Any]] = [
        {"sliding_window": 4096},
        {"sliding_window": 512, "use_sliding_window": False},
        {"sliding_window": 512, "layer_types": ["full_attention"]},
        {"model_type": "ministral3", "rope_parameters": SCALED},
    ]
    for settings in harmless:
        assert choose(config(**settings), DECODER) == "mobius"


def test_kinds_and_exporters_that_are_none() -> None:
    with pytest.raises(Unsupported, match="no exporter takes a decoder of type 'brand_new'"):
        choose({"model_type": "brand_new"}, DECODER)
    with pytest.raises(Usage, match="no exporter 'mine'"):
        choose(config(), DECODER, "mine")
    with pytest.raises(Unsupported, match="Optimum does not export a model of type 'apertus'") as caught:
        choose(config(), DECODER, "optimum")
    assert caught.value.hint == "take --exporter mobius, or leave it out"
    assert choose({"model_type": "bert"}, "feature-extraction") == "optimum"
    with pytest.raises(Unsupported, match="mobius does not export a model of type 'bert' for feature-extraction"):
        choose({"model_type": "bert"}, "feature-extraction", "mobius")


def fails(folder: Path, tmp_path: Path, kind: type[HubqError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        export(folder, os.listdir(folder), DECODER, tmp_path / "out", lambda line: None, "mobius")
    assert os.listdir(tmp_path / "out") == [] and caught.value.hint and str(tmp_path) not in caught.value.message


def test_weights_that_the_graph_has_no_place_for(tmp_path: Path) -> None:
    folder = make(Variant("LlamaForCausalLM", {"mlp_bias": True}), tmp_path / "model")
    fails(folder, tmp_path, Unsupported, r"mobius builds another model than these weights are of.*mlp\.\w+_proj\.bias")


def test_weights_that_are_missing(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, dtype="float32")
    tiny.rewrite(folder, model__layers__0__mlp__up_proj__weight=None)
    fails(folder, tmp_path, Unsupported, r"model\.layers\.0\.mlp\.up_proj\.weight")


def test_a_kind_that_mobius_does_not_know(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tiny.config(folder, model_type="brand_new")
    fails(folder, tmp_path, Unsupported, "mobius cannot export a model of type 'brand_new'")


def test_both_environments_are_shown() -> None:
    command = [sys.executable, "-m", "hubq", "env", "show", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    found = {row["name"]: row for row in json.loads(ended.stdout)["environments"]}
    assert found.keys() == EXPORTERS.keys() and {row["state"] for row in found.values()} == {"ready"}
    wrong = subprocess.run([*command[:-2], "create", "mine"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "there is no environment 'mine'" in wrong.stderr
