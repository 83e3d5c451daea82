"""Tests of handlers in one line: `Harness(announce).insert(id=1, username="ada").run().events`.

A Harness writes the JSON that Debezium would write and sends it through the real thing: decoder, router, reactor,
executor, a database. Nothing is patched and nothing sleeps: the clock is virtual and jumps to whatever is due next, so
that retries run at once. The fixtures of `pytest_plugin` are made of what is here.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias
from uuid import UUID, uuid4

from pydantic import BaseModel, Json
from pydantic.fields import FieldInfo
from sqlalchemy import Engine, MetaData, create_engine, make_url, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from cdc_reactor.captures import Unreadable, find_captures
from cdc_reactor.changes import Row, columns_of
from cdc_reactor.database import open_engine
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import discover
from cdc_reactor.errors import WorldError
from cdc_reactor.events import Event, Publication
from cdc_reactor.execution import Executor
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import Failure, Outcome, Reactor
from cdc_reactor.routing import CdcRouter, by_table
from cdc_reactor.scalars import _EXACT as EXACT
from cdc_reactor.scalars import Geometry, Point
from cdc_reactor.schemas import open_schemas, registry_beside
from cdc_reactor.temporals import EPOCH, Infinity, Interval, IsoText
from cdc_reactor.wire_types import DecimalBytes, Wire

__all__ = ["Harness", "Run", "assert_registered", "fresh_database"]

_log = logging.getLogger("cdc_reactor")

Identity: TypeAlias = Literal["full", "default"]

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
    def events(self) -> list[Event]:
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
        self._wire = _Connector(schemas=schemas, identity=replica_identity)
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
        return self._send(self._wire.created(model, _whole(model, given)))

    create = insert

    def snapshot(self, row: type[Row] | Row | None = None, /, **columns: Any) -> Self:
        """Let a snapshot read a row."""
        model, given = self._meant(row, columns)
        return self._send(self._wire.read(model, _whole(model, given)))

    def update(
        self, row: type[Row] | Row | Mapping[str, Any], before: Mapping[str, Any] | None = None, /, **changes: Any
    ) -> Self:
        """Update a row by some changes: `update(ada, karma=7)` or `update(User, ada, karma=7)`, where `ada` is whole.

        A changed key is a delete and an insert, as Debezium sends it.
        """
        model, given = self._meant(row, before or {})
        after = {**given, **_by_column(model, changes)}
        return self._send(self._wire.updated(model, _whole(model, given), _whole(model, after)))

    def delete(self, row: type[Row] | Row | None = None, /, **columns: Any) -> Self:
        """Delete a row, given whole."""
        model, given = self._meant(row, columns)
        return self._send(self._wire.deleted(model, _whole(model, given)))

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
        return model, _by_column(model, given)


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
        self._reactor = Reactor(router.route)
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
            self.publications.extend(outcome.events)
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


# ── rows as Debezium writes them ────────────────────────────────────────────────────────────────────────────────────


def _by_column(model: type[Row], given: Mapping[str, Any]) -> dict[str, Any]:
    """Name columns as the table does; TypeError for one that the Row has not."""
    columns = columns_of(model)
    column_of = {name: column for column, name in columns.items()}
    for name in given:
        if name not in columns and name not in column_of:
            near = get_close_matches(name, [*columns, *column_of], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns)}"
            raise TypeError(f"{model.__name__} has no column {name!r}; {hint}")
    return {column_of.get(name, name): value for name, value in given.items()}


def _whole(model: type[Row], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the columns that were not given: the Row's default, or null where it may be null."""
    row = {}
    for column, name in columns_of(model).items():
        described = model.model_fields[name]
        if column in given:
            row[column] = given[column]
        elif not described.is_required():
            row[column] = described.get_default(call_default_factory=True, validated_data={})
        elif _admits_none(described.annotation):
            row[column] = None
        else:
            raise TypeError(f"{model.__name__}.{name} has no default and cannot be null: give it")
    return row


def _admits_none(annotation: Any) -> bool:
    return annotation in (Any, None, type(None)) or any(_admits_none(part) for part in _members(annotation))


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return typing.get_args(annotation)[:1] if origin is Annotated else ()


