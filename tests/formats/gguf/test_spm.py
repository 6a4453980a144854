"""SentencePiece's file, read without its library."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubq.formats.gguf.spm import BPE, Model, Piece, read_model


def message(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def test_what_is_not_said_has_its_default() -> None:
    assert read_model(b"") == Model(pieces=[], algorithm=1, verbatim=False, prefix=True)
    assert read_model(message(1, message(1, b"a"))).pieces == [Piece(b"a", 0.0, 1)]


def test_a_field_of_another_wire_type_is_another_field() -> None:
    other = bytes([2 << 3, 7]) + bytes([1 << 3, 1])
    assert read_model(message(1, message(1, b"a") + other) + bytes([2 << 3, 1])).pieces == [Piece(b"a", 0.0, 1)]


def test_what_is_said_counts_and_the_last_word_wins() -> None:
    piece = message(1, b"<0x0A>") + bytes([2 << 3 | 5]) + struct.pack("<f", -2.5) + bytes([3 << 3, 6])
    skipped = bytes([50 << 3 & 127 | 1 | 128, 3]) + bytes(8)  # a field of fixed size with a number of two bytes
    trainer, normalizer = bytes([3 << 3, 1, 3 << 3, BPE]), bytes([4 << 3, 0, 3 << 3, 0])
    model = read_model(message(1, piece) + skipped + message(2, trainer) + message(3, b"") + message(3, normalizer))
    assert model == Model([Piece(b"<0x0A>", -2.5, 6)], BPE, verbatim=True, prefix=False)


@pytest.mark.parametrize("settings", [message(2, b"map"), bytes([4 << 3, 1]), b""])
def test_text_is_not_always_taken_as_it_is(settings: bytes) -> None:
    assert not read_model(message(3, settings)).verbatim


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x80" * 20, b"\x0d\0\0", b"\x0b", b"\xff"])
def test_a_message_cut_short(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut short"):
        read_model(data)


@given(st.binary(max_size=40))
def test_no_garbage_ends_in_another_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_model(data)
