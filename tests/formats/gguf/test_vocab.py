"""Tokenizers: llama.cpp gives every text the ids that the model's own tokenizer gives it, or the model is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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
from test_tokenize import OLDER, older

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.formats.gguf import gate
from hubq.formats.gguf.probe import PROBE
from hubq.formats.gguf.vocab import Vocab, read_vocab
from hubq.nouns import Artifact, Source
from hubq.tokenize import load_tokenizer


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


@pytest.mark.parametrize("name", OLDER)
def test_vocab_json_and_merges_give_what_their_tokenizer_json_would(folder: Path, out: Path, name: str) -> None:
    from transformers import AutoTokenizer

    kind, more, files = OLDER[name]
    older(folder, kind, *more, **files)
    found, tokenizer = keys(folder, out), load_tokenizer(folder)
    assert tokenizer is not None
    text = PROBE + "[B]Hi[A]<s>a</s>b<mask>[PAD]<tool>x<think>y<|im_start|>z <|im_end|><|endoftext|>\n"
    assert upstream.token_ids(out, text, special=True) == tokenizer.encode(text, add_special_tokens=False).ids
    assert found["ggml.pre"] == ("qwen2" if kind.startswith("qwen") else "gpt-2")
    saved = shutil.copytree(folder, out.parent / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    assert (saved / "tokenizer.json").is_file()
    assert found == keys(saved, out.with_name("saved.gguf"))


def test_a_special_token_that_only_the_class_names(folder: Path, out: Path) -> None:
    older(folder, "gpt2", "<|endoftext|>", tokenizer_config={"add_bos_token": True})
    found = keys(folder, out)
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"], found["ggml.add_bos_token"]) == (512, 512, True)
    assert found["ggml.token_type"][512] == TokenType.CONTROL


def test_a_space_in_front_of_older_tokenizers_is_refused(folder: Path) -> None:
    older(folder, "gpt2", "<|endoftext|>", tokenizer_config={"add_prefix_space": True})
    refused(folder, Unsupported, "the pre-tokenizer is none that llama.cpp is known to have")


def test_the_gate_reads_older_tokenizers(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1, vocab_size=1024)
    older(folder, "qwen2", tokenizer_config=OLDER["qwen2"][2]["tokenizer_config"] | {"eos_token": "<|im_end|>"})
    path = file(folder, tmp_path / "out" / "model.gguf")
    artifact = Artifact("gguf:F32", path, path.stat().st_size, "", 0, {}, 0, "")
    checks = gate.check([artifact], Source("org/model", "0" * 40, folder, {"model_type": "qwen2"}, {}, ()), PROBE, ())
    found = {check.name: (check.outcome, check.detail) for check in checks}
    assert found["token ids"][0] == "passed" and "vocab.json and merges.txt" in found["token ids"][1]
    assert found["special tokens"][0] == "passed" and "3 special tokens" in found["special tokens"][1]


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
    assert keys(folder, out)["chat_template"].startswith("{% for m in messages %}")
    (folder / "chat_template.jinja").write_text("from jinja ⟶ {{ messages }}\n", encoding="utf-8")
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"
    configure(folder, chat_template=None)
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"
    (folder / "tokenizer_config.json").unlink()
    assert keys(folder, out)["chat_template"] == "from jinja ⟶ {{ messages }}\n"
    (folder / "chat_template.jinja").unlink()
    assert keys(folder, out)["chat_template"] == "from json"


LIST = [{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "listed tools"}]


@pytest.mark.parametrize("settings", [None, "set", LIST], ids=["none", "one", "several"])
@pytest.mark.parametrize("beside", [[], ["chat_template.jinja"], ["rag.jinja"], ["chat_template.jinja", "rag.jinja"]], ids=str)
def test_chat_templates_are_those_of_transformers(folder: Path, out: Path, settings: Any, beside: list[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    configure(folder, chat_template=settings)
    for name in beside:
        path = folder / name if name == "chat_template.jinja" else folder / "additional_chat_templates" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"from {name}")
    expected = PreTrainedTokenizerFast.from_pretrained(folder).chat_template
    expected = expected if isinstance(expected, dict) else {"default": expected} if expected else {}
    found = keys(folder, out)
    names = [name for name in ("default", *found.get("chat_templates", [])) if name != "default" or "chat_template" in found]
    assert {name: found["chat_template" + f".{name}" * (name != "default")] for name in names} == expected


def test_no_chat_template(folder: Path, out: Path) -> None:
    configure(folder, chat_template=None)
    assert not [key for key in keys(folder, out) if "chat" in key]


def test_named_chat_templates(folder: Path, out: Path) -> None:
    names = ["tool_use", "default", "rag", "a-b"]
    configure(folder, chat_template=[{"name": name, "template": f"as {name}"} for name in names])
    found = keys(folder, out)
    assert found["chat_template"] == "as default"
    assert found["chat_templates"] == ["a_b", "rag", "tool_use"]
    expected = {"a_b": "as a-b", "rag": "as rag", "tool_use": "as tool_use"}
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
    refused(folder, BadSource, "the tokenizer gives two tokens the same id")


def test_an_id_that_nobody_could_hold(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["zz"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, BadSource, r"the tokenizer has 4,294,967,296 tokens")


def test_an_algorithm_that_llama_cpp_lacks(folder: Path) -> None:
    change(folder, model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, added_tokens=[])
    refused(folder, Unsupported, r"the algorithm of tokenizer\.json is none that llama\.cpp has")


def test_bpe_without_bytes(folder: Path) -> None:
    change(folder, decoder=None)
    refused(folder, Unsupported, r"the algorithm of tokenizer\.json is none that llama\.cpp has")


def test_two_tokens_of_one_text(folder: Path, out: Path) -> None:
    from tokenizers import AddedToken

    assert keys(folder, out)["ggml.tokens"][600] == "[PAD600]"
    add(folder, AddedToken("[PAD600]", special=False))
    refused(folder, Unsupported, "two tokens of the tokenizer have the same text")


# --- ends of generation ---


def ends(path: Path) -> set[int]:
    """The ids at which llama.cpp stops generating."""
    import llama_cpp

    upstream.token_ids(path, "")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    return {i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)}


@pytest.mark.parametrize("known", [True, False])
def test_generation_ends_where_its_configuration_says(folder: Path, out: Path, known: bool) -> None:
    from tokenizers import AddedToken

    if not known:  # no token is an end of turn by its text
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((folder / name).read_text().replace("<|end|>", "<other>"))
    add(folder, *(AddedToken(text, special=True) for text in ("</s>", "<stop>", "<turn_over>")))
    configure(folder, eos_token="<|user|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 512, 513, 514, 5000, "x"]}))
    found = keys(folder, out)
    assert found["ggml.eos_token_id"] == 1
    slots = ("ggml.eom_token_id", "ggml.eot_token_id") if known else ("ggml.eot_token_id", "ggml.eom_token_id")
    assert [found[slot] for slot in slots] == [513, 514]
    assert ends(out) == {1, 512, 513, 514} | ({0} if known else set())


def test_llama_cpp_knows_its_ends_by_their_texts(folder: Path, out: Path) -> None:
    from tokenizers import AddedToken

    from hubq.formats.gguf.vocab import ENDS, TURN_ENDS

    texts = sorted(ENDS - {"<|end|>", "<|tool_response>"})
    add(folder, *(AddedToken(text, special=True) for text in texts))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(512, 512 + len(texts)))}))
    found = keys(folder, out)
    assert "ggml.eot_token_id" not in found and "ggml.eom_token_id" not in found
    assert ends(out) >= set(range(512, 512 + len(texts)))
    assert TURN_ENDS < ENDS


def test_the_end_of_a_text_is_the_first_end_of_generation(folder: Path, out: Path) -> None:
    configure(folder, eos_token=None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 300}))
    assert keys(folder, out)["ggml.eos_token_id"] == 300
    (folder / "generation_config.json").write_text("[")
    refused(folder, BadSource, r"generation_config\.json cannot be read")


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
    folder, other = trained(), trained(vocab_size=500)
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


# --- SentencePiece's BPE in tokenizer.json ---


def alone(folder: Path, normalizer: Any = ..., pre_tokenizer: Any = None) -> Path:
    """Leave nothing of a SentencePiece model but the tokenizer.json made of it."""
    converted(folder)
    (folder / "tokenizer.model").unlink()
    template = {"id": "<s>", "type_id": 0}, {"id": "A", "type_id": 0}, {"id": "B", "type_id": 1}
    begin, first, second = ({kind: part} for kind, part in zip(("SpecialToken", "Sequence", "Sequence"), template, strict=True))
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    processor = {"type": "TemplateProcessing", "single": [begin, first], "pair": [begin, first, second]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": text, **flags} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    change(folder, post_processor=processor | {"special_tokens": special}, added_tokens=added)
    if normalizer is not ...:
        change(folder, normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    configure(folder, bos_token="<s>", eos_token="</s>")
    return folder


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


WAYS = [(..., None, True), (REPLACE, None, False), (REPLACE, SPLIT, False)]
WAYS += [(None, metaspace(scheme, False), scheme != "never") for scheme in ("always", "first", "never")]


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"), WAYS, ids=["llama", "plain", "gemma", "all", "first", "never"]
)
def test_bpe_with_byte_fallback(
    trained: Callable[..., Path], out: Path, normalizer: Any, pre_tokenizer: Any, prefix: bool
) -> None:
    folder = trained(vocab_size=800)
    original = keys(folder, out)
    found = keys(alone(folder, normalizer, pre_tokenizer), out)
    assert (found["ggml.model"], found["ggml.pre"], found["ggml.add_space_prefix"]) == ("llama", "default", prefix)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (True, False)
    assert found["ggml.tokens"] == original["ggml.tokens"] and "ggml.merges" not in found
    assert found["ggml.scores"][3:] == original["ggml.scores"][3:]
    assert found["ggml.token_type"][1:] == original["ggml.token_type"][1:]
    for text in TEXTS if pre_tokenizer in (None, SPLIT) or not prefix else (PROBE, "x  y   z    "):
        assert upstream.token_ids(out, text) == ids(folder, text)


def test_scores_follow_the_merges_and_not_the_ids(trained: Callable[..., Path], out: Path) -> None:
    folder = alone(trained(vocab_size=800))
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    change(folder, model={"vocab": {token: i if i < 259 else len(vocab) + 258 - i for token, i in vocab.items()}})
    file(folder, out)
    assert upstream.token_ids(out, PROBE) == ids(folder, PROBE)


def trained_bpe(folder: Path) -> None:
    """Write a BPE with byte_fallback that was trained as such: of the ways to make a token, its merges know one."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [
        line[i : i + 12] for name in sorted(topics)[:40] for line in topics[name].split("\n") for i in range(0, len(line), 12)
    ]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*lines, "\n", "\n\n", "\n\n"] * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder, added_tokens=json.loads(tokenizer.to_str())["added_tokens"][:4])
    configure(folder, bos_token="<bos>", eos_token="<eos>")


