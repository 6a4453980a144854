"""The nouns of hubq, as frozen dataclasses.

Source + Level -> Recipe --build--> Artifact --+
                                               +--score--> Measurement -> Release --card--> README --push--> Hub
                                    EvalSet ---+
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

REFERENCE = "reference"  # what stands for a level in the measurement of the source itself
FLOOR = "floor"  # and in that of the source computed in 16 bits
WITHIN = 0.02  # the loss of PPL up to which a file is recommended where nobody says how much


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as a hub lists it: `path` inside the repository, `size` in bytes, and the hash that pins its content.

    `sha256` is known for large files (in a folder hub for all); for small ones the Hub lists `blob`, git's SHA-1 of the blob.
    """

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit: `repo` is its id, `files` all that it holds, sorted by path.

    `commit` is git's, 40 hexadecimal digits; in a folder hub it is a SHA-256 of the listing, 64 digits.
    """

    repo: str
    commit: str
    files: tuple[RepoFile, ...]

    def file(self, path: str) -> RepoFile | None:
        """The listing of one path, or None."""
        return next((file for file in self.files if file.path == path), None)

    def size(self, path: str) -> int:
        """Bytes of a listed file."""
        return next(file.size for file in self.files if file.path == path)


@dataclass(frozen=True, slots=True)
class Source:
    """A model at one commit, on disk and checked against the Hub's listing.

    `config` is config.json without the keys that could load code, empty for a model that is a GGUF; `card` the front matter of
    README.md as plain data; `files` only the files that hubq uses, each with its SHA-256. `gguf` is the file that the model is
    (the first of its parts), or that llama.cpp's converter made of it; of a model not yet pulled its metadata alone. `graph` is
    the ONNX graph in float32 that was exported from it.
    """

    repo: str
    commit: str
    folder: Path
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    files: tuple[RepoFile, ...]
    gguf: Path | None = None
    graph: Path | None = None

    @property
    def name(self) -> str:
        """The model's name without its owner."""
        return self.repo.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Level:
    """One way of storing weights, written `format:name` everywhere: `gguf:Q4_K_M`.

    `bits` are the nominal bits per weight; `needs_matrix` says whether it is made with an importance matrix only, `special`
    whether it is made only if it is named: most suit models of one kind only.
    """

    id: str
    bits: float
    summary: str
    needs_matrix: bool = False
    special: bool = False

    @property
    def format(self) -> str:
        """The part before the colon."""
        return self.id.partition(":")[0]

    @property
    def name(self) -> str:
        """The part behind the colon."""
        return self.id.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which storage type each tensor gets at one level, in file order.

    `fallbacks` counts the tensors whose shape forbade the type that the level has for them.
    """

    level: str
    types: Mapping[str, str]
    fallbacks: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished file: `size` in bytes, `weights` stored in it, `types` the tensors of each storage type.

    `key` is that of the recipe and the inputs that made it, `options` how the command line wrote what shaped it besides the
    level, `imatrix` the SHA-256 of the importance matrix that weighed its errors (None: none did). Of a level split into
    several files, `parts` are those, `path` the first, `size` that of all, and `sha256` that of their hashes in a row.
    `folder` is where they lie in a repository. `recipe` maps tensors to their storage
    types, where a format tells them one by one, and `groups` kinds of tensors (attention, ...) to their bytes.
    """

    level: str
    path: Path
    size: int
    sha256: str
    weights: int
    types: Mapping[str, int]
    fallbacks: int
    key: str
    parts: tuple[RepoFile, ...] = ()
    imatrix: str | None = None
    options: str = ""
    folder: str = ""
    recipe: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """What it consists of, by the files' places in a repository: itself, or its parts."""
        found = self.parts or (RepoFile(self.path.name, self.size, self.sha256),)
        return tuple(replace(file, path=f"{self.folder}/{file.path}") for file in found) if self.folder else found

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, metadata included, divided by the number of weights."""
        return 8 * self.size / self.weights


@dataclass(frozen=True, slots=True)
class EvalSet:
    """The text that measures a release, pinned.

    `dataset` is a Hub id or a file's name, `revision` its commit (or the file's SHA-256); `tokens` counts the ids of the
    whole split, `available` the windows in it, `windows` those scored, `length` the ids in each. `seed` chose them (None: they
    are the first ones). `bos` is the id that replaces each window's first, or None. The hashes pin the text and the scored ids.

    With `precision` the windows of each file are scored in the order of the draw until the 95 % confidence sequence of its PPL
    ratio reaches no farther to either side (0.005: half a percent); `windows` is then the most that are scored.

    Where `unit` says that texts or pairs of them were scored, each by itself, `windows` and `available` count these, `tokens`
    the scored ids, and `length` is the most ids of one.
    """

    dataset: str
    config: str | None
    split: str
    field: str
    revision: str
    tokens: int
    available: int
    windows: int
    length: int
    seed: int | None
    bos: int | None
    text_sha256: str
    ids_sha256: str
    unit: Literal["windows", "texts", "pairs"] = "windows"
    precision: float | None = None

    @property
    def scored(self) -> int:
        """Tokens that are scored of each window: the second half of it."""
        return self.length - 1 - self.length // 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured number with its standard error (clustered by window or text) and the count of tokens or texts behind it."""

    value: float
    stderr: float
    count: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one engine measured of one level, or of the source itself (REFERENCE, FLOOR): metric name -> Estimate.

    `per_window` are the means of some metrics in each window (or text), in the order of scoring and with seven digits: what
    comparisons of files need.
    """

    level: str
    engine: str
    values: Mapping[str, Estimate]
    per_window: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The most tokens (or texts) that one of the numbers is of."""
        return max((estimate.count for estimate in self.values.values()), default=0)

    @property
    def of_file(self) -> bool:
        """Whether it is of a file, and not of the source."""
        return self.level not in (REFERENCE, FLOOR)


