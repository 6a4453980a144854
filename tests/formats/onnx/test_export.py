"""Optimum's graphs compute what transformers 5 computes, whatever config.json says, and an export is whole or not there.

The environment is the real one. It is made once, in build/sealed: that takes some minutes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import families
import numpy as np
import onnxruntime
import pytest
import tiny
import transformers
from nightly import mostly

from hubq.errors import BadSource, HubqError, Unsupported, Usage
from hubq.formats.onnx import export as module
from hubq.formats.onnx.export import Export, export, older

DECODER = "text-generation-with-past"
LENGTH = 24

T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512, "decoder_start_token_id": 0}
T5_OFF: dict[str, Any] = dict.fromkeys(set(families.SHAPE) - {"vocab_size", "pad_token_id", "eos_token_id"}, ...)
BERT = {"num_key_value_heads": ..., "pad_token_id": 0, "num_labels": 3}
BASES = {"full_attention": 9e4, "sliding_attention": 2e3}
MODERN = {"num_key_value_heads": ..., "pad_token_id": 1, "local_attention": 16, "num_hidden_layers": 4}
MODERN |= {
    "global_attn_every_n_layers": 2,
    "rope_parameters": {layers: {"rope_type": "default", "rope_theta": base} for layers, base in BASES.items()},
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


pytestmark = pytest.mark.timeout(1800)  # the first test may make the environment


def run(folder: Path, task: str, tmp_path: Path, told: list[str] | None = None) -> Export:
    told = [] if told is None else told
    return export(folder, os.listdir(folder), task, tmp_path / "out", told.append)


def reference(folder: Path, kind: str, **inputs: np.ndarray) -> Any:
    import torch

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()})


def answers(path: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph computes; what it takes besides `inputs` is an empty cache, positions and one kind of token."""
    session = onnxruntime.InferenceSession(path)
    batch, length = next(iter(inputs.values())).shape
    usual = {"position_ids": np.tile(np.arange(length), (batch, 1)), "token_type_ids": np.zeros((batch, length), np.int64)}
    usual |= {"attention_mask": np.ones((batch, length), np.int64), "use_cache_branch": np.array([False])}
    feed = {}
    for each in session.get_inputs():
        sizes = [size if isinstance(size, int) else batch if "batch" in size else 0 for size in each.shape]
        feed[each.name] = {**usual, **inputs}[each.name] if each.name in usual | inputs else np.zeros(sizes, np.float32)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))


def some_ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 512, (2, LENGTH))


