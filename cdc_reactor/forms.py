"""The forms of a message that are no plain envelope, told apart by a full parse.

This is the slow road of `decoder`: heartbeats, transaction markers, schema changes, notifications, logical messages,
CloudEvents around an envelope, flattened rows, outbox messages, Avro. Shapes were seen in Debezium 3.6 or read in its
source (classes are named beside each). Only the body decides; topics and attributes may have been rewritten on the way.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

from cdc_reactor.avro import AvroReader, is_avro
from cdc_reactor.envelope import Drop, Envelope, Operation, RowSchema, RowSchemas, Source, integer, parse_json
from cdc_reactor.errors import DecodeError, UsageError
from cdc_reactor.messages import Message

# Schema names by which Debezium itself tells these apart, where the schema is sent (SchemaFactory).
_BY_NAME = {
    "io.debezium.connector.common.Heartbeat": Drop.HEARTBEAT,
    "io.debezium.connector.common.TransactionMetadataValue": Drop.TRANSACTION,
    "io.debezium.connector.common.Notification": Drop.NOTIFICATION,
}
_SCHEMA_CHANGE_SUFFIX = ".SchemaChangeValue"  # SchemaFactory.schemaHistoryConnectorValueSchema
_ROW_SUFFIX = ".Value"  # TableSchemaBuilder: the row in an envelope, and what ExtractNewRecordState makes of it

_HEARTBEAT_FIELDS = {"ts_ms", "ts_us", "ts_ns"}
_TRANSACTION_FIELDS = {"status", "id", "event_count", "data_collections"}
_NOTIFICATION_FIELDS = {"id", "aggregate_type", "type", "additional_data"}  # and a timestamp, since 2.4
_ENVELOPE_FIELDS = {"before", "after", "source", "op", "transaction", *_HEARTBEAT_FIELDS}
_DELETED = "__deleted"  # ExtractNewRecordStateConfigDefinition.DELETED_FIELD, whatever the prefix


class FormReader:
    """Classifies what the fast road of `decoder` could not read."""

    def __init__(self, avro: AvroReader, row_schemas: RowSchemas, unwrapped_prefix: str) -> None:
        if not unwrapped_prefix:
            raise UsageError("--unwrapped-prefix is empty: set the transform's add.fields.prefix, and name it here")
        self._avro = avro
        self._row_schemas = row_schemas
        self._prefix = unwrapped_prefix

    def classify(self, message: Message) -> Envelope | Drop:
        """Tell what a message is; DecodeError where it is nothing that we know."""
        if not message.data:
            return Drop.TOMBSTONE
        if is_avro(message):
            return self._classify_value(*self._avro.read(message), message)
        value = parse_json(message.data)
        name, schema = "", None
        if _is_with_schema(value):
            block, value = value["schema"], value["payload"]
            name = _text(block.get("name")) if block else ""
            schema = self._row_schemas.of(block)
        return self._classify_value(value, name, schema, message)

    def _classify_value(self, value: Any, name: str, schema: RowSchema | None, message: Message) -> Envelope | Drop:
        if name in _BY_NAME:
            return _BY_NAME[name]
        if name.endswith(_SCHEMA_CHANGE_SUFFIX):
            return Drop.SCHEMA_CHANGE
        if _is_outbox(value, message):
            return Drop.OUTBOX
        if value is None:
            raise DecodeError(
                "the body is null: a delete that the unwrap transform flattened carries no table; set "
                "transforms.unwrap.delete.tombstone.handling.mode=rewrite (and add.fields=op,table,schema,lsn)"
            )
        if not isinstance(value, dict):
            raise DecodeError(f"a change event is a JSON object, not {type(value).__name__}")
        if name.endswith(_ROW_SUFFIX):
            return _flattened(value, schema, self._prefix)
        return self._classify_object(value, schema)

    def _classify_object(self, value: dict[str, Any], schema: RowSchema | None) -> Envelope | Drop:
        keys = value.keys()
        # First, because a row may have columns of any name.
        if {f"{self._prefix}op", f"{self._prefix}table"} <= keys:
            return _flattened(value, schema, self._prefix)
        drop = _no_change(value)
        if drop is not None:
            return drop
        if {"specversion", "source", "type"} <= keys:
            return self._classify_cloud_event(value)
        if isinstance(value.get("source"), dict) and "op" in keys:
            return _envelope(value["op"], value["source"], value.get("before"), value.get("after"), schema)
        return _flattened(value, schema, self._prefix)

    def _classify_cloud_event(self, event: dict[str, Any]) -> Envelope | Drop:
        """Unpack CloudEvents: op and source are attributes beside `data`, or an envelope stands in it whole."""
        # Heartbeats and transaction markers become none, but empty values (CloudEventsConverter.fromConnectData).
        data, schema = self._cloud_data(event)
        op = event.get("iodebeziumop")
        if op is not None:
            return _envelope(op, _cloud_source(event), *_cloud_rows(op, data), schema)
        if isinstance(data, dict) and data.keys() <= _ENVELOPE_FIELDS and not data.keys() <= {"before", "after"}:
            return self._classify_object(data, schema)
        raise DecodeError(
            "a CloudEvent without iodebeziumop and without an envelope in its data: set the converter's "
            "extension.attributes.enable=true. If it is a flattened row with columns of these names, set "
            "transforms.unwrap.add.fields=op,table,schema,lsn,source.ts_ms"
        )

    def _cloud_data(self, event: dict[str, Any]) -> tuple[Any, RowSchema | None]:
        data = event.get("data")
        if isinstance(data, str) and event.get("datacontenttype") == "application/avro":
            data = _base64(data)
        if isinstance(data, bytes):
            data, _, schema = self._avro.read(Message(data))
            return data, schema
        if isinstance(data, dict) and _is_with_schema(data):
            return data["payload"], self._row_schemas.of(data["schema"])
        return data, None


def _no_change(value: dict[str, Any]) -> Drop | None:
    """Recognise by its shape what Debezium says beside changes, for without schemas nothing else tells it."""
    keys = value.keys()
    if "ts_ms" in keys and keys <= _HEARTBEAT_FIELDS:
        return Drop.HEARTBEAT
    if value.get("status") in ("BEGIN", "END") and keys >= _TRANSACTION_FIELDS:
        return Drop.TRANSACTION
    if keys - {"timestamp"} == _NOTIFICATION_FIELDS:
        return Drop.NOTIFICATION
    if "source" in keys and ({"ddl", "databaseName"} <= keys or {"tableChanges", "databaseName"} <= keys):
        return Drop.SCHEMA_CHANGE
    return None


def _is_with_schema(value: Any) -> bool:
    """Tell Connect's wrapper from a flattened row with columns `schema` and `payload`."""
    if not isinstance(value, dict) or value.keys() != {"schema", "payload"}:
        return False
    block = value["schema"]
    return block is None or (isinstance(block, dict) and isinstance(block.get("type"), str))


