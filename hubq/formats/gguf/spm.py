"""What a SentencePiece model says of itself: its pieces and how it treats text.

The file is a protocol buffer (protobuf.dev/programming-guides/encoding) with the fields of SentencePiece's
sentencepiece_model.proto; few of them matter here, and sentencepiece's Python interface shows none of the settings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BPE = 2  # TrainerSpec.ModelType
NUMBER, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types
FIXED = {DOUBLE: 8, FLOAT: 4}  # bytes of a value

Field = tuple[int, int]  # number and wire type; a field of another wire type is another field


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece: `kind` is SentencePiece's number of its type, which is also GGUF's."""

    text: bytes
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class Model:
    """A SentencePiece model.

    `algorithm` is BPE or another; `verbatim`: text is taken as it is, runs of spaces included; `prefix`: a space goes in front.
    """

    pieces: list[Piece]
    algorithm: int
    verbatim: bool
    prefix: bool


def read_model(data: bytes) -> Model:
    """The model in a file's bytes. Raises ValueError where they are no protocol buffer."""
    top = list(_fields(data))
    trainer, normalizer = (_last(b"".join(value for field, value in top if field == (n, BYTES))) for n in (2, 3))
    return Model(
        pieces=[_piece(_last(value)) for field, value in top if field == (1, BYTES)],
        algorithm=trainer.get((3, NUMBER), 1),
        verbatim=not (normalizer.get((2, BYTES)) or normalizer.get((4, NUMBER), 1) or trainer.get((24, NUMBER))),
        prefix=bool(normalizer.get((3, NUMBER), 1)),
    )


def _piece(fields: dict[Field, Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get((2, FLOAT), bytes(4)))
    return Piece(fields.get((1, BYTES), b""), score, fields.get((3, NUMBER), 1))


def _last(message: bytes) -> dict[Field, Any]:
    """Field -> value; of a field given twice the last one counts."""
    return dict(_fields(message))


def _fields(message: bytes) -> Iterator[tuple[Field, Any]]:
    """Each field and its value: an int, or the bytes of a string, a message or a number of fixed size."""
    value: int | bytes
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == NUMBER:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if wire == BYTES else (FIXED.get(wire, len(message) + 1), at)
            value, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError("a field is cut short")
        yield (number, wire), value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in message[at : at + 10]:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number is cut short")
