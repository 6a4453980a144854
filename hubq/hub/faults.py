"""What can go wrong between hubq and the Hub: what is worth another try, and what people are told, without secrets."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from huggingface_hub import errors, utils

from hubq.errors import HubError
from hubq.secrets import scrub

WAITS = (1.0, 4.0, 16.0)  # seconds before each new try, up to a quarter longer by chance
LONGEST = 300  # seconds to wait at most, whatever the server asks for
RETRIED = {408, 429, 500, 502, 503, 504}
TRY_AGAIN = "run the command again: what is done is kept"
STORAGE = "https://huggingface.co/docs/hub/storage-limits"
COMMIT = re.compile(r"[0-9a-f]{40}")
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
    """Seconds to wait before the next try: what the server asks for, at most LONGEST, or about `wait`."""
    seconds = asked(getattr(getattr(error, "response", None), "headers", {}))
    return wait * random.uniform(1, 1.25) if seconds is None else float(min(seconds, LONGEST))


def asked(headers: Mapping[str, str]) -> int | None:
    """Seconds that a busy server asks to wait, in Retry-After or in the Hub's RateLimit header, or None."""
    if (limit := utils.parse_ratelimit_headers(headers)) and not limit.remaining:
        return limit.reset_in_seconds
    after = headers.get("Retry-After", "").strip()
    return int(after) if after.isdecimal() else None


def cap(response: Any) -> None:
    """Shortens what a response asks to wait to LONGEST: the client itself would wait for any time."""
    if response.status_code in RETRIED and (asked(response.headers) or 0) > LONGEST:
        response.headers.pop("RateLimit", None)
        response.headers["Retry-After"] = str(LONGEST)


def explain(error: Exception, repo: str, revision: str | None, endpoint: str) -> HubError:
    """What the client raised, as a sentence and a next step."""
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    code, text = status(error), " ".join(scrub(str(getattr(error, "server_message", None) or error)).split())
    page = scrub(f"{endpoint}/{repo}")
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo} is gated: its owner asks for consent first", f"accept the terms at {page}, then {LOG_IN}")
    if isinstance(error, errors.DisabledRepoError) or _header(error, "X-Error-Code") == "DisabledRepo":
        return HubError(f"{repo} is disabled: the Hub has closed it for everybody", f"see {page}, or take another model")
    if isinstance(error, errors.RevisionNotFoundError) and COMMIT.fullmatch(revision or ""):
        return HubError(
            f"commit {revision} of {repo} is gone: its history was rewritten, or somebody else has the name now",
            f"look at {page}/commits/main, and name the commit that you trust; hubq takes no other one by itself",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision or 'main'}", f"choose one at {page}/commits/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"{repo} does not exist, or it is private", f"check the name; for a private repository {LOG_IN}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{repo} cannot be reached: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if str(getattr(getattr(error, "response", None), "url", "")).endswith("/oauth/token"):
        resource = scrub(os.environ.get("HF_OIDC_RESOURCE", ""))
        hint = f"enter what `hubq doctor --ci` says at {scrub(endpoint)}/{resource}/settings"
        return HubError(f"the Hub gives this job no token for {resource}: {text}", hint)
    if code in (402, 413) or (code == 403 and re.search(r"(?i)\bstorage\b|\bquota\b", text)):
        return HubError(f"the Hub has no more room for {repo} ({code}): {text}", f"make room, see {STORAGE}; then {TRY_AGAIN}")
    if code in (401, 403):
        why = "does not take the token for" if code == 401 else "refused access to"
        hint = f"use a token that is valid and may do this: {LOG_IN}; then {TRY_AGAIN}"
        return HubError(f"the Hub {why} {repo} ({code}): {text}", hint)
    if code in RETRIED:
        return HubError(f"the Hub could not answer for {repo} ({code}): {text}", TRY_AGAIN)
    if isinstance(error, errors.HTTPError | ConnectionError) and code is None:
        return HubError(f"no connection to {scrub(endpoint)}: {text}", f"check the network, then {TRY_AGAIN}")
    return HubError(f"{repo}: {text}", TRY_AGAIN if transient(error) else "")


def _header(error: Exception, name: str) -> str:
    return str(getattr(getattr(error, "response", None), "headers", {}).get(name, ""))
