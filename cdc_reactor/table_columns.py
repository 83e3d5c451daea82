"""The columns of a table, read from captured messages or from PostgreSQL itself, as `scaffold` wants them.

A schema (Connect's JSON schema, Avro's, PostgreSQL's catalogue) says what a column is; without one its type is
inferred from the values seen, and what was guessed says so. Annotations are chosen so that they read rows with and
without schema alike, wherever `wire_types` has one that does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

from cdc_reactor import scalars, temporals
from cdc_reactor.avro import AvroReader, schema_key
from cdc_reactor.captures import Capture, Unreadable, find_captures
from cdc_reactor.changes import _is_nothing
from cdc_reactor.columns import Placeholder, _collect
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope, Operation, TableId, parse_json, read_image
from cdc_reactor.errors import DecodeError, UsageError, WorldError
from cdc_reactor.messages import Message
from cdc_reactor.scaffold import Column, Table
from cdc_reactor.schemas import SchemaStore, open_schemas, registry_beside
from cdc_reactor.temporals import Infinity, IsoText

if TYPE_CHECKING:
    import psycopg

_Schema: TypeAlias = Mapping[str, Any]

MAX_MESSAGES = 5_000
"""After so many messages of the table, more of them would hardly teach anything new."""


@dataclass(frozen=True, slots=True)
class _Type:
    annotation: str
    comment: str = ""


def choose_table(wanted: str, found: Iterable[TableId], where: str) -> TableId:
    """Find a table by `schema.table`, or by its bare name where only one schema has it.

    Raises:
        UsageError: there is none, or there are several; the message names those found.
    """
    tables = sorted(found)
    exact = [table for table in tables if str(table) == wanted]
    matches = exact or [table for table in tables if table.table == wanted]
    if len(matches) == 1:
        return matches[0]
    if len(matches) > 1:
        raise UsageError(
            f"{wanted}: there are several such tables in {where}: {_listed(matches)}; name the schema, too"
        )
    if not tables:
        raise UsageError(f"{wanted}: there is no table at all in {where}")
    near = get_close_matches(wanted, [*map(str, tables), *(table.table for table in tables)], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"{wanted}: there is no such table in {where}; {hint}found: {_listed(tables)}")


def _listed(tables: Sequence[TableId]) -> str:
    shown = ", ".join(map(str, tables[:50]))
    return f"{shown} and {len(tables) - 50:,} more" if len(tables) > 50 else shown


# ── from captured messages ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureOptions:
    """How captures are to be read; as the options of the commands have it."""

    schemas: str | None = None
    form: str | None = None
    placeholder: str = "__debezium_unavailable_value"
    unwrapped_prefix: str = "__"


def read_captured_table(path: str, wanted: str, options: CaptureOptions | None = None) -> Table:
    """Read a table's columns off its messages in a capture, a folder of captures or a glob; at most MAX_MESSAGES.

    Raises:
        UsageError: the path or an option is wrong, or no message is of this table.
        CaptureError: a file breaks off, and no message of this table came before.
        WorldError: a schema registry that is needed does not answer.
    """
    options = options or CaptureOptions()
    captures = find_captures([path])
    reader = _CaptureReader(
        open_schemas(options.schemas or registry_beside(capture.name for capture in captures)),
        Placeholder(options.placeholder),
        options.unwrapped_prefix,
    )
    for capture in captures:
        reader.read(capture, wanted, options.form)
        if reader.is_enough(wanted):
            break
    try:
        table_id = choose_table(wanted, reader.seen, path)
    except UsageError as error:
        raise UsageError(f"{error}{reader.complaint()}") from None
    return reader.seen[table_id].to_table(table_id)


class _CaptureReader:
    """Reads captures, keeping what it sees of every table that may be the one wanted."""

    def __init__(self, schemas: SchemaStore, placeholder: Placeholder, prefix: str) -> None:
        self.seen: dict[TableId, _Seen] = {}
        self._schemas = schemas
        self._placeholder = placeholder
        self._prefix = prefix
        self._decoder = Decoder(schemas=schemas, placeholder=placeholder, unwrapped_prefix=prefix)
        self._undecodable: Counter[str] = Counter()

    def read(self, capture: Capture, wanted: str, form: str | None) -> None:
        for element in capture.messages(form, schemas=self._schemas):
            if isinstance(element, Unreadable):
                self._undecodable[str(element.error)] += 1
                continue
            try:
                self._read_message(element, wanted)
            except DecodeError as error:
                self._undecodable[str(error)] += 1
            if self.is_enough(wanted):
                return

    def is_enough(self, wanted: str) -> bool:
        """Tell whether the table that is meant beyond doubt was seen often enough."""
        return any(seen.messages >= MAX_MESSAGES for table, seen in self.seen.items() if str(table) == wanted)

    def complaint(self) -> str:
        if not self._undecodable:
            return ""
        error, _ = self._undecodable.most_common(1)[0]
        return f" ({self._undecodable.total():,} messages cannot be decoded, most of them: {error})"

    def _read_message(self, message: Message, wanted: str) -> None:
        envelope = self._decoder.decode(message)
        if not isinstance(envelope, Envelope) or envelope.op is Operation.MESSAGE:
            return
        table_id = envelope.source.table_id
        seen = self.seen.get(table_id)
        if seen is None:
            seen = self.seen[table_id] = _Seen(self._placeholder)
        if wanted not in (str(table_id), table_id.table) or seen.messages >= MAX_MESSAGES:
            return
        seen.messages += 1
        seen.learn_schema(envelope, lambda: _row_schema(message, self._schemas, self._prefix))
        seen.learn_key(lambda: _key_of(message, self._schemas, self._placeholder))
        seen.learn_rows(envelope)


@dataclass(slots=True)
class _Evidence:
    """What the values of one column were like."""

    nulls: int = 0
    kinds: set[str] | None = None
    lowest: int = 0
    highest: int = 0
    elements: _Evidence | None = None
    admits: set[str] = field(default_factory=set)

    def learn(self, value: Any, converter: scalars.Converter | None = None, *, has_schema: bool = False) -> None:
        if value is None:
            self.nulls += 1
            return
        if converter is not None:
            self._admit(_converted(converter, value))
        if has_schema:
            return
        kinds = _kinds(value)
        if type(value) is int:
            self.lowest = min(value, self.lowest) if self.kinds is not None else value
            self.highest = max(value, self.highest) if self.kinds is not None else value
        if isinstance(value, str) and "datetime" in kinds:
            self._admit(_converted(temporals.zoned_timestamp, value))
        if isinstance(value, list):
            self.elements = self.elements or _Evidence()
            for element in value:
                self.elements.learn(element)
        self.kinds = kinds if self.kinds is None else _common(self.kinds, kinds)

    def _admit(self, value: Any) -> None:
        for element in value if isinstance(value, list) else (value,):
            if isinstance(element, Infinity | IsoText):
                self.admits.add(type(element).__name__)


def _converted(converter: scalars.Converter, value: Any) -> Any:
    try:
        return converter(value)
    except DecodeError:
        return None


def _common(some: set[str], others: set[str]) -> set[str]:
    numbers = {"int", "float"}
    return {"float"} if some | others == numbers else some & others


class _Seen:
    """What was seen of one table."""

    def __init__(self, placeholder: Placeholder) -> None:
        self.messages = 0
        self.rows = 0
        self._placeholder = placeholder
        self._evidence: dict[str, _Evidence] = {}
        self._schema: list[_Schema] = []
        self._learned_from: Any = None
        self._key: tuple[str, ...] | None = None
        self._deleted: list[dict[str, Any]] = []
        self._updates: Counter[str] = Counter()

    def learn_schema(self, envelope: Envelope, read: Any) -> None:
        """Keep the newest schema; messages of one schema share its compiled form."""
        if envelope.schema is not None and envelope.schema is not self._learned_from:
            self._schema, self._learned_from = list(read()), envelope.schema

    def learn_key(self, read: Any) -> None:
        if self._key is None:
            self._key = read()

    def learn_rows(self, envelope: Envelope) -> None:
        before, after = read_image(envelope.before), read_image(envelope.after)
        if envelope.op is Operation.UPDATE and after is not None:
            self._updates["without" if before is None else _judge_image(before, after, len(self._key or ("id",)))] += 1
        if after is not None:
            self._learn(after, envelope)
        elif before is not None and not self.rows and len(self._deleted) < 100:
            self._deleted.append(before)

    def _learn(self, row: Mapping[str, Any], envelope: Envelope) -> None:
        self.rows += 1
        converters = envelope.schema.converters if envelope.schema is not None else {}
        for column, value in row.items():
            evidence = self._evidence.setdefault(column, _Evidence())
            if not self._placeholder.matches(value):
                evidence.learn(value, converters.get(column), has_schema=bool(self._schema))

    def to_table(self, table_id: TableId) -> Table:
        notes: list[str] = []
        if self._schema:
            columns = tuple(self._from_schema(f) for f in self._schema)
        else:
            columns, notes = self._inferred()
        key, key_notes = self._chosen_key({column.name for column in columns})
        notes.extend(key_notes)
        return Table(table_id, columns, key=key, identity=self._identity(), notes=tuple(notes))

    def _from_schema(self, connect: _Schema) -> Column:
        name = str(connect["field"])
        found = connect_type(connect)
        evidence = self._evidence.get(name, _Evidence())
        is_nullable = bool(connect.get("optional")) or evidence.nulls > 0
        return Column(name, _admitting(found.annotation, evidence.admits), is_nullable, found.comment)

    def _inferred(self) -> tuple[tuple[Column, ...], list[str]]:
        notes = [
            f"Inferred from {self.rows:,} rows without schema: check what is called a guess, and what may be null."
        ]
        if not self.rows:
            notes = ["No row was seen but deleted ones, which may hold their key only: check every line."]
            for row in self._deleted:
                for column, value in row.items():
                    self._evidence.setdefault(column, _Evidence()).learn(value)
        columns = []
        for name, evidence in self._evidence.items():
            found = infer_type(name, evidence)
            is_nullable = evidence.nulls > 0 or not self.rows
            columns.append(Column(name, _admitting(found.annotation, evidence.admits), is_nullable, found.comment))
        return tuple(columns), notes

    def _chosen_key(self, columns: set[str]) -> tuple[tuple[str, ...], list[str]]:
        if self._key is not None and self._key and columns.issuperset(self._key):
            return self._key, []
        if "id" in columns:
            return ("id",), []
        return (), ["No key was seen, so all rows are one lane, in order: name the key's columns as key=(…) above."]

    def _identity(self) -> str | None:
        if self._updates["without"]:
            return "default"
        return "full" if self._updates["whole"] and not self._updates["part"] else None


def _judge_image(before: Mapping[str, Any], after: Mapping[str, Any], key_size: int) -> str:
    """Tell a whole row (REPLICA IDENTITY FULL) from one that holds a key only, its other columns null or zero."""
    if any(_is_nothing(before.get(column)) and not _is_nothing(value) for column, value in after.items()):
        return "part"
    unchanged = sum(before.get(column) == value and not _is_nothing(value) for column, value in after.items())
    return "whole" if unchanged > key_size else "unsure"


def _admitting(annotation: str, admits: Iterable[str]) -> str:
    if annotation.startswith("list["):
        inner = annotation.removeprefix("list[").removesuffix("]")
        element = inner.removesuffix(" | None")
        return f"list[{' | '.join([element, *sorted(admits)])}{' | None' if inner != element else ''}]"
    return " | ".join([annotation, *sorted(admits)])


# ── keys and schemas of a message ───────────────────────────────────────────────────────────────────────────────────


def _key_of(message: Message, schemas: SchemaStore, placeholder: Placeholder) -> tuple[str, ...] | None:
    """Read the names of the key's columns off the ordering key; None where it does not say."""
    text = message.ordering_key
    if not text:
        return None
    try:
        key = parse_json(text.encode()) if text[:1] == "{" else _avro_key(text, schemas, placeholder)
    except (DecodeError, WorldError):
        return None
    if isinstance(key, dict) and key.keys() == {"schema", "payload"}:
        key = key["payload"]
    # ByLogicalTableRouter adds a field of its own to keys (key.field.name, `__dbz__physicalTableIdentifier`).
    return tuple(name for name in key if not name.startswith("__dbz__")) if isinstance(key, dict) else None


