"""Importance matrices in both forms, against files that llama-imatrix wrote (llama.cpp 0.5.0 of llama-cpp-python 0.3.36)."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hubq.calibrate import Activation
from hubq.errors import BadSource
from hubq.formats.gguf import imatrix
from hubq.formats.gguf.arch import Tensor
from hubq.formats.gguf.imatrix import Entry, Imatrix


def floats(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


QUERY, DOWN, EMBEDDING = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight", "token_embd.weight"
ENTRIES = {
    QUERY: Entry(floats([1, 2, 3, 4.5]), floats(1024)),
    DOWN: Entry(floats([1, 0], [0, 0], [0.1, 7]), floats(1000, 0, 24)),
    "blk.2.ffn_up.weight": Entry(floats([5]), floats(1024)),
    "blk.10.ffn_up.weight": Entry(floats([1e-8, 3e8, 1]), floats(1024)),
}
EXAMPLE = Imatrix("example.gguf", "", ("topics.jsonl", "more.txt"), 2, 512, ENTRIES)

# what llama-imatrix writes of it: llama-imatrix --in-file example.gguf -o ..., and the same with --output-format dat
THEIR_SHA256 = "3a49759a397ef80409a33457269d00ec1f29d682c4cced140a28c8c68aba0d43"
THEIR_DAT = base64.b64decode(
    "BAAAABMAAABibGsuMC5hdHRuX3Eud2VpZ2h0AgAAAAQAAAAAAAA7AACAOwAAwDsAABA8GgAAAGJsay4wLmZmbl9kb3duX2V4cHMud2VpZ2h0Ag"
    "AAAAYAAABvEgM7AAAAAAAAAEAAAABAiYgIPFVVFT8UAAAAYmxrLjEwLmZmbl91cC53ZWlnaHQCAAAAAwAAAHfMqy0YDQ9JAAAAOxMAAABibGsu"
    "Mi5mZm5fdXAud2VpZ2h0AgAAAAEAAAAAACA8AgAAAAgAAABtb3JlLnR4dA=="
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The example in the form of GGUF."""
    imatrix.write(EXAMPLE, tmp_path / "example.gguf")
    return tmp_path / "example.gguf"


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """The example in the old form."""
    (tmp_path / "example.dat").write_bytes(THEIR_DAT)
    return tmp_path / "example.dat"


def test_files_are_those_of_llama_imatrix(path: Path) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == THEIR_SHA256


def test_what_is_written_is_read(path: Path) -> None:
    found = imatrix.read(path)
    assert (found.file, found.sha256) == ("example.gguf", THEIR_SHA256)
    assert (found.datasets, found.chunks, found.chunk_size) == (EXAMPLE.datasets, 2, 512)
    assert list(found.entries) == sorted(ENTRIES)
    for name, entry in ENTRIES.items():
        for theirs, ours in ((found.entries[name].sums, entry.sums), (found.entries[name].counts, entry.counts)):
            assert theirs.dtype == np.float32
            np.testing.assert_array_equal(theirs, ours)


def test_the_gguf_package_reads_it(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["topics.jsonl", "more.txt"]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors[f"{DOWN}.in_sum2"], ENTRIES[DOWN].sums)
    np.testing.assert_array_equal(tensors[f"{DOWN}.counts"], ENTRIES[DOWN].counts[:, None])


def test_importance_is_the_mean_and_one_where_no_token_came() -> None:
    np.testing.assert_array_equal(EXAMPLE.importance(QUERY, (8, 4)), floats([1, 2, 3, 4.5]) / np.float32(1024))
    np.testing.assert_array_equal(
        EXAMPLE.importance(DOWN, (3, 5, 2)), np.stack([floats(1, 0) / 1000, floats(1, 1), floats(0.1, 7) / np.float32(24)])
    )
    assert EXAMPLE.importance(DOWN, (3, 5, 2)).dtype == np.float32
    assert EXAMPLE.importance("blk.1.attn_q.weight", (8, 4)) is None


def test_the_old_form_has_the_same_means(legacy: Path) -> None:
    old = imatrix.read(legacy)
    assert (old.file, old.datasets, old.chunks, old.chunk_size) == ("example.dat", ("more.txt",), 2, 0)
    shapes = {QUERY: (8, 4), DOWN: (3, 5, 2), "blk.2.ffn_up.weight": (9, 1), "blk.10.ffn_up.weight": (2, 3)}
    assert old.entries.keys() == shapes.keys()
    for name, shape in shapes.items():
        np.testing.assert_allclose(old.importance(name, shape), EXAMPLE.importance(name, shape), rtol=2e-7)


