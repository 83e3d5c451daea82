"""Why a captured message goes where it goes, and which handlers there are: the commands `explain` and `handlers`.

The answers come from the code that does the work: the decoder decodes, the router routes, the Row reads. Only what
these have no words for is looked up here a second time: the form of the message, and the parts of the source block that
no decision needs. Nothing is run and nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import UUID

import typer

from cdc_reactor.avro import AvroReader, is_avro, schema_key
from cdc_reactor.captures import Capture, Element, Unreadable, find_captures
from cdc_reactor.changes import CHANGE_OF, Row, RowReader, _Change, _without, column_of
from cdc_reactor.columns import Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import DEFAULT_TARGETS, Discovery, discover, load_handlers, present
from cdc_reactor.envelope import Drop, Envelope, Lsn, Operation, RowImage, RowSchema, parse_json, read_image
from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable, ReactorError, SenderError, UsageError
from cdc_reactor.forms import _is_with_schema
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import EVERY_LANE, Held
from cdc_reactor.routing import WHOLE_TABLE, CdcRouter, by_table
from cdc_reactor.schemas import SchemaStore, open_schemas, registry_beside

_HEAD_BYTES = 64
_MAX_BITS = 10_000  # well within `sys.set_int_max_str_digits`
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of the command `explain`, as typed."""

    target: str
    handlers: Sequence[str] | None = None
    schemas: str | None = None
    form: str | None = None
    placeholder: str = "__debezium_unavailable_value"
    unwrapped_prefix: str = "__"
    as_json: bool = False
    show_values: bool = True


class _Note(str):
    """What stands in the place of a value, without being one."""

    __slots__ = ()


@dataclass(slots=True)
class Cell:
    """One column of a row image: on the wire, in Python, or why it cannot be read."""

    column: str
    wire: Any
    value: str | None = None
    problem: str | None = None
    is_sent: bool = True


@dataclass(slots=True)
class Image:
    """A row before or after, as the Row model (or, without handlers, the schema) sees it."""

    name: str
    model: str
    cells: list[Cell] = field(default_factory=list)
    unnamed_columns: list[str] = field(default_factory=list)
    problem: str | None = None


@dataclass(slots=True)
class Answer:
    """What one handler's filters say to the change."""

    handler: str
    place: str
    takes_it: bool
    because: list[str]


@dataclass(slots=True)
class Explanation:
    """All that is to be said of one message; `outcome` is what becomes of it, `reason` why."""

    place: str
    size_bytes: int
    outcome: str = ""
    reason: str = ""
    form: str = ""
    message_id: str = ""
    publish_time: str | None = None
    ordering_key: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    first_bytes: dict[str, str] | None = None
    table: str | None = None
    operation: str | None = None
    source: dict[str, Any] | None = None
    lane: Any = None
    lane_from: str | None = None
    handlers: list[Answer] = field(default_factory=list)
    changed_columns: list[str] | None = None
    changed_unknown: str | None = None
    images: list[Image] = field(default_factory=list)
    exit_status: int = 0


def run(options: Options) -> int:
    """Explain one message; return the exit status.

    Raises:
        UsageError: the place, an option or a handler module is wrong.
        CaptureError: the file breaks off before the message.
        WorldError: a schema registry does not answer.
    """
    path, number = parse_target(options.target)
    captures = find_captures([path])
    if len(captures) > 1:
        raise UsageError(f"{path}: these are {len(captures)} captures; name one of them, such as {captures[0].name}")
    handlers = load_handlers(options.handlers or _default_handlers()).handlers
    store = open_schemas(options.schemas or registry_beside(capture.name for capture in captures))
    element, place = pick(captures[0], number, form=options.form, schemas=store)
    explainer = Explainer(
        handlers,
        schemas=store,
        placeholder=Placeholder(options.placeholder),
        unwrapped_prefix=options.unwrapped_prefix,
        show_values=options.show_values,
    )
    explanation = explainer.explain(element, place)
    typer.echo(_to_json(asdict(explanation)) if options.as_json else render(explanation))
    return explanation.exit_status


