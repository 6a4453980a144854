"""Reading safetensors: every refusal says what is wrong with which file or tensor, and what is read is exact."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hubq.checkpoint import (
    INDEX,
    SINGLE,
    Checkpoint,
    StoredTensor,
    few,
    merge,
    open_checkpoint,
    read_header,
    shards,
)
from hubq.errors import BadSource, HubqError, Unsupported

Entry = dict[str, Any]

A: Entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B: Entry = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def packed(header: Any, size: int = 32) -> bytes:
    return file_of(json.dumps(header).encode(), bytes(size))


def reader(content: bytes) -> Callable[[str, int, int], bytes]:
    return lambda path, start, stop: content[start:stop]


def header_of(content: bytes) -> dict[str, StoredTensor]:
    return read_header("model.safetensors", len(content), reader(content))


# --- the header of one file ---


def test_a_header_says_where_tensors_lie() -> None:
    content = packed({"__metadata__": {"format": "pt"}, "a": A, "b": B})
    base = len(content) - 32
    assert header_of(content) == {
        "a": StoredTensor("a", "F32", (2, 3), SINGLE, base, base + 24),
        "b": StoredTensor("b", "BF16", (4,), SINGLE, base + 24, base + 32),
    }


DAMAGED = {
    "empty": (b"", "would be 0 bytes of a file of 0"),
    "shorter than a length": (b"\x10\0\0", "of a file of 3"),
    "cut in the header": (packed({"a": A, "b": B})[:40], "of a file of 40"),
    "length beyond the file": (file_of(b"{}", length=3), "would be 3 bytes of a file of 10"),
    "absurd length": (file_of(b"{}", length=2**63), "9,223,372,036,854,775,808 bytes"),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "is not a safetensors file"),
    "a pickle in a zip": (b"PK\x03\x04" + bytes(200), "is not a safetensors file|cannot be read"),
    "no JSON": (file_of(b"{'a': 1}"), "the header .* cannot be read"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "the header .* cannot be read"),
    "nested too deeply": (file_of(b"[" * 5000), "the header .* cannot be read"),
    "a number of too many digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "the header .* cannot be read"),
    "a name given twice": (
        file_of(f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}}}'.encode(), bytes(24)),
        "cannot be read: a name is given twice",
    ),
    "a key given twice": (
        file_of(b'{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        "cannot be read: a name is given twice",
    ),
    "a list": (packed([A]), "is not a table of tensors"),
    "truncated data": (packed({"a": A, "b": B})[:-1], "is truncated: its tensors need"),
    "trailing bytes": (packed({"a": A, "b": B}, 39), "7 bytes behind its last tensor"),
    "a hole": (packed({"a": A, "b": B | {"data_offsets": [26, 34]}}, 34), "'b' does not begin where"),
    "an overlap": (packed({"a": A, "b": B | {"data_offsets": [20, 28]}}, 28), "'b' does not begin where"),
    "a hole in front": (packed({"a": A | {"data_offsets": [8, 32]}}), "'a' does not begin where"),
    "a size that does not fit": (packed({"a": A | {"shape": [2, 4]}}, 24), "the size of the tensor 'a' does not fit its shape"),
    "offsets backwards": (packed({"a": A | {"data_offsets": [24, 0]}}, 24), "the size of the tensor 'a'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str) -> None:
    content, message = DAMAGED[name]
    with pytest.raises(BadSource, match=message) as caught:
        header_of(content)
    assert "model.safetensors" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        "F32",
        [],
        {},
        {"dtype": "F32", "shape": [2, 3]},
        A | {"dtype": ["F32"]},
        A | {"dtype": {}},
        A | {"dtype": None},
        A | {"shape": {}},
        A | {"shape": ""},
        A | {"shape": 6},
        A | {"shape": [-2, -3]},
        A | {"shape": [2.0, 3]},
        A | {"shape": [True, 6]},
        A | {"shape": ["2", 3]},
        A | {"shape": [1] * 9},
        A | {"shape": [10**4200], "data_offsets": [0, 4 * 10**4200]},
        A | {"data_offsets": [0]},
        A | {"data_offsets": [0, 12, 24]},
        A | {"data_offsets": {"0": 0, "24": 24}},
        A | {"data_offsets": [-24, 0]},
        A | {"data_offsets": [0, float("inf")]},
        A | {"data_offsets": "ab"},
    ],
    ids=lambda entry: str(entry)[:60],
)
def test_a_tensor_described_wrongly_is_refused_by_name(entry: Any) -> None:
    with pytest.raises(BadSource, match="describes the tensor 'a' in a way that the format does not allow") as caught:
        header_of(packed({"a": entry}, 24))
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["F4", "C64", "bf16", ""])
def test_unknown_dtypes_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(
        Unsupported, match=rf"the tensor 'a' in model\.safetensors is stored as {dtype}, a type that hubq does not know"
    ) as caught:
        header_of(packed({"a": A | {"dtype": dtype}}, 24))
    assert "unquantized" in caught.value.hint


def test_a_pointer_of_git_lfs_gets_the_command_that_helps() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"
    with pytest.raises(BadSource, match="is a pointer of Git LFS") as caught:
        header_of(pointer)
    assert caught.value.hint == "git lfs pull"


def test_a_file_too_short_for_a_header_is_not_read() -> None:
    def never_read(path: str, start: int, stop: int) -> bytes:
        raise AssertionError("a hub may answer with an error where there is nothing to read")

    with pytest.raises(BadSource, match="of a file of 0"):
        read_header(SINGLE, 0, never_read)


@pytest.mark.parametrize("length", [2**63, 10**8 + 1, 10**8, 2**32])
def test_a_header_that_claims_an_absurd_size_costs_nothing(length: int) -> None:
    asked: list[int] = []

    def read(path: str, start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return length.to_bytes(8, "little")[start:stop]

    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(BadSource):
        read_header("model.safetensors", 10**8, read)
    assert time.perf_counter() - begun < 0.5
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert asked == [8]


def test_tensors_that_claim_an_absurd_size_cost_nothing() -> None:
    many = {f"t{i}": {"dtype": "F32", "shape": [2**31, 2**30], "data_offsets": [0, 2**63 - 1]} for i in range(100)}
    tracemalloc.start()
    with pytest.raises(BadSource):
        header_of(packed(many))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
PLAUSIBLE = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=9) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64) | st.integers(), min_size=1, max_size=3) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), PLAUSIBLE | JSON, max_size=5) | JSON


@given(header=HEADERS, size=st.integers(0, 100))
@settings(max_examples=300, deadline=None)
def test_no_header_ends_in_another_error(header: Any, size: int) -> None:
    allowed(lambda: header_of(packed(header, size)))


@given(at=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4), cut=st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_no_flipped_byte_ends_in_another_error(at: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(packed({"a": A, "b": B}))
    for place, value in at:
        content[place % len(content)] = value
    allowed(lambda: header_of(bytes(content[: len(content) - cut // 8])))


@given(st.binary(max_size=64))
def test_no_garbage_ends_in_another_error(content: bytes) -> None:
    allowed(lambda: header_of(content))


def allowed(work: Callable[[], Any]) -> None:
    try:
        work()
    except HubqError as error:
        assert error.message and error.hint
        str(error).encode("utf-8", "surrogatepass")


# --- the index and the shards ---


def index(weight_map: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def tensor(name: str, path: str) -> StoredTensor:
    return StoredTensor(name, "F32", (1,), path, 8, 12)


def never(path: str) -> bytes:
    raise AssertionError(f"{path} should not be read")


def test_the_shards_are_those_of_the_index_or_the_single_file() -> None:
    content = index({"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"})
    have = [INDEX, "m-1.safetensors", "m-2.safetensors", "other.safetensors", SINGLE]
    assert shards(have, lambda path: content) == ("m-1.safetensors", "m-2.safetensors")
    assert shards([SINGLE, "pytorch_model.bin"], never) == (SINGLE,)


def test_a_shard_that_the_index_names_and_nobody_has() -> None:
    content = index({"a": "m-1.safetensors", "b": "m-2.safetensors"})
    with pytest.raises(BadSource, match=r"names shards that the repository does not hold: m-2\.safetensors$") as caught:
        shards([INDEX, "m-1.safetensors"], lambda path: content)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_not_loaded(name: str) -> None:
    with pytest.raises(Unsupported, match=f"pickles \\({name}\\).*can run code") as caught:
        shards([name, "config.json"], never)
    assert "https://" in caught.value.hint


@pytest.mark.parametrize("files", [[], ["config.json"], ["sub/model.safetensors", "sub/pytorch_model.bin"], ["model.gguf"]])
def test_no_weights(files: list[str]) -> None:
    with pytest.raises(
        BadSource, match=r"no weights: neither model\.safetensors nor model\.safetensors\.index\.json"
    ) as caught:
        shards(files, never)
    assert caught.value.hint


BAD_INDEXES = [
    b"",
    b"not JSON",
    b"\xff\xfe",
    b"[" * 5000,
    b"[]",
    b"{}",
    b"null",
    b'{"weight_map": []}',
    b'{"weight_map": {}}',
    b'{"weight_map": {"a": 1}}',
    b'{"weight_map": {"a": null}}',
    b'{"weight_map": {"a": ["m.safetensors"]}}',
    b'{"weight_map": {"a": "pytorch_model.bin"}}',
    b'{"weight_map": {"a": "../../m.safetensors"}}',
    b'{"weight_map": {"a": "/etc/m.safetensors"}}',
]


@pytest.mark.parametrize("content", BAD_INDEXES, ids=lambda content: repr(content[:40]))
def test_an_index_that_is_none(content: bytes) -> None:
    for work in (lambda: shards([INDEX], lambda path: content), lambda: merge([], content)):
        with pytest.raises(BadSource, match=r"model\.safetensors\.index\.json is not an index of safetensors files") as caught:
            work()
        assert caught.value.hint


def test_a_tensor_in_two_shards() -> None:
    headers = [{"a": tensor("a", "m-1.safetensors")}, {"a": tensor("a", "m-2.safetensors")}]
    with pytest.raises(BadSource, match=r"the tensor 'a' is in m-1\.safetensors and in m-2\.safetensors") as caught:
        merge(headers, None)
    assert caught.value.hint


@pytest.mark.parametrize("weight_map", [{"a": "m-1.safetensors", "b": "m-1.safetensors"}, {"a": "m-2.safetensors"}])
def test_an_index_that_promises_what_the_shards_lack(weight_map: dict[str, str]) -> None:
    with pytest.raises(BadSource, match=f"promises tensors that the shards do not hold: {max(weight_map)}") as caught:
        merge([{"a": tensor("a", "m-1.safetensors")}], index(weight_map))
    assert caught.value.hint


def test_an_index_that_does_not_name_what_the_shards_hold() -> None:
    held = {"a": tensor("a", "m-1.safetensors"), "b": tensor("b", "m-1.safetensors")}
    with pytest.raises(BadSource, match="hold tensors that the index does not name: b") as caught:
        merge([held], index({"a": "m-1.safetensors"}))
    assert caught.value.hint


@given(content=JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=4), JSON, max_size=4)}))
@settings(max_examples=200, deadline=None)
def test_no_index_ends_in_another_error(content: Any) -> None:
    data = json.dumps(content).encode()
    allowed(lambda: shards([INDEX, "m.safetensors"], lambda path: data))
    allowed(lambda: merge([{"a": tensor("a", "m.safetensors")}], data))


def test_few_names_the_first_and_counts_the_rest() -> None:
    assert few(["a", "b", "c", "d"]) == "a, b, c, d"
    assert few(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"
    assert few(["\x1b[2J", "\ud800", "w\u202e"]) == r"'\x1b[2J', '\ud800', 'w\u202e'"


# --- values ---


def patterns(dtype: str) -> np.ndarray:
    """Every kind of 16-bit pattern: zeros, denormals, normal numbers, infinities and NaN; of 32 bits, those and random ones."""
    if dtype != "float32":
        return np.arange(1 << 16, dtype=np.uint16).reshape(512, 128)
    special = [0, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001]
    return np.concatenate(
        [np.array(special, np.uint32), np.random.default_rng(0).integers(0, 2**32, 1014, dtype=np.uint32)]
    ).reshape(32, 32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_are_those_of_torch(dtype: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    bits = patterns(dtype)
    signed = torch.from_numpy(bits.view(np.int32 if dtype == "float32" else np.int16).copy())
    save_file({"w": signed.view(getattr(torch, dtype))}, tmp_path / SINGLE)
    expected = load_file(tmp_path / SINGLE)["w"].to(torch.float32).numpy()
    with open_checkpoint(tmp_path, [SINGLE]) as checkpoint:
        found = checkpoint.read("w")
        rows = np.array([7, 3, 3, 31])
        parts = [checkpoint.read("w", slice(5, 9)), checkpoint.read("w", rows), checkpoint.read("w", slice(32, None))]
    assert found.dtype == np.float32 and found.shape == bits.shape
    number = ~np.isnan(expected)
    assert np.isinf(expected).any() and (~number).any()
    assert np.array_equal(found.view(np.uint32)[number], expected.view(np.uint32)[number])
    assert np.isnan(found[~number]).all()
    for part, selection in zip(parts, (slice(5, 9), rows, slice(32, None)), strict=True):
        assert np.array_equal(part.view(np.uint32), found[selection].view(np.uint32))


def test_odd_shapes_and_places_are_read(tmp_path: Path) -> None:
    """No row, no dimension, and floats that begin at no multiple of four."""
    header = {
        "half": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "float": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [10, 14]},
        "scalar16": {"dtype": "BF16", "shape": [], "data_offsets": [14, 16]},
        "none": {"dtype": "BF16", "shape": [0, 4], "data_offsets": [16, 16]},
    }
    data = np.array([1.5], "<f2").tobytes() + np.array([2.5, -3.5, 4.5], "<f4").tobytes() + b"\x80\x3f"
    (tmp_path / SINGLE).write_bytes(file_of(json.dumps(header).encode() + b" ", data))
    with open_checkpoint(tmp_path, [SINGLE]) as checkpoint:
        found = {name: checkpoint.read(name) for name in header}
    expected = {"half": [1.5], "float": [2.5, -3.5], "scalar": 4.5, "scalar16": 1.0}
    for name, value in expected.items():
        assert np.array_equal(found[name], np.array(value, np.float32)), name
    assert found["none"].shape == (0, 4)


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    with open_checkpoint(folder, [SINGLE]) as checkpoint:
        kept = checkpoint.read("model.norm.weight")
    (folder / SINGLE).unlink()
    assert np.array_equal(kept, np.ones(256, np.float32))


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    with checkpoint:
        return {name: checkpoint.read(name).tobytes() for name in sorted(checkpoint.tensors)}


def test_shards_hold_what_a_single_file_holds(tmp_path: Path) -> None:
    single = tiny.llama(tmp_path / "single")
    sharded = tiny.llama(tmp_path / "sharded", shards=3)
    names = [path.name for path in sharded.iterdir()]
    assert SINGLE not in names
    assert contents(open_checkpoint(single, [SINGLE])) == contents(open_checkpoint(sharded, names))


def test_open_checkpoint_holds_the_index_against_the_shards(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "sharded", shards=3)
    document = json.loads((folder / INDEX).read_text())
    del document["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(document))
    with pytest.raises(BadSource, match=r"the index does not name: model\.norm\.weight"):
        open_checkpoint(folder, [path.name for path in folder.iterdir()])


# --- 8-bit floats ---


def eight_bit(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a matrix of all 8-bit floats with scales for blocks, and one in BF16 beside it; returns what was written."""
    import torch
    from safetensors.torch import save_file

    finite = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
    weight = finite.repeat(300)[: 200 * 300].reshape(200, 300).view(torch.float8_e4m3fn)
    scale = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale, "b.weight": torch.ones(2, 3, dtype=torch.bfloat16)} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE)
    return tensors