def test_the_oldest_form_ends_with_its_entries(legacy: Path) -> None:
    legacy.write_bytes(THEIR_DAT[:-16])
    assert imatrix.read(legacy).entries.keys() == ENTRIES.keys()
    assert imatrix.key_values(imatrix.read(legacy)).keys() == {"quantize.imatrix.file", "quantize.imatrix.entries_count"}


def test_one_count_may_stand_for_all_matrices_of_a_tensor() -> None:
    flat = Imatrix("f", "", (), 0, 0, {DOWN: Entry(floats([1, 2, 3, 4]), floats(2))})
    np.testing.assert_array_equal(flat.importance(DOWN, (2, 7, 2)), floats([0.5, 1], [1.5, 2]))


def test_a_matrix_of_another_model_is_refused_but_for_embeddings() -> None:
    other = Imatrix("other.gguf", "", (), 0, 0, {QUERY: ENTRIES[QUERY], EMBEDDING: ENTRIES[QUERY]})
    with pytest.raises(BadSource, match=f"other.gguf is not of this model: for '{QUERY}' it has 4 values instead of 8"):
        other.importance(QUERY, (4, 8))
    assert other.importance(EMBEDDING, (4, 8)) is None
    assert other.importance(EMBEDDING, (8, 4)) is not None


def test_key_values_are_those_of_llama_quantize() -> None:
    assert imatrix.key_values(EXAMPLE) == {
        "quantize.imatrix.file": "example.gguf",
        "quantize.imatrix.dataset": "topics.jsonl",
        "quantize.imatrix.entries_count": 4,
        "quantize.imatrix.chunks_count": 2,
    }


@pytest.mark.parametrize("stored", ["/home/someone/calibration.txt", "C:\\texts\\calibration.txt", "texts/calibration.txt"])
def test_paths_are_not_passed_on(tmp_path: Path, stored: str) -> None:
    imatrix.write(Imatrix("", "", (stored,), 1, 512, ENTRIES), tmp_path / "i.gguf")
    assert imatrix.read(tmp_path / "i.gguf").datasets == ("calibration.txt",)


def test_no_part_of_a_file_is_a_file(path: Path, legacy: Path, tmp_path: Path) -> None:
    for whole, sound in ((path.read_bytes(), ()), (THEIR_DAT, (len(THEIR_DAT) - 16,))):
        part = tmp_path / "part"
        for length in (length for length in range(len(whole)) if length not in sound):
            part.write_bytes(whole[:length])
            # the last tensor's padding may be missing
            if whole[:4] == b"GGUF" and length >= len(whole) - 28:
                imatrix.read(part)
                continue
            with pytest.raises(BadSource, match="part"):
                imatrix.read(part)


def test_damaged_files_are_read_or_refused(path: Path, legacy: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for whole in (path.read_bytes(), THEIR_DAT):
        refused = 0
        for _ in range(400):
            data = bytearray(whole)
            data[random.integers(len(data))] = random.integers(256)
            (tmp_path / "damaged").write_bytes(data)
            try:
                assert imatrix.read(tmp_path / "damaged").entries
            except BadSource as error:
                refused += 1
                assert error.message.startswith("damaged") and error.hint
        assert 20 < refused < 390


def entry(sums: np.ndarray, counts: np.ndarray) -> Imatrix:
    return Imatrix("", "", (), 0, 0, {QUERY: Entry(sums, counts)})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1])
def test_numbers_that_no_activation_has_are_refused(tmp_path: Path, wrong: float) -> None:
    for bad, what in ((entry(floats([wrong, 1]), floats(2)), "sums"), (entry(floats([1, 1]), floats(wrong)), "counts")):
        imatrix.write(bad, tmp_path / "bad.gguf")
        with pytest.raises(BadSource, match=rf"bad.gguf: the {what} of '{QUERY}' are not all finite and positive"):
            imatrix.read(tmp_path / "bad.gguf")


def test_counts_are_whole(tmp_path: Path) -> None:
    imatrix.write(entry(floats([6, 9]), floats(2.5)), tmp_path / "i.gguf")
    np.testing.assert_array_equal(imatrix.read(tmp_path / "i.gguf").importance(QUERY, (1, 2)), floats([2, 3]))


