"""One subscription through one reactor: received, routed, batched, run, published, settled.

Everything here happens on the event loop; only handlers run elsewhere. The order of things is the promise: a handler's
transaction, then its events confirmed by the broker, then the acknowledgement; a dead letter is confirmed before its
delivery is acknowledged. Whatever breaks between two steps leads to redelivery and never to loss. Neighbours: `pubsub`
receives and acknowledges, `runners` run works, `daemon` makes consumers and ends them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol

from msgspec.structs import replace

from cdc_reactor.aside import aside
from cdc_reactor.breaker import Breaker, BreakerLimits
from cdc_reactor.dead_letters import Circumstances, letter, without_reasons
from cdc_reactor.decoder import Decoder
from cdc_reactor.deferred_schemas import SchemaNeeded
from cdc_reactor.envelope import Drop
from cdc_reactor.errors import MessageRefused, PublishError, ReactorError, Stopped, WorldError
from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import Backoff, Failure, Outcome, Reactor, Work
from cdc_reactor.routing import CdcRouter
from cdc_reactor.runners import Runner, given_back
from cdc_reactor.telemetry import Telemetry

_log = logging.getLogger("cdc_reactor")

_ACK = Verdict.ACK

# Between attempts to reach what is down, in seconds.
_WORLD_RETRY = 1.0
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


class Publisher(Protocol):
    """What publishes events and dead letters; `pubsub_publisher.Publisher` has it."""

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[str]:
        """Publish in order; the ids of what the broker has confirmed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What all consumers of a daemon share; `retry_limit` is how long, in seconds, a delivery may wait for retries."""

    runner: Runner
    publisher: Publisher
    telemetry: Telemetry
    dead_letter_topic: str
    backoff: Backoff = field(default_factory=Backoff)
    breaker_limits: BreakerLimits = field(default_factory=BreakerLimits)
    retry_limit: float = 600.0
    clock: Callable[[], float] = time.time


class Consumer:
    """Consumes one subscription; not thread-safe, made and used on the event loop.

    `on_room` is called when a work came back, so that whoever waits for a place in the runner can be asked again.
    """

    def __init__(
        self,
        name: str,
        subscription: Subscription,
        router: CdcRouter,
        decoder: Decoder,
        *,
        surroundings: Surroundings,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._subscription = subscription
        self._router = router
        self._decoder = decoder
        self._around = surroundings
        self._on_room = on_room or self.advance
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
        self._heartbeats = 0
        #: When a heartbeat was last received (Unix seconds), and when anything was last settled (loop time); or None.
        self.last_heartbeat: float | None = None
        self.last_progress: float | None = None

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
            Stopped: a change of an unknown table came, and the policy is to stop.
            UsageError: the subscription is gone, or may not be read any more.
        """
        while deliveries := await self._subscription.receive():
            size_bytes = sum([len(d.message.data) for d in deliveries])
            self._around.telemetry.received(self.name, len(deliveries), size_bytes)
            await self._take_in(deliveries)
            if self._router.stopped_by is not None:
                raise Stopped(f"{self._router.stopped_by} has no handler, and unknown_table is stop")
            # A stream that always has something more must not keep all others waiting.
            await asyncio.sleep(0)

    async def _take_in(self, deliveries: list[Delivery]) -> None:
        taken = 0
        while taken < len(deliveries):
            try:
                taken += self._receive(deliveries[taken:] if taken else deliveries)
            except SchemaNeeded as needed:
                # Nothing can be decoded meanwhile, and nothing may overtake.
                taken += self._reactor.taken
                self.advance()
                if not await self._fetch(needed):
                    self._subscription.nack(deliveries[taken:][::-1])
                    return
        self.advance()
        if (breaker := self._breakers.get("")) is not None:
            while breaker.is_open(self._loop.time()) and not self._draining.is_set():
                await self._sleep(_WORLD_RETRY)

    async def _fetch(self, needed: SchemaNeeded) -> bool:
        """Fetch a schema, however long that takes; tell whether it came before the end."""
        while not self._draining.is_set():
            try:
                if not await self._before_the_end(aside(needed.fetch)):
                    return False
            except WorldError as error:
                self._note_pause("schemas", self.name, str(error))
                await self._sleep(_WORLD_RETRY)
            else:
                self._note_pause("schemas", self.name, "")
                return True
        return False

    def _receive(self, deliveries: list[Delivery]) -> int:
        self._reactor.receive_all(deliveries, self._loop.time())
        heartbeats = self._router.tally.dropped[Drop.HEARTBEAT]
        if heartbeats != self._heartbeats:
            self._heartbeats = heartbeats
            self.last_heartbeat = self._around.clock()
        return len(deliveries)

    async def _before_the_end(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for something; tell whether it came before the drain began."""
        task, draining = asyncio.create_task(waiting), asyncio.create_task(self._draining.wait())
        await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not longer than until the drain begins."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    # ── works ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> None:
        """Start what can be started, settle what is settled, and come again when something more is due."""
        now = self._loop.time()
        runner = self._around.runner
        while (room := runner.room) > 0:
            works = self._reactor.ready(now, limit=room)
            for work in works:
                self._running.add(work)
                runner.start(work, self._finish)
            if not works:
                break
        self._settle()
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Without room, what is due waits for a work that comes back.
        if self._around.runner.room > 0 and (wakeup := self._reactor.next_wakeup()) is not None:
            self._timer = self._loop.call_at(max(wakeup, now + 0.001), self.advance)

    def _finish(self, work: Work, outcome: Outcome, seconds: float) -> None:
        """Take back a work that ran: publish its events first, where it has any."""
        if outcome.events:
            task = self._loop.create_task(self._publish_and_complete(work, outcome))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
            self._on_room()
        else:
            self._complete(work, outcome)
        self._tell_run(work, outcome, seconds)

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
        self._note_pause("world", work.consumer.name, outcome.pause_reason)
        if self._breakers and work.consumer.name in self._breakers:
            applied = sum(1 for verdict in outcome.verdicts if verdict is _ACK)
            self._breakers[work.consumer.name].note(applied, 0, self._loop.time())
        self._reactor.complete(work, outcome, self._loop.time())
        self._settle()
        self._on_room()
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
                self._note_pause("publish", topic, str(error))
                if self._draining.is_set():
                    return None
                await self._sleep(_WORLD_RETRY)
            else:
                self._note_pause("publish", topic, "")
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

    def _tell_run(self, work: Work, outcome: Outcome, seconds: float) -> None:
        telemetry = self._around.telemetry
        handler = work.consumer.name
        committed = _committed_at(work)
        lag = None if committed is None else max(0.0, self._around.clock() - committed)
        table = str(work.consumer.table_id)
        telemetry.worked(handler, table, changes=len(work.held), seconds=seconds, attempt=work.attempt, lag=lag)
        if outcome.failures:
            telemetry.retried(handler, sum(1 for i in outcome.failures if outcome.verdicts[i] is Verdict.NACK))

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
        counted = Counter((s.handler, self._router.table_of(s.delivery.message)) for s in letters)
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

    def _note_pause(self, kind: str, what: str, reason: str) -> None:
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

    def report(self) -> None:
        """Hand running totals to the telemetry; cheap, but not for every batch."""
        tally = self._router.tally
        telemetry = self._around.telemetry
        telemetry.tallied(self.name, dropped=tally.drops(), changes=tally.changes(), undecodable=tally.undecodable)
        if self.last_heartbeat is not None:
            telemetry.heartbeat(self.name, self.last_heartbeat)

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
        (topic, [Message(event.data, ordering_key=event.key) for event in group])
        for topic, group in groupby(encoded, key=lambda event: event.topic)
    ]


def _committed_at(work: Work) -> float | None:
    """Tell when the oldest change of a work was committed, in Unix seconds."""
    change: Any = work.held[0].subject
    try:
        committed = change.committed_at
    except ReactorError:
        return None
    return None if committed is None else float(committed.timestamp())