def _avro_key(text: str, schemas: SchemaStore, placeholder: Placeholder) -> Any:
    return AvroReader(schemas, placeholder).read(Message(scalars.octets(text))).value


def _row_schema(message: Message, schemas: SchemaStore, prefix: str) -> Iterator[_Schema]:
    """Find the columns' schemas, as Connect writes them, without what the unwrap transform added."""
    key = schema_key(message)
    if key is not None:
        record = schemas.schema(key) if isinstance(key, int) else schemas.named(*key)
        block = _AvroAsConnect(record).connect(record)
    else:
        value = parse_json(message.data)
        data = value.get("data")
        # CloudEvents carry the schema block within their data, or Avro in base64.
        if isinstance(data, str) and "schema" not in value:
            yield from _row_schema(Message(scalars.octets(data)), schemas, prefix)
            return
        found = value["schema"] if "schema" in value else (data or {}).get("schema")
        block = found if isinstance(found, dict) else {}
    for connect in _row_fields(block):
        if not str(connect["field"]).startswith(prefix):
            yield connect


def _row_fields(block: _Schema) -> Sequence[_Schema]:
    fields: Sequence[_Schema] = block.get("fields") or ()
    rows = (
        f for f in fields if f.get("field") in {"after", "before"} and f.get("type") == "struct" and f.get("fields")
    )
    row = next(rows, None)
    return fields if row is None else row["fields"]


