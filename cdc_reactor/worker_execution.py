"""One message through its worker: read it, call the function, send what it returned, commit → Outcome.

Always in this order: the message is read, the function returns, its notifications are delivered, experiments are
flushed, the transaction is committed, a sink is given its notifications; the events go with the Outcome. What fails
fails the run, and the message comes again: after the commit, too, so a sink may be given a notification twice.

A `def` worker does all of that in the thread that calls `run`. An `async def` worker is a task: only its function runs
on the event loop, everything else, which may block, in threads beside it. What it does with `ctx.session` blocks the
loop, and a connection that it holds while it waits is held from all others: such a worker is better a `def`.
Neighbours: `execution` calls this, `transactions` is a run's database, `failures` what its errors mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from cdc_reactor.causes import MessageCause
from cdc_reactor.events import Publication
from cdc_reactor.failures import WORLD_PAUSE, judge, world_reason
from cdc_reactor.handler_threads import AsyncThread, Race, in_time, refuse_awaitable
from cdc_reactor.handlers import Context
from cdc_reactor.messages import Message, Verdict
from cdc_reactor.notifications import Notification
from cdc_reactor.reactor import Outcome, Work
from cdc_reactor.transactions import Resources, Transaction
from cdc_reactor.workers import Worker, WorkerKind

_log = logging.getLogger("cdc_reactor")


class WorkerExecution:
    """Runs works of workers, each of one message; thread-safe."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        # Workers whose return value was told to be dropped.
        self._told: set[str] = set()

    def run(self, work: Work, race: Race) -> list[Publication]:
        """Run a `def` worker once in this thread; return its events, or raise what it raised after a rollback."""
        worker, message = _of(work)
        with self._begin(work) as transaction:
            event = worker.event_type.read(message)
            result = worker(event, transaction.ctx)
            refuse_awaitable(result, worker)
            race.arrive(worker)
            return self._finish(worker, result, transaction)

    async def run_async(self, work: Work, thread: AsyncThread) -> Outcome:
        """Run an `async def` worker on the event loop of `thread`; raises KeyboardInterrupt only."""
        try:
            events = await self._run_async(work, thread)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if thread.is_closing and isinstance(error, GeneratorExit):
                # It heeded no cancellation, and the loop is over: nobody is told.
                raise
            if thread.is_closing and isinstance(error, asyncio.CancelledError):
                return Outcome((Verdict.NACK,), pause_reason="cancelled at the end")
            return _outcome_of(error)
        return Outcome.acked(1, events)

    async def _run_async(self, work: Work, thread: AsyncThread) -> list[Publication]:
        worker, message = _of(work)
        event = await thread.beside(lambda: worker.event_type.read(message))
        if thread.is_closing:
            raise asyncio.CancelledError
        transaction = self._begin(work)
        try:
            result = await in_time(worker, worker(event, transaction.ctx))
            refuse_awaitable(result, worker)
            if result is None and not transaction.is_used:
                # Two hand-overs between threads cost more than many a worker.
                return transaction.ctx.publications
            return await thread.beside(lambda: self._finish(worker, result, transaction))
        finally:
            if transaction.is_open:
                await thread.beside(transaction.close)

    @staticmethod
    def outcome(run: Callable[[], Sequence[Publication]]) -> Outcome:
        """Return what a run came to; raises KeyboardInterrupt only."""
        try:
            return Outcome.acked(1, run())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a worker ends here; its failure becomes the Outcome
            return _outcome_of(error)

    def _begin(self, work: Work) -> Transaction:
        worker, message = _of(work)
        return Transaction(
            self._resources,
            handler=worker.name,
            about={"topic": worker.topic},
            attempt=work.attempt,
            cause=MessageCause(message),
            message=message,
            on_loop=worker.is_async,
        )

    def _finish(self, worker: Worker[Any], result: object, transaction: Transaction) -> list[Publication]:
        # Closed here and not by the caller: a failed run must not hold its locks until a thread is free to roll it
        # back, and a sink must not hold the connection.
        with transaction:
            send = self._take(worker, result, transaction.ctx)
            transaction.finish()
        if send is not None and self._resources.commit:
            send()
        return transaction.ctx.publications

    def _take(self, worker: Worker[Any], result: object, ctx: Context) -> Callable[[], None] | None:
        """Deliver what a worker returned; return what is to be called once the transaction is committed."""
        if result is None:
            return None
        if worker.kind is not WorkerKind.NOTIFICATION:
            self._tell_dropped(worker, result)
            return None
        notifications = _notifications(worker, result)
        delivery = self._resources.delivery
        if delivery is not None:
            return delivery.deliver(notifications, ctx) if notifications else None
        for notification in notifications:
            ctx.publish(notification)
        return None

    def _tell_dropped(self, worker: Worker[Any], result: object) -> None:
        if worker.name not in self._told:
            self._told.add(worker.name)
            _log.warning(
                "%s returned a %s, which is dropped; a worker publishes by ctx.publish, and only @notifies returns "
                "anything (%s)",
                worker.name,
                type(result).__name__,
                worker.place,
            )


def _of(work: Work) -> tuple[Worker[Any], Message]:
    (held,) = work.held
    return work.consumer, held.subject


def _outcome_of(error: BaseException) -> Outcome:
    if (reason := world_reason(error)) is not None:
        return Outcome((Verdict.NACK,), pause=WORLD_PAUSE, pause_reason=reason)
    verdict, failure = judge(error)
    return Outcome((verdict,), {0: failure})


def _notifications(worker: Worker[Any], result: object) -> tuple[Notification, ...]:
    if isinstance(result, Notification):
        return (result,)
    told = type(result).__name__
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        strange = [type(each).__name__ for each in result if not isinstance(each, Notification)]
        if not strange:
            return tuple(result)
        told = f"{told} with a {strange[0]} in it"
    raise TypeError(
        f"{worker.name} returned a {told}; @notifies wants a Notification, a sequence of them, or None ({worker.place})"
    )
