"""What publishing will do, exactly: the pinned commit, sizes, keys, and what is there already. Touches nothing."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hubq import checkpoint
from hubq.errors import BadSource, HubError, Usage
from hubq.formats import open_format
from hubq.hub import Hub, connect
from hubq.nouns import Artifact, Level, Snapshot
from hubq.source import read_card, read_config, used
from hubq.store import Store, key

if TYPE_CHECKING:
    from hubq.text import TextSpec


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for.

    `model` is a Hub id with an optional @revision, or a folder; `hub` a folder to look for ids in, instead of the Hub; `to` a
    Hub id or a folder that acts as a hub (None: the user's account on the Hub); without `text` nothing is measured.
    """

    model: str
    levels: tuple[Level, ...]
    store: Store
    to: str | None = None
    hub: Path | None = None
    text: TextSpec | None = None
    private: bool = False
    command: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One level of a plan: the file's name and exact size, its key, and the finished file if the store has it."""

    level: Level
    file: str
    size: int
    key: str
    artifact: Artifact | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What publishing will do with the model at `hub`.

    In bytes: `download` is not on this machine yet, `write` is to be built, `free` on its disk.
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
    free: int
    format: ModuleType
    blueprint: Any

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

    config = read_config(fetch("config.json"))
    shards = checkpoint.shards([file.path for file in snapshot.files], fetch)
    small = used(snapshot)
    for path in small:
        fetch(path)
    index = fetch(checkpoint.INDEX) if snapshot.file(checkpoint.INDEX) else None
    stored = checkpoint.merge((_header(hub, snapshot, path) for path in shards), index)
    module = open_format(request.levels[0].format)
    blueprint = module.plan(repo, aside, config, stored, request.levels)
    readme = aside / "README.md"
    front = dict(read_card(readme.read_bytes())) if readme.is_file() else {}
    front["chat_template"] = blueprint.has_chat_template
    wanted = {*small, *shards}
    inputs = {file.path: file.sha256 or file.blob for file in snapshot.files if file.path in wanted}
    items = tuple(_item(request, module, repo, inputs, blueprint.sizes, level) for level in request.levels)
    return Plan(
        hub=hub,
        snapshot=snapshot,
        config=config,
        card=front,
        weights=blueprint.weights,
        shards=shards,
        items=items,
        target=_target_name(request, _name(repo)),
        download=sum(snapshot.size(path) for path in inputs if not hub.cached(snapshot, path)),
        write=sum(item.size for item in items if item.artifact is None),
        free=shutil.disk_usage(_existing(request.store.root)).free,
        format=module,
        blueprint=blueprint,
    )


def _header(hub: Hub, snapshot: Snapshot, path: str) -> dict[str, checkpoint.StoredTensor]:
    return checkpoint.read_header(path, snapshot.size(path), partial(hub.read, snapshot))


def _item(
    request: Request, module: ModuleType, repo: str, inputs: Mapping[str, Any], sizes: Mapping[str, int], level: Level
) -> Item:
    made_by = {"format": module.VERSION, "gguf": metadata.version("gguf")}
    recipe_key = key({"level": level.id, "repo": repo, "inputs": inputs, **made_by})
    file = module.file_name(_name(repo), level)
    return Item(level, file, sizes[level.id], recipe_key, request.store.artifact(recipe_key, check=False))


def _name(repo: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", repo.rsplit("/", 1)[-1]).strip("-.") or "model"


def _target_name(request: Request, name: str) -> str:
    if request.to is None and not connect().owner():
        return f"(your account)/{name}-GGUF"
    hub, repo = destination(request.to, name)
    return hub.address(repo)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