class _AvroAsConnect:
    """Says in the words of Connect's schemas what an Avro schema says, so that one mapping serves both."""

    def __init__(self, record: _Schema) -> None:
        self._types: dict[str, Any] = {}
        _collect(record, "", self._types, 0)

    def connect(self, schema: Any, depth: int = 0) -> dict[str, Any]:
        if depth > 32:
            return {"type": "unknown"}
        match schema:
            case list():
                branches = [branch for branch in schema if branch != "null"]
                inner = self.connect(branches[0], depth + 1) if len(branches) == 1 else {"type": "unknown"}
                return inner | {"optional": "null" in schema}
            case str():
                named = self._types.get(schema)
                return {"type": _AVRO_TYPES.get(schema, schema)} if named is None else self.connect(named, depth + 1)
            case Mapping():
                return self._described(schema, depth + 1)
        return {"type": "unknown"}

    def _described(self, schema: _Schema, depth: int) -> dict[str, Any]:
        names: dict[str, Any] = {}
        if "connect.name" in schema or "logicalType" in schema:
            names = {
                "name": schema.get("connect.name") or f"avro.{schema.get('logicalType')}",
                "parameters": schema.get("connect.parameters") or schema,
            }
        match schema.get("type"):
            case "record":
                fields = [self.connect(f.get("type"), depth) | {"field": f["name"]} for f in schema.get("fields", ())]
                return {"type": "struct", "fields": fields} | names
            case "array":
                return {"type": "array", "items": self.connect(schema.get("items"), depth)} | names
            case "map":
                values = self.connect(schema.get("values"), depth)
                return {"type": "map", "keys": {"type": "string"}, "values": values} | names
            case "enum":
                allowed = {"parameters": {"allowed": ",".join(schema.get("symbols", ()))}}
                return {"type": "string", "name": "io.debezium.data.Enum"} | allowed
            case inner:
                return self.connect(inner, depth) | names


