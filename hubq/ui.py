"""Events and results -> a person's terminal, plain lines, or JSON. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hubq.errors import HubqError
from hubq.nouns import FLOOR

if TYPE_CHECKING:
    from hubq.metrics import Metric
    from hubq.nouns import Artifact, Check, Estimate, Measurement, Release, Speed
    from hubq.plan import Plan
    from hubq.release import Event, Result
    from hubq.sealed import Environment, State

SCHEMA = 1
Cells = tuple[list[str], list[list[str]]]  # columns and rows of a table
PACE = "tokens/s"
TELLING = ("kld", "label_kld", "cosine", "ranking", "ppl")  # metrics by how much they tell in a line


def size(count: float) -> str:
    """Bytes for people, in decimal units as on the Hub."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def make_console(stderr: bool) -> Console:
    """Where to print: text is never markup, and colours are for terminals only."""
    plain = bool(os.environ.get("CI") or os.environ.get("HUBQ_NO_PROGRESS"))
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(
        file=stream, markup=False, emoji=False, highlight=False, width=width, force_terminal=False if plain else None
    )


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines; all columns but the first are for numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


class Screen:
    """What `publish` shows as it works: a live table on a terminal, a line per finished step elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.console = make_console(stderr=True)
        self.quiet = quiet
        self.live = Live(console=self.console, refresh_per_second=8) if self.console.is_terminal and not quiet else None
        self.states: dict[str, str] = {}
        self.sizes: dict[str, str] = {}
        self.found: dict[str, str] = {}
        self.step = ""

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update("", refresh=True)
            self.live.stop()

    def tell(self, event: Event) -> None:
        """Take note of an event."""
        if self.quiet:
            return
        if event.step == "plan":
            self._begin(event.result)
        elif event.step == "moved":
            self.console.print(f"warning: {event.label}")
        elif event.step == "log":
            self.console.print(event.label)
        elif self.live:
            self._note(event)
            self.live.update(self._render())
        elif line := _line(event):
            self.console.print(line)

    def moved(self, path: str, done: int, total: int) -> None:
        """Show how far a file has come."""
        if not self.quiet and done == total:
            self.console.print(f"read      {path} ({size(total)})")

    def scored(self, done: int, total: int, ppl: float) -> None:
        """Show how far a text has been scored, and its perplexity so far."""
        self.say(f"scored    {done} of {total} chunks: PPL {ppl:.4f}")

    def say(self, line: str) -> None:
        """Show a line of progress."""
        if not self.quiet:
            self.console.print(line)

    def _begin(self, plan: Plan) -> None:
        what = f"{plan.architecture} · {plan.weights / 1e6:,.1f} M weights"
        self.console.print(f"{plan.snapshot.repo} @ {plan.snapshot.commit[:12]} · {what}")
        for line in _notes(plan):
            self.console.print(line)
        self.sizes = {item.level.id: size(item.size) for item in plan.items}
        self.states = {level: "waiting" for level in self.sizes}

    def _note(self, event: Event) -> None:
        portion = f"{100 * event.done / event.total:3.0f} %" if event.total else ""
        level, _, engine = event.label.partition(" ")
        if event.step in ("export", "step"):
            self.step = event.label
            return
        if event.step in ("pull", "convert", "calibrate", "push"):
            self.step = f"{event.step.removesuffix('e')}ing {event.label} {portion}"
            return
        self.step = ""
        if level not in self.states:
            self.states = {level: "", **self.states}
        if event.step == "check":
            self.states[level] = f"checking {portion}" if engine else "checked"
        elif event.result is None:
            doing = {"build": "building", "time": "timing"}.get(event.step, f"measuring with {engine}")
            self.states[level] = f"{doing} {portion}"
        elif event.step == "build":
            self.states[level] = "built"
        elif event.step == "time":
            self.states[level] = "done"
        else:
            self.states[level] = "measured"
            found = f"{_loss(event.result)} ({engine})"
            self.found[level] = "\n".join(filter(None, [self.found.get(level, ""), found]))

    def _render(self) -> Table:
        rows = [[level, self.sizes.get(level, ""), state, self.found.get(level, "")] for level, state in self.states.items()]
        table = make_table(["variant", "size", "state", "loss"], rows)
        table.columns[2].justify = table.columns[3].justify = "left"
        table.columns[2].min_width = 32  # so that the table stands still
        table.caption, table.caption_justify = self.step, "left"
        return table


def _notes(plan: Plan) -> Iterator[str]:
    """What people should know of the source and of what will be done."""
    yield from plan.blueprint.notes
    if plan.blueprint.left_out:
        names = ", ".join(plan.blueprint.left_out)
        yield f"not converted: {names}; the files hold the rest of the model"
    if plan.origin and plan.origin.converter:
        yield f"converted by llama.cpp to {plan.origin.file}"
    if plan.origin and plan.origin.type == "Q8_0":
        yield f"warning: {plan.origin.file} has 8 bits per weight: what it lost the files lose too, and no number shows it"


def _line(event: Event) -> str:
    """A finished step in a line; nothing for one that goes on."""
    if event.step == "pull" and event.done == event.total and event.total:
        return f"pulled    {event.label} ({size(event.total)})"
    if event.step == "convert" and event.result is not None:
        return f"converted {event.label}"
    if event.step == "export":
        return f"exporting {event.label}"
    if event.step == "calibrate" and event.done == event.total:
        return f"weighed   {event.label} ({event.total} windows)"
    if event.step == "build" and event.result is not None:
        return f"built     {event.label} ({size(event.result.size)}, {event.result.bits_per_weight:.2f} bits per weight)"
    if event.step == "measure" and event.result is not None:
        return f"measured  {event.label}: {_loss(event.result)}"
    if event.step == "time" and event.result is not None:
        return f"timed     {event.label}: {_pace(event.result)}"
    if event.step == "check" and isinstance(event.result, tuple):
        return f"checked   {event.label}: {_checked(event.result)}"
    if event.step == "step":
        return f"done      {event.label}"
    if event.step == "push" and event.done == event.total and event.total:
        return f"pushed    {event.label}"
    return ""


def _checked(checks: Sequence[Check]) -> str:
    """How many checks passed, and which did not."""
    passed = sum(check.outcome == "passed" for check in checks)
    others = [f"{check.name} {check.outcome}" for check in checks if check.outcome != "passed"]
    return ", ".join([f"{passed} of {len(checks)} checks passed", *others])


def _pace(speed: Speed) -> str:
    """Tokens per second and memory in a line."""
    parts = [f"prompt {speed.prompt.median:,.3g} tokens/s"]
    parts += [f"generation {speed.generation.median:,.3g} tokens/s"] if speed.generation else []
    return ", ".join([*parts, f"{size(speed.memory)} of memory"])


def _loss(measurement: Measurement) -> str:
    """The number that tells most: KL divergence or a cosine, or the reference's perplexity if it has one."""
    from hubq.metrics import METRICS

    name = next((name for name in TELLING if name in measurement.values), None)
    return f"{_short(METRICS[name])} {_figure(measurement.values[name])}" if name else "done"


