"""What commands print that show what there is, `hubq show` and others: tables, or JSON.

Whatever comes out of a file is shown with its control characters escaped and is never markup.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hubq.formats.gguf.levels import group
from hubq.nouns import Level
from hubq.ui import make_console, make_table, print_json, size

if TYPE_CHECKING:
    from pathlib import Path

    from hubq.cards import Found
    from hubq.ci import Publisher
    from hubq.formats.gguf.arch import Family
    from hubq.formats.gguf.audit import Report
    from hubq.perplexity import Result, Row
    from hubq.pick import Choice
    from hubq.plan import Plan
    from hubq.status import State
    from hubq.steps import Step
    from hubq.store import Entry
    from hubq.verify import Report as Verified

LONGEST = 100  # characters of a value
WHOLE = 1000  # characters of a finding
FIRST = 8  # items of an array


def show_models(models: Sequence[Mapping[str, Any]], tensors: bool, as_json: bool) -> None:
    """One model in full, with all its tensors if wanted; of several a line each. `models` are those of facts.facts."""
    if as_json:
        print_json({"models": list(models)})
    elif len(models) == 1:
        _show_model(models[0], tensors)
    else:
        columns = ["file", "architecture", "level", "size", "weights", "bits/weight"]
        rows = [[_summary(model)[column].partition(" of the file")[0] for column in columns] for model in models]
        table = make_table(columns, rows)
        table.columns[1].justify = table.columns[2].justify = "left"
        make_console(stderr=False).print(table)


def _show_model(model: Mapping[str, Any], tensors: bool) -> None:
    console = make_console(stderr=False)
    for label, text in _summary(model).items():
        if text:
            console.print(f"{label:13s} {text}", soft_wrap=True)
    if model["tensors"]:
        console.print()
        console.print(_types(model))
    console.print()
    templates = {
        key: f"{t['characters']:,} characters, SHA-256 {t['sha256'][:12]}…" for key, t in model["chat_templates"].items()
    }
    rows = [[plain(key), templates.get(key) or _value(value)] for key, value in model["metadata"].items()]
    table = make_table(["key", "value"], rows)
    table.columns[0].min_width, table.columns[1].justify = max((len(key) for key, _ in rows), default=0), "left"
    console.print(table)
    if tensors and model["tensors"]:
        console.print()
        console.print(_tensors(model))


def _summary(model: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a few words; empty where the file does not say."""
    bits, parts = model["bits_per_weight"], model["parts"]
    return {
        "file": plain(model["path"]) + (f" and {len(parts) - 1} more of {len(parts)} parts" if len(parts) > 1 else ""),
        "architecture": plain(model["architecture"] or ""),
        "name": plain(model["name"] or ""),
        "level": plain(model["level"] or ""),
        "size": size(model["size"]),
        "weights": _millions(model["weights"]),
        "bits/weight": f"{bits['file']:.2f} of the file, {bits['weights']:.2f} of the weights alone" if bits else "",
        "imatrix": ", ".join(f"{plain(key)} {_value(value)}" for key, value in model["imatrix"].items()),
    }


def _types(model: Mapping[str, Any]) -> Any:
    rows = [
        [row["type"], f"{row['tensors']:,}", _millions(row["weights"]), size(row["bytes"]), f"{row['share']:.1%}"]
        for row in model["types"]
    ]
    return make_table(["type", "tensors", "weights", "size", "share of weights"], rows)


def _tensors(model: Mapping[str, Any]) -> Any:
    rows = [[plain(t["name"]), " x ".join(map(str, t["shape"])), t["type"], f"{t['bytes']:,}"] for t in model["tensors"]]
    return make_table(["tensor", "shape", "type", "bytes"], rows)


def _value(value: Any) -> str:
    """A value of metadata in a few words: texts are cut, of long arrays only the count and type are told."""
    if isinstance(value, Mapping):
        return f"{value['count']:,} x {value['type']}"
    if isinstance(value, list):
        return plain(f"{len(value):,}: {', '.join(map(str, value[:FIRST]))}{', …' if len(value) > FIRST else ''}")
    return plain(f"{value:.7g}" if isinstance(value, float) else str(value))


