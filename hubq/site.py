"""A folder of cards -> a static site: pages of plain HTML, their plots, and cards.json with the same data.

`site` is pure: equal releases give equal bytes. Upstream text reaches a page only as the plain text of the catalog and through
Jinja's escaping; the pages run no script and load no style but their own (Content-Security-Policy, in base.html.j2).
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hubq import card, compare
from hubq.cards import Card, read_cards
from hubq.catalog import catalog, engine, estimates, others, rows, text_of, unit
from hubq.disk import sync
from hubq.errors import Usage
from hubq.metrics import METRICS, Metric, headline
from hubq.nouns import Measurement, Release
from hubq.record import plain

INDEX = "cards.json"
OWN = ("site.css", "site.js", "icon.svg")
TEMPLATES = Path(__file__).parent / "templates"


def site(cards: Sequence[Card]) -> dict[str, bytes]:
    """Every file of the site by its path."""
    known = catalog(cards)
    files = {name: (TEMPLATES / name).read_bytes() for name in OWN}
    files[INDEX] = (json.dumps(known, indent=2, allow_nan=False) + "\n").encode()
    files["index.html"] = _page_of("index.html.j2", root="", **_index(known))
    releases = {one.folder: one.release for one in cards}
    for model in known["models"]:
        release, folder = releases[model["card"]], f"cards/{model['card']}"
        made = card.files(release, card.usage(release))
        files |= {f"{folder}/{name}": content for name, content in made.items()}
        files[f"{folder}/index.html"] = _page_of("model.html.j2", root="../../", **_model_page(release, model, made))
    return files


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.globals |= {"size": card.file_size, "units": {"lower": "lower", "higher": "higher", "zero": "closer to zero"}}
    return env


def _page_of(template: str, **values: Any) -> bytes:
    return (_templates().get_template(template).render(**values) + "\n").encode()


def _index(known: Mapping[str, Any]) -> dict[str, Any]:
    """What the table of all files shows."""
    rows = [_row(model, file, known["measures"]) for model in known["models"] for file in model["files"]]
    levels = {row["format"]: sorted({one["level"] for one in rows if one["format"] == row["format"]}) for row in rows}
    return {
        "rows": rows,
        "measures": known["measures"],
        "families": sorted({row["family"] for row in rows}, key=str.casefold),
        "levels": dict(sorted(levels.items())),
        "models": len({row["model"] for row in rows}),
    }


def _row(model: Mapping[str, Any], file: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A file as the index shows it; `rank` is smaller where the loss is, and compares within a measure only."""
    shown = {"model": model["model"], "family": model["family"], "page": model["page"], **file}
    shown |= {
        "format": file["level"].partition(":")[0],
        "name": file["level"].partition(":")[2],
        "group": len(measures),
        "rank": "",
        "label": None,
    }
    if file["measure"] is not None:
        measure = measures[file["measure"]]
        value = file["loss"]["value"]
        metric = METRICS[measure["metric"]]
        rank = metric.factor * {"lower": value, "higher": -value, "zero": abs(value)}[metric.better]
        shown |= {"loss": _figure(file["loss"], metric), "rank": rank, "group": file["measure"]}
        shown |= {"label": measure["label"], "unit": unit(metric)}
    return shown


def _model_page(release: Release, model: Mapping[str, Any], made: Mapping[str, bytes]) -> dict[str, Any]:
    """What the page of a model shows."""
    shown = engine(release)
    metrics = headline(rows(release, shown))
    ways = dict.fromkeys(metric.better for metric in metrics)
    return {
        "model": model,
        "engine": plain(shown),
        "metrics": [{"title": metric.title, "unit": unit(metric)} for metric in metrics],
        "ways": {way: [metric.title for metric in metrics if metric.better == way] for way in ways},
        "text": text_of(release.evalset) if release.evalset else "",
        "references": list(_references(release, metrics)),
        "alike": [[plain(level.partition(":")[2]) for level in pair] for pair in compare.alike(release)],
        "files": list(_picks(release, model, metrics)),
        "pace": _pace(release),
        "plots": list(_plots(made)),
        "machine": plain(release.machine),
        "sum": sum(file.size for file in release.artifacts),
    }


