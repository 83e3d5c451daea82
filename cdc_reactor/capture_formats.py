"""The text formats of captures: unpacked bytes in, Messages out, in order and one at a time.

A line that cannot be used is handed out as `Unreadable` and reading goes on. `values` is the fast path: its lines are
not looked into, for they are message bodies and the decoder will. Avro containers are in capture_avro; the format is
recognised in capture_recognition.
"""

from __future__ import annotations

import binascii
import io
import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from cdc_reactor.capture_bytes import CaptureError
from cdc_reactor.errors import DecodeError, UsageError
from cdc_reactor.messages import NO_ATTRIBUTES, Message
from cdc_reactor.schemas import SchemaStore

MAX_DOCUMENT_BYTES = 256 * 1024 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unreadable(msgspec.Struct, frozen=True):
    """What stands in a capture where a Message should; `data` is exactly what stands there."""

    data: bytes
    error: DecodeError


Element: TypeAlias = Message | Unreadable


@dataclass(slots=True)
class Reading:
    """One passage through a capture: what its reader is given, and how far it came.

    `blank_lines` holds the numbers of the lines that hold no message, in order; eight bytes for each of them.
    """

    name: str
    schemas: SchemaStore | None = None
    unit: str = "line"
    count: int = 0
    blank_lines: array[int] = field(default_factory=lambda: array("Q"))

    def place(self, n: int) -> str:
        """Say where the n-th element stands, counted from 1."""
        if self.unit != "line":
            return f"{self.name}: {self.unit} {n}"
        blanks = bisect_left(range(len(self.blank_lines)), n, key=lambda i: self.blank_lines[i] - i - 1)
        return f"{self.name}:{n + blanks}"


Reader: TypeAlias = Callable[[io.BufferedReader, Reading], Iterator[Element]]


def read_values(lines: io.BufferedReader, reading: Reading) -> Iterator[Message]:
    """Read one message body a line, as it stands there without its line end."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            # One comparison: white space sorts before "!", and what JSON starts with after it.
            if line > b"!" or not line.isspace():
                yield Message(line.rstrip(b"\r\n"))
            else:
                reading.blank_lines.append(number)
    finally:
        reading.count = number


def _by_line(parse: Callable[[bytes], Message]) -> Reader:
    """Make a reader that parses each line that is not blank."""

    def read(lines: io.BufferedReader, reading: Reading) -> Iterator[Element]:
        for number, line in enumerate(lines, 1):
            reading.count = number
            if line.isspace():
                reading.blank_lines.append(number)
                continue
            try:
                message = parse(line)
            except _UNUSABLE as error:
                yield _unreadable(line.rstrip(b"\r\n"), reading, error)
            else:
                yield message

    return read


_UNUSABLE = (DecodeError, msgspec.MsgspecError, UnicodeError)


def _unreadable(data: bytes, reading: Reading, error: Exception) -> Unreadable:
    place = f"{reading.name}:{reading.count}" if reading.unit == "line" else f"{reading.name}: message {reading.count}"
    return Unreadable(data, DecodeError(f"{place}: {error}"))


class _Record(msgspec.Struct, gc=False):
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    key: msgspec.Raw = msgspec.Raw(b"null")
    topic: str | None = None
    destination: str | None = None
    headers: Any = None
    partition: int | None = None
    offset: int | None = None
    ts: Any = None
    timestamp: Any = None


_record_decoder = msgspec.json.Decoder(_Record)


def parse_record(line: bytes) -> Message:
    """Read a Kafka record: `{"topic", "key", "value", "headers", …}`; `kcat -J` has `payload` for the value."""
    record = _record_decoder.decode(line)
    topic = record.topic or record.destination or ""
    value = record.value
    if value is msgspec.UNSET and topic:
        value = record.payload
    if value is msgspec.UNSET:
        raise DecodeError("a record without `value`")
    attributes = _read_headers(record.headers)
    if topic:
        attributes.setdefault("destination", topic)
    located = topic and record.partition is not None and record.offset is not None
    return Message(
        _read_value(bytes(value)),
        attributes or NO_ATTRIBUTES,
        _read_key(bytes(record.key)),
        f"{topic}/{record.partition}/{record.offset}" if located else "",
        _read_time(record.timestamp if record.ts is None else record.ts),
    )


def _read_value(raw: bytes) -> bytes:
    """Return the body that a record's value stands for: objects as they stand, null for a tombstone, or text."""
    if raw == b"null":
        return b""
    return raw if raw[:1] != b'"' else _read_text(msgspec.json.decode(raw, type=str))


def _read_text(text: str) -> bytes:
    """Tell JSON text from base64 by its content: base64 has no brace and no quote."""
    if not text or text.lstrip()[:1] in {"{", '"', "["}:
        return text.encode()
    data = _from_base64(text)
    if data[:1] != b"\0":
        _check_json(data)
    return data


