"""Splitting by size: what llama-gguf-split does; that llama.cpp loads such files is seen in test_engine.py."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubq.errors import Usage
from hubq.formats.gguf.split import MOST_PARTS, PartName, pack_keys, parse_part, parse_size, part_name, parts, split_keys


@pytest.mark.parametrize(("text", "size"), [("1M", 10**6), ("300M", 3 * 10**8), ("2G", 2 * 10**9), ("50G", 5 * 10**10)])
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "0M", "-1G", "1.5G", "2g", "2GB", "2 G", "2T", "2048", "1e3M", "٢G", "2G\n", "9999999999G"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="--split-max-size") as caught:
        parse_size(text)
    assert "300M" in caught.value.hint


# sizes, limit -> how many tensors llama-gguf-split puts into each part
CASES = [
    ([32, 32, 32], 64, [2, 1]),
    ([32, 32, 32], 95, [2, 1]),
    ([32, 32, 32], 96, [3]),
    ([32, 320, 32, 32], 64, [1, 1, 2]),  # a tensor larger than the limit is alone in its part
    ([32, 320, 320], 64, [1, 1, 1]),
    ([64], 64, [1]),
    ([], 64, [0]),
]


@pytest.mark.parametrize(("sizes", "limit", "counts"), CASES)
def test_tensors_fill_one_part_after_another(sizes: list[int], limit: int, counts: list[int]) -> None:
    assert [len(part) for part in parts(sizes, limit)] == counts


@given(st.lists(st.integers(1, 100)), st.integers(100, 500))
def test_parts_are_all_tensors_in_order_and_no_larger_than_allowed(sizes: list[int], limit: int) -> None:
    found = parts(sizes, limit)
    assert [i for part in found for i in part] == list(range(len(sizes)))
    held = [sum(sizes[i] for i in part) for part in found]
    assert max(held) <= limit
    assert all(held[i] + sizes[found[i + 1][0]] > limit for i in range(len(found) - 1))


def test_what_llama_gguf_split_refuses_is_refused() -> None:
    with pytest.raises(Usage, match="the first tensor alone has 2,000,032 bytes") as caught:
        parts([2_000_032, 32], 10**6)
    assert caught.value.hint == "--split-max-size 3M" and parts([2_000_032, 32], parse_size("3M"))
    with pytest.raises(Usage, match=r"65,536 parts"):
        parts([32] * (MOST_PARTS + 1), 32)


def test_names_are_those_of_llama_cpp() -> None:
    assert part_name("Model-Q8_0.gguf", 0, 3) == "Model-Q8_0-00001-of-00003.gguf"
    assert part_name("M.gguf", 65534, 65535) == "M-65535-of-65535.gguf"
    for number in range(3):
        assert parse_part(part_name("Model-Q8_0.gguf", number, 3)) == PartName("Model-Q8_0.gguf", number, 3)


@pytest.mark.parametrize(
    "name",
    [
        "M.gguf",
        "M-1-of-3.gguf",
        "M-00000-of-00003.gguf",
        "M-00004-of-00003.gguf",
        "-00001-of-00003.gguf",
        "M-00001-of-00003.bin",
    ],
)
def test_other_names_are_no_parts(name: str) -> None:
    assert parse_part(name) is None


def test_keys_are_those_that_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint16("split.no", 1)
    writer.add_int32("split.tensors.count", 272)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert (tmp_path / "x.gguf").read_bytes().endswith(pack_keys(split_keys(1, 3, 272)))
