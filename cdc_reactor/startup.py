"""What a daemon needs of Pub/Sub before it consumes anything: looked at, or created where that is wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cdc_reactor.errors import UsageError
from cdc_reactor.pubsub_connection import Connection, SubscriptionInfo, is_denied
from cdc_reactor.workers import Worker

_log = logging.getLogger("cdc_reactor")

T = TypeVar("T")

_AT_ONCE = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """The subscriptions of changes, all of one `topic` where they are created, the workers, and the topics."""

    changes: Sequence[str]
    topic: str
    workers: Sequence[Worker[Any]]
    dead_letter_topic: str
    #: Those that events may be published on; they are created, and not asked for.
    topics: Sequence[str] = ()

    @property
    def dead_letter_topics(self) -> list[str]:
        """Where poison goes, each once."""
        return list(dict.fromkeys([self.dead_letter_topic, *(w.dead_letter for w in self.workers if w.dead_letter)]))


async def create_missing(connection: Connection, needs: Needs, *, ack_deadline: int) -> None:
    """Create topics and subscriptions that are not there."""
    own = [needs.topic] if needs.changes else []
    of_workers = [worker.topic for worker in needs.workers]
    topics = dict.fromkeys([*own, *needs.dead_letter_topics, *needs.topics, *of_workers])
    await _some_at_once([connection.create_topic(topic) for topic in topics])
    wanted = [(name, needs.topic, True) for name in needs.changes]
    wanted += [(worker.subscription, worker.topic, worker.ordered) for worker in needs.workers]
    await _some_at_once(
        [
            connection.create_subscription(name, topic, ordering=ordering, ack_deadline=ack_deadline)
            for name, topic, ordering in wanted
        ]
    )


async def check_needs(connection: Connection, needs: Needs) -> list[tuple[str, SubscriptionInfo | None]]:
    """Look at everything that is needed before anything is consumed; return what the subscriptions are like.

    Raises:
        UsageError: a subscription or topic is missing, is of another topic than its worker reads, or may not be used.
    """
    names = [*needs.changes, *(worker.subscription for worker in needs.workers)]
    found = list(zip(names, await _some_at_once([_look_at(connection, name) for name in names]), strict=True))
    topics = {worker.subscription: worker for worker in needs.workers}
    for name, info in found:
        if info is not None:
            _check_subscription(name, info, topics.get(name))
    for topic in needs.dead_letter_topics:
        await _check_dead_letter_topic(connection, topic)
    return found


async def _some_at_once(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Make calls, a few at a time: hundreds one by one take long where each takes a while."""
    answers: list[T | BaseException] = []
    for first in range(0, len(calls), _AT_ONCE):
        answers += await asyncio.gather(*calls[first : first + _AT_ONCE], return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast("list[T]", answers)


def _check_subscription(name: str, info: SubscriptionInfo, worker: Worker[Any] | None) -> None:
    topic = info.topic.rpartition("/")[2]
    # The topic of a subscription may have been deleted; what it holds can still be read.
    if worker is not None and topic != worker.topic and not topic.startswith("_deleted"):
        raise UsageError(
            f"the subscription {name} is of the topic {topic}, but its worker {worker.name} ({worker.place}) reads "
            f"{worker.topic}; mend the worker, or create a subscription of that topic"
        )
    if info.dead_letter_topic and info.ordering:
        _log.warning(
            "subscription %s is ordered and has a dead-letter policy of its own, which stalls a key for good; "
            "remove it: dead letters are published by the daemon",
            name,
        )


async def _check_dead_letter_topic(connection: Connection, topic: str) -> None:
    if not await connection.topic_exists(topic):
        raise UsageError(
            f"the dead-letter topic {topic} does not exist in project {connection.project}; create it "
            f"(gcloud pubsub topics create {topic}), or name another: dead_letter_topic"
        )


async def _look_at(connection: Connection, name: str) -> SubscriptionInfo | None:
    """Ask what a subscription is like; None where we may consume it and not ask, as roles/pubsub.subscriber has it."""
    try:
        return await connection.subscription(name)
    except UsageError as error:
        if is_denied(error):
            return None
        raise
