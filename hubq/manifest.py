"""hubq.toml: one model's release as a person writes it down, pinned, for anybody and anything to run.

What the command line says becomes the same Manifest, so that both mean the same. Paths are taken from the manifest's folder.
"""

from __future__ import annotations

import difflib
import json
import math
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubq.errors import Usage
from hubq.formats import FORMATS, parse_levels
from hubq.formats.gguf.split import parse_size
from hubq.metrics import METRICS
from hubq.nouns import Level
from hubq.plan import Request, is_repository
from hubq.record import plain
from hubq.store import Store
from hubq.text import TextSpec

if TYPE_CHECKING:
    from hubq.formats.gguf.recipe import Custom

NAME = "hubq.toml"
SCHEMA = "hubq.schema.json"
WITHIN = "2%"
METRIC = {"kl": "kld"}  # other names of metrics in [gates]
STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """The model: a Hub id, a folder in transformers' format or a GGUF, REPO:FILE for one of several.

    `revision` is the commit that is published, `follow` the branch or tag that `hubq status` compares it with.
    """

    __pydantic_config__ = STRICT
    model: str
    revision: str | None = None
    follow: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A text: a Hub id with its config, revision and split, or a .txt, .jsonl or .parquet file; and how many `windows` of 512
    tokens of it, or "all"."""

    __pydantic_config__ = STRICT
    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "test"
    windows: int | Literal["all"] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationTable(TextTable):
    """What the files are measured on, and how; without this table nothing is measured.

    The text is in the column `field`; `seed` draws the windows, or the texts of models that embed or classify them. `precision`
    and `within` are shares, as "0.5%".
    """

    __pydantic_config__ = STRICT
    field: str = "text"
    seed: int = 0
    precision: str | None = None
    floor: bool = True
    within: str = WITHIN
    speed: bool = True


@dataclass(frozen=True, kw_only=True)
class ImatrixTable:
    """The importance matrix: a `file`, or the `calibration` text that one is computed from, by the same field and seed as the
    evaluation."""

    __pydantic_config__ = STRICT
    file: str | None = None
    calibration: TextTable | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeTable:
    """What changes the files besides their levels; as `hubq publish` and llama-quantize take it."""

    __pydantic_config__ = STRICT
    tensor_type: list[str] = field(default_factory=list)
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    split_max_size: str | None = None
    target: str | None = None
    exporter: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A release: `variants` maps formats to their levels, `targets` formats to repositories (or folders that act as hubs; a
    format without one goes to the user's account), `gates` levels to metrics to the worst value that is pushed."""

    __pydantic_config__ = STRICT
    source: SourceTable
    variants: dict[str, list[str]]
    targets: dict[str, str] = field(default_factory=dict)
    imatrix: ImatrixTable | None = None
    recipe: RecipeTable = field(default_factory=RecipeTable)
    evaluation: EvaluationTable | None = None
    gates: dict[str, dict[str, float]] = field(default_factory=dict)


# --- files ---


def find(place: str | Path) -> Path | None:
    """The manifest that a person names by its folder or its file, or None where that is none."""
    path = Path(place)
    if path.is_dir() and (path / NAME).is_file():
        return path / NAME
    return path if path.suffix == ".toml" else None


def read(path: Path) -> Manifest:
    """The manifest of a file. Raises Usage, naming what is wrong and where."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}", "write one with `hubq init MODEL --levels LEVELS`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"{path} is no TOML: {plain(error)}", "see https://toml.io, or write it anew with `hubq init`") from None
    try:
        return check(_adapter().validate_python(raw))
    except ValueError as error:
        raise Usage(
            f"{path}: {_problem(error)}", f"the keys are those of {SCHEMA}; `hubq init --help` says what they mean"
        ) from None
    except Usage as error:
        raise Usage(f"{path}: {error.message}", error.hint) from None


def schema() -> bytes:
    """The JSON Schema of manifests (json-schema.org, draft 2020-12), for editors."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_adapter().json_schema(), "title": NAME}
    return (json.dumps(found, indent=2) + "\n").encode()


