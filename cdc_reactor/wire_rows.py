"""Rows as Debezium writes them: the messages that a connector would send for a change of a Row.

The other half of the harness in `testing`: it turns Python values into Debezium's JSON, with and without the schema
block, as the Row's own annotations say what is on the wire. The reverse of what `changes`, `columns` and `wire_types`
read.
"""

from __future__ import annotations

import base64
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import cache
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from pydantic import BaseModel, Json
from pydantic.fields import FieldInfo

from cdc_reactor.changes import Row, columns_of
from cdc_reactor.messages import Message
from cdc_reactor.scalars import _EXACT as EXACT
from cdc_reactor.scalars import Geometry, Point
from cdc_reactor.temporals import EPOCH, Infinity, Interval, IsoText
from cdc_reactor.wire_types import DecimalBytes, Wire

Identity: TypeAlias = Literal["full", "default"]


def by_column(model: type[Row], given: Mapping[str, Any]) -> dict[str, Any]:
    """Name columns as the table does; TypeError for one that the Row has not."""
    columns = columns_of(model)
    column_of = {name: column for column, name in columns.items()}
    for name in given:
        if name not in columns and name not in column_of:
            near = get_close_matches(name, [*columns, *column_of], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns)}"
            raise TypeError(f"{model.__name__} has no column {name!r}; {hint}")
    return {column_of.get(name, name): value for name, value in given.items()}


def whole_row(model: type[Row], given: Mapping[str, Any]) -> dict[str, Any]:
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


class Connector:
    """Writes changes as Debezium's PostgreSQL connector does, one transaction each, at rising positions of the log."""

    def __init__(self, *, schemas: bool, identity: Identity | None) -> None:
        self._schemas = schemas
        self._identity = identity
        self._count = 0

    def created(self, model: type[Row], after: Mapping[str, Any]) -> list[Message]:
        """Write the insert of a row."""
        return [self._change(model, "c", None, after)]

    def read(self, model: type[Row], after: Mapping[str, Any]) -> list[Message]:
        """Write a snapshot's read of a row."""
        return [self._change(model, "r", None, after)]

    def updated(self, model: type[Row], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Message]:
        """Write the update of a row; without its old image where the table's identity sends none."""
        if any(before[column] != after[column] for column in model.key_columns):
            return [*self.deleted(model, before), *self.created(model, after)]
        return [self._change(model, "u", before if self._is_full(model) else None, after)]

    def deleted(self, model: type[Row], before: Mapping[str, Any]) -> list[Message]:
        """Write the delete of a row, holding its key only where the table's identity sends no more."""
        if not self._is_full(model):
            before = {column: value if column in model.key_columns else _NOTHING for column, value in before.items()}
        return [self._change(model, "d", before, None)]

    def truncated(self, model: type[Row]) -> list[Message]:
        """Write the truncate of a table."""
        return [self._change(model, "t", None, None)]

    def message(self, data: bytes, *, attributes: Mapping[str, str] | None = None, ordering_key: str = "") -> Message:
        """Make a message of this connector's with any body."""
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