# config.json as transformers 5 writes it, each with something that 4.57 knows by another name
DECODERS = {
    "llama3": families.Variant("LlamaForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "two bases": families.variants()["gemma-3 untied"],
    "a share of a head": families.variants()["gpt_neox-yarn"],
    "linear": families.variants()["stablelm-linear"],
}


@pytest.mark.parametrize("name", mostly(DECODERS, ["llama3", "two bases"]))
def test_decoders(name: str, tmp_path: Path) -> None:
    folder = families.make(DECODERS[name], tmp_path / "model")
    exported = run(folder, DECODER, tmp_path)
    assert [graph.file for graph in exported.graphs] == ["model.onnx"] and exported.exporter == "optimum"
    assert os.listdir(tmp_path / "out") == list(exported.files)
    ids = some_ids()
    expected = reference(folder, DECODERS[name].model, input_ids=ids).logits
    found = answers(tmp_path / "out" / "model.onnx", input_ids=ids)["logits"]
    assert found.shape == expected.shape and np.abs(found - expected.numpy()).max() < 1e-3


ENCODERS = {
    "fill-mask": ("ModernBertForMaskedLM", "logits", MODERN),
    "feature-extraction": ("BertModel", "last_hidden_state", BERT),
    "text-classification": ("BertForSequenceClassification", "logits", BERT),
    "token-classification": ("BertForTokenClassification", "logits", BERT),
}


@pytest.mark.parametrize("task", ENCODERS)
def test_encoders(task: str, tmp_path: Path) -> None:
    kind, output, settings = ENCODERS[task]
    folder = families.make(families.Variant(kind, settings), tmp_path / "model")
    exported = run(folder, task, tmp_path)
    ids = some_ids()
    mask = np.ones_like(ids)
    mask[1, 16:] = 0  # what stands there is padding
    expected = reference(folder, kind, input_ids=ids, attention_mask=mask)[output].numpy()
    found = answers(tmp_path / "out" / "model.onnx", input_ids=ids, attention_mask=mask)[output]
    assert exported.graphs[0].outputs[0] == output
    real = mask.astype(bool) if found.ndim == 3 else slice(None)
    assert found.shape == expected.shape and np.abs(found - expected)[real].max() < 1e-3


def test_encoder_and_decoder(tmp_path: Path) -> None:
    folder = families.make(families.Variant("T5ForConditionalGeneration", T5_OFF | T5), tmp_path / "model")
    exported = run(folder, "text2text-generation-with-past", tmp_path)
    assert exported.files == ("encoder_model.onnx", "decoder_model_merged.onnx")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(exported.files)
    ids, target = some_ids(), some_ids(1)
    expected = reference(folder, "T5ForConditionalGeneration", input_ids=ids, decoder_input_ids=target).logits.numpy()
    hidden = answers(tmp_path / "out" / "encoder_model.onnx", input_ids=ids)["last_hidden_state"]
    inputs = {"encoder_attention_mask": np.ones_like(ids), "encoder_hidden_states": hidden}
    found = answers(tmp_path / "out" / "decoder_model_merged.onnx", input_ids=target, **inputs)["logits"]
    assert np.abs(found - expected).max() < 1e-3


def test_what_transformers_5_writes_in_the_words_of_4() -> None:
    shared = {"hidden_size": 64, "text_config": {"model_type": "llama", "vocab_size": 9}}
    written = {
        "dtype": "bfloat16",
        "transformers_version": "5.23.0",
        "text_config": {**shared["text_config"], "dtype": "float16"},
    }
    for kind, rope, expected in ROPES:
        config = {**shared, **written, "model_type": kind, "rope_parameters": rope}
        assert older(config) == {**shared, "model_type": kind, **expected}, kind


LINEAR = {"rope_type": "linear", "factor": 8.0}
ROPES: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [
    ("llama", None, {}),
    ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
    ("llama", {**LINEAR, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LINEAR}),
    (
        "stablelm",
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
    ),
    (
        "gpt_neox",
        {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e3, "rotary_pct": 0.5, "rope_scaling": None},
    ),
    (
        "gemma3_text",
        {"full_attention": {**LINEAR, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}},
        {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR},
    ),
]


def test_what_4_cannot_say_is_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {**LINEAR, "rope_theta": 5e3}}
    for kind in ("gemma3_text", "a_new_kind"):
        with pytest.raises(Unsupported, match=f"'{kind}' rotary embeddings of their own"):
            older({"model_type": kind, "rope_parameters": rope})


def test_the_order_of_layers_of_modernbert() -> None:
    full, local = "full_attention", "sliding_attention"
    for layers, step in [([full] * 3, 1), ([full, local] * 2, 2), ([full, local, local, full, local], 3), ([full, local], 2)]:
        assert older({"model_type": "modernbert", "layer_types": layers}) == {
            "model_type": "modernbert",
            "global_attn_every_n_layers": step,
        }
    with pytest.raises(Unsupported, match="in such an order"):
        older({"model_type": "modernbert", "layer_types": [local, full]})


@pytest.mark.parametrize("name", ["phi-3 long", "phi-3 old config", "phi-3 yarn", "phi-4 mini"])
def test_what_changes_with_the_length_is_refused(name: str, tmp_path: Path) -> None:
    folder = families.make(families.variants()[name], tmp_path / "model")
    nothing_is_left(folder, DECODER, tmp_path, Unsupported, "changes with the length")


def test_the_exporter_sees_weights_and_a_clean_config(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tiny.config(folder, auto_map={"AutoModel": "modeling.Model"}, attn_implementation="someone/kernel")
    (folder / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "clean").mkdir()
    assert module._put_together(folder, tuple(os.listdir(folder)), DECODER, tmp_path / "clean") == "llama"
    assert sorted(os.listdir(tmp_path / "clean")) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "clean" / "config.json").read_text())
    assert not config.keys() & {"auto_map", "attn_implementation", "dtype", "rope_parameters"}
    assert (tmp_path / "clean" / "model.safetensors").samefile(folder / "model.safetensors")


def test_shards_and_their_index_are_seen(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, shards=3)
    (tmp_path / "clean").mkdir()
    module._put_together(folder, tuple(os.listdir(folder)), DECODER, tmp_path / "clean")
    stored = {path.name for path in folder.glob("model*")}
    assert len(stored) > 3 and stored | {"config.json"} == set(os.listdir(tmp_path / "clean"))


