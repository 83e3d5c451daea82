"""One run of a harness: the loop that a daemon has around its reactors, with a clock that jumps.

What is published is encoded and reaches the workers that subscribe to its topic, in the same run. Nothing sleeps: where
nothing is ready, the clock moves to whatever is due next. Neighbours: `harness` collects what is sent, `execution` runs
it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

from cdc_reactor.captures import Unreadable
from cdc_reactor.errors import WorldError
from cdc_reactor.event_routing import EventRouter
from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.execution import Executor
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import Failure, Outcome, Reactor, Work
from cdc_reactor.routing import CdcRouter
from cdc_reactor.workers import Worker

_log = logging.getLogger("cdc_reactor")

#: How often in a row a handler may find the world down before a run gives up.
_PATIENCE = 10
#: How many messages workers may publish to each other before it is taken for a circle.
_LONGEST_CHAIN = 10_000


class Clock:
    """Virtual time: seconds since the start, moved by nobody but a `Drive`."""

    def __init__(self, start: datetime) -> None:
        self.start = start
        self.seconds = 0.0

    def now(self) -> datetime:
        """Return the time of day."""
        return self.start + timedelta(seconds=self.seconds)


class Changes(NamedTuple):
    """A message of the topic of changes, or a place in a captured file where none can be read."""

    element: Message | Unreadable


class Application(NamedTuple):
    """A message of an application topic."""

    topic: str
    message: Message


#: What a run is to deliver.
Sent: TypeAlias = Changes | Application


def new_message(
    data: bytes, *, key: str = "", attributes: Mapping[str, str] | None = None, published_at: datetime | None = None
) -> Message:
    """Make a message that no other is taken for, in whatever database its id is remembered."""
    return Message(data, dict(attributes or {}), key, uuid4().hex, published_at)


class Drive:
    """Delivers what was sent, and what is published meanwhile, and sees it settled."""

    def __init__(
        self, router: CdcRouter | None, workers: Iterable[Worker[Any]], *, executor: Executor, clock: Clock
    ) -> None:
        self._changes = None if router is None else Reactor(router)
        self._subscribed: dict[str, list[Reactor]] = {}
        for worker in workers:
            self._subscribed.setdefault(worker.topic, []).append(Reactor(EventRouter(worker)))
        self._executor = executor
        self._clock = clock
        self.publications: list[Publication] = []
        self.settlements: list[Settlement] = []
        #: What attempts failed on, in order; `pauses` says it of those that the world made fail.
        self.failures: list[Failure] = []
        self.pauses: list[str] = []
        self.runs = 0
        self._deliveries = 0
        self._pauses_of: Counter[str] = Counter()
        self._published_by: Counter[str] = Counter()

    @property
    def halted(self) -> Mapping[str, Failure]:
        """Handlers and workers that stopped at poison."""
        return {name: failure for reactor in self._reactors() for name, failure in reactor.halted.items()}

    def deliver(self, sent: Sequence[Sent], *, until_failure: bool = False) -> None:
        """Hand everything to the reactors, and run what they hand out until they have nothing more.

        With `until_failure` the first failure ends it, as if the daemon was told to stop: what is not done goes back.
        """
        for each in sent:
            self._send(each)
        while not (until_failure and (self.failures or self.pauses)) and self._advance():
            self._settle()
        for reactor in self._reactors():
            reactor.drain()
        self._settle()

    def _send(self, sent: Sent) -> None:
        match sent:
            case Application(topic, message):
                self._publish(topic, message)
            case Changes(Unreadable() as unreadable):
                delivery = self._delivery(Message(unreadable.data))
                self._tell(Settlement(delivery, Verdict.DEAD_LETTER, str(unreadable.error), unreadable.error))
            case Changes(Message() as message):
                assert self._changes is not None, "a harness without handlers sends no changes"
                self._changes.receive(self._delivery(message), self._clock.seconds)

    def _publish(self, topic: str, message: Message) -> None:
        for reactor in self._subscribed.get(topic, ()):
            reactor.receive(self._delivery(message), self._clock.seconds)

    def _delivery(self, message: Message) -> Delivery:
        self._deliveries += 1
        return Delivery(message, self._deliveries)

    def _reactors(self) -> list[Reactor]:
        subscribed = [reactor for reactors in self._subscribed.values() for reactor in reactors]
        return subscribed if self._changes is None else [self._changes, *subscribed]

    def _advance(self) -> bool:
        """Run what is ready, else jump to when something will be; False where nothing ever will."""
        reactors = self._reactors()
        works = [(reactor, work) for reactor in reactors for work in reactor.ready(self._clock.seconds)]
        for reactor, work in works:
            outcome = self._run(work)
            reactor.complete(work, outcome, self._clock.seconds)
        wakeups = [wakeup for reactor in reactors if (wakeup := reactor.next_wakeup()) is not None]
        if works or not wakeups:
            return bool(works)
        self._clock.seconds = max(self._clock.seconds, min(wakeups))
        return True

    def _run(self, work: Work) -> Outcome:
        outcome = self._executor.run(work)
        self.runs += outcome.runs
        self.failures.extend(outcome.failures.values())
        self._be_patient(work.consumer.name, outcome)
        for publication in outcome.events:
            assert isinstance(publication, Publication), "events of this process come as they were published"
            self.publications.append(publication)
            self._pass_on(publication, work.consumer)
        return outcome

    def _pass_on(self, publication: Publication, publisher: Any) -> None:
        """Let the workers that subscribe to its topic have what was published."""
        topic = publication.topic or publication.event.topic
        if topic not in self._subscribed:
            return
        if isinstance(publisher, Worker):
            self._refuse_circle(publisher, topic)
        encoded = EncodedEvent.of(publication)
        self._publish(
            topic,
            new_message(encoded.data, key=encoded.key, attributes=encoded.attributes, published_at=self._clock.now()),
        )

    def _refuse_circle(self, publisher: Worker[Any], topic: str) -> None:
        self._published_by[f"{publisher.name} ({publisher.topic}) publishes to {topic}"] += 1
        if self._published_by.total() > _LONGEST_CHAIN:
            told = "; ".join(way for way, _ in self._published_by.most_common(4))
            raise AssertionError(
                f"after {_LONGEST_CHAIN:,} messages that workers published to workers there is no end in sight: {told}"
            )

    def _be_patient(self, consumer: str, outcome: Outcome) -> None:
        if outcome.pause is None:
            self._pauses_of[consumer] = 0
            return
        self.pauses.append(outcome.pause_reason)
        self._pauses_of[consumer] += 1
        if self._pauses_of[consumer] >= _PATIENCE:
            raise WorldError(outcome.pause_reason)

    def _settle(self) -> None:
        for reactor in self._reactors():
            for settlement in reactor.settlements():
                self._tell(settlement)

    def _tell(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)
        if settlement.verdict is Verdict.DEAD_LETTER:
            # pytest shows it beside a test that fails for want of an event.
            told = settlement.handler or "no handler"
            _log.warning("dead letter of %s: %s", told, settlement.reason, exc_info=settlement.error)
