"""A breaker for each handler: it stops a flood of dead letters, which is a fault of the code and not of the data.

A machine of values: told what was settled and when, it answers for how long the handler shall rest. Neighbour:
`consumer`, which tells it and lets the handler rest.
"""

from __future__ import annotations

from collections import deque

import msgspec


class BreakerLimits(msgspec.Struct, frozen=True):
    """When a breaker opens: more than `share` of the last `window` changes given up, or `consecutive` in a row.

    `pause` is how long, in seconds, the handler rests then.
    """

    share: float = 0.05
    consecutive: int = 1000
    window: int = 10_000
    pause: float = 30.0


class Breaker:
    """Watches what one handler applies and gives up; not thread-safe.

    After a pause the handler is on probation: the next change that it gives up opens the breaker again, and only
    after a tenth of the window went well is it trusted as before.
    """

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        # Runs of one kind, oldest first: how many changes, and whether they were given up.
        self._runs: deque[tuple[int, bool]] = deque()
        self._seen = 0
        self._given_up = 0
        self._in_a_row = 0
        self._probation = 0
        self._open_until = 0.0

    def is_open(self, now: float) -> bool:
        """Tell whether the handler rests."""
        return now < self._open_until

    def note(self, applied: int, given_up: int, now: float) -> float | None:
        """Count changes; return the seconds to rest where that opens the breaker."""
        if applied:
            self._in_a_row = 0
            self._probation = max(0, self._probation - applied)
            self._count(applied, is_given_up=False)
        if not given_up:
            return None
        self._in_a_row += given_up
        self._count(given_up, is_given_up=True)
        if self.is_open(now) or not self._is_flood():
            return None
        return self._open(now)

    def _is_flood(self) -> bool:
        limits = self._limits
        return (
            self._probation > 0
            or self._in_a_row >= limits.consecutive
            or (self._seen >= limits.window and self._given_up > limits.share * self._seen)
        )

    def _open(self, now: float) -> float:
        self._open_until = now + self._limits.pause
        self._probation = max(1, self._limits.window // 10)
        self._runs.clear()
        self._seen = self._given_up = self._in_a_row = 0
        return self._limits.pause

    def _count(self, changes: int, *, is_given_up: bool) -> None:
        self._runs.append((changes, is_given_up))
        self._seen += changes
        self._given_up += changes if is_given_up else 0
        while self._seen - self._runs[0][0] >= self._limits.window:
            gone, was_given_up = self._runs.popleft()
            self._seen -= gone
            self._given_up -= gone if was_given_up else 0
