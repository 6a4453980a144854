"""The family llama: its keys, and what it and every family refuse. That logits are right is shown in test_families.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from formats.gguf.test_write import blueprint, build
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from hubq.checkpoint import StoredTensor
from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf.arch import families, family, llama
from hubq.formats.gguf.hparams import ROPE, heads, rope
from hubq.formats.gguf.tensors import EXPERT, Part
from hubq.source import read_config

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}


def stored(config: Mapping[str, Any], **changes: tuple[int, ...] | None) -> dict[str, StoredTensor]:
    """The tensors that a config calls for; `changes` are shapes of more or other ones, None to leave one out."""
    mixture = config["model_type"] == "mixtral"
    size = llama.mixtral_sizes(config) if mixture else heads(config)
    layer = {**llama.ATTENTION, **(llama.EXPERTS if mixture else llama.FEED_FORWARD)}
    shapes = {**llama.FIRST, **llama.LAST}
    for block in range(size["layers"]):
        for name, part in layer.items():
            for expert in range(size["experts"] if EXPERT in name else 1):
                shapes[f"model.layers.{block}.{name.replace(EXPERT, str(expert))}"] = (
                    part.stored if isinstance(part, Part) else part
                )
    known = {name: tuple(size[part] for part in shape.split()) for name, shape in shapes.items()}
    wanted = known | {name.replace("__", "."): shape for name, shape in changes.items()}
    return {name: StoredTensor(name, "F32", shape, "m", 0, 0) for name, shape in wanted.items() if shape is not None}


def read(config: Mapping[str, Any]) -> None:
    """What blueprint.of_checkpoint does with a family."""
    kind = family(config)
    kind.tensors(config, stored(CONFIG))
    kind.keys(config)


# --- keys ---


def test_the_keys_of_a_llama() -> None:
    assert llama.keys(CONFIG) == {
        ".vocab_size": 512,
        ".context_length": 1024,
        ".embedding_length": 64,
        ".block_count": 2,
        ".feed_forward_length": 128,
        ".rope.dimension_count": 16,
        ".rope.freq_base": 10000.0,
        ".attention.head_count": 4,
        ".attention.head_count_kv": 2,
        ".attention.layer_norm_rms_epsilon": 1e-5,
    }


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"num_key_value_heads": None}, {".attention.head_count_kv": 4}),
        ({"rms_norm_eps": None}, {".attention.layer_norm_rms_epsilon": 1e-6}),
        (
            {"head_dim": 32},
            {".attention.key_length": 32, ".attention.value_length": 32, ".rope.dimension_count": 32},
        ),
        ({"rope_theta": 500000}, {".rope.freq_base": 500000.0}),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 1.0}, {".rope.freq_base": 5e5}),
        (
            {"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 2e4},
            {".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0, ".rope.freq_base": 2e4},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            {".rope.scaling.type": "linear", ".rope.scaling.factor": 2.0},
        ),
        ({"rope_parameters": LLAMA3}, {}),
        ({"hidden_act": "silu", "model_type": "mistral", "architectures": ["MistralForCausalLM"]}, {}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_keys_that_a_setting_changes(changes: dict[str, Any], keys: dict[str, Any]) -> None:
    config = CONFIG | changes
    assert family(config).keys(config) == llama.keys(CONFIG) | keys
    assert all(type(value) is type((llama.keys(CONFIG) | keys)[key]) for key, value in llama.keys(config).items())


def test_the_prefix_is_in_the_file(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, head_dim=64)
    fields = GGUFReader(build(folder, tmp_path / "out", ["F32"])["F32"].path).fields
    assert fields["general.architecture"].contents() == "llama"
    found = {key.removeprefix("llama"): field.contents() for key, field in fields.items() if key.startswith("llama.")}
    config = json.loads((folder / "config.json").read_text())
    assert found == pytest.approx(llama.keys(config))


# --- Llama 3.1's rotary scaling ---


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": LLAMA3},
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}, "rope_theta": 10000.0},
        {"rope_scaling": {"type": "llama3"} | {key: LLAMA3[key] for key in ROPE["llama3"]}},
    ],
)
def test_both_spellings_mean_the_same(spelling: dict[str, Any]) -> None:
    (found,), (wanted,) = rope(CONFIG | spelling, 16).tensors, rope(CONFIG | {"rope_parameters": LLAMA3}, 16).tensors
    assert np.array_equal(found.values, wanted.values) and found.name == "rope_freqs.weight"


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        (128, {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}),
        (64, {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}),
        (32, {}),
        (16, {"low_freq_factor": 0.5, "high_freq_factor": 9.0, "factor": 3}),
    ],
)
def test_the_factors_are_those_of_transformers(head: int, changes: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = CONFIG | {"hidden_size": 4 * head, "rope_parameters": LLAMA3 | changes}
    stretched, scale = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), device="cpu")
    theta = config["rope_parameters"]["rope_theta"]
    plain = theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    factors = rope(config, head).tensors[0].values
    assert factors is not None and factors.dtype == np.float32 and scale == 1
    assert np.allclose(factors, (plain / stretched.double()).numpy(), rtol=1e-6, atol=0)
    assert len(set(factors.tolist())) > 2 and factors.min() == 1 and factors.max() == config["rope_parameters"]["factor"]


# --- what a checkpoint may hold besides ---


def test_a_stored_head_of_a_tied_model_is_left_out(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", dtype="float32", num_hidden_layers=1, tie_word_embeddings=True)
    wanted = [tensor.name for tensor in blueprint(folder).tensors]
    tiny.rewrite(folder, lm_head__weight=np.full((512, 256), 7, np.float32))
    tiny.rewrite(folder, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(16, np.float32))
    assert [tensor.name for tensor in blueprint(folder).tensors] == wanted and "output.weight" not in wanted


# --- mixtures of experts ---

MIXTRAL: dict[str, Any] = CONFIG | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}


def test_the_keys_of_a_mixture() -> None:
    experts = {".expert_count": 4, ".expert_used_count": 2}
    assert llama.mixtral_keys(MIXTRAL) == llama.keys(CONFIG) | experts
    assert llama.mixtral_keys(MIXTRAL | {"num_local_experts": None, "num_experts_per_tok": 3}) == llama.keys(CONFIG) | {
        ".expert_count": 8,
        ".expert_used_count": 3,
    }


def test_experts_are_stacked_in_their_order() -> None:
    tensors = {tensor.name: tensor for tensor in llama.mixtral_tensors(MIXTRAL, stored(MIXTRAL))}
    assert len(tensors) == 2 * (6 + 1 + 3) + 3
    shapes = {"gate": ("w1", (4, 128, 64)), "down": ("w2", (4, 64, 128)), "up": ("w3", (4, 128, 64))}
    for name, (stored_name, shape) in shapes.items():
        tensor = tensors[f"blk.1.ffn_{name}_exps.weight"]
        experts = "model.layers.1.block_sparse_moe.experts"
        assert tensor.shape == shape and tensor.rows is None
        assert tensor.sources == tuple(f"{experts}.{i}.{stored_name}.weight" for i in range(4))
    assert tensors["blk.0.ffn_gate_inp.weight"].shape == (4, 64)
    assert tensors["blk.0.attn_q.weight"].rows is not None


def test_a_router_stays_in_single_precision(tmp_path: Path) -> None:
    folder = tiny.mixtral(tmp_path / "model", num_hidden_layers=1)
    reader = GGUFReader(build(folder, tmp_path / "out", ["F16"])["F16"].path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32" and types["blk.0.ffn_down_exps.weight"] == "F16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": 1, "num_experts_per_tok": 1}, "1 of 1 experts for a token make no sense"),
        ({"num_experts_per_tok": 5}, "5 of 4 experts for a token make no sense"),
        ({"num_local_experts": 1025}, "2 of 1025 experts for a token make no sense"),
        ({"num_local_experts": "4"}, "num_local_experts should be a positive whole number, but is '4'"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok should be a positive whole number, but is 0"),
        ({"num_local_experts": 1024}, "calls for 2 layers of 1024 experts, the checkpoint holds 41 tensors"),
        ({"num_hidden_layers": 2**31 - 1}, "calls for 2147483647 layers of 4 experts, the checkpoint holds 41 tensors"),
        ({"num_local_experts": 3}, r"family does not have: model\.layers\.0\.block_sparse_moe\.experts\.3\.w1\.weight"),
        ({"num_local_experts": 5}, r"lacks tensors .*: model\.layers\.0\.block_sparse_moe\.experts\.4\.w1\.weight"),
    ],
)
def test_experts_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSource, match=message) as caught:
        llama.mixtral_tensors(MIXTRAL | changes, stored(MIXTRAL))
    assert caught.value.hint


def test_an_expert_of_another_shape_is_refused() -> None:
    name = "model__layers__1__block_sparse_moe__experts__2__w2__weight"
    with pytest.raises(BadSource, match=r"experts\.2\.w2\.weight' is \[128, 64\], config\.json makes it \[64, 128\]"):
        llama.mixtral_tensors(MIXTRAL, stored(MIXTRAL, **{name: (128, 64)}))


# --- refusals: which family ---


def test_known_families() -> None:
    assert {"llama", "mistral", "mixtral"} <= set(families())
    assert family(CONFIG | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}).gguf == "llama"


@pytest.mark.parametrize(
    ("architectures", "model_type"),
    [
        (["T5ForConditionalGeneration"], "t5"),
        (["LlamaForSequenceClassification"], "llama"),
        (["MistralForCausalLM"], "mixtral"),
        (["LlamaForCausalLM"], "../llama"),
        (["LlamaForCausalLM"], "__init__"),
        ([["LlamaForCausalLM"]], "llama"),
        ([None], "llama"),
        (["\x1b[2J"], "llama"),
    ],
)
def test_other_families_are_refused_by_name(architectures: list[Any], model_type: str) -> None:
    with pytest.raises(Unsupported, match=r"does not convert .* to GGUF; `hubq families` lists what it knows$") as caught:
        family(CONFIG | {"architectures": architectures, "model_type": model_type})
    assert repr(model_type) in caught.value.message and "--llama-cpp" in caught.value.hint
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("architectures", [None, [], {}, "LlamaForCausalLM", 5, {"0": "x"}, True])
@pytest.mark.parametrize("model_type", [None, "", 5, ["llama"], "llama"])
def test_a_config_that_names_no_architecture(architectures: Any, model_type: Any) -> None:
    with pytest.raises(BadSource, match=r"config\.json names no architecture") as caught:
        family(CONFIG | {"architectures": architectures, "model_type": model_type})
    assert caught.value.hint


# --- refusals: numbers ---

NUMBERS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
]
NONSENSE = ["64", 0, -1, True, False, 64.0, [64], {}, 2**31, 10**4000, float("nan")]


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(BadSource, match=rf"config\.json: {key} should be a positive whole number, but is ") as caught:
        read(CONFIG | {key: value})
    assert caught.value.hint


@pytest.mark.parametrize("key", [key for key in NUMBERS if key not in ("head_dim", "num_key_value_heads")])
def test_a_missing_number_is_refused_by_name(key: str) -> None:
    with pytest.raises(BadSource, match=rf"config\.json: {key} should be .*, but is None") as caught:
        read({name: value for name, value in CONFIG.items() if name != key})
    assert caught.value.hint


@pytest.mark.parametrize("value", ["1e-5", 0, -1e-5, True, [1], float("inf"), float("nan"), 10**400, 1e-300])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_a_setting_that_makes_no_sense_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(BadSource, match=rf"config\.json: {key} should be a positive number, but is ") as caught:
        read(CONFIG | {key: value})
    assert caught.value.hint


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_a_flag_that_is_none_is_refused_by_name(key: str) -> None:
    with pytest.raises(BadSource, match=rf"config\.json: {key} should be true or false, but is 'false'") as caught:
        read(CONFIG | {key: "false"})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
        ({"num_attention_heads": 128}, "hidden_size 64 is no multiple of num_attention_heads 128"),
        ({"num_key_value_heads": 3}, "4 query heads, 3 key heads and a head size of 16 do not fit together"),
        ({"num_key_value_heads": 8}, "4 query heads, 8 key heads and a head size of 16 do not fit together"),
        ({"head_dim": 15}, "a head size of 15 do not fit together"),
        ({"num_attention_heads": 64, "num_key_value_heads": 2}, "a head size of 1 do not fit together"),
    ],
)
def test_heads_that_do_not_divide(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSource, match=message) as caught:
        read(CONFIG | changes)
    assert caught.value.hint


def test_layers_that_nobody_could_hold_cost_nothing() -> None:
    with pytest.raises(BadSource, match=r"calls for 2147483647 layers, the checkpoint holds 21 tensors") as caught:
        read(CONFIG | {"num_hidden_layers": 2**31 - 1})
    assert caught.value.hint


@pytest.mark.parametrize("activation", ["gelu", "relu", 3, ["silu"]])
def test_another_activation_is_refused(activation: Any) -> None:
    with pytest.raises(Unsupported, match=r"llama\.cpp computes silu") as caught:
        read(CONFIG | {"hidden_act": activation})
    assert repr(activation) in caught.value.message and caught.value.hint


# --- refusals: rotary settings ---


@pytest.mark.parametrize("kind", ["dynamic", "longrope", None, 3, ["llama3"], {}])
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_an_unknown_rotary_scaling_is_refused_by_name(spelling: str, kind: Any) -> None:
    with pytest.raises(Unsupported, match=r"rotary embeddings of type .*; it knows default, linear, llama3") as caught:
        read(CONFIG | {spelling: {"rope_type": kind, "factor": 2.0}})
    assert repr(kind) in caught.value.message and caught.value.hint


def test_rotary_embeddings_of_half_a_head_are_refused() -> None:
    with pytest.raises(Unsupported, match="partial_rotary_factor"):
        read(CONFIG | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}})


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [None, "8", 0, -8.0, True, float("nan")])
def test_a_rotary_setting_that_is_missing_or_nonsense(key: str, value: Any) -> None:
    with pytest.raises(BadSource, match=rf"config\.json: {key} should be a positive number, but is {value!r}") as caught:
        read(CONFIG | {"rope_parameters": LLAMA3 | {key: value}})
    assert caught.value.hint


def test_linear_scaling_needs_its_factor() -> None:
    with pytest.raises(BadSource, match="factor should be a positive number, but is None"):
        read(CONFIG | {"rope_scaling": {"type": "linear"}})


def test_frequencies_the_wrong_way_round() -> None:
    for low in (4.0, 5.0):
        with pytest.raises(BadSource, match="low_freq_factor should be less than high_freq_factor") as caught:
            read(CONFIG | {"rope_parameters": LLAMA3 | {"low_freq_factor": low}})
        assert caught.value.hint


@pytest.mark.parametrize("value", ["linear", [1], 3, [["rope_type", "linear"]]])
def test_rotary_settings_that_are_no_table(value: Any) -> None:
    with pytest.raises(BadSource, match="rotary settings should be a table") as caught:
        read(CONFIG | {"rope_scaling": value})
    assert caught.value.hint


# --- refusals: tensors ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"lacks tensors that config\.json calls for: model\.norm\.weight$"),
        ({"lm_head__weight": None}, r"lacks tensors that config\.json calls for: lm_head\.weight$"),
        (
            {"model__layers__2__mlp__up_proj__weight": (128, 64)},
            r"holds tensors that this family does not have: model\.layers\.2\.mlp\.up_proj\.weight$",
        ),
        ({"model__layers__0__self_attn__q_proj__bias": (64,)}, r"does not have: model\.layers\.0\.self_attn\.q_proj\.bias$"),
        ({"score__weight": (2, 64)}, "does not have: score.weight$"),
        (
            {"model__layers__1__self_attn__k_proj__weight": (64, 64)},
            r"k_proj\.weight' is \[64, 64\], config.* \[32, 64\]",
        ),
        ({"model__norm__weight": (1, 64)}, r"model\.norm\.weight' is \[1, 64\], config\.json makes it \[64\]"),
        ({"model__norm__weight": ()}, r"model\.norm\.weight' is \[\], config\.json makes it \[64\]"),
        ({"model__embed_tokens__weight": (513, 64)}, r"embed_tokens\.weight' is \[513, 64\]"),
    ],
)
def test_tensors_that_do_not_fit_the_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSource, match=message) as caught:
        llama.tensors(CONFIG, stored(CONFIG, **changes))
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["F64", "I8", "U8", "I64", "BOOL", "F8_E5M2"])
def test_weights_of_other_types_are_refused_by_name(dtype: str) -> None:
    tensors = stored(CONFIG)
    tensors["model.norm.weight"] = replace(tensors["model.norm.weight"], dtype=dtype)
    with pytest.raises(Unsupported, match=rf"'model\.norm\.weight' is stored as {dtype}; hubq reads F32, F16, BF16") as caught:
        llama.tensors(CONFIG, tensors)
    assert "unquantized" in caught.value.hint


def test_every_missing_tensor_is_counted() -> None:
    with pytest.raises(BadSource, match=r"model\.layers\.1\.input_layernorm\.weight, .* and 5 more"):
        llama.tensors(CONFIG, {name: tensor for name, tensor in stored(CONFIG).items() if "layers.1" not in name})


def test_biases_that_the_config_does_not_call_for_and_the_other_way_round(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, attention_bias=True)
    tiny.config(folder, attention_bias=False)
    with pytest.raises(BadSource, match=r"does not have: .*bias"):
        blueprint(folder)
    tiny.config(folder, attention_bias=True, mlp_bias=True)
    with pytest.raises(BadSource, match=r"calls for: .*bias"):
        blueprint(folder)


# --- nothing else escapes ---

NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 4, 16, 64, 10**400])
VALUE = NUMBER | st.none() | st.booleans() | st.text(max_size=6)
NESTED = VALUE | st.lists(VALUE, max_size=3) | st.dictionaries(st.sampled_from(["type", *LLAMA3]), VALUE)
OPTIONAL = [
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
]


@given(st.dictionaries(st.sampled_from([*CONFIG, *OPTIONAL]), NESTED, max_size=4))
@settings(max_examples=400, deadline=None)
def test_no_config_ends_in_another_error(changes: dict[str, Any]) -> None:
    allowed(lambda: read(read_config(json.dumps(CONFIG | changes).encode())))


@given(st.dictionaries(st.sampled_from([*MIXTRAL, *OPTIONAL, "num_experts_per_tok"]), NESTED, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_config_of_a_mixture_ends_in_another_error(changes: dict[str, Any]) -> None:
    config = read_config(json.dumps(MIXTRAL | changes).encode())
    allowed(lambda: llama.mixtral_tensors(config, stored(MIXTRAL)))
    allowed(lambda: llama.mixtral_keys(config))


def allowed(work: Callable[[], Any]) -> None:
    try:
        work()
    except HubqError as error:
        assert error.message and error.hint


def test_the_config_that_is_changed_is_sound() -> None:
    read(CONFIG)
