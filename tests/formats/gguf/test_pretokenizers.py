"""Pre-tokenizers: llama.cpp splits text as the published tokenizers do, under the name that hubq recognizes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import upstream

from hubq.errors import Unsupported
from hubq.formats.gguf.pretokenizers import HASHES, SHAPES
from hubq.formats.gguf.probe import MARKS, PROBE
from hubq.formats.gguf.vocab import read_vocab

# --- what the published tokenizers hold ---

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
DIGIT = {"type": "Digits", "individual_digits": True}
DIGITS = {"type": "Digits", "individual_digits": False}
NFC = {"type": "NFC"}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def steps(*parts: dict[str, Any] | str) -> dict[str, Any]:
    """A Sequence; texts are patterns to isolate."""
    return {"type": "Sequence", "pretokenizers": [split(part) if isinstance(part, str) else part for part in parts]}


def punctuation(behavior: str) -> dict[str, Any]:
    return {"type": "Punctuation", "behavior": behavior}


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
JAIS2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
MINICPM5 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SEED = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
UFAKZEKA = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXAONE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
HAN_AND_KANA = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
SPARK = DEEPSEEK3.replace("[\r\n]*|\\s*[\r\n]+", "|[\r\n]")
OTHER_SCRIPTS = "[一-龥ࠀ-一가-퟿]+"
ALPHABETS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴ"
    "ᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ"
    "-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
CHAMELEON = ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\t\n]|    |  )")


@dataclass(frozen=True)
class Published:
    """A way to split, as tokenizer.json has it, and the names under which llama.cpp has it."""

    section: dict[str, Any] | None
    names: str
    ignore_merges: bool = False
    normalizer: dict[str, Any] | None = None


GPT2_NAMES = "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe a.x-4.0 mellum exaone4"
GPT2_NAMES += " jais trillion granite-docling mpt olmo modern-bert"

# pre-tokenizer name that hubq writes -> what it writes it for
PUBLISHED = {
    "gpt-2": Published(GPT2, GPT2_NAMES),
    "smollm": Published(steps(DIGIT, GPT2), "smollm starcoder refact codeshell exaone mellum2 command-r"),
    "falcon": Published(steps(punctuation("Contiguous"), GPT2, DIGITS, "[0-9][0-9][0-9]"), "falcon"),
    "qwen2": Published(
        steps(QWEN2, BYTES), "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", False, NFC
    ),
    "qwen35": Published(steps(QWEN35, BYTES), "qwen35", False, NFC),
    "llama-bpe": Published(
        steps(LLAMA3, BYTES), "llama-bpe llama3 llama-v3 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5", True
    ),
    "smaug-bpe": Published(steps(LLAMA3, BYTES), "smaug-bpe dbrx chatglm-bpe"),
    "minicpm5": Published(steps(r"\p{N}{1,3}", MINICPM5, BYTES), "minicpm5", True),
    "laguna": Published(steps("[^\n]+|[\n]+", QWEN2, BYTES), "laguna"),
    "ufakzeka": Published(steps(UFAKZEKA, BYTES), "ufakzeka"),
    "jais-2": Published(steps(JAIS2, BYTES), "jais-2"),
    "seed-coder": Published(steps(SEED, BYTES), "seed-coder"),
    "bailingmoe": Published(steps(LING, BYTES), "bailingmoe bailingmoe2 llada-moe"),
    "exaone-moe": Published(steps(EXAONE, BYTES), "exaone-moe"),
    "tekken": Published(steps(TEKKEN, BYTES), "tekken", True),
    "gpt-4o": Published(steps(GPT4O, BYTES), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    "granite-embed-multi-97m": Published(steps(GPT4O, BYTES), "granite-embed-multi-97m", True),
    "tiny_aya": Published(steps(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O, BYTES), "tiny_aya cohere2moe"),
    "kimi-k2": Published(steps(KIMI, BYTES), "kimi-k2"),
    "youtu": Published(steps(YOUTU, GPT4O.replace("{1,3}", ""), BYTES), "youtu", True),
    "deepseek-v3": Published(steps(r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK3, BYTES), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    "spark2_5": Published(steps(r"\p{N}{1,3}", HAN_AND_KANA, SPARK, DIGIT, BYTES), "spark2_5"),
    "deepseek-coder": Published(steps("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", OTHER_SCRIPTS, DIGIT, BYTES), "deepseek-coder"),
    "deepseek-llm": Published(
        steps("[\r\n]", rf"\s?{ALPHABETS}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", OTHER_SCRIPTS, DIGIT, BYTES),
        "deepseek-llm",
    ),
    "bloom": Published(steps(BLOOM, BYTES), "bloom poro-chat gpt3-finnish"),
    "viking": Published(steps(BLOOM, DIGIT, BYTES), "viking"),
    "superbpe": Published(steps(DIGITS, r"(?=(\d{3})+(?!\d))", BYTES), "superbpe"),
    "chameleon": Published(steps(*CHAMELEON, DIGIT, punctuation("Isolated"), GPT2), "chameleon"),
}

# names of models whose own rules llama.cpp does not have: hubq writes these for their very vocabularies alone, as upstream does
OTHERS = {
    "falcon3": Published(steps(punctuation("Contiguous"), GPT2, DIGIT), "falcon3", True),
    "gigachat": Published(steps(GPT4O, BYTES), "gigachat"),
}
NOT_TRIED = {"falcon-h1", "minerva-7b", "afmoe"}  # theirs are not known here
NOT_BYTE_LEVEL = {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"}
OF_NO_MODEL = {"default"}

# every name that llama.cpp takes for a byte-level BPE tokenizer (src/llama-vocab.cpp, as of release 2026-10-01)
NAMES = {
    name
    for line in (
        "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm",
        "deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es",
        "jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en",
        "jina-v2-code roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2",
        "olmo dbrx smaug-bpe poro-chat chatglm-bpe glm4 glm5 viking jais tekken smollm codeshell bloom gpt3-finnish",
        "exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m",
        "tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan",
        "hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2",
    )
    for name in line.split()
}
CANONICAL = {name: shape for shape, published in PUBLISHED.items() for name in published.names.split()}

DECOMPOSED = "cafe\u0301 "
ACCENTED = "ÉCOLE "  # ends after É for llama.cpp, to which only A-Z are capitals
SPACED = "b =  42;\n    return  7"  # llama.cpp takes the text before a number into its first digits

# (name, a text that llama.cpp gives other ids than the published tokenizers do)
DIFFERENCES = (
    ("tekken", MARKS),
    ("gpt-4o", MARKS),
    ("kimi-k2", MARKS),
    ("tekken", ACCENTED),
    ("gpt-4o", ACCENTED),
    ("granite-embed-multi-97m", ACCENTED),
    ("tiny_aya", SPACED),
    ("tiny_aya", "12345abc"),
    ("qwen2", DECOMPOSED),
    ("qwen35", DECOMPOSED),
    ("falcon3", PROBE),
    ("gigachat", PROBE),
)
# llama.cpp splits at other places under these names, but at none that a merge of a tokenizer trained by the rules could cross
LOOSE = {"falcon", "tiny_aya", "kimi-k2", "youtu", "deepseek-coder", "deepseek-llm"}
# names that split PROBE alike: they differ in ignore_merges, in MARKS, or (bailingmoe) in the spelling of the pattern
ALIKE = [{"qwen2", "bailingmoe"}, {"llama-bpe", "smaug-bpe"}, {"gpt-4o", "granite-embed-multi-97m"}]


def document(published: Published, vocabulary: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that splits as `published` does."""
    model = {"type": "BPE", "vocab": {}, "merges": [], **vocabulary, "ignore_merges": published.ignore_merges}
    decoder = BYTES | {"add_prefix_space": True, "use_regex": True}
    added = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [{"id": i, "content": text} | added for i, text in enumerate(("<|end|>", "<|user|>"))]
    sections = {"normalizer": published.normalizer, "pre_tokenizer": published.section, "decoder": decoder, "model": model}
    return {"version": "1.0", "added_tokens": tokens if vocabulary else [], "post_processor": None, **sections}