def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _problem(error: ValueError) -> str:
    """The first thing that is wrong, with the nearest key where there is no such key."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return plain(error)
    first = min(error.errors(), key=lambda one: one["type"] != "unexpected_keyword_argument")  # a typo, before what it left out
    *where, last = [str(part) for part in first["loc"]]
    place = plain(".".join((*where, last)))
    if first["type"] != "unexpected_keyword_argument":
        return f"{place}: {plain(first['msg'])}"
    table = Manifest
    for name in where:
        table = TABLES.get(name, table)
    near = difflib.get_close_matches(last, [one.name for one in fields(table)], 1)
    return f"there is no key {place}" + (f"; did you mean {near[0]}?" if near else "")


TABLES: dict[str, Any] = {
    "source": SourceTable,
    "imatrix": ImatrixTable,
    "calibration": TextTable,
    "recipe": RecipeTable,
    "evaluation": EvaluationTable,
}


def check(manifest: Manifest) -> Manifest:
    """The manifest with levels and metrics named as they are everywhere. Raises Usage for what cannot be meant."""
    levels = chosen(manifest)
    for name in (*manifest.variants, *manifest.targets):
        if name not in FORMATS:
            raise Usage(f"there is no format {plain(name)!r}", f"it is one of: {', '.join(FORMATS)}")
    if strange := manifest.targets.keys() - manifest.variants.keys():
        raise Usage(f"[targets] {min(strange)}: no level of that format is published", "take it out, or add it to [variants]")
    if manifest.gates and manifest.evaluation is None:
        raise Usage("[gates] limit what was measured, and there is no [evaluation]", "add that table, or take the gates out")
    if (imatrix := manifest.imatrix) and (imatrix.file is None) == (imatrix.calibration is None):
        raise Usage("[imatrix] needs either a file or a [imatrix.calibration] text", "give one of them")
    gates = {_gated(name, levels): _limits(name, limits) for name, limits in manifest.gates.items()}
    variants = {name: [level.name for level in levels if level.format == name] for name in FORMATS if name in manifest.variants}
    return replace(manifest, variants=variants, gates=gates)


def chosen(manifest: Manifest) -> tuple[Level, ...]:
    """All levels of a manifest, in the order of cards."""
    named = [f"{name}:{level}" for name, levels in manifest.variants.items() for level in levels]
    return parse_levels(",".join(named), matrix=manifest.imatrix is not None)


def _gated(name: str, levels: Iterable[Level]) -> str:
    for level in levels:
        if name.lower() in (level.id.lower(), level.name.lower()):
            return level.id
    names = ", ".join(level.id for level in levels)
    raise Usage(f"[gates] {plain(name)!r} is none of the levels that are published", f"they are {names}")


def _limits(level: str, limits: Mapping[str, float]) -> dict[str, float]:
    paired = [name for name, metric in METRICS.items() if metric.paired]
    for name in limits:
        if METRIC.get(name, name) not in paired:
            near = difflib.get_close_matches(name, [*METRIC, *paired], 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise Usage(
                f"[gates] {plain(level)} has a limit on {plain(name)!r}, which is no metric{meant}",
                f"choose one of: {', '.join(paired)}",
            )
    return {METRIC.get(name, name): limit for name, limit in limits.items()}


# --- what it asks for ---


def requests(manifest: Manifest, store: Store, to: str | None = None, **run: Any) -> list[Request]:
    """What a manifest whose paths hold from here asks for, one Request for each format; `to` goes before its targets, and `run`
    are fields of Request that say how it is run. Raises Usage for what does not go together."""
    evaluation, recipe = manifest.evaluation, manifest.recipe
    custom, split = _custom(recipe), recipe.split_max_size
    levels = chosen(manifest)
    formats = [name for name in FORMATS if name in manifest.variants]
    if to and len(formats) > 1 and is_repository(to):
        raise Usage(f"--to {to}: one repository, for levels of two formats", "name a folder, or leave --to out")
    if recipe.target and "onnx" not in formats:
        raise Usage(f"--target {recipe.target}: GGUF files are the same for all hardware", "leave it out, or add an ONNX level")
    request = Request(
        model=_pinned(manifest.source.model, manifest.source.revision),
        levels=levels,
        store=store,
        text=_evaluated(evaluation),
        imatrix=_imatrix(manifest),
        custom=custom,
        split=parse_size(split) if split else None,
        command=_command(evaluation),
        imatrix_options=_imatrix_options(manifest.imatrix),
        speed=evaluation is not None and evaluation.speed,
        floor=evaluation is not None and evaluation.floor,
        within=share("--within", evaluation.within if evaluation else WITHIN),
        exporter=recipe.exporter,
        **run,
    )
    return [
        replace(
            request,
            levels=tuple(level for level in levels if level.format == name),
            to=to or manifest.targets.get(name),
            target=recipe.target if name == "onnx" else None,
            options=_options(custom, split, recipe.target if name == "onnx" else None),
            gates={level: limits for level, limits in manifest.gates.items() if level.startswith(f"{name}:")},
        )
        for name in formats
    ]


def resolved(manifest: Manifest, base: Path) -> Manifest:
    """The manifest with the paths in it, which hold from the folder `base`, made absolute."""
    return with_paths(manifest, lambda text: _absolute(text, base))


def with_paths(manifest: Manifest, change: Callable[[str], str]) -> Manifest:
    """The manifest with `change` made to all that may be a path."""

    def text(table: Any) -> Any:
        return table and replace(table, dataset=change(table.dataset))

    model, colon, file = manifest.source.model.partition(":")
    imatrix = manifest.imatrix
    return replace(
        manifest,
        source=replace(manifest.source, model=change(model) + colon + file),
        targets={name: change(target) for name, target in manifest.targets.items()},
        imatrix=imatrix and ImatrixTable(file=imatrix.file and change(imatrix.file), calibration=text(imatrix.calibration)),
        evaluation=text(manifest.evaluation),
    )


def _absolute(text: str, base: Path) -> str:
    """A path in absolute form; a Hub id as it is."""
    path = base / Path(text).expanduser()
    return str(path.resolve()) if text.startswith((".", "/", "~")) or path.exists() else text


def _pinned(name: str, revision: str | None) -> str:
    """`name` at a revision; of REPO:FILE that of the repository."""
    repo, colon, file = name.partition(":")
    return f"{repo}@{revision}{colon}{file}" if revision else name


def _spec(table: TextTable, field: str, seed: int) -> TextSpec:
    spec = TextSpec(_pinned(table.dataset, table.revision), table.config, table.split, field, seed=seed)
    if isinstance(table.windows, int) and table.windows < 2:
        raise Usage(f"--windows {table.windows}: not a number of at least 2, nor all", "32 are plenty for a first look")
    count = None if table.windows == "all" else table.windows
    return spec if table.windows is None else replace(spec, windows=count, texts=count)


def _evaluated(table: EvaluationTable | None) -> TextSpec | None:
    if table is None:
        return None
    spec = _spec(table, table.field, table.seed)
    if table.precision is None:
        return spec
    return replace(
        spec, precision=share("--precision", table.precision), windows=None if table.windows is None else spec.windows
    )


def _imatrix(manifest: Manifest) -> Path | TextSpec | None:
    table, evaluation = manifest.imatrix, manifest.evaluation
    if table is None:
        return None
    if table.calibration:
        return _spec(table.calibration, evaluation.field if evaluation else "text", evaluation.seed if evaluation else 0)
    file = Path(str(table.file))
    if not file.is_file():
        raise Usage(f"--imatrix {file}: there is no such file", "give a file, auto or none")
    return file


def share(option: str, text: str) -> float:
    """A share that is given in percent, as 0.5%. Raises Usage, naming the option."""
    number = text.strip().removesuffix("%")
    try:
        found = float(number) / 100 if text.strip().endswith("%") else math.nan
    except ValueError:
        found = math.nan
    if not 1e-5 <= found <= 1:
        raise Usage(f"{option} {text}: not a share in percent from 0.001% to 100%", f"write it as {option} 0.5%")
    return found


def _custom(recipe: RecipeTable) -> Custom | None:
    """The recipe that the options change, if they do."""
    from hubq.formats.gguf.recipe import Custom, parse_tensor_type, parse_type

    found = Custom(
        tuple(map(parse_tensor_type, recipe.tensor_type)),
        parse_type(recipe.output_tensor_type) if recipe.output_tensor_type else None,
        parse_type(recipe.token_embedding_type) if recipe.token_embedding_type else None,
        recipe.pure,
    )
    return None if found == Custom() else found


# --- how the command line says it, for the card ---


def _options(custom: Custom | None, split: str | None, target: str | None) -> str:
    """What shapes files besides levels and importance matrix."""
    words = [] if split is None else ["--split-max-size", split]
    if custom:
        for pattern, kind in custom.tensor_types:
            words += ["--tensor-type", f"{pattern}={kind}"]
        words += ["--output-tensor-type", custom.output] if custom.output else []
        words += ["--token-embedding-type", custom.embedding] if custom.embedding else []
        words += ["--pure"] if custom.pure else []
    return shlex.join([*words, "--target", target] if target else words)


def _imatrix_options(table: ImatrixTable | None) -> str:
    """Which importance matrix; local files go by their names."""
    if table is None:
        return ""
    if table.calibration is None:
        return shlex.join(["--imatrix", Path(str(table.file)).name])
    text = table.calibration
    name = _written(text) if Path(text.dataset).exists() else f"{_written(text)}:{text.split}"
    return shlex.join(["--imatrix", "auto", "--calibration", name, "--calibration-windows", str(text.windows)])


def _written(table: TextTable) -> str:
    if Path(table.dataset).exists():
        return Path(table.dataset).name
    return ":".join(filter(None, [_pinned(table.dataset, table.revision), table.config]))


def _command(table: EvaluationTable | None) -> str:
    """The command that makes the release again; {model} stands for the pinned source, {build} for levels and their options,
    {windows} for the number of windows or texts where none is given."""
    if table is None:
        return "hubq publish {model} {build} --no-eval"
    words = ["--dataset", _written(table)]
    words += [] if Path(table.dataset).exists() else ["--split", table.split]
    words += ["--text-field", table.field]
    words += ["--precision", table.precision] if table.precision else []
    words += ["--within", table.within] if table.within != WITHIN else []
    windows = "{windows}" if table.windows is None else table.windows
    return f"hubq publish {{model}} {{build}} {shlex.join(words)} --windows {windows} --seed {table.seed}"
