"""The CDC router: from a delivery to the handlers of its table, its lane, or the reason why it needs none.

A route is looked up by connector, schema and table as the message's own source block names them; topics and
attributes are never trusted. What is decided for a table is decided once, in a `_Plan` for each operation, so that a
message costs two dictionary look-ups here. The lane is the ordering key where the message has one, else the Row's key
columns, else the whole table. Everything that passes is counted, handled or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from cdc_reactor.avro import NAMED
from cdc_reactor.changes import CHANGE_OF, RowReader, _Change
from cdc_reactor.decoder import NOT_PLAIN, Decoder
from cdc_reactor.envelope import BAD_BYTES, AnySource, Drop, Envelope, Operation, TableId, is_null
from cdc_reactor.errors import DecodeError, DefinitionError, SenderError, WorldError
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import NO_ATTRIBUTES, Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import EVERY_LANE, Held, Route, Routed

#: What becomes of changes of a table that no handler wants.
UnknownTable: TypeAlias = Literal["ack", "dead-letter", "stop"]

#: Tells whether an envelope is wanted at all (the replay's filters).
Accept: TypeAlias = Callable[[Envelope, Message], bool]

WHOLE_TABLE = ""

_Shortcut: TypeAlias = "tuple[str, str, type[_Change[Any]], Any, Route, _Plan]"

_NAMES = {
    Operation.CREATE: "create",
    Operation.UPDATE: "update",
    Operation.DELETE: "delete",
    Operation.TRUNCATE: "truncate",
}


class _Plan:
    """What happens to one operation on one table, and how often it did."""

    __slots__ = ("count", "filters", "handlers", "is_plain", "kind", "operation", "reader", "reason", "route", "table")

    def __init__(self, table: _Table, operation: Operation, handlers: tuple[Handler[Any], ...]) -> None:
        self.table = table
        self.operation = operation
        self.count = 0
        #: What to make of it; the bare base where nobody wants it.
        self.kind: type[_Change[Any]] = CHANGE_OF[operation] if handlers else _Change
        self.reader: Any = table.reader
        self.handlers = handlers
        self.route = Route((table.connector, table.table_id), handlers, table.lane_of)
        #: Handlers that want to see what changed before they want the change.
        self.filters = operation is Operation.UPDATE and any(h.when_changed for h in handlers)
        self.is_plain = bool(handlers) and not self.filters and operation is not Operation.TRUNCATE
        self.reason = self._reason_for_none()

    @property
    def shortcut(self) -> _Shortcut:
        """What a plain message of it needs, in one piece."""
        return (self.table.schema, self.table.connector, self.kind, self.reader, self.route, self)

    def _reason_for_none(self) -> str:
        if self.operation is Operation.READ:
            return Drop.SNAPSHOT_READ.value
        if self.operation is Operation.MESSAGE:
            return Drop.LOGICAL_MESSAGE.value
        return "no handler wants this operation" if self.table.handlers else "unhandled"


class _Table:
    """A table of one connector: its handlers, its Row, and a plan for each operation."""

    __slots__ = ("connector", "handlers", "lane_of", "plans", "reader", "schema", "table_id")

    def __init__(
        self, connector: str, table_id: TableId, handlers: tuple[Handler[Any], ...], reader: RowReader[Any] | None
    ) -> None:
        self.connector = connector
        self.schema = table_id.schema
        self.table_id = table_id
        self.handlers = handlers
        self.reader = reader
        self.lane_of = _lane_reader(reader.model.key_columns if reader is not None else ())
        self.plans = {op: _Plan(self, op, tuple(h for h in handlers if _wants(h, op))) for op in Operation}


def _wants(handler: Handler[Any], operation: Operation) -> bool:
    return handler.snapshot if operation is Operation.READ else operation in handler.operations


def _lane_reader(columns: tuple[str, ...]) -> Callable[[_Change[Any]], Hashable]:
    """Compile a reader of the key columns' values, which parses nothing else of a row."""
    if not columns:
        return lambda _: WHOLE_TABLE
    fields = [(f"key{n}", Any) for n in range(len(columns))]
    shape = msgspec.defstruct("_Key", fields, rename={f"key{n}": c for n, c in enumerate(columns)}, gc=False)
    parse = msgspec.json.Decoder(shape).decode

    def lane_of(change: _Change[Any]) -> Hashable:
        image = change.envelope.before if is_null(change.envelope.after) else change.envelope.after
        try:
            lane = _values(image, columns) if isinstance(image, dict) else msgspec.structs.astuple(parse(image or b""))
            hash(lane)
        except (*BAD_BYTES, KeyError, TypeError):
            # A row without its key columns is no row that the handler can read; its error is told when it does.
            return WHOLE_TABLE
        return lane

    return lane_of


