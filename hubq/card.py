"""Release -> README.md, release.json and plots. Pure: all of it comes from the Release, and equal releases give equal bytes.

Upstream text (names, licence, dataset, machine) reaches the page only through `md`, the front matter only through the YAML
dumper, and a link only as an id that the Hub's rules allow. The template is ours; upstream text is never one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from hubq import compare
from hubq.formats import Words, open_format
from hubq.memory import memory_rows
from hubq.metrics import METRICS, headline
from hubq.nouns import FLOOR, REFERENCE, Artifact, Check, Estimate, EvalSet, ImportanceMatrix, Measurement, Release, Spread
from hubq.record import commands, facts, place, plain, read_record, record, release_json
from hubq.source import HUB_ID
from hubq.tasks import task_of

__all__ = ["figure", "files", "front_matter", "read_record", "readme", "record", "release_json"]

_INDEXED = (
    ("ppl", "perplexity", "Perplexity"),
    ("kld", "kl_divergence", "KL divergence, nats per token,"),
    ("top1", "top1_agreement", "Share of same top tokens"),
)
# metric -> how the numbers that it is of came about
NOTES = {
    "cosine": "A text's vector is pooled from the last hidden states as the model's repository says, by their mean where that "
    "says nothing, and brought to length 1.",
    "ranking": "A pair is the first words of a text and the rest of it or, every other time, of the next text.",
}
MOST_DIGITS = 8
ACROSS = 4  # numbers in a table, so that it needs no scrolling
_DATASET_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_SLUG = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_HTTPS = re.compile(r"https://[\w.-]+(/[\w./%?=&#~+:@,-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def files(release: Release, usage: str) -> dict[str, bytes]:
    """The files of a card by name: README.md, release.json and, where there is something to draw, plots.

    `usage` is the "Run it" Markdown of the function of that name; it goes in as it is.
    """
    from hubq.plot import plots

    made = {"README.md": readme(release, usage).encode(), "release.json": release_json(release)}
    return made | {plot.file: plot.draw(release) for plot in plots(release)}


# --- README.md ---


def readme(release: Release, usage: str) -> str:
    """The card as Markdown with YAML front matter; `usage` as in `files`."""
    from hubq.plot import plots

    engines = compare.engines(release)
    shown = {name for row in release.measurements for name in row.values}
    text = _template().render(
        front=front_matter(release),
        release=release,
        model=place(release.source),
        usage=usage.strip(),
        pick=_pick(release, engines[0] if engines else ""),
        engines=[(engine, _numbers(release, engine)) for engine in engines],
        references=_references(release),
        recommended=_recommended(release),
        alike=[(md(_level(one)), md(_level(other))) for one, other in compare.alike(release)],
        floor=any(row.level == FLOOR for row in release.measurements),
        counts=_counts(release, engines[0] if engines else ""),
        directions=_directions(release),
        task_notes=" ".join(note for name, note in NOTES.items() if name in shown),
        metrics=[metric for name, metric in METRICS.items() if name in shown],
        plots=[f"![{plot.alt}]({plot.file})" for plot in plots(release)],
        source=_link(place(release.source, keep_id=True), _url(release.source)),
        commit=_link(release.commit[:12], _source_url(release, "tree")),
        newer=_link(release.newer[:12], _source_url(replace(release, commit=release.newer), "tree")) if release.newer else "",
        dataset=_dataset_link(release.evalset),
        calibration={matrix.sha256: _dataset_link(matrix.text) for matrix in release.imatrices},
        commands="\n".join(commands(release)),
        weighted={matrix.sha256: _weighted(release, matrix) for matrix in release.imatrices},
        licence=facts(release.card).get("license", ""),
        checks=_checks(release),
        speeds=_speeds(release),
        copied=bool(release.origin and not release.origin.converter),
        reference=_reference(release),
        words=_words(release),
        fits=_fits(release),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown, not HTML: escaping is `md`'s work, and the template applies it to every upstream value.
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"md": md, "fence": fence}
    return env.get_template("card.md.j2")


_ESCAPES = str.maketrans({ch: "\\" + ch for ch in "\\`*_{}[]|#~!$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def md(value: object) -> str:
    """Text as inert Markdown, for the middle of a line or a table's cell: no markup, no HTML, no autolink."""
    return re.sub(r"(?i):(?=//)|\bwww(?=\.)|@", "\\g<0>\N{WORD JOINER}", plain(value)).translate(_ESCAPES)


def fence(text: str, language: str = "sh") -> str:
    """A block of code that its own content cannot close."""
    lines = [plain(line) for line in text.splitlines()]
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return "\n".join([ticks + language, *lines, ticks])