def _envelope(op: Any, source: Mapping[str, Any], before: Any, after: Any, schema: RowSchema | None) -> Envelope:
    try:
        operation = Operation(op)
    except ValueError:
        raise DecodeError("op is none of r, c, u, d, t and m, which are all that Debezium sends") from None
    # Logical messages have an empty schema; only where there is none at all does the database stand for it.
    schema_name = source.get("schema")
    where = Source(
        name=_text(source.get("name")),
        ts_ms=integer(source.get("ts_ms")),
        schema=_text(source.get("db") if schema_name is None else schema_name),
        table=_text(source.get("table")) or _text(source.get("collection")),
        lsn=integer(source.get("lsn")),
    )
    if not where.table and operation is not Operation.MESSAGE:
        raise DecodeError("the source block names no table and no collection")
    for image in (before, after):
        if not isinstance(image, dict | str | None):
            raise DecodeError(f"before and after are objects or null, not {type(image).__name__}")
    return Envelope(op=operation, source=where, before=_image(before), after=_image(after), row_schema=schema)


def _image(image: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if not isinstance(image, str):
        return image
    document = parse_json(image.encode("utf-8", "surrogatepass"))  # MongoDB sends documents as JSON in a string
    if not isinstance(document, dict | None):
        raise DecodeError("before and after hold text that is no JSON object")
    return document


def _is_outbox(value: Any, message: Message) -> bool:
    """Recognise what the outbox router sends: a JSON text in a JSON string, or an object under its own topic."""
    topic = message.attributes.get("destination", "")
    if topic.startswith("outbox.event."):  # EventRouterConfigDefinition.ROUTE_TOPIC_REPLACEMENT
        return True
    return isinstance(value, str) and "id" in message.attributes


def _base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise DecodeError("the data of a CloudEvent of application/avro is no base64 text") from None


def _cloud_rows(op: Any, data: Any) -> tuple[Any, Any]:
    if not isinstance(data, dict):
        raise DecodeError(f"the data of a CloudEvent is an object, not {type(data).__name__}")
    if data.keys() & {"before", "after"} and data.keys() <= _ENVELOPE_FIELDS:
        return data.get("before"), data.get("after")
    # With metadata.source=header the data is all that a transform has left of the value: a flattened row.
    return (data, None) if op == "d" else (None, data)


def _cloud_source(event: Mapping[str, Any]) -> dict[str, Any]:
    # CloudEventsConverter.adjustExtensionName: the field's name without all that is no letter or digit.
    source = {name: event.get(f"iodebezium{name}") for name in ("name", "db", "schema", "table", "collection", "lsn")}
    return source | {"ts_ms": event.get("iodebeziumtsms")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _flattened(value: dict[str, Any], schema: RowSchema | None, prefix: str) -> Envelope:
    """Rebuild the envelope of a row that ExtractNewRecordState flattened and gave `op` and `table`."""

    def added(name: str) -> Any:
        # AbstractExtractNewRecordState.FieldReference: `add.fields=source.table` makes it `__source_table`.
        return value.get(f"{prefix}source_{name}", value.get(f"{prefix}{name}"))

    op, table, where = value.get(f"{prefix}op"), added("table"), added("schema") or added("db")
    if op is None or table is None or where is None:
        missing = [name for name, v in (("op", op), ("table", table), ("schema", where)) if v is None]
        raise DecodeError(
            f"neither an envelope nor a flattened row with {', '.join(prefix + m for m in missing)}; if the connector "
            "unwraps rows, set transforms.unwrap.add.fields=op,table,schema,lsn,source.ts_ms (and --unwrapped-prefix "
            "where add.fields.prefix is not the default)"
        )
    row = {k: v for k, v in value.items() if not k.startswith(prefix) and k != _DELETED}
    source = {name: added(name) for name in ("name", "db", "schema", "table", "lsn", "ts_ms")}
    before, after = (row, None) if op == "d" else (None, row)
    return _envelope(op, source, before if op != "t" else None, after if op != "t" else None, schema)
