"""Which columns of a row need converting, read off the schema that came with it: Connect's JSON schema or Avro's.

A schema is compiled once into a dict of converters, for those columns only whose wire value is not yet the Python
value; plain integers, text and booleans have none. What one converter does is in `scalars` and `temporals`; rows that
come without schema are read by their annotations instead (`wire_types`). All three are re-exported here.

Kept as they stand, on purpose: JSON and hstore-as-JSON stay text (a Row may say `pydantic.Json`), so do xml, ltree,
tsvector, enums and everything that binary.handling.mode has made text; vectors are lists, sparse vectors the dict
`{"dimensions": …, "vector": {index: number}}`; PostgreSQL's two-dimensional arrays arrive as `[null, null]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from cdc_reactor import scalars, temporals
from cdc_reactor.errors import DecodeError
from cdc_reactor.scalars import Converter, Geometry, Point, show
from cdc_reactor.temporals import Infinity, Interval, IsoText
from cdc_reactor.unavailable import UNAVAILABLE, Placeholder, Unavailable
from cdc_reactor.wire_types import (
    Base64Bytes,
    Base64UrlBytes,
    DecimalBytes,
    DecimalString,
    EpochDays,
    HexBytes,
    IsoDate,
    IsoTime,
    IsoTimestamp,
    MicroDuration,
    MicroTime,
    MicroTimestamp,
    MilliTime,
    MilliTimestamp,
    NanoTime,
    NanoTimestamp,
    VariableDecimal,
    guard,
)

__all__ = [
    "UNAVAILABLE",
    "Base64Bytes",
    "Base64UrlBytes",
    "Converter",
    "DecimalBytes",
    "DecimalString",
    "EpochDays",
    "Geometry",
    "HexBytes",
    "Infinity",
    "Interval",
    "IsoDate",
    "IsoText",
    "IsoTime",
    "IsoTimestamp",
    "MicroDuration",
    "MicroTime",
    "MicroTimestamp",
    "MilliTime",
    "MilliTimestamp",
    "NanoTime",
    "NanoTimestamp",
    "Placeholder",
    "Point",
    "Unavailable",
    "VariableDecimal",
    "avro_converters",
    "connect_converters",
    "guard",
]

_Schema: TypeAlias = Mapping[str, Any]

_MAX_DEPTH = 32

# By the schema's `name`. What is missing here is what its type says: text, a number, an array, a struct.
_BY_NAME: Mapping[str, Converter] = {
    "io.debezium.time.Date": temporals.epoch_days,
    "io.debezium.time.Time": temporals.milli_time,
    "io.debezium.time.MicroTime": temporals.micro_time,
    "io.debezium.time.NanoTime": temporals.nano_time,
    "io.debezium.time.Timestamp": temporals.milli_timestamp,
    "io.debezium.time.MicroTimestamp": temporals.micro_timestamp,
    "io.debezium.time.NanoTimestamp": temporals.nano_timestamp,
    "io.debezium.time.ZonedTimestamp": temporals.zoned_timestamp,
    "io.debezium.time.ZonedTime": temporals.zoned_time,
    "io.debezium.time.IsoDate": temporals.iso_date,
    "io.debezium.time.IsoTime": temporals.iso_time,
    "io.debezium.time.IsoTimestamp": temporals.iso_timestamp,
    "io.debezium.time.Interval": temporals.interval,
    "io.debezium.time.MicroDuration": temporals.micro_duration,
    "io.debezium.time.NanoDuration": temporals.nano_duration,
    "org.apache.kafka.connect.data.Date": temporals.epoch_days,
    "org.apache.kafka.connect.data.Time": temporals.milli_time,
    "org.apache.kafka.connect.data.Timestamp": temporals.milli_timestamp,
    "io.debezium.data.VariableScaleDecimal": scalars.variable_decimal,
    "io.debezium.data.Bits": scalars.bits,
    "io.debezium.data.Uuid": scalars.uuid,
    "io.debezium.data.EnumSet": scalars.enum_set,
    "io.debezium.data.geometry.Geometry": scalars.geometry,
    "io.debezium.data.geometry.Geography": scalars.geometry,
    "io.debezium.data.geometry.Point": scalars.point,
}
_BY_TYPE: Mapping[str, Converter] = {
    "bytes": scalars.octets,
    **dict.fromkeys(("float", "double", "float32", "float64"), scalars.floating),
}
_DECIMAL = "org.apache.kafka.connect.data.Decimal"


def connect_converters(fields: Sequence[_Schema], *, placeholder: Placeholder) -> dict[str, Converter]:
    """Compile the `fields` of a row's struct in a Connect JSON schema; one converter for each column that needs one.

    The caller keeps the placeholder away from the converters; only fields of nested structs are looked at here.

    Raises:
        DecodeError: the schema is none.
    """
    return _members(fields, "field", lambda f: _connect(f, placeholder, 0))


def avro_converters(
    record_schema: _Schema, named: Mapping[str, _Schema] | None = None, *, placeholder: Placeholder | None = None
) -> dict[str, Converter]:
    """Compile a row's record in an Avro writer schema; `named` holds types that are defined elsewhere in the schema.

    Values may come with Avro's logical types applied or not. Not is better: fastavro rounds decimals to the declared
    precision and raises on infinite dates and on 24:00.

    Raises:
        DecodeError: the schema is none.
    """
    types = dict(named or {})
    _collect(record_schema, "", types, 0)
    reader = _Avro(types, placeholder or Placeholder())
    return _members(record_schema.get("fields"), "name", lambda f: reader.converter(f.get("type"), 0))


def _members(fields: Any, key: str, compile_field: Callable[[_Schema], Converter | None]) -> dict[str, Converter]:
    if not isinstance(fields, Sequence) or isinstance(fields, str):
        raise DecodeError(f"expected the fields of a struct in the schema, got {show(fields)}")
    converters = {}
    for f in fields:
        if not isinstance(f, Mapping) or not isinstance(f.get(key), str):
            raise DecodeError(f"expected a field with a name in the schema, got {show(f)}")
        converter = compile_field(f)
        if converter is not None:
            converters[f[key]] = converter
    return converters


def _too_deep(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise DecodeError(f"the schema nests more than {_MAX_DEPTH} levels, or refers to itself")


def _by_name(name: object, parameters: object) -> Converter | None:
    if name == _DECIMAL:
        return scalars.decimal_bytes(_scale(parameters))
    return _BY_NAME.get(name) if isinstance(name, str) else None


def _scale(parameters: object) -> int:
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    try:
        return int(scale)  # type: ignore[arg-type]  # None and worse are what the except is for
    except (TypeError, ValueError, OverflowError):
        raise DecodeError(f"expected a decimal's scale in the schema, got {show(scale)}") from None


def _connect(schema: Any, placeholder: Placeholder, depth: int) -> Converter | None:
    _too_deep(depth)
    if not isinstance(schema, Mapping):
        raise DecodeError(f"expected a Connect schema, got {show(schema)}")
    logical = _by_name(schema.get("name"), schema.get("parameters"))
    if logical is not None:
        return logical
    simple = _BY_TYPE.get(str(schema.get("type")))
    return simple if simple is not None else _connect_structured(schema, placeholder, depth + 1)


def _connect_structured(schema: _Schema, placeholder: Placeholder, depth: int) -> Converter | None:
    match schema.get("type"):
        case "array":
            return _array(_connect(schema.get("items"), placeholder, depth))
        case "map":
            keys, values = (_connect(schema.get(part), placeholder, depth) for part in ("keys", "values"))
            text_keys = schema["keys"].get("type") == "string"
            return _map(keys, values, text_keys=text_keys) if keys or values or not text_keys else None
        case "struct":
            fields = _members(schema.get("fields"), "field", lambda f: _connect(f, placeholder, depth))
            return _struct(fields, placeholder)
    return None


def _array(element: Converter | None) -> Converter | None:
    if element is None:
        return None

    def convert(value: Any) -> Any:
        if not isinstance(value, list):
            return scalars.already(value, list, "an array")
        return [element(e) for e in value]

    return convert


def _map(keys: Converter | None, values: Converter | None, *, text_keys: bool) -> Converter:
    """Convert a map; JsonConverter writes one whose keys are no text as pairs, Avro as records of key and value."""

    def convert(value: Any) -> Any:
        if isinstance(value, list) and not text_keys:
            items = [_pair(entry) for entry in value]
        elif isinstance(value, Mapping):
            items = list(value.items())
        else:
            return scalars.already(value, dict, "a map")
        return {keys(k) if keys else k: values(v) if values else v for k, v in items}

    return convert


def _pair(entry: Any) -> tuple[Any, Any]:
    match entry:
        case [(str() | int() | float() | bytes() | None) as key, value]:
            return key, value
        case {"key": (str() | int() | float() | bytes() | None) as key, "value": value}:
            return key, value
    raise DecodeError(f"expected a map's key and value, got {show(entry)}")


def _struct(fields: Mapping[str, Converter], placeholder: Placeholder) -> Converter:
    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return scalars.already(value, dict, "a struct")
        return {name: member(name, v) for name, v in value.items()}

    def member(name: str, value: Any) -> Any:
        if placeholder.matches(value):
            return UNAVAILABLE
        converter = fields.get(name)
        return value if converter is None else converter(value)

    return convert


# ── Avro ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _naive(value: Any) -> Any:
    """Convert Connect's Timestamp, which has no zone, though Avro readers make it UTC."""
    return value.replace(tzinfo=None) if isinstance(value, datetime) else temporals.milli_timestamp(value)