def figure(value: float, stderr: float) -> str:
    """`value ± stderr` with two significant digits of the error, `1.0532 ± 0.0036`; without one five digits, not finite n/a.

    An error below the MOST_DIGITS-th digit behind the point is that of rounding, and not shown.
    """
    if not math.isfinite(value):
        return "n/a"
    if not (math.isfinite(stderr) and stderr > 0):
        return f"{value:.5g}"
    digits = 1 - math.floor(math.log10(float(f"{stderr:.1e}")))
    if digits > MOST_DIGITS:
        return f"{value:.{MOST_DIGITS}g}"
    shown = (f"{round(number, digits) + 0.0:.{max(digits, 0)}f}" for number in (value, stderr))
    return " ± ".join(shown)


def file_size(size: int) -> str:
    """Bytes in decimal units with three digits, as the Hub shows them."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * divisor:
            number = size / divisor
            return f"{number:.{max(0, 2 - math.floor(math.log10(number * 1.0005)))}f} {unit}"
    return f"{size} B"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table of cells that are Markdown already; all columns but the first lean right."""
    head = list(header)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def usage(release: Release) -> str:
    """The "Run it" part of a card, by its files' format, of the file that is recommended."""
    found = compare.recommended(release)
    return _module(release).usage(release, found.file.level if found and found.file else "")


def _module(release: Release) -> ModuleType:
    """The format of a release's files; hubq publishes one in a repository."""
    return open_format(release.artifacts[0].level.partition(":")[0] if release.artifacts else "gguf")


def _fits(release: Release) -> str:
    """The longest context for which each file fits into so much memory; nothing where that is not known."""
    rows = memory_rows(release)
    return table(rows[0], [[md(cell) for cell in row] for row in rows[1:]]) if rows else ""


def _pick(release: Release, engine: str) -> str:
    """The first table: the reference, then every file with its size and its headline numbers in one engine."""
    rows = {row.level: row for row in release.measurements if row.engine == engine}
    metrics = headline(rows.values())
    fallbacks = ["Fallbacks"] if any(file.fallbacks for file in release.artifacts) else []
    header = ["File", "Size", "Bits per weight", *(_heading(metric.name) for metric in metrics), *fallbacks]
    exact = [f"{metric.factor * (metric.exact or 0):g}" for metric in metrics]
    body = [["source", "–", "–", *exact, *("–" for _ in fallbacks)]] if metrics else []
    for row in (row for row in release.measurements if row.level == FLOOR):
        cells = [md(_source(row)), "–", "–", *(_cell(row, metric.name) for metric in metrics)]
        body.append([*cells, *("–" for _ in fallbacks)])
    chosen = compare.recommended(release)
    for file in release.artifacts:
        link = _file_link(release, file)
        link = f"**{link}**" if chosen and chosen.file == file else link
        cells = [link, _unbroken(file_size(file.size)), f"{file.bits_per_weight:.2f}"]
        cells += [_cell(rows.get(file.level), metric.name) for metric in metrics]
        cells += [_unbroken(f"{file.fallbacks} of {sum(file.types.values())}") for _ in fallbacks]
        body.append(cells)
    return table(header, body)


def _directions(release: Release) -> str:
    """Which way is good, of the numbers in the first table."""
    metrics = headline(release.measurements)
    return "; ".join(
        f"{', '.join(metric.title for metric in metrics if metric.better == way)}: {way} is better"
        for way in dict.fromkeys(metric.better for metric in metrics)
    )


def _numbers(release: Release, engine: str) -> str:
    """All numbers of one engine, levels down, metrics across."""
    rows = [row for row in release.measurements if row.engine == engine]
    order = [REFERENCE, *(file.level for file in release.artifacts)]
    rows.sort(key=lambda row: order.index(row.level) if row.level in order else len(order))
    return _table_of([(_level(row.level), row) for row in rows])


def _table_of(rows: list[tuple[str, Measurement]]) -> str:
    """All numbers of some measurements by their titles, in tables of ACROSS numbers."""
    metrics = [name for name in METRICS if any(name in row.values for _, row in rows)]
    parts = [metrics[start : start + ACROSS] for start in range(0, len(metrics), ACROSS)]
    return "\n\n".join(_part(part, rows) for part in parts)


def _part(metrics: list[str], rows: list[tuple[str, Measurement]]) -> str:
    """The numbers of some metrics, of those measurements that have any of them."""
    found = [(title, row) for title, row in rows if row.values.keys() & set(metrics)]
    body = [[md(title), *(_cell(row, name) for name in metrics)] for title, row in found]
    return table(["Level", *map(_heading, metrics)], body)


