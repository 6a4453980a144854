"""What cards.json tells of a folder of cards: every model, every file, and how far each file is from its model.

Pure: equal releases give equal facts. All text is plain: one line, without control and bidirectional characters; a link is
there only for an id that the Hub allows. cards/README.md describes the keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from hubq import compare
from hubq.cards import Card, formats
from hubq.metrics import METRICS, Metric
from hubq.nouns import Artifact, Estimate, EvalSet, Measurement, Release
from hubq.record import facts, place, plain
from hubq.source import HUB_ID
from hubq.tasks import task_of

SCHEMA = 1  # raised when a key changes its meaning or goes


class Measure(NamedTuple):
    """What a loss is a number of; two losses compare only where all of this is the same."""

    metric: str
    engine: str
    text: str
    text_sha256: str


def catalog(cards: Sequence[Card]) -> dict[str, Any]:
    """The content of cards.json, as plain data in a fixed order."""
    cards = sorted(cards, key=lambda one: (_model(one.release).casefold(), one.folder))
    measures = sorted({measure for one in cards if (measure := _measure(one.release))})
    return {
        "schema": SCHEMA,
        "measures": [_measure_facts(measure, measures) for measure in measures],
        "models": [_card_facts(one, measures) for one in cards],
    }


def _card_facts(one: Card, measures: Sequence[Measure]) -> dict[str, Any]:
    release, known, chosen = one.release, facts(one.release.card), compare.recommended(one.release)
    return {
        "card": one.folder,
        "page": f"cards/{quote(one.folder)}/",
        "model": _model(release),
        "format": min(formats(release), default=None),
        "family": plain(release.architecture),
        "task": known.get("pipeline_tag") or task_of({"architectures": [release.architecture]}),
        "licence": known.get("license"),
        "weights": release.weights,
        "source": {"repo": place(release.source, keep_id=True), "commit": plain(release.commit), "url": _page(release.source)},
        "target": {"repo": place(release.target, keep_id=True), "url": _page(release.target)},
        "text": _text_facts(release.evalset),
        "references": [_reference_facts(row) for row in others(release) if row.values],
        "files": [_file_facts(release, file, measures, chosen.file if chosen else None) for file in release.artifacts],
    }


def _reference_facts(row: Measurement) -> dict[str, Any]:
    return {"level": plain(row.level), "engine": plain(row.engine), "metrics": estimates(row)}


def _file_facts(release: Release, file: Artifact, measures: Sequence[Measure], recommended: Artifact | None) -> dict[str, Any]:
    measure = _measure(release)
    engines = {row.engine: row for row in release.measurements if row.level == file.level}
    row = engines.get(engine(release))
    loss = row.values.get(measure.metric) if measure and row else None
    if loss is None or not math.isfinite(loss.value):
        measure = loss = None
    path = file.files[0].path
    return {
        "level": plain(file.level),
        "path": plain(path),
        "size": file.size,
        "bits_per_weight": file.bits_per_weight,
        "sha256": file.sha256,
        "url": _page(release.target, "blob", "main", *path.split("/")),
        "measure": measures.index(measure) if measure else None,
        "loss": _estimate(loss) if loss else None,
        "recommended": file == recommended,
        "metrics": {plain(name): estimates(row) for name, row in sorted(engines.items())},
    }


def _measure(release: Release) -> Measure | None:
    """What the losses of a release are numbers of, in the engine that its users run, if that measured it."""
    shown = engine(release)
    metric = next((name for name in compare.STRAY for row in rows(release, shown) if name in row.values), None)
    if metric is None or release.evalset is None:
        return None
    return Measure(metric, plain(shown), text_of(release.evalset), release.evalset.text_sha256)


def engine(release: Release) -> str:
    """The engine whose numbers are shown: of those that measured files the one that users run; empty if none did."""
    return next(iter(compare.engines(release)), "")


def rows(release: Release, engine: str) -> list[Measurement]:
    """What an engine measured of the release's files."""
    levels = {file.level for file in release.artifacts}
    return [row for row in release.measurements if row.engine == engine and row.level in levels]


def others(release: Release) -> list[Measurement]:
    """What was measured that is no file of the release, as the source by itself."""
    levels = {file.level for file in release.artifacts}
    return [row for row in release.measurements if row.level not in levels]


def _measure_facts(measure: Measure, measures: Sequence[Measure]) -> dict[str, Any]:
    """A measure, with a label that no other one has."""
    metric = METRICS[measure.metric]
    return {
        "label": _label(measure, measures),
        "metric": metric.name,
        "title": metric.title,
        "unit": unit(metric),
        "better": metric.better,
        "engine": measure.engine,
        "text": measure.text,
        "text_sha256": plain(measure.text_sha256),
    }


def _label(measure: Measure, measures: Sequence[Measure]) -> str:
    """The fewest words on the text that tell a measure from the others."""

    def short(one: Measure) -> str:
        return place(one.text.split(" ")[0])

    def whole(one: Measure) -> str:
        return one.text

    def hashed(one: Measure) -> str:
        return f"{one.text} {plain(one.text_sha256)[:8]}"

    for words in (short, whole, hashed):
        labels = [(one.metric, one.engine, words(one)) for one in measures]
        if labels.count((measure.metric, measure.engine, words(measure))) == 1:
            break
    return f"{METRICS[measure.metric].title} · {measure.engine} · {words(measure)}"


def _text_facts(text: EvalSet | None) -> dict[str, Any] | None:
    if text is None:
        return None
    named = {name: plain(value) if value is not None else None for name, value in _named(text).items()}
    return named | {
        "windows": text.windows,
        "available": text.available,
        "length": text.length,
        "unit": text.unit,
        "precision": text.precision,
    }


def _named(text: EvalSet) -> dict[str, str | None]:
    known = {"config": text.config, "split": text.split, "revision": text.revision, "sha256": text.text_sha256}
    return {"dataset": place(text.dataset, keep_id=True), **known}


def text_of(text: EvalSet) -> str:
    """The text in a few words."""
    split = "" if text.split == "all" else text.split  # of a file there is but one
    return " ".join(plain(part) for part in (place(text.dataset, keep_id=True), text.config, split) if part)


def estimates(row: Measurement) -> dict[str, Any]:
    """The numbers of a measurement by metric, in the order of cards; null where they are not finite."""
    return {name: _estimate(row.values[name]) for name in METRICS if name in row.values}


def _estimate(found: Estimate) -> dict[str, Any]:
    value, stderr = (number if math.isfinite(number) else None for number in (found.value, found.stderr))
    return {"value": value, "stderr": stderr, "count": found.count}


def _model(release: Release) -> str:
    return place(release.source)


def _page(repo: str, *path: str) -> str | None:
    """A page of a Hub repository; nothing where the id is not one that the Hub allows."""
    if not HUB_ID.fullmatch(repo):
        return None
    return "/".join([f"https://huggingface.co/{repo}", *(quote(part, safe="") for part in path)])


def unit(metric: Metric) -> str:
    """The unit that numbers are shown in."""
    return "%" if metric.unit == "fraction" else metric.unit
