"""One subscription through one reactor: received, routed, batched, run, published, settled.

Everything here happens on the event loop; only handlers run elsewhere. The order of things is the promise: a handler's
transaction, then its events confirmed by the broker, then the acknowledgement; a dead letter is confirmed before its
delivery is acknowledged. Whatever breaks between two steps leads to redelivery and never to loss. Neighbours:
`change_consumer` and `worker_consumer` are its two kinds, `pubsub` receives and acknowledges, `runners` run works,
`daemon` makes consumers and ends them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, Protocol

from msgspec.structs import replace

from cdc_reactor.breaker import Breaker, BreakerLimits
from cdc_reactor.dead_letters import Circumstances, letter, without_reasons
from cdc_reactor.decoder import Decoder
from cdc_reactor.errors import MessageRefused, PublishError
from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.pubsub import Limits
from cdc_reactor.reactor import Backoff, Failure, Outcome, Reactor, Router, Work
from cdc_reactor.runners import Runner, given_back
from cdc_reactor.telemetry import Telemetry
from cdc_reactor.turns import Turns

_log = logging.getLogger("cdc_reactor")

_ACK = Verdict.ACK

#: Between attempts to reach what is down, in seconds.
WORLD_RETRY = 1.0
# Dead letters that are published together.
_LETTERS_AT_ONCE = 100


class Subscription(Protocol):
    """What a consumer needs of a transport; `pubsub.Subscription` has it."""

    async def receive(self) -> list[Delivery]:
        """Wait for deliveries; an empty list when the intake was stopped."""

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge; confirmed in the background."""

    def nack(self, deliveries: Sequence[Delivery]) -> None:
        """Give back, in this order."""

    @property
    def has_more(self) -> bool:
        """Whether `receive` would not wait."""

    @property
    def limits(self) -> Limits:
        """How much is held at most."""

    def widen(self) -> None:
        """Let more be held, where that is possible."""


class Publisher(Protocol):
    """What publishes events and dead letters; `pubsub_publisher.Publisher` has it."""

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[str]:
        """Publish in order; the ids of what the broker has confirmed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What consumers share; `retry_limit` is how long, in seconds, a delivery may wait for retries.

    `turns` are those of the runner.
    """

    runner: Runner
    turns: Turns
    publisher: Publisher
    telemetry: Telemetry
    dead_letter_topic: str
    backoff: Backoff = field(default_factory=Backoff)
    breaker_limits: BreakerLimits = field(default_factory=BreakerLimits)
    retry_limit: float = 600.0
    clock: Callable[[], float] = time.time


