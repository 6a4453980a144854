"""Text -> windows of token ids, made once and given to every engine. The only import of datasets.

The text is tokenized by the model's own tokenizer, whole, and cut into windows that do not overlap; the last, short one is
dropped. The second half of each window is scored, as llama.cpp does.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hubq.checkpoint import AGAIN
from hubq.errors import BadSource, HubError, Usage
from hubq.nouns import EvalSet, Source
from hubq.parse import read_json
from hubq.tasks import TASKS, Task
from hubq.tokenize import MISSING, encode, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGINNING = 200_000  # characters of a text that go with its windows
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # suffix -> loader of datasets; .txt is read as it is
LOCAL = "give a local file instead (--dataset FILE.txt, .jsonl or .parquet), or publish without measuring: --no-eval"
Tokenize = Callable[[Source, str], tuple[np.ndarray, np.ndarray, int | None]]
DEEPEST = 100  # tables and lists in one another, in a file of text
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class TextSpec:
    """Which text measures a release, and how much of it.

    `dataset` is a Hub id, with @revision if need be, or a .txt, .jsonl, .json or .parquet file; `field` the column that holds
    the text; `windows` how many windows of `length` ids are scored (None: all), drawn by `seed` (None: the first ones). Models
    that predict no next tokens are measured on `texts` texts of at most `length` ids instead (None: all). With `precision`
    fewer windows are scored where fewer make the PPL ratio of a file as precise, see EvalSet.
    """

    dataset: str = "Salesforce/wikitext"
    config: str | None = "wikitext-2-raw-v1"
    split: str = "test"
    field: str = "text"
    windows: int | None = 32
    length: int = 512
    seed: int | None = 0
    texts: int | None = 256
    precision: float | None = None


@dataclass(frozen=True)
class Windows:
    """The windows to score: their ids, int64 [W, L], and the UTF-8 bytes of each one's scored half [W].

    They are in the text's order, or in that of the draw where scoring may stop before the last one.

    `text` is the beginning of the text that they are from.
    """

    evalset: EvalSet
    ids: np.ndarray
    bytes: np.ndarray
    text: str = ""

    @property
    def task(self) -> Task:
        """What windows measure."""
        return TASKS["text-generation"]


@dataclass(frozen=True)
class Text:
    """Texts and where they are from, under the names of EvalSet: `text` is all of it, `rows` those of a dataset or lines."""

    text: str
    rows: tuple[str, ...]
    dataset: str
    revision: str
    config: str | None = None
    split: str = "all"
    field: str = "text"

    @property
    def facts(self) -> dict[str, Any]:
        """What an EvalSet tells of the text."""
        named = {name: getattr(self, name) for name in ("dataset", "config", "split", "field", "revision")}
        return {**named, "text_sha256": hashlib.sha256(self.text.encode()).hexdigest()}


@dataclass(frozen=True)
class _Tokens:
    """A tokenized text: ids [N], where each ends in the text's UTF-8 bytes [N], and the id that begins a text, or None."""

    ids: np.ndarray
    ends: np.ndarray
    bos: int | None


def windows(source: Source, spec: TextSpec, tokenize: Tokenize | None = None) -> Windows:
    """The windows that measure a source's variants, and the facts that pin them.

    The first id of each window is replaced by the beginning-of-text token where the tokenizer puts one before every text.
    `tokenize` splits the text of a source without a tokenizer of transformers; it returns (ids, ends, bos), see _Tokens.
    Raises Usage for a text that is missing, too short or not what the spec says, HubError for a dataset that cannot be
    fetched, BadSource for a tokenizer that cannot be read.
    """
    found = read(spec)
    tokens = _Tokens(*tokenize(source, found.text)) if tokenize else _tokenize(source, found.text)
    available, first = len(tokens.ids) // spec.length, spec.length // 2
    if available < 2:
        raise Usage(
            f"{found.dataset} has {len(tokens.ids):,} tokens, too few for two windows of {spec.length}",
            "give a longer text: --dataset FILE.txt, .jsonl or .parquet",
        )
    chosen = choose(available, spec.windows, spec.seed, ordered=spec.precision is None)
    ids = tokens.ids[: available * spec.length].reshape(available, spec.length)[chosen]
    ends = tokens.ends[: available * spec.length].reshape(available, spec.length)[chosen]
    if tokens.bos is not None:
        ids[:, 0] = tokens.bos
    evalset = EvalSet(
        **found.facts,
        tokens=len(tokens.ids),
        available=available,
        windows=len(chosen),
        length=spec.length,
        seed=spec.seed,
        bos=tokens.bos,
        precision=spec.precision,
        ids_sha256=hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
    )
    return Windows(evalset, ids, ends[:, -1] - ends[:, first], found.text[:BEGINNING])


