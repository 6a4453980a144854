"""What nobody may see: tokens, passwords and signatures in addresses, kept out of logs, tracebacks and messages."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUBQ_PUSH_TOKEN", "HUBQ_STORE_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
_RULES = (
    (re.compile(r"(https?://)[^/\s@]+@"), r"\1"),  # passwords
    (re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*"), r"\1"),  # queries: they may be signed
    (re.compile(r"(?i)\b(X-Amz-[\w-]+|Signature|Policy|Key-Pair-Id|access_token|refresh_token)=[^&\s'\"]+"), r"\1=***"),
    (re.compile(r"\b(hf_)(?:jwt_)?[A-Za-z0-9]{16}[\w-]*(?:\.[\w-]+)*"), r"\1***"),
    (re.compile(r"(?i)\b(Bearer )[^\s'\",]+"), r"\1***"),
)


def scrub(text: str) -> str:
    """`text` without secrets: queries of addresses, passwords in addresses, tokens, and what the environment calls a token."""
    for name in TOKENS:
        if len(token := os.environ.get(name, "")) > 7:
            text = text.replace(token, "***")
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def guard() -> None:
    """From now on every log record and every uncaught exception of this process is scrubbed before anybody sees it."""
    make = logging.getLogRecordFactory()

    def scrubbed(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        scrub_record(record)
        return record

    logging.setLogRecordFactory(scrubbed)
    sys.excepthook = _tell
    threading.excepthook = lambda given: _tell(given.exc_type, given.exc_value, given.exc_traceback)


def scrub_record(record: logging.LogRecord) -> bool:
    """A logging filter that scrubs a record, its traceback included."""
    try:
        told = record.getMessage()
    except (TypeError, ValueError, KeyError):  # a message that does not fit its arguments is no reason to stop
        told = f"{record.msg} {record.args}"
    record.msg, record.args = scrub(told), ()
    if record.exc_info and not record.exc_text:
        record.exc_text = scrub("".join(traceback.format_exception(*record.exc_info)))
    return True


def _tell(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    print(scrub("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def guarded(run: Any) -> None:
    """`run()`, with scrubbed logs and tracebacks, also where `run` sets an excepthook of its own (as Typer does)."""
    guard()
    try:
        run()
    except Exception as error:
        _tell(type(error), error, error.__traceback__)
        sys.exit(1)