def write(path: Path, kind: str, keys: bool, **tensors: np.ndarray) -> None:
    writer = gguf.GGUFWriter(path, "x")
    writer.add_type(kind)
    if keys:
        writer.add_array("imatrix.datasets", ["d"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, array in tensors.items():
        writer.add_tensor(f"a.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("tensors", "kind", "keys", "message"),
    [
        ({"in_sum2": floats(1, 2), "counts": floats(1)}, "model", True, "is a GGUF file of type 'model'"),
        ({"in_sum2": floats(1, 2), "counts": floats(1)}, "imatrix", False, "lacks metadata"),
        ({"in_sum2": floats(1, 2)}, "imatrix", True, "'a' do not come together"),
        ({"counts": floats(1)}, "imatrix", True, "'a' do not come together"),
        ({"in_sum2": floats(1, 2, 3), "counts": floats(1, 2)}, "imatrix", True, "3 sums and 2 counts"),
        ({"in_sum2": floats(1).astype(np.float16), "counts": floats(1)}, "imatrix", True, "'a.in_sum2' should hold F32"),
        ({"mean": floats(1)}, "imatrix", True, "no sums of activations"),
    ],
)
def test_other_ggufs_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], kind: str, keys: bool, message: str) -> None:
    write(tmp_path / "other.gguf", kind, keys, **tensors)
    with pytest.raises(BadSource, match=f"^other.gguf.*{re.escape(message)}"):
        imatrix.read(tmp_path / "other.gguf")


def test_unknown_tensors_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "new.gguf", "imatrix", True, in_sum2=floats(1, 2), counts=floats(1), in_sum=floats(1, 2))
    assert list(imatrix.read(tmp_path / "new.gguf").entries) == ["a"]


@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", b"just a text that somebody gave\n" * 9, bytes(64), b"\xff" * 64, b"\x01\0\0\0\x01\0\0\0a" + b"\xff" * 60],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "other.dat").write_bytes(data)
    with pytest.raises(BadSource, match=r"other\.dat"):
        imatrix.read(tmp_path / "other.dat")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"none\.gguf cannot be read: No such file"):
        imatrix.read(tmp_path / "none.gguf")


def test_claims_of_the_old_form_are_held_against_the_file(legacy: Path) -> None:
    data = bytearray(THEIR_DAT)
    data[31:35] = (2**29).to_bytes(4, "little")  # the values of the first entry
    legacy.write_bytes(data)
    with pytest.raises(BadSource, match="truncated, or none at all: 2,147,483,648 bytes should follow, and 173 do"):
        imatrix.read(legacy)


TENSORS = [
    Tensor("token_embd.weight", (9, 2), ("embed",)),
    Tensor("blk.0.attn_norm.weight", (2,), ("norm",)),
    Tensor("blk.0.ffn_up_exps.weight", (2, 3, 2), ("up0", "up1")),
    Tensor("blk.0.attn_q.weight", (2, 2), ("query",), rows=np.array([1, 0])),
    Tensor("blk.0.attn_q.bias", (2, 1), ("bias",)),
    Tensor("rope_freqs.weight", (1, 2), values=floats([1, 2])),
    Tensor("output.weight", (9, 2), ("head",)),
]


def test_activations_come_under_the_names_of_the_file(tmp_path: Path) -> None:
    assert imatrix.weights(TENSORS) == ["up0", "up1", "query"]
    activations = {
        "query": Activation(floats([1, 2]), np.array([512])),
        "up0": Activation(floats([3, 4]), np.array([511])),
        "up1": Activation(floats([5, 6]), np.array([1])),
    }
    made = imatrix.from_activations(activations, TENSORS, "/tmp/a.gguf", ["texts/b.txt"], 1, 512)
    assert (made.file, made.datasets, made.chunks, made.chunk_size) == ("a.gguf", ("b.txt",), 1, 512)
    assert list(made.entries) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    np.testing.assert_array_equal(made.entries["blk.0.ffn_up_exps.weight"].sums, floats([3, 4], [5, 6]))
    np.testing.assert_array_equal(made.entries["blk.0.ffn_up_exps.weight"].counts, floats(511, 1))
    imatrix.write(made, tmp_path / "a.gguf")
    assert imatrix.read(tmp_path / "a.gguf").sha256 == made.sha256