def _default_handlers() -> Sequence[str]:
    """Do without handlers where nobody named any and there are none yet."""
    try:
        return present(DEFAULT_TARGETS)
    except UsageError:
        return ["none"]


# ── which message ───────────────────────────────────────────────────────────────────────────────────────────────────

_PLACE = re.compile(r"(.+):\s?(?:[a-z]+ )?([0-9]{1,18})", re.DOTALL)


def parse_target(target: str) -> tuple[str, int | None]:
    """Split `FILE:N`, or the place of a message as a report prints it, into file and number.

    A file whose own name ends so is meant before all else; `FILE:1` then means its first message.

    Raises:
        UsageError: what stands behind the colon is no number from 1.
    """
    if _is_there(target):
        return target, None
    match = _PLACE.fullmatch(target)
    if match is not None and (_is_there(match[1]) or "://" in match[1]):
        if int(match[2]) == 0:
            raise UsageError(f"{target}: messages and lines are counted from 1")
        return match[1], int(match[2])
    path, _, number = target.rpartition(":")
    if path and _is_there(path):
        raise UsageError(f"{target}: {number!r} is no number of a message; write {path}:1 for the first")
    return target, None


def _is_there(path: str) -> bool:
    return path == "-" or Path(path).exists()


def pick(
    capture: Capture, number: int | None, *, form: str | None, schemas: SchemaStore | None = None
) -> tuple[Element, str]:
    """Read a capture up to one message, counted as `Capture.place` counts; the first where `number` is None.

    Raises:
        UsageError: there is no message of this number.
    """
    last = ""
    for n, element in enumerate(capture.messages(form, schemas=schemas), 1):
        place = capture.place(n)
        at = int(place.rpartition(":")[2].split()[-1])
        if number is None or at == number:
            return element, place
        if at > number:
            raise UsageError(f"{capture.name}:{number}: this line is blank; the next message is at {place}")
        last = place
    if not last:
        raise UsageError(f"{capture.name}: there is no message in it")
    raise UsageError(f"{capture.name}:{number}: there is no such message; the last is at {last}")


# ── what becomes of it ──────────────────────────────────────────────────────────────────────────────────────────────

_WHY_DROPPED = {
    Drop.HEARTBEAT: "the connector's sign of life (heartbeat.interval.ms)",
    Drop.SNAPSHOT_READ: "a row that a snapshot read; handlers with snapshot=True take those",
    Drop.TOMBSTONE: "no data: what follows a delete where tombstones.on.delete=true",
    Drop.TRANSACTION: "the begin or end of a transaction (provide.transaction.metadata)",
    Drop.LOGICAL_MESSAGE: "a message that pg_logical_emit_message() wrote into the log, no row",
    Drop.SCHEMA_CHANGE: "a change of a table's definition, no row",
    Drop.OUTBOX: "an event of the outbox router, for the application's own consumers",
}


