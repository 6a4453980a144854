"""Recipes of every level, held against the types that llama.cpp itself chooses for models of many shapes."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import upstream
from formats.gguf.test_write import blueprint, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubq.errors import HubqError, Unsupported, Usage
from hubq.formats.gguf.arch import Tensor
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.levels import GROUPS, LEVELS, MIXES, group, needs_matrix
from hubq.formats.gguf.recipe import (
    CONDITIONS,
    ENDS,
    Custom,
    Model,
    parse_tensor_type,
    parse_type,
    read_tensor_types,
    recipe,
    unmeasured,
)

NEEDING = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}


def save(path: Path, architecture: str, keys: Mapping[str, Any], tensors: Sequence[Tensor]) -> Path:
    """Write a GGUF of zeros, which take no space on the disk, each tensor in the type that it is kept in."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}.get(type(value), writer.add_array)
        add(key if key.startswith("xielu.") else f"{architecture}.{key}", value)
    sizes = [TYPES[tensor.kept].bytes * math.prod(tensor.shape) for tensor in tensors]
    for tensor, size in zip(tensors, sizes, strict=True):
        kind = gguf.GGMLQuantizationType[tensor.kept]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + sum(sizes) + 64 * len(sizes))
    return path


@dataclass(frozen=True)
class Shape:
    """A model that exists by its names and shapes alone. `shared` adds a dense expert to the layers of a mixture."""

    layers: int = 16
    heads: int = 4
    kv_heads: int = 4
    experts: int = 0
    architecture: str = "llama"
    hidden: int = 256
    inner: int = 512
    tied: bool = False
    shared: bool = False
    biases: bool = False
    attention: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")

    @property
    def model(self) -> Model:
        return Model(self.layers, self.heads, self.kv_heads, self.experts, self.architecture)

    @cached_property
    def tensors(self) -> list[Tensor]:
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, self.hidden)}
        for layer in range(self.layers):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in self._layer().items()}
        shapes["output_norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["output.weight"] = (64, self.hidden)
        return [Tensor(name, shape) for name, shape in shapes.items()]

    def _layer(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (self.hidden,)}
        shapes |= {f"{name}.weight": (self.hidden, self.hidden) for name in (*self.attention, "attn_output")}
        for name in ("ffn_gate", "ffn_down", "ffn_up"):
            matrix = (self.hidden, self.inner) if name == "ffn_down" else (self.inner, self.hidden)
            if self.experts:
                shapes[f"{name}_exps.weight"] = (self.experts, *matrix)
            if self.shared or not self.experts:
                shapes[f"{name}_shexp.weight" if self.experts else f"{name}.weight"] = matrix
            if self.biases:
                shapes[f"{name}.bias"] = matrix[:1]
        if self.experts:
            shapes["ffn_gate_inp.weight"] = (self.experts, self.hidden)
        return shapes

    def save(self, path: Path) -> Path:
        """Write a GGUF of zeros."""
        keys = {"block_count": self.layers, "context_length": 64, "embedding_length": self.hidden, "vocab_size": 64}
        keys |= {"attention.head_count": self.heads, "attention.head_count_kv": self.kv_heads}
        keys |= {f"attention.layer_norm{kind}_epsilon": 1e-5 for kind in ("", "_rms")}
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": 1}
        return save(path, self.architecture, keys, self.tensors)

    @cached_property
    def matrix(self) -> dict[str, np.ndarray]:
        """An importance matrix that covers the matrices of all layers."""
        matrices = [tensor for tensor in self.tensors if "blk." in tensor.name and len(tensor.shape) > 1]
        return {tensor.name: np.ones(math.prod(tensor.shape) // tensor.shape[-2], np.float32) for tensor in matrices}


SHAPES = {
    "dense": Shape(),
    "tied": Shape(tied=True),
    "many layers": Shape(layers=33),
    "few layers": Shape(layers=3),
    "grouped by 4": Shape(kv_heads=1),
    "grouped by 2": Shape(kv_heads=2, biases=True),
    "8 experts": Shape(layers=17, experts=8),
    "8 experts, grouped": Shape(layers=32, experts=8, kv_heads=1, tied=True),
    "4 experts": Shape(experts=4),
    "2 experts, grouped": Shape(experts=2, kv_heads=1),
    "1 expert": Shape(experts=1),
    "shared expert": Shape(layers=17, experts=8, shared=True),
    "fused attention": Shape(attention=("attn_qkv",)),
    "latent attention": Shape(attention=("attn_q", "attn_kv_a_mqa", "attn_kv_b")),
    "falcon": Shape(layers=32, architecture="falcon", attention=("attn_qkv",), kv_heads=1),
    "falcon, 8 experts": Shape(layers=17, architecture="falcon", experts=8),
    "65b": Shape(layers=80),
    "70b": Shape(layers=80, kv_heads=1),
    "70b, grouped by 2": Shape(layers=80, kv_heads=2),
    "70b, 8 experts": Shape(layers=80, kv_heads=1, experts=8),
    "70b, 4 experts": Shape(layers=80, kv_heads=1, experts=4),
    "qwen2, 80 layers": Shape(layers=80, architecture="qwen2"),
    "olmo, 80 layers": Shape(layers=80, architecture="olmo"),
    "jais2, 68 layers": Shape(layers=68, architecture="jais2"),
    "narrow": Shape(hidden=64, inner=96),
    "odd": Shape(hidden=96, inner=72, tied=True),
    "narrow experts": Shape(hidden=320, inner=128, experts=8),
}


Save = Callable[[Shape], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Shape -> its GGUF, written once."""
    folder = tmp_path_factory.mktemp("shapes")
    return cache(lambda shape: shape.save(folder / f"{hash(shape)}.gguf"))


def assert_same(level: str, shape: Shape | Named, path: Path, measured: bool, custom: Custom = Custom()) -> None:  # noqa: B008
    """Our recipe is llama.cpp's, or both refuse."""
    options: dict[str, Any] = {"matrix": shape.matrix if measured else None, "pure": custom.pure}
    options["tensor_types"] = [(pattern, TYPES[kind].number) for pattern, kind in custom.tensor_types]
    options |= {key: TYPES[kind].number for key in ("output", "embedding") if (kind := getattr(custom, key))}
    try:
        chosen = recipe(level, shape.tensors, shape.model, options["matrix"], custom)
    except Unsupported:
        with pytest.raises(RuntimeError):
            upstream.choices(path, MIXES[level].file_type, **options)
        return
    assert chosen.level == f"gguf:{level}" and list(chosen.types) == [tensor.name for tensor in shape.tensors]
    assert (chosen.types, chosen.fallbacks) == upstream.choices(path, MIXES[level].file_type, **options)


# --- the levels ---


def test_every_level_of_llama_quantize_is_there() -> None:
    assert len(MIXES) == 35
    numbers = [mix.file_type for mix in MIXES.values()]
    gone = {4, 5, 6, 33, 34, 35}  # formats that llama.cpp dropped, and 39, NVFP4, which it does not write
    assert sorted(numbers) == [number for number in range(42) if number not in gone | {39}]


def test_bits_are_those_of_the_base_type() -> None:
    for mix in MIXES.values():
        assert mix.bits == 8 * TYPES[mix.base].bytes / TYPES[mix.base].block


def test_levels_are_grouped_and_groups_are_in_order() -> None:
    groups = [group(level) for level in LEVELS.values()]
    assert list(dict.fromkeys(groups)) == list(GROUPS.values())
    assert groups == sorted(groups, key=list(GROUPS.values()).index)
    found = {name: group(LEVELS[name]) for name in ("F16", "Q8_0", "Q5_0", "Q4_1", "IQ3_XXS", "Q2_K", "Q1_0")}
    assert list(found.values()) == ["16-32 bit", "5-8 bit", "5-8 bit", "3-4 bit", "3-4 bit", "1-2 bit", "1-2 bit"]


def test_rules_speak_of_known_types_conditions_and_categories() -> None:
    words = {word for mix in MIXES.values() for rules in mix.rules.values() for words, _ in rules for word in words.split()}
    assert words == CONDITIONS.keys()
    assert {wanted for mix in MIXES.values() for rules in mix.rules.values() for _, wanted in rules} < TYPES.keys()


def test_summaries_are_one_plain_line() -> None:
    summaries = [mix.summary for mix in MIXES.values()]
    assert len(set(summaries)) == len(summaries)
    assert all(10 < len(summary) < 90 and summary.isprintable() and not summary.endswith(".") for summary in summaries)


# --- types are llama.cpp's ---


@pytest.mark.parametrize("measured", [False, True], ids=["without a matrix", "with a matrix"])
@pytest.mark.parametrize("name", SHAPES)
def test_types_are_those_of_llama_cpp(name: str, measured: bool, saved: Save) -> None:
    shape = SHAPES[name]
    for level in MIXES if shape.layers < 40 or not measured else ("IQ3_XXS", "IQ4_XS"):
        assert_same(level, shape, saved(shape), measured)


def test_the_dry_run_chooses_what_is_then_written(tmp_path: Path) -> None:
    shape = Shape(layers=1, experts=4, inner=96)
    path = shape.save(tmp_path / "model.gguf")
    for level in ("Q4_K_M", "IQ4_XS", "MXFP4_MOE", "F16"):
        upstream.quantize(path, tmp_path / "out.gguf", MIXES[level].file_type, matrix=shape.matrix)
        written = {name: kind for name, (kind, _) in upstream.tensors(tmp_path / "out.gguf").items()}
        chosen = recipe(level, shape.tensors, shape.model, shape.matrix).types
        assert written == {name: TYPES[kind].number for name, kind in chosen.items()}


@pytest.mark.parametrize("make", [tiny.llama, tiny.mixtral], ids=["llama", "mixtral"])
def test_our_own_files_get_the_same_types(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model", num_hidden_layers=3, hidden_size=128, intermediate_size=256)
    drawn, path = blueprint(folder), build(folder, tmp_path / "out", ["BF16"])["BF16"].path
    for level, mix in MIXES.items():
        chosen = recipe(level, drawn.tensors, drawn.model)
        assert (chosen.types, chosen.fallbacks) == upstream.choices(path, mix.file_type)


def test_types_are_in_the_order_of_the_file_and_independent_of_it() -> None:
    shape = Shape(layers=33)
    backwards = recipe("Q4_K_M", shape.tensors[::-1], shape.model)
    assert list(backwards.types) == [tensor.name for tensor in shape.tensors[::-1]]
    assert backwards.types == recipe("Q4_K_M", shape.tensors, shape.model).types


def test_fallbacks_are_counted() -> None:
    assert recipe("Q4_K_M", SHAPES["dense"].tensors, SHAPES["dense"].model).fallbacks == 0
    shape = SHAPES["narrow"]
    chosen = recipe("Q4_K_M", shape.tensors, shape.model)
    assert chosen.fallbacks == sum(len(tensor.shape) == 2 for tensor in shape.tensors) - 1  # the output is Q8_0 outright


def test_a_row_without_a_fallback_is_refused() -> None:
    shape = SHAPES["narrow"]
    with pytest.raises(Unsupported, match=r"token_embd\.weight cannot be Q1_0: its rows of 64 weights are no multiple of 128"):
        recipe("Q1_0", shape.tensors, shape.model)


PATTERNS = [
    "attn_v",
    r"blk\.[0-3]\.",
    "ffn_(up|gate)",
    r"blk\.(\d|1[0-2])\.ffn",
    "^output",
    "token",
    ".",
    r"[02468]\..*weight$",
]
TYPE = st.sampled_from(sorted(TYPES))
CUSTOM = st.builds(
    Custom,
    st.lists(st.tuples(st.sampled_from(PATTERNS), TYPE), max_size=2).map(tuple),
    st.none() | TYPE,
    st.none() | TYPE,
    st.booleans(),
)
SHAPE = st.builds(
    Shape,
    layers=st.integers(1, 40),
    kv_heads=st.sampled_from([1, 2, 4]),
    experts=st.sampled_from([0, 0, 2, 4, 8, 16]),
    hidden=st.sampled_from([256, 256, 512, 288, 320]),
    inner=st.sampled_from([256, 512, 96]),
    tied=st.booleans(),
    shared=st.booleans(),
    architecture=st.sampled_from(["llama", "llama", "falcon"]),
)


@given(level=st.sampled_from(sorted(MIXES)), shape=SHAPE, measured=st.booleans(), custom=CUSTOM)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_model_and_any_custom_recipe(level: str, shape: Shape, measured: bool, custom: Custom, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.unlink(missing_ok=True)
    try:
        assert_same(level, shape, shape.save(path), measured, custom)
    except (
        Usage
    ) as error:  # no pattern fits, or a type does not fit the rows: llama.cpp would ignore the one and abort at the other
        assert "no tensor fits" in error.message or "are no multiple of" in error.message


# --- any architecture ---

# hyper-parameters that llama.cpp wants of one architecture or another; all get all of them
HYPER: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "vocab_size": 64,
    "features_length": 64,
    "embedding_length_per_layer_input": 256,
    "expert_feed_forward_length": 64,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_group_scale": 0.05,
    "experts_per_group": 2,
    "leading_dense_block_count": 0,
    "interleave_moe_layer_step": 1,
    "moe_every_n_layers": 2,
    "hash_layer_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "swiglu_clamp_exp": 7.0,
    "swiglu_clamp_shexp": 7.0,
    "use_parallel_residual": True,
    "time_mix_extra_dim": 32,
    "time_decay_extra_dim": 64,
    "wkv.head_size": 64,
    "shortconv.l_cache": 3,
    "attn_res.block_size": 2,
    "activation.situ_beta": 1.0,
    "activation.situ_linear_beta": 1.0,
    "rope.dimension_sections": [8, 8, 8, 8],
    "rope.freq_base_swa": 10000.0,
    "target_layers": [0, 1, 2],
    "target_hidden_size": 256,
    "adapters.count": 1,
    "adapters.lora_rank": 4,
    "adapters.token_ids_activate": [1],
    "adapters.token_ids_substitute": [2],
}
HYPER |= {f"ssm.{key}": 16 for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank")} | {"ssm.group_count": 1}
HYPER |= {"kda.head_dim": 64, "kda.safe_gate": True, "kda.gate_lower_bound": -5.0}
HYPER |= {"hrm.layers_per_stack": 4, "hrm.h_cycles": 1, "hrm.l_cycles": 1}
HYPER |= {f"{part}.{key}": 1 for part in ("posnet", "convnext") for key in ("embedding_length", "block_count")}
HYPER |= {f"xielu.{key}": 1.0 for key in ("alpha_n", "alpha_p", "beta", "eps")}
HYPER |= {f"hyper_connection.{key}": 4 for key in ("count", "low_rank", "sinkhorn_iterations")}
HYPER |= {f"hyper_connection.{key}": 1e-5 for key in ("epsilon", "magnitude")}
HYPER |= {f"attention.{key}_epsilon": 1e-5 for key in ("layer_norm", "layer_norm_rms", "group_norm")}
HYPER |= {f"attention.{key}_lora_rank": 32 for key in ("q", "kv", "output", "decay", "iclr", "value_residual_mix", "gate")}
HYPER |= {f"attention.{key}_length{kind}": 64 for key in ("key", "value") for kind in ("_mla", "_swa", "_mla_swa")}
HYPER |= {f"attention.indexer.{key}": 4 for key in ("head_count", "top_k", "block_size", "local_blocks", "kpool")}
HYPER |= {"attention.indexer.key_length": 128, "attention.sliding_window": 32, "attention.kv_lora_rank_swa": 32}
HYPER |= {"attention.relative_buckets_count": 32, "attention.clamp_kqv": 8.0, "attention.compress_rope_freq_base": 10000.0}
HYPER |= {"attention.group_norm_groups": 2, "attention.output_group_count": 2}

# key -> architectures that want a list of it, with an item for each layer
PATTERN = ("gemma4", "gemma4-assistant", "maple", "granite_swa", "mimo2", "step35", "spark2_5", "dots3note", "dflash")
BY_LAYER: dict[str, tuple[tuple[str, ...], Any]] = {
    "attention.sliding_window_pattern": (PATTERN, True),
    "attention.indexer.types": (("dots3note", "hy_v4"), True),
    "attention.compress_ratios": (("deepseek4", "dflash"), 0),
}
OWN: dict[str, dict[str, Any]] = {"deepseek4": {"expert_gating_func": 4}, "dflash": {"expert_gating_func": 4}}

# architectures that the gguf package does not know, and two that llama.cpp does not quantize
LATER = """
    bailingmoe3 cohere2moe deepseek32 deepseek4 dflash dots3note eagle3 gemma4-assistant glm5-next granite_swa graniteswitch
    hrm_text hy_v3 hy_v4 kimi-k3 laguna maple mellum minimax-01 minimax-m3 muse-glimmer nanbeige pockettts qwen3tts qwen4exp
    spark2_5 talkie
"""
ARCHITECTURES = sorted({*gguf.MODEL_ARCH_NAMES.values(), *LATER.split()} - {"clip", "gptj"})

# names in layers, and others, some of them later than the gguf package
LAYER = """
    attn_norm attn_q attn_k attn_v attn_qkv attn_output attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b attn_rel_b
    ffn_gate ffn_up ffn_down ffn_gate_exps ffn_up_exps ffn_down_exps ffn_gate_up_exps ffn_gate_tid2eid ffn_gate_inp ssm_f_a
    ssm_f_b ssm_g_a ssm_g_b ssm_g ssm_beta ssm_alpha ssm_conv1d nextn.eh_proj nextn.embed_tokens nextn.shared_head_head
    hc_attn_fn hc_ffn_fn indexer.k_proj indexer.q_proj indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate
    indexer_compressor_ape indexer_compressor_kv attn_compressor_kv ple_conv1d ffn_routed_up
"""
OTHERS = """
    output_hc_fn a.rvq.codebook mm.a.code_embd v.position_embd v.token_types x.position_embd_a v.blk.0.rel_pos v.blk.1.rel_pos_h
    v.patch_embd v.patch_merger v.sam.pos_embd v.sam.neck.0 v.sam.net_2 fc markov_w1 dense_2
"""

# rows of tensors: shapes that a type fits, fits not, and those that ggml takes for vectors or scalars
DRAWN = ((8, 256), (2, 512), (4, 2, 256), (3, 288), (5, 320), (256,), (8, 256), (2, 96), (1, 256), (2, 3, 64), (6, 20), (9, 1))
DRAWN += ((1, 2, 256), (2, 1, 3, 32), (1, 1, 512), (2, 2, 1, 256), (4, 1, 256), (1,))


@dataclass(frozen=True)
class Named:
    """A model of an architecture by the names of its tensors; shapes and types are drawn from the names."""

    architecture: str
    layers: int = 8
    keys: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    depth: int = 4

    @cached_property
    def hyper(self) -> dict[str, Any]:
        """Its hyper-parameters."""
        lists = {key: [item] * self.layers for key, (wanting, item) in BY_LAYER.items() if self.architecture in wanting}
        heads = {"block_count": self.layers, "attention.head_count": 4, "attention.head_count_kv": 4}
        keys = HYPER | lists | OWN.get(self.architecture, {}) | heads | dict(self.keys)
        return {key: value for key, value in keys.items() if value is not None}

    @cached_property
    def model(self) -> Model:
        """What recipes see of them."""
        first = {key: value[0] if isinstance(value, list) else value for key, value in self.hyper.items()}
        return Model.read(self.architecture, lambda key, default: first.get(key, default))

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Each name as a weight of each layer, some as biases and some bare."""
        return [self._draw(name) for name in dict.fromkeys(self._names())]

    def _names(self) -> Iterator[str]:
        for name in self.names or names_of(self.architecture):
            for layer in range(self.layers if "{bid}" in name else 1):
                drawn = name.format(bid=layer, xid=layer % 3)
                yield f"{drawn}.weight"
                if layer == 1 or "{bid}" not in name:
                    yield from (f"{drawn}.bias", drawn)

    def _draw(self, name: str) -> Tensor:
        number = zlib.crc32(name.encode())
        shapes = [shape for shape in DRAWN if len(shape) <= self.depth]
        shape = (64, 256) if name in ENDS else shapes[number // 3 % len(shapes)]
        return Tensor(name, shape, kept=("F32", "F16", "BF16")[number % 3])

    def save(self, path: Path) -> Path:
        """Write a GGUF of zeros."""
        return save(path, self.architecture, self.hyper, self.tensors)

    @cached_property
    def matrix(self) -> dict[str, np.ndarray]:
        """An importance matrix; a dry run asks for no sizes."""
        return {"blk.0.ffn_up.weight": np.ones(1, np.float32)}


def names_of(architecture: str) -> list[str]:
    """The names of tensors that the gguf package has for an architecture, "{bid}" for layers, or else what is common."""
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return ["token_embd", "output", "output_norm", *(f"blk.{{bid}}.{part}" for part in LAYER.split())]
    return [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[known[architecture]]]


def every_name() -> tuple[str, ...]:
    """All names of the gguf package and the later ones."""
    return (*gguf.TENSOR_NAMES.values(), *(f"blk.{{bid}}.{part}" for part in LAYER.split()), *OTHERS.split())


def mixture(architecture: str) -> dict[str, Any]:
    """Keys for a mixture of experts, of one that has them."""
    if not any("exps" in name for name in names_of(architecture)):
        return {}
    return {"expert_count": 4 + 4 * (zlib.crc32(architecture.encode()) % 2), "expert_used_count": 1}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_types_are_those_of_llama_cpp_for_any_architecture(architecture: str, tmp_path: Path) -> None:
    named = Named(architecture, keys=mixture(architecture))
    path = named.save(tmp_path / "model.gguf")
    for level in ("Q4_K_M", "Q2_K", "IQ4_XS", "Q5_K_S", "Q3_K_L", "Q8_0", "MXFP4_MOE", "F16"):
        assert_same(level, named, path, False)
    assert_same("IQ3_XS", named, path, True)


@pytest.mark.parametrize("architecture", ["llama", "falcon", "bailingmoe3", "glm5-next"])
def test_types_are_those_of_llama_cpp_for_any_name(architecture: str, tmp_path: Path) -> None:
    named = Named(architecture, 3, names=every_name())
    path = named.save(tmp_path / "model.gguf")
    for level in MIXES.keys() - {"Q1_0"} if architecture == "llama" else ("Q4_K_M", "IQ3_XXS", "MXFP4_MOE", "F16"):
        assert_same(level, named, path, level.startswith("IQ"))


@pytest.mark.parametrize(
    ("architecture", "layers", "keys"),
    [
        ("llama", 18, {"attention.head_count": [4] * 18, "attention.head_count_kv": [1] + [4] * 17}),
        ("llama", 18, {"attention.head_count": [2] + [4] * 17, "attention.head_count_kv": [2] + [1] * 17}),
        ("jamba", 18, {"attention.head_count_kv": [0, 1] * 9}),
        ("nemotron_h", 18, {"attention.head_count_kv": [1, 0] * 9}),
        ("mamba2", 18, {"attention.head_count": 0, "attention.head_count_kv": 0}),
        ("qwen3next", 18, {"nextn_predict_layers": 2, "expert_count": 8, "expert_used_count": 1}),
        ("glm4moe", 18, {"nextn_predict_layers": 1, "expert_count": 16, "expert_used_count": 1}),
        ("nanbeige", 6, {"num_loops": 3}),
        ("nanbeige", 18, {"num_loops": 3, "nextn_predict_layers": 6}),
        ("nanbeige", 18, {"num_loops": 1, "nextn_predict_layers": 1}),
        ("llama", 6, {"num_loops": 3}),
        ("graniteswitch", 15, {}),
        ("graniteswitch", 17, {"nextn_predict_layers": 2}),
        ("deci", 80, {}),
        ("llama-embed", 80, {}),
        ("llama-embed", 80, {"attention.head_count_kv": 1}),
        ("llama", 81, {"attention.head_count_kv": 1, "nextn_predict_layers": 1}),
        ("llama", 80, {"attention.head_count_kv": 1, "nextn_predict_layers": 1}),
        ("llama", 80, {"attention.head_count_kv": None}),
        ("qwen2", 83, {"nextn_predict_layers": 3}),
    ],
    ids=str,
)
def test_hyper_parameters_are_read_as_llama_cpp_reads_them(
    architecture: str, layers: int, keys: dict[str, Any], tmp_path: Path
) -> None:
    named = Named(architecture, layers, keys)
    path = named.save(tmp_path / "model.gguf")
    for level in ("Q4_K_M", "Q4_K_S", "Q3_K_M", "IQ3_M", "Q2_K"):
        assert_same(level, named, path, False)


@pytest.mark.parametrize(
    "custom",
    [
        Custom(embedding="F16"),
        Custom(output="F16"),
        Custom((("per_layer", "Q5_0"),), embedding="F16"),
        Custom((("embd", "Q5_0"),), embedding="F16", output="BF16"),
        Custom((("attn_q_a", "Q4_0"), ("hc_", "Q4_0"), ("indexer", "Q5_1"))),
        Custom(pure=True),
        Custom((("embd", "Q5_0"),), embedding="BF16", pure=True),
    ],
    ids=str,
)
def test_custom_recipes_are_those_of_llama_cpp_for_any_name(custom: Custom, tmp_path: Path) -> None:
    tied = tuple(name for name in names_of("gemma3n") if name != "output")
    for named in (Named("gemma3n", 2), Named("gemma3n", 2, names=tied), Named("glm5-next", 2)):
        path = named.save(tmp_path / "model.gguf")
        for level in ("Q4_K_M", "MXFP4_MOE", "BF16"):
            try:
                assert_same(level, named, path, False, custom)
            except Usage as error:
                assert "no tensor fits" in error.message
        path.unlink()


def test_what_is_never_quantized_is_copied_as_it_is(tmp_path: Path) -> None:
    named = Named("rwkv6", 2, depth=3)
    path = named.save(tmp_path / "model.gguf")
    for level in ("Q4_K_M", "F16", "Q8_0"):
        chosen = recipe(level, named.tensors, named.model).types
        assert {chosen[tensor.name] for tensor in named.tensors if len(tensor.shape) == 1} == {"F32", "F16", "BF16"}
        upstream.quantize(path, tmp_path / "out.gguf", MIXES[level].file_type)
        written = {name: kind for name, (kind, _) in upstream.tensors(tmp_path / "out.gguf").items()}
        assert written == {name: TYPES[kind].number for name, kind in chosen.items()}


# --- importance ---


@pytest.mark.parametrize("level", MIXES)
def test_what_needs_a_matrix_is_what_llama_cpp_refuses_without(level: str, saved: Save) -> None:
    for shape in (shape for shape in SHAPES.values() if shape.layers < 40 and (level != "Q1_0" or shape.hidden == 256)):
        chosen = recipe(level, shape.tensors, shape.model)
        path, file_type = saved(shape), MIXES[level].file_type
        assert bool(unmeasured(level, chosen, None)) == upstream.wants_matrix(path, file_type)
        assert unmeasured(level, recipe(level, shape.tensors, shape.model, shape.matrix), shape.matrix) == []


def test_levels_that_need_a_matrix_say_so_early() -> None:
    assert {level for level in MIXES if needs_matrix(level)} == NEEDING
    assert {name for name, level in LEVELS.items() if level.needs_matrix} == NEEDING
    for shape in (SHAPES["dense"], SHAPES["8 experts"], SHAPES["70b"]):
        assert {level for level in MIXES if unmeasured(level, recipe(level, shape.tensors, shape.model), None)} == NEEDING


def test_tensors_that_a_matrix_lacks_are_named(tmp_path: Path) -> None:
    shape = Shape(layers=1, kv_heads=1, inner=256)
    matrix = dict(shape.matrix)
    del matrix["blk.0.ffn_up.weight"], matrix["blk.0.attn_v.weight"]  # the second is Q4_K, which needs none
    chosen = recipe("Q2_K_S", shape.tensors, shape.model, matrix)
    assert unmeasured("Q2_K_S", chosen, matrix) == ["blk.0.ffn_up.weight"]
    path = shape.save(tmp_path / "model.gguf")
    with pytest.raises(RuntimeError):
        upstream.quantize(path, tmp_path / "out.gguf", MIXES["Q2_K_S"].file_type, matrix=matrix)
    matrix["blk.0.ffn_up.weight"] = np.ones(256, np.float32)
    upstream.quantize(path, tmp_path / "out.gguf", MIXES["Q2_K_S"].file_type, matrix=matrix)


def test_q2_k_needs_a_matrix_in_q2_k_s_only() -> None:
    shape = SHAPES["dense"]
    for level, needing in {"Q2_K": False, "Q2_K_S": True}.items():
        assert bool(unmeasured(level, recipe(level, shape.tensors, shape.model), ())) == needing


def test_embeddings_and_output_need_a_matrix_where_their_type_cannot_do_without() -> None:
    shape = SHAPES["dense"]
    for type_name in ("IQ2_XS", "IQ2_S", "Q2_K"):
        chosen = recipe("Q4_K_M", shape.tensors, shape.model, custom=Custom(output=type_name, embedding=type_name))
        expected = ["token_embd.weight", "output.weight"] if TYPES[type_name].encoder is None else []
        assert unmeasured("Q4_K_M", chosen, None) == expected
        assert unmeasured("Q4_K_M", chosen, {"token_embd.weight"}) == expected[1:]


def test_the_embeddings_of_layers_need_no_matrix(tmp_path: Path) -> None:
    named, custom = Named("gemma3n", 2), Custom(embedding="IQ3_XXS")
    chosen = recipe("Q4_K_M", named.tensors, named.model, custom=custom)
    assert chosen.types["per_layer_token_embd.weight"] == "IQ3_XXS" and unmeasured("Q4_K_M", chosen, None) == []
    assert_same("Q4_K_M", named, named.save(tmp_path / "model.gguf"), False, custom)


# --- custom recipes ---


@pytest.mark.parametrize("level", ["Q4_K_M", "IQ2_M", "Q8_0", "MXFP4_MOE", "BF16"])
@pytest.mark.parametrize(
    "custom",
    [
        Custom((("attn_v", "Q8_0"),)),
        Custom((("attn_v", "Q8_0"), (r"blk\.0\.", "F16"), ("attn_v", "F32"))),
        Custom(((r"blk\.[0-2]\.ffn_down", "Q6_K"),)),  # the counters of the mix go on without these
        Custom((("output", "Q5_0"), ("token_embd", "Q4_0"))),
        Custom(output="Q8_0", embedding="F16"),
        Custom((("output.weight", "Q5_0"), ("embd", "IQ4_NL")), output="Q4_1", embedding="F32"),
        Custom(output="Q3_K"),
        Custom(embedding="Q3_K"),
        Custom(pure=True),
        Custom((("ffn", "Q2_K"),), "Q6_K", "Q4_K", pure=True),
    ],
    ids=str,
)
def test_custom_recipes_are_those_of_llama_cpp(custom: Custom, level: str, saved: Save) -> None:
    for name in ("dense", "tied", "grouped by 4", "8 experts", "narrow experts"):
        shape = SHAPES[name]
        try:
            assert_same(level, shape, saved(shape), True, custom)
        except Usage as error:
            assert name == "narrow experts" and "rows of 320 weights" in error.message


@pytest.mark.parametrize(
    "pattern",
    [
        "ATTN_Q",
        r"blk\.(0|1|2)\.attn_[qk]\.",
        "ffn_.*_?down",
        "^token_embd",
        "weight$",
        r"\battn_v\b",
        r"blk\.\D?\d\.",
        "q{1}",
        "[^a-p]v",
    ],
)
def test_patterns_mean_what_they_mean_to_llama_cpp(pattern: str, saved: Save) -> None:
    shape = SHAPES["dense"]
    assert_same("Q4_K_S", shape, saved(shape), False, Custom((parse_tensor_type(f"{pattern}=q8_0"),)))


def test_a_pattern_and_type_are_read() -> None:
    assert parse_tensor_type("Attn_Q=q8_0") == ("attn_q", "Q8_0")
    assert parse_tensor_type(r"blk\.\d+\.ffn_down=IQ4_xs") == (r"blk\.\d+\.ffn_down", "IQ4_XS")
    assert [parse_type(name.lower()) for name in TYPES] == list(TYPES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_q", "'attn_q' is no pattern and type"),
        ("=q8_0", "'=q8_0' is no pattern and type"),
        ("attn_q=", "'attn_q=' is no pattern and type"),
        ("", "'' is no pattern and type"),
        ("attn_q=q4_k_m", "there is no storage type 'q4_k_m'; did you mean Q4_K"),
        ("attn_q=zzzz", "there is no storage type 'zzzz'$"),
        ("attn_q=q8_0=q8_0", "there is no storage type 'q8_0=q8_0'"),
        ("attn_(q=q8_0", r"the pattern 'attn_\(q' cannot be used: .*"),
        ("*=q8_0", r"the pattern '\*' cannot be used"),
        ("[[:digit:]]=q8_0", "the pattern .* cannot be used: Possible nested set"),
        ("a{99999999999}=q8_0", "the pattern .* cannot be used: the repetition number is too large"),
        (f"{'(' * 5000}a{')' * 5000}=q8_0", "cannot be used"),
    ],
)
def test_what_is_no_pattern_and_type_is_refused(text: str, message: str) -> None:
    with pytest.raises(Usage, match=message) as caught:
        parse_tensor_type(text)
    assert caught.value.hint


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    shape = SHAPES["dense"]
    for pattern in ("atn_q", "attn_norm", "ffn_down_exps"):
        with pytest.raises(Usage, match=f"no tensor fits the pattern {pattern!r}") as caught:
            recipe("BF16", shape.tensors, shape.model, custom=Custom((("attn_q", "Q8_0"), (pattern, "Q8_0"))))
        assert "blk." in caught.value.hint


@pytest.mark.parametrize("level", ["F16", "Q4_K_M"])
@pytest.mark.parametrize(("option", "tensor"), [("output", "output"), ("embedding", "token_embd")])
def test_a_type_for_output_or_embeddings_that_does_not_fit_is_refused(option: str, tensor: str, level: str) -> None:
    shape = SHAPES["narrow"]
    with pytest.raises(Usage, match=rf"{tensor}\.weight cannot be Q6_K: its rows of 64 weights are no multiple of 256"):
        recipe(level, shape.tensors, shape.model, custom=Custom(**{option: "Q6_K"}))


def test_a_file_of_tensor_types(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("attn_q=q8_0\n\n  ffn_down=Q6_k\tattn_k=f16\r\n")
    assert read_tensor_types(path) == (("attn_q", "Q8_0"), ("ffn_down", "Q6_K"), ("attn_k", "F16"))
    path.write_text("attn_q = q8_0")
    with pytest.raises(Usage, match="'attn_q' is no pattern and type"):
        read_tensor_types(path)


def test_a_file_of_tensor_types_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in {"missing": "No such file", "binary": "it is not text", ".": "Is a directory"}.items():
        with pytest.raises(Usage, match=f"cannot be read: {reason}") as caught:
            read_tensor_types(tmp_path / name)
        assert caught.value.hint and isinstance(caught.value, HubqError)
