"""What can go wrong, as one tree.

    HubqError                   exit 1   the work failed
    ├── Usage                   exit 2   the command line or a setting is wrong
    ├── Unsupported             exit 1   the source is fine, but hubq does not handle its kind
    ├── BadSource               exit 1   the source is damaged, incomplete or not what it says it is
    ├── HubError                exit 1   the Hub refused, or what it sent does not match its listing
    │   └── Moved               exit 1   somebody else changed the repository during a push
    ├── MissingExtra            exit 1   a package is needed that is not installed
    └── GateFailed              exit 3   a file is not what its source or its name says, and was not pushed

Ctrl-C leaves with 130. Every error says what is wrong and, in `hint`, what to do; a hint is a command where there is one.
"""

from __future__ import annotations


class HubqError(Exception):
    """Base of all errors that hubq raises on purpose: `message` says what is wrong, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """The error's name in JSON output."""
        return type(self).__name__


class Usage(HubqError):
    """The command line or a setting is wrong."""

    exit_code = 2


class Unsupported(HubqError):
    """The source is sound, but of a kind that hubq does not handle."""


class BadSource(HubqError):
    """The source is damaged, incomplete or inconsistent."""


class HubError(HubqError):
    """The Hub refused a request, or what it sent does not match its own listing."""


class Moved(HubError):
    """The repository is no longer in the state that a push was made for; nothing was committed."""


class MissingExtra(HubqError):
    """A package that this step needs is not installed."""


class GateFailed(HubqError):
    """A file differs from its source, or its name leads to another one; nothing was pushed."""

    exit_code = 3
