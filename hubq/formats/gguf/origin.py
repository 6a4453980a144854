"""A GGUF as the source of a release: which file of a repository it is, and how its weights are read.

Whatever llama.cpp can convert can so be quantized. Its metadata is copied as it is, but for what depends on the level, as
llama-quantize copies it (src/llama-quant.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubq.checkpoint import AGAIN, Checkpoint, StoredTensor, few
from hubq.errors import BadSource, Unsupported, Usage
from hubq.formats.gguf.blueprint import Copied, model_facts
from hubq.formats.gguf.decode import decode
from hubq.formats.gguf.facts import TEMPLATE, storage
from hubq.formats.gguf.read import Header, check_set, fetch_header, part_paths, read_set
from hubq.formats.gguf.split import parse_part
from hubq.formats.gguf.tensors import Tensor
from hubq.nouns import Origin, Snapshot

# storage types that a source may have, best first; of 8 bits only where there is nothing better, and people are told
TYPES = ("F32", "BF16", "F16", "Q8_0")
ORIGINAL = "start from a file in F32, BF16 or F16, or from the model in transformers' format"
# what says how a file is stored, not what model it is
STORAGE = re.compile(r"general\.(file_type|quantization_version|alignment)|split\..*|quantize\.imatrix\..*")
# of these llama.cpp computes no next tokens from a context of tokens alone
NO_DECODER: tuple[str, ...] = (
    "t5",
    "t5encoder",
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "neo-bert",
)
NO_DECODER += ("modern-bert", "eurobert")


@dataclass(frozen=True, slots=True)
class Given:
    """A model that is a GGUF: its parts' headers, its tensors, and `vocabulary`, a file with its tokenizer for llama.cpp."""

    parts: tuple[Header, ...]
    stored: Mapping[str, StoredTensor]
    vocabulary: Path
    origin: Origin

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.parts[0].metadata["general.architecture"])


# --- which file ---


def choose(snapshot: Snapshot, wanted: str) -> str | None:
    """The GGUF (the first of its parts) that is the source, or None where it is a model in transformers' format.

    `wanted` is a path, a file's name or a tag such as BF16, or empty: then it is the most precise one, by the files' names, of
    a repository without config.json. Raises Usage where several or none fit `wanted`.
    """
    if not wanted and snapshot.file("config.json"):
        return None
    files = {file.path: file.path.rsplit("/", 1)[-1] for file in snapshot.files if file.path.endswith(".gguf")}
    files = {path: name for path, name in files.items() if not is_tower(name) and getattr(parse_part(name), "number", 0) == 0}
    if not files and not wanted:
        return None
    if wanted:
        found = [path for path, name in files.items() if wanted in (path, name)] or [
            path for path, name in files.items() if re.search(re.escape(wanted) + "[.-]", name, re.IGNORECASE)
        ]
        if len(found) == 1:
            return found[0]
        told = f"{len(found)} GGUF files fit" if found else "no GGUF file fits"
        hint = f"name one of {few(found or sorted(files))}" if files else "it holds none: check the repository's name"
        raise Usage(f"{told} {wanted!r} in {snapshot.repo}", hint)
    return _most_precise(snapshot.repo, files)


def is_tower(name: str) -> bool:
    """Whether a file's name is that of a vision or audio tower."""
    return "mmproj" in name.lower()


def _most_precise(repo: str, files: Mapping[str, str]) -> str:
    if len(files) == 1:
        return next(iter(files))
    for kind in TYPES:
        found = [path for path, name in files.items() if re.search(rf"(^|[-._]){kind}[.-]", name, re.IGNORECASE)]
        if len(found) == 1:
            return found[0]
        if found:
            raise Usage(f"{repo} holds {len(found)} GGUF files in {kind}", f"name one behind a colon: {repo}:{found[0]}")
    told = f"{repo} holds {len(files)} GGUF files, and no name says F32, BF16, F16 or Q8_0"
    raise Usage(told, f"name one behind a colon: {repo}:FILE")


# --- what is in it ---