_AVRO_TYPES = {"int": "int32", "long": "int64", "null": "unknown", "fixed": "bytes"}


# ── what a schema says ──────────────────────────────────────────────────────────────────────────────────────────────

_JSON = _Type("Json[Any]")
_BITS = _Type("int | Base64Bytes", "an int where the schema comes along, else little-endian bytes")

# By the schema's `name`; wire types read the plain wire value and the converted one alike.
_BY_NAME: Mapping[str, _Type] = {
    "io.debezium.time.Date": _Type("EpochDays"),
    "io.debezium.time.Time": _Type("MilliTime"),
    "io.debezium.time.MicroTime": _Type("MicroTime"),
    "io.debezium.time.NanoTime": _Type("NanoTime"),
    "io.debezium.time.Timestamp": _Type("MilliTimestamp"),
    "io.debezium.time.MicroTimestamp": _Type("MicroTimestamp"),
    "io.debezium.time.NanoTimestamp": _Type("NanoTimestamp"),
    "io.debezium.time.ZonedTimestamp": _Type("datetime"),
    "io.debezium.time.ZonedTime": _Type("time"),
    "io.debezium.time.IsoDate": _Type("IsoDate"),
    "io.debezium.time.IsoTime": _Type("IsoTime"),
    "io.debezium.time.IsoTimestamp": _Type("IsoTimestamp"),
    "io.debezium.time.Interval": _Type("Interval"),
    "io.debezium.time.MicroDuration": _Type("MicroDuration"),
    "io.debezium.time.NanoDuration": _Type("timedelta", "nanoseconds: can be read only where the schema comes along"),
    "org.apache.kafka.connect.data.Date": _Type("EpochDays"),
    "org.apache.kafka.connect.data.Time": _Type("MilliTime"),
    "org.apache.kafka.connect.data.Timestamp": _Type("MilliTimestamp"),
    "io.debezium.data.VariableScaleDecimal": _Type("VariableDecimal"),
    "io.debezium.data.Bits": _BITS,
    "io.debezium.data.Uuid": _Type("UUID"),
    "io.debezium.data.Json": _JSON,
    "io.debezium.data.EnumSet": _Type(
        "frozenset[str] | str", "names; one text with commas where no schema comes along"
    ),
    "io.debezium.data.geometry.Geometry": _Type("Geometry"),
    "io.debezium.data.geometry.Geography": _Type("Geometry"),
    "io.debezium.data.geometry.Point": _Type("Point"),
    # Avro's own logical types; Avro always has its schema.
    "avro.date": _Type("EpochDays"),
    "avro.time-millis": _Type("MilliTime"),
    "avro.time-micros": _Type("MicroTime"),
    "avro.uuid": _Type("UUID"),
    **{f"avro.timestamp-{unit}": _Type("datetime") for unit in ("millis", "micros", "nanos")},
    "avro.local-timestamp-millis": _Type("MilliTimestamp"),
    "avro.local-timestamp-micros": _Type("MicroTimestamp"),
    "avro.local-timestamp-nanos": _Type("NanoTimestamp"),
}
_BY_TYPE: Mapping[str, str] = {
    **dict.fromkeys(("int8", "int16", "int32", "int64"), "int"),
    **dict.fromkeys(("float", "double", "float32", "float64"), "float"),
    "boolean": "bool",
    "string": "str",
    "bytes": "Base64Bytes",
    "struct": "dict[str, Any]",
}


