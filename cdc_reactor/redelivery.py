"""What went back to the broker, and in which order it may be taken in again.

A broker redelivers when it likes; what stood behind a message that went back may come before it. Neighbour: `reactor`,
which asks before it takes in a delivery of a lane that awaits something.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from math import inf

from cdc_reactor.lanes import Held


class Awaited:
    """The order of a lane of which something went back to the broker, and how long we wait for what.

    A lane goes back whole, whichever handler failed: else a handler could see what it still holds after what came
    again. A message under way meanwhile is refused, and awaited behind the others.
    """

    __slots__ = ("_away", "_order", "_places", "is_empty", "until")

    def __init__(self) -> None:
        #: When nothing can be awaited any more, unless something more goes back.
        self.until = -inf
        #: Whether nothing of the lane may be here but what is in flight.
        self.is_empty = True
        #: The place in the lane of every message that was here when the first went back, or came since.
        self._places: dict[str, int] = {}
        #: What went back and is not here again, each until when; and the same by place, with some no longer awaited.
        self._away: dict[str, float] = {}
        self._order: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._away)

    def first(self, now: float) -> str:
        """Tell what must come back before all others; empty where nothing must."""
        while self._order:
            message_id = self._order[0][1]
            if self._away.get(message_id, -inf) > now:
                return message_id
            heappop(self._order)
            self._away.pop(message_id, None)
        return ""

    def send_away(self, message_id: str, until: float) -> None:
        """Await a message; one that was not seen before stands behind all others."""
        if message_id not in self._away:
            heappush(self._order, (self._places.setdefault(message_id, len(self._places)), message_id))
        self._away[message_id] = self.until = until

    def forget(self, message_id: str) -> None:
        """Await a message no more."""
        self._away.pop(message_id, None)

    def admits(self, message_id: str, now: float) -> bool:
        """Tell whether a message may come in now: the first, or what stood in front of it and is sent once more."""
        first = self.first(now)
        return not first or self._places.get(message_id, inf) <= self._places[first]

    def know(self, lists: Iterable[Sequence[Held]]) -> None:
        """Learn a lane's order from what each handler holds of it: not each wants, or still has, everything."""
        known: dict[str, float] = {}
        for held_by_one in sorted(lists, key=len, reverse=True):
            rest, known = OrderedDict(known), {}
            for held in held_by_one:
                message_id = held.delivery.message.message_id
                while message_id in rest:
                    known.update((rest.popitem(last=False),))
                known[message_id] = min(held.since, known.get(message_id, inf))
            known |= rest
        # Sorting keeps the order of what came at one time.
        self._places = {message_id: place for place, message_id in enumerate(sorted(known, key=known.__getitem__))}