class _Connector:
    """Writes changes as Debezium's PostgreSQL connector does, one transaction each, at rising positions of the log."""

    def __init__(self, *, schemas: bool, identity: Identity | None) -> None:
        self._schemas = schemas
        self._identity = identity
        self._count = 0

    def created(self, model: type[Row], after: Mapping[str, Any]) -> list[Message]:
        return [self._change(model, "c", None, after)]

    def read(self, model: type[Row], after: Mapping[str, Any]) -> list[Message]:
        return [self._change(model, "r", None, after)]

    def updated(self, model: type[Row], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Message]:
        if any(before[column] != after[column] for column in model.key_columns):
            return [*self.deleted(model, before), *self.created(model, after)]
        return [self._change(model, "u", before if self._is_full(model) else None, after)]

    def deleted(self, model: type[Row], before: Mapping[str, Any]) -> list[Message]:
        if not self._is_full(model):
            before = {column: value if column in model.key_columns else _NOTHING for column, value in before.items()}
        return [self._change(model, "d", before, None)]

    def truncated(self, model: type[Row]) -> list[Message]:
        return [self._change(model, "t", None, None)]

    def message(self, data: bytes, *, attributes: Mapping[str, str] | None = None, ordering_key: str = "") -> Message:
        self._count += 1
        return Message(data, attributes or {}, ordering_key, str(self._count))

    def _is_full(self, model: type[Row]) -> bool:
        return (self._identity or model.replica_identity or "full") == "full"

    def _change(
        self, model: type[Row], op: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> Message:
        columns = {
            column: _column(model.model_fields[name], *(row[column] for row in (after, before) if row is not None))
            for column, name in columns_of(model).items()
        }
        if self._schemas:
            # A plain timedelta understands two modes of the connector, one of them only where a schema names the unit.
            columns = {name: c._replace(kind=_unit_of(c.kind)) for name, c in columns.items()}
        images = [_image(model, columns, row) for row in (before, after)]
        payload = self._payload(model, op, *images)
        body = {"schema": _schema_block(model, columns), "payload": payload} if self._schemas else payload
        image = images[1] or images[0] or {}
        key = {column: image[column] for column in model.key_columns if column in image}
        return self.message(_json(body), ordering_key=_json(key).decode() if key else "")

    def _payload(self, model: type[Row], op: str, before: Any, after: Any) -> dict[str, Any]:
        number = self._count + 1
        lsn = 25_000_000 + 48 * number
        ts_ms = 1_795_443_312_000 + number
        source = {
            "version": "3.6.3.Final", "connector": "postgresql", "name": "harness", "ts_ms": ts_ms,
            "snapshot": "true" if op == "r" else "false", "db": "harness", "sequence": f'["{lsn - 48}","{lsn}"]',
            "ts_us": ts_ms * 1000, "ts_ns": ts_ms * 1_000_000, "schema": model.table_id.schema,
            "table": model.table_id.table, "txId": number, "lsn": lsn, "xmin": None,
        }  # fmt: skip
        return {
            "before": before, "after": after, "source": source, "transaction": None, "op": op,
            "ts_ms": ts_ms + 1, "ts_us": (ts_ms + 1) * 1000, "ts_ns": (ts_ms + 1) * 1_000_000,
        }  # fmt: skip


#: Stands for what is not in the WAL: Debezium writes null, or the zero of a column that may not be null.
_NOTHING = object()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class _Kind(NamedTuple):
    """How Debezium writes values of one kind: Connect's type and logical name, which values, as what JSON, the zero."""

    form: str
    name: str | None
    takes: Any
    write: Callable[[Any], Any]
    zero: Any
    more: Mapping[str, Any] = {}

    def written(self, value: Any) -> Any:
        """Write a value; what is of another kind goes out as it is, and the Row will say what it thinks of it."""
        if isinstance(value, Infinity):
            return _INFINITE.get(self.name, ("infinity", "-infinity"))[value is Infinity.NEGATIVE]
        if isinstance(value, IsoText):
            return value.text
        return self.write(value) if isinstance(value, self.takes) else value

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of such a column, but for its name."""
        return {"type": self.form, **({"name": self.name, "version": 1} if self.name else {}), **self.more}


class _Column(NamedTuple):
    kind: _Kind
    is_optional: bool


def _image(model: type[Row], columns: Mapping[str, _Column], row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    image = {}
    for name, column in columns.items():
        value = row[name]
        if value is _NOTHING:
            image[name] = None if column.is_optional else column.kind.zero
            continue
        try:
            image[name] = column.kind.written(value)
            _json(image[name])
        except (TypeError, ValueError, ArithmeticError) as error:
            raise TypeError(f"{model.__name__}.{name}: no column holds {value!r}: {error}") from error
    return image


def _schema_block(model: type[Row], columns: Mapping[str, _Column]) -> dict[str, Any]:
    fields = [{**c.kind.schema, "optional": c.is_optional, "field": name} for name, c in columns.items()]
    row = {"type": "struct", "fields": fields, "optional": True, "name": f"harness.{model.table_id}.Value"}
    others = [("source", "struct"), ("transaction", "struct"), ("op", "string"), ("ts_ms", "int64")]
    return {
        "type": "struct",
        "fields": [
            {**row, "field": "before"},
            {**row, "field": "after"},
            *({"type": kind, "optional": True, "field": name} for name, kind in others),
        ],
        "optional": False,
        "name": f"harness.{model.table_id}.Envelope",
        "version": 2,
    }


def _column(described: FieldInfo, *values: Any) -> _Column:
    """Find out how a field's column is written: by the wire type that annotates it, else by its values."""
    annotation, notes = _bare(described.annotation, tuple(described.metadata))
    sample = next((v for v in values if v is not None and v is not _NOTHING and not isinstance(v, Infinity)), None)
    return _Column(_kind(annotation, notes, sample), not described.is_required() or _admits_none(described.annotation))


def _bare(annotation: Any, notes: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Take the wrappings off an annotation: `MicroTimestamp | Infinity | None` is a datetime with a Wire."""
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        return _bare(inner, (*notes, *more))
    members = [each for each in _members(annotation) if each not in (type(None), Infinity, IsoText)]
    return _bare(members[0], notes) if members else (annotation, notes)


def _kind(annotation: Any, notes: Sequence[Any], sample: Any) -> _Kind:
    for note in (*notes, annotation):
        if isinstance(note, Wire):
            return _BY_WIRE[note.name]
        if isinstance(note, DecimalBytes):
            return _decimal_bytes(note.scale)
        if note is Json or type(note) is Json:
            return _JSON
    if isinstance(sample, _LISTS) or typing.get_origin(annotation) in _LISTS:
        return _array(annotation, sample)
    return _plain(annotation, sample)


def _array(annotation: Any, sample: Any) -> _Kind:
    element, notes = _bare(next(iter(typing.get_args(annotation)), Any), ())
    kind = _kind(element, notes, next(iter(sample if isinstance(sample, _LISTS) else ()), None))
    items = {"items": {**kind.schema, "optional": True}}
    return _Kind("array", None, _LISTS, lambda values: [kind.written(value) for value in values], [], items)


def _plain(annotation: Any, sample: Any) -> _Kind:
    if isinstance(sample, datetime | time) and sample.tzinfo is None:
        return _BY_WIRE["MicroTimestamp" if isinstance(sample, datetime) else "MicroTime"]
    cls = annotation if sample is None else type(sample)
    return next((k for k in _PLAIN if isinstance(cls, type) and issubclass(cls, k.takes)), _PLAIN[-1])


_LISTS: Any = (list, tuple, set, frozenset)
_MICROSECOND = timedelta(microseconds=1)


def _micros(value: datetime) -> int:
    return ((value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)) - EPOCH) // _MICROSECOND


def _micros_of_day(value: time) -> int:
    return _micros(datetime.combine(EPOCH, value.replace(tzinfo=None)))


def _days(value: date) -> int:
    return value.toordinal() - EPOCH.toordinal()


def _iso(value: date | time) -> str:
    return f"{value.isoformat()}Z"


def _iso_duration(value: timedelta) -> str:
    seconds, micros = divmod(abs(value) // _MICROSECOND, 1_000_000)
    return f"P0Y0M0DT0H0M{'-' if value < timedelta() else ''}{seconds}.{micros:06}S"


def _iso_interval(value: Interval) -> str:
    clock = _iso_duration(timedelta(microseconds=value.microseconds)).removeprefix("P0Y0M0D")
    return f"P0Y{value.months}M{value.days}D{clock}"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _unscaled(value: Decimal, scale: int) -> str:
    number = int(value.scaleb(scale, EXACT).to_integral_value())
    return _base64(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def _decimal_struct(value: Decimal) -> dict[str, Any]:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError("neither NaN nor infinity has a scale")  # noqa: TRY004 - it is a Decimal all right
    return {"scale": max(0, -exponent), "value": _unscaled(value, max(0, -exponent))}


@cache
def _decimal_bytes(scale: int) -> _Kind:
    name, more = "org.apache.kafka.connect.data.Decimal", {"parameters": {"scale": str(scale)}}
    return _Kind("bytes", name, Decimal, lambda value: _unscaled(value, scale), "AA==", more)


def _number(value: float | Decimal) -> float | int | str:
    if not isfinite(value):
        return _SPECIAL[str(float(value))]
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else float(value)


def _json_text(value: Any) -> str:
    return value.model_dump_json() if isinstance(value, BaseModel) else _json(value).decode()


_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_TIME, _DATA = "io.debezium.time", "io.debezium.data"
_INFINITE: Mapping[str | None, tuple[int, int]] = {
    f"{_TIME}.Date": (-2_147_472_692, -2_147_472_691),
    f"{_TIME}.Timestamp": (9_223_372_036_825_200, -9_223_372_036_832_400),
    f"{_TIME}.MicroTimestamp": (9_223_372_036_825_200_000, -9_223_372_036_832_400_000),
    f"{_TIME}.NanoTimestamp": (2**63 - 1, -(2**63)),
}
_VARIABLE = _Kind("struct", f"{_DATA}.VariableScaleDecimal", Decimal, _decimal_struct, {"scale": 0, "value": "AA=="})
_JSON = _Kind("string", f"{_DATA}.Json", (dict, *_LISTS, BaseModel), _json_text, "{}")

_BY_WIRE: Mapping[str, _Kind] = {
    "MilliTimestamp": _Kind("int64", f"{_TIME}.Timestamp", datetime, lambda v: _micros(v) // 1000, 0),
    "MicroTimestamp": _Kind("int64", f"{_TIME}.MicroTimestamp", datetime, _micros, 0),
    "NanoTimestamp": _Kind("int64", f"{_TIME}.NanoTimestamp", datetime, lambda v: _micros(v) * 1000, 0),
    "IsoTimestamp": _Kind("string", f"{_TIME}.IsoTimestamp", datetime, _iso, "1970-01-01T00:00:00Z"),
    "EpochDays": _Kind("int32", f"{_TIME}.Date", date, _days, 0),
    "IsoDate": _Kind("string", f"{_TIME}.IsoDate", date, _iso, "1970-01-01Z"),
    "MilliTime": _Kind("int32", f"{_TIME}.Time", time, lambda v: _micros_of_day(v) // 1000, 0),
    "MicroTime": _Kind("int64", f"{_TIME}.MicroTime", time, _micros_of_day, 0),
    "NanoTime": _Kind("int64", f"{_TIME}.NanoTime", time, lambda v: _micros_of_day(v) * 1000, 0),
    "IsoTime": _Kind("string", f"{_TIME}.IsoTime", time, _iso, "00:00:00Z"),
    "MicroDuration": _Kind("int64", f"{_TIME}.MicroDuration", timedelta, lambda v: v // _MICROSECOND, 0),
    "Base64Bytes": _Kind("bytes", None, bytes, _base64, ""),
    "Base64UrlBytes": _Kind("string", None, bytes, lambda v: base64.urlsafe_b64encode(v).decode(), ""),
    "HexBytes": _Kind("string", None, bytes, bytes.hex, ""),
    "DecimalString": _Kind("string", None, Decimal, lambda v: f"{v:f}", "0"),
    "VariableDecimal": _VARIABLE,
}
_INTERVAL = _Kind("string", f"{_TIME}.Interval", timedelta, _iso_duration, "P0Y0M0DT0H0M0S")


def _unit_of(kind: _Kind) -> _Kind:
    return _BY_WIRE["MicroDuration"] if kind is _INTERVAL else kind


# The first that takes a value; without a schema, only what a plain annotation would understand.
_PLAIN: Sequence[_Kind] = (
    _Kind("boolean", None, bool, bool, zero=False),
    _Kind("string", None, Enum, lambda v: v.value, ""),
    _Kind("int64", None, int, int, 0),
    _Kind("double", None, float, _number, 0.0),
    _Kind("double", None, Decimal, _number, 0.0),
    _Kind("string", f"{_DATA}.Uuid", UUID, str, ""),
    _Kind(
        "string", f"{_TIME}.ZonedTimestamp", datetime, lambda v: _iso(v.astimezone(UTC).replace(tzinfo=None)),
        "1970-01-01T00:00:00.000000Z",
    ),
    _BY_WIRE["EpochDays"],
    _Kind("string", f"{_TIME}.ZonedTime", time, time.isoformat, "00:00:00Z"),
    _INTERVAL,
    _Kind("string", f"{_TIME}.Interval", Interval, _iso_interval, "P0Y0M0DT0H0M0S"),
    _BY_WIRE["Base64Bytes"],
    _Kind(
        "struct", f"{_DATA}.geometry.Geometry", Geometry,
        lambda v: {"wkb": _base64(v.wkb), "srid": v.srid}, {"wkb": "", "srid": None},
    ),
    _Kind(
        "struct", f"{_DATA}.geometry.Point", Point,
        lambda v: {"x": v.x, "y": v.y, "wkb": v.wkb and _base64(v.wkb), "srid": v.srid}, {"x": 0.0, "y": 0.0},
    ),
    _JSON,
    _Kind("string", None, str, str, ""),
)  # fmt: skip
