"""Tokenizers: llama.cpp gives every text the ids that the model's own tokenizer gives it, or the model is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import upstream
from formats.gguf.test_write import build
from gguf import GGUFReader, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf.pretokenizers import HASHES, SHAPES, recognize
from hubq.formats.gguf.vocab import Vocab, read_vocab

PROBE = """The quick brown fox isn't lazy: it's 12345 days old, and I'LL say we've ('RE) seen 3.14159 of 1,000,000 foxes!!!
Größe, naïve façade, Ελληνικά, Кириллица, עברית, العربية, हिन्दी, ไทย, 我想在 apple 工作 1314151 天, こんにちは, 한국어 ～
def f(x):\n\tif x  >= 10:\n        return {"a": [x**2, -1e-9]}  # comment\n\n\n\r\n  \t\t mixed \u00a0 spaces \u2003 end
🚀🦙 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \ufeff \u200b ﬁ Ⅷ ½ ٣٤٥ x₁² ''''``"" ... ---===>>> $€ http://a.b/c?d=e&f=%20 \\n   \n   """


def file(folder: Path, out: Path) -> Path:
    """A GGUF that holds nothing but the tokenizer in `folder`, padded to 1024 ids."""
    return written(read_vocab(folder, 1024), out)


def written(vocab: Vocab, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, "llama")
    vocab.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


def keys(folder: Path, out: Path) -> dict[str, Any]:
    fields = GGUFReader(file(folder, out)).fields
    return {
        name.removeprefix("tokenizer."): field.contents() for name, field in fields.items() if name.startswith("tokenizer.")
    }


def ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def change(folder: Path, **changes: Any) -> None:
    """Change sections of tokenizer.json; those of its model go under `model`."""
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(document | changes))


def configure(folder: Path, **changes: Any) -> None:
    """Change entries of tokenizer_config.json; None removes one."""
    path = folder / "tokenizer_config.json"
    document = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def add(folder: Path, *tokens: Any) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([token for token in tokens if not token.special])
    tokenizer.add_special_tokens([token for token in tokens if token.special])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.gguf"


def refused(folder: Path, kind: type[HubqError], message: str, size: int = 1024) -> HubqError:
    with pytest.raises(kind, match=message) as caught:
        read_vocab(folder, size)
    assert caught.value.hint
    return caught.value


# --- the same ids: byte-level BPE ---


def test_smollm2_gets_the_ids_of_its_tokenizer(smollm2: Path, tmp_path: Path) -> None:
    path = build(smollm2, tmp_path / "out", ["Q8_0"])["Q8_0"].path
    found = GGUFReader(path).fields
    assert found["tokenizer.ggml.pre"].contents() == "smollm"
    text = PROBE + "<|im_start|>user\nHi <|im_end|>\n"
    assert upstream.token_ids(path, text, special=True) == ids(smollm2, text)
    assert len(set(ids(smollm2, text))) > 150


def test_a_model_with_a_tiny_tokenizer_gets_its_ids(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    path = build(folder, tmp_path / "out", ["F16"])["F16"].path
    text = f"<|user|>{PROBE}<|end|><|end|> a<|user|> b"
    assert upstream.token_ids(path, text, special=True) == ids(folder, text)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_name_under_which_llama_cpp_splits_so(name: str, folder: Path, out: Path) -> None:
    """The merges are trained on the unsplit probe, so they cross whatever a split lets them cross."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    section, ignore_merges = SHAPES[name]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = [part for size in (5, 9, 40) for part in re.findall(rf"(?s).{{1,{size}}}", PROBE)]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.dumps(section).replace('"use_regex"', '"trim_offsets": true, "use_regex"')
    change(folder, pre_tokenizer=json.loads(settings), model={"ignore_merges": ignore_merges})
    assert keys(folder, out)["ggml.pre"] == name
    expected = ids(folder, PROBE)
    assert upstream.token_ids(out, PROBE) == expected
    for other in set(SHAPES) - {name}:  # no other name would do
        wrong = written(replace(read_vocab(folder, 1024), pre=other), out.with_name(f"{other}.gguf"))
        assert upstream.token_ids(wrong, PROBE) != expected, other


def test_a_hash_names_one_pre_tokenizer() -> None:
    """Two names may share a hash only where llama.cpp treats them alike."""
    names: dict[str, set[str]] = {}
    for name, hashes in HASHES.items():
        for found in hashes:
            assert len(found) == 64
            names.setdefault(found, set()).add(name)
    assert [shared for shared in names.values() if len(shared) > 1] == [{"jina-v2-en", "bert-bge"}, {"mpt", "olmo"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"ignore_merges": True}},
        {"model": {"dropout": 0.1}},
        {"model": {"end_of_word_suffix": "</w>"}},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_any_other_way_of_splitting_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change(folder, **changes)
    error = refused(folder, Unsupported, "the pre-tokenizer of tokenizer.json is none that llama.cpp is known to have")
    assert "pretokenizers.py" in error.hint


def test_a_panic_of_the_library_is_no_traceback(folder: Path) -> None:
    change(folder, model={"continuing_subword_prefix": "##"})
    refused(folder, BadSource, r"tokenizer\.json cannot be read")


def test_use_regex_left_out_means_yes(folder: Path, out: Path) -> None:
    change(folder, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True})
    assert keys(folder, out)["ggml.pre"] == "gpt-2"


def test_truncation_and_padding_left_in_the_file_change_nothing(folder: Path, out: Path) -> None:
    from tokenizers import Tokenizer

    template(folder, "BA")
    plain = keys(folder, out)
    assert plain["ggml.add_bos_token"] is True
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(1)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert keys(folder, out) == plain
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert keys(folder, out) == plain


def test_added_tokens_get_the_ids_of_the_tokenizer(folder: Path, out: Path) -> None:
    from tokenizers import AddedToken

    control = [AddedToken(text, special=True, normalized=False) for text in ("<|über|>", "<s>", "[INST]", "Ġx", "▁y")]
    defined = ["é", "日本", "ab  cd", "\n\n", "▁z", "Ġq", " y", "<tool_call>", "#", "\u00a0", "😀"]
    add(folder, *control, *(AddedToken(text, special=False, normalized=bool(i % 2)) for i, text in enumerate(defined)))
    found = keys(folder, out)
    types = dict(zip(found["ggml.tokens"], found["ggml.token_type"], strict=True))
    assert all(types[token.content] == TokenType.CONTROL for token in control)
    new = {text for text in defined if len(text) > 1}
    assert all(types[text] == TokenType.USER_DEFINED for text in new - {"\n\n"})
    text = PROBE + "".join(f"{token.content}w" for token in control) + "".join(f"w{text}w {text}" for text in defined)
    assert upstream.token_ids(out, text, special=True) == ids(folder, text)


def test_unmarked_control_tokens_are_control(folder: Path, out: Path) -> None:
    from tokenizers import AddedToken

    texts = ["<|tool|>", "<｜tool▁calls｜>", "<unused7>", "<pad>", "<mask>", "<think>", "<|half"]
    add(folder, *(AddedToken(text, special=False, normalized=False) for text in texts))
    found = keys(folder, out)
    types = dict(zip(found["ggml.tokens"], found["ggml.token_type"], strict=True))
    assert [types[text] for text in texts] == [TokenType.CONTROL] * 5 + [TokenType.USER_DEFINED] * 2


# --- keys: byte-level BPE ---


def test_the_keys_of_a_byte_level_tokenizer(folder: Path, out: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    found = keys(folder, out)
    assert found["ggml.model"] == "gpt2" and found["ggml.pre"] == "gpt-2"
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    assert found["ggml.tokens"] == tokens + [f"[PAD{i}]" for i in range(512, 1024)]
    normal, control, unused = int(TokenType.NORMAL), int(TokenType.CONTROL), int(TokenType.UNUSED)
    assert found["ggml.token_type"] == [control] * 2 + [normal] * 510 + [unused] * 512
    assert found["ggml.merges"] == [" ".join(merge) for merge in document["model"]["merges"]]
    assert "ggml.scores" not in found
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (0, 0)
    assert found["ggml.add_bos_token"] is False and found["ggml.add_eos_token"] is False
    assert found["chat_template"].startswith("{% for m in messages %}")


def test_special_ids_from_both_places(folder: Path, out: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 5, "unk_token_id": 2000})
    )
    configure(folder, bos_token={"content": "<|end|>"}, eos_token=None, unk_token="<|user|>")
    found = keys(folder, out)
    expected = {"bos": 0, "eos": 7, "unknown": 1, "padding": 5}
    assert {name: found.get(f"ggml.{name}_token_id") for name in expected} == expected


def template(folder: Path, single: str) -> None:
    """A post-processor that puts <|end|> (B) and <|user|> (E) around a text (A)."""
    tokens = {"B": {"SpecialToken": {"id": "<|end|>", "type_id": 0}}, "E": {"SpecialToken": {"id": "<|user|>", "type_id": 0}}}
    parts = [tokens.get(part, {"Sequence": {"id": "A", "type_id": 0}}) for part in single]
    special = {text: {"id": text, "ids": [i], "tokens": [text]} for i, text in enumerate(("<|end|>", "<|user|>"))}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    change(folder, post_processor={"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": special})
    configure(folder, bos_token="<|end|>", eos_token="<|user|>")


@pytest.mark.parametrize(
    ("single", "bos", "eos"), [("A", False, False), ("BA", True, False), ("AE", False, True), ("BAE", True, True)]
)
def test_bos_and_eos_are_added_as_the_tokenizer_adds_them(folder: Path, out: Path, single: str, bos: bool, eos: bool) -> None:
    import llama_cpp
    from tokenizers import Tokenizer

    template(folder, single)
    found = keys(folder, out)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == ("B" in single, "E" in single)
    upstream.token_ids(out, "")
    model = llama_cpp.Llama(str(out), vocab_only=True, verbose=False)
    text = "The truth\n value"
    assert model.tokenize(text.encode(), add_bos=True) == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


def test_the_settings_have_the_last_word_about_bos_and_eos(folder: Path, out: Path) -> None:
    template(folder, "BA")
    configure(folder, add_bos_token=False, add_eos_token=True)
    found = keys(folder, out)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (False, True)


def test_a_vocabulary_without_room_to_spare(folder: Path) -> None:
    assert len(read_vocab(folder, 512).tokens) == 512


# --- chat templates ---


def test_a_chat_template_beside_the_settings_wins(folder: Path, out: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert keys(folder, out)["chat_template"] == "from json"
    (folder / "chat_template.jinja").write_text("from jinja ⟶ {{ messages }}\n", encoding="utf-8")
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"
    configure(folder, chat_template=None)
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"
    (folder / "tokenizer_config.json").unlink()
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"


def test_no_chat_template(folder: Path, out: Path) -> None:
    configure(folder, chat_template=None)
    assert not [key for key in keys(folder, out) if "chat" in key]


def test_named_chat_templates(folder: Path, out: Path) -> None:
    names = ["tool_use", "default", "rag", "a-b"]
    configure(folder, chat_template=[{"name": name, "template": f"as {name}"} for name in names])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "extra.jinja").write_text("as extra")
    found = keys(folder, out)
    assert found["chat_template"] == "as default"
    assert found["chat_templates"] == ["a_b", "extra", "rag", "tool_use"]
    expected = {"a_b": "as a-b", "extra": "as extra", "rag": "as rag", "tool_use": "as tool_use"}
    assert {name: found[f"chat_template.{name}"] for name in expected} == expected


def test_named_chat_templates_have_one_order(folder: Path, out: Path) -> None:
    configure(folder, chat_template=[{"name": name, "template": name} for name in ("default", *"hgfedcba")])
    program = "import sys; sys.path[:0] = sys.argv[3:]; from formats.gguf.test_vocab import file; from pathlib import Path"
    program += "; file(Path(sys.argv[1]), Path(sys.argv[2]))"
    seen = set()
    for seed in ("1", "2"):
        path = out.with_name(f"{seed}.gguf")
        command = [sys.executable, "-c", program, folder, path, Path(tiny.__file__).parent]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        seen.add(path.read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    "value",
    [
        3,
        True,
        {"default": "x"},
        [3],
        ["x"],
        [{"name": "default"}],
        [{"name": "x", "template": 3}],
        [{"name": ["x"], "template": "y"}],
    ],
    ids=str,
)
def test_a_chat_template_that_is_none(folder: Path, value: Any) -> None:
    configure(folder, chat_template=value)
    refused(folder, BadSource, "the chat template cannot be read")


def test_a_chat_template_that_is_no_text(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(r'{"chat_template": "\ud800"}')
    refused(folder, BadSource, "the chat template cannot be read")
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ x }}")
    refused(folder, BadSource, "chat template cannot be read|special tokens of the tokenizer cannot be read")


@pytest.mark.parametrize("content", [b"[" * 5000, b"{", b"[]", b"\xff"])
def test_a_damaged_file_of_chat_templates(folder: Path, content: bytes) -> None:
    (folder / "chat_template.json").write_bytes(content)
    refused(folder, BadSource, r"special tokens of the tokenizer cannot be read|chat_template\.json")


# --- refusals ---


def test_no_tokenizer(tmp_path: Path) -> None:
    refused(tmp_path, BadSource, r"there is no tokenizer: neither tokenizer\.json nor tokenizer\.model")


def test_a_tokenizer_larger_than_the_model(folder: Path) -> None:
    refused(folder, BadSource, r"the tokenizer has 512 tokens, the model's vocabulary 511", size=511)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 5000, b'{"model": []}', b'{"model": {"type": "BPE"}}', b"<html>"],
    ids=repr,
)
def test_a_damaged_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder, BadSource, r"tokenizer\.json cannot be read")


def test_a_tokenizer_cut_short(folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    refused(folder, BadSource, r"tokenizer\.json cannot be read")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000])
def test_damaged_settings(folder: Path, content: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(content)
    refused(folder, BadSource, r"tokenizer_config\.json (cannot be read|is not a table)")


def test_no_merges(folder: Path) -> None:
    change(folder, model={"merges": []})
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    refused(folder, BadSource, r"tokenizer\.json has no merges")


def test_a_merge_of_nothing(folder: Path) -> None:
    change(folder, model={"merges": [["a", "☃"]]})
    refused(folder, BadSource, r"tokenizer\.json cannot be read")


def test_two_tokens_of_one_id(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["zz"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, BadSource, r"tokenizer\.json gives two tokens the same id")


def test_an_id_that_nobody_could_hold(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["zz"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, BadSource, r"the tokenizer has 4,294,967,296 tokens")


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
        },
    ],
    ids=lambda model: model["type"],
)
def test_other_kinds_of_tokenizer(folder: Path, model: dict[str, Any]) -> None:
    document = json.loads((folder / "tokenizer.json").read_text()) | {"model": model, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    error = refused(folder, Unsupported, r"tokenizer\.json is not byte-level BPE, and there is no tokenizer\.model")
    assert "tokenizer.model" in error.hint


def test_bpe_with_byte_fallback_needs_its_sentencepiece_model(folder: Path) -> None:
    change(folder, model={"byte_fallback": True})
    refused(folder, Unsupported, r"tokenizer\.json is not byte-level BPE, and there is no tokenizer\.model")


# --- SentencePiece ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a SentencePiece model of some kind; returns a copy of its folder."""
    from pydoc_data.topics import topics

    from sentencepiece import SentencePieceTrainer

    text = tmp_path_factory.mktemp("text") / "topics.txt"
    text.write_text("\n".join(topics[name] for name in sorted(topics))[:200_000] + "\n" + PROBE)
    made: dict[str, Path] = {}

    def train(**changes: Any) -> Path:
        exact = {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        }
        wanted = {"vocab_size": 600, "hard_vocab_limit": False, "minloglevel": 2, "input": str(text), **exact, **changes}
        name = json.dumps(changes)
        if name not in made:
            made[name] = tmp_path_factory.mktemp("trained")
            SentencePieceTrainer.train(model_prefix=str(made[name] / "tokenizer"), max_sentence_length=1 << 20, **wanted)
        folder = tmp_path_factory.mktemp("sentencepiece")
        shutil.copy(made[name] / "tokenizer.model", folder)
        return folder

    return train


def pieces(folder: Path, text: str) -> list[int]:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(str(folder / "tokenizer.model")).encode(text)


TEXTS = [PROBE, " leading", "  two", "\n", "a", "x  y   z    ", "🦙\x00\x7f", "▁ ▁▁"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:9]))
@pytest.mark.parametrize("changes", [{}, {"add_dummy_prefix": False}, {"split_digits": True}], ids=str)
def test_sentencepiece_gets_its_ids(trained: Callable[..., Path], out: Path, changes: dict[str, Any], text: str) -> None:
    folder = trained(**changes)
    assert upstream.token_ids(file(folder, out), text) == pieces(folder, text)


def test_the_keys_of_a_sentencepiece_model(trained: Callable[..., Path], out: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = trained(control_symbols=["<ctl>"])
    processor = SentencePieceProcessor(str(folder / "tokenizer.model"))
    size = processor.vocab_size()
    found = keys(folder, out)
    assert (found["ggml.model"], found["ggml.pre"]) == ("llama", "default")
    assert found["ggml.tokens"] == [processor.IdToPiece(i) for i in range(size)] + [f"[PAD{i}]" for i in range(size, 1024)]
    expected = [processor.GetScore(i) for i in range(size)] + [-10000.0] * (1024 - size)
    assert np.array_equal(np.float32(found["ggml.scores"]), np.float32(expected))
    kinds = found["ggml.token_type"]
    unknown, control, normal = int(TokenType.UNKNOWN), int(TokenType.CONTROL), int(TokenType.NORMAL)
    assert kinds[:4] == [unknown, control, control, control]
    assert kinds[4:260] == [int(TokenType.BYTE)] * 256 and kinds[260:size] == [normal] * (size - 260)
    assert set(kinds[size:]) == {int(TokenType.UNUSED)}
    assert found["ggml.add_bos_token"] is True and found["ggml.add_eos_token"] is False
    assert found["ggml.add_space_prefix"] is True and "ggml.merges" not in found


@pytest.mark.parametrize(("changes", "prefix"), [({}, True), ({"add_dummy_prefix": False}, False)])
def test_the_space_in_front(trained: Callable[..., Path], out: Path, changes: dict[str, Any], prefix: bool) -> None:
    folder = trained(**changes)
    assert keys(folder, out)["ggml.add_space_prefix"] is prefix
    configure(folder, add_prefix_space=not prefix, add_bos_token=False, add_eos_token=True)
    found = keys(folder, out)
    assert found["ggml.add_space_prefix"] is not prefix
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (False, True)


def test_tokens_added_to_a_sentencepiece_model(trained: Callable[..., Path], out: Path) -> None:
    folder = trained()
    size = len(pieces(folder, "")) or 600
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<|end|>": size + 1, "x▁y": size + 2}))
    decoder = {str(size + 3): {"content": "[INST]", "special": True}, str(size): {"content": "<tool_call>", "special": False}}
    configure(folder, added_tokens_decoder=decoder)
    found = keys(folder, out)
    assert found["ggml.tokens"][size : size + 4] == ["<tool_call>", "<|end|>", "x y", "[INST]"]
    defined, control = int(TokenType.USER_DEFINED), int(TokenType.CONTROL)
    assert found["ggml.token_type"][size : size + 4] == [defined, control, defined, control]
    assert found["ggml.scores"][size : size + 4] == [-1000.0] * 4
    assert upstream.token_ids(out, "end[INST]", special=True) == [*pieces(folder, "end"), size + 3]
    assert upstream.token_ids(out, "end<tool_call>") == [*pieces(folder, "end"), size]


@pytest.mark.parametrize("symbols", [["<tool>"], ["▁▁▁▁", "<tool>"], ["for", "1"]])
def test_user_defined_symbols(trained: Callable[..., Path], out: Path, symbols: list[str]) -> None:
    folder = trained(user_defined_symbols=symbols, add_dummy_prefix=False)
    text = "def f():\n    for x in y:     # 1<tool>2 <tool>     \n" + PROBE
    assert upstream.token_ids(file(folder, out), text) == pieces(folder, text)


# llama.cpp has other rules for these, and upstream's converter writes them as if it had the same
@pytest.mark.parametrize("changes", [{"model_type": "unigram"}, {"byte_fallback": False}, {"model_type": "char"}], ids=str)
def test_other_kinds_of_sentencepiece_are_refused(trained: Callable[..., Path], changes: dict[str, Any]) -> None:
    refused(trained(**changes), Unsupported, r"tokenizer\.model is not BPE with byte_fallback")


@pytest.mark.parametrize(
    "changes",
    [{"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}, {"treat_whitespace_as_suffix": True}],
    ids=str,
)
def test_sentencepiece_that_normalizes_is_refused(trained: Callable[..., Path], changes: dict[str, Any]) -> None:
    refused(trained(**changes), Unsupported, r"tokenizer\.model normalizes text, and llama\.cpp would not")


def test_a_unigram_model_as_upstream_writes_it_gets_other_ids(trained: Callable[..., Path], out: Path) -> None:
    """Why the refusal: the same pieces and scores under the model type `llama` split text in other ways."""
    from sentencepiece import SentencePieceProcessor

    folder = trained(model_type="unigram")
    processor = SentencePieceProcessor(str(folder / "tokenizer.model"))
    vocab = read_vocab(trained(), 1024)
    for i in range(processor.vocab_size()):
        vocab.tokens[i], vocab.scores[i] = processor.IdToPiece(i).encode(), processor.GetScore(i)  # type: ignore[call-overload]
    assert upstream.token_ids(written(vocab, out), PROBE) != pieces(folder, PROBE)


def converted(folder: Path) -> None:
    """Write the tokenizer.json that transformers makes of a SentencePiece BPE model like Llama 2's."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, models, normalizers

    processor = SentencePieceProcessor(str(folder / "tokenizer.model"))
    vocab = {processor.IdToPiece(i): i for i in range(processor.vocab_size())}
    pairs = ((left, token[len(left) :]) for token in vocab for left in (token[:n] for n in range(1, len(token))))
    merges = sorted((pair for pair in pairs if pair[0] in vocab and pair[1] in vocab), key=lambda pair: vocab["".join(pair)])
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_sentencepiece_with_its_tokenizer_json(trained: Callable[..., Path], out: Path) -> None:
    folder = trained()
    converted(folder)
    assert keys(folder, out)["ggml.model"] == "llama"
    assert upstream.token_ids(out, PROBE) == pieces(folder, PROBE) == ids(folder, PROBE)


def test_a_tokenizer_json_without_the_space_in_front(trained: Callable[..., Path], out: Path) -> None:
    folder = trained()
    converted(folder)
    change(folder, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    configure(folder, add_prefix_space=False)
    assert keys(folder, out)["ggml.add_space_prefix"] is False
    assert upstream.token_ids(out, PROBE) == ids(folder, PROBE)


def test_two_tokenizers_that_differ_are_refused(trained: Callable[..., Path]) -> None:
    folder, other = trained(), trained(vocab_size=400)
    converted(other)
    shutil.copy(other / "tokenizer.json", folder)
    refused(folder, Unsupported, r"tokenizer\.json and tokenizer\.model split text in different ways")


def test_a_byte_level_tokenizer_beside_the_model_of_another_wins(trained: Callable[..., Path], out: Path) -> None:
    folder = trained()
    tiny.tokenizer(folder)
    assert keys(folder, out)["ggml.model"] == "gpt2"
    assert upstream.token_ids(out, PROBE) == ids(folder, PROBE)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"<html>" * 20, b"version https://git-lfs.github.com/spec/v1\n", b"\x0a\x05abc"], ids=repr
)
def test_a_damaged_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    error = refused(tmp_path, BadSource, r"tokenizer\.model is not a SentencePiece model")
    assert str(tmp_path) not in error.message


def test_a_sentencepiece_model_cut_short(trained: Callable[..., Path]) -> None:
    folder = trained()
    whole = (folder / "tokenizer.model").read_bytes()
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        (folder / "tokenizer.model").write_bytes(whole[:size])
        with pytest.raises((BadSource, Unsupported)):
            read_vocab(folder, 1024)


def test_a_sentencepiece_model_larger_than_the_model(trained: Callable[..., Path]) -> None:
    refused(trained(), BadSource, r"the tokenizer has 600 tokens, the model's vocabulary 599", size=599)
    folder = trained()
    (folder / "added_tokens.json").write_text('{"<tool>": 600}')
    refused(folder, BadSource, r"the tokenizer has 601 tokens, the model's vocabulary 600", size=600)


@pytest.mark.parametrize(
    "decoder",
    ["[]", "null", "3", '{"x": {"content": "a"}}', '{"5": "a"}', '{"5": {}}', '{"5": null}', r'{"5": {"content": "\ud800"}}'],
)
def test_weird_added_tokens(trained: Callable[..., Path], decoder: str) -> None:
    folder = trained()
    (folder / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {decoder}}}')
    refused(folder, BadSource, "the added tokens of the tokenizer cannot be read")


@pytest.mark.parametrize("value", ["[]", "null", '"x"', "1e999", "-1", '"9999999999999"', "NaN", "{}"])
def test_weird_ids_of_added_tokens(trained: Callable[..., Path], value: str) -> None:
    folder = trained()
    (folder / "added_tokens.json").write_text(f'{{"<tool>": {value}}}')
    refused(folder, BadSource, r"added tokens? (of the tokenizer cannot be read|has a negative id)|the tokenizer has ")


# --- nothing else escapes ---

VALUE = st.none() | st.booleans() | st.integers(-2, 2**40) | st.floats() | st.text(max_size=5) | st.just("<|end|>")
JSON = st.recursive(
    VALUE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "id", "content", "special", "SpecialToken", "single", "pair", "processors", "cls", "name", "template"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
SECTIONS = [
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "truncation",
    "padding",
    "version",
    "model",
]
SETTINGS = [
    "bos_token",
    "eos_token",
    "cls_token",
    "sep_token",
    "chat_template",
    "add_bos_token",
    "added_tokens_decoder",
    "add_prefix_space",
]
MODEL = ["type", "vocab", "merges", "unk_token", "dropout", "byte_fallback", "ignore_merges", "end_of_word_suffix", "fuse_unk"]
bounded = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def allowed(folder: Path) -> None:
    try:
        file(folder, folder / "x.gguf")
    except HubqError as error:
        assert error.message and error.hint


@given(
    changes=st.dictionaries(st.sampled_from(SECTIONS), JSON, max_size=2),
    model=st.dictionaries(st.sampled_from(MODEL), JSON, max_size=2),
)
@bounded
def test_no_tokenizer_json_ends_in_another_error(folder: Path, changes: dict[str, Any], model: dict[str, Any]) -> None:
    tiny.tokenizer(folder)
    if "model" in changes:
        (folder / "tokenizer.json").write_text(json.dumps(json.loads((folder / "tokenizer.json").read_text()) | changes))
    else:
        change(folder, **changes, model=model)
    allowed(folder)


@given(settings=st.dictionaries(st.sampled_from(SETTINGS), JSON, max_size=3), config=JSON, template=JSON)
@bounded
def test_no_settings_end_in_another_error(folder: Path, settings: Any, config: Any, template: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": config, "eos_token_id": template, "text_config": config}))
    (folder / "chat_template.json").write_text(json.dumps(template))
    allowed(folder)


@given(settings=st.dictionaries(st.sampled_from(SETTINGS), JSON, max_size=3), added=JSON)
@bounded
def test_no_added_tokens_end_in_another_error(trained: Callable[..., Path], tmp_path: Path, settings: Any, added: Any) -> None:
    if not (tmp_path / "tokenizer.model").is_file():
        shutil.copy(trained() / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    allowed(tmp_path)


@given(processor=JSON, kind=st.sampled_from(["TemplateProcessing", "RobertaProcessing", "Sequence", "ByteLevel"]))
@bounded
def test_no_post_processor_ends_in_another_error(folder: Path, processor: Any, kind: str) -> None:
    change(
        folder, post_processor={"type": kind, "processors": [processor]} | (processor if isinstance(processor, dict) else {})
    )
    allowed(folder)


def test_recognize_is_what_the_file_says(smollm2: Path) -> None:
    from tokenizers import Tokenizer

    assert recognize(Tokenizer.from_file(str(smollm2 / "tokenizer.json"))) == "smollm"
