"""The Envelope: what a message says happened, with its rows still unread, and how a row image is read.

Values only; `decoder` makes them from bytes, `forms` and `avro` from the rarer forms. Rows stay raw JSON until somebody
asks for their columns, because most messages are dropped, filtered or counted without anybody looking inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, cast

import msgspec
from msgspec import Raw

from cdc_reactor.columns import Converter, Placeholder, avro_converters, connect_converters
from cdc_reactor.errors import DecodeError

# A row image as it stands in an envelope: JSON not yet read, columns already read (Avro, flattened rows), or none.
# msgspec reads the annotation when it compiles the decoder and must see Raw alone.
if TYPE_CHECKING:
    RowImage: TypeAlias = Raw | dict[str, Any] | None
else:
    RowImage = Raw

NULL = Raw(b"null")

# PostgreSQL's numeric has at most 131,072 digits before the point and 16,383 after it; nothing that it sends is longer.
_MAX_DIGITS = 131_072 + 16_383

# What msgspec raises for bytes that are wrong: malformed, of another shape, nested too deep, not UTF-8.
BAD_BYTES = (msgspec.MsgspecError, RecursionError, UnicodeError)

_parse_anything = msgspec.json.Decoder().decode
#: Parses a raw row image as `read_image` does, but for the rarer forms, which raise TypeError or one of BAD_BYTES.
parse_row = msgspec.json.Decoder(dict[str, Any] | None).decode


class Operation(StrEnum):
    """What was done to a row; the values are those of Debezium's `Envelope.Operation`."""

    # A StrEnum, because it keys dictionaries for every message and a plain Enum hashes in Python.

    READ = "r"
    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    TRUNCATE = "t"
    MESSAGE = "m"


class Drop(Enum):
    """Why a message is no change for any handler."""

    HEARTBEAT = "heartbeat"
    SNAPSHOT_READ = "snapshot_read"
    TOMBSTONE = "tombstone"
    TRANSACTION = "transaction"
    LOGICAL_MESSAGE = "logical_message"
    SCHEMA_CHANGE = "schema_change"
    NOTIFICATION = "notification"
    FILTERED = "filtered"
    OUTBOX = "outbox"


class Lsn(int):
    """A position in PostgreSQL's write-ahead log: an integer on the wire, printed as PostgreSQL prints it."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `16/B374D848` or a plain integer; ValueError for anything else."""
        high, slash, low = text.partition("/")
        return cls((int(high, 16) << 32) | int(low, 16)) if slash else cls(text)


class TableId(NamedTuple):
    """Where a row lives: its schema (or, for databases without schemas, its database) and its table."""

    schema: str
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table


class Source(msgspec.Struct, kw_only=True, gc=False):
    """Where in the database it happened: what decisions need of Debezium's source block, in the order of the wire.

    `name` is the connector's topic prefix, `ts_ms` the commit time in milliseconds since 1970, `schema` the schema, or
    the database where the database has no schemas (MySQL, MongoDB), `table` the table or collection, `lsn` PostgreSQL's
    write-ahead log position.
    """

    name: str = ""
    ts_ms: int | None = None
    schema: str
    table: str
    lsn: int | None = None

    @property
    def table_id(self) -> TableId:
        """The table."""
        return TableId(self.schema, self.table)


class _Position(msgspec.Struct, kw_only=True, gc=False):
    ts_ms: int | None = None
    lsn: int | None = None


# What was not read yet. For msgspec a type that no JSON value is of, so that no message brings its own.
if TYPE_CHECKING:
    _Unread: TypeAlias = bytes | _Position
else:

    class _Unread: ...


