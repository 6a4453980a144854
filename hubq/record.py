"""Release <-> release.json: the facts of a card, machine-readable, which later runs read back and use again."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, replace
from typing import Any

from hubq.errors import BadSource, HubqError, Unsupported
from hubq.hub.files import check_path
from hubq.nouns import FLOOR, REFERENCE, WITHIN, Artifact, EvalSet, ImportanceMatrix, Measurement, Release, RepoFile, Snapshot
from hubq.parse import read_json
from hubq.source import HUB_ID

SCHEMA = 2
SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = re.compile(r"\[\s+-?\d[\d\s,.e+-]*\]")  # a list of numbers as json.dumps lays it out


def plain(value: object) -> str:
    """One line of text without control, format and bidirectional characters."""
    kept = (" " if unicodedata.category(ch)[0] == "C" else ch for ch in str(value))
    return " ".join("".join(kept).split())


def place(text: str, keep_id: bool = False) -> str:
    """The last part of an id or a path; with `keep_id` a Hub id stays whole. So no folder of a machine is ever printed."""
    return text if keep_id and HUB_ID.fullmatch(text) else plain(re.split(r"[/\\]", text.rstrip("/\\"))[-1])


def facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """What hubq keeps of a source's front matter, as short plain strings: whether it chats, its task, languages and licence."""
    kept: dict[str, Any] = {"chat_template": bool(card.get("chat_template"))}
    for name in ("pipeline_tag", "license", "license_name", "license_link", "pooling", "ollama"):
        if isinstance(card.get(name), str) and plain(card[name]):
            kept[name] = plain(card[name])[:200]
    language = card.get("language")
    language = [language] if isinstance(language, str) else language if isinstance(language, list | tuple) else []
    return kept | {"language": [plain(code)[:20] for code in language if isinstance(code, str)]}


def record(release: Release) -> dict[str, Any]:
    """The facts of a card as plain data in a fixed order; paths are names of files, numbers that are not finite are None."""
    return {
        "schema": SCHEMA,
        "source": {"repo": place(release.source, keep_id=True), "commit": release.commit, "newer": release.newer},
        "architecture": release.architecture,
        "weights": release.weights,
        "target": place(release.target, keep_id=True),
        "card": facts(release.card),
        "files": [_file_record(file) for file in release.artifacts],
        "evalset": _evalset_record(release.evalset) if release.evalset else None,
        "measurements": [_measurement_record(row) for row in release.measurements],
        "versions": dict(sorted(release.versions.items())),
        "machine": release.machine,
        "command": release.command,
        "imatrices": [_matrix_record(matrix) for matrix in release.imatrices],
        "checks": [asdict(check) for check in release.checks],
        "left_out": list(release.left_out),
        "origin": asdict(release.origin) if release.origin else None,
        "speeds": [asdict(row) for row in release.speeds],
        "inputs": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in release.inputs],
        "environment": release.environment,
        "within": release.within,
        "cache": asdict(release.cache) if release.cache else None,
    }


def commands(release: Release) -> list[str]:
    """The commands that make the release again: one for all levels that were made with the same options."""
    if "{build}" not in release.command:
        return [release.command] if release.command else []
    groups: dict[str, list[str]] = {}
    for file in release.artifacts:
        groups.setdefault(file.options, []).append(file.level.partition(":")[2].lower())
    builds = [f"--levels {','.join(levels)} {options}".strip() for options, levels in groups.items()]
    return [release.command.replace("{build}", build) for build in builds]


def _matrix_record(matrix: ImportanceMatrix) -> dict[str, Any]:
    text = _evalset_record(matrix.text) if matrix.text else None
    return asdict(matrix) | {"file": place(matrix.file), "datasets": list(matrix.datasets), "text": text}


def _evalset_record(text: EvalSet) -> dict[str, Any]:
    return asdict(text) | {"dataset": place(text.dataset, keep_id=True)}


def _file_record(file: Artifact) -> dict[str, Any]:
    kept = {"path": file.path.name, "level": file.level, "size": file.size, "sha256": file.sha256, "weights": file.weights}
    return kept | {
        "bits_per_weight": file.bits_per_weight,
        "types": dict(sorted(file.types.items())),
        "recipe": dict(sorted(file.recipe.items())),
        "groups": dict(file.groups),
        "fallbacks": file.fallbacks,
        "key": file.key,
        "imatrix": file.imatrix,
        "options": file.options,
        "folder": file.folder,
        "parts": [{"path": part.path, "size": part.size, "sha256": part.sha256} for part in file.parts],
    }


def _measurement_record(row: Measurement) -> dict[str, Any]:
    def finite(number: float) -> float | None:
        return number if math.isfinite(number) else None

    metrics = {
        name: {"value": finite(estimate.value), "stderr": finite(estimate.stderr), "count": estimate.count}
        for name, estimate in sorted(row.values.items())
    }
    per_window = {name: list(means) for name, means in sorted(row.per_window.items())}
    return {"level": row.level, "engine": row.engine, "metrics": metrics, "per_window": per_window}