def _references(release: Release) -> str:
    """The numbers of the source itself, in the engines that ran no files."""
    engines = compare.engines(release)
    rows = [row for row in release.measurements if not row.of_file and row.values and row.engine not in engines]
    return _table_of([(_source(row), row) for row in rows]) if rows else ""


def _source(row: Measurement) -> str:
    """What a measurement of the source is called: that in 16 bits by its dtype, which stands behind its engine's name."""
    return f"source in {row.engine.rpartition(' ')[2]}" if row.level == FLOOR else f"source in float32 ({row.engine})"


_WITHIN = {
    "ln_ppl_ratio": "perplexity is at most {:.3g} % above the reference's",
    "cosine": "mean cosine is at least {:.4g}",
    "label_kld": "mean label KLD is at most {:.3g} nats",
}


def _recommended(release: Release) -> str:
    """What the numbers say of the smallest file within the loss that is allowed."""
    found = compare.recommended(release)
    if found is None:
        return ""
    shown = {"ln_ppl_ratio": 100 * math.expm1(found.limit)}.get(found.metric, found.limit)
    what, files = _WITHIN[found.metric].format(shown), f"{found.files} files" if found.files > 1 else "file"
    if found.file is None:
        return f"Of no file it is shown that its {what}; that it is not may also be for want of windows."
    every = f"any of the {files}" if found.files > 1 else "it"
    return (
        f"**Recommended: {md(_level(found.file.level))}**, the smallest of which it is shown that its {what}: "
        f"the chance that {every} is called so wrongly is at most 5 %{' (Holm)' * (found.files > 1)}."
    )


def _counts(release: Release, engine: str) -> str:
    """How many windows each file took, where it was measured until it was known precisely enough."""
    text = release.evalset
    if not text or not text.precision:
        return ""
    rows = [row for row in release.measurements if row.engine == engine and row.of_file]
    return ", ".join(f"{md(_level(row.level))} {row.tokens // text.scored:,}" for row in rows)


def _speeds(release: Release) -> str:
    """How fast the files run, each in the engine that users run; nothing where that was not measured."""
    header = ["File", "Prompt, tokens/s", "Generation, tokens/s", "CPU, ms/token", "Energy, J/token", "Loading, s", "Memory"]
    left_out = {"Generation, tokens/s", "CPU, ms/token"} if not any(row.generation for row in release.speeds) else set()
    left_out |= {"Energy, J/token"} if not any(row.energy for row in release.speeds) else set()
    rows = []
    for row in release.speeds:
        cpu = f"{1000 * row.cpu:.3g}" if row.cpu is not None else "–"
        energy = f"{row.energy:.3g}" if row.energy is not None else "–"
        cells = [md(_level(row.level)), _rates(row.prompt), _rates(row.generation), cpu, energy]
        rows.append([*cells, f"{row.load:.2g}", _unbroken(file_size(row.memory))])
    kept = [place for place, title in enumerate(header) if title not in left_out]
    header, *rows = ([line[place] for place in kept] for line in [header, *rows])
    return table(header, rows) if rows else ""


def _rates(spread: Spread | None) -> str:
    """A median with the lowest and highest behind it."""
    if spread is None:
        return "–"
    numbers = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in (spread.median, spread.low, spread.high))
    return _unbroken("{} ({}–{})".format(*numbers)) if spread.count > 1 else next(numbers)


def _checks(release: Release) -> list[tuple[Check, str]]:
    """What the parity gate found, each with the levels that it found it of."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in release.checks:
        groups.setdefault((check.name, check.outcome, check.detail), []).append(check)
    names = list(dict.fromkeys(check.name for check in release.checks))
    found = sorted(groups.values(), key=lambda group: names.index(group[0].name))
    return [(group[0], ", ".join(md(_level(check.level)) for check in group)) for group in found]


def _weighted(release: Release, matrix: ImportanceMatrix) -> str:
    """The levels whose errors a matrix weighed."""
    return ", ".join(md(_level(file.level)) for file in release.artifacts if file.imatrix == matrix.sha256)


def _heading(name: str) -> str:
    """A metric's title; fractions are shown in %."""
    metric = METRICS[name]
    return f"{metric.title}, %" if metric.unit == "fraction" else metric.title


def _cell(row: Measurement | None, name: str) -> str:
    if row is None or name not in row.values:
        return "–"
    factor = METRICS[name].factor
    return _unbroken(figure(factor * row.values[name].value, factor * row.values[name].stderr))


def _unbroken(cell: str) -> str:
    return cell.replace(" ", "\N{NO-BREAK SPACE}")