class LazySource(msgspec.Struct, kw_only=True, gc=False, eq=False, rename={"unread": "<unread>"}):
    """A Source of which only the table was read; the position is read when somebody asks for it.

    Routing does not, and two integers of every message are a twentieth of what it costs. `unread` is the message, or
    what was read of it; `Envelope.keep` sets it, or else the change. Equal to the Source that says the same.
    """

    name: str = ""
    schema: str
    table: str
    unread: _Unread | None = None

    @property
    def table_id(self) -> TableId:
        """The table."""
        return TableId(self.schema, self.table)

    @property
    def ts_ms(self) -> int | None:
        """The commit time in milliseconds since 1970; None where it was not sent, or is no number."""
        return self._position().ts_ms

    @property
    def lsn(self) -> int | None:
        """PostgreSQL's write-ahead log position; None where it was not sent, or is no number."""
        return self._position().lsn

    def _position(self) -> _Position:
        unread = self.unread
        if not isinstance(unread, _Position):
            assert unread is not None, "a change's source is asked of the change, which has the message"
            unread = self.unread = _read_position(unread)
        return unread

    def _whole(self) -> Source:
        return Source(name=self.name, ts_ms=self.ts_ms, schema=self.schema, table=self.table, lsn=self.lsn)

    def __eq__(self, other: object) -> bool:
        return self._whole() == (other._whole() if isinstance(other, LazySource) else other)

    __hash__ = None  # type: ignore[assignment]  # like Source, which is mutable

    def __repr__(self) -> str:
        # Never the message itself, which holds rows.
        return repr(self._whole())


class _Positioned(msgspec.Struct, gc=False):
    source: _Position


class _Wrapped(msgspec.Struct, gc=False):
    payload: _Positioned


_parse_position = msgspec.json.Decoder(_Positioned).decode
_parse_wrapped_position = msgspec.json.Decoder(_Wrapped).decode


def _read_position(message: bytes) -> _Position:
    """Read the position of a message that was read before, with its schema block or without."""
    try:
        if message[2:3] == b"s":
            return _parse_wrapped_position(message).payload.source
        return _parse_position(message).source
    except BAD_BYTES:
        return _read_strange_position(message)


def _read_strange_position(message: bytes) -> _Position:
    """Read what is no number: other connectors have positions of their own, and some send numbers as text."""
    try:
        value = parse_json(message)
    except DecodeError:
        return _Position()
    source = (value.get("payload") or value)["source"]
    return _Position(ts_ms=integer(source.get("ts_ms")), lsn=integer(source.get("lsn")))


def integer(value: Any) -> int | None:
    """Read a number that CloudEvents and headers send as text; None where the connector sends something else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# As with RowImage, msgspec must see the one that it is to make.
if TYPE_CHECKING:
    AnySource: TypeAlias = Source | LazySource
else:
    AnySource = LazySource


class RowSchema:
    """What a schema block says of a row, compiled once and shared by all messages that carry the same block."""

    __slots__ = ("converters", "defaults")

    def __init__(self, converters: Mapping[str, Converter], defaults: Mapping[str, Any]) -> None:
        #: Only for the columns whose wire value is not yet the Python value.
        self.converters = converters
        #: The wire value that stands for null in a column that is not sent.
        self.defaults = defaults


# The wire name is that of the wrapper's other half: no JSON value is a RowSchema, so what has a payload is no envelope.
class Envelope(msgspec.Struct, kw_only=True, gc=False, rename={"row_schema": "payload"}):
    """Debezium's value: the operation, its source, and the row before and after it, not yet read."""

    before: RowImage = NULL
    after: RowImage = NULL
    source: AnySource
    op: Operation
    row_schema: RowSchema | None = None

    @property
    def schema(self) -> RowSchema | None:
        """The compiled schema block, or None where the message carried none."""
        return self.row_schema

    def keep(self, message: bytes) -> None:
        """Keep what this was parsed from, for what nobody has asked for yet of its source; only the first counts."""
        if type(self.source) is LazySource and self.source.unread is None:
            self.source.unread = message


class RowSchemas:
    """Compiles schema blocks, each once: what reads rows keeps its plans by the RowSchema."""

    _MOST = 4096

    def __init__(self, placeholder: Placeholder) -> None:
        self._placeholder = placeholder
        self._compiled: dict[bytes, RowSchema | None] = {}

    def of(self, block: Any) -> RowSchema | None:
        """Compile a schema block that is parsed already."""
        try:
            text = msgspec.json.encode(block)
        except (OverflowError, ValueError, RecursionError):
            # Numbers or text that no schema of Connect's holds; not worth remembering.
            return compile_row_schema(block, self._placeholder)
        return self.of_text(text)

    def of_text(self, text: bytes) -> RowSchema | None:
        """Compile a schema block; DecodeError where it is none."""
        if text not in self._compiled:
            if len(self._compiled) >= self._MOST:
                self._compiled.clear()
            self._compiled[text] = compile_row_schema(parse_json(text), self._placeholder)
        return self._compiled[text]


