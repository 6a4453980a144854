"""What publishing will do, exactly: the pinned commit, sizes, keys, and what is there already. Touches nothing."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hubq import checkpoint
from hubq.errors import BadSource, HubError, Unsupported, Usage
from hubq.formats import Expected, Options, open_format
from hubq.formats.checks import check_names
from hubq.hub import Files, Hub, connect
from hubq.nouns import WITHIN, Artifact, EvalSet, ImportanceMatrix, Level, Origin, Snapshot, Source
from hubq.pooling import pooling
from hubq.source import check_counts, read_card, read_config, used
from hubq.store import Store, key

if TYPE_CHECKING:
    from hubq.formats.gguf.recipe import Custom
    from hubq.text import TextSpec, Windows


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    `model` is a Hub id with an optional @revision, or a folder; `hub` a folder to look for ids in, instead of the Hub; `to` a
    Hub id or a folder that acts as a hub (None: the user's account on the Hub); without `text` nothing is measured. `imatrix`
    is the file of an importance matrix, or the text to compute one from. `custom`, `split` and `target` are those of
    formats.Options; with `stream` the levels are built, measured, pushed and deleted one after another. `command` makes the
    release again, and `options` and `imatrix_options` are what the command line said of recipe and matrix. `llama_cpp` is a
    checkout whose converter takes models that hubq does not know. With `speed` it is measured how fast the files run, on the
    first window. `exporter` is that of ONNX graphs. `pull_request` pushes into one; without `create` the repository has to be
    there; the levels in `delete` are taken out of it; with `require_latest` nothing is pushed of a source that moved on while
    hubq worked. `sign` is the file of a private key that signs the release, or "sigstore". With `floor` the source is measured
    in 16 bits, too; `logits` bounds what is kept of the reference's distributions, in bytes of memory, or of the store's disk
    with `logits_on_disk`; `within` is the loss up to which a file is recommended. `gates` maps levels to
    metrics to the worst value that is pushed.
    """

    model: str
    levels: tuple[Level, ...]
    store: Store
    to: str | None = None
    hub: Path | None = None
    text: TextSpec | None = None
    imatrix: Path | TextSpec | None = None
    custom: Custom | None = None
    split: int | None = None
    stream: bool = False
    private: bool = False
    command: str = ""
    options: str = ""
    imatrix_options: str = ""
    target: str | None = None
    llama_cpp: Path | None = None
    speed: bool = False
    sign: str | None = None
    exporter: str = "auto"
    pull_request: bool = False
    create: bool = True
    delete: tuple[Level, ...] = ()
    require_latest: bool = False
    floor: bool = False
    logits: int | None = None
    logits_on_disk: bool = False
    within: float = WITHIN
    gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One level of a plan: the file's name and exact size, its key, its options, and the finished file if the store has it."""

    level: Level
    file: str
    size: int
    key: str
    options: str
    artifact: Artifact | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What publishing will do with the model at `hub`, which is called `name` in files and repositories.

    `paths` are the files that are pulled, of which `shards` hold the weights. `gguf` is the place of the GGUF that the model
    is, or that was made of it, with `origin`. In bytes: `download` is not on this machine yet, `write` is to be built, `need`
    the most that all of it takes of the disk at a time, `free` on that disk. `imatrix` pins the importance matrix in
    `imatrix_file`: both are None where there is none, or it is still to be computed from the text `calibration` and kept under
    `imatrix_key`. `revision` is how the person named the snapshot, `dtype` what a checkpoint's matrices are stored as
    (bf16, f16 or f32).
    """

    hub: Hub
    snapshot: Snapshot
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    name: str
    architecture: str
    weights: int
    paths: tuple[str, ...]
    shards: tuple[str, ...]
    gguf: Path | None
    origin: Origin | None
    items: tuple[Item, ...]
    target: str
    download: int
    write: int
    need: int
    free: int
    format: ModuleType
    blueprint: Any
    imatrix: ImportanceMatrix | None = None
    imatrix_file: Path | None = None
    imatrix_key: str = ""
    calibration: Windows | None = None
    revision: str | None = None
    dtype: str = ""

    @property
    def repo(self) -> str:
        """What its repository is called where nobody says."""
        return _repository(self.name, self.format)

    @property
    def title(self) -> str:
        """What a pull request with such levels is called."""
        return f"Add {self.format.WORDS.title} levels of {self.snapshot.repo} with hubq"


class NotConverted(Usage):
    """A model that llama.cpp's converter has to convert first, from `snapshot` at `hub`, to be kept under `key`."""

    def __init__(self, hub: Hub, snapshot: Snapshot, paths: Sequence[str], key: str, dtype: str) -> None:
        super().__init__(
            f"{snapshot.repo} is not converted yet, and before that nothing is known of its files", "run without --dry-run"
        )
        self.hub, self.snapshot, self.paths, self.key, self.dtype = hub, snapshot, tuple(paths), key, dtype
        self.name = model_name(snapshot.repo, False)


