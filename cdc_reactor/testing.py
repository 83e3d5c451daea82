"""Tests of handlers in one line: `Harness(announce).insert(id=1, username="ada").run().events`.

A Harness writes the JSON that Debezium would write and sends it through the real thing: decoder, router, reactor,
executor, a database. Nothing is patched and nothing sleeps: the clock is virtual and jumps to whatever is due next, so
that retries run at once. The fixtures of `pytest_plugin` are made of what is here.
"""

from __future__ import annotations

import logging
import sys
import typing
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from sqlalchemy import Engine, MetaData, create_engine, make_url, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from cdc_reactor.captures import Unreadable, find_captures
from cdc_reactor.changes import Row
from cdc_reactor.database import open_engine
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import discover
from cdc_reactor.errors import WorldError
from cdc_reactor.events import Publication, Publishable
from cdc_reactor.execution import Executor
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import Failure, Outcome, Reactor
from cdc_reactor.routing import CdcRouter, by_table
from cdc_reactor.schemas import open_schemas, registry_beside
from cdc_reactor.wire_rows import Connector, Identity, by_column, whole_row

__all__ = ["Harness", "Run", "assert_registered", "fresh_database"]

_log = logging.getLogger("cdc_reactor")

#: How often in a row a handler may find the world down before a run gives up.
_PATIENCE = 10