def test_8_bit_floats_are_decoded(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = tensors[name].shape
    scale = torch.arange(1.0, 1 + rows // 128 * (columns // 128)).reshape(rows // 128, columns // 128) / 512
    tensors[name] = (tensors[name].float() * 512).to(torch.float8_e4m3fn)
    save_file({**tensors, f"{name}_scale_inv": scale}, folder / "model.safetensors", metadata={"format": "pt"})
    tiny.config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    (tmp_path / "clean").mkdir()
    module._put_together(folder, tuple(os.listdir(folder)), DECODER, tmp_path / "clean")
    decoded = load_file(tmp_path / "clean" / "model.safetensors")
    expected = tensors[name].float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert decoded.keys() == tensors.keys() and torch.equal(decoded[name], expected)
    assert all(torch.equal(decoded[other], tensors[other].float()) for other in tensors if other != name)


def test_a_classifier_gets_its_padding_token(tmp_path: Path) -> None:
    folder = families.make(families.Variant("LlamaForSequenceClassification", {"num_labels": 2}), tmp_path / "model")
    files = tuple(os.listdir(folder))
    (tmp_path / "clean").mkdir()
    with pytest.raises(BadSource, match="names a padding token"):
        module._put_together(folder, files, "text-classification", tmp_path / "clean")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for token in ("<|user|>", {"content": "<|user|>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": token}))
        module._put_together(folder, files, "text-classification", tmp_path / "clean")
        assert json.loads((tmp_path / "clean" / "config.json").read_text())["pad_token_id"] == 1
        (tmp_path / "clean" / "model.safetensors").unlink()


# --- what cannot be exported ---


def nothing_is_left(folder: Path, task: str, tmp_path: Path, error: type[HubqError], match: str) -> HubqError:
    with pytest.raises(error, match=match) as raised:
        run(folder, task, tmp_path)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []
    assert str(tmp_path) not in raised.value.message and raised.value.hint
    return raised.value


def test_a_task_or_an_exporter_that_is_none(tmp_path: Path, tiny_llama: Path) -> None:
    nothing_is_left(tiny_llama, "text-to-music", tmp_path, Usage, "the task 'text-to-music'")
    with pytest.raises(Usage, match="no exporter 'mine'"):
        export(tiny_llama, os.listdir(tiny_llama), DECODER, tmp_path / "out", print, "mine")


def test_a_task_that_optimum_lacks_for_a_kind_of_model(tmp_path: Path, tiny_llama: Path) -> None:
    raised = nothing_is_left(
        tiny_llama, "fill-mask", tmp_path, Unsupported, "cannot export a model of type 'llama' for fill-mask"
    )
    assert "text-generation-with-past" in raised.hint


def test_a_kind_of_model_that_optimum_does_not_know(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tiny.config(folder, model_type="brand_new")
    nothing_is_left(folder, DECODER, tmp_path, Unsupported, "type 'brand_new'")


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    os.truncate(folder / "model.safetensors", 5000)
    nothing_is_left(folder, DECODER, tmp_path, BadSource, r"model\.safetensors")


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, dtype="float32")
    tiny.rewrite(folder, model__layers__0__mlp__up_proj__weight=None)
    nothing_is_left(folder, DECODER, tmp_path, BadSource, r"they lack model\.layers\.0\.mlp\.up_proj\.weight")


def test_a_config_that_makes_no_model(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tiny.config(folder, hidden_act="someone's")
    nothing_is_left(folder, DECODER, tmp_path, HubqError, "someone's")


def answer(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "model.onnx_data").write_bytes(bytes(100))
    graph = {
        "file": "model.onnx",
        "inputs": ["input_ids", "attention_mask"],
        "outputs": ["logits"],
        "data": {"model.onnx_data": 100},
    }
    return {"graphs": [graph | changes]}


def checked(folder: Path, found: Mapping[str, Any]) -> module.Graph:
    return module._checked(found, "model.onnx", folder, module.TASKS["fill-mask"]["model.onnx"])


def test_files_and_names_are_held_against_the_answer(tmp_path: Path) -> None:
    assert checked(tmp_path, answer(tmp_path)).data == ("model.onnx_data",)
    for changes, message in [
        ({"file": "other.onnx"}, "did not write model.onnx"),
        ({"data": {"model.onnx_data": 101}}, "needs 'model.onnx_data'"),
        ({"data": {"gone": 1}}, "needs 'gone'"),
        ({"data": {"../model.onnx_data": 1}}, "needs '../model.onnx_data'"),
        ({"outputs": ["logits_Q4"]}, "lacks inputs or outputs: logits"),
        ({"inputs": ["input_ids"]}, "lacks inputs or outputs: attention_mask"),
    ]:
        with pytest.raises(HubqError, match=message):
            checked(tmp_path, answer(tmp_path, **changes))
