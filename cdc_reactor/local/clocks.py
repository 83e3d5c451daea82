"""A clock that stands still until it is told to move, for tests of everything that takes time. Pure."""

from __future__ import annotations

#: 2030-01-01T00:00:00Z: a whole number, so that deadlines are whole numbers too.
START = 1_893_456_000.0


class VirtualClock:
    """Seconds since 1970, as a callable.

    Move it through `LocalBroker.advance` or `BrokerAdmin.advance`, which also let the broker act on it.
    """

    def __init__(self, start: float = START) -> None:
        self._now = start

    def __call__(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        assert seconds >= 0, "time does not go back"
        self._now += seconds
