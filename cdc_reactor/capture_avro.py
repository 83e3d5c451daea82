"""Avro object container files (https://avro.apache.org/docs/1.12.0/specification/#object-container-files).

Three kinds are told by the writer schema: what a Pub/Sub subscription writes to Cloud Storage, with metadata or without
(https://cloud.google.com/pubsub/docs/cloudstorage), records that are a message's bytes, and records that are a message.
The last become Avro in wire format under an id of our own, byte for byte as they stand in the container; the caller's
schema store then knows the writer schema.

fastavro reads the records; the blocks are read here, because a container that is cut must still give all that comes
before the cut, and because fastavro's own reader needs a second package for zstandard.
"""

from __future__ import annotations

import bz2
import importlib
import io
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import fastavro
import zstandard

from cdc_reactor.capture_bytes import CaptureError
from cdc_reactor.capture_formats import Reading
from cdc_reactor.errors import UsageError
from cdc_reactor.messages import NO_ATTRIBUTES, Message

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_BLOCK_BYTES = 1 << 30
_METADATA = {"type": "map", "values": "bytes"}
_PUBSUB_FIELDS = {"subscription_name", "message_id", "publish_time", "attributes", "ordering_key", "data"}
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    StopIteration,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
    zstandard.ZstdError,
)

_ToMessage: TypeAlias = Callable[[Any, bytes], Message]


def _snappy(data: bytes) -> bytes:
    try:
        snappy = importlib.import_module("cramjam").snappy
    except ImportError as error:
        raise UsageError("this Avro container is packed with snappy: pip install cramjam") from error
    checksum_bytes = 4
    return bytes(snappy.decompress_raw(data[:-checksum_bytes]))


_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "null": bytes,
    "deflate": lambda data: zlib.decompress(data, wbits=-15),
    "snappy": _snappy,
    "zstandard": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
}


@dataclass(frozen=True, slots=True)
class _Header:
    schema: Any
    codec: Callable[[bytes], bytes]
    sync: bytes


def read_container(stream: io.BufferedReader, reading: Reading) -> Iterator[Message]:
    """Read the messages of a container.

    Raises: CaptureError where it is cut or damaged; UsageError for a codec that we cannot unpack.
    """
    reading.unit = "message"
    header = _read_header(stream)
    parsed = _parse(header.schema)
    to_message = _choose(header.schema, reading)
    for count, block in _read_blocks(stream, header):
        data, body = block, io.BytesIO(block)
        for _ in range(count):
            start = body.tell()
            record = _read_record(body, parsed)
            reading.count += 1
            yield to_message(record, data[start : body.tell()])


def _read_record(body: io.BytesIO, parsed: Any) -> Any:
    try:
        return fastavro.schemaless_reader(body, parsed, None)
    except _DAMAGE as error:
        raise CaptureError(f"the Avro container is cut or damaged ({type(error).__name__}: {error})") from error


def _read_header(stream: io.BufferedReader) -> _Header:
    if stream.read(4) != b"Obj\x01":
        raise UsageError("it is no Avro container: it does not start with `Obj` and 1")
    try:
        metadata: Any = fastavro.schemaless_reader(stream, _METADATA, None)
        schema = json.loads(metadata["avro.schema"])
    except _DAMAGE as error:
        raise CaptureError("the Avro container's header is cut or damaged") from error
    codec = metadata.get("avro.codec", b"null").decode(errors="replace")
    if codec not in _CODECS:
        raise UsageError(f"this Avro container is packed with {codec}; we can unpack {', '.join(_CODECS)}")
    return _Header(schema, _CODECS[codec], _read_exactly(stream, 16))


def _parse(schema: Any) -> Any:
    """Compile the schema without its logical types: a date that Python cannot hold must not end the reading."""
    try:
        return fastavro.parse_schema(_without_logical_types(schema))
    except (fastavro.schema.SchemaParseException, *_DAMAGE) as error:
        raise CaptureError(f"the Avro container's schema is damaged ({error})") from error


def _without_logical_types(schema: Any) -> Any:
    match schema:
        case dict():
            return {key: _without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
        case list():
            return [_without_logical_types(branch) for branch in schema]
    return schema


def _read_blocks(stream: io.BufferedReader, header: _Header) -> Iterator[tuple[int, bytes]]:
    """Hand out how many records a block holds, and their bytes."""
    while stream.peek(1):
        count, size = _read_long(stream), _read_long(stream)
        if count < 0 or not 0 <= size <= _MAX_BLOCK_BYTES:
            raise CaptureError(f"the Avro container is damaged: a block of {count} records in {size} bytes")
        packed = stream.read(size)
        is_whole = len(packed) == size
        # What is there of a block that is not packed can be read up to the cut.
        if is_whole or header.codec is bytes:
            yield count, _unpack(header, packed)
        if not is_whole:
            raise CaptureError("the Avro container ends early, in the middle of a block")
        if _read_exactly(stream, 16) != header.sync:
            raise CaptureError("the Avro container is damaged: a block does not end where it should")


def _unpack(header: _Header, packed: bytes) -> bytes:
    try:
        return header.codec(packed)
    except _DAMAGE as error:
        raise CaptureError(f"a block of the Avro container is damaged ({error})") from error


def _read_exactly(stream: io.BufferedReader, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise CaptureError("the Avro container ends early")
    return data


def _read_long(stream: io.BufferedReader) -> int:
    """Read Avro's zigzag number of at most ten bytes."""
    number = 0
    for shift in range(0, 70, 7):
        byte = _read_exactly(stream, 1)[0]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1)
    raise CaptureError("the Avro container is damaged: a number has no end")


def _choose(schema: Any, reading: Reading) -> _ToMessage:
    """Choose what a record stands for, by the writer schema."""
    match schema:
        case "bytes" | {"type": "bytes"}:
            return lambda record, _: Message(record)
        case {"type": "record", "fields": list(fields)} if _is_pubsub(fields):
            return _from_pubsub
    if reading.schemas is None:
        raise UsageError("the records of this Avro container are messages themselves: reading it needs a schema store")
    prefix = b"\0" + reading.schemas.add(schema).to_bytes(4, "big")
    return lambda _, body: Message(prefix + body)


def _is_pubsub(fields: list[Any]) -> bool:
    types = {field.get("name"): field.get("type") for field in fields if isinstance(field, dict)}
    if not types.keys() <= _PUBSUB_FIELDS:
        return False
    data = types.get("data")
    return all(branch in ("bytes", "string", "null") for branch in (data if isinstance(data, list) else [data]))


def _from_pubsub(record: Any, _: bytes) -> Message:
    """Read a record as a Cloud Storage subscription writes it.

    With metadata, "all other message properties (for example, an ordering_key) are added as entries in the attributes
    map" (google.pubsub.v1.CloudStorageConfig.AvroConfig.write_metadata).
    """
    data = record["data"] or b""
    attributes = record.get("attributes") or {}
    in_attributes = attributes.pop("ordering_key", "")
    return Message(
        data.encode() if isinstance(data, str) else data,
        attributes or NO_ATTRIBUTES,
        record.get("ordering_key") or in_attributes,
        record.get("message_id") or "",
        _read_time(record.get("publish_time")),
    )


def _read_time(micros: int | None) -> datetime | None:
    try:
        return None if micros is None else _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None
