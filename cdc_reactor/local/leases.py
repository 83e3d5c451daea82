"""Who holds which message until when: deliveries that were handed out and are neither acked nor given back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from cdc_reactor.local.stored_messages import StoredMessage

if TYPE_CHECKING:
    from cdc_reactor.local.lanes import Lane


_COUNT_DIGITS = 12


class Consumer:
    """A stream or one unary pull: what it was given, and how much more it may have.

    `max_messages` and `max_bytes` bound what is outstanding (infinite for none); `wake` is called when there may be
    something for it and must return at once.
    """

    __slots__ = (
        "deadline",
        "is_open",
        "lanes",
        "max_bytes",
        "max_messages",
        "outstanding",
        "outstanding_bytes",
        "wake",
    )

    def __init__(
        self,
        deadline: float,
        *,
        max_messages: float = inf,
        max_bytes: float = inf,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.deadline = deadline
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.wake = wake
        self.outstanding = 0
        self.outstanding_bytes = 0
        #: Lanes that stick to this consumer and have something for it, in the order of their turn.
        self.lanes: dict[Lane, None] = {}
        self.is_open = True

    @property
    def is_full(self) -> bool:
        """Whether its flow control lets nothing more out."""
        return self.outstanding >= self.max_messages or self.outstanding_bytes >= self.max_bytes


class Lease:
    """A message on its way through one subscription, from its first delivery to its end.

    Leased while `ack_id` is not empty, by `consumer` until `deadline`. Otherwise it waits for its next delivery, or
    (`is_acked`) for those before it in its lane, and `is_final` says that its ack counts all the same. `attempt` is 1 +
    the times that it was given back or expired.
    """

    __slots__ = ("ack_id", "attempt", "consumer", "deadline", "is_acked", "is_final", "lane", "message")

    # Set when the lease is granted, not before: one of these is made for every delivery.
    consumer: Consumer
    deadline: float

    def __init__(self, message: StoredMessage, lane: Lane | None = None) -> None:
        self.message = message
        self.lane = lane
        self.attempt = 1
        self.ack_id = ""
        self.is_acked = self.is_final = False


class Leases:
    """All leases of a subscription by ack id, and when they end.

    Leases that end at the same moment share a set, so thousands of them cost one entry of the heap.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._count = 0
        self._by_ack_id: dict[str, Lease] = {}
        self._ending: dict[float, set[Lease]] = {}
        self._deadlines: list[float] = []

    def __len__(self) -> int:
        return len(self._by_ack_id)

    def find(self, ack_id: str) -> Lease | None:
        """Return the lease of this ack id, if it is one that still counts."""
        return self._by_ack_id.get(ack_id)

    def is_ack_id(self, ack_id: str) -> bool:
        """Tell whether this has the form of an ack id."""
        return len(ack_id) == len(self._nonce) + _COUNT_DIGITS and ack_id.isascii()

    def grant(self, leases: list[Lease], consumer: Consumer, deadline: float) -> None:
        """Lease to the consumer, each under a new ack id."""
        by_ack_id, nonce, count = self._by_ack_id, self._nonce, self._count
        size_bytes = 0
        for lease in leases:
            count += 1
            lease.ack_id = ack_id = f"{nonce}{count:012X}"
            lease.deadline = deadline
            lease.consumer = consumer
            by_ack_id[ack_id] = lease
            size_bytes += lease.message.size_bytes
        self._count = count
        consumer.outstanding += len(leases)
        consumer.outstanding_bytes += size_bytes
        self._set_at(deadline).update(leases)

    def extend(self, lease: Lease, deadline: float) -> None:
        """Let a lease end at another time."""
        self._forget_deadline(lease)
        lease.deadline = deadline
        self._set_at(deadline).add(lease)

    def release(self, lease: Lease) -> None:
        """End a lease: its ack id is dead."""
        del self._by_ack_id[lease.ack_id]
        lease.ack_id = ""
        consumer = lease.consumer
        consumer.outstanding -= 1
        consumer.outstanding_bytes -= lease.message.size_bytes
        self._forget_deadline(lease)

    def expired(self, now: float) -> list[Lease]:
        """Return the leases whose time is over, oldest message first; the caller releases them."""
        found: list[Lease] = []
        while self._deadlines and self._deadlines[0] <= now:
            found += self._ending.get(heappop(self._deadlines), ())
        found.sort(key=_seq)
        return found

    def next_end(self) -> float:
        """Return when the next lease ends, infinity when there is none."""
        while self._deadlines and self._deadlines[0] not in self._ending:
            heappop(self._deadlines)
        return self._deadlines[0] if self._deadlines else inf

    def all(self) -> Iterable[Lease]:
        """Return every lease, in the order of delivery."""
        return self._by_ack_id.values()

    def clear(self) -> None:
        """Release everything."""
        for lease in list(self.all()):
            self.release(lease)
        self._deadlines.clear()

    def _set_at(self, deadline: float) -> set[Lease]:
        ending = self._ending.get(deadline)
        if ending is None:
            ending = self._ending[deadline] = set()
            heappush(self._deadlines, deadline)
        return ending

    def _forget_deadline(self, lease: Lease) -> None:
        ending = self._ending[lease.deadline]
        ending.discard(lease)
        if not ending:
            del self._ending[lease.deadline]


def _seq(lease: Lease) -> int:
    return lease.message.seq
