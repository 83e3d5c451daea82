"""Lanes: the deliveries that must stay in order, and what waits for one consumer of one stream.

A `Queue` is the bookkeeping of the reactor and knows nothing of verdicts, retries or brokers; `reactor` decides, this
keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Any, Final, Protocol, final

import msgspec

from cdc_reactor.handlers import OnPoison
from cdc_reactor.messages import Delivery, Settlement

#: The lane of a change that concerns every row of its table: it waits for all others and all others wait for it.
EVERY_LANE: Final = object()


class Lone(tuple[Hashable, ...]):
    """The lane of one message alone: nothing else is ever in it, and parking it would keep nothing back."""

    __slots__ = ()


class Consumer(Protocol):
    """What the reactor needs to know of a handler; read-only."""

    @property
    def name(self) -> str:
        """What it is called in settlements and reports."""

    @property
    def max_size(self) -> int:
        """How many changes at most make a batch."""

    @property
    def max_wait(self) -> float:
        """How long, in seconds, the oldest change waits at most for its batch to fill."""

    @property
    def max_attempts(self) -> int:
        """After how many failures a change is poison."""

    @property
    def on_poison(self) -> OnPoison:
        """What becomes of poison."""


@final
class Held(msgspec.Struct, eq=False, gc=False):
    """A delivery that the reactor holds: what it means, where it goes, and its lane (looked up when first needed)."""

    delivery: Delivery
    subject: Any
    route: Route
    known_lane: Hashable = None
    since: float = 0.0
    remaining: int = 1
    worst: Settlement | None = None

    @property
    def lane(self) -> Hashable:
        """What must stay in order with it."""
        lane = self.known_lane
        if lane is None:
            lane = self.known_lane = self.delivery.message.ordering_key or self.route.lane_of(self.subject)
        return lane


class Route:
    """The consumers that want a delivery; one object for all deliveries that go the same way.

    `stream` tells apart what must not share a batch: one connector's one table, one subscription. `lane_of` names the
    lane of what has no ordering key; it raises nothing.
    """

    __slots__ = ("consumers", "lane_of", "only", "queues", "stream")

    def __init__(
        self, stream: Hashable, consumers: Sequence[Consumer], lane_of: Callable[[Any], Hashable] = lambda _: ""
    ) -> None:
        self.stream = stream
        self.consumers = tuple(consumers)
        self.lane_of = lane_of
        self.queues: tuple[Queue, ...] = ()
        self.only: Queue | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why a change was not applied.

    `delay` is the wait in seconds that the handler asked for, if it did. `reason` is what is told of the error,
    where its own text will not do: it may hold row data.
    """

    error: BaseException
    delay: float | None = None
    reason: str = ""

    @property
    def told(self) -> str:
        """What people are told of it."""
        return self.reason or str(self.error)