def trained(section: dict[str, Any] | None, lines: list[str]) -> dict[str, Any]:
    """The model of a tokenizer of 1000 tokens that was trained with a pre_tokenizer section."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    tokenizer = Tokenizer.from_str(json.dumps(document(Published(section, ""), {})))
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": model["merges"]}


@cache
def by_the_rules(name: str) -> str:
    """The tokenizer.json of a tokenizer trained by the rules of PUBLISHED or OTHERS, on texts of many scripts and English."""
    from pydoc_data.topics import topics

    published = {**PUBLISHED, **OTHERS}[name]
    probes = [PROBE, MARKS, SPACED, DECOMPOSED * 9, ACCENTED * 9]
    lines = [*("".join(topics[topic] for topic in sorted(topics))[:40_000].splitlines()), *probes * 6]
    return json.dumps(document(published, trained(published.section, lines)))


@cache
def across_the_rules() -> dict[str, Any]:
    """The model of a tokenizer trained without any split, so that its merges cross whatever a split lets them cross."""
    return trained(BYTES, [part for size in (5, 9, 40) for part in re.findall(rf"(?s).{{1,{size}}}", PROBE + SPACED)])


def ids(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def file(folder: Path, pre: str | None = None) -> Path:
    """A GGUF with the tokenizer in `folder` and nothing else; `pre` instead of the name that hubq found."""
    vocab, path = read_vocab(folder, 1024), folder / f"{pre}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    (replace(vocab, pre=pre) if pre else vocab).write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tokenizer(tmp_path)
    return tmp_path


def write(folder: Path, published: Published, vocabulary: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(document(published, vocabulary)))


# --- the same ids ---


def test_every_name_of_llama_cpp_has_its_place() -> None:
    placed = [*CANONICAL, *OTHERS, *NOT_TRIED, *NOT_BYTE_LEVEL, *OF_NO_MODEL]
    assert sorted(placed) == sorted(NAMES)
    assert set(PUBLISHED) == {name for name, _, _ in SHAPES} and set(PUBLISHED) <= NAMES
    assert set(HASHES) - NAMES == {"bert-bge", "bert-bge-large", "jina-v2-en"}  # WordPiece, which has no pre-tokenizer


def test_llama_cpp_refuses_other_names(folder: Path) -> None:
    with pytest.raises(ValueError, match="load"):
        upstream.token_ids(file(folder, "gpt-3"), PROBE)


@pytest.mark.parametrize("name", CANONICAL)
def test_llama_cpp_gives_the_ids_of_the_tokenizer(name: str, folder: Path) -> None:
    shape = CANONICAL[name]
    (folder / "tokenizer.json").write_text(by_the_rules(shape))
    assert read_vocab(folder, 1024).pre == shape
    text = f"<|user|>{PROBE}<|end|>\n<|end|> a<|user|> b"
    expected = ids(folder, text)
    assert upstream.token_ids(file(folder, name), text, special=True) == expected
    assert len(set(expected)) > 250
    if (shape, MARKS) not in DIFFERENCES:
        assert upstream.token_ids(file(folder, name), MARKS) == ids(folder, MARKS)


@pytest.mark.parametrize(("name", "text"), DIFFERENCES, ids=lambda value: repr(value[:9]))
def test_a_known_difference(name: str, text: str, folder: Path) -> None:
    """A failure is good news: llama.cpp has become exact, and the entry can go."""
    published = {**PUBLISHED, **OTHERS}[name]
    vocabulary = json.loads(by_the_rules(name))["model"]
    write(folder, PUBLISHED["gpt-2"], vocabulary)  # what hubq reads, as it refuses the sections of OTHERS
    path = file(folder, name)
    write(folder, published, vocabulary)
    assert upstream.token_ids(path, text) != ids(folder, text)


def test_where_exactly_llama_cpp_splits(folder: Path) -> None:
    """Merges that cross every split show each place where the two split."""
    found, text = defaultdict(set), PROBE + SPACED
    for name, published in PUBLISHED.items():
        write(folder, published, across_the_rules())
        ours = upstream.token_ids(file(folder, name), text)
        assert name in LOOSE or ours == ids(folder, text), name
        found[tuple(ours)].add(name)
    assert [names for names in found.values() if len(names) > 1] == ALIKE


# --- recognition ---


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (steps(split(GPT2_PATTERN), BYTES), "gpt-2"),
        (steps(steps(DIGIT), steps(GPT2)), "smollm"),
        (GPT2 | {"trim_offsets": False}, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}, "gpt-2"),
        (steps(r"\p{N}", GPT2), "smollm"),
        (steps(split(LLAMA3, "Removed", True), BYTES), "smaug-bpe"),
        (steps(split(GPT4O, "Removed", True), BYTES), "gpt-4o"),
        (steps(QWEN2.replace(r"\r\n", "\r\n"), BYTES), "qwen2"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_spellings(section: dict[str, Any], name: str, folder: Path) -> None:
    write(folder, Published(section, ""), across_the_rules())
    vocab = read_vocab(folder, 1024)
    assert vocab.pre == name
    assert upstream.token_ids(file(folder), PROBE) == ids(folder, PROBE)


@pytest.mark.parametrize(
    "normalizer", [None, NFC, {"type": "Sequence", "normalizers": []}, {"type": "Sequence", "normalizers": [NFC]}], ids=str
)
@pytest.mark.parametrize("name", ["gpt-2", "deepseek-v3"])
def test_a_normalizer_that_only_composes(name: str, normalizer: dict[str, Any] | None, folder: Path) -> None:
    write(folder, replace(PUBLISHED[name], normalizer=normalizer), across_the_rules())
    assert read_vocab(folder, 1024).pre == name
    assert upstream.token_ids(file(folder), PROBE) == ids(folder, PROBE)


@pytest.mark.parametrize(
    ("published", "told"),
    [
        (Published({"type": "Whitespace"}, ""), "Whitespace"),
        (Published(BYTES, ""), "ByteLevel"),
        (Published(GPT2 | {"add_prefix_space": True}, ""), "ByteLevel add_prefix_space use_regex"),
        (Published(steps(punctuation("Contiguous"), GPT2, DIGIT), ""), "Punctuation Contiguous, ByteLevel use_regex, Digits"),
        (Published(steps(GPT2, DIGIT), ""), "ByteLevel use_regex, Digits individual_digits"),
        (Published(steps(split(QWEN2, "MergedWithNext"), BYTES), ""), r"Split .{40}… MergedWithNext, ByteLevel"),
        (  # this pattern leaves digits and Han alone, and they would be lost
            Published(steps(r"\p{N}{1,3}", HAN_AND_KANA, split(DEEPSEEK3, "Removed", True), BYTES), ""),
            "Split .* Removed invert, ByteLevel",
        ),
        (Published(GPT2, "", True), "ByteLevel use_regex; ignore_merges"),
        (Published(GPT2, "", False, {"type": "Lowercase"}), "Lowercase; ByteLevel use_regex"),
        (Published(GPT2, "", False, {"type": "Sequence", "normalizers": [NFC, {"type": "NFKC"}]}), "NFC, NFKC; ByteLevel"),
        (Published(GPT2, "", False, {"type": "Replace", "pattern": {"String": " "}, "content": "_"}), "Replace   _; Byte"),
        (Published(None, ""), "it has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_is_refused_in_words(published: Published, told: str, folder: Path) -> None:
    write(folder, published, across_the_rules())
    with pytest.raises(Unsupported, match=f"is none that llama.cpp is known to have, and a guess .*: {told}") as caught:
        read_vocab(folder, 1024)
    assert "SHAPES in hubq/formats/gguf/pretokenizers.py" in caught.value.hint


@pytest.mark.parametrize(
    ("setting", "told"), [({"dropout": 0.1}, "dropout"), ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix")], ids=str
)
def test_settings_that_llama_cpp_does_not_have(setting: dict[str, Any], told: str, folder: Path) -> None:
    found = document(PUBLISHED["gpt-2"], across_the_rules())
    found["model"] |= setting
    (folder / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(Unsupported, match=f"ByteLevel use_regex; {told}"):
        read_vocab(folder, 1024)


def test_a_hash_names_one_pre_tokenizer() -> None:
    """Two names may share a hash only where llama.cpp treats them alike."""
    names = defaultdict(set)
    for name, hashes in HASHES.items():
        for found in hashes:
            assert len(found) == 64
            names[found].add(name)
    assert [shared for shared in names.values() if len(shared) > 1] == [{"jina-v2-en", "bert-bge"}, {"mpt", "olmo"}]
