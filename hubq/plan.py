"""What publishing will do, exactly: the pinned commit, sizes, keys, and what is there already. Touches nothing."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hubq import checkpoint
from hubq.errors import BadSource, HubError, Unsupported, Usage
from hubq.formats import Expected, Options, open_format
from hubq.hub import Hub, connect
from hubq.nouns import Artifact, EvalSet, ImportanceMatrix, Level, Snapshot, Source
from hubq.source import read_card, read_config, used
from hubq.store import Store, key

if TYPE_CHECKING:
    from hubq.formats.gguf.recipe import Custom
    from hubq.text import TextSpec, Windows


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    `model` is a Hub id with an optional @revision, or a folder; `hub` a folder to look for ids in, instead of the Hub; `to` a
    Hub id or a folder that acts as a hub (None: the user's account on the Hub); without `text` nothing is measured. `imatrix`
    is the file of an importance matrix, or the text to compute one from. `custom` and `split` are those of formats.Options;
    with `stream` the levels are built, measured, pushed and deleted one after another. `command` makes the release again, and
    `options` and `imatrix_options` are what the command line said of recipe and matrix.
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
    """What publishing will do with the model at `hub`.

    In bytes: `download` is not on this machine yet, `write` is to be built, `need` the most that all of it takes of the disk
    at a time, `free` on that disk. `imatrix` pins the importance matrix in `imatrix_file`: both are None where there is none,
    or it is still to be computed from the text `calibration` and kept under `imatrix_key`.
    """

    hub: Hub
    snapshot: Snapshot
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    weights: int
    shards: tuple[str, ...]
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

    @property
    def name(self) -> str:
        """The model's name without its owner, fit for a file name."""
        return _name(self.snapshot.repo)


def locate(model: str, hub: Path | None) -> tuple[Hub, str, str | None]:
    """(hub, repository, revision) of a model as a person writes it: `org/model`, `org/model@revision`, or a folder."""
    folder = Path(model).expanduser()
    if hub is None and (folder.is_dir() or model.startswith((".", "/", "~"))):
        if not folder.is_dir():
            raise Usage(f"there is no folder {model}", "check the path, or write a Hub id as org/model")
        folder = folder.resolve()
        return connect(folder.parent), folder.name, None
    repo, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) and hub is None:
        raise Usage(f"{model!r} is neither a Hub id nor a folder", "write org/model, org/model@revision or ./folder")
    return connect(hub), repo, revision or None


def destination(to: str | None, name: str) -> tuple[Hub, str]:
    """(hub, repository) that a release goes to: `to`, or the user's account; a folder acts as a hub and holds {name}-GGUF."""
    if to is None:
        hub = connect()
        if not hub.owner():
            raise HubError(
                "there is no account to publish to: nobody is logged in", "run `hf auth login`, or say where with --to"
            )
        return hub, f"{hub.owner()}/{name}-GGUF"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", to, re.ASCII) and not Path(to).is_dir():
        return connect(), to
    if to.startswith((".", "/", "~")) or Path(to).is_dir():
        return connect(Path(to).expanduser().resolve()), f"{name}-GGUF"
    raise Usage(f"--to {to}: neither a Hub id nor a folder", "write owner/name, or ./folder for a folder that acts as a hub")


def plan(request: Request) -> Plan:
    """What `publish` would do, exactly, touching nothing. Raises all that is known to fail before the weights are fetched."""
    with tempfile.TemporaryDirectory() as aside:
        return plan_in(Path(aside), request)