def _check_json(data: bytes) -> None:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except msgspec.MsgspecError as error:
        raise DecodeError("a value in base64 that is neither Avro in wire format nor JSON") from error


def _read_key(raw: bytes) -> str:
    """Return the ordering key: the text of a string, and everything else exactly as it was written."""
    if raw == b"null":
        return ""
    return msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode()


def _read_headers(headers: Any) -> dict[str, str]:
    """Read headers as pairs, as `{"key", "value"}`, as one object, or flat as kcat writes them: k, v, k, v."""
    match headers:
        case None:
            return {}
        case dict():
            pairs: Sequence[Any] = list(headers.items())
        case [str(), *_] if len(headers) % 2 == 0:
            pairs = list(zip(headers[::2], headers[1::2], strict=True))
        case list():
            pairs = [_read_header(header) for header in headers]
        case _:
            raise DecodeError("headers that are neither a list nor an object")
    return {str(key): value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in pairs}


def _read_header(header: Any) -> tuple[Any, Any]:
    match header:
        case [key, value]:
            return key, value
        case {"key": key, "value": value}:
            return key, value
    raise DecodeError("a header that is neither a pair nor an object of `key` and `value`")


def _read_time(value: Any) -> datetime | None:
    """Read milliseconds since 1970 or RFC 3339; what is neither, or Kafka's -1, is no time at all."""
    try:
        match value:
            case str():
                moment = datetime.fromisoformat(value)
                return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            case int() | float() if value >= 0:
                return _EPOCH + timedelta(milliseconds=value)
    except (ValueError, OverflowError):
        pass
    return None


def _from_base64(text: str | bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"neither JSON nor base64: {error}") from error


def parse_avro_line(line: bytes) -> Message:
    """Read a value in Avro's wire format (a zero byte, a schema id, a body), in base64."""
    data = _from_base64(line.strip())
    if data[:1] != b"\0":
        raise DecodeError("base64 that holds no Avro in wire format: its first byte is not zero")
    return Message(data)


class _PubsubMessage(msgspec.Struct, rename="camel", gc=False):
    """A `PubsubMessage` as Google's REST interface and tools write it."""

    data: str | None = None
    attributes: dict[str, str] | None = None
    message_id: str = ""
    publish_time: str | None = None
    ordering_key: str = ""

    def to_message(self) -> Message:
        # gcloud has written both alphabets of base64.
        data = _from_base64((self.data or "").replace("-", "+").replace("_", "/"))
        time = _read_time(self.publish_time)
        return Message(data, self.attributes or NO_ATTRIBUTES, self.ordering_key, self.message_id, time)


class _Pulled(msgspec.Struct, gc=False):
    message: _PubsubMessage


_pulled_decoder = msgspec.json.Decoder(_Pulled)


def parse_pulled(line: bytes) -> Message:
    """Read an object that holds a `message`: one pulled by gcloud, or one of our dead letters."""
    return _pulled_decoder.decode(line).message.to_message()


def read_pulled(stream: io.BufferedReader, reading: Reading) -> Iterator[Element]:
    """Read what `gcloud pubsub subscriptions pull --format=json` writes: arrays, or one object a line."""
    head = stream.peek().lstrip()
    if head[:1] == b"{" and head.partition(b"\n")[0].rstrip() != b"{":
        yield from _by_line(parse_pulled)(stream, reading)
        return
    reading.unit = "message"
    for item in _items(_read_document(stream)):
        reading.count += 1
        try:
            message = msgspec.convert(item, _Pulled).message.to_message()
        except (msgspec.MsgspecError, DecodeError) as error:
            yield _unreadable(json.dumps(item).encode(), reading, error)
        else:
            yield message


def _read_document(stream: io.BufferedReader) -> str:
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UsageError("one JSON document of more than 256 MiB: write one object a line, with `jq -c '.[]'`")
    return data.decode(errors="replace")


def _items(document: str) -> Iterator[Any]:
    """Hand out the objects of JSON arrays, one at a time, so that a cut document gives what comes before the cut.

    Several arrays in one file, as `gcloud … >> FILE` leaves them, are read as one.
    """
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,\[\]]*")
    document = document.strip()
    at = 0
    while (at := between.match(document, at).end()) < len(document):  # type: ignore[union-attr] # it matches nothing, too
        try:
            item, at = decoder.raw_decode(document, at)
        except ValueError as error:
            raise CaptureError(f"the JSON document is cut or damaged ({error})") from error
        yield item
    if document[:1] == "[" and document[-1] != "]":
        raise CaptureError("the JSON document ends early")


TEXT_FORMATS: Mapping[str, Reader] = {
    "values": read_values,
    "records": _by_line(parse_record),
    "avro-base64": _by_line(parse_avro_line),
    "gcloud": read_pulled,
    "gcs-text": read_values,
    "dead-letters": _by_line(parse_pulled),
}