def plain(text: str, longest: int = LONGEST) -> str:
    """Text that cannot upset a terminal: nothing but printable characters, and at most `longest` of them."""
    begin = text[: longest + 1]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in begin)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _millions(count: int) -> str:
    unit, name = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / unit:,.4g} {name}" if count >= 1e5 else f"{count:,}"


def show_audit(report: Report, as_json: bool) -> None:
    """What an audit found, a line each, with what to do below it."""
    if as_json:
        print_json(asdict(report))
        return
    console = make_console(stderr=False)
    beside = f", compared with {plain(report.base)}" if report.base else ""
    console.print(f"{plain(report.repo)} @ {report.commit[:12]}: {report.headers} GGUF headers read{beside}", soft_wrap=True)
    for finding in report.findings:
        where = f"{plain(finding.file)}: " if finding.file else ""
        console.print(f"{finding.severity:8s} {where}{plain(finding.what, WHOLE)}", soft_wrap=True)
        console.print(f"         {plain(finding.advice, WHOLE)}", soft_wrap=True)
    counts = {kind: sum(finding.severity == kind for finding in report.findings) for kind in ("error", "warning")}
    console.print(", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items()))


def show_verified(report: Verified, as_json: bool) -> None:
    """What was found of a release, a line for each thing that it says."""
    if as_json:
        print_json({**asdict(report), "verified": not report.failed})
        return
    console = make_console(stderr=False)
    console.print(f"{plain(report.repo)} @ {report.commit[:12]}", soft_wrap=True)
    for fact in report.facts:
        detail = f": {plain(fact.detail, WHOLE)}" if fact.detail else ""
        console.print(f"{fact.outcome:11s}  {plain(fact.name)} {fact.what}{detail}", soft_wrap=True)
    counts = Counter(fact.outcome for fact in report.facts)
    console.print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("true", "false", "not checked")))


def show_choice(choice: Choice, as_json: bool) -> None:
    """The file to take, what it needs and loses, and how to run it."""
    file, level = choice.file, choice.file.level.partition(":")[2]
    if as_json:
        told = {"level": file.level, "file": file.files[0].path, "size": file.size, "context": choice.context}
        told |= {"need": choice.need, "need_is_whole": choice.cached, "metric": choice.metric or None}
        print_json({**told, "loss": asdict(choice.loss) if choice.loss else None, "command": choice.command})
        return
    console = make_console(stderr=False)
    whole = (
        f"with {choice.context:,} tokens of context" if choice.cached else "for the file alone: what else it takes is not known"
    )
    console.print(f"{plain(level)}: {plain(file.files[0].path)}, {size(file.size)}", soft_wrap=True)
    console.print(f"needs {size(choice.need)} of memory {whole}", soft_wrap=True)
    console.print(f"measured: {_loss(choice)}", soft_wrap=True)
    console.print()
    for line in choice.command.splitlines():
        console.print(plain(line, WHOLE), soft_wrap=True)


def _loss(choice: Choice) -> str:
    from hubq.card import figure
    from hubq.metrics import METRICS

    if choice.loss is None:
        return "nothing, so this is but the largest that fits"
    metric = METRICS[choice.metric]
    numbers = figure(metric.factor * choice.loss.value, metric.factor * choice.loss.stderr)
    return f"{metric.title} {numbers} {metric.unit}".strip()


def show_perplexity(result: Result, as_json: bool) -> None:
    """llama-perplexity's numbers with the digits that it prints, a line each."""
    if as_json:
        print_json(
            {
                "chunks": result.chunks,
                "available": result.available,
                "tokens": result.tokens,
                "rows": [*map(asdict, result.rows)],
            }
        )
        return
    rows = [
        [row.name, _scaled(row, row.value), f"± {_scaled(row, row.stderr)}" if row.stderr is not None else ""]
        for row in result.rows
    ]
    console = make_console(stderr=False)
    console.print(make_table(["", "value", "error"], [*rows]))
    console.print(f"{result.tokens:,} tokens in {result.chunks} of {result.available} chunks")


