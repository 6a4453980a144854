"""A corpus of hostile inputs, made anew each time: what people who mean harm, or broken disks, could give to hubq.

`cases()` yields them. Each is a folder of files, what hubq does with it, and what must come of that. Nothing here is random.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ACCEPTED, REFUSED, EITHER = "accepted", "HubqError", "either"  # or the name of an error class
TENSORS, HIDDEN, INNER, VOCABULARY = "model.safetensors", 64, 128, 260


@dataclass(frozen=True)
class Case:
    """`files` by path, as bytes, or as (bytes, size) of a file with a hole behind them. `action` is one of run.py's."""

    name: str
    action: str
    files: Mapping[str, bytes | tuple[bytes, int]]
    wanted: str
    facts: Mapping[str, Any] = field(default_factory=dict)


# --- a sound model, the smallest that hubq converts ---

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 16,
    "rope_scaling": None,
}
SHAPES = {
    "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
    "model.norm.weight": [HIDDEN],
    "model.layers.0.input_layernorm.weight": [HIDDEN],
    "model.layers.0.self_attn.q_proj.weight": [HIDDEN, HIDDEN],
    "model.layers.0.self_attn.k_proj.weight": [32, HIDDEN],
    "model.layers.0.self_attn.v_proj.weight": [32, HIDDEN],
    "model.layers.0.self_attn.o_proj.weight": [HIDDEN, HIDDEN],
    "model.layers.0.post_attention_layernorm.weight": [HIDDEN],
    "model.layers.0.mlp.gate_proj.weight": [INNER, HIDDEN],
    "model.layers.0.mlp.up_proj.weight": [INNER, HIDDEN],
    "model.layers.0.mlp.down_proj.weight": [HIDDEN, INNER],
}