class Explainer:
    """Explains messages against a set of handlers.

    Raises DefinitionError where the handlers contradict each other.
    """

    def __init__(
        self,
        handlers: Sequence[Handler[Any]],
        *,
        schemas: SchemaStore | None = None,
        placeholder: Placeholder | None = None,
        unwrapped_prefix: str = "__",
        show_values: bool = True,
    ) -> None:
        self._placeholder = placeholder or Placeholder()
        self._prefix = unwrapped_prefix
        self._decoder = Decoder(schemas=schemas, placeholder=self._placeholder, unwrapped_prefix=unwrapped_prefix)
        self._router = CdcRouter(handlers, self._decoder)
        self._avro = AvroReader(schemas, self._placeholder)
        self._by_table = by_table(handlers)
        self._shows_values = show_values

    def explain(self, element: Element, place: str) -> Explanation:
        """Say why a message goes where it goes.

        Raises:
            WorldError: a schema registry that is needed to read it does not answer.
        """
        told = Explanation(place, len(element.data))
        if isinstance(element, Unreadable):
            self._tell_undecodable(told, element.data, element.error)
            return told
        self._tell_message(told, element)
        try:
            envelope = self._decoder.decode(element)
            told.form, value = self._form_of(element)
        except DecodeError as error:
            self._tell_undecodable(told, element.data, error)
            return told
        if not isinstance(envelope, Envelope):
            told.outcome = "dropped"
            told.reason = f"{envelope.value}: {_WHY_DROPPED.get(envelope, 'it is no change of a row')}"
            return told
        self._tell_change(told, envelope, value)
        self._tell_route(told, envelope, element)
        return told

    def _tell_undecodable(self, told: Explanation, data: bytes, error: DecodeError) -> None:
        told.outcome, told.reason, told.exit_status = "undecodable", str(error), 1
        head = data[:_HEAD_BYTES]
        if self._shows_values:
            text = "".join(chr(b) if 32 <= b < 127 else "." for b in head)
            told.first_bytes = {"hex": head.hex(" "), "text": text}

    def _tell_message(self, told: Explanation, message: Message) -> None:
        told.message_id = message.message_id
        told.publish_time = message.publish_time.isoformat() if message.publish_time is not None else None
        told.ordering_key = self._shown(message.ordering_key) if message.ordering_key else ""
        # The topic holds nothing of a row.
        told.attributes = {n: v if n == "destination" else self._shown(v) for n, v in message.attributes.items()}

    def _form_of(self, message: Message) -> tuple[str, Any]:
        """Name the form of a message that can be decoded; return with it its value, read whole."""
        if not message.data:
            return "no data", None
        if is_avro(message):
            key = schema_key(message)
            name = f"schema id {key}" if isinstance(key, int) else "schema " + "@".join(filter(None, key or ()))
            read = self._avro.read(message)
            return f"Avro with {name}, {read.name}: {self._shape_of(read.value)}", read.value
        value = parse_json(message.data)
        if not _has_schema(value):
            return f"JSON without schema: {self._shape_of(value)}", value
        name = (value["schema"] or {}).get("name") or "without a name"
        return f"JSON with its schema, {name}: {self._shape_of(value['payload'])}", value["payload"]

    def _shape_of(self, value: Any) -> str:
        if not isinstance(value, Mapping):
            return "no object"
        if {"specversion", "source", "type"} <= value.keys():
            inner = value.get("data")
            schema = " with its schema" if _has_schema(inner) else ""
            return f"a CloudEvent, its data{schema}"
        if "op" in value and "source" in value:
            return "an envelope"
        if f"{self._prefix}op" in value:
            return "a row that the unwrap transform flattened"
        return "an object"

    def _tell_change(self, told: Explanation, envelope: Envelope, value: Any) -> None:
        told.table = str(envelope.source.table_id) or None
        told.operation = envelope.op.name.lower()
        told.source = _source_of(envelope, value, self._prefix)

    def _tell_route(self, told: Explanation, envelope: Envelope, message: Message) -> None:
        handlers = self._by_table.get(envelope.source.table_id, ())
        reader = RowReader(handlers[0].row if handlers else Row, self._placeholder)
        change = CHANGE_OF.get(envelope.op, _Change)(envelope, reader)
        told.handlers = [_ask(handler, change) for handler in handlers]
        self._tell_changed(told, change)
        for name, image in (("before", envelope.before), ("after", envelope.after)):
            deleted = name == "before" and envelope.op is Operation.DELETE
            self._tell_image(told, name, image, envelope.schema, reader if handlers else None, deleted=deleted)
        routed = self._router.route(Delivery(message, None))
        if isinstance(routed, Settlement):
            self._tell_settled(told, routed)
            return
        self._tell_lane(told, routed)
        names = ", ".join(answer.handler for answer in told.handlers if answer.takes_it)
        told.outcome, told.reason = "handled", f"by {names}"
        broken = next((image for image in told.images if image.problem), None)
        if broken is not None:
            told.outcome, told.exit_status = "unreadable", 1
            told.reason = f"{names} will fail on the row {broken.name}: {broken.problem}"

    def _tell_settled(self, told: Explanation, settlement: Settlement) -> None:
        told.outcome, told.reason = "acknowledged", settlement.reason
        if settlement.verdict is Verdict.DEAD_LETTER:
            told.outcome, told.exit_status = "dead letter", 1
        elif settlement.reason in (Drop.SNAPSHOT_READ.value, Drop.LOGICAL_MESSAGE.value):
            told.outcome, told.reason = "dropped", f"{settlement.reason}: {_WHY_DROPPED[Drop(settlement.reason)]}"
        elif settlement.reason == "unhandled":
            told.reason = f"no handler has a Row for {told.table}"

    def _tell_lane(self, told: Explanation, held: Held) -> None:
        lane, keys = held.lane, held.subject.reader.model.key_columns
        if lane is EVERY_LANE:
            told.lane, told.lane_from = "all lanes of the table", "a truncate: it waits for all and all wait for it"
        elif held.delivery.message.ordering_key:
            told.lane, told.lane_from = told.ordering_key, "the message's ordering key"
        elif lane == WHOLE_TABLE:
            told.lane = "the whole table"
            told.lane_from = f"the row lacks its key: {', '.join(keys)}" if keys else "its Row names no key columns"
        else:
            told.lane = {column: self._shown(v) for column, v in zip(keys, held.lane, strict=True)}  # type: ignore[call-overload] # a tuple by now
            told.lane_from = "the Row's key columns, for the message has no ordering key"

    def _tell_changed(self, told: Explanation, change: _Change[Any]) -> None:
        if change.op is not Operation.UPDATE:
            return
        try:
            told.changed_columns = sorted(change.changed_columns)
        except SenderError as error:
            told.changed_unknown = str(error)

    def _tell_image(
        self,
        told: Explanation,
        name: str,
        image: RowImage,
        schema: RowSchema | None,
        reader: RowReader[Any] | None,
        *,
        deleted: bool,
    ) -> None:
        model = "nobody" if reader is None else reader.model.__name__
        seen = Image(name, model)
        try:
            wire = read_image(image)
        except DecodeError as error:
            seen.problem = str(error)
            told.images.append(seen)
            return
        if wire is None:
            return
        told.images.append(seen)
        if reader is None:
            seen.cells = [self._raw_cell(c, v, schema) for c, v in wire.items()]
            return
        seen.unnamed_columns = sorted(wire.keys() - reader.columns.keys())
        row: Row | None = None
        try:
            row = reader.read(image, schema, deleted=deleted)
        except DecodeError as error:
            seen.problem = str(error)
        seen.cells = [self._cell(column, wire, schema, reader, row) for column in reader.columns]

    def _raw_cell(self, column: str, wire: Any, schema: RowSchema | None) -> Cell:
        cell = Cell(column, self._shown(wire))
        convert = schema.converters.get(column) if schema is not None else None
        if self._placeholder.matches(wire):
            cell.problem, cell.is_sent = "a large value that did not change (TOAST) was not sent", False
        elif convert is not None:
            self._fill(cell, lambda: convert(wire))
        return cell

    def _cell(
        self, column: str, wire: Mapping[str, Any], schema: RowSchema | None, reader: RowReader[Any], row: Row | None
    ) -> Cell:
        is_sent = column in wire
        cell = Cell(column, self._shown(wire[column]) if is_sent else _Note("(not in the message)"))
        name = reader.columns[column]
        if row is not None:
            self._fill(cell, lambda: getattr(row, name))
            return cell
        others = frozenset(reader.model.model_fields.keys() - {name})
        model: type[Row] = reader.model
        alone = RowReader(_without(model, others) if others else model, self._placeholder)
        self._fill(cell, lambda: getattr(alone.read({column: wire[column]} if is_sent else {}, schema), name))
        return cell

    def _fill(self, cell: Cell, read: Callable[[], Any]) -> None:
        try:
            value = read()
        except ImageUnavailable as error:
            cell.problem, cell.is_sent = str(error), False
        except DecodeError as error:
            cell.problem = str(error).rpartition(f": {cell.column}: ")[2]
        else:
            cell.value = _python(value) if self._shows_values else type(value).__name__

    def _shown(self, value: Any) -> Any:
        """Return a wire value for people, or what may be said of it where values are not to be shown."""
        if self._shows_values or value is None:
            return _jsonable(value)
        size = f", {len(value):,} long" if hasattr(value, "__len__") else ""
        return _Note(f"({type(value).__name__}{size})")


