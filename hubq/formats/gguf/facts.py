"""What GGUF files say of themselves, as plain data: all that `hubq show` tells."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hubq.errors import Usage
from hubq.formats.gguf.levels import MIXES
from hubq.formats.gguf.read import Array, Header, StoredTensor
from hubq.formats.gguf.split import parse_part

LISTED = 1024  # a longer array is told by its type, count and hash
GUESSED = 1024  # a bit of `general.file_type`: the converter was not told the type, but guessed it
IMATRIX = "quantize.imatrix."
TEMPLATE = "tokenizer.chat_template"


def models(paths: Iterable[Path]) -> list[Path]:
    """One file of each model among the files and in the folders given, in the order given; a set of parts is one model.

    Raises Usage for a path that does not exist and for a folder without GGUF files.
    """
    found: dict[object, Path] = {}
    for path in paths:
        if path.is_dir() and not any(path.glob("*.gguf")):
            raise Usage(f"there is no .gguf file in {path}", "give a file, or the folder that holds it")
        if not path.is_dir() and not path.is_file():
            raise Usage(f"there is no file {path}", "check the path")
        for file in sorted(path.glob("*.gguf")) if path.is_dir() else [path]:
            part = parse_part(file.name)
            found.setdefault((file.parent, part.whole, part.count) if part else file, file)
    return list(found.values())


def facts(parts: Sequence[Header]) -> dict[str, Any]:
    """Everything about one model in its parts (see read_set), ready for JSON. Shapes are rows first; shares are of weights."""
    first, tensors = parts[0], [tensor for part in parts for tensor in part.tensors]
    size, weights = sum(part.size for part in parts), sum(map(_weights, tensors))
    content = sum(tensor.size for tensor in tensors)
    return {
        "path": str(first.path),
        "gguf": {"version": first.version, "alignment": first.alignment},
        "architecture": _text(first, "general.architecture"),
        "name": _text(first, "general.name"),
        "level": claimed_level(first),
        "size": size,
        "weights": weights,
        "bits_per_weight": {"file": 8 * size / weights, "weights": 8 * content / weights} if weights else None,
        "types": storage(tensors),
        "imatrix": {
            key.removeprefix(IMATRIX): _plain(value) for key, value in first.metadata.items() if key.startswith(IMATRIX)
        },
        "chat_templates": {key: _digest(value) for key, value in first.metadata.items() if _is_template(key, value)},
        "parts": [{"file": part.path.name, "size": part.size, "tensors": len(part.tensors)} for part in parts],
        "metadata": {key: _plain(value) for key, value in first.metadata.items()},
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.type,
                "bytes": t.size,
                "file": part.path.name,
                "offset": t.offset,
            }
            for part in parts
            for t in part.tensors
        ],
    }


def _weights(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape)


def _text(header: Header, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None


def claimed_level(header: Header) -> str | None:
    """The name of the level that a file claims to be; None where it claims nothing."""
    file_type = header.metadata.get("general.file_type")
    if type(file_type) is not int:
        return None
    names = {mix.file_type: name for name, mix in MIXES.items()}
    return names.get(file_type & ~GUESSED, f"file type {file_type}")


def storage(tensors: Sequence[StoredTensor]) -> list[dict[str, Any]]:
    """The storage types in use, the one with most weights first: tensors, weights, bytes, share of all weights."""
    rows, weights = [], sum(map(_weights, tensors))
    for name in dict.fromkeys(tensor.type for tensor in tensors):
        chosen = [tensor for tensor in tensors if tensor.type == name]
        count = sum(map(_weights, chosen))
        size = sum(tensor.size for tensor in chosen)
        rows.append({"type": name, "tensors": len(chosen), "weights": count, "bytes": size, "share": count / max(1, weights)})
    return sorted(rows, key=lambda row: (-row["weights"], row["type"]))


def _is_template(key: str, value: Any) -> bool:
    return isinstance(value, str) and (key == TEMPLATE or key.startswith(f"{TEMPLATE}."))


def _digest(text: str) -> dict[str, Any]:
    return {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _plain(value: Any) -> Any:
    """A value for JSON, which has neither infinity nor NaN: those become text."""
    if isinstance(value, Array):
        if value.count > LISTED:
            return {"type": value.kind, "count": value.count, "sha256": hashlib.sha256(value.data).hexdigest()}
        return [_plain(item) for item in value.values()]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