def connect_type(schema: _Schema) -> _Type:
    """Choose the annotation for a column's schema, as Connect writes it."""
    name, parameters = schema.get("name"), schema.get("parameters") or {}
    if name in ("org.apache.kafka.connect.data.Decimal", "avro.decimal"):
        return _Type(f"Annotated[Decimal, DecimalBytes({int(parameters.get('scale', 0))})]")
    if isinstance(name, str) and name in _BY_NAME:
        return _BY_NAME[name]
    if name == "io.debezium.data.Enum" and parameters.get("allowed"):
        return _enum(str(parameters["allowed"]).split(","))
    return _structured(schema)


def _structured(schema: _Schema) -> _Type:
    match schema.get("type"):
        case "array":
            element = connect_type(schema.get("items") or {})
            is_optional = (schema.get("items") or {}).get("optional", True)
            return _Type(_list_of(element.annotation, is_optional=is_optional), element.comment)
        case "map":
            values = connect_type(schema.get("values") or {}).annotation
            return _Type("dict[str, str | None]" if values == "str" else "dict[str, Any]")
        case str() as kind if kind in _BY_TYPE:
            return _Type(_BY_TYPE[kind])
    return _Type("Any", f"of a type that we do not know: {schema.get('type')}")


def _enum(labels: Sequence[str]) -> _Type:
    # Not a Literal: a label that is added later would make every row with it unreadable.
    return _Type("str", f"one of {', '.join(labels)}")


