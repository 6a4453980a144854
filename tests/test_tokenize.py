"""Tokenizers of a model's folder: what older repositories have in place of tokenizer.json splits as transformers splits it."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import vocabularies

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf.probe import PROBE
from hubq.tokenize import STYLES, load_tokenizer, read_settings, tokenizer_files

END, ROBERTA = "<|endoftext|>", ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
FIRST = 512  # the id behind those of the trained vocabulary


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def write(folder: Path, **files: Any) -> None:
    """Write JSON files: tokenizer_config={...}."""
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def older(folder: Path, kind: str, *more: str, **files: Any) -> Path:
    """Turn a folder's tokenizer into vocab.json, with `more` tokens at its end, merges.txt and other files."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    words = {"<|end|>": "[A]", "<|user|>": "[B]"}  # which llama.cpp does not know by their texts
    vocab = {words.get(text, text): i for text, i in model["vocab"].items()} | {text: FIRST + i for i, text in enumerate(more)}
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    write(folder, vocab=vocab, **{"config": {"model_type": kind}, **files})
    return folder


LISTED = {str(FIRST + i): token(text) for i, text in enumerate((END, "<|im_start|>", "<|im_end|>"))}
DEFINED = {"513": token("<think>", special=False), "514": token(" wide", special=False, lstrip=True, normalized=True)}
DEFINED["515"] = token("<left>", lstrip=True)
NAMES = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), ROBERTA, strict=True))
MASK = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}

# name -> model type, tokens at the end of vocab.json, and JSON files
OLDER: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "gpt2": ("gpt2", (END,), {}),
    "its class": ("gpt2", (END,), {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}}),
    "other names": (
        "gpt2",
        (),
        {"special_tokens_map": {"bos_token": "[B]", "eos_token": "[A]", "unk_token": "[A]"}},
    ),
    "added": ("gpt2", (END,), {"added_tokens": {"[PAD]": 513, "<tool>": 514}, "special_tokens_map": {"pad_token": "[PAD]"}}),
    "listed": (
        "gpt2",
        (),
        {"tokenizer_config": {"added_tokens_decoder": {"512": token(END), **DEFINED}, "pad_token": "<left>"}},
    ),
    "listed first": (
        "gpt2",
        (END,),
        {"tokenizer_config": {"added_tokens_decoder": {"512": token(END)}}, "special_tokens_map": {"bos_token": "[B]"}},
    ),
    "begins": ("gpt2", (END,), {"tokenizer_config": {"add_bos_token": True, "bos_token": "[B]"}}),
    "both ends": ("gpt2", (END,), {"tokenizer_config": {"add_bos_token": True, "add_eos_token": True, "eos_token": "[A]"}}),
    "phi": ("phi", (END,), {"tokenizer_config": {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False}}),
    "qwen2": (
        "qwen2",
        (),
        {"tokenizer_config": {"added_tokens_decoder": LISTED, "additional_special_tokens": ["<|im_start|>"]}},
    ),
    "qwen3": (
        "qwen3",
        (END,),
        {"tokenizer_config": {"tokenizer_class": "Qwen2TokenizerFast", "extra_special_tokens": {"image_token": "[B]"}}},
    ),
    "roberta": ("roberta", ROBERTA, {"special_tokens_map": {**NAMES, "mask_token": MASK}}),
    "roberta unnamed": ("roberta", ROBERTA, {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}}),
}
SPECIALS = "[B]Hi[A]<s>a</s> b <mask> [PAD]<tool>x <think>y wide <left>z <|im_start|>z <|im_end|><|endoftext|>\n"
TEXT = PROBE + SPECIALS + unicodedata.normalize("NFD", "Ärger à la façon\n")


