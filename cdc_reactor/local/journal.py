"""What the machine changed and the store has not written yet, in order. Pure.

Without a store it is off and keeps nothing.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any


class Op(Enum):
    """The kinds of changes; beside each, what one row holds."""

    PUBLISHED = auto()  # seq, topic uid, time of publication, ordering key, body
    GONE = auto()  # seq: nobody needs the message any more
    ACKED = auto()  # subscription uid, seq
    UNACKED = auto()  # subscription uid, seq
    HELD = auto()  # uid of a snapshot or subscription, seq: older than the holder and still held by it
    DEFINED = auto()  # kind, name, uid, topic uid, expiry, definition
    REMOVED = auto()  # kind, name
    RESERVED = auto()  # the numbers below this one are taken


class Journal:
    """Collects rows; neighbours of one kind make one run, which costs the store one statement."""

    def __init__(self, *, is_on: bool = True) -> None:
        self.is_on = is_on
        self._runs: list[tuple[Op, list[Any]]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def note(self, op: Op, row: tuple[Any, ...]) -> None:
        """Add one change."""
        if not self.is_on:
            return
        runs = self._runs
        if not runs or runs[-1][0] is not op:
            runs.append((op, []))
        runs[-1][1].append(row)

    def take(self) -> list[tuple[Op, list[Any]]]:
        """Return the runs collected since the last call."""
        runs, self._runs = self._runs, []
        return runs
