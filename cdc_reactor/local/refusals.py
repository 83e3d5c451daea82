"""Why the broker refuses a call: a status of gRPC with a sentence, as the service would say it.

Pure; `services` turns a Refused into the call's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Code(Enum):
    """The statuses that the broker answers with, by gRPC's names (google/rpc/code.proto)."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14


class Refused(Exception):
    """Raised when a call cannot be done as asked.

    `failures` tells for each ack id why it failed; the service sends them along as google.rpc.ErrorInfo.
    """

    def __init__(self, code: Code, message: str, *, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.failures = failures


def invalid(message: str) -> Refused:
    """Blame the request itself."""
    return Refused(Code.INVALID_ARGUMENT, message)


def not_found(name: str) -> Refused:
    """Blame a name that nothing has."""
    return Refused(Code.NOT_FOUND, f"Resource not found (resource={name}).")


def already_exists(name: str) -> Refused:
    """Blame a name that is taken."""
    return Refused(Code.ALREADY_EXISTS, f"Resource already exists in the project (resource={name}).")


def precondition(message: str) -> Refused:
    """Blame the state of what the call is about."""
    return Refused(Code.FAILED_PRECONDITION, message)
