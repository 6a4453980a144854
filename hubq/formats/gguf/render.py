"""Renders chat templates as transformers does, in a process of its own with little time and memory: nobody vouches for them.

Run as a script, it takes JSON on standard input, [{"template": ..., "variables": {...}}, ...], and answers with a list of
{"text": ...} or {"error": ...} in the same order. `render` is the side that starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

SECONDS = 5  # of processor time
BYTES = 1 << 29  # of memory
LONGEST = 1_000_000  # characters of a rendered conversation


def render(jobs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Each template with its variables: {"text": ...}, or {"error": ...} with what it raised or ran out of."""
    command = [sys.executable, "-I", __file__]
    try:
        ended = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, env={}, timeout=3 * SECONDS)
        return json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return [{"error": f"it takes more than {SECONDS} seconds or {BYTES >> 20} MiB"} for _ in jobs]


def _answer() -> None:
    _limit()
    environment, answers = _environment(), []
    for job in json.load(sys.stdin):
        try:
            text = environment.from_string(job["template"]).render(**job["variables"])
            answers.append({"text": text} if len(text) <= LONGEST else {"error": f"more than {LONGEST:,} characters"})
        except Exception as error:  # templates can raise anything; many refuse a conversation by raising
            answers.append({"error": f"{type(error).__name__}: {error}"[:200]})
    json.dump(answers, sys.stdout)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows has only the time limit
        return
    for name, most in (("CPU", SECONDS), ("AS", BYTES), ("FSIZE", 0), ("CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        except (OSError, ValueError):  # not every system has every limit
            continue


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the model says, which changes nothing here."""

        tags = {"generation"}  # noqa: RUF012 as jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    now = datetime.now()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    return environment


if __name__ == "__main__":
    _answer()
