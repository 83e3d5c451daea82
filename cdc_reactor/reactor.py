"""The reactor: lanes, batches, retries, settlements. A machine of values without clock, thread, log or I/O.

Deliveries go in by `receive`, batches of changes come out of `ready` as Work, what became of them goes back by
`complete`, and `settlements` says what to tell the broker. Time is whatever the caller passes as `now` (seconds,
never decreasing). The daemon, the replay, the test harness and the property tests all drive this same object. Not
thread-safe.

What it promises:

1. changes of one lane reach a handler in the order of their arrival and are never in two works at once;
2. every delivery is settled exactly once;
3. after a failure nothing behind it in its lane is handed to that handler before it (the lane is held);
4. a poisoned change delays its own lane only (and a truncate of its table, which waits for all lanes and holds
   them all).

How: each handler of each table has a `lanes.Queue`. What arrives is appended to `pending`, whatever its lane. The
lanes of a batch that is out are busy; a change whose lane is busy is set aside to wait behind it, and comes back,
before all that arrived later, when the lane is free again. Lanes are looked at only when something else is to be
handed out meanwhile, or when something failed. So the common case costs one append and a share of one slice.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol

import msgspec

from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.lanes import EVERY_LANE, Consumer, Failure, Held, Lone, Queue, Route, key_of
from cdc_reactor.messages import Delivery, Settlement, Verdict
from cdc_reactor.redelivery import Awaited

__all__ = ["EVERY_LANE", "Backoff", "Consumer", "Failure", "Held", "Outcome", "Reactor", "Route", "Work", "key_of"]

_ACK = Verdict.ACK


class Outcome(msgspec.Struct, frozen=True):
    """What one run produced: one verdict for each change of the work, in order, and events to publish.

    NACK with a failure counts as an attempt of that change; NACK without one gives the change back uncounted, because
    it stands behind another or because the world (not the data) failed. `pause` then stops the handler for so many
    seconds.
    """

    verdicts: Sequence[Verdict]
    failures: Mapping[int, Failure] = {}
    events: Sequence[Publication | EncodedEvent] = ()
    runs: int = 1
    pause: float | None = None
    pause_reason: str = ""

    @classmethod
    def acked(cls, count: int, events: Sequence[Publication] = ()) -> Outcome:
        """All of `count` changes were applied."""
        return cls((_ACK,) * count, events=events)


class Work(msgspec.Struct, eq=False, gc=False):
    """A batch for one handler, handed out once; give it back by `Reactor.complete`."""

    consumer: Any
    held: list[Held]
    queue: Any
    attempt: int = 1

    @property
    def subjects(self) -> list[Any]:
        """What the handler is to be given, in order."""
        return [h.subject for h in self.held]

    @property
    def lanes(self) -> list[Hashable]:
        """The lane of each, in the same order."""
        return [h.lane for h in self.held]


class Backoff(msgspec.Struct, frozen=True):
    """How long a failed change waits: `first` seconds, doubled at each attempt up to `limit`, minus a random half.

    `random` gives numbers from 0 to 1; the core has no randomness of its own.
    """

    first: float = 0.1
    limit: float = 60.0
    random: Callable[[], float] = lambda: 1.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after this attempt (1 for the first)."""
        return min(self.limit, self.first * 2.0 ** min(attempt - 1, 60)) * (0.5 + self.random() / 2)


class Routed(Protocol):
    """What a delivery means, with the way that it goes."""

    @property
    def route(self) -> Route:
        """Which consumers want it."""


class Router(Protocol):
    """Tells where deliveries go."""

    def route_all(self, deliveries: Sequence[Delivery], routed: list[Routed | Held | Settlement], /) -> None:
        """Append to `routed` an answer for each delivery, in order; raises nothing but errors of the world.

        The answer is what the delivery means, where its route is all that is to be told of it, else a Held, or a
        Settlement for what needs no handler.
        """


def _one_by_one(
    route: Callable[[Delivery], Held | Settlement],
) -> Callable[[Sequence[Delivery], list[Routed | Held | Settlement]], None]:
    def route_all(deliveries: Sequence[Delivery], routed: list[Routed | Held | Settlement]) -> None:
        # Extended, not made anew: what came before an error is kept.
        routed.extend(map(route, deliveries))

    return route_all


