"""The Harness: sends changes and events through handlers and workers, on a virtual clock; what came of it is a Run.

It writes the JSON that Debezium would write, encodes events as their publishers would, and sends all of it through the
real thing: decoder, routers, reactors, executor, a database. Nothing is patched and nothing sleeps. Neighbours:
`testing_drive` is the loop, `testing_database` the database, `testing` the door to all of it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from sqlalchemy import Engine, MetaData
from sqlalchemy.orm import Session

from cdc_reactor import notification_delivery
from cdc_reactor.captures import find_captures
from cdc_reactor.changes import Row
from cdc_reactor.decoder import Decoder
from cdc_reactor.events import EVENT_ID, Event, ProtobufFact, Publication, Publishable, encode, key_of
from cdc_reactor.execution import Executor
from cdc_reactor.experiments import Allocation, ExperimentClient, ExperimentsInMemory
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Message, Settlement, Verdict
from cdc_reactor.notifications import Notification
from cdc_reactor.reactor import Failure
from cdc_reactor.routing import CdcRouter, by_table
from cdc_reactor.schemas import open_schemas, registry_beside
from cdc_reactor.testing_database import Database, tables_of
from cdc_reactor.testing_drive import Application, Changes, Clock, Drive, Sent, new_message
from cdc_reactor.wire_rows import Connector, Identity, by_column, whole_row
from cdc_reactor.workers import Worker, WorkerKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Run:
    """What came of a run: events in the order of publication, settlements in the order of settling."""

    #: All that was published, notifications included, each with its key and attributes.
    publications: list[Publication] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    #: Users whom workers put into experiments; of an ExperimentsInMemory only.
    allocations: list[Allocation] = field(default_factory=list)
    #: What attempts failed on, those that were tried again with success included.
    failures: list[Failure] = field(default_factory=list)
    #: How often handlers were called, batches that were split and retries included.
    runs: int = 0
    #: Handlers that stopped at a poisoned change (`on_poison="halt"`), each with what it failed on.
    halted: Mapping[str, Failure] = field(default_factory=dict)
    #: What of the world failed, each time that a handler had to wait for it.
    pauses: list[str] = field(default_factory=list)
    _database: Database

    @property
    def events(self) -> list[Publishable]:
        """The events that were published, but for notifications."""
        return [p.event for p in self.publications if not isinstance(p.event, Notification)]

    @property
    def notifications(self) -> list[Notification]:
        """The notifications that were sent."""
        return [p.event for p in self.publications if isinstance(p.event, Notification)]

    @property
    def dead_letters(self) -> list[Settlement]:
        """Messages that were given up, each with its `reason` and `error`."""
        return [s for s in self.settlements if s.verdict is Verdict.DEAD_LETTER]

    @property
    def acked(self) -> int:
        """How many messages were acknowledged, those that no handler wanted included."""
        return sum(s.verdict is Verdict.ACK for s in self.settlements)

    @property
    def nacked(self) -> int:
        """How many messages went back to the broker."""
        return sum(s.verdict is Verdict.NACK for s in self.settlements)

    @property
    def engine(self) -> Engine:
        """The database that handlers saw."""
        return self._database.engine

    @property
    def session(self) -> Session:
        """A session to look at the database as it now is."""
        return self._database.session

    def __repr__(self) -> str:
        letters = "".join(f"\n  dead letter of {s.handler or 'no handler'}: {s.reason}" for s in self.dead_letters)
        told = f"{len(self.notifications)} notifications, " if self.notifications else ""
        return (
            f"<Run: {self.acked} acked, {self.nacked} nacked, {len(self.dead_letters)} dead letters, "
            f"{len(self.events)} events, {told}{self.runs} runs{letters}>"
        )

    def expect_acked(self) -> Run:
        """Return this run; AssertionError, caused by the first failure, where a message was not acknowledged."""
        failed = [s for s in self.settlements if s.verdict is not Verdict.ACK]
        if failed:
            lines = "".join(f"\n  {s.verdict.name} {s.handler or '(not read)'}: {s.reason}" for s in failed)
            raise AssertionError(f"{len(failed)} of {len(self.settlements)} messages failed:{lines}") from failed[
                0
            ].error
        return self


class Harness:
    """Sends changes and events through handlers and workers as Debezium, a broker and the daemon would; see the Run.

    Changes are collected by `insert`, `update`, …, events by `publish`; `run` sends them, after which more can follow;
    the database stays. Handlers of several tables need `on(Row)`, or the Row as first argument. What is published
    reaches, in the same run, the workers here that subscribe to its topic.

    `schemas` sends each change with its schema block. `replica_identity` says what the rows before a change hold: all
    columns ("full", unless the Row says otherwise) or what PostgreSQL sends by default. The database is SQLite in
    memory, unless `database_url` or `engine` names another. In it are created the tables of `metadata`, of what is
    called `metadata` in the handlers' modules or package, and those that the modules import. `now` is when the run
    begins, for `ctx.now`. `experiments` decides for `ctx.experiments`; without it everybody gets the default.
    """

    def __init__(
        self,
        *handlers: Handler[Any] | Worker[Any],
        database_url: str | None = None,
        engine: Engine | None = None,
        metadata: MetaData | None = None,
        schemas: bool = False,
        replica_identity: Identity | None = None,
        now: datetime | None = None,
        registry: str | None = None,
        experiments: ExperimentClient | None = None,
    ) -> None:
        _check_handlers(handlers)
        self._handlers = [each for each in handlers if isinstance(each, Handler)]
        self._workers = [each for each in handlers if isinstance(each, Worker)]
        self._rows = {each[0].row.table_id: each[0].row for each in by_table(self._handlers).values()}
        self._row: type[Row] | None = next(iter(self._rows.values())) if len(self._rows) == 1 else None
        self._database = Database(engine, database_url)
        self._experiments = experiments or ExperimentsInMemory()
        self._delivery = self._open_delivery()
        modules = [each.function.__module__ for each in handlers]
        for tables in [*([metadata] if metadata is not None else []), *tables_of(modules)]:
            tables.create_all(self._database.engine)
        self._wire = Connector(schemas=schemas, identity=replica_identity)
        self._clock = Clock(now or datetime.now(UTC))
        self._registry = registry
        self._sent: list[Sent] = []
        self._waiting: list[Sent] = []

    def _open_delivery(self) -> notification_delivery.NotificationDelivery | None:
        """Open what sends notifications, as the daemon does: published to their own topic, each dedupe key once."""
        if all(worker.kind is not WorkerKind.NOTIFICATION for worker in self._workers):
            return None
        notification_delivery.metadata.create_all(self._database.engine)
        return notification_delivery.Delivery(topic=Notification.topic, in_database=True)

    @property
    def engine(self) -> Engine:
        """The database that handlers see."""
        return self._database.engine

    @property
    def session(self) -> Session:
        """A session to put something into the database before a run; commit it."""
        return self._database.session

    def on(self, row: type[Row]) -> Self:
        """Let what follows concern this Row's table."""
        if row not in self._rows.values():
            raise TypeError(f"no handler here wants {row.__name__}; there are {_names(self._rows.values())}")
        self._row = row
        return self

    def insert(self, row: type[Row] | Row | None = None, /, **columns: Any) -> Self:
        """Insert a row. Columns that are not given have the Row's default, or null."""
        model, given = self._meant(row, columns)
        return self._send(self._wire.created(model, whole_row(model, given)))

    create = insert

    def snapshot(self, row: type[Row] | Row | None = None, /, **columns: Any) -> Self:
        """Let a snapshot read a row."""
        model, given = self._meant(row, columns)
        return self._send(self._wire.read(model, whole_row(model, given)))

    def update(
        self, row: type[Row] | Row | Mapping[str, Any], before: Mapping[str, Any] | None = None, /, **changes: Any
    ) -> Self:
        """Update a row by some changes: `update(ada, karma=7)` or `update(User, ada, karma=7)`, where `ada` is whole.

        A changed key is a delete and an insert, as Debezium sends it.
        """
        model, given = self._meant(row, before or {})
        after = {**given, **by_column(model, changes)}
        return self._send(self._wire.updated(model, whole_row(model, given), whole_row(model, after)))

    def delete(self, row: type[Row] | Row | None = None, /, **columns: Any) -> Self:
        """Delete a row, given whole."""
        model, given = self._meant(row, columns)
        return self._send(self._wire.deleted(model, whole_row(model, given)))

    def truncate(self, row: type[Row] | None = None, /) -> Self:
        """Truncate the table."""
        model, _ = self._meant(row, {})
        return self._send(self._wire.truncated(model))

    def raw(self, data: bytes, /, *, attributes: Mapping[str, str] | None = None, ordering_key: str = "") -> Self:
        """Send exactly these bytes to the topic of changes; see `message` for those of events."""
        return self._send([self._wire.message(data, attributes=attributes, ordering_key=ordering_key)])

    def publish(self, event: Publishable, *, key: str = "", attributes: Mapping[str, str] | None = None) -> Self:
        """Publish an event to the workers here, as an application would: encoded, with an id of its own."""
        if not isinstance(event, Event | ProtobufFact):
            raise TypeError(f"a {type(event).__name__} is no event; publish an Event, or what a ProtobufEvent makes")
        given = {EVENT_ID: uuid4().hex, **(attributes or {})}
        return self.message(event.topic, encode(event), key=key or key_of(event), attributes=given)

    def message(
        self,
        topic: str | Worker[Any],
        data: bytes | Message,
        *,
        key: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> Self:
        """Send exactly these bytes, or this message, to a topic; that of a worker where one is given."""
        topic = topic.topic if isinstance(topic, Worker) else topic
        if topic not in {worker.topic for worker in self._workers}:
            raise TypeError(f"no worker here subscribes to {topic!r}; there are {_subscriptions(self._workers)}")
        if not isinstance(data, Message):
            data = new_message(data, key=key, attributes=attributes, published_at=self._clock.now())
        self._waiting.append(Application(topic, data))
        return self

    def replay_file(self, path: str | Path, format: str | None = None) -> Self:  # noqa: A002 - the command's own word
        """Send the messages of a captured file; `NAME.registry.json` beside it holds Avro's schemas."""
        self._check_has_handlers()
        path = Path(path)
        self._registry = self._registry or registry_beside([str(path)])
        for capture in find_captures([str(path)]):
            self._waiting.extend(map(Changes, capture.messages(format)))
        return self

    def redeliver(self) -> Self:
        """Send everything again that was sent so far, as a broker may."""
        self._waiting[:0] = self._sent
        return self

    def run(self, *, until_failure: bool = False) -> Run:
        """Deliver what was collected and see it settled; failed attempts are repeated as the daemon would.

        With `until_failure` the first failure ends it, as if the daemon was told to stop: what is not done goes back.

        Raises:
            WorldError: a handler found the database, or another part of the world, down ten times in a row.
            AssertionError: workers publish to each other without end.
        """
        sent, self._waiting = self._waiting, []
        self._sent.extend(sent)
        flushed = self._flushed()
        drive, executor = self._drive()
        try:
            drive.deliver(sent, until_failure=until_failure)
        finally:
            executor.close()
        return Run(
            publications=drive.publications,
            settlements=drive.settlements,
            allocations=self._flushed()[len(flushed) :],
            failures=drive.failures,
            runs=drive.runs,
            halted=drive.halted,
            pauses=drive.pauses,
            _database=self._database,
        )

    def _drive(self) -> tuple[Drive, Executor]:
        router = CdcRouter(self._handlers, Decoder(schemas=open_schemas(self._registry))) if self._handlers else None
        executor = Executor(
            self._database.engine, clock=self._clock.now, experiments=self._experiments, delivery=self._delivery
        )
        return Drive(router, self._workers, executor=executor, clock=self._clock), executor

    def _flushed(self) -> list[Allocation]:
        client = self._experiments
        return list(client.flushed) if isinstance(client, ExperimentsInMemory) else []

    def _send(self, messages: Sequence[Message]) -> Self:
        self._check_has_handlers()
        self._waiting.extend(map(Changes, messages))
        return self

    def _check_has_handlers(self) -> None:
        if not self._handlers:
            raise TypeError(f"no handler of changes is here, only {_subscriptions(self._workers)}: publish events")

    def _meant(
        self, row: type[Row] | Row | Mapping[str, Any] | None, columns: Mapping[str, Any]
    ) -> tuple[type[Row], dict[str, Any]]:
        """Tell which table is meant, and the columns that were given for it."""
        self._check_has_handlers()
        given = dict(columns)
        if isinstance(row, Row):
            given = {name: getattr(row, name) for name in row.model_fields_set} | given
        elif isinstance(row, Mapping):
            given = {**row, **given}
        model = row if isinstance(row, type) else type(row) if isinstance(row, Row) else self._row
        if model is None:
            raise TypeError(f"this Harness has handlers of {_names(self._rows.values())}: say which, by .on(Row)")
        if model not in self._rows.values():
            raise TypeError(f"no handler here wants {model.__name__}; there are {_names(self._rows.values())}")
        return model, by_column(model, given)


def _check_handlers(handlers: Sequence[object]) -> None:
    if not handlers:
        raise TypeError("a Harness takes the handlers and workers to be tested: Harness(announce)")
    for handler in handlers:
        if not isinstance(handler, Handler | Worker):
            raise TypeError(f"{handler!r} is no handler: decorate it with @handles(Row), or @subscribes(Event, …)")


def _names(rows: typing.Iterable[type[Row]]) -> str:
    return " and ".join(row.__name__ for row in rows)


def _subscriptions(workers: Sequence[Worker[Any]]) -> str:
    return " and ".join(f"{worker.name} of {worker.topic}" for worker in workers) or "no workers"
