"""Which format a capture has, told by its first bytes; never by its name."""

from __future__ import annotations

import binascii
from collections.abc import Iterator

import msgspec

MAX_HEAD_BYTES = 16 * 1024 * 1024

_AVRO_MAGIC = b"Obj\x01"
_LINES_LOOKED_AT = 20
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def recognise(head: bytes) -> str | None:
    """Return the name of the format, None when it is none that we know.

    `head` is the start of the unpacked bytes, with at least the first line that is not blank. The first line that can
    be told decides, so that a damaged first line does not hide what the others are.
    """
    if head.startswith(_AVRO_MAGIC):
        return "avro"
    text = head.lstrip()
    if text[:1] == b"[" or (_is_open_object(text) and b'"ackId"' in text):
        return "gcloud"
    told = next(filter(None, map(_recognise_line, _lines(text))), None)
    if told is None and text[:1] == b"{" and not is_document(head):
        return "values"
    return told


def is_document(head: bytes) -> bool:
    """Tell whether this is one JSON document of no capture form: a manifest, a schema, a registry."""
    text = head.lstrip()
    if text[:1] == b"[":
        return b'"message"' not in text and text.rstrip() != b"[]"
    first = next(_lines(text), b"")
    if (fields := _fields(first)) is not None:
        return bool({"schemas_by_id", "subjects"} & fields.keys()) or {"type", "name", "fields"} <= fields.keys()
    if b'"ackId"' in text or any(map(_recognise_line, _lines(text))):
        return False
    return _is_open_object(text) or (text[:1] == b"{" and any(line[:1] in b" \t" for line in _lines(text)))


def _is_open_object(text: bytes) -> bool:
    """Tell whether the first line is a brace and nothing else, as pretty printers begin."""
    return text.partition(b"\n")[0].rstrip() == b"{"


def _lines(text: bytes) -> Iterator[bytes]:
    lines = text.split(b"\n", _LINES_LOOKED_AT)[:_LINES_LOOKED_AT]
    return (line.rstrip(b"\r") for line in lines if line and not line.isspace())


def _fields(line: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _fields_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _recognise_line(line: bytes) -> str | None:
    # Lines of a pretty-printed document are indented; messages are not.
    if line[:1] in b" \t":
        return None
    fields = _fields(line)
    if fields is not None:
        return _recognise_fields(fields)
    if line == b"null" or (line[:1] == b'"' and line[-1:] == b'"'):
        return "values"
    return "avro-base64" if _is_wire_avro(line) else None


def _recognise_fields(fields: dict[str, msgspec.Raw]) -> str:
    names = fields.keys()
    if {"dead_letter", "message"} <= names:
        return "dead-letters"
    if "op" in names or (names == {"schema", "payload"}):
        return "values"
    if "message" in names and _is_pulled(fields):
        return "gcloud"
    if "value" in names and names & {"topic", "destination", "key"}:
        return "records"
    return "records" if {"payload", "topic"} <= names else "values"


def _is_pulled(fields: dict[str, msgspec.Raw]) -> bool:
    message = _fields(bytes(fields["message"]))
    return message is not None and ("ackId" in fields or bool(message.keys() & {"data", "attributes", "messageId"}))


def _is_wire_avro(line: bytes) -> bool:
    try:
        return binascii.a2b_base64(line, strict_mode=True)[:1] == b"\0"
    except (binascii.Error, ValueError):
        return False