def release_json(release: Release) -> bytes:
    """`record` as ASCII JSON, lists of numbers on a line; every float reads back as the same float."""
    text = json.dumps(record(release), indent=2, allow_nan=False)
    return (_NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n").encode()


def read_record(data: bytes) -> Release:
    """The Release that a release.json tells; paths are bare names. Raises BadSource or Unsupported, naming the problem."""
    from pydantic import TypeAdapter

    hint = "restore release.json from the repository's history, or run `hubq publish` again"
    try:
        raw = read_json(data)
        if not isinstance(raw, dict):
            raise TypeError("it is not a JSON object")
        if raw.get("schema") != SCHEMA:
            raise Unsupported(
                f"release.json has schema {raw.get('schema')!r}, and this hubq reads {SCHEMA}",
                hint="pip install --upgrade hubq",
            )
        release = TypeAdapter(Release).validate_json(json.dumps(_nouns(raw)), strict=True)
        _check(release)
    except KeyError as error:
        raise BadSource(f"release.json has no {error.args[0]!r}", hint) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadSource(f"release.json is damaged: {_first_problem(error)}", hint) from error
    return release


def merge(release: Release, before: Release, listed: Snapshot) -> Release:
    """A release with what the one before it tells of the same source: files that are still there, and numbers of the same text.

    `listed` is the repository's state. Where this run measured on another text, the older numbers are left out; the files stay.
    """
    if (before.source, before.commit) != (release.source, release.commit):
        return release
    hashes = {file.path: file.sha256 for file in listed.files}
    made = {file.level: file.sha256 for file in release.artifacts}
    kept = [
        file
        for file in before.artifacts
        if file.level not in made and all(hashes.get(part.path) == part.sha256 for part in file.files)
    ]
    made |= {file.level: file.sha256 for file in kept}
    same = {file.level for file in before.artifacts if made.get(file.level) == file.sha256} | {REFERENCE, FLOOR}
    measured = {(row.level, row.engine) for row in release.measurements}
    checked = {check.level for check in release.checks}
    past = before.measurements if release.evalset in (None, before.evalset) else ()
    rows = [row for row in past if row.level in same and (row.level, row.engine) not in measured]
    timed = {(row.level, row.engine) for row in release.speeds}
    here = {row.machine for row in release.speeds}  # speeds of two machines do not compare
    speeds = [
        row for row in before.speeds if here <= {row.machine} and row.level in same and (row.level, row.engine) not in timed
    ]
    matrices = {matrix.sha256: matrix for matrix in (*before.imatrices, *release.imatrices)}
    used = {file.imatrix for file in (*release.artifacts, *kept)}
    return replace(
        release,
        artifacts=(*release.artifacts, *kept),
        imatrices=tuple(matrix for sha256, matrix in matrices.items() if sha256 in used),
        checks=(*release.checks, *(check for check in before.checks if check.level in same - checked)),
        measurements=(*(_longest(row, past) for row in release.measurements), *rows),
        speeds=(*release.speeds, *speeds),
        evalset=before.evalset if rows else release.evalset,
        versions={**before.versions, **release.versions} if rows else release.versions,
        machine=release.machine or before.machine if rows else release.machine,
        newer=release.newer or before.newer,
        command=before.command if rows and release.evalset is None else release.command,
    )


def _longest(row: Measurement, past: Iterable[Measurement]) -> Measurement:
    """A measurement, or that of the same reference from before, where that is of more windows."""
    same = [old for old in past if row.level == REFERENCE and (old.level, old.engine) == (row.level, row.engine)]
    return max([row, *same], key=lambda one: one.tokens)


def _nouns(raw: dict[str, Any]) -> dict[str, Any]:
    """The shape of release.json -> the shape of Release."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    measurements = [
        {
            "level": row["level"],
            "engine": row["engine"],
            "values": {
                name: {"value": number(metric["value"]), "stderr": number(metric["stderr"]), "count": metric["count"]}
                for name, metric in row["metrics"].items()
            },
            "per_window": row.get("per_window", {}),
        }
        for row in raw["measurements"]
    ]
    same = ("architecture", "weights", "target", "card", "evalset", "versions", "machine", "command", "imatrices")
    return {name: raw[name] for name in same} | {
        "source": raw["source"]["repo"],
        "commit": raw["source"]["commit"],
        "newer": raw["source"].get("newer", ""),
        "artifacts": raw["files"],
        "measurements": measurements,
        "checks": raw.get("checks", []),  # older records have none
        "left_out": raw.get("left_out", []),
        "origin": raw.get("origin"),
        "speeds": [{"machine": raw["machine"], **row} for row in raw.get("speeds", [])],
        "inputs": raw.get("inputs", []),
        "environment": raw.get("environment", ""),
        "within": raw.get("within", WITHIN),
        "cache": raw.get("cache"),
    }


def _check(release: Release) -> None:
    for file in release.artifacts:
        for part in (RepoFile(str(file.path), file.size, file.sha256), *file.parts):
            if not (_is_name(part.path) and (not file.folder or _is_name(file.folder))):
                raise ValueError(f"{part.path!r} is not the name of a file")
            if part.size < 0 or file.weights <= 0 or not SHA256.fullmatch(part.sha256 or ""):
                raise ValueError(f"{part.path} has an impossible size, number of weights or SHA-256")
        if not all(_is_name(name) and size >= 0 for name, size in file.groups.items()):
            raise ValueError(f"{file.path} has impossible groups of tensors")
    for row in release.measurements:
        if any(len(means) < 2 or not all(map(math.isfinite, means)) for means in row.per_window.values()):
            raise ValueError(f"{row.level} has means of windows that are no numbers, or fewer than two")
    if release.cache and min(astuple(release.cache)) < 0:
        raise ValueError("cache has a number below zero")
    for matrix in release.imatrices:
        if not (_is_name(matrix.file) and SHA256.fullmatch(matrix.sha256)):
            raise ValueError(f"{matrix.file!r} is not the name of a file with a SHA-256")


def _is_name(text: str) -> bool:
    try:
        check_path(text)
    except HubqError:
        return False
    return "/" not in text and plain(text) == text


def _first_problem(error: Exception) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return plain(error)
    first = error.errors()[0]
    return plain(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