class Queue:
    """What waits for one consumer of one stream."""

    __slots__ = (
        "attempts",
        "barriers",
        "busy",
        "consumer",
        "front",
        "halted",
        "out",
        "parked",
        "paused_until",
        "pending",
        "stalled",
        "stream",
    )

    def __init__(self, stream: Hashable, consumer: Consumer) -> None:
        self.stream = stream
        self.consumer = consumer
        #: Arrived and not yet looked at, oldest first.
        self.pending: list[Held] = []
        #: Lanes that are free again (oldest first), each with what waited in it; before all of `pending`.
        self.front: deque[deque[Held]] = deque()
        #: Lanes in a work or in a retry, each with what waits behind it.
        self.busy: dict[Hashable, deque[Held] | None] = {}
        #: The one batch that is out and whose lanes are not marked busy yet.
        self.out: list[Held] | None = None
        #: Failed attempts of changes that are still to succeed.
        self.attempts: dict[Hashable, int] = {}
        self.parked: set[Hashable] = set()
        self.barriers = 0
        self.stalled = False
        self.paused_until = -inf
        self.halted: Failure | None = None

    def ready_at(self) -> float:
        """When a batch can be had: `-inf` for at once, `inf` for not before something else happens."""
        if self.stalled or self.halted is not None or not (self.pending or self.front):
            return inf
        if self.front or len(self.pending) >= self.consumer.max_size:
            return self.paused_until
        return max(self.paused_until, self.pending[0].since + self.consumer.max_wait)

    def take(self) -> list[Held]:
        """Take the next batch and make its lanes busy; empty where everything waits for something in flight."""
        size = self.consumer.max_size
        self.mark()
        if not (self.busy or self.front or self.barriers):
            batch = self.out = self.pending[:size]
            del self.pending[:size]
            return batch
        batch, rests = self._take_around(size)
        self.stalled = not batch and bool(self.pending or self.front)
        self.busy.update(dict.fromkeys([h.lane for h in batch]))
        if rests:
            self.busy.update(rests)
        return batch

    def mark(self) -> None:
        """Mark the lanes of the batch that is out, because from now on they matter."""
        if self.out is not None:
            self.busy.update(dict.fromkeys([h.lane for h in self.out]))
            self.out = None

    def _take_around(self, size: int) -> tuple[list[Held], dict[Hashable, deque[Held]] | None]:
        batch: list[Held] = []
        if EVERY_LANE in self.busy:
            return batch, None
        rests: dict[Hashable, deque[Held]] = {}
        while self.front and len(batch) < size:
            chunk = self.front[0]
            is_alone = chunk[0].lane is EVERY_LANE or key_of(chunk[0]) in self.attempts
            if is_alone and batch:
                return batch, rests
            self.front.popleft()
            room = 1 if is_alone else size - len(batch)
            while chunk and room:
                batch.append(chunk.popleft())
                room -= 1
            if chunk:
                rests[batch[-1].lane] = chunk
            if is_alone:
                return batch, rests
        if not self.front:
            self._take_pending(batch, size)
        return batch, rests

    def _take_pending(self, batch: list[Held], size: int) -> None:
        looked_at = 0
        busy = self.busy
        for held in self.pending:
            lane = held.lane
            if len(batch) >= size:
                break
            if lane is EVERY_LANE:
                if not batch and not busy:
                    batch.append(held)
                    self.barriers -= 1
                    looked_at += 1
                break
            looked_at += 1
            if lane in busy:
                waiting = busy[lane]
                if waiting is None:
                    busy[lane] = deque((held,))
                else:
                    waiting.append(held)
            else:
                batch.append(held)
        del self.pending[:looked_at]

    def release(self, batch: list[Held]) -> None:
        """Free the lanes of a batch that was applied whole."""
        self.stalled = False
        if batch is self.out:
            self.out = None
            return
        pop, front = self.busy.pop, self.front
        for held in batch:
            waiting = pop(held.lane, None)
            if waiting:
                front.append(waiting)

    def give_up_lane(self, lane: Hashable) -> list[Held]:
        """Take out of `pending` what belongs to a lane that will not be handled any more."""
        gone = [h for h in self.pending if h.lane == lane]
        if gone:
            self.pending = [h for h in self.pending if h.lane != lane]
            self.barriers -= len(gone) if lane is EVERY_LANE else 0
        return gone

    def clear(self, in_flight: set[Hashable]) -> list[Held]:
        """Take out everything that is not in flight, each lane in order."""
        held = [h for chunk in self.front for h in chunk]
        for lane, waiting in list(self.busy.items()):
            held.extend(waiting or ())
            if lane in in_flight:
                self.busy[lane] = None
            else:
                del self.busy[lane]
        held.extend(self.pending)
        self.front.clear()
        self.pending.clear()
        self.barriers = 0
        return held


def key_of(held: Held) -> Hashable:
    """Tell a change again when it comes back: by its message id, or by itself where messages have none."""
    return held.delivery.message.message_id or held