def shared_runs(one: Windows, other: Windows, length: int = 64) -> int:
    """How many runs of `length` ids in the windows of `one` occur in those of `other` too, by 64-bit hashes of the runs."""
    factors = np.random.Generator(np.random.PCG64(0)).integers(1, 2**63, length, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def hashes(windows: Windows) -> np.ndarray:
        runs = np.lib.stride_tricks.sliding_window_view(windows.ids.astype(np.uint64), length, axis=1)
        return np.concatenate([(window * factors).sum(axis=1, dtype=np.uint64) for window in runs])

    return int(np.isin(hashes(one), hashes(other)).sum())


def choose(available: int, count: int | None, seed: int | None, ordered: bool = True) -> np.ndarray:
    """Indices of `count` windows or texts: a seeded draw without replacement from all of them, `ordered` to rise."""
    order = np.arange(available) if seed is None else np.random.Generator(np.random.PCG64(seed)).permutation(available)
    return np.sort(order[:count]) if ordered else order[:count]


# --- text ---


def read(spec: TextSpec) -> Text:
    """The text that a spec names. Raises Usage for one that is missing or is no text, HubError for one not to be had."""
    return _local(Path(spec.dataset).expanduser(), spec.field) if is_local(spec.dataset) else _hub(spec)


def pin(dataset: str) -> str:
    """What names a text: a Hub id as it is, a file by its name and SHA-256. Raises Usage for a file that is not there."""
    if not is_local(dataset):
        return dataset
    path = Path(dataset).expanduser()
    return f"{path.name}@{hashlib.sha256(_bytes(path)).hexdigest()}"


def is_local(dataset: str) -> bool:
    """Whether a dataset is a file of this machine."""
    return dataset.startswith((".", "/", "~")) or Path(dataset).suffix in {".txt", *LOADERS} or Path(dataset).is_file()


def _local(path: Path, field: str) -> Text:
    data = _bytes(path)
    if path.suffix not in {".txt", *LOADERS}:
        raise Usage(f"{path.name} is of no kind that hubq reads as text", f"give a .txt, {', '.join(LOADERS)} file")
    revision = hashlib.sha256(data).hexdigest()
    if path.suffix == ".txt":
        try:
            text = data.decode()
            return Text(text, tuple(text.splitlines()), path.name, revision)
        except UnicodeDecodeError as error:
            raise Usage(f"{path.name} is not UTF-8: {error}", f"iconv -t UTF-8 -o NEW.txt {path.name}") from error
    rows = _rows(_load_file(path), field, path.name)
    return Text("\n\n".join(rows), rows, path.name, revision, field=field)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}", "check the path that --dataset gives") from error


def _load_file(path: Path) -> Any:
    datasets = _datasets()
    if path.suffix in (".json", ".jsonl") and _depth(path.read_bytes()) > DEEPEST:
        raise Usage(f"{path.name} is nested deeper than rows of text are", "give a file with a table of text in each line")
    try:
        return datasets.load_dataset(LOADERS[path.suffix], data_files=glob.escape(str(path)), split="train")
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
        raise Usage(
            f"{path.name} cannot be read: {_short(error.__cause__ or error)}", f"check that it is what {path.suffix} files are"
        ) from error