def _list_of(annotation: str, *, is_optional: bool) -> str:
    return f"list[{annotation} | None]" if is_optional and annotation != "Any" else f"list[{annotation}]"


# ── what values look like ───────────────────────────────────────────────────────────────────────────────────────────

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_PADDED_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)")
_TIME_WORDS = re.compile(
    r"(^|_)(at|on|ts|time|timestamp|date|day|dob|since|until|born|birth\w*)$|(ed|date|time|day)$", re.IGNORECASE
)
_ID_WORDS = re.compile(r"(^|_)id$|Id$|ID$")

_YEARS_2001_TO_2100 = range(978_307_200, 4_133_980_800)
_DAYS_1990_TO_2070 = range(7_305, 36_525)


def _kinds(value: Any) -> set[str]:
    """Say everything that one value may be."""
    match value:
        case str():
            return _kinds_of_text(value)
        case dict():
            return {_kind_of_struct(value)}
        case Decimal():
            return {"float"}
    return {type(value).__name__}


def _kinds_of_text(text: str) -> set[str]:
    kinds = {"str"}
    if len(text) > 64:
        return kinds | ({"json"} if _is_json(text) else set())
    if _UUID.fullmatch(text):
        kinds.add("uuid")
    if _DECIMAL.fullmatch(text):
        kinds.add("decimal")
    if _PADDED_BASE64.fullmatch(text):
        kinds.add("base64")
    if _is_json(text):
        kinds.add("json")
    for kind, convert in _TEMPORAL_TEXTS:
        if _converted(convert, text) is not None:
            kinds.add(kind)
    return kinds


_TEMPORAL_TEXTS = (
    ("datetime", temporals.zoned_timestamp),
    ("IsoDate", temporals.iso_date),
    ("time", temporals.zoned_time),
    ("Interval", temporals.interval),
)


def _is_json(text: str) -> bool:
    if text[:1] not in ("{", "["):
        return False
    try:
        return isinstance(parse_json(text.encode()), dict | list)
    except (DecodeError, UnicodeError):
        return False


def _kind_of_struct(value: dict[str, Any]) -> str:
    if value.keys() == {"scale", "value"}:
        return "VariableDecimal"
    if {"x", "y", "wkb"} <= value.keys():
        return "Point"
    return "Geometry" if value.keys() == {"wkb", "srid"} else "dict"


def infer_type(name: str, evidence: _Evidence) -> _Type:
    """Choose the annotation for a column by the values that it had; what may be wrong says that it is a guess."""
    kinds = evidence.kinds
    if kinds is None:
        return _Type("Any", "a guess: only nulls were seen")
    if kinds == {"int"}:
        return _integer(name, evidence)
    if kinds == {"list"}:
        if evidence.elements is None or evidence.elements.kinds is None:
            return _Type("list[Any]", "a guess: only empty arrays were seen")
        element = infer_type(name, evidence.elements)
        return _Type(_list_of(element.annotation, is_optional=True), element.comment)
    for kind, found in _BY_KIND:
        if kind in kinds:
            return found
    return _Type("Any", "a guess: values of several types were seen")


_BY_KIND: Sequence[tuple[str, _Type]] = (
    ("bool", _Type("bool")),
    ("float", _Type("float")),
    ("bytes", _Type("Base64Bytes")),
    ("VariableDecimal", _Type("VariableDecimal")),
    ("Point", _Type("Point")),
    ("Geometry", _Type("Geometry")),
    ("dict", _Type("dict[str, Any]")),
    ("uuid", _Type("UUID", "a guess: every value looked like one")),
    ("datetime", _Type("datetime", "a guess; IsoTimestamp where the column has no time zone")),
    ("IsoDate", _Type("IsoDate", "a guess: every value looked like a date")),
    ("time", _Type("time", "a guess: every value looked like a time of day")),
    ("Interval", _Type("Interval", "a guess: every value looked like an ISO interval")),
    ("json", _Type("Json[Any]", "a guess: every value was JSON text")),
    ("decimal", _Type("DecimalString", "a guess: digits as decimal.handling.mode=string writes them")),
    (
        "base64",
        _Type("str", "maybe base64: Annotated[Decimal, DecimalBytes(SCALE)] for a numeric, Base64Bytes for bytea"),
    ),
    ("str", _Type("str")),
)


