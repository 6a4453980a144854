"""A manifest from what the command line says, pinned to commits, and as the text of hubq.toml."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hubq import disk
from hubq.errors import HubError, Usage
from hubq.formats import FORMATS, parse_levels
from hubq.hub import connect, dataset_commit
from hubq.manifest import (
    NAME,
    SCHEMA,
    EvaluationTable,
    ImatrixTable,
    Manifest,
    RecipeTable,
    SourceTable,
    TextTable,
    check,
    chosen,
    resolved,
    schema,
    with_paths,
)
from hubq.plan import is_repository, locate, model_name, repository
from hubq.text import is_local

COMMIT = re.compile("[0-9a-f]{40}")
HEADS = {
    "source": "revision is the commit that is published, follow what `hubq status` compares it with",
    "variants": "see `hubq levels`",
    "targets": "the repositories that the levels of each format go to",
    "evaluation": "what the files are measured on",
}
GATES = """
# Limits beyond which nothing is pushed, by level and metric:
# [gates]
# "{level}" = {{ kl = 0.10 }}
"""


def from_options(options: Mapping[str, Any]) -> Manifest:
    """The manifest that the options of `hubq publish` stand for, by their names. Raises Usage for what they cannot mean."""
    weighed = options["imatrix"] != "none"
    levels = parse_levels(options["levels"] or "", matrix=weighed)
    dataset, config = _dataset(options["dataset"])
    evaluation = EvaluationTable(
        dataset=dataset,
        config=config,
        split=options["split"],
        windows=_count("--windows", options["windows"]),
        field=options["text_field"],
        seed=options["seed"],
        precision=options["precision"],
        floor=options["floor"],
        within=options["within"],
        speed=options["speed"],
    )
    recipe = RecipeTable(
        tensor_type=[*(options["tensor_type"] or ()), *_tensor_types(options["tensor_type_file"])],
        output_tensor_type=options["output_tensor_type"],
        token_embedding_type=options["token_embedding_type"],
        pure=options["pure"],
        split_max_size=options["split_max_size"],
        target=options["target"],
        exporter=options["exporter"],
    )
    return check(
        Manifest(
            source=SourceTable(model=options["model"]),
            variants={name: [level.name for level in levels if level.format == name] for name in _formats(levels)},
            imatrix=_imatrix(options) if weighed else None,
            recipe=recipe,
            evaluation=None if options["no_eval"] else evaluation,
        )
    )


def _formats(levels: Any) -> list[str]:
    return [name for name in FORMATS if any(level.format == name for level in levels)]


def _dataset(text: str) -> tuple[str, str | None]:
    """(dataset, config) of ID:config, or of a file."""
    name, _, config = (text, "", "") if Path(text).exists() else text.partition(":")
    return name, config or None


def _count(option: str, text: str | None) -> Any:
    """A number of windows, "all", or None."""
    if text is not None and text != "all" and not (text.isdecimal() and int(text) >= 2):
        raise Usage(f"{option} {text}: not a number of at least 2, nor all", "32 are plenty for a first look")
    return int(text) if text and text != "all" else text


def _tensor_types(file: Path | None) -> list[str]:
    from hubq.formats.gguf.recipe import read_tensor_types

    return [f"{pattern}={kind}" for pattern, kind in read_tensor_types(file)] if file else []


def _imatrix(options: Mapping[str, Any]) -> ImatrixTable:
    if options["imatrix"] != "auto":
        return ImatrixTable(file=options["imatrix"])
    text = options["calibration"]
    place, _, split = (text, "", "") if Path(text).exists() else text.rpartition(":")
    dataset, config = _dataset(place or text)
    windows = _count("--calibration-windows", options["calibration_windows"])
    return ImatrixTable(calibration=TextTable(dataset=dataset, config=config, split=split or "train", windows=windows))


def pinned(manifest: Manifest, hub: Path | None = None) -> Manifest:
    """The manifest with the model and the texts at the commits that they are at now. Raises HubError where the Hub cannot be
    asked."""
    model, colon, file = manifest.source.model.partition(":")
    found, repo, revision, _ = locate(manifest.source.model, hub)
    source, imatrix = manifest.source, manifest.imatrix
    if is_repository(model.partition("@")[0]) and hub is None:
        commit = found.snapshot(repo, source.revision or revision).commit
        follow = revision if revision and not COMMIT.fullmatch(revision) else "main"
        source = SourceTable(model=repo + colon + file, revision=commit, follow=source.follow or follow)
    if imatrix and imatrix.calibration:
        imatrix = ImatrixTable(calibration=_pinned_text(imatrix.calibration))
    return replace(manifest, source=source, imatrix=imatrix, evaluation=_pinned_text(manifest.evaluation))


def targeted(manifest: Manifest, to: str | None) -> Manifest:
    """The manifest with its targets: `to`, or repositories of the account that is logged in. Raises HubError without one."""
    model, _, file = manifest.source.model.partition(":")
    formats = _formats(chosen(manifest))
    targets = {one: _target(to, repository(model.partition("@")[0], bool(file), one), len(formats)) for one in formats}
    return replace(manifest, targets=targets)


def _pinned_text(table: Any) -> Any:
    if table is None or table.revision or is_local(table.dataset):
        return table
    name, _, revision = table.dataset.partition("@")
    return replace(table, dataset=name, revision=dataset_commit(name, revision or None))


def _target(to: str | None, name: str, count: int) -> str:
    if to and is_repository(to) and count > 1:
        raise Usage(f"--to {to}: one repository, for levels of two formats", "write the file without it and edit [targets]")
    if to:
        return to
    owner = connect(writing=True).owner()
    if not owner:
        raise HubError("whose repositories these will be is not known: nobody is logged in", "say where: --to owner/name")
    return f"{owner}/{name}"


def write(manifest: Manifest, cards: Path, force: bool = False) -> Path:
    """Write hubq.toml into a folder of the model's name in `cards`, and the schema for editors beside; the file's place.

    Raises Usage where there is one already, unless `force`.
    """
    name = model_name(manifest.source.model.partition(":")[0].partition("@")[0], False)
    path = cards / name / NAME
    if path.exists() and not force:
        raise Usage(f"{path} exists", "edit it, or write it anew with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = written(_from(manifest, path.parent), f"{cards.name}/{name}")
    disk.write(cards / SCHEMA, schema())
    disk.write(path, text.encode())
    return path


def _from(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with its paths as they are seen from `folder`."""
    return with_paths(
        resolved(manifest, Path()),
        lambda text: Path(os.path.relpath(text, folder.resolve())).as_posix() if Path(text).is_absolute() else text,
    )


def written(manifest: Manifest, place: str) -> str:
    """The text of hubq.toml; `place` is what `hubq publish` is given for it."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment(f":schema ../{SCHEMA}").indent(0))
    document.add(tomlkit.comment(f"`hubq publish {place}` makes this release."))
    for name, table in asdict(manifest).items():
        if not table or table == asdict(RecipeTable()):
            continue
        document.add(tomlkit.nl())
        made = tomlkit.table()
        for key, value in table.items():
            if isinstance(value, dict):
                made.add(key, {inner: found for inner, found in value.items() if found is not None})
            elif value not in (None, [], False) or key in ("floor", "speed"):
                made.add(key, value)
        if name in HEADS:
            made.comment(HEADS[name])
        document.add(name, made)
    return tomlkit.dumps(document) + ("" if manifest.gates else GATES.format(level=chosen(manifest)[-1].id))