def _depth(data: bytes) -> int:
    """How deeply JSON is nested: pyarrow, which reads it, overruns its stack."""
    bare = np.frombuffer(STRING.sub(b"", data), np.uint8)
    steps = np.isin(bare, list(b"[{")).astype(np.int8) - np.isin(bare, list(b"]}"))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _hub(spec: TextSpec) -> Text:
    datasets = _datasets()
    repo, _, revision = spec.dataset.partition("@")
    try:
        builder = datasets.load_dataset_builder(repo, spec.config, revision=revision or None)
        builder.download_and_prepare()
    except datasets.exceptions.DatasetNotFoundError as error:
        raise HubError(f"there is no dataset {spec.dataset} on the Hub, or you may not see it", LOCAL) from error
    except OSError as error:
        raise HubError(f"the dataset {spec.dataset} cannot be fetched: {_short(error)}", LOCAL) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise Usage(f"the dataset {spec.dataset} cannot be loaded: {_short(error)}", LOCAL) from error
    if not _COMMIT.fullmatch(builder.hash) or (_COMMIT.fullmatch(revision) and builder.hash != revision):
        raise HubError(f"{spec.dataset} is not what the Hub holds: datasets took a local folder or an older copy for it", LOCAL)
    if spec.split not in builder.info.splits:
        raise Usage(f"{spec.dataset} has no split {spec.split!r}", f"choose one with --split: {', '.join(builder.info.splits)}")
    rows = _rows(builder.as_dataset(spec.split), spec.field, spec.dataset)
    return Text("\n\n".join(rows), rows, repo, builder.hash, spec.config, spec.split, spec.field)


def _rows(rows: Any, field: str, name: str) -> tuple[str, ...]:
    """The texts of a dataset's rows."""
    if field not in rows.column_names:
        raise Usage(f"{name} has no field {field!r}", f"choose one with --text-field: {', '.join(rows.column_names)}")
    try:
        texts = tuple(text for text in rows[field] if text is not None)
    except UnicodeDecodeError as error:
        raise Usage(f"the field {field!r} of {name} is not UTF-8: {error}", "give a text in UTF-8") from None
    if not all(isinstance(text, str) for text in texts):
        raise Usage(f"the field {field!r} of {name} does not hold text", f"choose one of {', '.join(rows.column_names)}")
    return texts


def _short(error: BaseException) -> str:
    """What datasets says, without the long lists that it says it with."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")


def _datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error, it raises as well
    return datasets


# --- tokens ---


def _tokenize(source: Source, text: str) -> _Tokens:
    if (tokenizer := load_tokenizer(source.folder)) is not None:
        return _by_tokenizers(tokenizer, text)
    if (source.folder / "tokenizer.model").is_file():
        return _by_sentencepiece(source.folder, text)
    raise BadSource(MISSING, AGAIN)


def _by_tokenizers(tokenizer: Tokenizer, text: str) -> _Tokens:
    with_special, plain = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    bos = with_special[0] if len(with_special) > len(plain) and with_special[1 : 1 + len(plain)] == plain else None
    kept, tokenizer.post_processor = tokenizer.post_processor, None  # it would trim spaces off the offsets
    try:
        encoding = encode(tokenizer, text, special=False)
    finally:
        tokenizer.post_processor = kept
    ends = np.array([end for _, end in encoding.offsets], np.int64)
    return _Tokens(np.array(encoding.ids, np.int64), _byte_positions(text)[ends], bos)


def _byte_positions(text: str) -> np.ndarray:
    """Where each character begins in the text's UTF-8 bytes, and where the last one ends."""
    data = np.frombuffer(text.encode(), np.uint8)
    return np.append(np.flatnonzero(data & 0xC0 != 0x80), len(data))


def _by_sentencepiece(folder: Path, text: str) -> _Tokens:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(folder / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        raise BadSource(f"tokenizer.model is not a SentencePiece model: {error}", AGAIN) from error
    pieces = processor.encode(text, return_type="proto").pieces
    ids, ends = (np.array([getattr(piece, name) for piece in pieces], np.int64) for name in ("id", "end"))
    bos = processor.bos_id() if _adds_bos(folder / "tokenizer_config.json") else -1
    return _Tokens(ids, ends, bos if bos >= 0 else None)


def _adds_bos(path: Path) -> bool:
    """Whether a SentencePiece model wants its beginning-of-text token: it does unless tokenizer_config.json says no."""
    try:
        settings = read_json(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise BadSource(f"{path.name} cannot be read: {error}", AGAIN) from error
    return settings.get("add_bos_token") is not False if isinstance(settings, dict) else True
