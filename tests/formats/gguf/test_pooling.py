"""Pooling: llama.cpp makes one embedding of a text's tokens as sentence-transformers would, or the model is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from families import make, variants
from formats.gguf.test_families import IDS, POSITIONS, expected
from formats.gguf.test_write import build

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf.pooling import pooling
from hubq.pooling import lost_steps

FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
}


def old(*on: str) -> dict[str, Any]:
    """The settings of Pooling as sentence-transformers wrote them up to version 5."""
    return {"word_embedding_dimension": 256} | {f"pooling_mode_{flag}": flag in on for flag in FLAGS}


def steps(folder: Path, settings: Any, *more: str, path: str = "1_Pooling") -> Path:
    """Make a folder one of sentence-transformers: Transformer, Pooling and `more`."""
    kinds = [("Transformer", ""), ("Pooling", path), *((kind, f"{i}_{kind}") for i, kind in enumerate(more, 2))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / path).mkdir(exist_ok=True, parents=True)
    (folder / path / "config.json").write_text(json.dumps(settings))
    return folder


def embedded(folder: Path, out: Path) -> np.ndarray:
    """llama.cpp's embedding of IDS, from an F32 file of the model that says how to pool."""
    path = build(folder, out, ["F32"])["F32"].path
    size = {"n_ctx": POSITIONS, "n_batch": POSITIONS, "n_ubatch": POSITIONS}
    off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    model = llama_cpp.Llama(str(path), **size, embedding=True, flash_attn_type=off, verbose=False)
    ids = (llama_cpp.llama_token * POSITIONS)(*IDS.tolist())  # the batch holds no reference to it
    assert llama_cpp.llama_encode(model.ctx, llama_cpp.llama_batch_get_one(ids, POSITIONS)) == 0
    found = llama_cpp.llama_get_embeddings_seq(model.ctx, 0)
    assert found, "llama.cpp pools nothing"
    return np.ctypeslib.as_array(found, (model.n_embd(),)).copy()


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "nomic_bert"])
@pytest.mark.parametrize("mode", POOLED)
def test_the_embedding_is_that_of_transformers(tmp_path: Path, name: str, mode: str) -> None:
    variant = next(variant for full, variant in variants().items() if full.startswith(f"{name}-"))
    folder = steps(make(variant, tmp_path / "Tiny"), {"embedding_dimension": 256, "pooling_mode": mode})
    hidden = expected(folder)
    found = embedded(folder, tmp_path / "model.gguf")
    assert np.abs(found - POOLED[mode](hidden)).max() < variant.tolerance * hidden.std()
    for other in POOLED.keys() - {mode}:
        assert np.abs(found - POOLED[other](hidden)).max() > 0.1 * hidden.std()


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        (old("mean_tokens"), 1),
        (old("cls_token"), 2),
        (old("lasttoken"), 3),
        (old(), 1),
        ({}, 1),
        ({"pooling_mode": "mean"}, 1),
        ({"pooling_mode": ["cls"]}, 2),
        (old("max_tokens") | {"pooling_mode": "lasttoken", "include_prompt": True}, 3),
    ],
)
def test_modes(tmp_path: Path, settings: dict[str, Any], number: int) -> None:
    assert pooling(steps(tmp_path, settings)) == {".pooling_type": number}


def test_a_model_of_transformers_alone(tmp_path: Path) -> None:
    assert pooling(tmp_path) == {} and lost_steps(tmp_path) == ()
    steps(tmp_path, old("mean_tokens"))
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": ""}]')
    assert pooling(tmp_path) == {}


def test_the_step_counts_and_not_the_folder(tmp_path: Path) -> None:
    steps(tmp_path, old("cls_token"), path="2_Pooling")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(old("mean_tokens")))
    assert pooling(tmp_path) == {".pooling_type": 2}


def refused(folder: Path, kind: type[HubqError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        pooling(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (old("max_tokens"), "max"),
        (old("mean_sqrt_len_tokens"), "mean_sqrt_len"),
        (old("weightedmean_tokens"), "weightedmean"),
        (old("cls_token", "mean_tokens"), "(mean and cls|cls and mean)"),
        ({"pooling_mode": ["mean", "max"]}, "mean and max"),
        ({"pooling_mode": "of its own"}, "of its own"),
    ],
)
def test_poolings_that_llama_cpp_lacks(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    refused(steps(tmp_path, settings), Unsupported, f"hubq knows no pooling by {named}")


def test_a_pooling_that_leaves_prompts_out(tmp_path: Path) -> None:
    refused(steps(tmp_path, {"pooling_mode": "mean", "include_prompt": False}), Unsupported, "leaves prompts out")


@pytest.mark.parametrize("path", ["pooling", "sub/1_Pooling", "../1_Pooling", "/1_Pooling", "1_Pooling/.."])
def test_folders_that_hubq_does_not_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "model").mkdir()
    document = [{"type": "sentence_transformers.models.Pooling", "path": path}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(document))
    refused(tmp_path / "model", Unsupported, "and hubq reads it in one folder like 1_Pooling")


def test_two_poolings(tmp_path: Path) -> None:
    refused(steps(tmp_path, old(), "Pooling"), Unsupported, "modules.json has Pooling in")


def test_a_pooling_without_settings(tmp_path: Path) -> None:
    (steps(tmp_path, old()) / "1_Pooling" / "config.json").unlink()
    refused(tmp_path, BadSource, "modules.json names 1_Pooling, and that has no config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"3", b'["x"]', b"[{}]", b"\xff", b"[" * 5000], ids=repr)
def test_damaged_modules(tmp_path: Path, content: bytes) -> None:
    (steps(tmp_path, old()) / "modules.json").write_bytes(content)
    refused(tmp_path, BadSource, r"modules\.json cannot be read")


@pytest.mark.parametrize("mode", [3, [], [3], None, {"mean": True}])
def test_a_mode_that_is_none(tmp_path: Path, mode: Any) -> None:
    refused(steps(tmp_path, {"pooling_mode": mode}), BadSource, "has a pooling_mode that is none")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_damaged_settings(tmp_path: Path, content: bytes) -> None:
    (steps(tmp_path, old()) / "1_Pooling" / "config.json").write_bytes(content)
    refused(tmp_path, BadSource, r"config\.json (cannot be read|is not a table)")


def test_steps_that_a_gguf_does_not_hold_are_named(tmp_path: Path) -> None:
    assert lost_steps(steps(tmp_path, old(), "Normalize", "Dropout")) == ()
    assert lost_steps(steps(tmp_path, old(), "Dense", "Normalize", "LayerNorm")) == ("2_Dense", "4_LayerNorm")