def _scaled(row: Row, number: float) -> str:
    """A number with llama-perplexity's digits; fractions are shown in %."""
    return f"{100 * number:.3f} %" if row.unit == "fraction" else f"{number:.6f}"


def show_store(root: Path, entries: Sequence[Entry], as_json: bool, what: str = "kept") -> None:
    """Things of a work store, a line each; `what` says what became of them."""
    if as_json:
        listed = [asdict(entry) | {"path": str(entry.path)} for entry in entries]
        print_json({"root": str(root), "state": what, "entries": listed})
        return
    console = make_console(stderr=False)
    if entries:
        rows = [[e.kind, plain(e.name) + (" (unfinished)" if e.unfinished else ""), size(e.size)] for e in entries]
        table = make_table(["kind", "name", "size"], rows)
        table.columns[1].justify = "left"
        console.print(table)
    console.print(f"{len(entries)} {what}, {size(sum(e.size for e in entries))} in {root}", soft_wrap=True)


def show_levels(levels: Iterable[Level], as_json: bool) -> None:
    """The table of levels, by precision."""
    groups: dict[str, list[Level]] = {}
    for level in levels:
        groups.setdefault(group(level), []).append(level)
    if as_json:
        print_json({"levels": [_level(name, level) for name, members in groups.items() for level in members]})
        return
    rows = []
    for name, members in groups.items():
        rows.append([name, "", "", ""])
        rows += [[f"  {m.id}", f"{m.bits:g}", "needed" if m.needs_matrix else "", m.summary] for m in members]
    table = make_table(["level", "bits", "importance matrix", "what it is"], rows)
    table.columns[2].justify = table.columns[3].justify = "left"
    make_console(stderr=False).print(table)


def show_families(families: Mapping[str, Family], as_json: bool) -> None:
    """The table of model types, with their classes in transformers and llama.cpp's name of the architecture."""
    if as_json:
        found = [
            {"model_type": name, "classes": list(kind.classes), "architecture": kind.gguf} for name, kind in families.items()
        ]
        print_json({"families": found})
        return
    table = make_table(
        ["model type", "classes", "architecture in GGUF"],
        [[name, ", ".join(kind.classes), kind.gguf] for name, kind in families.items()],
    )
    table.columns[1].justify = table.columns[2].justify = "left"
    make_console(stderr=False).print(table)


def _level(group: str, level: Level) -> dict[str, Any]:
    facts = {"id": level.id, "group": group, "bits": level.bits}
    return facts | {"needs_matrix": level.needs_matrix, "summary": level.summary}