def _words(release: Release) -> Words:
    """What the card says of its format, which is that of its files."""
    words: Words = _module(release).WORDS
    return words


def _reference(release: Release) -> str:
    """What files were measured against."""
    engines = {row.engine for row in release.measurements if row.level == REFERENCE}
    if "llama.cpp" in engines:
        return "the source's GGUF, which llama.cpp ran"
    return "the source weights, which transformers ran in float32"


def _level(level: str) -> str:
    return level.rpartition(":")[2]


# --- links ---


def _url(repo: str, *path: str, kind: str = "") -> str:
    """A page of a Hub repository, or nothing where the id is not one that the Hub would allow."""
    allowed = _DATASET_ID if kind else HUB_ID
    if not allowed.fullmatch(repo):
        return ""
    return "/".join([f"https://huggingface.co/{kind}{repo}", *(quote(part, safe="") for part in path)])


def _source_url(release: Release, kind: str, *path: str) -> str:
    """A page of the source at its commit; nothing where the commit is a folder's, which the Hub does not know."""
    return _url(release.source, kind, release.commit, *path) if _COMMIT.fullmatch(release.commit) else ""


def _link(text: str, url: str) -> str:
    return f"[{md(text)}]({url})" if url else md(text)


def _file_link(release: Release, file: Artifact) -> str:
    place = file.files[0].path
    return _link(_level(file.level), _url(release.target, "blob", "main", *place.split("/")) or quote(f"./{place}"))


def _on_hub(text: EvalSet | None) -> bool:
    """Whether the text is a Hub dataset: then its revision is a commit, and a file's is a SHA-256."""
    return bool(text and _DATASET_ID.fullmatch(text.dataset) and _COMMIT.fullmatch(text.revision))


def _dataset_link(text: EvalSet | None) -> str:
    if not text:
        return ""
    url = _url(text.dataset, "tree", text.revision, kind="datasets/") if _on_hub(text) else ""
    return _link(place(text.dataset, keep_id=True), url)


# --- front matter ---


def front_matter(release: Release) -> str:
    """The Hub's metadata of the card as YAML; values that the Hub would refuse are left out (hub-docs, modelcard.md)."""
    import yaml

    known, words = facts(release.card), _words(release)
    slugs = {name: known[name] for name in ("pipeline_tag", "license", "license_name") if _SLUG.fullmatch(known.get(name, ""))}
    data = {
        "base_model": release.source if _url(release.source) else None,
        "base_model_relation": "quantized" if _url(release.source) else None,
        "library_name": words.library,
        "pipeline_tag": slugs.get("pipeline_tag", task_of({"architectures": [release.architecture]})),
        "license": slugs.get("license"),
        "license_name": slugs.get("license_name"),
        "license_link": _license_link(release, known.get("license_link", "")),
        "language": [code for code in known["language"] if _SLUG.fullmatch(code)],
        "datasets": [release.evalset.dataset] if release.evalset and _on_hub(release.evalset) else [],
        "tags": [*words.tags, *["conversational"] * known["chat_template"]],
        "quantized_by": "hubq",
        "model-index": _model_index(release),
    }
    return yaml.safe_dump({key: value for key, value in data.items() if value}, sort_keys=False, allow_unicode=True, width=1000)


def _license_link(release: Release, link: str) -> str:
    """An https link as it is, a file of the source as a link into its commit, all else dropped."""
    if _HTTPS.fullmatch(link):
        return link
    return _source_url(release, "blob", link) if _SLUG.fullmatch(link) else ""


def _model_index(release: Release) -> list[dict[str, Any]]:
    """PPL, KLD and top-1 of every file in the first engine, rounded as in the tables."""
    engines, text = compare.engines(release), release.evalset
    if not engines or not text:
        return []
    metrics = [
        {"type": kind, "value": _rounded(row.values[name]), "name": f"{title} of {_level(row.level)} in {row.engine}"}
        for row in release.measurements
        if row.engine == engines[0] and row.of_file
        for name, kind, title in _INDEXED
        if name in row.values and math.isfinite(row.values[name].value)
    ]
    name = place(text.dataset, keep_id=True)
    dataset = {"name": name, "type": name, "config": text.config, "split": text.split, "revision": text.revision}
    dataset = {key: plain(value) for key, value in dataset.items() if value}
    result: dict[str, Any] = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
    return [{"name": f"{place(release.source)} {_words(release).title}", "results": [result]}] if metrics else []


def _rounded(estimate: Estimate) -> float:
    return float(figure(estimate.value, estimate.stderr).partition(" ")[0])
