"""Avro values: Confluent's wire format, and Pub/Sub's own schema attributes.

Confluent's wire format is a zero byte, a schema id of four bytes (big endian) and the body. A message published to a
Pub/Sub topic that has a schema names it in attributes instead
(https://cloud.google.com/pubsub/docs/schemas: `googclient_schemaname`, `…revisionid`, `…encoding`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import fastavro
from fastavro.types import Schema

from cdc_reactor.columns import Placeholder
from cdc_reactor.envelope import RowSchema, compile_avro_row_schema
from cdc_reactor.errors import DecodeError
from cdc_reactor.messages import Message

#: The attribute by which Pub/Sub says that a message was published with a schema.
NAMED = "googclient_schemaname"

_HEADER = struct.Struct(">bI")


class Schemas(Protocol):
    """Finds Avro writer schemas; raises DecodeError that names the id and the cure."""

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        """Return the writer schema with this id."""

    def named(self, name: str, revision: str) -> Mapping[str, Any]:
        """Return the Pub/Sub schema of this name (`projects/P/schemas/S`) and revision."""


class AvroValue(NamedTuple):
    """A decoded value, its schema's Connect name, and the compiled schema of the row in it."""

    value: Any
    name: str
    row_schema: RowSchema | None


class _Compiled(NamedTuple):
    parsed: Schema
    name: str
    row_schema: RowSchema | None


def is_avro(message: Message) -> bool:
    """Tell whether a message is Avro: its first byte is zero, or its attributes name a Pub/Sub schema."""
    return message.data[:1] == b"\x00" or NAMED in message.attributes


def schema_key(message: Message) -> int | tuple[str, str] | None:
    """Name the writer schema that a message needs: an id, a Pub/Sub name and revision, or None where it is no Avro."""
    if "googclient_schemaname" in message.attributes:
        return message.attributes[NAMED], message.attributes.get("googclient_schemarevisionid", "")
    is_wire_format = message.data[:1] == b"\x00" and len(message.data) >= _HEADER.size
    return int(_HEADER.unpack_from(message.data)[1]) if is_wire_format else None


class AvroReader:
    """Reads Avro values with the writer schemas that `schemas` finds, each compiled once."""

    def __init__(self, schemas: Schemas | None, placeholder: Placeholder) -> None:
        self._schemas = schemas
        self._placeholder = placeholder
        self._compiled: dict[int | tuple[str, str], _Compiled] = {}

    def read(self, message: Message) -> AvroValue:
        """Read one value; DecodeError where its schema is not to be had or does not fit."""
        if NAMED in message.attributes:
            return self._read_named(message)
        if len(message.data) < _HEADER.size:
            raise DecodeError(f"{len(message.data)} bytes that start with zero: too short for Avro in wire format")
        schema_id = _HEADER.unpack_from(message.data)[1]
        label = f"schema id {schema_id}"
        compiled = self._compiled.get(schema_id)
        if compiled is None:
            compiled = self._compiled[schema_id] = self._compile(self._given(label).schema(schema_id), label)
        return AvroValue(
            _read_binary(message.data[_HEADER.size :], compiled.parsed, label), compiled.name, compiled.row_schema
        )

    def _read_named(self, message: Message) -> AvroValue:
        key = message.attributes[NAMED], message.attributes.get("googclient_schemarevisionid", "")
        label = f"schema {key[0]}@{key[1]}"
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(self._given(label).named(*key), label)
        read = _read_json if message.attributes.get("googclient_schemaencoding") == "JSON" else _read_binary
        return AvroValue(read(message.data, compiled.parsed, label), compiled.name, compiled.row_schema)

    def _given(self, label: str) -> Schemas:
        if self._schemas is None:
            raise DecodeError(f"Avro with {label}, and no schemas are given: add --schemas PATH|URL")
        return self._schemas

    def _compile(self, schema: Mapping[str, Any], label: str) -> _Compiled:
        try:
            parsed = fastavro.parse_schema(_without_logical_types(schema))
            row_schema = compile_avro_row_schema(schema, self._placeholder) if schema.get("type") == "record" else None
        except Exception as error:  # fastavro raises many kinds for a schema that is none
            raise DecodeError(f"{label} is no Avro schema: {error}") from error
        return _Compiled(parsed, str(schema.get("connect.name") or _full_name(schema)), row_schema)


def _without_logical_types(schema: Any) -> Any:
    """Let fastavro leave values as they are on the wire: it rounds decimals and fails on dates that Python lacks."""
    if isinstance(schema, list):
        return [_without_logical_types(branch) for branch in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        part: _without_logical_types(value) if part in ("type", "fields", "items", "values") else value
        for part, value in schema.items()
        if part != "logicalType"
    }


def _full_name(schema: Mapping[str, Any]) -> str:
    namespace, name = schema.get("namespace"), schema.get("name", "")
    return f"{namespace}.{name}" if namespace else str(name)


def _read_binary(body: bytes, schema: Schema, label: str) -> Any:
    stream = io.BytesIO(body)
    try:
        value = fastavro.schemaless_reader(stream, schema, None)
    except Exception as error:  # fastavro raises whatever the bytes make it stumble over
        raise _unfit(label, error) from error
    left = len(body) - stream.tell()
    if left:
        raise DecodeError(f"{left} bytes are left over after reading {label}: it was written with another schema")
    return value


def _read_json(body: bytes, schema: Schema, label: str) -> Any:
    # fastavro takes each line for a value of its own; a line's end cannot stand inside of JSON text.
    line = body.replace(b"\n", b" ").replace(b"\r", b" ")
    try:
        return next(iter(fastavro.json_reader(io.StringIO(line.decode()), schema)))
    except Exception as error:  # the same
        raise _unfit(label, error) from error


def _unfit(label: str, error: Exception) -> DecodeError:
    return DecodeError(f"the body does not fit {label}: {type(error).__name__}: {error}")