class Reactor:
    """Hands out work and settles deliveries.

    `route` tells where deliveries go: a Router, or a function that returns a Held for each, or a Settlement for what
    needs no handler. What is wrong with a delivery becomes its settlement and is not raised.

    Failed changes are retried here, after `backoff`, as long as a delivery may be held (`hold_limit` seconds, the
    lease). Beyond that their lane goes back to the broker (NACK), and nothing of it is handed out before they return;
    what has not come for `redelivery_timeout` seconds is awaited no more. A truncate, and what a truncate waits for, is
    retried here however long it takes: no broker would hold the other lanes back meanwhile.
    """

    def __init__(
        self,
        route: Router | Callable[[Delivery], Held | Settlement],
        *,
        backoff: Backoff | None = None,
        hold_limit: float = inf,
        redelivery_timeout: float = 600.0,
    ) -> None:
        self._route_all = _one_by_one(route) if callable(route) else route.route_all
        self._backoff = backoff or Backoff()
        self._hold_limit = hold_limit
        self._redelivery_timeout = redelivery_timeout
        self._queues: dict[tuple[Hashable, int], Queue] = {}
        self._settled: list[Settlement] = []
        self._retries: list[tuple[float, int, Queue, Hashable]] = []
        # The one to be given up first stands first.
        self._awaited: OrderedDict[tuple[Hashable, Hashable], Awaited] = OrderedDict()
        self._running: set[Work] = set()
        self._sequence = 0
        self._turn = 0
        self._draining = False
        # Whether arrivals must be looked at one by one: draining, or lanes await what went back.
        self._is_careful = False
        #: Deliveries received and not yet settled.
        self.outstanding = 0
        #: How many deliveries the last `receive_all` took in: all of them, unless it raised.
        self.taken = 0

    def receive(self, delivery: Delivery, now: float) -> None:
        """Take in a delivery; whatever is wrong with it becomes its settlement."""
        self.receive_all((delivery,), now)

    def receive_all(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Take in deliveries in the order of their arrival; the same as `receive` for each, at less cost.

        What the route raises (a schema registry that is down) is raised here, when `taken` of them were taken in.
        """
        routed: list[Routed | Held | Settlement] = []
        try:
            self._route_all(deliveries, routed)
        finally:
            self.taken = len(routed)
            self._take_in(deliveries, routed, now)

    def _take_in(self, deliveries: Sequence[Delivery], routed: Sequence[Any], now: float) -> None:
        is_careful = self._is_careful
        for delivery, answer in zip(deliveries, routed, strict=False):
            if type(answer) is Settlement:
                self._settled.append(answer)
                continue
            if type(answer) is Held:
                held = answer
                held.since = now
            else:
                held = Held(delivery, answer, answer.route, None, now)
            self.outstanding += 1
            queue = held.route.only
            if queue is None or is_careful or queue.parked or held.known_lane is EVERY_LANE:
                self._receive_carefully(held, now)
                is_careful = self._is_careful
            else:
                queue.pending.append(held)

    def _receive_carefully(self, held: Held, now: float) -> None:
        queues = held.route.queues or self._open(held.route)
        held.remaining = len(queues)
        refusal = self._refusal(held, now) if self._is_careful else ""
        for queue in queues:
            if refusal:
                self._finish(held, Settlement(held.delivery, Verdict.NACK, refusal))
            elif queue.parked and held.lane in queue.parked:
                self._finish(held, _parked(held, queue))
            else:
                queue.barriers += held.known_lane is EVERY_LANE
                queue.pending.append(held)

    def _refusal(self, held: Held, now: float) -> str:
        """Say why a delivery must go straight back, if it must."""
        if self._draining:
            return "draining"
        key = (held.route.stream, held.lane)
        awaited = self._awaited.get(key)
        if awaited is None:
            return ""
        message_id = held.delivery.message.message_id
        is_clear = not awaited.is_empty or not any(held.lane in queue.busy for queue in self._queues_of(key[0]))
        if is_clear and awaited.admits(message_id, now):
            awaited.is_empty = False
            awaited.forget(message_id)
            if not awaited:
                self._stop_awaiting(key)
            return ""
        if message_id:
            awaited.send_away(message_id, now + self._redelivery_timeout)
            self._awaited.move_to_end(key)
        first = awaited.first(now)
        return f"behind message {first}, which went back"

    def _stop_awaiting(self, key: tuple[Hashable, Hashable]) -> None:
        del self._awaited[key]
        self._is_careful = self._draining or bool(self._awaited)

    def _open(self, route: Route) -> tuple[Queue, ...]:
        queues = []
        for consumer in route.consumers:
            key = (route.stream, id(consumer))
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = Queue(route.stream, consumer)
            queues.append(queue)
        route.queues = tuple(queues)
        route.only = queues[0] if len(queues) == 1 else None
        return route.queues

    def ready(self, now: float, *, limit: int | None = None, flush: bool = False) -> list[Work]:
        """Hand out the batches that are full or old enough; `flush` hands out all that can run, full or not."""
        self._wake(now)
        works: list[Work] = []
        queues = list(self._queues.values())
        # Begin behind the queue that was served last, so that a limit starves none.
        first = self._turn
        for turn in range(first, first + len(queues)):
            queue = queues[turn % len(queues)]
            while (limit is None or len(works) < limit) and self._is_ready(queue, now, flush=flush):
                batch = queue.take()
                if not batch:
                    break
                attempt = queue.attempts.get(key_of(batch[0]), 0) + 1 if queue.attempts else 1
                work = Work(queue.consumer, batch, queue, attempt)
                self._running.add(work)
                works.append(work)
                self._turn = (turn + 1) % len(queues)
        return works

    @staticmethod
    def _is_ready(queue: Queue, now: float, *, flush: bool) -> bool:
        at = queue.ready_at()
        return at <= now or (flush and at < inf and queue.paused_until <= now)

    def _wake(self, now: float) -> None:
        while self._retries and self._retries[0][0] <= now:
            _, _, queue, lane = heappop(self._retries)
            waiting = queue.busy.pop(lane, None)
            queue.stalled = False
            if waiting:
                queue.front.appendleft(waiting)
        while self._awaited:
            key, awaited = next(iter(self._awaited.items()))
            if now < awaited.until:
                break
            self._stop_awaiting(key)

    def complete(self, work: Work, outcome: Outcome, now: float) -> None:
        """Take back a work with one verdict for each of its changes.

        Raises:
            ValueError: the work is not out, or the number of verdicts is not that of its changes.
        """
        if work not in self._running:
            raise ValueError("this work is not out: it was completed already, or another reactor's")
        if len(outcome.verdicts) != len(work.held):
            raise ValueError(f"{len(outcome.verdicts)} verdicts for {len(work.held)} changes")
        self._running.discard(work)
        queue: Queue = work.queue
        if outcome.pause is not None:
            queue.paused_until = max(queue.paused_until, now + outcome.pause)
        if any(outcome.verdicts):
            self._complete_unevenly(work, outcome, now)
            return
        queue.release(work.held)
        settle = self._settled.append
        self.outstanding -= len(work.held)
        for held in work.held:
            if held.remaining == 1 and held.worst is None:
                settle(Settlement(held.delivery, _ACK))
            else:
                self.outstanding += 1
                self._finish(held, Settlement(held.delivery, _ACK))
        if queue.attempts:
            for held in work.held:
                queue.attempts.pop(key_of(held), None)

    def _complete_unevenly(self, work: Work, outcome: Outcome, now: float) -> None:
        queue: Queue = work.queue
        queue.mark()
        back: dict[Hashable, deque[Held]] = {held.lane: deque() for held in work.held}
        retry_at: dict[Hashable, float] = {}
        for index, (held, verdict) in enumerate(zip(work.held, outcome.verdicts, strict=True)):
            failure = outcome.failures.get(index)
            if verdict is _ACK:
                assert not back[held.lane], "an ACK behind a NACK in one lane would break its order"
                queue.attempts.pop(key_of(held), None)
                self._finish(held, Settlement(held.delivery, _ACK))
            elif failure is None or (back[held.lane] and queue.consumer.on_poison != "skip"):
                # Also poison behind what is tried again: it parks or halts its lane only when nothing stands before it.
                back[held.lane].append(held)
            elif (wait := self._judge(queue, held, verdict, failure)) is not None:
                back[held.lane].append(held)
                retry_at[held.lane] = now + wait
        for lane, chunk in back.items():
            self._return_lane(queue, lane, chunk, retry_at.get(lane), now)
        queue.stalled = False

    def _judge(self, queue: Queue, held: Held, verdict: Verdict, failure: Failure) -> float | None:
        """Decide on a change that failed: the seconds until it is tried again, or None where it is settled."""
        key = key_of(held)
        attempts = queue.attempts.get(key, 0) + 1
        if verdict is Verdict.NACK and attempts < queue.consumer.max_attempts:
            queue.attempts[key] = attempts
            return self._backoff.delay(attempts) if failure.delay is None else failure.delay
        if queue.consumer.on_poison == "halt":
            queue.halted = failure
            return 0.0
        if queue.consumer.on_poison == "park" and not isinstance(held.lane, Lone):
            queue.parked.add(held.lane)
        queue.attempts.pop(key, None)
        name = queue.consumer.name
        self._finish(
            held,
            Settlement(
                held.delivery, Verdict.DEAD_LETTER, failure.reason or str(failure.error), failure.error, name, attempts
            ),
        )
        return None

    def _return_lane(
        self, queue: Queue, lane: Hashable, chunk: deque[Held], retry_at: float | None, now: float
    ) -> None:
        """Put what was not applied back in front of what waits behind it."""
        chunk.extend(queue.busy.pop(lane, None) or ())
        if lane in queue.parked:
            chunk.extend(queue.give_up_lane(lane))
            for held in chunk:
                self._finish(held, _parked(held, queue))
        elif not chunk:
            return
        elif self._draining:
            self._give_back(queue, chunk, "draining")
        elif self._is_going_back(queue, lane):
            self._give_back_lane(queue, lane, chunk, "another handler gave it back", now)
        elif retry_at is None or queue.halted is not None:
            queue.front.appendleft(chunk)
        elif retry_at - chunk[0].since > self._hold_limit and self._may_go_back(queue, lane):
            self._give_back_lane(queue, lane, chunk, "its lease would end before the next attempt", now)
        else:
            queue.busy[lane] = chunk
            self._sequence += 1
            heappush(self._retries, (retry_at, self._sequence, queue, lane))

    def _is_going_back(self, queue: Queue, lane: Hashable) -> bool:
        awaited = self._awaited.get((queue.stream, lane)) if self._awaited else None
        return awaited is not None and awaited.is_empty

    def _may_go_back(self, queue: Queue, lane: Hashable) -> bool:
        return lane is not EVERY_LANE and not any(other.barriers for other in self._queues_of(queue.stream))

    def _queues_of(self, stream: Hashable) -> list[Queue]:
        return [queue for queue in self._queues.values() if queue.stream == stream]

    def _give_back_lane(self, queue: Queue, lane: Hashable, chunk: deque[Held], reason: str, now: float) -> None:
        """Send back to the broker what all handlers hold of a lane, but for what is in flight, and await it."""
        chunk.extend(queue.give_up_lane(lane))
        parts, known = [(queue, chunk)], [chunk]
        for other in self._queues_of(queue.stream):
            if other is not queue:
                other.mark()
                in_flight = [h for w in self._running if w.queue is other for h in w.held if h.lane == lane]
                parts.append((other, self._take_out(other, lane, is_in_flight=bool(in_flight))))
                known.append(deque((*in_flight, *parts[-1][1])))
        self._await((queue.stream, lane), [part for _, part in parts], known, now)
        for holder, part in parts:
            self._give_back(holder, part, reason)

    def _take_out(self, queue: Queue, lane: Hashable, *, is_in_flight: bool) -> deque[Held]:
        part = deque(queue.busy.get(lane) or ())
        if is_in_flight:
            queue.busy[lane] = None
        elif queue.busy.pop(lane, None):
            self._retries = [retry for retry in self._retries if not (retry[2] is queue and retry[3] == lane)]
            heapify(self._retries)
        queue.stalled = False
        for waiting in [w for w in queue.front if w[0].lane == lane]:
            queue.front.remove(waiting)
            part.extend(waiting)
        part.extend(queue.give_up_lane(lane))
        return part

    def _await(
        self,
        key: tuple[Hashable, Hashable],
        parts: Sequence[Sequence[Held]],
        known: Sequence[Sequence[Held]],
        now: float,
    ) -> None:
        awaited = self._awaited.pop(key, None)
        gone = [held.delivery.message.message_id for part in parts for held in part]
        if awaited is None:
            # Messages without ids cannot be told from others when they come again.
            if not all(gone):
                return
            awaited = Awaited()
            awaited.know(known)
        for message_id in filter(None, gone):
            awaited.send_away(message_id, now + self._redelivery_timeout)
        awaited.is_empty = True
        self._awaited[key] = awaited
        self._is_careful = True

    def _give_back(self, queue: Queue, chunk: Sequence[Held], reason: str) -> None:
        # The last first: a broker that redelivers at once then begins with the oldest.
        for held in reversed(chunk):
            # Where messages have no ids nobody will know it again.
            queue.attempts.pop(held, None)
            self._finish(held, Settlement(held.delivery, Verdict.NACK, reason, None, queue.consumer.name))

    def _finish(self, held: Held, settlement: Settlement) -> None:
        """Count one consumer's verdict on a delivery, and settle it when the last has spoken."""
        if settlement.verdict and (held.worst is None or settlement.verdict > held.worst.verdict):
            held.worst = settlement
        held.remaining -= 1
        assert held.remaining >= 0, "every delivery is settled exactly once"
        if held.remaining == 0:
            settlement = held.worst or settlement
            self._settled.append(settlement)
            self.outstanding -= 1
            if self._awaited and settlement.verdict is Verdict.DEAD_LETTER:
                self._await_no_more(held)

    def _await_no_more(self, held: Held) -> None:
        """Forget a message that one handler gave back and another put among the dead letters: it will not return."""
        key = (held.route.stream, held.lane)
        awaited = self._awaited.get(key)
        if awaited is not None:
            awaited.forget(held.delivery.message.message_id)
            if not awaited:
                self._stop_awaiting(key)

    def settlements(self) -> list[Settlement]:
        """Take what has been settled since the last call."""
        settled, self._settled = self._settled, []
        return settled

    def next_wakeup(self) -> float | None:
        """When `ready` may have something new, or None where only a delivery or a completion changes that."""
        times = [queue.ready_at() for queue in self._queues.values()]
        if self._retries:
            times.append(self._retries[0][0])
        earliest = min(times, default=inf)
        return None if earliest == inf else earliest

    def drain(self) -> None:
        """Give back everything that is not in flight, and from now on whatever arrives or fails."""
        self._draining = self._is_careful = True
        self._retries.clear()
        for queue in self._queues.values():
            queue.mark()
            in_flight = {lane for work in self._running if work.queue is queue for lane in work.lanes}
            for held in reversed(queue.clear(in_flight)):
                self._finish(held, Settlement(held.delivery, Verdict.NACK, "draining", None, queue.consumer.name))

    def pause(self, consumer_name: str, until: float) -> None:
        """Hand out nothing to a consumer before that time; what runs is not disturbed."""
        for queue in self._queues.values():
            if queue.consumer.name == consumer_name:
                queue.paused_until = max(queue.paused_until, until)

    @property
    def running(self) -> int:
        """Works that are out."""
        return len(self._running)

    @property
    def oldest_since(self) -> float | None:
        """When the oldest of what is held arrived; None where nothing is."""
        heads = [work.held[0] for work in self._running]
        for queue in self._queues.values():
            heads.extend(queue.pending[:1])
            heads.extend(chunk[0] for chunk in (*queue.front, *filter(None, queue.busy.values())))
        return min((held.since for held in heads), default=None)

    @property
    def lanes_held(self) -> int:
        """Lanes of which something is in flight or waits to be tried again."""
        for queue in self._queues.values():
            queue.mark()
        return sum(len(queue.busy) for queue in self._queues.values())

    @property
    def halted(self) -> dict[str, Failure]:
        """Handlers that stopped at a poisoned change, each with what it failed on."""
        return {q.consumer.name: q.halted for q in self._queues.values() if q.halted is not None}


def _parked(held: Held, queue: Queue) -> Settlement:
    return Settlement(
        held.delivery, Verdict.DEAD_LETTER, "what came before it in its lane is parked", None, queue.consumer.name
    )