def _values(image: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple([image[column] for column in columns])


class Tally:
    """What a router has seen. `changes` counts every table, handled or not; filtered messages count as dropped only."""

    def __init__(self) -> None:
        self.undecodable = 0
        self.dropped: Counter[Drop] = Counter()
        self._tables: list[_Table] = []

    def add(self, table: _Table) -> None:
        """Follow a table's counts from now on."""
        self._tables.append(table)

    def _counts(self) -> Iterable[tuple[TableId, _Plan]]:
        return ((t.table_id, p) for t in self._tables for p in t.plans.values() if p.count)

    @property
    def messages(self) -> int:
        """All messages seen."""
        return self.undecodable + self.dropped.total() + sum(plan.count for _, plan in self._counts())

    def drops(self) -> dict[str, int]:
        """Count dropped messages by reason, snapshot reads and logical messages among them."""
        counts = Counter({drop.value: n for drop, n in self.dropped.items()})
        for _, plan in self._counts():
            if plan.kind is _Change and plan.operation in (Operation.READ, Operation.MESSAGE):
                counts[plan.reason] += plan.count
        return dict(counts)

    def changes(self) -> dict[str, dict[str, int]]:
        """Count changes by table and operation."""
        found: dict[str, dict[str, int]] = {}
        for table_id, plan in self._counts():
            if plan.operation in _NAMES:
                counts = found.setdefault(str(table_id), dict.fromkeys(_NAMES.values(), 0))
                counts[_NAMES[plan.operation]] += plan.count
        return found

    def snapshot_reads(self) -> dict[str, int]:
        """Count rows read by snapshots, by table."""
        counts: Counter[str] = Counter()
        for table_id, plan in self._counts():
            if plan.operation is Operation.READ:
                counts[str(table_id)] += plan.count
        return dict(counts)

    def unhandled(self) -> dict[str, int]:
        """Count changes of tables that no handler wants, by table."""
        counts: Counter[str] = Counter()
        for table_id, plan in self._counts():
            if plan.operation in _NAMES and plan.reason == "unhandled" and plan.kind is _Change:
                counts[str(table_id)] += plan.count
        return dict(counts)


class CdcRouter:
    """Routes deliveries of change events; give it to a Reactor.

    Raises DefinitionError where two Row models claim one table or two handlers of a table share a name.
    """

    def __init__(
        self,
        handlers: Iterable[Handler[Any]],
        decoder: Decoder,
        *,
        unknown_table: UnknownTable = "ack",
        accept: Accept | None = None,
    ) -> None:
        self._handlers = by_table(handlers)
        self._decoder = decoder
        self._decode = decoder.decode
        self._unknown_table = unknown_table
        self._accept = accept
        self._tables: dict[tuple[str, str, str], _Table] = {}
        self._by_name: dict[str, _Table] = {}
        #: By table and operation, what `route_all` needs to know of a plain plan of a table in `_by_name`.
        self._plain: dict[str, dict[Operation, _Shortcut]] = {}
        self._subsets: dict[tuple[Hashable, tuple[Handler[Any], ...]], Route] = {}
        self.tally = Tally()
        #: The first change of an unknown table under the policy "stop".
        self.stopped_by: TableId | None = None

    @property
    def handler_names(self) -> list[str]:
        """Return the names of all handlers, by table."""
        return [handler.name for handlers in self._handlers.values() for handler in handlers]

    def route(self, delivery: Delivery) -> Held | Settlement:
        """Tell where a delivery goes; whatever is wrong with it becomes its settlement."""
        try:
            envelope = self._decode(delivery.message)
        except DecodeError as error:
            self.tally.undecodable += 1
            return Settlement(delivery, Verdict.DEAD_LETTER, str(error), error)
        if type(envelope) is not Envelope:
            assert type(envelope) is Drop, "the decoder answers with an Envelope or a Drop"
            return self._drop(delivery, envelope)
        if self._accept is not None and not self._accept(envelope, delivery.message):
            return self._drop(delivery, Drop.FILTERED)
        return self._route_envelope(delivery, envelope)

    def route_all(self, deliveries: Sequence[Delivery], routed: list[Routed | Held | Settlement]) -> None:
        """Append to `routed` what each delivery is, in order, as `route` tells it, at less cost.

        A change whose route is all that is to be told of it stands there itself, with that route.

        Raises:
            WorldError: as the decoder does; what came before that message is in `routed`.
        """
        if self._accept is None and deliveries:
            self._route_quickly(deliveries, routed)
        else:
            routed.extend(map(self.route, deliveries))

    # One loop, and everything in it written out: a call costs as much as a look-up, and this is all that most messages
    # ever need (docs/adr/0014). Whatever is not plain takes the road of `route`.
    def _route_quickly(self, deliveries: Sequence[Delivery], routed: list[Routed | Held | Settlement]) -> None:
        append, plain, decoder, max_bytes = routed.append, self._plain, self._decoder, self._decoder.max_bytes
        no_attributes, avro_schema = NO_ATTRIBUTES, NAMED
        parse = decoder.fast_road(deliveries[0].message.data)
        for delivery in deliveries:
            message = delivery.message
            data = message.data
            if len(data) > max_bytes or (message.attributes is not no_attributes and avro_schema in message.attributes):
                append(self.route(delivery))
                continue
            try:
                envelope = parse(data)
            except (DecodeError, *NOT_PLAIN):
                # Messages of one connector are alike: with a schema block, or without.
                parse = decoder.fast_road(data)
                append(self.route(delivery))
                continue
            source = envelope.source
            try:
                schema, connector, kind, reader, route, plan = plain[source.table][envelope.op]
            except KeyError:
                envelope.keep(data)
                append(self._route_envelope(delivery, envelope))
                continue
            if schema == source.schema and connector == source.name:
                plan.count += 1
                append(kind(envelope, reader, route, data))
            else:
                envelope.keep(data)
                append(self._route_envelope(delivery, envelope))

    def _route_envelope(self, delivery: Delivery, envelope: Envelope) -> Held | Settlement:
        source = envelope.source
        # The name alone nearly always tells; comparing costs half of hashing all three.
        table = self._by_name.get(source.table)
        if table is None or table.schema != source.schema or table.connector != source.name:
            table = self._tables.get((source.name, source.schema, source.table)) or self._open(source)
        plan = table.plans[envelope.op]
        plan.count += 1
        if plan.is_plain:
            return Held(delivery, plan.kind(envelope, plan.reader), plan.route)
        return self._route_with_care(delivery, envelope, plan)

    def table_of(self, message: Message) -> str:
        """Name the table of a message, for people; empty where it has none or cannot be read."""
        try:
            envelope = self._decode(message)
        except (DecodeError, WorldError):
            return ""
        return str(envelope.source.table_id) if type(envelope) is Envelope else ""

    def _route_with_care(self, delivery: Delivery, envelope: Envelope, plan: _Plan) -> Held | Settlement:
        if plan.kind is _Change:
            return self._not_wanted(delivery, plan)
        held = Held(delivery, plan.kind(envelope, plan.reader), plan.route)
        if plan.operation is Operation.TRUNCATE:
            held.known_lane = EVERY_LANE
        return self._filter(held, plan) if plan.filters else held

    def _drop(self, delivery: Delivery, drop: Drop) -> Settlement:
        self.tally.dropped[drop] += 1
        return Settlement(delivery, Verdict.ACK, drop.value)

    def _open(self, source: AnySource) -> _Table:
        handlers = self._handlers.get(source.table_id, ())
        reader = RowReader(handlers[0].row, self._decoder.placeholder) if handlers else None
        table = self._tables[source.name, source.schema, source.table] = _Table(
            source.name, source.table_id, handlers, reader
        )
        if self._by_name.setdefault(source.table, table) is table:
            self._plain[source.table] = {op: plan.shortcut for op, plan in table.plans.items() if plan.is_plain}
        self.tally.add(table)
        return table

    def _not_wanted(self, delivery: Delivery, plan: _Plan) -> Settlement:
        if plan.reason == "unhandled" and self._unknown_table != "ack":
            if self._unknown_table == "stop":
                self.stopped_by = self.stopped_by or plan.table.table_id
                return Settlement(delivery, Verdict.NACK, plan.reason)
            reason = f"no handler wants {plan.table.table_id}"
            return Settlement(delivery, Verdict.DEAD_LETTER, reason)
        return Settlement(delivery, Verdict.ACK, plan.reason)

    def _filter(self, held: Held, plan: _Plan) -> Held | Settlement:
        """Leave out the handlers whose `when_changed` columns did not change, or for which that cannot be told."""
        change = held.subject
        wanted = []
        refused: Settlement | None = None
        for handler in plan.handlers:
            try:
                if not handler.when_changed or change.is_changed(*handler.when_changed):
                    wanted.append(handler)
            except (SenderError, DefinitionError) as error:
                refused = Settlement(held.delivery, Verdict.DEAD_LETTER, str(error), error, handler.name)
        if not wanted:
            return refused or Settlement(held.delivery, Verdict.ACK, "nothing changed that a handler wants")
        held.worst = refused
        if len(wanted) < len(plan.handlers):
            held.route = self._subset(plan.route, tuple(wanted))
        return held

    def _subset(self, route: Route, handlers: tuple[Handler[Any], ...]) -> Route:
        key = (route.stream, handlers)
        return self._subsets.setdefault(key, Route(route.stream, handlers, route.lane_of))


def by_table(handlers: Iterable[Handler[Any]]) -> Mapping[TableId, tuple[Handler[Any], ...]]:
    """Sort handlers by table; DefinitionError where they contradict each other."""
    found: dict[TableId, tuple[Handler[Any], ...]] = {}
    for handler in handlers:
        others = found.get(handler.table_id, ())
        for other in others:
            if other.row is not handler.row:
                raise DefinitionError(
                    f"{handler.table_id} has two Row models, {other.row.__name__} ({other.place}) and "
                    f"{handler.row.__name__} ({handler.place}); handlers of one table share one"
                )
            if other.name == handler.name:
                raise DefinitionError(
                    f"{handler.table_id} has two handlers named {handler.name!r}: {other.place} and {handler.place}"
                )
        found[handler.table_id] = (*others, handler)
    return found