def packed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header and data."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def table(shapes: Mapping[str, list[int]]) -> tuple[dict[str, Any], int]:
    """The header of tensors in bfloat16, and the bytes of their data."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def weights(shapes: Mapping[str, list[int]] = SHAPES, **extra: Any) -> bytes:
    header, size = table(shapes)
    return packed(json.dumps({**header, **extra}).encode(), b"\x80\x3f" * (size // 2))


def tokenizer(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE of 256 bytes and four merges, split as GPT-2 does."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    merges = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    vocabulary |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges}
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    document |= {"pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}
    return {**document, **changes}


SETTINGS: dict[str, Any] = {"bos_token": "a", "eos_token": "a", "add_bos_token": False, "chat_template": "{{ messages }}"}
CARD = b"---\nlicense: mit\n---\n# A model\n"


def model(**files: Any) -> dict[str, bytes | tuple[bytes, int]]:
    """The files of the sound model under m/; of `files` config, tokenizer and settings may be tables, None leaves one out."""
    made: dict[str, Any] = {
        "config.json": CONFIG,
        TENSORS: weights(),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": SETTINGS,
        "README.md": CARD,
        **files,
    }
    made = {path: json.dumps(value).encode() if isinstance(value, dict) else value for path, value in made.items()}
    return {f"m/{path}": value for path, value in made.items() if value is not None}


def nested(depth: int, opened: bytes = b"[", closed: bytes = b"]") -> bytes:
    return opened * depth + b"1" + closed * depth


WRONG = (None, "", "x", "\x1b[2J", -1, 0, 1.5, True, 2**31, 2**63, 1e308, [], [1], [[]], {}, {"a": 1}, float("nan"), 10**400)
FEW = (None, "x", -1, 2**63, [[]])  # for each of many places


# --- safetensors ---

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def safetensors() -> Iterator[Case]:
    def case(name: str, content: Any, wanted: str = "BadSource") -> Case:
        return Case(f"safetensors: {name}", "checkpoint", {f"m/{TENSORS}": content}, wanted)

    def of(header: Any, size: int = 32) -> bytes:
        return packed(json.dumps(header).encode(), bytes(size))

    yield case("sound", of({"a": A, "b": B}), ACCEPTED)
    yield case("empty", b"")
    yield case("seven bytes", b"\x01" * 7)
    for exponent in (16, 27, 31, 32, 40, 62, 63):
        yield case(f"header of 2^{exponent}", packed(b"{}", length=2**exponent))
    yield case("header of 2^64 - 1", packed(b"{}", length=2**64 - 1))
    yield case("header of a sparse terabyte", (packed(b"{}", length=10**11), 1 << 40))
    yield case("the largest header, all holes", (packed(b"", length=100_000_000), 200_000_000))
    yield case("header beyond the file", packed(b"{}", length=3))
    yield case("data of a sparse terabyte", (of({"a": A}, 0), 1 << 40))
    yield case(
        "tensor of a sparse terabyte, too short", (of({"a": {**A, "shape": [2**40], "data_offsets": [0, 2**42]}}, 0), 1 << 40)
    )
    yield case("keys twice", packed(b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), bytes(24)))
    yield case("metadata twice", packed(b'{"__metadata__": {}, "__metadata__": {}}'))
    yield case("overlap", of({"a": A, "b": {**B, "data_offsets": [20, 28]}}, 28))
    yield case("same place", of({"a": A, "b": A}, 24))
    yield case("hole", of({"a": A, "b": {**B, "data_offsets": [26, 34]}}, 34))
    yield case("trailing bytes", of({"a": A}, 25))
    yield case("truncated", of({"a": A}, 23))
    yield case("a zip behind it", of({"a": A}, 24) + b"PK\x03\x04" + bytes(30))
    yield case("backwards", of({"a": {**A, "data_offsets": [24, 0]}}, 24))
    yield case("product of 2^128", of({"a": {**A, "shape": [2**62, 2**62, 16], "data_offsets": [0, 0]}}, 0))
    yield case("product that wraps to its size", of({"a": {**A, "shape": [2**62 + 6, 4], "data_offsets": [0, 96]}}, 96))
    for value in WRONG:
        yield case(f"shape of {value!r:.20}", of({"a": {**A, "shape": [value, 3]}}), EITHER if value == 0 else "BadSource")
        yield case(
            f"offset of {value!r:.20}", of({"a": {**A, "data_offsets": [value, 24]}}, 24), EITHER if value == 0 else "BadSource"
        )
        yield case(f"dtype {value!r:.20}", of({"a": {**A, "dtype": value}}, 24), REFUSED)
        yield case(f"entry {value!r:.20}", of({"a": value}, 24))
        yield case(f"header {value!r:.20}", of(value, 24), "BadSource")
        yield case(f"metadata {value!r:.20}", of({"__metadata__": value, "a": A}, 24), EITHER)
    for dtype in ("F4", "F6_E2M3", "C64", "f32", "F32 ", "FP16", "../F32"):
        yield case(f"dtype {dtype}", of({"a": {**A, "dtype": dtype}}, 24), "Unsupported")
    yield case("zero size", of({"a": {**A, "shape": [0, 3], "data_offsets": [0, 0]}}, 0), ACCEPTED)
    yield case("no dimensions", of({"a": {**A, "shape": [], "data_offsets": [0, 4]}}, 4), ACCEPTED)
    yield case("nine dimensions", of({"a": {**A, "shape": [1] * 9, "data_offsets": [0, 4]}}, 4))
    yield case("a million dimensions", of({"a": {**A, "shape": [1] * 10**6, "data_offsets": [0, 4]}}, 4))
    yield case("nested 10^5 deep", packed(nested(10**5)))
    yield case("nested 10^6 deep", packed(nested(10**6, b'{"a":', b"}")))
    yield case("digits", packed(b'{"a": ' + b"9" * 10**6 + b"}"))
    yield case("float offsets", of({"a": {**A, "data_offsets": [0.0, 24.0]}}, 24))
    yield case("invalid UTF-8", packed(b'{"\xff": 1}'))
    yield case("lone surrogate", packed(b'{"\\ud800": 1}'))
    yield case("UTF-16", packed(json.dumps({"a": A}).encode("utf-16"), bytes(24)), EITHER)
    yield case("NUL in front", packed(b"\0" * 100 + b"{}"))
    yield case("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n")
    yield case("HTML", b"<!DOCTYPE html><html><body>404</body></html>" * 100)
    yield case("gzip", gzip.compress(of({"a": A}, 24), mtime=0))
    yield case("pickle in a zip", b"PK\x03\x04" + bytes(400))
    for name in ("../../etc/passwd", "/etc/passwd", "C:\\x", "\x1b[2J", "a\0b", "n" * 10**6, "\u202emoc", ""):
        yield case(f"named {name[:12]!r}", of({name: A}, 24), ACCEPTED)  # a name is data here: each family says which it knows
    lists = b"[" + b",".join([b"[]"] * 10_000_000) + b"]"
    yield case("10 million lists", packed(b'{"a": ' + lists + b"}"))
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    yield case("a million tensors", packed(b"{" + b",".join(entry % i for i in range(10**6)) + b"}"), "BadSource")
    yield case("50,000 tensors", packed(b"{" + b",".join(entry % i for i in range(50_000)) + b"}"), ACCEPTED)
    numbers = b'{"a": {"dtype": "F32", "shape": [' + b",".join([b"1.5"] * 10_000_000) + b"]}}"
    yield case("10 million numbers", packed(numbers))


def index() -> Iterator[Case]:
    name = f"{TENSORS}.index.json"

    def case(told: str, document: Any, wanted: str = "BadSource") -> Case:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        return Case(
            f"index: {told}",
            "checkpoint",
            {f"m/{name}": data, "m/a.safetensors": packed(json.dumps({"a": A}).encode(), bytes(24))},
            wanted,
        )

    def to(path: Any) -> dict[str, Any]:
        return {"metadata": {}, "weight_map": {"a": path}}

    yield case("sound", to("a.safetensors"), ACCEPTED)
    paths = ["../a.safetensors", "../../m/a.safetensors", "/m/a.safetensors", "..\\a.safetensors", "C:\\a.safetensors"]
    paths += [
        "\\\\host\\share\\a.safetensors",
        "a.safetensors\0",
        "./a.safetensors",
        "b.safetensors",
        "a.bin",
        ".safetensors",
    ]
    for path in (*paths, *WRONG):
        yield case(f"path {path!r:.30}", to(path))
    for value in WRONG:
        yield case(f"weight_map {value!r:.20}", {"weight_map": value})
        yield case(f"whole {value!r:.20}", json.dumps(value).encode())
    yield case("without a map", {})
    yield case("tensor that is in no shard", {"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}})
    yield case("tensor that is not named", {"weight_map": {"b": "a.safetensors"}})
    yield case("a hundred thousand shards", {"weight_map": {f"{i}": f"{i}.safetensors" for i in range(100_000)}})
    yield case("nested 10^6 deep", nested(10**6))
    yield case("10 million lists", b'{"weight_map": [' + b",".join([b"[]"] * 10_000_000) + b"]}")
    yield case("not JSON", b"PK\x03\x04")


# --- small files of a model ---


def config() -> Iterator[Case]:
    def case(name: str, document: Any, wanted: str = REFUSED, action: str = "plan") -> Case:
        return Case(f"config: {name}", action, model(**{"config.json": document}), wanted)

    yield case("sound", CONFIG, ACCEPTED)
    yield case("sound for ONNX", CONFIG, ACCEPTED, "onnx")
    for key in CONFIG:
        for value in FEW:
            yield case(f"{key} = {value!r:.20}", {**CONFIG, key: value}, EITHER)
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "head_dim", "num_attention_heads", "intermediate_size"):
        for action in ("plan", "onnx"):
            yield case(f"{key} = 10^9 ({action})", {**CONFIG, key: 10**9}, EITHER if action != "plan" else REFUSED, action)
    for key in (
        "auto_map",
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "trust_remote_code",
    ):
        hostile = {**CONFIG, key: "evil/kernel", "text_config": {key: "evil/kernel"}}
        yield case(f"{key}", hostile, ACCEPTED)
    yield case(
        "auto_map alone",
        {**CONFIG, "architectures": ["Evil"], "model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}},
        "Unsupported",
    )
    for name, rope in {
        "huge factors": {"rope_type": "longrope", "short_factor": [1e308] * 8, "long_factor": [float("inf")] * 8},
        "many factors": {"rope_type": "longrope", "short_factor": [1.0] * 10**6, "long_factor": [1.0] * 10**6},
        "llama3 with zeros": {
            "rope_type": "llama3",
            "factor": 0,
            "low_freq_factor": 0,
            "high_freq_factor": 0,
            "original_max_position_embeddings": 0,
        },
        "llama3 without": {"rope_type": "llama3"},
        "yarn of NaN": {"rope_type": "yarn", "factor": float("nan")},
        "a list": [1],
        "unhashable": {"rope_type": ["llama3"]},
    }.items():
        yield case(f"rope_scaling: {name}", {**CONFIG, "rope_scaling": rope}, EITHER)
    yield case("layer_types for 10^6 layers", {**CONFIG, "layer_types": ["full_attention"] * 10**6}, EITHER)
    yield case("keys twice", b'{"model_type": "llama", "model_type": "evil", "architectures": ["x"]}')
    for depth in (900, 10**5, 10**6):
        yield case(f"nested {depth} deep", b'{"x": ' + nested(depth) + b"}")
        yield case(f"nested {depth} tables", b'{"x": ' + nested(depth, b'{"a":', b"}") + b"}")
    yield case("10 million lists", b'{"x": [' + b",".join([b"[]"] * 10_000_000) + b"]}")
    yield case("digits", b'{"x": ' + b"9" * 10**6 + b"}")
    yield case("empty", b"")
    yield case("binary", bytes(range(256)))
    yield case("gptq", {**CONFIG, "quantization_config": {"quant_method": "gptq"}}, "Unsupported")
    for value in FEW:
        yield case(f"quantization {value!r:.20}", {**CONFIG, "quantization_config": value}, EITHER)
        yield case(f"whole {value!r:.20}", json.dumps(value).encode())


BOMB = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def tokenizers() -> Iterator[Case]:
    def case(name: str, wanted: str = REFUSED, action: str = "plan", **files: Any) -> Case:
        return Case(
            f"tokenizer: {name}", action, model(**{path.replace("__", "."): value for path, value in files.items()}), wanted
        )

    def whole(name: str, wanted: str = REFUSED, **changes: Any) -> Case:
        return case(name, wanted, tokenizer__json=tokenizer(**changes))

    base = tokenizer()
    for key in base:
        for value in (*FEW, {"type": "Evil"}):
            yield whole(f"{key} = {value!r:.20}", EITHER, **{key: value})
    for key in base["model"]:
        for value in FEW:
            yield whole(f"model.{key} = {value!r:.20}", EITHER, model={**base["model"], key: value})
    for name, pattern in {
        "exponential": "(a+)+$",
        "exponential alternation": r"(\w|\w)*$",
        "exponential digits": r"(\p{N}*)*x",
        "counted": "((3{1,50}){1,50}){1,50}$",
        "huge count": "(?:a{1,100000}){1,100000}",
        "empty": "",
        "no pattern": "(((",
        "lookaround": "(?=(?=(?=(?=.*).*).*).*)x",
        "recursion": r"(?<n>a|\g<n>\g<n>)*$",
        "megabyte": "a?" * 500_000,
    }.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        yield whole(f"regex: {name}", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTES]})
    yield whole("normalizer that doubles a text 60 times", normalizer=BOMB)
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 1000}, *BOMB["normalizers"]]}
    yield whole("normalizer that prepends and doubles", normalizer=prepend)
    empty = {"type": "Replace", "pattern": {"Regex": "(?=a)|"}, "content": "aaaaaaaa"}
    yield whole("normalizer that replaces nothing by much", normalizer={"type": "Sequence", "normalizers": [empty] * 20})
    yield whole("bytes of bytes", pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 40})
    yield whole("bytes of bytes, normalized", normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40})
    yield whole("charsmap of nothing", EITHER, normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    yield whole("charsmap of garbage", EITHER, normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w" * 400})
    deep: dict[str, Any] = BYTES
    for _ in range(100):
        deep = {"type": "Sequence", "pretokenizers": [deep]}
    yield whole("nested 100 deep", EITHER, pre_tokenizer=deep)
    yield case("nested 10^6 deep", tokenizer__json=b'{"model": ' + nested(10**6) + b"}")
    for token_id in (2**31, 2**32 - 1, 2**63, -1):
        yield whole(
            f"added token {token_id}",
            EITHER,
            added_tokens=[
                {
                    "id": token_id,
                    "content": "<x>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
        )
        vocabulary = {**base["model"]["vocab"], "<x>": token_id}
        yield whole(f"token {token_id}", REFUSED, model={**base["model"], "vocab": vocabulary})
    many = {f"t{i}": i for i in range(200_000)}
    yield whole(
        "200,000 tokens for 260",
        REFUSED,
        model={**base["model"], "vocab": {**many, **{k: v + 200_000 for k, v in base["model"]["vocab"].items()}}},
    )
    yield whole("merges of strings", EITHER, model={**base["model"], "merges": ["a b", "c d"]})
    for name, merges in {
        "numbers": [1],
        "triples": [["a", "b", "c"]],
        "unknown": [["x" * 9, "y"]],
        "a number": 7,
        "nested": [[["a"]]],
    }.items():
        yield whole(f"merges of {name}", model={**base["model"], "merges": merges})
    for kind in ("BPE", "WordPiece", "Unigram", "WordLevel"):
        yield whole(f"an empty {kind}", model={"type": kind})
    infinite = {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("inf")], ["b", float("nan")]]}
    yield case("scores that are not finite", tokenizer__json=json.dumps(tokenizer(model=infinite)).encode())
    yield whole("unknown token out of reach", model={"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]]})
    yield case("empty", tokenizer__json=b"")
    yield case("binary", tokenizer__json=bytes(range(256)) * 100)
    yield case("none", tokenizer__json=None)
    for key in (*SETTINGS, "added_tokens_decoder", "tokenizer_class", "add_prefix_space", "extra_special_tokens"):
        for value in (*FEW, {"0": {"content": [1]}}, {"x": 1}, [{"name": "../../x", "template": "y"}], [{"name": 1}]):
            yield case(f"{key} = {value!r:.24} in its settings", EITHER, tokenizer_config__json={**SETTINGS, key: value})
    for path in (
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "modules.json",
    ):
        for told, data in {
            "deep": nested(10**6),
            "binary": bytes(range(256)),
            "a list": b"[1]",
            "wrong": json.dumps({"eos_token_id": 10**30, "bos_token": {"content": {}}, "chat_template": 1, "a": "b"}).encode(),
            "wrong types": json.dumps({"eos_token_id": [[], "x", -1, 10**9], "eos_token": [], "unk_token": 3}).encode(),
            "10 million lists": b"[" + b",".join([b"[]"] * 10_000_000) + b"]",
        }.items():
            yield case(f"{path}: {told}", EITHER, **{path.replace(".", "__"): data})
    yield case("settings of 10 million lists", tokenizer_config__json=b'{"x": [' + b",".join([b"[]"] * 10_000_000) + b"]}")
    pieces = {
        "empty": b"",
        "garbage": bytes(range(256)) * 40,
        "a length of 2^63": b"\x0a" + b"\xff" * 9 + b"\x01",
        "pieces without end": b"\x0a\x02\x0a\x00" * 10**6,
        "a piece of a megabyte": b"\x0a\x80\x80\x40" + b"\x0a\xfd\xff\x3f" + b"x" * (2**20 - 4),
        "BPE of nothing": b"\x12\x02\x18\x02",
        "a charsmap of garbage": b"\x0a\x05\x0a\x01a\x15\x00" + b"\x1a\x06\x12\x04\xff\xff\xff\xff",
        "HTML": b"<html></html>" * 100,
    }
    for told, data in pieces.items():
        yield case(f"tokenizer.model: {told}", tokenizer__json=None, tokenizer__model=data)
    for told, (vocabulary, merges) in {
        "garbage": (b"\xff", b"\xff"),
        "deep": (nested(10**6), b"#version: 0.2\na b\n"),
        "negative ids": (b'{"a": -1, "b": 2}', b"a b\n"),
        "merges of nothing": (b'{"a": 0}', b"x y\n" * 1000),
    }.items():
        yield case(f"vocab.json: {told}", tokenizer__json=None, vocab__json=vocabulary, merges__txt=merges)


TEMPLATES = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long string": "{{ 'x' * 10**9 }}",
    "long list": "{{ [1] * 10**9 }}",
    "joined": "{{ range(90000)|map('string')|join('x' * 90000) }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch evil') }}",
    "through attr": "{{ (''|attr('__class__'))|attr('__mro__') }}",
    "through format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "function's own": "{{ raise_exception.__globals__ }}",
    "clock's own": "{{ strftime_now.__self__.__class__ }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "deep": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "width": "{{ '%1000000000d' % 1 }}",
    "padded": "{{ 'x'.ljust(10**9) }}",
    "centred": "{{ 'x'|center(10**9) }}",
    "unclosed": "{% for",
    "self": "{{ self.__init__.__globals__ }}",
    "mutating": "{{ messages.append(1) }}",
    "indent": "{{ ('x\n' * 100000)|indent(100000) }}",
}


def templates() -> Iterator[Case]:
    for name, text in TEMPLATES.items():
        yield Case(f"template: {name}", "render", {}, REFUSED, {"template": text})
        yield Case(
            f"template in a model: {name}",
            "plan",
            model(**{"tokenizer_config.json": {**SETTINGS, "chat_template": text}}),
            ACCEPTED,
        )
    names = [{"name": name, "template": "x"} for name in ("../../evil", "/etc/passwd", "a\0b", "", "default", "x" * 10**5)]
    yield Case(
        "template: hostile names", "plan", model(**{"tokenizer_config.json": {**SETTINGS, "chat_template": names}}), EITHER
    )
    yield Case(
        "template: lone surrogates",
        "plan",
        model(**{"tokenizer_config.json": {**SETTINGS, "chat_template": "\ud800"}}),
        REFUSED,
    )


def cards() -> Iterator[Case]:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    merged = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    fronts = {
        "billion laughs": bomb,
        "billion laughs as the language": bomb + "language: *a29\nlicense: *a29\ntags: *a29\nbase_model: *a29\n",
        "merged a billion times": merged,
        "itself": "a: &a [*a]\nlanguage: &b [*b]\n",
        "deep": "a: " + "[" * 10**5,
        "deep, closed": "a: " + "[" * 400 + "]" * 400,
        "python object": "a: !!python/object/apply:os.system ['touch evil']\n",
        "python name": "license: !!python/name:os.system\n",
        "digits": "a: " + "9" * 10**6,
        "sexagesimal": "a: " + ":".join(["59"] * 10**5),
        "octal": "a: 0" + "7" * 10**5,
        "a megabyte of keys": "".join(f"k{i}: v\n" for i in range(120_000)),
        "two megabytes of list": "tags:\n" + "- x\n" * 500_000,
        "wrong types": "license: {a: 1}\nlanguage: {b: 2}\ntags: 3\nbase_model: [[1]]\ndatasets: {x: [1]}\nmodel_name: [x]\n",
        "wrong types 2": "license: [1]\nlanguage: 7\ntags: {a: b}\nbase_model: 5\ndatasets: 6\nauthor: [1]\nname: {x: 1}\n",
        "terminal": 'license: "\\x1b[2J"\nlicense_name: "a\\nb: c"\nlicense_link: "javascript:alert(1)"\n',
        "a date": "license: 2001-99-99\n",
        "surrogates": 'license: "\\ud800"\nlanguage: ["\\udfff"]\n',
        "NUL": "license: \0\n",
        "tabs": "\ta: 1\n",
    }
    for name, front in fronts.items():
        card = b"---\n" + front.encode() + b"\n---\n# x\n"
        yield Case(f"card: {name}", "plan", model(**{"README.md": card}), EITHER)
        yield Case(f"card for ONNX: {name}", "onnx", model(**{"README.md": card}), EITHER)
    yield Case("card: binary", "plan", model(**{"README.md": bytes(range(256)) * 100}), EITHER)
    yield Case("card: a gigabyte of holes", "plan", model(**{"README.md": (b"---\n", 1 << 30)}), REFUSED)
    for path in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        yield Case(f"{path} of a gigabyte", "plan", model(**{path: (b"{", 1 << 30)}), REFUSED)


# --- GGUF ---


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(
    name: bytes = b"t", shape: tuple[int, ...] = (4,), number: int = 0, offset: int = 0, length: int | None = None
) -> bytes:
    start = struct.pack("<Q", len(name) if length is None else length) + name + struct.pack("<I", len(shape))
    return start + b"".join(struct.pack("<Q", n & 2**64 - 1) for n in shape) + struct.pack("<IQ", number, offset)


def gguf(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 0,
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF" + struct.pack("<I", 3),
    alignment: int = 32,
) -> bytes:
    """A file of encoded keys and tensors, padded, with `data` bytes behind it."""
    keys, tensors = keys or [], tensors or []
    header = start + struct.pack("<QQ", *(counts or (len(tensors), len(keys)))) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + bytes(i % 256 for i in range(data))


U32, I32, STR, ARR = 4, 5, 8, 9
ALIGN = b"general.alignment"
NAME = b"my_tensor_0_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors"
# what ggml's tests/test-gguf.cpp makes by hand, under its names
HANDMADE: dict[str, tuple[bytes, str]] = {
    "HEADER_BAD_MAGIC": (gguf(start=b"FUGG" + struct.pack("<I", 3)), "BadSource"),
    "HEADER_BAD_VERSION_0": (gguf(start=b"GGUF" + struct.pack("<I", 0)), "BadSource"),
    "HEADER_BAD_VERSION_1": (gguf(start=b"GGUF" + struct.pack("<I", 1)), "BadSource"),
    "HEADER_BAD_VERSION_FUTURE": (gguf(start=b"GGUF" + struct.pack("<I", 4)), "BadSource"),
    "HEADER_BAD_N_KV": (gguf(counts=(0, 2**64 - 1)), "BadSource"),
    "HEADER_BAD_N_TENSORS": (gguf(counts=(2**64 - 1, 0)), "BadSource"),
    "HEADER_EMPTY": (gguf(), ACCEPTED),
    "KV_BAD_KEY_SIZE": (gguf([struct.pack("<Q", 2**64 - 1) + b"my_key_0" + struct.pack("<II", U32, 1)]), "BadSource"),
    "KV_EMPTY_KEY": (gguf([key(b"", U32, bytes(4))]), "BadSource"),
    "KV_BAD_TYPE": (gguf([key(b"my_key_0", 13, b"\0")]), "BadSource"),
    "KV_DUPLICATE_KEY": (gguf([key(b"my_key_0", U32, bytes(4))] * 2), "BadSource"),
    "KV_BAD_ALIGN": (gguf([key(ALIGN, U32, struct.pack("<I", 13))]), "BadSource"),
    "KV_WRONG_TYPE_ALIGN": (gguf([key(ALIGN, I32, struct.pack("<I", 32))]), "BadSource"),
    "KV_SUCCESS": (
        gguf([key(b"my_key_0", STR, text(b"x")), key(b"my_key_1", ARR, struct.pack("<IQ", U32, 1) + bytes(4))]),
        ACCEPTED,
    ),
    "TENSORS_BAD_NAME_SIZE": (gguf(tensors=[entry(NAME)], data=32), "BadSource"),
    "TENSORS_BAD_N_DIMS": (gguf(tensors=[entry(shape=(1,) * 5)], data=32), "BadSource"),
    "TENSORS_BAD_SHAPE": (gguf(tensors=[entry(shape=(-1,))], data=32), "BadSource"),
    "TENSORS_ZERO_DIM": (gguf(tensors=[entry(shape=(4, 0))], data=32), ACCEPTED),
    "TENSORS_NE_TOO_BIG": (gguf(tensors=[entry(shape=(4 * (2**31 - 1),) * 2)], data=32), "BadSource"),
    "TENSORS_NBYTES_TOO_BIG": (gguf(tensors=[entry(shape=(1_533_916_160,) * 2, number=27)], data=32), "BadSource"),
    "TENSORS_NBYTES_PAD_WRAP": (gguf(tensors=[entry(shape=(4, 2**30 - 1, 2**30 + 1))], data=32), "BadSource"),
    "TENSORS_BAD_TYPE": (gguf(tensors=[entry(number=99)], data=32), "BadSource"),
    "TENSORS_BAD_OFFSET": (gguf(tensors=[entry(offset=2**64 - 1)], data=32), "BadSource"),
    "TENSORS_DUPLICATE_NAME": (gguf(tensors=[entry(b"my_tensor"), entry(b"my_tensor", offset=32)], data=64), "BadSource"),
    "TENSORS_BAD_ALIGN": (gguf([key(ALIGN, U32, struct.pack("<I", 13))], [entry()], 32), "BadSource"),
    "TENSORS_INCONSISTENT_ALIGN": (gguf(tensors=[entry(b"a"), entry(b"b", offset=16)], data=64), "BadSource"),
    "TENSORS_SUCCESS": (gguf(tensors=[entry(b"a"), entry(b"b", offset=32)], data=64), ACCEPTED),
    "TENSORS_CUSTOM_ALIGN": (
        gguf([key(ALIGN, U32, struct.pack("<I", 1))], [entry(b"a"), entry(b"b", offset=16)], 32, alignment=1),
        ACCEPTED,
    ),
    "DATA_NOT_ENOUGH_DATA": (gguf(tensors=[entry(b"a"), entry(b"b", offset=32)], data=47), "BadSource"),
    "DATA_BAD_ALIGN": (gguf([key(ALIGN, U32, struct.pack("<I", 13))], [entry()], 16, alignment=1), "BadSource"),
    "DATA_INCONSISTENT_ALIGN": (
        gguf([key(ALIGN, U32, struct.pack("<I", 64))], [entry(b"a"), entry(b"b", offset=32)], 128, alignment=64),
        "BadSource",
    ),
    "DATA_MEM_SIZE_OVERFLOW": (
        gguf(tensors=[entry(b"a", (2**63 - 64,), 24), entry(b"b", (2**63 - 64,), 24, 2**63 - 64)], data=32),
        "BadSource",
    ),
    "DATA_SUCCESS": (gguf(tensors=[entry(b"a", (16,))], data=64), ACCEPTED),
    "DATA_CUSTOM_ALIGN": (gguf([key(ALIGN, U32, struct.pack("<I", 1))], [entry(b"a", (3,))], 12, alignment=1), ACCEPTED),
}


def ggufs() -> Iterator[Case]:
    def case(name: str, content: Any, wanted: str = "BadSource") -> Case:
        return Case(f"gguf: {name}", "gguf", {"m/x.gguf": content}, wanted)

    for name, (content, wanted) in HANDMADE.items():
        yield case(name, content, wanted)
    yield case("2^63 keys", gguf(counts=(0, 2**63)))
    yield case("2^63 tensors", gguf(counts=(2**63, 0)))
    yield case("100,000 keys in a sparse terabyte", (gguf(counts=(0, 100_000)), 1 << 40))
    yield case("100,000 tensors in a sparse terabyte", (gguf(counts=(100_000, 0)), 1 << 40))
    for kind in range(14):
        yield case(f"array of 2^40 of type {kind}", gguf([key(b"k", ARR, struct.pack("<IQ", kind, 2**40))]))
        yield case(
            f"array of 2^40 of type {kind} in a sparse terabyte",
            (gguf([key(b"k", ARR, struct.pack("<IQ", kind, 2**40))]), 1 << 41),
        )
    yield case("strings of nothing in a sparse terabyte", (gguf([key(b"k", ARR, struct.pack("<IQ", STR, 10**8))]), 1 << 41))
    yield case("string of 2^62", gguf([key(b"k", STR, struct.pack("<Q", 2**62))]))
    yield case("string of 99 MB", (gguf([key(b"k", STR, struct.pack("<Q", 99_000_000))]), 1 << 30), EITHER)
    nested_arrays = b"".join(struct.pack("<IQ", ARR, 1) for _ in range(100_000)) + struct.pack("<IQ", U32, 0)
    yield case("arrays 10^5 deep", gguf([key(b"k", ARR, nested_arrays)]))
    for alignment in (0, 3, 48, 2**31, 2**32 - 1):
        yield case(
            f"alignment {alignment}",
            gguf([key(ALIGN, U32, struct.pack("<I", alignment))], [entry()], 32),
            EITHER if alignment == 2**31 else "BadSource",
        )
    yield case("alignment 2^63", gguf([key(ALIGN, 10, struct.pack("<Q", 2**63))], [entry()], 32))
    yield case("overlap", gguf(tensors=[entry(b"a"), entry(b"b")], data=64))
    yield case("hole", gguf(tensors=[entry(b"a"), entry(b"b", offset=64)], data=128))
    yield case("backwards", gguf(tensors=[entry(b"a", offset=32), entry(b"b")], data=64))
    yield case("name of 64 bytes", gguf(tensors=[entry(b"n" * 64)], data=32))
    yield case("name of 63 bytes", gguf(tensors=[entry(b"n" * 63)], data=32), ACCEPTED)
    yield case("name of 2^63 bytes", gguf(tensors=[entry(length=2**63)], data=32))
    yield case("name that is no text", gguf(tensors=[entry(b"\xff\xfe")], data=32))
    yield case("name of nothing", gguf(tensors=[entry(b"")], data=32), EITHER)
    yield case("2^32 - 1 dimensions", gguf(tensors=[struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**32 - 1)], data=32))
    yield case("dimensions that overflow beside zero", gguf(tensors=[entry(shape=(2**62, 8, 0))], data=32))
    yield case("big-endian", b"GGUF" + struct.pack(">I", 3) + bytes(64))
    yield case("LFS pointer", b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 64)
    yield case("HTML", b"<!DOCTYPE html>" * 10)
    yield case("100,000 keys", gguf([key(b"k%d" % i, U32, bytes(4)) for i in range(100_000)]), ACCEPTED)
    yield case("100,000 tensors", gguf(tensors=[entry(b"t%d" % i, (0,)) for i in range(100_000)]), ACCEPTED)
    yield case(
        "10 million strings", gguf([key(b"k", ARR, struct.pack("<IQ", STR, 11_000_000) + bytes(8 * 11_000_000))]), EITHER
    )
    yield Case("gguf as a source: no architecture", "source", {"m/x.gguf": gguf(tensors=[entry()], data=32)}, REFUSED)
    arch = key(b"general.architecture", STR, text(b"llama"))
    for name, value in {
        "architecture of bytes": [key(b"general.architecture", STR, text(b"\xff" * 9))],
        "architecture of a number": [key(b"general.architecture", U32, bytes(4))],
        "unknown architecture": [key(b"general.architecture", STR, text(b"../../evil"))],
        "no keys": [arch],
        "layers 2^32 - 1": [arch, key(b"llama.block_count", U32, struct.pack("<I", 2**32 - 1))],
        "layers of text": [arch, key(b"llama.block_count", STR, text(b"many"))],
        "split of 65535": [arch, key(b"split.count", 2, struct.pack("<H", 65535)), key(b"split.no", 2, b"\0\0")],
        "split of 2^63": [arch, key(b"split.count", 10, struct.pack("<Q", 2**63))],
        "split of -1": [arch, key(b"split.count", I32, struct.pack("<i", -1))],
    }.items():
        yield Case(
            f"gguf as a source: {name}",
            "source",
            {"m/x.gguf": gguf(value, [entry(b"token_embd.weight", (64, 260))], 66560)},
            EITHER,
        )


def matrices() -> Iterator[Case]:
    def case(name: str, content: Any, wanted: str = "BadSource") -> Case:
        return Case(f"imatrix: {name}", "imatrix", {"m/i.dat": content}, wanted)

    def legacy(*entries: tuple[bytes, int, int, bytes], end: bytes = b"") -> bytes:
        made = [struct.pack("<i", len(n)) + n + struct.pack("<ii", calls, size) + data for n, calls, size, data in entries]
        return struct.pack("<i", len(entries)) + b"".join(made) + end

    one = (b"blk.0.ffn_up.weight", 1, 2, struct.pack("<2f", 1, 2))
    yield case("sound, old", legacy(one), ACCEPTED)
    for count in (-1, 0, 2**31 - 1, -(2**31), 10**6):
        yield case(f"{count} entries", struct.pack("<i", count) + bytes(100))
        yield case(f"name of {count} bytes", struct.pack("<ii", 1, count) + bytes(100))
        yield case(f"{count} values", legacy((b"a", 1, count, b"1234")))
    yield case("2^31 - 1 values in a sparse terabyte", (legacy((b"a", 1, 2**31 - 1, b"")), 1 << 40), REFUSED)
    yield case("110 million entries of a sparse file", (struct.pack("<i", 2**31 - 1), 1 << 40))
    for told, number in {"NaN": float("nan"), "infinity": float("inf"), "minus one": -1.0}.items():
        yield case(f"values of {told}", legacy((b"a", 1, 1, struct.pack("<f", number))))
    yield case("twice", legacy(one, one))
    yield case("trailing bytes", legacy(one, end=struct.pack("<ii", 1, 1) + b"xy"))
    yield case("text", b"hello world " * 10)
    yield case("empty", b"")
    kind = key(b"general.type", STR, text(b"imatrix"))
    keys = [
        kind,
        key(b"imatrix.datasets", ARR, struct.pack("<IQ", STR, 1) + text(b"../../x")),
        key(b"imatrix.chunk_count", U32, b"\1\0\0\0"),
        key(b"imatrix.chunk_size", U32, b"\1\0\0\0"),
    ]
    pair = [entry(b"a.in_sum2", (4,)), entry(b"a.counts", (1,), offset=32)]
    yield case("sound", gguf(keys, pair, 64), EITHER)
    yield case("a model", gguf([key(b"general.type", STR, text(b"model"))], pair, 64))
    yield case("no counts", gguf(keys, pair[:1], 32))
    yield case("counts that do not divide", gguf(keys, [pair[0], entry(b"a.counts", (3,), offset=32)], 64))
    yield case("of zero size", gguf(keys, [entry(b"a.in_sum2", (0,)), entry(b"a.counts", (0,))], 32))
    yield case("of another type", gguf(keys, [entry(b"a.in_sum2", (4,), 1), pair[1]], 64))
    yield case("without keys", gguf([kind], pair, 64))
    yield case(
        "sums in a sparse terabyte",
        (gguf(keys, [entry(b"a.in_sum2", (2**37,)), entry(b"a.counts", (1,), offset=2**39)]), 1 << 39),
    )


# --- what others published ---

RELEASE: dict[str, Any] = {
    "schema": 2,
    "source": {"repo": "org/model", "commit": "0" * 40},
    "architecture": "LlamaForCausalLM",
    "weights": 10,
    "target": "org/model-GGUF",
    "card": {"chat_template": False, "language": []},
    "files": [
        {
            "path": "m.gguf",
            "level": "gguf:Q8_0",
            "size": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "weights": 10,
            "types": {"Q8_0": 1},
            "fallbacks": 0,
            "key": "k",
            "imatrix": None,
            "options": "",
            "folder": "",
            "parts": [],
        }
    ],
    "evalset": None,
    "measurements": [],
    "versions": {"hubq": "0"},
    "machine": "",
    "command": "hubq publish {model} {build}",
    "imatrices": [],
    "checks": [],
    "left_out": [],
    "origin": None,
    "speeds": [],
}


def records() -> Iterator[Case]:
    def case(name: str, document: Any, wanted: str = REFUSED, sums: bytes = b"", action: str = "verify", **facts: Any) -> Case:
        data = document if isinstance(document, bytes | tuple) else json.dumps(document).encode()
        files = {"hub/m/release.json": data, "hub/m/m.gguf": b"abc", "hub/m/README.md": CARD, "hub/m/SHA256SUMS": sums}
        return Case(f"record: {name}", action, files, wanted, facts)

    def file(**changes: Any) -> dict[str, Any]:
        return {**RELEASE, "files": [{**RELEASE["files"][0], **changes}]}

    yield case("sound", RELEASE, ACCEPTED)
    for key_ in RELEASE:
        for value in FEW:
            yield case(f"{key_} = {value!r:.20}", {**RELEASE, key_: value}, EITHER)
        yield case(f"without {key_}", {k: v for k, v in RELEASE.items() if k != key_}, EITHER)
    for key_ in RELEASE["files"][0]:
        for value in FEW:
            yield case(f"files.{key_} = {value!r:.20}", file(**{key_: value}), EITHER)
    for path in ("../../evil", "/etc/passwd", "a/../../evil", "..\\evil", "C:evil", "a\0b", ".", "..", "", "\x1b[2J"):
        yield case(f"path {path!r}", file(path=path))
        yield case(f"folder {path!r}", file(folder=path), ACCEPTED if path in ("",) else REFUSED)
        yield case(f"part {path!r}", file(parts=[{"path": path, "size": 3, "sha256": "0" * 64}]))
    yield case("unclosed quote in the command", {**RELEASE, "command": "hubq publish 'x {model} {build}"}, EITHER, again=True)
    yield case("unclosed quote in the options", file(options="--imatrix 'x"), EITHER, again=True)
    yield case(
        "options that write", file(options="--work-dir /tmp/evil --to /tmp/evil --llama-cpp /tmp/evil"), EITHER, again=True
    )
    yield case("placeholders", {**RELEASE, "command": "{0.__class__} {model.__class__} %s"}, EITHER)
    yield case("nested 10^6 deep", nested(10**6))
    yield case("nested in the card", json.dumps(RELEASE).encode().replace(b'"language": []', b'"language": ' + nested(10**5)))
    yield case("10 million lists", b'{"schema": 2, "files": [' + b",".join([b"[]"] * 10_000_000) + b"]}")
    yield case("a gigabyte of holes", (b"{", 1 << 30))
    yield case("not JSON", b"\xff\xfe")
    yield case("another schema", {**RELEASE, "schema": 99}, "Unsupported")
    yield case("the same level 10,000 times", {**RELEASE, "files": RELEASE["files"] * 10_000}, EITHER)
    digest = b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for name, sums in {
        "path outside": digest + b"  ../../../etc/passwd\n",
        "absolute path": digest + b"  /etc/passwd\n",
        "short": b"ab  m.gguf\n",
        "binary": bytes(range(256)) * 10,
        "a million lines": (digest + b"  m.gguf\n") * 200_000,
        "another hash": b"0" * 64 + b"  m.gguf\n",
    }.items():
        yield case(f"SHA256SUMS: {name}", RELEASE, ACCEPTED, sums)  # the report says what is false
    for name, content in {
        "damaged": b"GGUF",
        "lying": HANDMADE["HEADER_BAD_N_KV"][0],
        "empty": b"",
        "sound": HANDMADE["HEADER_EMPTY"][0],
    }.items():
        files = {"hub/m/m.gguf": content, "hub/m/README.md": b"---\nbase_model: ../../etc\n---\n"}
        yield Case(f"audit: {name}", "audit", files, EITHER)


def texts() -> Iterator[Case]:
    def case(name: str, content: Any, wanted: str = "Usage", suffix: str = "jsonl") -> Case:
        return Case(f"text: {name}", "text", model() | {f"t.{suffix}": content}, wanted)

    line = json.dumps({"text": "hello world " * 50}).encode() + b"\n"
    yield case("sound", line * 20, ACCEPTED)
    yield case("broken line", line * 3 + b"{\n" + line)
    yield case("wrong type", b'{"text": 7}\n' * 9)
    yield case("mixed types", line + b'{"text": [1]}\n' + line)
    yield case("no field", b'{"other": "x"}\n' * 9)
    yield case("a list", b"[1, 2]\n" * 9)
    yield case("nested", b'{"text": ' + nested(5000) + b"}\n")
    yield case("nested deeper", b'{"text": ' + nested(10**5, b'{"a":', b"}") + b"}\n")
    yield case("huge line", b'{"text": "' + b"hello world " * 50_000 + b'"}\n', EITHER)
    yield case("empty", b"")
    yield case("binary", bytes(range(256)) * 10)
    yield case("NUL", b"\0" * 10_000)
    yield case("not UTF-8", b'{"text": "\xff"}\n' * 9)
    yield case("lone surrogates", b'{"text": "\\ud800 hello"}\n' * 2000, EITHER)
    yield case("text that is not UTF-8", b"\xff" * 100, "Usage", "txt")
    yield case("short text", b"hi", "Usage", "txt")
    yield case("no parquet", b"PAR1" + bytes(100) + b"PAR1", "Usage", "parquet")
    yield case("parquet of lies", b"PAR1" + b"\xff" * 100 + struct.pack("<I", 2**31 - 1) + b"PAR1", "Usage", "parquet")


def graphs() -> Iterator[Case]:
    for path in ("../secret", "../../etc/passwd", "/etc/passwd", "a/../../x", "sub/x", "..", "", "\\\\host\\x", "C:\\x"):
        for where in ("initializer", "constant", "branch", "function"):
            yield Case(
                f"onnx: external data {path!r} in a {where}",
                "graph",
                {"secret": b"secret" * 100, "m/x": b""},
                "BadSource",
                {"location": path, "where": where},
            )
    for name, (offset, length) in {
        "beyond": ("0", "99999999999"),
        "negative": ("-8", "8"),
        "text": ("x", "y"),
        "huge": ("9" * 30, "8"),
    }.items():
        yield Case(
            f"onnx: external data {name}",
            "graph",
            {"m/data": b"secret" * 100},
            REFUSED,
            {"location": "data", "where": "initializer", "offset": offset, "length": length},
        )
    for name, content in {
        "empty": b"",
        "garbage": bytes(range(256)) * 10,
        "HTML": b"<html>",
        "a length of 2^63": b"\x3a" + b"\xff" * 9 + b"\x01",
    }.items():
        yield Case(f"onnx: {name}", "graph", {"m/model.onnx": content}, "BadSource" if name != "empty" else EITHER)


def described() -> Iterator[Case]:
    """What transformers gets to see of a config."""
    for key in (
        "auto_map",
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "trust_remote_code",
    ):
        hostile = {**CONFIG, key: "evil/kernel", "text_config": {key: "evil/kernel"}}
        yield Case(f"{key} reaches transformers", "describe", model(**{"config.json": hostile}), ACCEPTED)
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "head_dim", "num_attention_heads", "intermediate_size"):
        yield Case(f"{key} = 10^9 reaches transformers", "describe", model(**{"config.json": {**CONFIG, key: 10**9}}), EITHER)


def cases() -> Iterator[Case]:
    """All of them; names are unique."""
    for part in (safetensors, index, config, tokenizers, templates, cards, ggufs, matrices, records, graphs, texts, described):
        yield from part()