def _short(metric: Metric) -> str:
    return metric.short or metric.title


def show_results(results: Sequence[Result], as_json: bool) -> None:
    """One table of the files of all formats, and where everything is; or one JSON document."""
    from hubq.record import record

    if as_json:
        made = [{"target": one.target, "commit": one.commit, "release": record(one.release)} for one in results]
        print_json(made[0] if len(made) == 1 else {"releases": made})
        return
    console, releases = make_console(stderr=False), [one.release for one in results]
    for table in [make_table(*_compared(releases))] if len(releases) > 1 else _by_engine(releases[0], console):
        console.print(table)
        console.print()
    if releases[0].evalset:
        console.print(_measured(releases[0]), soft_wrap=True)
    for one in results:
        console.print(f"release  {one.target} @ {one.commit[:12]}", soft_wrap=True)
        card = one.target if one.target.startswith("https://") else f"{one.target}/README.md"
        console.print(f"card     {card}", soft_wrap=True)


def summary(results: Sequence[Result]) -> str:
    """What was published, in Markdown: the table of its files, and where it is."""
    from hubq.card import md, table

    releases = [one.release for one in results]
    engines = sorted({row.engine for row in releases[0].measurements if row.of_file})
    columns, rows = _compared(releases) if len(releases) > 1 else _results(releases[0], engines)
    made = table([md(column.replace("\n", " ")) for column in columns], [[md(cell) for cell in row] for row in rows])
    places = [f"- {md(one.target)} @ {md(one.commit[:12])}" for one in results]
    source = f"### {md(releases[0].source)} @ {md(releases[0].commit[:12])}"
    measured = [md(_measured(releases[0]).partition(" ")[2].strip())] if releases[0].evalset else []
    return "\n\n".join([source, made, *measured, "\n".join(places)]) + "\n"


