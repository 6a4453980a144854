"""What can go wrong between hubq and the Hub: what is worth another try, and what people are told, without secrets."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import errors

from hubq.errors import HubError

WAITS = (1.0, 4.0, 16.0)  # seconds before each new try
RETRIED = {408, 429, 500, 502, 503, 504}
TRY_AGAIN = "run the command again: what is done is kept"
LOG_IN = "run `hf auth login`, or set HF_TOKEN"

Result = TypeVar("Result")


def again(call: Callable[[], Result]) -> Result:
    """`call()`, tried again after faults that pass: the client retries only some of its requests."""
    for wait in WAITS:
        try:
            return call()
        except (errors.HTTPError, OSError) as error:
            if not transient(error):
                raise
            time.sleep(pause(error, wait))
    return call()


def transient(error: Exception) -> bool:
    """Whether an error may pass: a busy or failing server, a timeout, a broken connection, a download that broke off."""
    if isinstance(error, errors.HfHubHTTPError):
        return status(error) in RETRIED
    return isinstance(error, errors.HTTPError) or (type(error) is OSError and error.errno is None)


def status(error: Exception) -> int | None:
    """The status that the server answered with, if it did answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def pause(error: Exception, wait: float) -> float:
    """Seconds to wait before the next try: what the server asks for (at most 300), or `wait`."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(float(asked), 300.0) if asked.isdigit() else wait


def explain(error: Exception, repo: str, revision: str | None, endpoint: str) -> HubError:
    """What the client raised, as a sentence and a next step."""
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    code, text = status(error), scrub(str(getattr(error, "server_message", None) or error))
    if isinstance(error, errors.GatedRepoError):
        page = scrub(f"{endpoint}/{repo}")
        return HubError(f"{repo} is gated: its owner asks for consent first", f"accept the terms at {page}, then {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision or 'main'}", f"choose one at {scrub(endpoint)}/{repo}/commits/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"{repo} does not exist, or it is private", f"check the name; for a private repository {LOG_IN}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{repo} cannot be reached: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if code in (401, 403):
        return HubError(f"the Hub refused access to {repo} ({code}): {text}", f"use a token that may do this: {LOG_IN}")
    if code in RETRIED:
        return HubError(f"the Hub could not answer for {repo} ({code}): {text}", TRY_AGAIN)
    if isinstance(error, errors.HTTPError | ConnectionError) and code is None:
        return HubError(f"no connection to {scrub(endpoint)}: {text}", f"check the network, then {TRY_AGAIN}")
    return HubError(f"{repo}: {' '.join(text.split())}", TRY_AGAIN if transient(error) else "")


def scrub(text: str) -> str:
    """`text` without secrets: queries of addresses (they may be signed), passwords in addresses, and tokens."""
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
    return re.sub(r"\b(hf_|Bearer )\w+", r"\1***", text)


def scrub_record(record: logging.LogRecord) -> bool:
    """A logging filter that scrubs: the client logs signed addresses when it tries again."""
    record.msg, record.args = scrub(record.getMessage()), ()
    return True