def _has_schema(value: Any) -> bool:
    return _is_with_schema(value) or (
        isinstance(value, dict) and isinstance(value.get("schema"), dict) and "payload" in value
    )


def _ask(handler: Handler[Any], change: _Change[Any]) -> Answer:
    """Ask a handler's filters, in the order and words of the router."""
    if change.op is Operation.READ:
        because = ["snapshot=True lets rows of snapshots in" if handler.snapshot else "snapshot=False keeps it out"]
        return Answer(handler.name, _relative(handler.place), handler.snapshot, because)
    takes_it = change.op in handler.operations
    operation = change.op.name.lower()
    because = [f"ops has {operation}" if takes_it else f"ops has {_operations(handler)}, and not {operation}"]
    if takes_it and handler.when_changed and change.op is Operation.UPDATE:
        takes_it, answer = _ask_when_changed(handler, change)
        because.append(answer)
    return Answer(handler.name, _relative(handler.place), takes_it, because)


def _ask_when_changed(handler: Handler[Any], change: _Change[Any]) -> tuple[bool, str]:
    wanted = ", ".join(handler.when_changed)
    try:
        changed = [column for column in handler.when_changed if change.is_changed(column)]
    except (SenderError, DefinitionError) as error:
        return False, f"when_changed={wanted} cannot be answered: {error}"
    if changed:
        return True, f"when_changed={wanted}: {', '.join(changed)} changed"
    return False, f"when_changed={wanted}: none of these changed"