def test_8_bit_floats_are_multiplied_with_the_scales_of_their_blocks(tmp_path: Path) -> None:
    tensors = eight_bit(tmp_path)
    scales = tensors["a.weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :300]
    wanted = (tensors["a.weight"].float() * scales).numpy()
    with open_checkpoint(tmp_path, [SINGLE]) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a.weight", "b.weight"]
        found = checkpoint.read("a.weight")
        assert found.dtype == np.float32 and np.array_equal(found, wanted)
        assert np.array_equal(checkpoint.read("a.weight", slice(120, 140)), wanted[120:140])
        order = np.array([199, 0, 128, 127])
        assert np.array_equal(checkpoint.read("a.weight", order, slice(100, 260)), wanted[order, 100:260])


@pytest.mark.parametrize("shape", [None, (2, 2), (200, 3), (1,)])
def test_8_bit_floats_without_scales_for_their_blocks_are_refused(shape: tuple[int, ...] | None, tmp_path: Path) -> None:
    import torch

    eight_bit(tmp_path, **{"a.weight_scale_inv": None if shape is None else torch.ones(shape)})
    with pytest.raises(Unsupported, match=r"'a\.weight' is stored as F8_E4M3 without scales for blocks of 128 x 128") as caught:
        open_checkpoint(tmp_path, [SINGLE])
    assert "original" in caught.value.hint


def test_scales_of_nothing_stay_in_the_list(tmp_path: Path) -> None:
    import torch

    eight_bit(tmp_path, **{"b.weight_scale_inv": torch.ones(1, 1)})
    with open_checkpoint(tmp_path, [SINGLE]) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a.weight", "b.weight", "b.weight_scale_inv"]
