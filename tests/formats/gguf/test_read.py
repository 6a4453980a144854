"""The reader of GGUF headers on files of the gguf package, and on all kinds of damage; ggml's own reader is the oracle."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import upstream
from hypothesis import given, settings
from hypothesis import strategies as st

from hubq.errors import BadSource
from hubq.formats.gguf import read
from hubq.formats.gguf.read import Array, Header, read_header, read_set
from hubq.formats.gguf.split import pack_keys, part_name, split_keys

WEIGHTS = {
    "token_embd.weight": np.arange(64 * 32, dtype=np.float32).reshape(64, 32),
    "blk.0.ffn_up_exps.weight": np.arange(2 * 3 * 32, dtype=np.float16).reshape(2, 3, 32),
    "output_norm.weight": np.ones(5, np.float32),
    "steps": np.arange(7, dtype=np.int32),
}
SCALARS: dict[str, tuple[str, Any]] = {
    "add_uint8": ("a.u8", 200),
    "add_int8": ("a.i8", -3),
    "add_uint16": ("a.u16", 60_000),
    "add_int16": ("a.i16", -300),
    "add_uint32": ("a.u32", 4_000_000_000),
    "add_int32": ("a.i32", -70_000),
    "add_uint64": ("a.u64", 2**63),
    "add_int64": ("a.i64", -(2**62)),
    "add_float32": ("a.f32", 0.5),
    "add_float64": ("a.f64", 0.1),
    "add_bool": ("a.bool", True),
    "add_string": ("a.text", "Ünïcode, and\nlines"),
}
ARRAYS = {"a.names": ["first", "", "dritte™"], "a.numbers": [1, -2, 3], "a.reals": [0.5, 2.0], "a.flags": [True, False]}


def written(path: Path, quantized: bool = True) -> Path:
    """A small file with every kind of value."""
    writer = gguf.GGUFWriter(path, "llama")
    for method, (key, value) in SCALARS.items():
        getattr(writer, method)(key, value)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    for name, values in WEIGHTS.items():
        writer.add_tensor(name, values)
    if quantized:
        packed = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
        writer.add_tensor("packed.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "Small-F16.gguf")


def test_all_kinds_of_values_are_read(path: Path) -> None:
    header = read_header(path)
    assert (header.version, header.alignment, header.size) == (3, 32, path.stat().st_size)
    assert header.metadata["general.architecture"] == "llama"
    for key, value in SCALARS.values():
        assert header.metadata[key] == value and type(header.metadata[key]) is type(value)
    for key, values in ARRAYS.items():
        assert header.metadata[key].values() == values and header.metadata[key].count == len(values)
    assert header.metadata["a.names"].values(most=2) == ["first", ""] and header.metadata["a.numbers"].values(1) == [1]
    assert [header.metadata[key].kind for key in ARRAYS] == ["str", "i32", "f32", "bool"]


def test_tensors_lie_where_they_should(path: Path) -> None:
    header, data = read_header(path), path.read_bytes()
    assert [tensor.name for tensor in header.tensors] == [*WEIGHTS, "packed.weight"]
    for tensor, values in zip(header.tensors, WEIGHTS.values(), strict=False):
        assert tensor.shape == values.shape and tensor.offset % 32 == 0
        assert data[tensor.offset : tensor.offset + tensor.size] == values.tobytes()
    assert [tensor.type for tensor in header.tensors] == ["F32", "F16", "F32", "I32", "Q4_0"]
    assert header.tensors[-1].shape == (4, 64) and header.tensors[-1].size == 4 * 2 * 18
    found = upstream.tensors(path)
    assert found.keys() == {tensor.name for tensor in header.tensors}
    assert all(data[t.offset : t.offset + t.size] == found[t.name][1].tobytes() for t in header.tensors)


def test_storage_types_are_those_of_ggml() -> None:
    for number, (name, block, size) in read.STORAGE.items():
        assert upstream.block(number) == (block, size) and upstream.type_name(number).upper() == name


def raw(
    keys: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] | None = None, data: int = 64, start: bytes = b""
) -> bytes:
    """A file from its parts: no keys and no tensors, or one of each, unless `counts` says otherwise."""
    number = counts or (int(bool(tensors)), int(bool(keys)))
    header = (start or b"GGUF" + struct.pack("<I", 3)) + struct.pack("<QQ", *number) + keys + tensors
    return header + bytes(-len(header) % 32) + bytes(data if tensors else 0)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (4, 4), number: int = 0, offset: int = 0, length: int | None = None
) -> bytes:
    start = struct.pack("<Q", len(name) if length is None else length) + name
    return start + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", number, offset)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


ALIGNMENT = b"general.alignment"
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "text": (b"# A model card, longer than twenty-four bytes", "not a GGUF file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "version 1": (raw(start=b"GGUF" + struct.pack("<I", 1)), "GGUF version 1"),
    "version 4": (raw(start=b"GGUF" + struct.pack("<I", 4)), "GGUF version 4"),
    "big-endian": (raw(start=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    "many tensors": (raw(counts=(2**40, 0)), "1,099,511,627,776 tensors"),
    "many keys": (raw(counts=(0, 2**63)), "keys"),
    "missing keys": (raw(counts=(0, 1))[:24], "in metadata entry 1 of 1: it claims 8 bytes, and"),
    "long key": (raw(key(b"k", 4, bytes(4)).replace(u64(1), u64(2**60), 1)), "in metadata entry 1 of 1: it claims"),
    "empty key": (raw(key(b"", 4, bytes(4))), "its key is empty"),
    "key twice": (raw(key(b"k", 4, bytes(4)) * 2, counts=(0, 2)), "the key 'k' is given twice"),
    "bad key": (raw(key(b"\xff", 4, bytes(4))), "not UTF-8"),
    "value type": (raw(key(b"k", 13, bytes(4))), "in the metadata entry k: there is no type of values with the number 13"),
    "long string": (raw(key(b"k", 8, u64(2**62))), "in the metadata entry k: it claims 4,611,686,018,427,387,904 bytes"),
    "long array": (raw(key(b"k", 9, array(4, 2**61))), "in the metadata entry k: it claims"),
    "overflowing array": (raw(key(b"k", 9, array(12, 2**61))), "in the metadata entry k: it claims"),
    "many strings": (raw(key(b"k", 9, array(8, 2**61))), "its 2,305,843,009,213,693,952 strings do not fit"),
    "string in array": (raw(key(b"k", 9, array(8, 1, u64(2**63)))), "in the metadata entry k: it claims"),
    "nested arrays": (raw(key(b"k", 9, array(9, 1, array(4, 1, bytes(4))))), "array of arrays"),
    "hostile key": (raw(key(b"\x1b[2J", 13, bytes(4))), r"entry '\x1b[2J'"),
    "alignment 0": (raw(key(ALIGNMENT, 4, bytes(4))), "general.alignment: it is no power of two"),
    "alignment 48": (raw(key(ALIGNMENT, 4, struct.pack("<I", 48))), "no power of two"),
    "alignment text": (raw(key(ALIGNMENT, 8, u64(2) + b"32")), "no power of two"),
    "alignment true": (raw(key(ALIGNMENT, 7, b"\1")), "no power of two"),
    "long name": (raw(tensors=tensor(b"n" * 64)), "64 bytes, and ggml allows 63"),
    "dimensions": (raw(tensors=tensor(shape=(1, 1, 1, 1, 1))), "5 dimensions"),
    "huge shape": (raw(tensors=tensor(shape=(2**32, 2**31))), "more than 64 bits can count"),
    "hidden overflow": (raw(tensors=tensor(shape=(2**62, 4, 0))), "more than 64 bits can count"),
    "storage type": (raw(tensors=tensor(number=31)), "no storage type with the number 31"),
    "part of a block": (raw(tensors=tensor(shape=(33, 1), number=2)), "Q4_0 packs 32 weights at a time, and its rows have 33"),
    "unaligned": (raw(tensors=tensor(offset=1)), "'t' does not begin where the one before it ends"),
    "overlap": (raw(tensors=tensor(b"s") + tensor(), counts=(2, 0), data=128), "'t' does not begin where"),
    "hole": (raw(tensors=tensor(b"s") + tensor(offset=96), counts=(2, 0), data=256), "'t' does not begin where"),
    "name twice": (raw(tensors=tensor() + tensor(offset=64), counts=(2, 0), data=128), "the tensor 't' twice"),
    "cut": (raw(tensors=tensor(), data=63), "is truncated: its tensors need 160 bytes, the file has 159"),
    "cut table": (raw(tensors=tensor()[:-1], counts=(1, 0), data=0)[:-7], "the description of the tensor 't': it claims 8"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    data, message = DAMAGE[name]
    (tmp_path / "damaged.gguf").write_bytes(data)
    with pytest.raises(BadSource) as caught:
        read_header(tmp_path / "damaged.gguf")
    assert caught.value.message.startswith("damaged.gguf ") and message in caught.value.message
    assert caught.value.hint and caught.value.message.isprintable()


def test_the_parts_that_damage_is_made_of_are_sound(tmp_path: Path) -> None:
    def read_back(data: bytes) -> Header:
        (tmp_path / "sound.gguf").write_bytes(data)
        return read_header(tmp_path / "sound.gguf")

    assert read_back(raw()).tensors == ()
    assert read_back(raw(start=b"GGUF" + struct.pack("<I", 2))).version == 2
    assert read_back(raw(key(b"k", 9, array(8, 1, u64(1) + b"\xff")))).metadata["k"].values() == ["�"]
    assert read_back(raw(key(ALIGNMENT, 4, struct.pack("<I", 64)), tensor())).tensors[0].offset == 128
    header = read_back(raw(tensors=tensor(b"s", (3,)) + tensor(b"n" * 63, (), offset=32), counts=(2, 0), data=36))
    assert [(tensor.shape, tensor.size) for tensor in header.tensors] == [((3,), 12), ((), 4)]


def accepted(read_it: Callable[[Path], Any], path: Path) -> bool:
    try:
        read_it(path)
    except (BadSource, RuntimeError):
        return False
    return True


NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 8, 9, 31, 32, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]
)


@settings(max_examples=400, deadline=2000)
@given(edits=st.lists(st.tuples(st.integers(0), st.integers(0, 7), NUMBERS), min_size=1, max_size=3), cut=st.integers(0))
def test_mutations_raise_bad_source_or_nothing(path: Path, edits: list[Any], cut: int) -> None:
    """Numbers are overwritten and the file is cut; what is accepted, ggml accepts as well."""
    damaged = bytearray(path.read_bytes())
    end = read_header(path).data
    for place, kind, number in edits:
        if kind:
            width = (1, 2, 4, 8)[kind % 4]
            at = place % (end - 8)
            damaged[at : at + width] = (number % 256**width).to_bytes(width, "little")
        else:
            damaged[place % end] ^= 1 << number % 8
    if cut % 4 == 0:
        del damaged[cut // 4 % len(damaged) :]
    target = path.with_name("mutated.gguf")
    target.write_bytes(damaged)
    if accepted(read_header, target):
        assert accepted(upstream.tensors, target)
        for tensor in read_header(target).tensors:
            assert tensor.offset + tensor.size <= len(damaged)
        [value.values() for value in read_header(target).metadata.values() if isinstance(value, Array)]


def test_a_large_file_of_lies_costs_little(tmp_path: Path) -> None:
    """A file of 10 GB with holes for data that claims strings without end: read in bounded time and memory."""
    path = tmp_path / "lies.gguf"
    with open(path, "wb") as file:
        file.write(raw(key(b"k", 9, array(8, 2**40))))
        file.truncate(10 * 1000**3)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(BadSource, match="strings do not fit"):
        read_header(path)
    assert time.perf_counter() - start < 5 and tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def parts(folder: Path, counts: tuple[int, int] = (1, 1), promised: int = 2, numbers: tuple[int, int] = (0, 1)) -> list[Path]:
    """A model in two parts of one tensor each."""
    paths = []
    for i, number in enumerate(numbers):
        keys = pack_keys(split_keys(number, 2, promised))
        start = raw(keys, tensor(b"t%d" % i) * counts[i], (counts[i], 3))
        paths.append(folder / part_name("M.gguf", i, 2))
        paths[-1].write_bytes(start)
    return paths


def test_a_set_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    for path in paths:
        assert [[tensor.name for tensor in part.tensors] for part in read_set(path)] == [["t0"], ["t1"]]
    (tmp_path / "single-00002-of-00002.gguf").write_bytes(raw(tensors=tensor()))
    assert len(read_set(tmp_path / "single-00002-of-00002.gguf")) == 1  # a name alone makes no set, as in llama.cpp


def test_a_set_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    first, second = parts(tmp_path)
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(BadSource, match=r"one of 2 parts, and its folder lacks M-00002-of-00002.gguf"):
        read_set(first)
    with pytest.raises(BadSource, match="not in its name"):
        read_set(tmp_path / "elsewhere.gguf")
    parts(tmp_path, numbers=(0, 0))
    with pytest.raises(BadSource, match=r"M-00002-of-00002.gguf says .* another part"):
        read_set(first)
    for change in ({"promised": 3}, {"counts": (1, 0)}):
        parts(tmp_path, **change)
        with pytest.raises(BadSource, match="not of one model"):
            read_set(first)