def _compared(releases: Sequence[Release]) -> Cells:
    """The files of all formats, the largest first, each in the engine that its users run."""
    from hubq.metrics import headline

    rows: list[tuple[int, list[str]]] = []
    timed = any(release.speeds for release in releases)
    metrics = headline(row for release in releases for row in release.measurements)
    for release in releases:
        engines = [row.engine for row in release.measurements if row.of_file]
        found = {row.level: row for row in release.measurements if engines and row.engine == engines[0]}
        for file in release.artifacts:
            row = found.get(file.level)
            cells = [file.level, row.engine if row else "–", size(file.size), f"{file.bits_per_weight:.2f}"]
            cells += [_number(row, metric) for metric in metrics]
            rows.append((file.size, [*cells, *_paces(release, file, timed)]))
    columns = ["variant", "engine", "size", "bits/weight", *map(_short, metrics), *[PACE] * timed]
    return columns, [cells for _, cells in sorted(rows, key=lambda row: -row[0])]


def _by_engine(release: Release, console: Console) -> list[Table]:
    """The files of one format with the numbers of all engines side by side, or where that is too wide, one below the other."""
    engines = sorted({row.engine for row in release.measurements if row.of_file})
    whole = make_table(*_results(release, engines))
    narrow = console.measure(whole, options=console.options.update(max_width=1000)).maximum > console.width
    return [make_table(*_results(release, [engine])) for engine in engines] if narrow else [whole]


def _results(release: Release, engines: Sequence[str]) -> Cells:
    """Files down, and the headline metrics of each engine across."""
    from hubq.metrics import headline

    metrics = headline(release.measurements)
    by_pair: dict[tuple[str, str], Measurement] = {(row.level, row.engine): row for row in release.measurements}
    columns = ["variant", "size", "bits/weight"]
    columns += [f"{_short(metric)}\n{engine}" for engine in engines for metric in metrics]
    columns += [PACE] * bool(release.speeds)
    rows = []
    for artifact in release.artifacts:
        row = [artifact.level, size(artifact.size), f"{artifact.bits_per_weight:.2f}"]
        for engine in engines:
            row += [_number(by_pair.get((artifact.level, engine)), metric) for metric in metrics]
        rows.append([*row, *_paces(release, artifact, bool(release.speeds))])
    return columns, rows


def _paces(release: Release, file: Artifact, timed: bool) -> list[str]:
    """The cell of a file's speed: tokens generated per second, or read where the model does not generate."""
    row = next((row for row in release.speeds if row.level == file.level), None)
    return [f"{(row.generation or row.prompt).median:,.3g}" if row else "–"] * timed


def _measured(release: Release) -> str:
    """The reference and the text in a line."""
    reference = next(row for row in release.measurements if not row.of_file)
    text = release.evalset
    assert text is not None
    if "ppl" not in reference.values:
        told = f"{text.windows} of {text.available} {text.unit} of {text.dataset}, {text.tokens:,} ids"
        return f"source   in {reference.engine}, {told}; ± is one standard error"
    ppl = reference.values["ppl"]
    floor = next((row.values["kld"] for row in release.measurements if row.level == FLOOR), None)
    noise = f"in 16 bits its KLD is {_figure(floor)}; " if floor else ""
    return (
        f"source   PPL {_figure(ppl)} in {reference.engine}, {ppl.count:,} tokens of {text.dataset} "
        f"({ppl.count // text.scored} of {text.available} windows); {noise}± is one standard error"
    )