# Schemas that Connect did not write carry Avro's logical types alone.
_BY_LOGICAL_TYPE: Mapping[str, Converter] = {
    "date": temporals.epoch_days,
    "time-millis": temporals.milli_time,
    "time-micros": temporals.micro_time,
    "timestamp-millis": temporals.utc(temporals.milli_timestamp),
    "timestamp-micros": temporals.utc(temporals.micro_timestamp),
    "timestamp-nanos": temporals.utc(temporals.nano_timestamp),
    "local-timestamp-millis": temporals.milli_timestamp,
    "local-timestamp-micros": temporals.micro_timestamp,
    "local-timestamp-nanos": temporals.nano_timestamp,
    "uuid": scalars.uuid,
}


def _collect(schema: Any, namespace: str, types: dict[str, _Schema], depth: int) -> None:
    """Find the named types in a schema: others refer to them by name, full or within the namespace."""
    _too_deep(depth // 4)
    if isinstance(schema, list):
        for branch in schema:
            _collect(branch, namespace, types, depth + 1)
    elif isinstance(schema, Mapping):
        name = schema.get("name")
        space = schema.get("namespace")
        namespace = space if isinstance(space, str) else namespace
        if isinstance(name, str) and schema.get("type") in ("record", "enum", "fixed"):
            if "." in name:
                namespace = name.rpartition(".")[0]
            types[name] = types[f"{namespace}.{name.rpartition('.')[2]}"] = schema
        for part in ("type", "fields", "items", "values"):
            _collect(schema.get(part), namespace, types, depth + 1)


class _Avro:
    """Compiles Avro types, some of them names of others."""

    __slots__ = ("_placeholder", "_types")

    def __init__(self, types: Mapping[str, _Schema], placeholder: Placeholder) -> None:
        self._types = types
        self._placeholder = placeholder

    def converter(self, schema: Any, depth: int) -> Converter | None:
        _too_deep(depth)
        if isinstance(schema, list):
            branches = [branch for branch in schema if branch != "null"]
            return self.converter(branches[0], depth + 1) if len(branches) == 1 else None
        if isinstance(schema, str):
            return self.converter(self._types[schema], depth + 1) if schema in self._types else None
        if not isinstance(schema, Mapping):
            raise DecodeError(f"expected an Avro schema, got {show(schema)}")
        return self._logical(schema) or self._structured(schema, depth)

    def _logical(self, schema: _Schema) -> Converter | None:
        name, logical_type = schema.get("connect.name"), schema.get("logicalType")
        if name == "org.apache.kafka.connect.data.Timestamp":
            return _naive
        if name == _DECIMAL or (name is None and logical_type == "decimal"):
            return scalars.decimal_bytes(_scale(schema.get("connect.parameters") or schema))
        if name is None and isinstance(logical_type, str):
            return _BY_LOGICAL_TYPE.get(logical_type)
        return _by_name(name, None)

    def _structured(self, schema: _Schema, depth: int) -> Converter | None:
        match schema.get("type"):
            case "array":
                return self._array_or_map(schema.get("items"), depth)
            case "map":
                values = self.converter(schema.get("values"), depth + 1)
                return _map(None, values, text_keys=True) if values else None
            case "record":
                fields = _members(schema.get("fields"), "name", lambda f: self.converter(f.get("type"), depth + 1))
                return _struct(fields, self._placeholder)
            case (Mapping() | list()) as inner:
                return self.converter(inner, depth + 1)
        return None

    def _array_or_map(self, items: Any, depth: int) -> Converter | None:
        # AvroData writes a map whose keys are no text as an array of records of this name.
        entry = self._types.get(items) if isinstance(items, str) else items
        if isinstance(entry, Mapping) and "MapEntry" in (entry.get("connect.internal.type"), entry.get("name")):
            types = {f["name"]: f.get("type") for f in entry.get("fields", ())}
            keys, values = (self.converter(types.get(part), depth + 1) for part in ("key", "value"))
            return _map(keys, values, text_keys=False)
        return _array(self.converter(items, depth + 1))