def _operations(handler: Handler[Any]) -> str:
    return ", ".join(op.name.lower() for op in Operation if op in handler.operations)


def _source_of(envelope: Envelope, value: Any, prefix: str) -> dict[str, Any]:
    """Collect what is known of where it happened; what the envelope holds, and what only people want to know."""
    source, transaction = _raw_source(value if isinstance(value, Mapping) else {}, prefix)
    lsn, ts_ms = envelope.source.lsn, envelope.source.ts_ms
    message = value.get("message") if isinstance(value, Mapping) else None
    prefix_of_message = message.get("prefix") if isinstance(message, Mapping) else None
    return {
        "connector": envelope.source.name,
        "kind": source.get("connector"),
        "version": source.get("version"),
        "database": source.get("db"),
        "lsn": str(Lsn(lsn)) if lsn is not None else None,
        "committed_at": _instant(ts_ms),
        "transaction": transaction.get("id") or source.get("txId"),
        "transaction_order": transaction.get("total_order"),
        "snapshot": source.get("snapshot"),
        "message_prefix": prefix_of_message,
    }


def _raw_source(value: Mapping[str, Any], prefix: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Find the source block and the transaction block, or what stands for them."""
    data = value.get("data")
    if "specversion" in value:
        inner = data.get("payload", data) if isinstance(data, Mapping) else {}
        if isinstance(inner, Mapping) and isinstance(inner.get("source"), Mapping):
            return _raw_source(inner, prefix)
        names = ("connector", "version", "db", "snapshot", "txId")
        source = {name: value.get(f"iodebezium{name}") for name in names}
        return source, {"id": value.get("iodebeziumtxid"), "total_order": value.get("iodebeziumtxtotalorder")}
    if isinstance(value.get("source"), Mapping) and "op" in value:
        return value["source"], value.get("transaction") or {}
    added = ("connector", "version", "db", "snapshot", "txId")
    return {n: value.get(f"{prefix}source_{n}", value.get(f"{prefix}{n}")) for n in added}, {
        "id": value.get(f"{prefix}transaction_id"),
        "total_order": value.get(f"{prefix}transaction_total_order"),
    }


def _instant(ts_ms: int | None) -> str | None:
    if ts_ms is None:
        return None
    try:
        return (_EPOCH + timedelta(milliseconds=ts_ms)).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{ts_ms} ms"


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _python(value: Any) -> str:
    """Write a Python value so that its type is seen, and no control character is."""
    if isinstance(value, datetime | date | time | timedelta | Decimal | UUID):
        return f"{type(value).__name__} {value}"
    try:
        return repr(value)
    except ValueError:  # an int of more digits than `sys.set_int_max_str_digits` allows
        return type(value).__name__


def _jsonable(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(k): _jsonable(v) for k, v in value.items()}
        case list() | tuple():
            return [_jsonable(v) for v in value]
        case bytes():
            return f"0x{value.hex()}"
        case int() if value.bit_length() > _MAX_BITS:
            return f"an integer of {value.bit_length():,} bits"
    is_plain = isinstance(value, bool | int | str | None) or (isinstance(value, float) and isfinite(value))
    return value if is_plain else str(value)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()


def render(told: Explanation) -> str:
    """Write an explanation for a terminal: what becomes of the message first, then all that led there."""
    lines = [f"{told.place}: {told.outcome}: {told.reason}", ""]
    lines += _aligned([row for row in _facts(told) if row[1]], indent=2)
    for title, rows in _tables(told):
        lines += ["", title, *_aligned(rows, indent=2)]
    return "\n".join(_printable(line.rstrip()) for line in lines)


def _facts(told: Explanation) -> list[tuple[str, str]]:
    source = {name: value for name, value in (told.source or {}).items() if value is not None}
    facts = [
        ("form", f"{told.form} ({told.size_bytes:,} bytes)" if told.form else f"{told.size_bytes:,} bytes"),
        ("message id", told.message_id),
        ("published", told.publish_time or ""),
        ("ordering key", _cut(told.ordering_key, 200)),
        ("topic", str(told.attributes.get("destination", ""))),
        ("table", told.table or ""),
        ("operation", told.operation or ""),
        *((name.replace("_", " "), str(value)) for name, value in source.items()),
        ("lane", f"{_lane(told.lane)} ({told.lane_from})" if told.lane_from else ""),
    ]
    if told.changed_columns is not None:
        facts.append(("changed", ", ".join(told.changed_columns) or "nothing"))
    if told.changed_unknown is not None:
        facts.append(("changed", told.changed_unknown))
    if told.first_bytes is not None:
        facts += [("hex", told.first_bytes["hex"]), ("text", told.first_bytes["text"])]
    return facts


def _tables(told: Explanation) -> list[tuple[str, list[tuple[str, ...]]]]:
    tables: list[tuple[str, list[tuple[str, ...]]]] = []
    if told.handlers:
        answers: list[tuple[str, ...]] = [
            (a.handler, "yes" if a.takes_it else "no", a.place, "; ".join(a.because)) for a in told.handlers
        ]
        tables.append((f"Handlers of {told.table}: do they take it?", answers))
    for image in told.images:
        reader = "no Row reads it" if image.model == "nobody" else f"as {image.model} reads it"
        rows: list[tuple[str, ...]] = [
            ("column", "on the wire", "in Python"),
            *(_cell_row(cell) for cell in image.cells),
        ]
        if image.unnamed_columns:
            rows.append(("not named", ", ".join(image.unnamed_columns), ""))
        unsent = next((cell.problem for cell in image.cells if not cell.is_sent), None)
        tables.append((f"Row {image.name}, {reader}", rows))
        if unsent is not None:
            tables.append((f"Not sent: {unsent}", []))
    return tables


def _cell_row(cell: Cell) -> tuple[str, str, str]:
    if not cell.is_sent:
        return cell.column, _short(cell.wire), "not sent"
    value = _cut(cell.value) if cell.value is not None else ""
    return cell.column, _short(cell.wire), f"unreadable: {cell.problem}" if cell.problem else value


def _short(value: Any) -> str:
    return _cut(value if isinstance(value, _Note) else _to_json(value))


def _lane(lane: Any) -> str:
    return _cut(lane if isinstance(lane, str) else _to_json(lane), 200)


def _cut(text: str, size: int = 60) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def _aligned(rows: Sequence[Sequence[str]], *, indent: int) -> list[str]:
    """Put columns under each other; the last is as wide as it is."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)] if rows else []
    margin = " " * indent
    return [margin + "  ".join([*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _printable(line: str) -> str:
    """Keep a capture's control characters from the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)


# ── which handlers there are ────────────────────────────────────────────────────────────────────────────────────────


def list_handlers(targets: Sequence[str], *, as_json: bool) -> int:
    """Show the handlers, and the modules that fail to import; return the exit status.

    Raises:
        UsageError: a target is nothing that can be imported.
    """
    found = discover([] if list(targets) == ["none"] else targets)
    contradiction = _contradiction(found)
    problems = [str(failure) for failure in found.failures] + ([contradiction] if contradiction else [])
    if as_json:
        failures = [asdict(failure) for failure in found.failures]
        described = [describe(handler) for handler in found.handlers]
        told = {"handlers": described, "failures": failures, "contradiction": contradiction, "empty": found.empty}
        typer.echo(_to_json(told))
    else:
        typer.echo(_render_handlers(found))
        for target in found.empty:
            typer.echo(f"note: there is no handler in {target}", err=True)
        for problem in problems:
            typer.echo(f"problem: {problem}", err=True)
    return 2 if problems else 0


def _contradiction(found: Discovery) -> str | None:
    try:
        by_table(found.handlers)
    except ReactorError as error:
        return str(error)
    return None


def describe(handler: Handler[Any]) -> dict[str, Any]:
    """Name everything that a handler's declaration says."""
    return {
        "table": str(handler.table_id),
        "handler": handler.name,
        "row": handler.row.__name__,
        "key": list(handler.row.key_columns),
        "identity": handler.row.replica_identity,
        "ops": [op.name.lower() for op in Operation if op in handler.operations],
        "when_changed": [column_of(handler.row, name) for name in handler.when_changed],
        "snapshot": handler.snapshot,
        "max_size": handler.max_size,
        "max_wait": handler.max_wait,
        "max_attempts": handler.max_attempts,
        "timeout": handler.timeout,
        "on_poison": handler.on_poison,
        "is_async": handler.is_async,
        "owner": handler.owner,
        "place": _relative(handler.place),
    }


def _render_handlers(found: Discovery) -> str:
    if not found.handlers:
        return "no handlers"
    rows = [("TABLE", "HANDLER", "OPTIONS", "OWNER", "PLACE")]
    for handler in found.handlers:
        options = " ".join(_options(handler))
        rows.append((str(handler.table_id), handler.name, options, handler.owner or "-", _relative(handler.place)))
    return "\n".join(_printable(line) for line in _aligned(rows, indent=0))


_USUAL = {
    "ops": ["create", "update", "delete", "truncate"],
    "when_changed": [],
    "snapshot": False,
    "max_attempts": 5,
    "timeout": None,
    "on_poison": "skip",
    "is_async": False,
}


def _options(handler: Handler[Any]) -> list[str]:
    """Write the size of batches, and every option that is not as usual."""
    said = describe(handler)
    options = [f"max_size={handler.max_size}", f"max_wait={handler.max_wait:g}"]
    for name, usual in _USUAL.items():
        value = said[name]
        if value != usual:
            options.append(f"{name}={','.join(value) if isinstance(value, list) else value}")
    return options


def _relative(place: str) -> str:
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else place