# ── the harness ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Run:
    """What came of a run: events in the order of publication, settlements in the order of settling."""

    publications: list[Publication] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    #: How often handlers were called, batches that were split and retries included.
    runs: int = 0
    #: Handlers that stopped at a poisoned change (`on_poison="halt"`), each with what it failed on.
    halted: Mapping[str, Failure] = field(default_factory=dict)
    _database: _Database

    @property
    def events(self) -> list[Publishable]:
        """The events that handlers published."""
        return [publication.event for publication in self.publications]

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
        return (
            f"<Run: {self.acked} acked, {self.nacked} nacked, {len(self.dead_letters)} dead letters, "
            f"{len(self.publications)} events, {self.runs} runs{letters}>"
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
    """Sends changes through handlers as Debezium and the daemon would; then look at the Run.

    Changes are collected by `insert`, `update`, … and sent by `run`, after which more can follow; the database stays.
    Handlers of several tables need `on(Row)`, or the Row as first argument.

    `schemas` sends each message with its schema block. `replica_identity` says what the rows before a change hold: all
    columns ("full", unless the Row says otherwise) or what PostgreSQL sends by default. The database is SQLite in
    memory, unless `database_url` or `engine` names another; the tables of `metadata`, and of what is called `metadata`
    in the handlers' modules or package, are created in it. `now` is when the run begins, for `ctx.now`.
    """

    def __init__(
        self,
        *handlers: Handler[Any],
        database_url: str | None = None,
        engine: Engine | None = None,
        metadata: MetaData | None = None,
        schemas: bool = False,
        replica_identity: Identity | None = None,
        now: datetime | None = None,
        registry: str | None = None,
    ) -> None:
        _check_handlers(handlers)
        self._handlers = handlers
        self._rows = {each[0].row.table_id: each[0].row for each in by_table(handlers).values()}
        self._row: type[Row] | None = next(iter(self._rows.values())) if len(self._rows) == 1 else None
        self._database = _Database(engine, database_url)
        for tables in _tables_of(handlers, metadata):
            tables.create_all(self._database.engine)
        self._wire = Connector(schemas=schemas, identity=replica_identity)
        self._clock = _Clock(now or datetime.now(UTC))
        self._registry = registry
        self._sent: list[Message | Unreadable] = []
        self._waiting: list[Message | Unreadable] = []

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
        """Send exactly these bytes."""
        return self._send([self._wire.message(data, attributes=attributes, ordering_key=ordering_key)])

    def replay_file(self, path: str | Path, format: str | None = None) -> Self:  # noqa: A002 - the command's own word
        """Send the messages of a captured file; `NAME.registry.json` beside it holds Avro's schemas."""
        path = Path(path)
        self._registry = self._registry or registry_beside([str(path)])
        for capture in find_captures([str(path)]):
            self._waiting.extend(capture.messages(format))
        return self

    def redeliver(self) -> Self:
        """Send everything again that was sent so far, as a broker may."""
        self._waiting[:0] = self._sent
        return self

    def run(self) -> Run:
        """Deliver what was collected and see it settled.

        Raises:
            WorldError: a handler found the database, or another part of the world, down ten times in a row.
        """
        sent, self._waiting = self._waiting, []
        self._sent.extend(sent)
        router = CdcRouter(self._handlers, Decoder(schemas=open_schemas(self._registry)))
        executor = Executor(self._database.engine, clock=self._clock.now)
        drive = _Drive(router, executor, self._clock)
        try:
            drive.deliver(sent)
        finally:
            executor.close()
        return Run(
            publications=drive.publications,
            settlements=drive.settlements,
            runs=drive.runs,
            halted=drive.halted,
            _database=self._database,
        )

    def _send(self, messages: Sequence[Message]) -> Self:
        self._waiting.extend(messages)
        return self

    def _meant(
        self, row: type[Row] | Row | Mapping[str, Any] | None, columns: Mapping[str, Any]
    ) -> tuple[type[Row], dict[str, Any]]:
        """Tell which table is meant, and the columns that were given for it."""
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
        raise TypeError("a Harness takes the handlers to be tested: Harness(announce)")
    for handler in handlers:
        if not isinstance(handler, Handler):
            raise TypeError(f"{handler!r} is no handler: decorate it with @handles(Row)")


def _names(rows: typing.Iterable[type[Row]]) -> str:
    return " and ".join(row.__name__ for row in rows)


class _Clock:
    """Virtual time: seconds since the start, moved by nobody but a `_Drive`."""

    def __init__(self, start: datetime) -> None:
        self.start = start
        self.seconds = 0.0

    def now(self) -> datetime:
        """Return the time of day."""
        return self.start + timedelta(seconds=self.seconds)


class _Drive:
    """One run: the loop that a daemon has around the reactor, with a clock that jumps."""

    def __init__(self, router: CdcRouter, executor: Executor, clock: _Clock) -> None:
        self._reactor = Reactor(router)
        self._executor = executor
        self._clock = clock
        self.publications: list[Publication] = []
        self.settlements: list[Settlement] = []
        self.runs = 0
        self._pauses = 0

    def deliver(self, sent: Sequence[Message | Unreadable]) -> None:
        """Hand everything to the reactor, and run what it hands out until it has nothing more."""
        for number, element in enumerate(sent):
            if isinstance(element, Unreadable):
                delivery = Delivery(Message(element.data), number)
                self._settle([Settlement(delivery, Verdict.DEAD_LETTER, str(element.error), element.error)])
            else:
                self._reactor.receive(Delivery(element, number), self._clock.seconds)
        while self._advance():
            self._settle(self._reactor.settlements())
        self._reactor.drain()
        self._settle(self._reactor.settlements())

    @property
    def halted(self) -> Mapping[str, Failure]:
        """Handlers that stopped at a poisoned change."""
        return self._reactor.halted

    def _advance(self) -> bool:
        """Run what is ready, else jump to when something will be; False where nothing ever will."""
        works = self._reactor.ready(self._clock.seconds)
        for work in works:
            outcome = self._executor.run(work)
            self.runs += outcome.runs
            self.publications.extend(p for p in outcome.events if isinstance(p, Publication))
            self._be_patient(outcome)
            self._reactor.complete(work, outcome, self._clock.seconds)
        wakeup = self._reactor.next_wakeup()
        if works or wakeup is None:
            return bool(works)
        self._clock.seconds = max(self._clock.seconds, wakeup)
        return True

    def _be_patient(self, outcome: Outcome) -> None:
        self._pauses = 0 if outcome.pause is None else self._pauses + 1
        if self._pauses >= _PATIENCE:
            raise WorldError(outcome.pause_reason)

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        self.settlements.extend(settlements)
        for each in settlements:
            if each.verdict is Verdict.DEAD_LETTER:
                # pytest shows it beside a test that fails for want of an event.
                _log.warning("dead letter of %s: %s", each.handler or "no handler", each.reason, exc_info=each.error)


def assert_registered(handler: Handler[Any], package: str = "table_handlers") -> None:
    """Fail where the daemon would not find this handler in a package, or could not import the package."""
    found = discover([package], entry_points=False)
    problems = "".join(f"\n  {failure}" for failure in found.failures)
    assert not found.failures, f"{package} cannot be imported whole:{problems}"
    known = ", ".join(f"{each.name} of {each.table_id}" for each in found.handlers) or "none"
    assert handler in found.handlers, (
        f"{handler.name} ({handler.place}) is not found in {package}: it must stand at the module level of a module in "
        f"there. Found: {known}"
    )


# ── the database ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Database:
    """An engine that lives as long as somebody looks at it; sessions of it are closed at the end."""

    def __init__(self, engine: Engine | None, url: str | None) -> None:
        self.engine = engine or (_memory() if url is None else open_engine(url))
        self._sessions: list[Session] = []
        weakref.finalize(self, _dispose, self._sessions, None if engine is not None else self.engine)

    @property
    def session(self) -> Session:
        session = Session(self.engine)
        self._sessions.append(session)
        return session


def _dispose(sessions: Sequence[Session], engine: Engine | None) -> None:
    for session in sessions:
        session.close()
    if engine is not None:
        engine.dispose()


def _memory() -> Engine:
    """Open a new SQLite database in memory; its one connection serves all threads."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def _tables_of(handlers: Sequence[Handler[Any]], metadata: MetaData | None) -> list[MetaData]:
    """Find `metadata` where `replay` looks for it: in the packages of handlers; and in their modules."""
    modules = {handler.function.__module__ for handler in handlers}
    names = sorted(modules | {module.partition(".")[0] for module in modules})
    found = [metadata, *(getattr(sys.modules.get(name), "metadata", None) for name in names)]
    return list({id(each): each for each in found if isinstance(each, MetaData)}.values())


@contextmanager
def fresh_database(url: str | None = None) -> Iterator[Engine]:
    """Open an empty database and remove it afterwards: SQLite in memory, or a new schema of a PostgreSQL database."""
    if url is None:
        engine = _memory()
        try:
            yield engine
        finally:
            engine.dispose()
    elif make_url(url).get_backend_name() == "postgresql":
        with _fresh_schema(url) as engine:
            yield engine
    else:
        raise TypeError("a database for tests is PostgreSQL's, or SQLite in memory where no URL is given")


@contextmanager
def _fresh_schema(url: str) -> Iterator[Engine]:
    name = f"cdc_test_{uuid4().hex}"
    admin = open_engine(url)
    inside = make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
    engine = open_engine(inside.render_as_string(hide_password=False))
    try:
        with admin.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        yield engine
    finally:
        engine.dispose()
        with admin.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
        admin.dispose()
