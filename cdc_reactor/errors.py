"""Every exception of cdc_reactor, split by whose fault it is.

    ReactorError
    ├── SenderError            the bytes that we were sent
    │   ├── DecodeError          … are no change event that we know, or a column is not what it claims to be
    │   └── ImageUnavailable     … lack the before image or the column that a handler asked for
    ├── DefinitionError        the team's code: a handler, Row or option is wrong (raised at import)
    ├── UsageError             the command line, a path or a setting is wrong
    ├── WorldError             something that we need is down; nothing is wrong with the data
    │   └── PublishError         events could not be confirmed
    ├── MessageRefused         a message breaks a limit of the broker; sending it again will not help
    ├── Stopped                the daemon stops, as it was told to for such a case
    ├── RemoteFailure          stands for what a handler raised in another process
    ├── HandlerTimeout         a handler ran longer than its `timeout`
    └── Verdict wishes         raised by handlers only
        ├── Retry                try these changes again later
        └── Reject               these changes will never succeed: dead-letter them

A message says what happened, where (table, lsn, file and line) and what to do. Nothing crosses a layer untranslated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ReactorError(Exception):
    """Base of every exception that this package raises on purpose."""


class SenderError(ReactorError):
    """Raised when what we were sent cannot be used; running the handler again will not help."""


class DecodeError(SenderError):
    """Raised when bytes are no change event that we know, or a column is not what it claims to be.

    `change` is the one change of a batch that is to blame, where that is known.
    """

    change: Any = None


class ImageUnavailable(SenderError):
    """Raised when a handler reads a before image or a column that Debezium did not send."""


class DefinitionError(ReactorError):
    """Raised at import when a handler, a Row or an option of theirs is wrong."""


class UsageError(ReactorError):
    """Raised when a command's argument, a path or a setting is wrong."""


class WorldError(ReactorError):
    """Raised when a database, a broker or a disk that we need is not there; the data is not to blame."""


class PublishError(WorldError):
    """Raised when events could not be handed over for good."""


class MessageRefused(ReactorError):
    """Raised when a message is larger than the broker takes, or has nothing in it; it names topic, size and limit."""


class Stopped(ReactorError):
    """Raised when a policy says that nothing shall go on: a change of an unknown table, for one."""


class RemoteFailure(ReactorError):
    """Raised nowhere: stands for an exception of another process, which could not travel as itself."""

    def __init__(self, error_class: str, text: str) -> None:
        super().__init__(text)
        self.error_class = error_class


class HandlerTimeout(ReactorError):
    """Raised when a handler ran longer than its `timeout`."""


class _Wish(ReactorError):
    """What a handler asks for some of its changes; without `changes`, for all of them."""

    def __init__(self, why: str, *, changes: Iterable[Any] | None = None) -> None:
        super().__init__(why)
        self.changes = None if changes is None else tuple(changes)


class Retry(_Wish):
    """Raised by a handler to have changes handed to it again, after `delay` seconds or the usual backoff."""

    def __init__(self, why: str, *, changes: Iterable[Any] | None = None, delay: float | None = None) -> None:
        super().__init__(why, changes=changes)
        if delay is not None and not (isinstance(delay, int | float) and 0 <= delay < float("inf")):
            raise TypeError(f"Retry(delay={delay!r}): a delay is seconds, zero or more")
        self.delay = delay


class Reject(_Wish):
    """Raised by a handler for changes that will never succeed: they go to the dead letters at once."""
