"""Hugging Face Jobs: commands that run in a container on the Hub's machines, paid by time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import huggingface_hub as client

from hubq import __version__
from hubq.errors import HubError, HubqError, Usage
from hubq.hub import faults
from hubq.hub.faults import again, explain, pause, status, transient
from hubq.secrets import scrub

SECONDS = {"second": 1, "minute": 60, "hour": 3600}  # of a unit that is paid for
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ALIVE = ("SCHEDULING", "RUNNING")
PLACE = "Hugging Face Jobs"


@dataclass(frozen=True, slots=True)
class Flavor:
    """A kind of machine: what it is, and what each `unit` begun of it costs, in millionths of a dollar and in seconds."""

    name: str
    text: str
    cost: int
    unit: int

    def price(self, seconds: int) -> float:
        """Dollars for so long a time."""
        return math.ceil(seconds / self.unit) * self.cost / 1e6


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the Hub tells of it: `stage` is SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED or DELETED; `url` its page."""

    id: str
    stage: str
    message: str
    url: str

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.stage in ALIVE


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: `labels` tell it from all others; `secrets` are environment variables that the Hub shows to nobody."""

    image: str
    command: Sequence[str]
    flavor: str
    timeout: int
    labels: Mapping[str, str]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Jobs:
    """The jobs of the account that is logged in, at `endpoint` (None: HF_ENDPOINT or huggingface.co).

    Every method raises HubError with a hint; no message holds a token.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._api = client.HfApi(endpoint, token, library_name="hubq", library_version=__version__)
        self._name = ""

    def flavor(self, name: str) -> Flavor:
        """A kind of machine, with the price that the Hub asks now. Raises Usage where there is none of that name."""
        with self._plain_errors():
            found = {one.name: one for one in again(self._api.list_jobs_hardware)}
        if name not in found:
            raise Usage(f"--flavor {name}: the Hub has no such machine", f"choose one of {', '.join(sorted(found))}")
        one = found[name]
        if one.unit_label not in SECONDS:
            raise HubError(f"the Hub prices {name} by the {one.unit_label}, which hubq cannot count", "update hubq")
        what = ", ".join([one.cpu, one.ram, *([one.accelerator.model] if one.accelerator else [])])
        return Flavor(name, what, one.unit_cost_micro_usd, SECONDS[one.unit_label])

    def alive(self, labels: Mapping[str, str]) -> Job | None:
        """The job with these labels that waits or runs, the first of several, or None."""
        with self._plain_errors():
            found = again(lambda: [*self._api.list_jobs(status=[*ALIVE], labels={**labels}, namespace=self._account())])
        return min(map(_job, found), key=lambda job: job.id, default=None)

    def start(self, order: Order) -> Job:
        """Start a job. Where an answer leaves it open whether it was started, the Hub's list decides: none is paid twice."""
        with self._plain_errors():
            for wait in (*faults.WAITS, None):
                try:
                    return self._send(order)
                except (client.errors.HTTPError, OSError) as error:
                    if not transient(error) or wait is None:
                        raise
                    time.sleep(pause(error, wait))
                if found := self.alive(order.labels):
                    return found
        raise AssertionError("unreachable")

    def _send(self, order: Order) -> Job:
        return _job(
            self._api.run_job(
                image=order.image,
                command=[*order.command],
                env={**order.env},
                secrets={**order.secrets},
                flavor=order.flavor,
                timeout=order.timeout,
                labels={**order.labels},
                namespace=self._account(),
            )
        )

    def look(self, job: Job) -> Job:
        """How a job is by now."""
        with self._plain_errors():
            return _job(again(lambda: self._api.inspect_job(job_id=job.id, namespace=self._account())))

    def cancel(self, job: Job) -> None:
        """Stop a job."""
        with self._plain_errors():
            again(lambda: self._api.cancel_job(job_id=job.id, namespace=self._account()))

    def log(self, job: Job, lines: int) -> list[str]:
        """The last lines that a job printed, without secrets."""
        with self._plain_errors():
            found = again(lambda: [*self._api.fetch_job_logs(job_id=job.id, namespace=self._account(), tail=lines)])
        return [scrub(line) for text in found for line in text.splitlines()][-lines:]

    def token(self) -> str:
        """The login's token, for jobs that write in its name; "" without a login."""
        return str(self._api.token or client.get_token() or "")

    def _account(self) -> str:
        self._name = self._name or str(again(lambda: self._api.whoami(cache=True))["name"])
        return self._name

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turns what the client raises into HubError. The cause is dropped: its text may hold tokens."""
        try:
            yield
        except HubqError:
            raise
        except (client.errors.HTTPError, client.errors.OIDCError, OSError, ValueError, RuntimeError) as error:
            if status(error) == 402:
                page = f"{self._api.endpoint}/settings/billing"
                raise HubError("the account has no credit for Hugging Face Jobs", f"add some at {page}") from None
            raise explain(error, PLACE, None, self._api.endpoint) from None


def seconds(text: str) -> int:
    """The time that --timeout names: 30m, 2h, 90s or 1d. Raises Usage for anything else, and for less than a minute."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())
    found = int(match[1]) * UNITS[match[2]] if match else 0
    if not 60 <= found <= 30 * 86400:
        raise Usage(f"--timeout {text}: not a time of a minute to 30 days", "write it as 30m or 2h")
    return found


def _job(info: Any) -> Job:
    return Job(info.id, str(getattr(info.status.stage, "value", info.status.stage)), info.status.message or "", info.url)