def _integer(name: str, evidence: _Evidence) -> _Type:
    """Guess at instants and dates: 1700000000000000 is hardly a count, 20148 only in a column of a fitting name."""
    if _ID_WORDS.search(name):
        return _Type("int")
    sounds_like_time = _TIME_WORDS.search(name) is not None
    for annotation, unit, needs_name in (
        ("MilliTimestamp", 10**3, False),
        ("MicroTimestamp", 10**6, False),
        ("NanoTimestamp", 10**9, True),
    ):
        is_in_range = all(v // unit in _YEARS_2001_TO_2100 for v in (evidence.lowest, evidence.highest))
        if is_in_range and (sounds_like_time or not needs_name):
            return _Type(annotation, "a guess: int where it is no time")
    if sounds_like_time and evidence.lowest in _DAYS_1990_TO_2070 and evidence.highest in _DAYS_1990_TO_2070:
        return _Type("EpochDays", "a guess: int where it is no date")
    return _Type("int")


# ── from PostgreSQL ─────────────────────────────────────────────────────────────────────────────────────────────────

_DEFAULTS = (
    "Debezium's defaults are assumed: decimal.handling.mode=precise, time.precision.mode=adaptive, "
    "interval.handling.mode=numeric, binary.handling.mode=bytes."
)

_TABLES = """
SELECT n.nspname, c.relname, c.oid, c.relreplident
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_COLUMNS = """
SELECT a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated <> '',
       pg_catalog.format_type(a.atttypid, a.atttypmod)
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
_TYPES = """
SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull,
       CASE WHEN t.typcategory = 'A' AND t.typlen = -1 THEN t.typelem ELSE 0 END,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
        WHERE e.enumtypid = t.oid)
FROM pg_catalog.pg_type t
"""
# The primary key, else what Debezium takes then: a unique index that is whole, REPLICA IDENTITY's before others.
_KEY = """
SELECT ARRAY(
    SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, position)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.position
)
FROM pg_catalog.pg_index i
WHERE i.indrelid = %s AND i.indisvalid AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indexrelid
LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class _PostgresType:
    name: str
    kind: str
    base: int
    base_typmod: int
    is_not_null: bool
    element: int
    labels: list[str] | None


def read_postgres_table(url: str, wanted: str) -> Table:
    """Read a table's columns, key and replica identity from PostgreSQL's catalogue; nothing is changed there.

    Raises:
        UsageError: there is no such table, or the address makes no sense.
        WorldError: the server does not answer.
    """
    import psycopg  # noqa: PLC0415 - only for this source

    address = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    try:
        with psycopg.connect(address, connect_timeout=10, options="-c default_transaction_read_only=on") as connection:
            return _read_table(connection, wanted)
    except psycopg.ProgrammingError as error:
        raise UsageError(f"PostgreSQL: {_first_line(error)}") from None
    except psycopg.Error as error:
        raise WorldError(f"PostgreSQL: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _read_table(connection: psycopg.Connection[Any], wanted: str) -> Table:
    rows = connection.execute(_TABLES).fetchall()
    tables = {TableId(schema, name): (oid, identity) for schema, name, oid, identity in rows}
    # As in SQL, a bare name means the table in `public`.
    table_id = TableId("public", wanted)
    if table_id not in tables or "." in wanted:
        table_id = choose_table(wanted, tables, f"the database {connection.info.dbname}")
    oid, identity = tables[table_id]
    types = {row[0]: _PostgresType(*row[1:]) for row in connection.execute(_TYPES)}
    columns, notes = [], [_DEFAULTS]
    for name, type_oid, typmod, is_not_null, is_generated, shown in connection.execute(_COLUMNS, (oid,)).fetchall():
        found = None if is_generated else postgres_type(type_oid, typmod, types)
        if found is None:
            why = (
                ": generated columns are not in the WAL" if is_generated else ", unless include.unknown.datatypes=true"
            )
            notes.append(f"Debezium does not send {name} ({shown}){why}.")
            continue
        is_nullable = not (is_not_null or types[type_oid].is_not_null)
        columns.append(Column(name, found.annotation, is_nullable, found.comment))
    names = {column.name for column in columns}
    key_row = connection.execute(_KEY, (oid,)).fetchone()
    key = tuple(key_row[0]) if key_row and names.issuperset(key_row[0]) else ()
    if not key:
        notes.append("The table has no key, so all its rows are one lane, in order.")
    return Table(
        table_id, tuple(columns), key=key, identity="full" if identity == "f" else "default", notes=tuple(notes)
    )


# PostgresValueConverter.schemaBuilder; what is missing here, Debezium leaves out.
_POSTGRES: Mapping[str, _Type] = {
    "bool": _Type("bool"),
    **dict.fromkeys(("int2", "int4", "int8", "oid"), _Type("int")),
    **dict.fromkeys(("float4", "float8"), _Type("float")),
    **dict.fromkeys(
        (
            "text", "varchar", "bpchar", "char", "name", "citext", "inet", "cidr", "macaddr", "macaddr8", "int4range",
            "int8range", "numrange", "tsrange", "tstzrange", "daterange", "tsvector", "xml", "ltree", "isbn",
        ),
        _Type("str"),
    ),
    "uuid": _Type("UUID"),
    **dict.fromkeys(("json", "jsonb"), _JSON),
    "hstore": _Type("Json[Any]", "hstore.handling.mode=json"),
    "bytea": _Type("Base64Bytes"),
    "date": _Type("EpochDays"),
    "timestamptz": _Type("datetime"),
    "timetz": _Type("time"),
    "interval": _Type("MicroDuration"),
    "money": _Type("Annotated[Decimal, DecimalBytes(2)]", "money.fraction.digits=2"),
    "point": _Type("Point"),
    **dict.fromkeys(("geometry", "geography"), _Type("Geometry")),
    **dict.fromkeys(("vector", "halfvec"), _Type("list[float]")),
    "sparsevec": _Type("dict[str, Any]"),
}  # fmt: skip
_NO_ARRAYS = frozenset(("money", "name", "interval", "varbit", "xml", "point"))


def postgres_type(oid: int, typmod: int, types: Mapping[int, _PostgresType]) -> _Type | None:
    """Choose the annotation for what Debezium makes of a PostgreSQL type; None where it sends nothing."""
    kind = types[oid]
    if kind.kind == "d":
        return postgres_type(kind.base, kind.base_typmod if typmod == -1 else typmod, types)
    if kind.element:
        element = types[kind.element]
        # The JDBC driver does not see through domains in arrays (PostgresValueConverter.columnSchemaBuilder).
        inner = (
            None if element.kind == "d" or element.name in _NO_ARRAYS else postgres_type(kind.element, typmod, types)
        )
        return inner and replace(inner, annotation=_list_of(inner.annotation, is_optional=True))
    if kind.kind == "e":
        return _enum(kind.labels or [])
    return _with_modifier(kind.name, typmod) or _POSTGRES.get(kind.name)


def _with_modifier(name: str, typmod: int) -> _Type | None:
    """Choose by the type's modifier, which is kept as each type pleases (numerictypmodin, timestamptypmodin, …)."""
    match name:
        case "numeric":
            # 11 bits; of a negative scale the JDBC driver does not extend the sign, and DecimalBytes knows that.
            scale = (typmod - 4) & 0x7FF
            return _Type("VariableDecimal" if typmod == -1 else f"Annotated[Decimal, DecimalBytes({scale})]")
        case "timestamp":
            return _Type("MilliTimestamp" if 0 <= typmod <= 3 else "MicroTimestamp")
        case "time":
            return _Type("MilliTime" if 0 <= typmod <= 3 else "MicroTime")
        case "bit" | "varbit":
            return _Type("bool") if name == "bit" and typmod in (-1, 1) else _BITS
    return None