@dataclass(frozen=True, slots=True)
class Spread:
    """Tokens per second of a test that ran `count` times."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one engine ran a level's file on a `machine`, with the file in the machine's cache.

    `prompt` is of `prompt_tokens` ids in one go, `generation` of `generated_tokens` ids one by one, with `cpu` seconds of
    processor time and `energy` joules of the processor each (None: the model does not generate, or nothing tells); `load` in
    seconds; `memory` in bytes, the most that loading and running added to the process.
    """

    level: str
    engine: str
    threads: int
    prompt_tokens: int
    generated_tokens: int
    prompt: Spread
    load: float
    memory: int
    generation: Spread | None = None
    cpu: float | None = None
    energy: float | None = None
    machine: str = ""


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """What says how much an error in each column of a weight counts, by the facts that pin it.

    `file` is its name, `datasets` what it says it was made from, `entries` the tensors in it, made from `chunks` of
    `chunk_size` tokens. `text` pins the calibration text where hubq computed it (None: the matrix was given).
    """

    file: str
    sha256: str
    datasets: tuple[str, ...]
    entries: int
    chunks: int
    chunk_size: int
    text: EvalSet | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The GGUF that files were quantized from, where hubq did not read the weights from a checkpoint.

    `file` is its name, `type` how its weights are stored, `converter` the fingerprint of the llama.cpp checkout that converted
    the source (empty: the source is this file).
    """

    file: str
    type: str
    converter: str = ""


@dataclass(frozen=True, slots=True)
class Cache:
    """What running a model takes besides its file: what it keeps of the tokens before, and what it computes with.

    `full` are the numbers kept for every token of the context, `windowed` those for the last `window` tokens, `state` bytes
    that are kept whatever the context. `context` are the tokens that the model was trained for; `scratch` are the numbers for
    every token of a batch that exist at a time while it is computed.
    """

    full: int
    windowed: int
    window: int
    state: int
    context: int
    scratch: int


@dataclass(frozen=True, slots=True)
class Check:
    """What the parity gate found of one file: `detail` says what agrees, what differs, or why it was not checked."""

    level: str
    name: str
    outcome: Literal["passed", "failed", "not checked"]
    detail: str


@dataclass(frozen=True, slots=True)
class Release:
    """Everything a card tells: the pinned source, the files, the numbers and the versions that made them.

    `weights` counts the model's parameters; `imatrices` are those that files were made with; `versions` maps package name to
    version; `machine` describes where the numbers were measured; `command` makes the release again: {build} in it stands for
    levels and their options, see record.commands. `checks` are those that each file went through before it was pushed;
    `left_out` are the source's modules that the files do not hold; `origin` is told where the weights come from a GGUF;
    `newer` is the commit that the source had moved on to when the files were pushed;
    `inputs` are the source's files that were read; `environment` is the SHA-256 of the names and versions of all packages that
    were installed. `within` is the loss of PPL up to which a file is recommended (0.02: two percent more than the reference's).
    `card` is the front matter of the source's, and what hubq found of the source besides: whether it has a
    `chat_template`, how its vectors are pooled (`pooling`), and under `ollama` whether that template in Ollama's form is
    "known" to the Hub, "made" by hubq, or "unchecked". `cache` is what running a file takes besides it, None where that is
    not known.
    """

    source: str
    commit: str
    architecture: str
    weights: int
    target: str
    card: Mapping[str, Any]
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...] = ()
    evalset: EvalSet | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    command: str = ""
    imatrices: tuple[ImportanceMatrix, ...] = ()
    checks: tuple[Check, ...] = ()
    left_out: tuple[str, ...] = ()
    origin: Origin | None = None
    speeds: tuple[Speed, ...] = ()
    newer: str = ""
    inputs: tuple[RepoFile, ...] = ()
    environment: str = ""
    within: float = WITHIN
    cache: Cache | None = None