def locate(model: str, hub: Path | None) -> tuple[Hub, str, str | None, str]:
    """(hub, repository, revision, file) of a model as a person writes it.

    That is `org/model`, `org/model@revision`, or a folder, each with `:FILE` behind it for a GGUF in it; or a local GGUF.
    """
    path = Path(model).expanduser()
    if hub is None and path.is_file():
        return _local_file(path.resolve())
    model, _, file = model.partition(":") if not path.is_dir() else (model, "", "")
    folder = Path(model).expanduser()
    if hub is None and (folder.is_dir() or model.startswith((".", "/", "~"))):
        if not folder.is_dir():
            raise Usage(f"there is no folder or GGUF file {model}", "check the path, or write a Hub id as org/model")
        folder = folder.resolve()
        return connect(folder.parent), folder.name, None, file
    repo, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) and hub is None:
        raise Usage(f"{model!r} is neither a Hub id nor a folder", "write org/model, org/model@revision or ./folder")
    return connect(hub), repo, revision or None, file


def _local_file(path: Path) -> tuple[Hub, str, None, str]:
    """A GGUF on this machine, with its parts, as a hub of its own; its model is called as the file is, less the level."""
    if path.suffix != ".gguf":
        raise Usage(f"{path.name} is no GGUF file", "give a folder in transformers' format, or a .gguf file")
    parts = open_format("gguf").local_parts(path)
    name = re.sub(r"(?i)([-._](f32|bf16|f16|q8_0))?(-\d{5}-of-\d{5})?\.gguf$", "", path.name)
    return Files(path.parent, [part.name for part in parts]), name or "model", None, parts[0].name


def destination(to: str | None, repo: str) -> tuple[Hub, str]:
    """(hub, repository) that a release goes to: `to`, or `repo` of the user's account, or in the folder `to` as a hub."""
    if to is None:
        hub = connect(writing=True)
        if not hub.owner():
            raise HubError(
                "there is no account to publish to: nobody is logged in", "run `hf auth login`, or say where with --to"
            )
        return hub, f"{hub.owner()}/{repo}"
    if is_repository(to):
        return connect(writing=True), to
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        return connect(Path(to).expanduser().resolve()), repo
    raise Usage(f"--to {to}: neither a Hub id nor a folder", "write owner/name, or ./folder for a folder that acts as a hub")


