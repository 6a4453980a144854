"""What the gates of all formats share: how a check ends, and the bounds that a file's logits have to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from hubq.errors import HubqError
from hubq.nouns import Measurement

Outcome = tuple[Literal["passed", "failed", "not checked"], str]
# least bits per weight -> the most median KL divergence from the source (nats per token), and the least share of same top
# tokens. The median, because a mixture's router may send a few tokens elsewhere without anything being wrong
Bounds = Mapping[int, tuple[float, float]]


class Differs(Exception):
    """A check failed; the message says what differs."""


class NotChecked(Exception):
    """A check was not made; the message says why."""


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


def logits(row: Measurement, bits: float, bounds: Bounds, text: str) -> str:
    """The next-token distributions of a file stay within the bounds of its bits, measured on the `text` of that name."""
    most, least = next(bound for fewest, bound in bounds.items() if bits >= fewest)
    kld, top1 = row.values["kld_median"].value, row.values["top1"].value
    told = f"at most {most} nats, and at least {100 * least:g} % of the top tokens the same"
    if not (kld <= most and top1 >= least):
        raise Differs(f"median KL divergence {kld:.3g} nats, {100 * top1:.1f} % of the top tokens the same; wanted is {told}")
    return f"median KL divergence from the source {told}, on the {text} text"