def fetch(snapshot: Snapshot, path: str, read: Callable[[str, int, int], bytes], aside: Path) -> Given:
    """The model in a repository's GGUF, of which only headers are fetched.

    `read(path, start, stop)` returns bytes of a file; `aside` gets a file of the same path that holds the metadata alone.
    """

    def header(place: Path) -> Header:
        if (file := snapshot.file(place.as_posix())) is None:
            raise BadSource(f"{snapshot.repo} lacks {place.name}, a part of the model", AGAIN)
        return fetch_header(place, file.size, lambda start, stop: read(file.path, start, stop))

    first = header(Path(path))
    parts = (first, *map(header, part_paths(first)[1:]))
    check_set(parts)
    vocabulary = aside / path
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write_bytes(without_tensors(first))
    return _given(parts, vocabulary, "")


def converted(path: Path, converter: str) -> Given:
    """The model in a GGUF that the converter of a fingerprint made; see convert.py."""
    return _given(read_set(path), path, converter)


def _given(parts: tuple[Header, ...], vocabulary: Path, converter: str) -> Given:
    first = parts[0]
    name, architecture, kind = first.path.name, *(first.metadata.get(f"general.{key}") for key in ("architecture", "type"))
    if not isinstance(architecture, str) or not architecture:
        raise BadSource(f"{name} does not say of which architecture it is", "take a file of a model that llama.cpp runs")
    if kind not in (None, "model") or architecture == "clip":
        told = architecture if kind in (None, "model") else str(kind)
        raise Unsupported(f"{name} is no model: it says that it is {few([told])}", "name the file of the model itself")
    rows = [row for row in storage([tensor for part in parts for tensor in part.tensors]) if row["weights"]]
    if strange := [row["type"] for row in rows if row["type"] not in TYPES]:
        raise Unsupported(f"{name} stores weights as {few(strange)}: they have lost what no level brings back", ORIGINAL)
    if not rows:
        raise BadSource(f"{name} holds no weights", "name the file of the model itself")
    stored = {
        tensor.name: StoredTensor(
            tensor.name, tensor.type, tensor.shape, part.path.name, tensor.offset, tensor.offset + tensor.size
        )
        for part in parts
        for tensor in part.tensors
    }
    main = "Q8_0" if any(row["type"] == "Q8_0" for row in rows) else rows[0]["type"]
    return Given(parts, stored, vocabulary, Origin(name, main, converter))


def without_tensors(header: Header) -> bytes:
    """A GGUF with a file's metadata and nothing else, which llama.cpp takes for a vocabulary."""
    pairs = own_pairs(header)
    counts = np.array([0, len(pairs)], "<u8").tobytes()
    return b"GGUF" + np.array([3], "<u4").tobytes() + counts + b"".join(pairs.values())


def own_pairs(header: Header) -> dict[str, bytes]:
    """The metadata that a model keeps at every level, key by key as in the file."""
    return {key: pair for key, pair in header.pairs.items() if not STORAGE.fullmatch(key)}


def draw(given: Given, left_out: Sequence[str] = ()) -> Copied:
    """The blueprint of a model that is a GGUF."""
    first = given.parts[0]
    causal = first.metadata.get(f"{given.architecture}.attention.causal", True)
    return Copied(
        tensors=[
            Tensor(name, tensor.shape, (name,), kept=tensor.dtype if tensor.dtype != "Q8_0" else "F32")
            for name, tensor in given.stored.items()
        ],
        model=model_facts(given.architecture, first.metadata),
        task="text-generation" if causal and given.architecture not in NO_DECODER else "feature-extraction",
        left_out=tuple(left_out),
        raw=tuple(own_pairs(first).values()),
        chats=bool(first.metadata.get(TEMPLATE)),
    )


# --- its weights ---


class Weights(Checkpoint):
    """The tensors of a GGUF. See Checkpoint."""

    def read(self, name: str, rows: slice | np.ndarray | None = None, columns: slice = slice(None)) -> np.ndarray:
        """See Checkpoint.read. Weights in Q8_0 are those that llama.cpp computes with."""
        tensor = self.tensors[name]
        if tensor.dtype != "Q8_0":
            return super().read(name, rows, columns)
        size = tensor.stop - tensor.start
        count = size // (tensor.shape[-1] // 32 * 34)
        raw = np.frombuffer(self._map(tensor.path), np.uint8, size, tensor.start).reshape(count, -1)
        chosen = decode(np.ascontiguousarray(raw[slice(None) if rows is None else rows]), "Q8_0")
        return chosen.reshape(tensor.shape) if rows is None else chosen[:, columns]


def open_weights(path: Path) -> Weights:
    """Open the GGUF of a source, or any of its parts. Raises what read_set raises."""
    parts = read_set(path)
    return Weights(path.parent, _given(parts, path, "").stored)