class Consumer(ABC):
    """Consumes one subscription; not thread-safe, made and used on the event loop.

    At most `max_running` of its works are in the runner at a time. `decoder` reads changes for their dead letters.
    """

    def __init__(
        self,
        name: str,
        subscription: Subscription,
        router: Router,
        *,
        surroundings: Surroundings,
        decoder: Decoder | None = None,
        max_running: int | None = None,
    ) -> None:
        self.name = name
        self._subscription = subscription
        self._decoder = decoder
        self._around = surroundings
        self._max_running = max_running
        self._loop = asyncio.get_running_loop()
        self._reactor = Reactor(router, backoff=surroundings.backoff, hold_limit=surroundings.retry_limit)
        self._timer: asyncio.TimerHandle | None = None
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._running: set[Work] = set()
        self._publishing: set[asyncio.Task[None]] = set()
        self._letters: deque[Settlement] = deque()
        self._burial: asyncio.Task[None] | None = None
        self._first_failures: dict[Hashable, float] = {}
        self._breakers: dict[str, Breaker] = {}
        self._paused: dict[tuple[str, str], str] = {}
        #: How long, in seconds, one run may take without anything being wrong.
        self.patience = 0.0
        #: When anything was last settled, in loop time; or None.
        self.last_progress: float | None = None

    # ── what its kinds know ─────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def take_in(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries to the reactor, and start what can be started.

        Raises:
            Stopped: a policy says that nothing shall go on.
        """

    @abstractmethod
    def table_of(self, message: Message) -> str:
        """Name the table of a message, for people; empty where it has none."""

    @abstractmethod
    def tell_run(self, work: Work, seconds: float) -> None:
        """Tell the telemetry of a work that came back."""

    @abstractmethod
    def report(self) -> None:
        """Hand running totals to the telemetry; cheap, but not for every batch."""

    @property
    def outstanding(self) -> int:
        """Deliveries received and not yet settled."""
        return self._reactor.outstanding + len(self._letters)

    @property
    def oldest_age(self) -> float | None:
        """How long ago, in seconds, the oldest of what is held arrived; None where nothing is."""
        since = self._reactor.oldest_since
        return None if since is None else self._loop.time() - since

    @property
    def lanes_held(self) -> int:
        """Lanes of which something is in flight or waits to be tried again."""
        return self._reactor.lanes_held

    @property
    def halted(self) -> dict[str, str]:
        """Handlers that stopped at a poisoned change, each with why."""
        return {name: failure.told for name, failure in self._reactor.halted.items()}

    # ── intake ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Consume until the intake is stopped.

        Raises:
            Stopped: a policy says that nothing shall go on.
            UsageError: the subscription is gone, or may not be read any more.
        """
        while deliveries := await self._subscription.receive():
            size_bytes = sum([len(d.message.data) for d in deliveries])
            self._around.telemetry.received(self.name, len(deliveries), size_bytes)
            await self.take_in(deliveries)
            if self._subscription.has_more:
                # A stream that always has something more must not keep all others waiting.
                await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not longer than until the drain begins."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    # ── works ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> None:
        """Start what can be started, settle what is settled, and come again when something more is due."""
        now = self._loop.time()
        runner = self._around.runner
        while (room := self._room()) > 0:
            works = self._reactor.ready(now, limit=room)
            for work in works:
                self._running.add(work)
                runner.start(work, self._finish)
            if not works:
                break
        self._settle()
        self._set_timer(now)

    def _room(self) -> int:
        room = self._around.runner.room
        return room if self._max_running is None else min(room, self._max_running - len(self._running))

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_stuffed():
            self._subscription.widen()
        wakeup = self._reactor.next_wakeup()
        if wakeup is None:
            return
        if wakeup > now or self._room() > 0:
            self._timer = self._loop.call_at(max(wakeup, now + 0.001), self.advance)
        elif self._around.runner.room <= 0:
            self._around.turns.wait(self)
            # Should the runner have room again although nothing came back.
            self._timer = self._loop.call_at(now + WORLD_RETRY, self.advance)
        # Else as many as may are running, and the next that comes back goes on.

    def _is_stuffed(self) -> bool:
        """Tell whether all that may be held is here, and cannot be handled now although there are free hands.

        It waits to be tried again, or behind something in its lane; what could be handled does not get in.
        """
        limit = self._subscription.limits.max_messages
        return self._max_running is not None and 0 < limit <= self._reactor.outstanding and self._room() > 0

    def _finish(self, work: Work, outcome: Outcome, seconds: float) -> None:
        """Take back a work that ran: publish its events first, where it has any."""
        if outcome.events:
            task = self._loop.create_task(self._publish_and_complete(work, outcome))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
            self._around.turns.came_back(self)
        else:
            self._complete(work, outcome)
        self.tell_run(work, seconds)
        if outcome.failures:
            retried = sum(1 for i in outcome.failures if outcome.verdicts[i] is Verdict.NACK)
            self._around.telemetry.retried(work.consumer.name, retried)

    def _within_leases(self, outcome: Outcome) -> Outcome:
        """Shorten waits that no lease lasts for: what goes back to the broker comes again at once."""
        longest = self._around.retry_limit / 2
        if all(failure.delay is None or failure.delay <= longest for failure in outcome.failures.values()):
            return outcome
        failures = {
            index: failure if failure.delay is None else replace(failure, delay=min(failure.delay, longest))
            for index, failure in outcome.failures.items()
        }
        return replace(outcome, failures=failures)

    def _complete(self, work: Work, outcome: Outcome) -> None:
        outcome = self._within_leases(outcome)
        self._running.discard(work)
        self._note_failures(work, outcome)
        self.note_pause("world", work.consumer.name, outcome.pause_reason)
        if self._breakers and work.consumer.name in self._breakers:
            applied = sum(1 for verdict in outcome.verdicts if verdict is _ACK)
            self._breakers[work.consumer.name].note(applied, 0, self._loop.time())
        self._reactor.complete(work, outcome, self._loop.time())
        self._settle()
        if self._reactor.outstanding or self._around.turns.has_waiting:
            self._around.turns.came_back(self)
        if not self._running:
            self._idle.set()

    async def _publish_and_complete(self, work: Work, outcome: Outcome) -> None:
        try:
            for topic, messages in _by_topic(outcome.events):
                if not await self._publish(topic, messages):
                    # The end is near and the broker is not: what was applied comes again, which is no loss.
                    outcome = given_back(work, "its events were not confirmed")
                    break
        except MessageRefused as error:
            # A topic with a schema, for one; which change made the event is not known.
            failure = Failure(error)
            outcome = Outcome((Verdict.NACK,) * len(work.held), dict.fromkeys(range(len(work.held)), failure))
        self._complete(work, outcome)

    async def _publish(self, topic: str, messages: Sequence[Message]) -> Literal[True] | None:
        """Publish until the broker confirms; None where the end came before that."""
        while True:
            started = self._loop.time()
            try:
                await self._around.publisher.publish(topic, messages)
            except PublishError as error:
                self.note_pause("publish", topic, str(error))
                if self._draining.is_set():
                    return None
                await self.sleep(WORLD_RETRY)
            else:
                self.note_pause("publish", topic, "")
                self._around.telemetry.published(topic, len(messages), self._loop.time() - started)
                return True

    # ── settlements ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        settlements = self._reactor.settlements()
        if not settlements:
            return
        self.last_progress = self._loop.time()
        acked = [s.delivery for s in settlements if s.verdict is _ACK]
        if acked:
            self._subscription.ack(acked)
            self._around.telemetry.settled(self.name, Verdict.ACK, len(acked))
        if len(acked) < len(settlements):
            self._settle_failed([s for s in settlements if s.verdict is not _ACK])
        if self._first_failures:
            for settlement in settlements:
                if settlement.verdict is not Verdict.DEAD_LETTER:
                    self._first_failures.pop(settlement.delivery.message.message_id, None)

    def _settle_failed(self, settlements: Sequence[Settlement]) -> None:
        nacked = [s.delivery for s in settlements if s.verdict is Verdict.NACK]
        if nacked:
            self._subscription.nack(nacked)
            self._around.telemetry.settled(self.name, Verdict.NACK, len(nacked))
        letters = [s for s in settlements if s.verdict is Verdict.DEAD_LETTER]
        if not letters:
            return
        self._note_given_up(letters)
        self._letters.extend(letters)
        if self._burial is None or self._burial.done():
            self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        """Publish dead letters in their order; each is acknowledged when the broker has confirmed it."""
        while self._letters:
            chunk = [self._letters[n] for n in range(min(_LETTERS_AT_ONCE, len(self._letters)))]
            is_published: bool | None
            try:
                is_published = await self._publish(self._around.dead_letter_topic, [self._letter(s) for s in chunk])
            except MessageRefused:
                # One is so large that the reasons make it too large; which one, the publisher tells of one alone.
                chunk = chunk[:1]
                is_published = await self._bury_alone(chunk[0])
            except Exception:  # noqa: BLE001 - a task ends here, and its letters would stay
                # A fault of ours; those behind it must not wait for its cure.
                _log.exception("message %s cannot be buried", chunk[0].delivery.message.message_id)
                chunk = chunk[:1]
                self._subscription.nack([chunk[0].delivery])
                is_published = False
            if is_published is None:
                return
            for settlement in chunk:
                self._letters.popleft()
                self._first_failures.pop(settlement.delivery.message.message_id, None)
            if is_published:
                self._subscription.ack([s.delivery for s in chunk])
                self._around.telemetry.settled(self.name, Verdict.DEAD_LETTER, len(chunk))

    async def _bury_alone(self, settlement: Settlement) -> bool | None:
        """Publish one dead letter, without its reasons where there is no room for them; else give it back."""
        message = self._letter(settlement)
        reason = ""
        for form in (message, without_reasons(message)):
            try:
                return await self._publish(self._around.dead_letter_topic, [form])
            except MessageRefused as error:
                reason = str(error)
        # Those behind it must not wait until somebody has mended the topic; it comes again, and is refused again.
        message_id = settlement.delivery.message.message_id
        _log.error("message %s is refused as a dead letter and goes back to the broker: %s", message_id, reason)
        self._subscription.nack([settlement.delivery])
        self._around.telemetry.settled(self.name, Verdict.NACK, 1)
        return False

    def _letter(self, settlement: Settlement) -> Message:
        now = self._around.clock()
        first = self._first_failures.get(settlement.delivery.message.message_id, now)
        return letter(settlement, self._decoder, Circumstances(self.name, first, now))

    # ── what is noted ───────────────────────────────────────────────────────────────────────────────────────────────

    def _note_failures(self, work: Work, outcome: Outcome) -> None:
        for index in outcome.failures:
            message_id = work.held[index].delivery.message.message_id
            self._first_failures.setdefault(message_id, self._around.clock())

    def _note_given_up(self, letters: Sequence[Settlement]) -> None:
        """Count dead letters for the breakers; what only follows a parked change is no failure of its own."""
        now = self._loop.time()
        for settlement in letters:
            _log.warning(
                "%s: message %s goes to the dead letters: %s",
                settlement.handler or self.name,
                settlement.delivery.message.message_id,
                settlement.reason,
            )
        counted = Counter((s.handler, self.table_of(s.delivery.message)) for s in letters)
        for (handler, table), count in counted.items():
            self._around.telemetry.dead_lettered(handler, table, count)
        failed = Counter(s.handler for s in letters if s.error is not None)
        for handler, count in failed.items():
            breaker = self._breakers.get(handler)
            if breaker is None:
                breaker = self._breakers[handler] = Breaker(self._around.breaker_limits)
            pause = breaker.note(0, count, now)
            if pause is not None:
                self._rest(handler, pause, now)

    def _rest(self, handler: str, pause: float, now: float) -> None:
        _log.error(
            "%s rests for %g s: too much of what it gets ends in the dead letters; see why before all of it does",
            handler or self.name,
            pause,
        )
        tell = self._around.telemetry.breaker
        tell(handler or self.name, is_open=True)
        self._reactor.pause(handler, now + pause)
        self._loop.call_later(pause, lambda: tell(handler or self.name, is_open=False))

    def note_pause(self, kind: str, what: str, reason: str) -> None:
        """Log once when something that we need goes, and once when it is back."""
        if not self._paused and not reason:
            return
        key = (kind, what)
        if reason:
            if key not in self._paused:
                _log.warning("%s waits: %s", what, reason)
                self._around.telemetry.paused(what, kind, is_paused=True)
            self._paused[key] = reason
        elif self._paused.pop(key, ""):
            _log.warning("%s goes on", what)
            self._around.telemetry.paused(what, kind, is_paused=False)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_drain(self) -> None:
        """Give back what has not begun, and from now on whatever comes or fails. The intake must be stopped before."""
        self._draining.set()
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.drain()
        self._settle()

    async def drain(self, grace: float) -> bool:
        """Let what runs end within `grace` seconds; tell whether all of it did.

        What does not end in time is given back, too; the caller then ends the process, because a handler cannot be
        stopped.
        """
        deadline = self._loop.time() + grace
        await self._until_idle(deadline)
        for work in self._running:
            self._subscription.nack([held.delivery for held in reversed(work.held)])
        if self._burial is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._burial, max(0.0, deadline - self._loop.time()))
        # Letters that were not confirmed: their messages come again.
        self._subscription.nack([s.delivery for s in reversed(self._letters)])
        return not self._running

    async def _until_idle(self, deadline: float) -> None:
        while self._running and (left := deadline - self._loop.time()) > 0:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)


def _by_topic(events: Sequence[Publication | EncodedEvent]) -> list[tuple[str, list[Message]]]:
    """Encode events, those of one topic together, in their order."""
    encoded = [EncodedEvent.of(e) if isinstance(e, Publication) else e for e in events]
    encoded.sort(key=lambda event: event.topic)
    return [
        (topic, [Message(event.data, event.attributes, event.key) for event in group])
        for topic, group in groupby(encoded, key=lambda event: event.topic)
    ]
