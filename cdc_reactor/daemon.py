"""The long-running process: one consumer for each subscription, signals, health, drain.

It owns the event loop and everything that must be closed again. At the first SIGTERM or SIGINT it stops the intake,
gives back what has not begun, lets what runs end within the grace, has its acknowledgements confirmed and leaves; at
the second it leaves at once, which loses nothing either. Neighbours: `consumer` is one subscription at work,
`run_command` makes a daemon from the settings and says what it says.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import Engine

from cdc_reactor.aside import aside
from cdc_reactor.breaker import BreakerLimits
from cdc_reactor.change_consumer import ChangeConsumer
from cdc_reactor.columns import Placeholder
from cdc_reactor.consumer import Consumer, Surroundings
from cdc_reactor.database import check
from cdc_reactor.decoder import Decoder
from cdc_reactor.deferred_schemas import DeferredSchemas
from cdc_reactor.dispatcher import limits_of, share_of
from cdc_reactor.errors import ReactorError, Stopped, UsageError, WorldError
from cdc_reactor.execution import Executor
from cdc_reactor.experiments import ExperimentClient
from cdc_reactor.handlers import Handler
from cdc_reactor.health import HealthServer, HealthState
from cdc_reactor.notification_delivery import NotificationDelivery
from cdc_reactor.pool import PoolRunner, Setup
from cdc_reactor.pubsub import Limits, Subscription
from cdc_reactor.pubsub_connection import Connection, SubscriptionInfo
from cdc_reactor.pubsub_publisher import Publisher
from cdc_reactor.reactor import Backoff
from cdc_reactor.routing import CdcRouter
from cdc_reactor.runners import ProcessRunner, Runner, TaskRunner, ThreadRunner, given_back
from cdc_reactor.schemas import KeptSchemas, SchemaStore
from cdc_reactor.settings import Settings
from cdc_reactor.startup import Needs, check_needs, create_missing
from cdc_reactor.telemetry import Telemetry
from cdc_reactor.turns import Turns
from cdc_reactor.worker_consumer import WorkerConsumer
from cdc_reactor.workers import Worker

_log = logging.getLogger("cdc_reactor")

INTERRUPTED = 130

_LOCAL_PROJECT = "local"

_DATABASE_CHECK_SECONDS = 5.0
_REPORT_SECONDS = 1.0
# What is left of the grace for acknowledgements to be confirmed, in seconds.
_CONFIRM_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a daemon is made of; `database_url` is for handlers in other processes, which open it themselves.

    Where there are workers and no handlers, changes are not consumed. `topics` are those of the events that are known.
    """

    settings: Settings
    handlers: Sequence[Handler[Any]]
    engine: Engine | None
    database_url: str | None
    schemas: SchemaStore
    workers: Sequence[Worker[Any]] = ()
    topics: Sequence[str] = ()
    experiments: ExperimentClient | None = None
    delivery: NotificationDelivery | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)

    @property
    def subscriptions(self) -> Sequence[str]:
        """The subscriptions of changes that it consumes."""
        return self.settings.subscriptions if self.handlers or not self.workers else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What is told of a daemon that is up."""

    connection: Connection
    #: Those of changes.
    subscriptions: Sequence[tuple[str, SubscriptionInfo | None]]
    threads: int
    health: str | None


class Daemon:
    """Runs until it is told to stop; one object for one run.

    `on_start` is called once when everything is up, with what there is to tell.
    """

    def __init__(self, parts: Parts, *, on_start: Callable[[Started], None] = lambda _: None) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._on_start = on_start
        self._consumers: dict[str, tuple[Consumer, Subscription]] = {}
        self._stop = asyncio.Event()
        self._status = 0
        self._fatal: ReactorError | None = None
        self._is_database_up: bool | None = None
        self._database_reason = ""
        self._executor: Executor | None = None
        # Files are read already; whoever must be asked is asked beside the event loop.
        is_here = type(parts.schemas) is KeptSchemas
        self._schemas: SchemaStore = parts.schemas if is_here else DeferredSchemas(parts.schemas)
        self._is_signalled = False
        self._runners: list[Runner] = []
        self._started_at = 0.0
        #: Whether everything that ran came to its end; where not, only leaving the process ends it.
        self.is_clean = True

    async def run(self) -> int:
        """Run; return the exit status.

        Raises:
            UsageError: a subscription, a topic or a permission is missing.
            WorldError: Pub/Sub or the database does not answer at the start.
            Stopped: a policy says that nothing shall go on.
        """
        self._listen_to_signals()
        self._started_at = asyncio.get_running_loop().time()
        async with AsyncExitStack() as stack:
            started = await self._start(stack)
            tasks = self._begin()
            if not self._stop.is_set():
                self._on_start(started)
            await self._stop.wait()
            self.is_clean = await self._drain(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._executor is not None and self.is_clean:
            self._executor.close()
        if self._fatal is not None:
            raise self._fatal
        return self._status

    def stop(self, status: int = 0) -> None:
        """End in good order; for the event loop's own thread."""
        self._status = status
        self._stop.set()

    # ── the start ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)):
            loop.add_signal_handler(number, self._on_signal, number, status)

    def _on_signal(self, number: int, status: int) -> None:
        if self._is_signalled:
            # Not sys.exit: a handler that never returns would keep the process.
            os._exit(128 + number)
        self._is_signalled = True
        _log.info("finishing what runs; a second signal ends at once")
        if not self._stop.is_set():
            self.stop(status)

    async def _start(self, stack: AsyncExitStack) -> Started:
        pubsub = self._settings.pubsub
        connection = await Connection.open(
            # A local broker knows no projects of its own; any name will do, and one must be meant by all.
            project=pubsub.project or (_LOCAL_PROJECT if pubsub.emulator_host else None),
            emulator_host=pubsub.emulator_host,
            endpoint=pubsub.endpoint,
        )
        stack.push_async_callback(connection.close)
        needs = self._needs()
        if self._is_creating:
            await create_missing(connection, needs, ack_deadline=pubsub.ack_deadline)
        found = await check_needs(connection, needs)
        if self._parts.engine is not None:
            await aside(partial(check, self._parts.engine))
            self._is_database_up = True
        publisher = Publisher(connection, timeout=pubsub.publish_timeout)
        stack.push_async_callback(publisher.close)
        handlers = [(handler.name, str(handler.table_id)) for handler in self._parts.handlers]
        handlers += [(worker.name, "") for worker in self._parts.workers]
        self._parts.telemetry.begin([name for name, _ in found], handlers)
        health = await self._serve_health(stack)
        # Streams come last: what they bring must not wait for a start that fails.
        await self._open_all(connection, publisher, stack)
        threads = self._threads if not self._settings.run.processes else 0
        of_changes = [(name, info) for name, info in found if name in self._parts.subscriptions]
        return Started(connection=connection, subscriptions=of_changes, threads=threads, health=health)

    def _needs(self) -> Needs:
        settings = self._settings
        return Needs(
            changes=self._parts.subscriptions,
            topic=settings.topic,
            workers=self._parts.workers,
            dead_letter_topic=settings.dead_letter_topic,
            topics=self._parts.topics,
        )

    @property
    def _is_creating(self) -> bool:
        wanted = self._settings.create_missing
        return self._settings.pubsub.emulator_host is not None if wanted is None else wanted

    @property
    def _is_on_sqlite(self) -> bool:
        engine = self._parts.engine
        return engine is not None and engine.dialect.name == "sqlite"

    @property
    def _threads(self) -> int:
        """SQLite takes one writer at a time; more threads would only wait for each other, or fail."""
        return 1 if self._is_on_sqlite else self._settings.run.threads

    async def _open_all(self, connection: Connection, publisher: Publisher, stack: AsyncExitStack) -> None:
        self._executor = Executor(
            self._parts.engine, experiments=self._parts.experiments, delivery=self._parts.delivery
        )
        runner = self._handler_runner(stack)
        surroundings = self._surroundings(runner, publisher)
        for name in self._parts.subscriptions:
            await self._open(name, connection, surroundings, stack)
        if self._parts.workers:
            await self._open_workers(connection, surroundings, stack)

    def _surroundings(self, runner: Runner, publisher: Publisher) -> Surroundings:
        settings = self._settings
        return Surroundings(
            runner=runner,
            turns=Turns(runner),
            publisher=publisher,
            telemetry=self._parts.telemetry,
            dead_letter_topic=settings.dead_letter_topic,
            backoff=Backoff(settings.retry.first, settings.retry.limit, random.random),
            breaker_limits=BreakerLimits(
                share=settings.breaker.share,
                consecutive=settings.breaker.consecutive,
                window=settings.breaker.window,
                pause=settings.breaker.pause,
            ),
            retry_limit=settings.pubsub.max_lease,
        )

    def _handler_runner(self, stack: AsyncExitStack) -> Runner:
        settings = self._settings
        if not settings.run.processes:
            return self._thread_runner(self._threads, stack)
        setup = Setup(
            targets=settings.handlers,
            database_url=self._parts.database_url,
            commit=True,
            placeholder=settings.unavailable_value_placeholder,
            unwrapped_prefix=settings.unwrapped_prefix,
            max_bytes=settings.max_message_bytes,
        )
        processes = ProcessRunner(lambda: PoolRunner(setup, settings.run.processes, self._parts.schemas))
        stack.callback(processes.close, at_once=True)
        self._runners.append(processes)
        return processes

    def _thread_runner(self, threads: int, stack: AsyncExitStack) -> ThreadRunner:
        assert self._executor is not None, "it is made before its runners"
        runner = ThreadRunner(self._executor.run, threads)
        stack.callback(runner.close)
        self._runners.append(runner)
        return runner

    async def _open(self, name: str, connection: Connection, surroundings: Surroundings, stack: AsyncExitStack) -> None:
        pubsub = self._settings.pubsub
        subscription = Subscription(
            connection,
            name,
            limits=Limits(
                max_messages=pubsub.max_messages,
                max_bytes=pubsub.max_bytes,
                ack_deadline=pubsub.ack_deadline,
                max_lease=pubsub.max_lease,
            ),
            observer=self._parts.telemetry.of_subscription(name),
        )
        await subscription.open()
        stack.push_async_callback(_close, subscription)
        decoder = self._decoder()
        router = CdcRouter(self._parts.handlers, decoder, unknown_table=self._settings.unknown_table)
        consumer = ChangeConsumer(name, subscription, router, decoder, surroundings=surroundings)
        self._consumers[name] = consumer, subscription

    async def _open_workers(self, connection: Connection, handlers: Surroundings, stack: AsyncExitStack) -> None:
        """Open the subscriptions of all workers at once: some brokers say nothing for a while."""
        workers = self._parts.workers
        of_threads, of_tasks = self._of_workers(handlers, stack)
        subscriptions: list[Subscription] = []
        stack.push_async_callback(_close_all, subscriptions)
        for worker in workers:
            subscription = Subscription(
                connection,
                worker.subscription,
                limits=limits_of(worker, self._settings.pubsub, len(workers)),
                observer=self._parts.telemetry.of_subscription(worker.subscription),
                publish_times=True,
            )
            subscriptions.append(subscription)
            around = replace(
                of_tasks if worker.is_async else of_threads,
                dead_letter_topic=worker.dead_letter or self._settings.dead_letter_topic,
                retry_limit=subscription.limits.max_lease,
            )
            share = None if worker.is_async else share_of(self._worker_threads)
            consumer = WorkerConsumer(worker, subscription, surroundings=around, max_running=share)
            self._consumers[worker.subscription] = consumer, subscription
        # All of them come to their end before the first failure is told: what half opened could not be closed.
        opening = [subscription.open() for subscription in subscriptions]
        for failure in await asyncio.gather(*opening, return_exceptions=True):
            if failure is not None:
                raise failure

    def _of_workers(self, handlers: Surroundings, stack: AsyncExitStack) -> tuple[Surroundings, Surroundings]:
        """Make what workers run in: threads for `def`, tasks for `async def`."""
        assert self._executor is not None, "it is made before its runners"
        # A task costs no thread, so there is one for each message. On SQLite one at a time: another would wait for its
        # lock on the event loop, where the holder could not go on.
        wanted = sum(worker.max_messages for worker in self._parts.workers if worker.is_async)
        tasks = TaskRunner(self._executor.start, 1 if self._is_on_sqlite else max(1, wanted))
        stack.callback(tasks.close)
        self._runners.append(tasks)
        of_tasks = replace(handlers, **_with(tasks))
        if self._is_on_sqlite and not self._settings.run.processes:
            return handlers, of_tasks
        return replace(handlers, **_with(self._thread_runner(self._worker_threads, stack))), of_tasks

    @property
    def _worker_threads(self) -> int:
        return 1 if self._is_on_sqlite else self._settings.run.worker_threads

    def _decoder(self) -> Decoder:
        settings = self._settings
        return Decoder(
            schemas=self._schemas,
            placeholder=Placeholder(settings.unavailable_value_placeholder),
            unwrapped_prefix=settings.unwrapped_prefix,
            max_bytes=settings.max_message_bytes,
        )

    async def _serve_health(self, stack: AsyncExitStack) -> str | None:
        health = self._settings.health
        if health.port is None:
            return None
        server = HealthServer(self._state, self._parts.telemetry, host=health.host, port=health.port)
        await server.start()
        stack.push_async_callback(server.stop)
        return server.address

    # ── at work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._consume(consumer)) for consumer, _ in self._consumers.values()]
        tasks.append(asyncio.create_task(self._report()))
        if self._parts.engine is not None:
            tasks.append(asyncio.create_task(self._watch_database(self._parts.engine)))
        return tasks

    async def _consume(self, consumer: Consumer) -> None:
        try:
            await consumer.run()
        except (UsageError, WorldError, Stopped) as error:
            self._fatal = error
            self.stop()
        except Exception as error:  # noqa: BLE001 - a task ends here, and nobody would hear of it
            # A fault of ours: better an end that is seen than a daemon that does nothing.
            _log.exception("%s: the intake broke off", consumer.name)
            self._fatal = WorldError(f"{consumer.name}: the intake broke off ({type(error).__name__}); see the log")
            self.stop()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            try:
                self._report_now()
            except Exception:  # noqa: BLE001 - a task ends here, and nobody would hear of it
                _log.exception("the figures of this second are missing")

    def _report_now(self) -> None:
        for consumer, subscription in self._consumers.values():
            consumer.report()
            self._parts.telemetry.held(
                consumer.name,
                subscription.held,
                size_bytes=subscription.held_bytes,
                lanes=consumer.lanes_held,
                oldest_age=consumer.oldest_age,
            )
            if lost := subscription.lost():
                _log.warning(
                    "%s: %s leases were given up, too old or out of reach; what is held goes on",
                    consumer.name,
                    len(lost),
                )

    async def _watch_database(self, engine: Engine) -> None:
        while True:
            try:
                await aside(partial(check, engine))
            except WorldError as error:
                self._is_database_up, self._database_reason = False, str(error)
            else:
                self._is_database_up, self._database_reason = True, ""
            await asyncio.sleep(_DATABASE_CHECK_SECONDS)

    def _state(self) -> HealthState:
        now = asyncio.get_running_loop().time()
        consumers = [consumer for consumer, _ in self._consumers.values()]
        stillest = max(self._ages(now), default=(0.0, None, None))
        of_changes = [c for c in consumers if isinstance(c, ChangeConsumer)]
        heartbeats = [c.last_heartbeat for c in of_changes if c.last_heartbeat is not None]
        return HealthState(
            streams={name: subscription.is_open for name, (_, subscription) in self._consumers.items()},
            handlers_loaded=True,
            running_for=now - self._started_at,
            database=self._is_database_up,
            database_reason=self._database_reason,
            oldest_held_age=stillest[1],
            last_progress_age=stillest[2],
            # Each connector must beat; one that never did is judged by how long we run.
            heartbeat_age=time.time() - min(heartbeats) if heartbeats and len(heartbeats) == len(of_changes) else None,
            draining=self._stop.is_set(),
            stuck_after=self._settings.health.stuck_after,
            expects_heartbeats=self._settings.health.expect_heartbeats and bool(of_changes),
            halted=tuple(name for consumer in consumers for name in consumer.halted),
            fatal=str(self._fatal) if self._fatal is not None else "",
        )

    def _ages(self, now: float) -> Iterator[tuple[float, float | None, float | None]]:
        """Give for each subscription that holds something: how long it stands still, oldest held, last settled.

        All beyond what one run may take.
        """
        for consumer, _ in self._consumers.values():
            if (held := consumer.oldest_age) is None:
                continue
            held = max(0.0, held - consumer.patience)
            progress = consumer.last_progress
            settled = None if progress is None else max(0.0, now - progress - consumer.patience)
            yield min(held, held if settled is None else settled), held, settled

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drain(self, tasks: Sequence[asyncio.Task[None]]) -> bool:
        """Stop the intake, give back, finish, confirm; tell whether everything ended in time."""
        started = time.monotonic()
        pairs = list(self._consumers.values())
        await asyncio.gather(*(subscription.stop_intake() for _, subscription in pairs))
        for consumer, _ in pairs:
            consumer.begin_drain()
        for runner in self._runners:
            for work, done in runner.take_back():
                done(work, given_back(work), 0.0)
        grace = self._settings.run.grace
        ended = await asyncio.gather(*(consumer.drain(grace) for consumer, _ in pairs))
        # An intake that was waiting for something gives back what it had in hand.
        await asyncio.wait(tasks[: len(pairs)], timeout=1.0)
        confirmed = await asyncio.gather(*(subscription.drained(_CONFIRM_SECONDS) for _, subscription in pairs))
        with suppress(WorldError):
            self._report_now()
        if not all(ended):
            _log.warning("some handlers did not end within the grace of %g s; their changes come again", grace)
        if not all(confirmed):
            _log.warning("some acknowledgements were not confirmed; those changes come again")
        _log.info("drained in %.2f s", time.monotonic() - started)
        return all(ended)


async def _close(subscription: Subscription) -> None:
    """Close a subscription; where the start failed, what came already goes back first."""
    await subscription.stop_intake()
    await subscription.drained(1.0)
    await subscription.close()


async def _close_all(subscriptions: Sequence[Subscription]) -> None:
    await asyncio.gather(*map(_close, subscriptions), return_exceptions=True)


def _with(runner: Runner) -> dict[str, Any]:
    return {"runner": runner, "turns": Turns(runner)}