def refused(folder: Path, kind: type[HubqError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_tokenizer(folder)
    assert caught.value.hint


@pytest.mark.parametrize("name", OLDER)
def test_older_tokenizers_give_the_ids_of_transformers(folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    kind, more, files = OLDER[name]
    older(folder, kind, *more, **files)
    found, wanted = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert found is not None
    for text in (TEXT, "", "a", " a", SPECIALS):
        assert found.encode(text).ids == wanted(text).input_ids
        assert found.encode(text, add_special_tokens=False).ids == wanted(text, add_special_tokens=False).input_ids
    assert found.get_vocab() == wanted.get_vocab()
    splits = wanted.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert found.pre_tokenizer is not None and found.pre_tokenizer.pre_tokenize_str(TEXT) == splits
    special = {i for i, added in found.get_added_tokens_decoder().items() if added.special}
    assert special == {i for i, added in wanted.added_tokens_decoder.items() if added.special}
    settings = read_settings(folder)
    names = {name for name in ("bos_token", "eos_token", "unk_token", "pad_token") if getattr(wanted, name) is not None}
    assert {name: settings[name] for name in names} == {name: str(getattr(wanted, name)) for name in names}


def test_a_real_vocabulary_gives_the_ids_of_its_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    real = vocabularies.fetch("qwen3")
    tokenizer = Tokenizer.from_file(str(real / "tokenizer.json"))
    document = json.loads((real / "tokenizer.json").read_text())
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges))
    write(tmp_path, vocab=document["model"]["vocab"], config={"model_type": "qwen3"})
    shutil.copy(real / "tokenizer_config.json", tmp_path)
    found = load_tokenizer(tmp_path)
    assert found is not None and found.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert found.get_vocab() == tokenizer.get_vocab()


def test_every_style_is_tested() -> None:
    tested = [STYLES[kind] for kind, _, _ in OLDER.values()]
    assert all(style in tested for style in STYLES.values())


def test_what_the_class_names_and_the_vocabulary_lacks_is_left_out(folder: Path) -> None:
    older(folder, "gpt2")
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None and tokenizer.get_vocab_size() == 512 and tokenizer.get_added_tokens_decoder() == {}


def test_a_space_in_front(folder: Path) -> None:
    from transformers import AutoTokenizer

    older(folder, "gpt2", END, tokenizer_config={"add_prefix_space": True})
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None and tokenizer.encode("the").ids == AutoTokenizer.from_pretrained(folder)("the").input_ids
    assert tokenizer.encode("the").ids == tokenizer.encode(" the").ids


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("starcoder2", "GPT2Tokenizer"),
        ("granite", "GPT2Tokenizer"),
        ("llama", None),
        ("gpt2", "Qwen2Tokenizer"),
        ("gpt2", ["x"]),
    ],
)
def test_unknown_ways_to_split_are_refused(folder: Path, kind: str, name: Any) -> None:
    older(folder, kind, END, tokenizer_config={"tokenizer_class": name} if name else {})
    refused(folder, Unsupported, f"there is no tokenizer.json, and vocab.json does not say how .* of {kind} splits text")


def test_the_class_in_the_config_counts_too(folder: Path) -> None:
    older(folder, "gpt2", END, config={"model_type": "gpt2", "tokenizer_class": "BertTokenizer"})
    refused(folder, Unsupported, "BertTokenizer of gpt2")


def test_an_added_token_at_another_place(folder: Path) -> None:
    older(folder, "gpt2", END, added_tokens={"<x>": 600})
    refused(folder, BadSource, "the added token '<x>' is listed with id 600, and behind vocab.json it has 513")


@pytest.mark.parametrize("missing", ["sep_token", "cls_token"])
def test_roberta_without_its_ends(folder: Path, missing: str) -> None:
    older(folder, "roberta", *ROBERTA, tokenizer_config={missing: None})
    refused(folder, BadSource, f"the vocabulary lacks the {missing}")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 5000, b'{"a": [1]}'], ids=repr)
def test_damaged_files(folder: Path, name: str, content: bytes) -> None:
    older(folder, "gpt2", END)
    (folder / name).write_bytes(content)
    if name == "merges.txt" and not content:
        return
    if (name, content) == ("special_tokens_map.json", b'{"a": [1]}'):
        assert load_tokenizer(folder) is not None
        return
    refused(folder, HubqError, "cannot be read|is not a table|does not say how")


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": [3]},
        {"added_tokens_decoder": {"x": token("<x>")}},
        {"added_tokens_decoder": {"513": {}}},
        {"added_tokens_decoder": {"513": token("\ud800")}},
        {"extra_special_tokens": 3},
        {"extra_special_tokens": [3]},
        {"bos_token": {"content": 3}},
        {"add_bos_token": True, "bos_token": ":$:"},
    ],
    ids=str,
)
def test_damaged_settings(folder: Path, settings: dict[str, Any]) -> None:
    older(folder, "gpt2", END, tokenizer_config=settings)
    refused(folder, BadSource, r"vocab\.json and merges\.txt cannot be read")


def test_which_files_count(folder: Path) -> None:
    assert tokenizer_files(folder) == "tokenizer.json"
    older(folder, "gpt2", END)
    assert tokenizer_files(folder) == "vocab.json and merges.txt"
    (folder / "tokenizer.model").write_bytes(b"SentencePiece's own model wins")
    assert tokenizer_files(folder) == "" and load_tokenizer(folder) is None
    (folder / "tokenizer.model").unlink()
    (folder / "merges.txt").unlink()
    assert tokenizer_files(folder) == "" and load_tokenizer(folder) is None


def test_a_tokenizer_is_read_once_and_again_when_its_files_change(folder: Path) -> None:
    first = load_tokenizer(folder)
    assert load_tokenizer(folder) is first
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(document | {"normalizer": {"type": "NFC"}}))
    assert load_tokenizer(folder) is not first
    older(folder, "gpt2", END)
    second = load_tokenizer(folder)
    assert load_tokenizer(folder) is second
    write(folder, tokenizer_config={"add_bos_token": True})
    third = load_tokenizer(folder)
    assert third is not None and third.encode("a").ids[0] == FIRST


def test_a_tokenizer_has_no_truncation_or_padding(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    found = load_tokenizer(folder)
    assert found is not None and 2 < len(found.encode("a text of some words").ids) < 64
