"""The forms of a message that are no plain envelope, told apart by a full parse.

This is the slow road of `decoder`: heartbeats, transaction markers, schema changes, logical messages,
CloudEvents around an envelope, flattened rows, outbox messages, Avro. Shapes were seen in Debezium 3.6 or read in its
source (classes are named beside each). Only the body decides; topics and attributes may have been rewritten on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdc_reactor.avro import AvroReader, is_avro
from cdc_reactor.columns import Placeholder
from cdc_reactor.envelope import Drop, Envelope, Operation, RowSchema, Source, compile_row_schema, parse_json
from cdc_reactor.errors import DecodeError
from cdc_reactor.messages import Message

# Schema names by which Debezium itself tells these apart, where the schema is sent.
_BY_NAME = {
    "io.debezium.connector.common.Heartbeat": Drop.HEARTBEAT,  # HeartbeatImpl
    "io.debezium.connector.common.TransactionMetadataValue": Drop.TRANSACTION,  # TransactionStructMaker
}
_SCHEMA_CHANGE_SUFFIX = ".SchemaChangeValue"  # SchemaFactory.schemaHistoryConnectorValueSchema

_HEARTBEAT_FIELDS = {"ts_ms", "ts_us", "ts_ns"}


class FormReader:
    """Classifies what the fast road of `decoder` could not read."""

    def __init__(self, avro: AvroReader, placeholder: Placeholder, unwrapped_prefix: str) -> None:
        self._avro = avro
        self._placeholder = placeholder
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
            name = str((block or {}).get("name") or "")
            schema = compile_row_schema(block, self._placeholder)
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
        return self._classify_object(value, schema)

    def _classify_object(self, value: dict[str, Any], schema: RowSchema | None) -> Envelope | Drop:
        keys = value.keys()
        if "ts_ms" in keys and keys <= _HEARTBEAT_FIELDS:
            return Drop.HEARTBEAT
        if value.get("status") in ("BEGIN", "END") and {"id", "event_count", "data_collections"} <= keys:
            return Drop.TRANSACTION
        if {"specversion", "source", "type"} <= keys:
            return self._classify_cloud_event(value)
        if "source" in keys and ({"ddl", "databaseName"} <= keys or {"tableChanges", "databaseName"} <= keys):
            return Drop.SCHEMA_CHANGE
        if isinstance(value.get("source"), dict) and "op" in keys:
            return _envelope(value["op"], value["source"], value.get("before"), value.get("after"), schema)
        return _flattened(value, schema, self._prefix)

    def _classify_cloud_event(self, event: dict[str, Any]) -> Envelope | Drop:
        """Unpack CloudEvents: either the envelope stands in `data`, or op and source are attributes beside it."""
        # CloudEventsMaker: attribute names are "iodebezium" + the field's lower case name, values are text.
        data = event.get("data")
        schema = None
        if _is_with_schema(data):
            schema = compile_row_schema(data["schema"], self._placeholder)
            data = data["payload"]
        if isinstance(data, dict) and ("op" in data or "status" in data or data.keys() <= _HEARTBEAT_FIELDS):
            return self._classify_object(data, schema)
        op = event.get("iodebeziumop")
        if op is None and (data is None or "heartbeat" in str(event.get("type")).lower()):
            return Drop.HEARTBEAT
        if op is None:
            raise DecodeError("a CloudEvent without iodebeziumop and without an envelope in its data")
        return _envelope(op, _cloud_source(event), *_cloud_rows(data), schema)


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
    where = Source(
        name=_text(source.get("name")),
        ts_ms=_integer(source.get("ts_ms")),
        schema=_text(source.get("schema")) or _text(source.get("db")),
        table=_text(source.get("table")) or _text(source.get("collection")),
        lsn=_integer(source.get("lsn")),
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
    document = parse_json(image.encode())  # MongoDB sends documents as JSON in a string
    if not isinstance(document, dict | None):
        raise DecodeError("before and after hold text that is no JSON object")
    return document


def _is_outbox(value: Any, message: Message) -> bool:
    """Recognise what the outbox router sends: a JSON text in a JSON string, or an object under its own topic."""
    topic = message.attributes.get("destination", "")
    if topic.startswith("outbox.event."):  # EventRouterConfigDefinition.ROUTE_TOPIC_REPLACEMENT
        return True
    return isinstance(value, str) and "id" in message.attributes


def _cloud_rows(data: Any) -> tuple[Any, Any]:
    if not isinstance(data, dict):
        return None, None
    return data.get("before"), data.get("after")


def _cloud_source(event: Mapping[str, Any]) -> dict[str, Any]:
    source = {name: event.get(f"iodebezium{name}") for name in ("name", "db", "schema", "table", "collection", "lsn")}
    return source | {"ts_ms": event.get("iodebeziumtsms")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: Any) -> int | None:
    """Read a number that CloudEvents and headers send as text; None where the connector sends something else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flattened(value: dict[str, Any], schema: RowSchema | None, prefix: str) -> Envelope:
    """Rebuild the envelope of a row that ExtractNewRecordState flattened and gave `op` and `table`."""
    op, table = value.get(f"{prefix}op"), value.get(f"{prefix}table")
    where = value.get(f"{prefix}schema") or value.get(f"{prefix}db")
    if op is None or table is None or where is None:
        missing = [name for name, v in (("op", op), ("table", table), ("schema", where)) if v is None]
        raise DecodeError(
            f"neither an envelope nor a flattened row with {', '.join(prefix + m for m in missing)}; if the connector "
            "unwraps rows, set transforms.unwrap.add.fields=op,table,schema,lsn,source.ts_ms (and --unwrapped-prefix "
            "where add.fields.prefix is not the default)"
        )
    row = {k: v for k, v in value.items() if not k.startswith(prefix)}
    source = {name: value.get(f"{prefix}{name}") for name in ("name", "db", "schema", "table", "lsn")}
    source["ts_ms"] = value.get(f"{prefix}source_ts_ms", value.get(f"{prefix}ts_ms"))
    before, after = (row, None) if op == "d" else (None, row)
    return _envelope(op, source, before if op != "t" else None, after if op != "t" else None, schema)
