"""What the gates of all formats share: how a check ends, and the rules that what a file computes has to keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from hubq.errors import GateFailed, HubqError
from hubq.nouns import Measurement

Outcome = tuple[Literal["passed", "failed", "not checked"], str]
# kind of task -> least bits per weight -> the bounds of its rules
Bounds = Mapping[str, Mapping[int, tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A number of a measurement that a file has to keep on one `side` of a bound; `words` name it, `unit` follows it."""

    metric: str
    words: str
    side: Literal["at most", "at least"]
    unit: str = ""

    def keeps(self, value: float, bound: float) -> bool:
        """Whether a value is on the right side."""
        return value <= bound if self.side == "at most" else value >= bound

    def show(self, value: float) -> str:
        """A value in its unit."""
        return f"{100 * value:.4g} %" if self.unit == "%" else f"{value:.3g} {self.unit}".strip()


# kind of task -> the name of the check and its rules. Of next tokens the median divergence, because a mixture's router may send
# a few tokens elsewhere without anything being wrong
RULES: dict[str, tuple[str, tuple[Rule, ...]]] = {
    "tokens": (
        "logits",
        (Rule("kld_median", "median KL divergence", "at most", "nats"), Rule("top1", "same top tokens", "at least", "%")),
    ),
    "vectors": ("embeddings", (Rule("cosine", "mean cosine", "at least"),)),
    "labels": (
        "logits",
        (Rule("label_kld", "mean KL divergence", "at most", "nats"), Rule("same_label", "same labels", "at least", "%")),
    ),
    "scores": ("scores", (Rule("score_rms", "difference of scores in standard deviations", "at most"),)),
}


class Differs(Exception):
    """A check failed; the message says what differs."""


class NotChecked(Exception):
    """A check was not made; the message says why."""


def check_names(module: ModuleType, paths: Collection[str], files: Mapping[str, str]) -> None:
    """Raises GateFailed where `files` (path -> level) of a format cannot be told apart in a repository that holds `paths`."""
    if faults := module.refused(paths, files):
        raise GateFailed(
            "people would load other files than they ask for, so nothing was pushed: " + "; ".join(faults),
            "publish one of these files only, or take the other one out of the repository: --delete LEVEL, if hubq made it",
        )


def outcome(check: Callable[..., str], *arguments: Any) -> Outcome:
    """How a check ends that returns what it found equal, or raises Differs, NotChecked or HubqError."""
    try:
        return "passed", check(*arguments)
    except Differs as problem:
        return "failed", str(problem)
    except HubqError as problem:
        return "failed", problem.message
    except NotChecked as reason:
        return "not checked", str(reason)


def kind(row: Measurement | None) -> str:
    """The kind of task that a measurement is of; that of next tokens where there is none."""
    return next((kind for kind, (_, rules) in RULES.items() if row and rules[0].metric in row.values), "tokens")


def outputs(row: Measurement, bits: float, bounds: Bounds, text: str) -> str:
    """What a file computes stays within the bounds of its bits, measured against the source on the `text` of that name."""
    rules = RULES[kind(row)][1]
    limits = next(limits for fewest, limits in bounds[kind(row)].items() if bits >= fewest)
    told = ", ".join(f"{rule.words} {rule.side} {rule.show(bound)}" for rule, bound in zip(rules, limits, strict=True))
    values = [row.values[rule.metric].value for rule in rules]
    if not all(rule.keeps(value, bound) for rule, value, bound in zip(rules, values, limits, strict=True)):
        found = ", ".join(f"{rule.words} {rule.show(value)}" for rule, value in zip(rules, values, strict=True))
        raise Differs(f"{found}; wanted is {told}")
    return f"against the source on the {text} text: {told}"