def plan_in(aside: Path, request: Request) -> Plan:
    """`plan`, with the model's small files left in the empty folder `aside`."""
    hub, repo, revision = locate(request.model, request.hub)
    snapshot = hub.snapshot(repo, revision)
    if snapshot.file("config.json") is None:
        raise BadSource(f"{repo} has no config.json", "hubq reads models in transformers' format; check the id or the folder")

    def fetch(path: str) -> bytes:
        if not (aside / path).is_file():
            data = hub.read(snapshot, path)
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_bytes(data)
        return (aside / path).read_bytes()

    config, module = read_config(fetch("config.json")), open_format(request.levels[0].format)
    module.check_kind(config)
    shards = checkpoint.shards([file.path for file in snapshot.files], fetch)
    small = used(snapshot)
    for path in small:
        fetch(path)
    index = fetch(checkpoint.INDEX) if snapshot.file(checkpoint.INDEX) else None
    stored = checkpoint.merge((_header(hub, snapshot, path) for path in shards), index)
    wanted = {*small, *shards}
    inputs = {file.path: file.sha256 or file.blob for file in snapshot.files if file.path in wanted}
    matrix = _importance(request, module, Source(repo, snapshot.commit, aside, config, {}, ()), inputs)
    options = Options(matrix.options, request.custom, request.split)
    blueprint = module.plan(repo, aside, config, stored, request.levels, options)
    if not blueprint.predicts and (request.text is not None or matrix.calibration is not None):
        raise Unsupported(
            f"{checkpoint.few([str(config['architectures'][0])])} is an encoder: it predicts no tokens that could be measured",
            "publish without measurements: --no-eval, and with --imatrix none or a file",
        )
    readme = aside / "README.md"
    front = dict(read_card(readme.read_bytes())) if readme.is_file() else {}
    front["chat_template"] = blueprint.has_chat_template
    items = tuple(_item(request, module, repo, inputs, blueprint, level, matrix) for level in request.levels)
    sizes = [item.size for item in items if item.artifact is None]
    download = sum(snapshot.size(path) for path in inputs if not hub.cached(snapshot, path))
    disk = _existing(request.store.root)
    return Plan(
        hub=hub,
        snapshot=snapshot,
        config=config,
        card=front,
        weights=blueprint.weights,
        shards=shards,
        items=items,
        target=_target_name(request, _name(repo)),
        download=download,
        write=sum(sizes),
        need=(max(sizes, default=0) if request.stream else sum(sizes)) + (download if _same_disk(hub, disk) else 0),
        free=shutil.disk_usage(disk).free,
        format=module,
        blueprint=blueprint,
        imatrix=matrix.facts,
        imatrix_file=matrix.file,
        imatrix_key=matrix.key,
        calibration=matrix.calibration,
    )


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
    if isinstance(request.imatrix, Path):
        read = module.read_imatrix(request.imatrix)
        return _Importance(read, imatrix_facts(read, None), read.sha256, request.imatrix)
    from hubq import text

    windows = text.windows(source, request.imatrix)
    found = windows.evalset
    versions = {name: metadata.version(name) for name in ("numpy", "torch", "transformers")}
    matrix_key = key({"inputs": inputs, "calibration": asdict(found), "versions": versions})
    if path := request.store.imatrix(matrix_key):
        read = module.read_imatrix(path)
        return _Importance(read, imatrix_facts(read, found), matrix_key, path, windows)
    names = [found.dataset, found.config or "", found.split]
    expected = Expected(f"{_name(source.repo)}-imatrix.gguf", (":".join(filter(None, names)),), found.windows, found.length)
    return _Importance(expected, None, matrix_key, None, windows)


def imatrix_facts(imatrix: Any, text: EvalSet | None) -> ImportanceMatrix:
    """What pins an importance matrix that was read, and the text that it was computed from if that is known."""
    names = ("file", "sha256", "datasets", "chunks", "chunk_size")
    return ImportanceMatrix(**{name: getattr(imatrix, name) for name in names}, entries=len(imatrix.entries), text=text)


def _same_disk(hub: Hub, disk: Path) -> bool:
    """Whether what the hub downloads lands on the disk of the store."""
    cache = hub.cache()
    return cache is not None and _existing(cache).stat().st_dev == disk.stat().st_dev


def _header(hub: Hub, snapshot: Snapshot, path: str) -> dict[str, checkpoint.StoredTensor]:
    return checkpoint.read_header(path, snapshot.size(path), partial(hub.read, snapshot))


def _item(
    request: Request,
    module: ModuleType,
    repo: str,
    inputs: Mapping[str, Any],
    blueprint: Any,
    level: Level,
    matrix: _Importance,
) -> Item:
    weighted = level.id in blueprint.weighted
    facts: dict[str, Any] = {
        "level": level.id,
        "repo": repo,
        "inputs": inputs,
        "custom": request.custom and asdict(request.custom),
    }
    facts |= {"split": request.split, "imatrix": matrix.key if weighted else None}
    facts |= {"format": module.VERSION, "gguf": metadata.version("gguf")}
    recipe_key = key(facts)
    options = " ".join(filter(None, [request.imatrix_options if weighted else "", request.options]))
    artifact = kept(request.store, recipe_key, matrix.facts)
    file = module.file_name(_name(repo), level)
    return Item(level, file, blueprint.sizes[level.id], recipe_key, options, artifact)


def kept(store: Store, key: str, imatrix: ImportanceMatrix | None, check: bool = False) -> Artifact | None:
    """The store's artifact of a key, unless the importance matrix that it was made with is not the one at hand."""
    artifact = store.artifact(key, check)
    return artifact if artifact and artifact.imatrix in (None, imatrix and imatrix.sha256) else None


def _name(repo: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", repo.rsplit("/", 1)[-1]).strip("-.") or "model"


def _target_name(request: Request, name: str) -> str:
    if request.to is None and not connect().owner():
        return f"(your account)/{name}-GGUF"
    hub, repo = destination(request.to, name)
    return hub.address(repo)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