def is_repository(to: str) -> bool:
    """Whether --to names a repository on the Hub, and not a folder."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", to, re.ASCII)) and not Path(to).is_dir()


def plan(request: Request) -> Plan:
    """What `publish` would do, exactly, touching nothing. Raises all that is known to fail before the weights are fetched."""
    with tempfile.TemporaryDirectory() as aside:
        return plan_in(Path(aside), request)


def plan_in(aside: Path, request: Request) -> Plan:
    """`plan`, with the model's small files left in the empty folder `aside`."""
    hub, repo, revision, wanted = locate(request.model, request.hub)
    snapshot = hub.snapshot(repo, revision)
    module = open_format(request.levels[0].format)
    path = module.choose_source(snapshot, wanted)
    if path is None and snapshot.file("config.json") is None:
        raise BadSource(
            f"{repo} has neither config.json nor a GGUF file",
            "hubq reads models in transformers' format and unquantized GGUF files; check the id or the folder",
        )
    place = _Place(hub, snapshot, aside)
    found = _gguf(module, place, path) if path else _checkpoint(request, module, place)
    source, blueprint = found.source, found.blueprint
    computing = request.imatrix is not None and not isinstance(request.imatrix, Path)
    predicts = blueprint.task == "text-generation"
    if not predicts and computing:
        raise Unsupported(
            f"{checkpoint.few([found.architecture])} is an encoder: no importance matrix can be computed of it",
            "publish with --imatrix none or a file",
        )
    if not predicts and request.text is not None and not source.config:
        raise Unsupported(
            f"{checkpoint.few([found.architecture])} is an encoder, and hubq measures encoders in transformers' format only",
            "start from the original model, or publish without measurements: --no-eval",
        )
    matrix = _importance(request, module, source, found.inputs)
    options = Options(matrix.options, request.custom, request.split, request.exporter, request.target)
    laid_out = module.plan(blueprint, request.levels, options)
    name = model_name(repo, bool(path))
    readme = aside / "README.md"
    front = dict(read_card(readme.read_bytes())) if readme.is_file() else {}
    front["chat_template"] = laid_out.has_chat_template
    front["pooling"] = (pooling(aside) or "") if blueprint.task == "feature-extraction" and source.config else ""
    items = tuple(_item(request, module, name, found, laid_out, level, matrix) for level in request.levels)
    check_names(module, [item.file for item in items], {item.file: item.level.name for item in items})
    sizes = [item.size for item in items if item.artifact is None]
    paths = tuple(dict.fromkeys([*found.small, *found.shards]))
    download = sum(snapshot.size(path) for path in paths if not hub.cached(snapshot, path))
    disk, scratch = _existing(request.store.root), laid_out.scratch if sizes else 0
    return Plan(
        hub=hub,
        snapshot=snapshot,
        config=source.config,
        card=front,
        name=name,
        architecture=found.architecture,
        weights=laid_out.weights,
        paths=paths,
        shards=found.shards,
        gguf=found.gguf,
        origin=found.origin,
        items=items,
        target=_target_name(request, _repository(name, module)),
        download=download,
        write=sum(sizes),
        need=(max(sizes, default=0) if request.stream else sum(sizes)) + scratch + (download if _same_disk(hub, disk) else 0),
        free=shutil.disk_usage(disk).free,
        format=module,
        blueprint=laid_out,
        imatrix=matrix.facts,
        imatrix_file=matrix.file,
        imatrix_key=matrix.key,
        calibration=matrix.calibration,
        revision=revision,
        dtype=found.dtype,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """A repository at a commit, and the folder for its small files."""

    hub: Hub
    snapshot: Snapshot
    aside: Path

    def fetch(self, path: str) -> bytes:
        """A small file, which then lies in the folder too."""
        if not (self.aside / path).is_file():
            data = self.hub.read(self.snapshot, path)
            (self.aside / path).parent.mkdir(parents=True, exist_ok=True)
            (self.aside / path).write_bytes(data)
        return (self.aside / path).read_bytes()

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes of a large file."""
        return self.hub.read(self.snapshot, path, start, stop)

    def inputs(self, wanted: Collection[str]) -> dict[str, str | None]:
        """What pins the content of files, by path."""
        return {file.path: file.sha256 or file.blob for file in self.snapshot.files if file.path in wanted}

    def source(self, config: Mapping[str, Any], gguf: Path | None = None) -> Source:
        """The source as far as small files tell of it."""
        return Source(self.snapshot.repo, self.snapshot.commit, self.aside, config, {}, (), gguf)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a model before its weights are there, and its files, `small` ones and those of its weights.

    `gguf` is the place of a GGUF within the pulled repository.
    """

    source: Source
    architecture: str
    blueprint: Any
    small: tuple[str, ...]
    shards: tuple[str, ...]
    inputs: Mapping[str, Any]
    gguf: Path | None = None
    origin: Origin | None = None
    dtype: str = ""


def _checkpoint(request: Request, module: ModuleType, place: _Place) -> _Found:
    """A model in transformers' format."""
    snapshot = place.snapshot
    config = read_config(place.fetch("config.json"))
    unknown = None
    try:
        module.check_kind(config)
    except Unsupported as error:
        if request.llama_cpp is None or module.WORDS.title != "GGUF":
            raise
        unknown = error
    shards = checkpoint.shards([file.path for file in snapshot.files], place.fetch)
    small = used(snapshot) if unknown is None else tuple({*used(snapshot), *module.converter_files(snapshot)})
    for path in small:
        place.fetch(path)
    index = place.fetch(checkpoint.INDEX) if snapshot.file(checkpoint.INDEX) else None
    headers = [checkpoint.read_header(path, snapshot.size(path), place.read) for path in shards]
    stored, inputs = checkpoint.merge(headers, index), place.inputs({*small, *shards})
    check_counts(config, len(stored))
    if unknown is None:
        blueprint = module.draw(snapshot.repo, place.aside, config, stored)
        dtype = checkpoint.precision(stored)
        return _Found(place.source(config), str(config["architectures"][0]), blueprint, small, shards, inputs, dtype=dtype)
    assert request.llama_cpp
    converter, dtype = module.converter(request.llama_cpp), checkpoint.precision(stored)
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    inputs |= {"converter": converter, "dtype": dtype, "name": place.source({}).name, **versions}
    made = request.store.file("conversions", key(inputs))
    if made is None:
        raise NotConverted(place.hub, snapshot, [*small, *shards], key(inputs), dtype)
    given = module.converted_source(made, converter)
    source = place.source(config, made)
    blueprint = module.draw_source(given, ())
    return _Found(source, str(config["architectures"][0]), blueprint, small, shards, inputs, made, given.origin, dtype)


def _gguf(module: ModuleType, place: _Place, path: str) -> _Found:
    """A model that is a GGUF."""
    snapshot = place.snapshot
    small = used(snapshot)
    for name in small:
        place.fetch(name)
    given = module.fetch_source(snapshot, path, place.read, place.aside)
    shards = tuple(part.path.as_posix() for part in given.parts)
    blueprint = module.draw_source(given, module.towers(snapshot))
    source = place.source({}, given.vocabulary)
    return _Found(source, given.architecture, blueprint, small, shards, place.inputs(shards), Path(path), given.origin)


@dataclass(frozen=True, slots=True)
class _Importance:
    """The importance matrix of a plan: what the format is told, its facts, key and file, and the text that it is made from."""

    options: Any = None
    facts: ImportanceMatrix | None = None
    key: str = ""
    file: Path | None = None
    calibration: Windows | None = None


def _importance(request: Request, module: ModuleType, source: Source, inputs: Mapping[str, Any]) -> _Importance:
    if request.imatrix is None:
        return _Importance()
    if source.gguf and not isinstance(request.imatrix, Path):
        raise Unsupported(
            "hubq computes importance matrices of models that it converts itself, not of a GGUF",
            "make one with llama-imatrix and give it with --imatrix FILE",
        )
    if isinstance(request.imatrix, Path):
        read = module.read_imatrix(request.imatrix)
        return _Importance(read, imatrix_facts(read, None), read.sha256, request.imatrix)
    from hubq import text

    windows = text.windows(source, request.imatrix)
    found = windows.evalset
    versions = {name: metadata.version(name) for name in ("numpy", "torch", "transformers")}
    matrix_key = key({"inputs": inputs, "calibration": asdict(found), "versions": versions, "format": request.levels[0].format})
    if path := request.store.file("imatrices", matrix_key):
        read = module.read_imatrix(path)
        return _Importance(read, imatrix_facts(read, found), matrix_key, path, windows)
    names = [found.dataset, found.config or "", found.split]
    file = f"{model_name(source.repo, False)}-imatrix.gguf"
    expected = Expected(file, (":".join(filter(None, names)),), found.windows, found.length)
    return _Importance(expected, None, matrix_key, None, windows)


def imatrix_facts(imatrix: Any, text: EvalSet | None) -> ImportanceMatrix:
    """What pins an importance matrix that was read, and the text that it was computed from if that is known."""
    names = ("file", "sha256", "datasets", "chunks", "chunk_size")
    return ImportanceMatrix(**{name: getattr(imatrix, name) for name in names}, entries=len(imatrix.entries), text=text)


def _same_disk(hub: Hub, disk: Path) -> bool:
    """Whether what the hub downloads lands on the disk of the store."""
    cache = hub.cache()
    return cache is not None and _existing(cache).stat().st_dev == disk.stat().st_dev


def _item(
    request: Request, module: ModuleType, name: str, found: _Found, laid_out: Any, level: Level, matrix: _Importance
) -> Item:
    weighted = level.id in laid_out.weighted
    facts: dict[str, Any] = {
        "level": level.id,
        "repo": found.source.repo,
        "inputs": found.inputs,
        "custom": request.custom and asdict(request.custom),
    }
    facts |= {"split": request.split, "target": request.target, "imatrix": matrix.key if weighted else None}
    packages = {name: metadata.version(name) for name in (*module.PACKAGES, *module.EXTRAS.get(level.name, ()))}
    facts |= {"format": module.VERSION, "intermediate": module.intermediate(laid_out, level.name), **packages}
    recipe_key = key(facts)
    options = " ".join(filter(None, [request.imatrix_options if weighted else "", request.options, laid_out.options]))
    artifact = kept(request.store, recipe_key, matrix.facts)
    file = module.file_name(name, level)
    return Item(level, file, laid_out.sizes[level.id], recipe_key, options, artifact)


def kept(store: Store, key: str, imatrix: ImportanceMatrix | None, check: bool = False) -> Artifact | None:
    """The store's artifact of a key, unless the importance matrix that it was made with is not the one at hand."""
    artifact = store.artifact(key, check)
    return artifact if artifact and artifact.imatrix in (None, imatrix and imatrix.sha256) else None


def model_name(repo: str, is_gguf: bool) -> str:
    """What a model is called in names of files and repositories."""
    name = repo.rsplit("/", 1)[-1]
    if is_gguf:
        name = re.sub("(?i)[-_.]gguf$", "", name)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def repository(model: str, is_gguf: bool, format: str) -> str:
    """What the repository of a model's files of a format is called where nobody says."""
    return _repository(model_name(model, is_gguf), open_format(format))


def _repository(name: str, module: ModuleType) -> str:
    return f"{name}-{module.WORDS.title}"


def _target_name(request: Request, repo: str) -> str:
    if request.to is None and not connect(writing=True).owner():
        return f"(your account)/{repo}"
    hub, repo = destination(request.to, repo)
    return hub.address(repo)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
