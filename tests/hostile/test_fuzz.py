"""Readers of headers on mutations of sound ones: parts repeated, dropped, given other numbers. Each run tries the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubq.checkpoint import read_header as read_safetensors
from hubq.errors import BadSource, HubqError
from hubq.formats.gguf.read import read_header as read_gguf

sys.path.insert(0, str(Path(__file__).parent))
import make

ALWAYS_THE_SAME = settings(
    derandomize=True, max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 24, 31, 32, 33, 64, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
NAMES = st.sampled_from([b"a", b"b", b"", b"general.alignment", b"n" * 63, b"n" * 64, b"\xff", b"../x"])
KEYS = st.builds(
    make.key,
    NAMES,
    st.integers(0, 13),
    st.one_of(
        st.binary(max_size=12),
        st.builds(lambda length, data: length.to_bytes(8, "little") + data, NUMBERS, st.binary(max_size=40)),
        st.builds(
            lambda kind, count, data: kind.to_bytes(4, "little") + count.to_bytes(8, "little") + data,
            st.integers(0, 13),
            NUMBERS,
            st.binary(max_size=40),
        ),
    ),
)
ENTRIES = st.builds(
    make.entry, NAMES, st.lists(NUMBERS, max_size=5).map(tuple), st.integers(0, 42), NUMBERS, st.one_of(st.none(), NUMBERS)
)


def ggml_reads(path: Path) -> bool:
    try:
        upstream.tensors(path)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", make.HANDMADE)
def test_hubq_refuses_what_ggml_refuses_of_its_own_cases(name: str, tmp_path: Path) -> None:
    content, wanted = make.HANDMADE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    # without the data, which it would have to allocate for, ggml does not see that there is not enough
    assert ggml_reads(path) == (wanted == make.ACCEPTED) or name in ("DATA_NOT_ENOUGH_DATA", "DATA_MEM_SIZE_OVERFLOW")
    if wanted == make.ACCEPTED:
        read_gguf(path)
    else:
        with pytest.raises(BadSource):
            read_gguf(path)


@given(
    st.lists(KEYS, max_size=3),
    st.lists(ENTRIES, max_size=3),
    st.integers(0, 200),
    st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS)),
)
@ALWAYS_THE_SAME
def test_ggufs_are_read_or_refused(tmp_path: Path, keys: list[bytes], entries: list[bytes], data: int, counts: Any) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(make.gguf(keys, entries, data, counts))
    try:
        header = read_gguf(path)
    except HubqError as error:
        assert error.message and error.hint
    else:
        assert all(tensor.offset + tensor.size <= header.size for tensor in header.tensors)


VALUES: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.sampled_from(["F32", "BF16", "", "\x1b"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "U8", "F4"]), VALUES),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), VALUES),
        "data_offsets": st.one_of(st.tuples(NUMBERS, NUMBERS).map(list), VALUES),
        "more": VALUES,
    },
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "../x"]), st.one_of(ENTRY, VALUES), max_size=3),
    st.integers(0, 100),
    st.one_of(st.none(), NUMBERS),
    st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3)), max_size=2),
)
@ALWAYS_THE_SAME
def test_safetensors_are_read_or_refused(header: Any, size: int, length: int | None, edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(make.packed(json.dumps({**header, "c": make.A}).encode(), bytes(size), length))
    for at, data in edits:
        content[at : at + len(data)] = data
    try:
        tensors = read_safetensors("x", len(content), lambda path, start, stop: bytes(content[start:stop]))
    except HubqError as error:
        assert error.message and error.hint
    else:
        assert all(0 <= tensor.start <= tensor.stop <= len(content) for tensor in tensors.values())
