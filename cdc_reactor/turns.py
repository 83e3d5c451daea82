"""Whose turn it is when a runner has room again: those who found none, in the order in which they came.

Without it the one whose work just came back would always take the place, or hundreds would have to be asked each time.
Belongs to the event loop. Neighbours: `consumer` waits here, `runners` have the room.
"""

from __future__ import annotations

from typing import Protocol


class Waiting(Protocol):
    """Somebody who has works to start."""

    def advance(self) -> None:
        """Start what can be started; wait here again where there was no room for all of it."""


class Room(Protocol):
    """Where works are run."""

    @property
    def room(self) -> int:
        """How many works it takes now."""


class Turns:
    """A queue of those who wait for room; each stands in it once."""

    def __init__(self, runner: Room) -> None:
        self._runner = runner
        self._waiting: dict[Waiting, None] = {}

    @property
    def has_waiting(self) -> bool:
        """Whether anybody stands in it."""
        return bool(self._waiting)

    def wait(self, who: Waiting) -> None:
        """Stand at the end, unless it waits already."""
        self._waiting.setdefault(who)

    def came_back(self, who: Waiting) -> None:
        """Let the first go on, where a work of this one came back, and others as long as there is room."""
        self.wait(who)
        for _ in range(len(self._waiting)):
            first = next(iter(self._waiting))
            del self._waiting[first]
            first.advance()
            if self._runner.room <= 0:
                break
