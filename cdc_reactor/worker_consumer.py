"""A subscription of a worker: one message a work, as many at a time as it wants. See `consumer` for all the rest."""

from __future__ import annotations

from typing import Any

from cdc_reactor.consumer import Consumer, Subscription, Surroundings
from cdc_reactor.event_routing import EventRouter
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.reactor import Work
from cdc_reactor.workers import Worker


class WorkerConsumer(Consumer):
    """Consumes the messages of one worker; `max_running` may be below what the worker wants, and never above it."""

    def __init__(
        self,
        worker: Worker[Any],
        subscription: Subscription,
        *,
        surroundings: Surroundings,
        max_running: int | None = None,
    ) -> None:
        limit = worker.max_messages if max_running is None else min(max_running, worker.max_messages)
        super().__init__(
            worker.subscription, subscription, EventRouter(worker), surroundings=surroundings, max_running=limit
        )
        self.worker = worker
        self.patience = worker.timeout or 0.0

    async def take_in(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries to the reactor."""
        self._reactor.receive_all(deliveries, self._loop.time())
        self.advance()

    def table_of(self, message: Message) -> str:  # noqa: ARG002 - changes have one
        """Return nothing: an event is of no table."""
        return ""

    def tell_run(self, work: Work, seconds: float) -> None:
        """Tell the telemetry of a run, and how long ago its message was published."""
        published = work.held[0].delivery.message.publish_time
        self._around.telemetry.ran(
            self.worker.name,
            self.worker.topic,
            seconds=seconds,
            attempt=work.attempt,
            lag=None if published is None else self._around.clock() - published.timestamp(),
        )

    def report(self) -> None:
        """Do nothing: every run is told when it comes back."""