def _number(row: Measurement | None, metric: Metric) -> str:
    """A metric of a measurement, if it has one."""
    return _figure(row.values[metric.name], metric.factor) if row and metric.name in row.values else "–"


def _figure(estimate: Estimate, factor: float = 1) -> str:
    from hubq.card import figure

    return figure(factor * estimate.value, factor * estimate.stderr)


def show_plans(plans: Sequence[Plan], as_json: bool) -> None:
    """What a run would do, for each format."""
    if as_json:
        made = [_plan_facts(plan) for plan in plans]
        print_json(made[0] if len(made) == 1 else {"plans": made})
        return
    console = make_console(stderr=False)
    for place, plan in enumerate(plans):
        if place:
            console.print()
        _show_plan(plan, console)


def _plan_facts(plan: Plan) -> dict[str, Any]:
    keys = ("weights", "target", "download", "write", "need", "free")
    facts: dict[str, Any] = {name: getattr(plan, name) for name in keys}
    facts["left_out"] = list(plan.blueprint.left_out)
    facts["exact"] = plan.blueprint.exact
    facts["origin"] = asdict(plan.origin) if plan.origin else None
    facts["source"] = {"repo": plan.snapshot.repo, "commit": plan.snapshot.commit}
    facts["levels"] = [
        {"level": item.level.id, "file": item.file, "size": item.size, "key": item.key, "built": item.artifact is not None}
        for item in plan.items
    ]
    return facts


def _show_plan(plan: Plan, console: Console) -> None:
    about = "" if plan.blueprint.exact else "about "
    rows = [
        [i.level.id, i.file, about + size(i.size), f"{8 * i.size / plan.weights:.2f}", "built" if i.artifact else "to build"]
        for i in plan.items
    ]
    console.print(f"source    {plan.snapshot.repo} @ {plan.snapshot.commit}")
    console.print(f"target    {plan.target}", soft_wrap=True)
    for line in _notes(plan):
        console.print(line)
    console.print(f"download  {size(plan.download)}")
    console.print(f"disk      {about}{size(plan.write)} to write, {size(plan.need)} needed at a time, {size(plan.free)} free")
    console.print()
    console.print(make_table(["variant", "file", "size", "bits/weight", "state"], rows))


def show_environments(found: Sequence[tuple[Environment, State]], as_json: bool) -> None:
    """Whether private environments are there, how large they are, and where."""
    if as_json:
        print_json({"environments": [_environment_facts(environment, state) for environment, state in found]})
        return
    console = make_console(stderr=False)
    for environment, state in found:
        told = f", {size(state.size)}" if state.size else ""
        told += f": {state.fault}" if state.fault else ""
        console.print(f"{environment.name}  {state.status}{told}  {environment.folder}", soft_wrap=True)


def _environment_facts(environment: Environment, state: State) -> dict[str, Any]:
    facts = {"name": environment.name, "folder": str(environment.folder)}
    return facts | {"state": state.status, "size": state.size, "fault": state.fault}


def show_checks(checks: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """The doctor's findings."""
    if as_json:
        print_json({"checks": list(checks)})
        return
    table = make_table(
        ["what", "found", "it unlocks"], [[c["name"], c["found"] or f"missing: {c['hint']}", c["unlocks"]] for c in checks]
    )
    for column in table.columns:
        column.justify = "left"
    make_console(stderr=False).print(table)


def print_json(facts: Mapping[str, Any], status: str = "ok") -> None:
    """One JSON document on stdout."""
    print(json.dumps({"schema": SCHEMA, "status": status, **facts}, indent=2, ensure_ascii=False))


def show_error(error: HubqError, as_json: bool) -> None:
    """`error: what` and `hint: what to do` on stderr; with JSON the same as a document on stdout."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}}, "failed")
        return
    console = make_console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(error.message, soft_wrap=True)
    if error.hint:
        console.print("hint:", style="cyan", end=" ")
        console.print(error.hint, soft_wrap=True)