def show_site(out: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    """Where a site is, and of how much."""
    counts = {"models": len(facts["models"]), "files": sum(len(model["files"]) for model in facts["models"])}
    if as_json:
        print_json({"site": str(out), **counts})
        return
    told = ", ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items())
    make_console(stderr=False).print(f"site      {out} ({told})", soft_wrap=True)


def show_address(port: int, as_json: bool) -> None:
    """Where a site is served; at once, since the command goes on."""
    address = f"http://127.0.0.1:{port}/"
    if as_json:
        print_json({"address": address})
    else:
        make_console(stderr=False).print(f"serving   {address}  (Ctrl-C ends it)", soft_wrap=True)
    sys.stdout.flush()


def show_followed(folder: Path, found: Sequence[Found], as_json: bool) -> None:
    """Which files of cards do not follow from their release.json, and what to do."""
    wrong = [fact for fact in found if fact.state != "current"]
    if as_json:
        files = [{"card": fact.folder, "file": fact.name, "state": fact.state, "note": fact.note} for fact in found]
        print_json({"files": files}, "failed" if wrong else "ok")
        return
    console = make_console(stderr=False)
    for fact in wrong:
        note = f" ({fact.note})" if fact.note else ""
        console.print(f"{fact.state:9s} {folder / fact.folder / fact.name}{note}", soft_wrap=True)
    counted = f"{len(found) - len(wrong)} of {len(found)} files follow from their release.json"
    console.print(counted, soft_wrap=True)
    for name in dict.fromkeys(fact.folder for fact in wrong):
        console.print(f"hint: hubq card {shlex.quote(str(folder / name))}", soft_wrap=True)


def show_rendered(folder: Path, changed: Sequence[str], as_json: bool) -> None:
    """Which files of a card were written."""
    if as_json:
        print_json({"folder": str(folder), "changed": list(changed)})
        return
    console = make_console(stderr=False)
    for name in changed:
        console.print(f"wrote     {folder / name}", soft_wrap=True)
    if not changed:
        console.print(f"unchanged {folder}", soft_wrap=True)


def show_manifest(path: Path, as_json: bool) -> None:
    """Where a manifest was written, and what to do with it."""
    if as_json:
        print_json({"manifest": str(path)})
        return
    console = make_console(stderr=False)
    console.print(f"wrote  {path}", soft_wrap=True)
    console.print(f"hint: hubq publish {shlex.quote(str(path.parent))}", soft_wrap=True)


def show_steps(plans: Sequence[tuple[Plan, Sequence[Step]]], as_json: bool) -> None:
    """The steps of a release with what each needs."""
    if as_json:
        found = [
            {"source": {"repo": planned.snapshot.repo, "commit": planned.snapshot.commit}, "target": planned.target}
            | {"format": planned.format.WORDS.title.lower(), "steps": [asdict(step) for step in steps]}
            for planned, steps in plans
        ]
        print_json({"plans": found})
        return
    console = make_console(stderr=False)
    names = {step.key: step.name for _, steps in plans for step in steps}
    console.print(f"source  {plans[0][0].snapshot.repo} @ {plans[0][0].snapshot.commit}")
    for planned, steps in plans:
        console.print(f"target  {planned.target}", soft_wrap=True)
        console.print()
        rows = [
            [
                step.name,
                "done" if step.done else "to do",
                size(step.size) if step.size else "",
                size(step.memory),
                step.key[:12],
            ]
            for step in steps
        ]
        console.print(make_table(["step", "state", "writes", "memory", "key"], rows))
        console.print()
        for step in steps:
            if step.needs:
                console.print(f"{step.name} needs {', '.join(names[need] for need in step.needs)}", soft_wrap=True)


def show_done(steps: Sequence[Step], as_json: bool) -> None:
    """Which steps are done now."""
    if as_json:
        print_json({"done": [{"key": step.key, "name": step.name} for step in steps]})
        return
    console = make_console(stderr=False)
    for step in steps:
        console.print(f"done  {step.name}", soft_wrap=True)


def show_status(found: Sequence[State], as_json: bool) -> None:
    """What is to be done about each manifest, or that nothing is."""
    if as_json:
        print_json({"cards": [asdict(state) | {"state": state.state} for state in found]})
        return
    console = make_console(stderr=False)
    for state in found:
        console.print(f"{state.state:8s} {state.folder}  {state.source}", soft_wrap=True)
        for finding in state.findings:
            console.print(f"         {finding.text}", soft_wrap=True)


def show_workflows(folder: Path, changed: Mapping[str, bool], as_json: bool) -> None:
    """Which files of the workflows were written, and what is left to do."""
    if as_json:
        files = [{"path": path, "changed": differed} for path, differed in changed.items()]
        print_json({"folder": str(folder), "files": files})
        return
    console = make_console(stderr=False)
    for path, differed in changed.items():
        console.print(f"{'wrote' if differed else 'current':9s} {folder / path}", soft_wrap=True)
    console.print("hint: hubq doctor --ci says what to set on the Hub", soft_wrap=True)


def show_publishers(publishers: Sequence[Publisher], as_json: bool) -> None:
    """What to enter on the Hub, page by page."""
    if as_json:
        print_json({"publishers": [asdict(one) | {"settings": one.settings} for one in publishers]})
        return
    console = make_console(stderr=False)
    for one in publishers:
        console.print(f"{one.settings}: Trusted Publishers", soft_wrap=True)
        rows = {"provider": "GitHub Actions", "repository": one.repository or "owner/name of this repository on GitHub"}
        rows |= {"branch": one.branch, "workflow": one.workflow, "environment": one.environment}
        for name, value in rows.items():
            console.print(f"  {name:12s} {value}", soft_wrap=True)
    console.print("hint: a repository must be there before it has settings: hf repos create NAME", soft_wrap=True)