@pytest.mark.parametrize("text", [*TEXTS, "a\n\n\n\nb\n c"], ids=lambda text: repr(text[:9]))
def test_merges_of_no_sentencepiece_model_stay_merges(tmp_path: Path, out: Path, text: str) -> None:
    trained_bpe(tmp_path)
    found = keys(tmp_path, out)
    assert found["ggml.model"] == "gemma4" and len(found["ggml.merges"]) > 500
    assert upstream.token_ids(out, text) == ids(tmp_path, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}},
        {"post_processor": None},
    ],
    ids=["space in front", "no BOS"],
)
def test_merges_of_no_sentencepiece_model_where_llama_cpp_lacks_the_rest(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained_bpe(tmp_path)
    change(tmp_path, **changes)
    refused(tmp_path, Unsupported, "the merges of tokenizer.json are not those of a SentencePiece model")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE, {"type": "NFKC"}]}},
        {"pre_tokenizer": metaspace("always", True), "normalizer": None},
        {"model": {"ignore_merges": True}},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_bpe_with_byte_fallback_that_treats_text_otherwise(trained: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = alone(trained())
    change(folder, **changes)
    refused(
        folder, Unsupported, r"tokenizer\.json is BPE with byte_fallback, but treats text in a way that llama\.cpp does not"
    )


# --- WordPiece ---


def bert(folder: Path, lowercase: bool, strip_accents: bool | None = None) -> Path:
    """Train a WordPiece tokenizer like BERT's on Python's manual and the probe."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*(topics[name] for name in sorted(topics)[:40]), PROBE], trainer)
    pair, ends = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    configure(folder, **{f"{name}_token": special[i] for name, i in names.items()})
    return folder


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(tmp_path: Path, out: Path, lowercase: bool) -> None:
    import llama_cpp
    from tokenizers import Tokenizer

    folder = bert(tmp_path, lowercase)
    found = keys(folder, out)
    assert (found["ggml.model"], found["ggml.normalizer.lowercase"]) == ("bert", lowercase)
    assert "ggml.normalizer.strip_accents" not in found and "ggml.scores" not in found
    names = ("padding", "unknown", "bos", "seperator", "mask", "eos")
    assert [found[f"ggml.{name}_token_id"] for name in names] == [0, 1, 2, 3, 4, 3]
    # where BERT strips accents, llama.cpp strips vowels of Indic and Korean letters too
    text = (
        PROBE
        if not lowercase
        else "".join(part for part in PROBE if not "\u0900" <= part <= "\u0dff" and not "가" <= part <= "힣")
    )
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    upstream.token_ids(out, "")
    model = llama_cpp.Llama(str(out), vocab_only=True, verbose=False)
    assert model.tokenize(text.encode(), add_bos=True) == expected
    for text in ("UPPER [MASK] Größe☃☃ ☃", "a" * 99 + " " + "12", "##x x##x #"):
        assert upstream.token_ids(out, text, special=True) == ids(folder, text)


def test_wordpiece_that_keeps_accents(tmp_path: Path, out: Path) -> None:
    folder = bert(tmp_path, lowercase=True, strip_accents=False)
    assert keys(folder, out)["ggml.normalizer.strip_accents"] is False
    text = PROBE.replace("İ", "I")  # one letter for llama.cpp, two for BERT
    assert upstream.token_ids(out, text) == ids(folder, text)


BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"normalizer": BERT | {"clean_text": False}},
        {"normalizer": BERT | {"handle_chinese_chars": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"post_processor": None},
        {"model": {"continuing_subword_prefix": "@@"}},
        {"model": {"unk_token": "<unk>"}},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_wordpiece_that_treats_text_otherwise(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = bert(tmp_path, lowercase=True)
    change(folder, **changes)
    refused(folder, HubqError, r"tokenizer\.json is WordPiece, but treats text in another way|tokenizer\.json cannot be read")


# --- Unigram ---

STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
SPACES = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content} for content in (" ", "▁")]
WHITE = {"type": "WhitespaceSplit"}


def unigram(trained: Callable[..., Path], normalizers: list[Any], pre_tokenizers: list[Any], table: bool = True) -> Path:
    """A tokenizer.json as transformers makes it of a SentencePiece Unigram model."""
    import base64

    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from tokenizers import Tokenizer, models, processors

    changes = {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
    folder = trained(model_type="unigram", vocab_size=800, **changes)
    processor, model = SentencePieceProcessor(str(folder / "tokenizer.model")), sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    (folder / "tokenizer.model").unlink()
    pieces = [(processor.IdToPiece(i), processor.GetScore(i)) for i in range(processor.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    steps = [{"type": "Precompiled", "precompiled_charsmap": charsmap}] * table + normalizers
    change(
        folder,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer={"type": "Sequence", "pretokenizers": pre_tokenizers},
    )
    configure(folder, eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    return folder


META = metaspace("always", True)


@pytest.mark.parametrize(
    ("normalizers", "pre_tokenizers"),
    [([], [WHITE, META]), ([STRIP, SPACES[0]], [META]), ([STRIP, SPACES[1]], [WHITE, META]), ([SPACES[0]], [META])],
    ids=["words", "trimmed", "both", "one space"],
)
def test_unigram(trained: Callable[..., Path], out: Path, normalizers: list[Any], pre_tokenizers: list[Any]) -> None:
    folder = unigram(trained, normalizers, pre_tokenizers)
    found = keys(folder, out)
    assert (found["ggml.model"], found["ggml.pre"]) == ("t5", "default")
    assert (found["ggml.eos_token_id"], found["ggml.unknown_token_id"]) == (2, 0)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (False, True)
    assert found["ggml.add_space_prefix"] is True and found["ggml.remove_extra_whitespaces"] is True
    assert found["ggml.token_type"][:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert found["ggml.scores"][size:] == [-1000.0] + [-10000.0] * (1023 - size)
    texts = [PROBE, *TEXTS, " ☃☃ ☃ x ☃", "a  <mask>  b<mask>c"]
    if STRIP not in normalizers and WHITE not in pre_tokenizers:  # such a tokenizer sees a space at the end of a text
        texts = [PROBE.rstrip(), " leading", "  two", "x  y   z", " ☃☃ ☃ x ☃"]
    for text in texts:
        assert upstream.token_ids(out, text, special=True) == ids(folder, text)


@pytest.mark.parametrize(
    ("normalizers", "pre_tokenizers", "table"),
    [
        ([], [META], True),
        ([STRIP], [META], True),
        ([], [WHITE], True),
        ([], [WHITE, META], False),
        ([{"type": "Lowercase"}, SPACES[0]], [META], True),
        ([], [WHITE, metaspace("never", True)], True),
    ],
)
def test_unigram_that_treats_text_otherwise(
    trained: Callable[..., Path], normalizers: list[Any], pre_tokenizers: list[Any], table: bool
) -> None:
    folder = unigram(trained, normalizers, pre_tokenizers, table)
    refused(folder, Unsupported, r"tokenizer\.json is Unigram, but treats text in another way than llama\.cpp does")


def test_unigram_with_pieces_of_two_words(trained: Callable[..., Path]) -> None:
    folder = unigram(trained, [], [WHITE, META])
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"][500][0] = "▁of▁the"
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, Unsupported, r"tokenizer\.json is Unigram, but treats text in another way than llama\.cpp does")
