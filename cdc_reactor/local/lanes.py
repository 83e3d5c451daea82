"""One ordering key of an ordered subscription: what is out, oldest first, and what waits behind it. Pure.

Several messages of a lane may be out at once, all to the same consumer. When one comes back, all later ones of the lane
come again after it, in order, acked or not (https://cloud.google.com/pubsub/docs/ordering, "message redelivery"); so an
ack is final only when everything before it is acked. With exactly-once delivery an ack is final at once.
"""

from __future__ import annotations

from collections import deque

from cdc_reactor.local.leases import Consumer, Lease
from cdc_reactor.local.stored_messages import StoredMessage


class Lane:
    """The held messages of one ordering key.

    `consumer` is whom the lane sticks to while something is out. `line` is the queue of lanes in which it stands, if it
    stands in one. Nothing is handed out before `due`.
    """

    __slots__ = ("consumer", "due", "key", "line", "out", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.out: deque[Lease] = deque()
        self.waiting: deque[Lease | StoredMessage] = deque()
        self.consumer: Consumer | None = None
        self.line: dict[Lane, None] | None = None
        self.due = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held any more."""
        return not self.out and not self.waiting

    def finished(self) -> list[Lease]:
        """Take from the front what is acked and has nothing unacked before it."""
        finished = []
        while self.out and self.out[0].is_acked:
            finished.append(self.out.popleft())
        return finished

    def take_back(self, first: Lease) -> list[Lease]:
        """Take back what is out from `first` on; return it, oldest first. What is given back waits before all else."""
        taken: list[Lease] = []
        while True:
            lease = self.out.pop()
            taken.append(lease)
            if lease is first:
                return taken[::-1]

    def leave_line(self) -> None:
        """Stand in no queue."""
        if self.line is not None:
            self.line.pop(self, None)
            self.line = None

    def join(self, line: dict[Lane, None]) -> None:
        """Stand in this queue and no other."""
        if self.line is not line:
            self.leave_line()
            self.line = line
            line[self] = None