def _picks(release: Release, model: Mapping[str, Any], metrics: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    """The rows of files."""
    measured = {row.level: row for row in rows(release, engine(release))}
    timed = {row.level: row for row in release.speeds}
    for file, artifact in zip(model["files"], release.artifacts, strict=True):
        speed = timed.get(artifact.level)
        pace = f"{(speed.generation or speed.prompt).median:,.3g}" if speed else "–"
        cells = _cells(measured.get(artifact.level), metrics)
        yield {**file, "name": file["level"].partition(":")[2], "cells": cells, "pace": pace}


def _references(release: Release, metrics: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    """The source against itself, exact by definition, and what else was measured that is no file of the release."""
    if metrics:
        yield {"name": "source", "note": "exact", "cells": [f"{metric.factor * (metric.exact or 0):g}" for metric in metrics]}
    for row in others(release):
        if any(metric.name in row.values for metric in metrics):
            yield {"name": plain(row.level), "note": plain(row.engine), "cells": _cells(row, metrics)}


def _pace(release: Release) -> str:
    """The heading of the column of speeds; nothing where none was measured."""
    if not release.speeds:
        return ""
    return "Tokens generated" if any(row.generation for row in release.speeds) else "Tokens read"


def _cells(row: Measurement | None, metrics: Sequence[Metric]) -> list[str]:
    values = estimates(row) if row else {}
    return [_figure(values[metric.name], metric) if metric.name in values else "–" for metric in metrics]


def _figure(found: Mapping[str, Any], metric: Metric) -> str:
    """`value ± standard error`, fractions in %."""
    value, stderr = (math.nan if found[name] is None else metric.factor * found[name] for name in ("value", "stderr"))
    return card.figure(value, stderr)


def _plots(made: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
    """The pictures in the order of the card, with its words for those who cannot see them."""
    told = dict(re.findall(r"!\[([^\]]*)\]\(([\w./-]+\.svg)\)", made["README.md"].decode()))
    words = {name.removeprefix("./"): text for text, name in told.items()}
    names = [name for name in made if name.endswith(".svg")]
    for name in sorted(names, key=lambda name: list(words).index(name) if name in words else len(words)):
        picture = made[name].decode()
        title = re.search(r"<title>(.*?)</title>", picture, re.DOTALL)
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)
        width, height = (str(round(float(side))) for side in box.groups()) if box else ("", "")
        text = html.unescape(words.get(name) or (title[1] if title else name))
        yield {"name": name, "alt": plain(text), "width": width, "height": height}


def build(cards: Path, out: Path) -> dict[str, Any]:
    """Make the site of a folder of cards in the folder `out`, at once; what cards.json holds.

    Raises Usage where `out` holds something that is no site.
    """
    found = read_cards(cards)
    files, out = site(found), out.resolve()
    if out.exists():
        _only_a_site(out, {name.partition("/")[0] for name in files})
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for left in (new, old):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    for name, content in files.items():
        path = new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if out.exists():
        os.rename(out, old)
    os.rename(new, out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
    return catalog(found)


def _only_a_site(out: Path, names: set[str]) -> None:
    """Raises Usage where a folder holds what no site does: all that is in it goes when a new site takes its place."""
    if not out.is_dir():
        raise Usage(f"{out} is no folder", "name another one with --out")
    if strange := sorted(path.name for path in out.iterdir() if path.name not in names):
        raise Usage(f"{out} holds {strange[0]}, which is no part of a site", "name an empty or a new folder with --out")


@contextmanager
def serving(cards: Path, port: int) -> Iterator[ThreadingHTTPServer]:
    """A server of the site of a folder of cards on 127.0.0.1 alone, from a temporary folder; port 0 takes a free one.

    Raises Usage where the port is taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        build(cards, Path(folder) / "site")
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(Path(folder) / "site")))
        except OSError as error:
            raise Usage(
                f"port {port} cannot be used: {error.strerror}", "choose another one with --port, or 0 for any"
            ) from None
        with server:
            yield server


class _Handler(SimpleHTTPRequestHandler):
    """Answers in silence; a card is text that a browser shows."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".md": "text/plain; charset=utf-8"}  # noqa: RUF012

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: stderr is for what a person has to know."""