def compile_row_schema(block: Any, placeholder: Placeholder) -> RowSchema | None:
    """Compile Connect's JSON schema of an envelope (or of a bare row); None where it describes no row."""
    if not isinstance(block, dict) or not isinstance(block.get("fields"), list):
        return None
    row = next((f for f in block["fields"] if _is_image(f)), block)
    if not isinstance(row.get("fields"), list):
        raise DecodeError("the schema of before and after has no fields")
    columns = [f for f in row["fields"] if isinstance(f, dict) and isinstance(f.get("field"), str)]
    defaults = {c["field"]: c["default"] for c in columns if c.get("default") is not None}
    try:
        return RowSchema(connect_converters(columns, placeholder=placeholder), defaults)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits for a type, a thousand levels
        raise DecodeError(f"the schema is none of Connect's: {error}") from error


def _is_image(field: Any) -> bool:
    return isinstance(field, dict) and field.get("field") in ("after", "before") and field.get("type") == "struct"


def compile_avro_row_schema(record: Mapping[str, Any], placeholder: Placeholder) -> RowSchema:
    """Compile the Avro writer schema of an envelope (or of a bare row)."""
    rows = (_record_of(f["type"]) for f in record.get("fields", ()) if f.get("name") in {"after", "before"})
    row = next((r for r in rows if r is not None), record)
    defaults = {f["name"]: _avro_default(f) for f in row.get("fields", ()) if f.get("default") is not None}
    return RowSchema(avro_converters(row, placeholder=placeholder), defaults)


def _avro_default(field: Mapping[str, Any]) -> Any:
    """Return a column's default as it would stand in a row: schemas write bytes as text, a character for each."""
    branch = field["type"][0] if isinstance(field["type"], list) else field["type"]
    kind = branch.get("type") if isinstance(branch, dict) else branch
    default = field["default"]
    return default.encode("latin-1") if kind in ("bytes", "fixed") and isinstance(default, str) else default


def _record_of(avro_type: Any) -> Mapping[str, Any] | None:
    branches: Sequence[Any] = avro_type if isinstance(avro_type, list) else [avro_type]
    return next((b for b in branches if isinstance(b, dict) and b.get("type") == "record"), None)


def parse_json(data: bytes | Raw) -> Any:
    """Parse JSON with integers exact at any length; DecodeError for anything that is not JSON."""
    try:
        return _parse_anything(data)
    except msgspec.ValidationError:
        return _parse_long_integers(bytes(data))
    except BAD_BYTES as error:
        raise DecodeError(f"not JSON: {error}") from error


def _parse_long_integers(data: bytes) -> Any:
    # msgspec, like int(), refuses more than 4,300 digits.
    import json  # noqa: PLC0415 - for this one rare case

    try:
        return json.loads(data, parse_int=_long_integer, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error


def _long_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise DecodeError(f"an integer of {len(digits):,} digits, more than PostgreSQL has")
    return -_halved(digits[1:]) if digits.startswith("-") else _halved(digits)


def _halved(digits: str) -> int:
    # Multiplying halves takes milliseconds where a conversion of all digits at once takes a second.
    if len(digits) <= 4000:
        return int(digits)
    low = len(digits) // 2
    shift: int = 10**low
    return _halved(digits[:-low]) * shift + _halved(digits[-low:])


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise DecodeError("a number that is too large for a double")
    return value


def _refuse(constant: str) -> None:
    raise DecodeError(f"not JSON: {constant} is no JSON number")


def read_image(image: RowImage) -> dict[str, Any] | None:
    """Read the columns of a row image as they stand on the wire; DecodeError where they are none."""
    if image is None or isinstance(image, dict):
        return image
    try:
        return cast("dict[str, Any] | None", parse_row(image))
    except BAD_BYTES:
        columns = parse_json(image)
    if isinstance(columns, str):  # MongoDB sends documents as JSON in a string
        columns = parse_json(columns.encode("utf-8", "surrogatepass"))
    if columns is None or isinstance(columns, dict):
        return columns
    raise DecodeError(f"a row image is an object or null, not {type(columns).__name__}")


def is_null(image: RowImage) -> bool:
    """Tell whether there is no row in this image, without reading it."""
    return image is None or image == NULL
