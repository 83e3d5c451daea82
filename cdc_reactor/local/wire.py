"""Protobuf's wire format where it must be cheap: messages are serialised once and spliced into every response. Pure.

A message is kept as the bytes of a PubsubMessage behind the tag and length that it has inside a ReceivedMessage. Field
numbers: google/pubsub/v1/pubsub.proto. Scalars that stand twice mean the last one, so the broker's own message id and
publish time may follow whatever the publisher wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_HEADS: dict[tuple[int, int], bytes] = {}
_MAX_HEADS = 65_536

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
_ATTRIBUTES = 2


def varint(number: int) -> bytes:
    """Encode a number from 0 up, seven bits a byte."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field (bytes, string, message)."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(content)) + content


def timestamp(seconds: float) -> bytes:
    """Encode a google.protobuf.Timestamp, microseconds kept; both fields always stand, for they overwrite others."""
    micros = round(seconds * 1_000_000)
    return b"\x08" + varint(micros // 1_000_000) + b"\x10" + varint(micros % 1_000_000 * 1000)


def stamp(message_id: str, published: bytes) -> bytes:
    """Encode what the broker adds to a PubsubMessage: its id and publish time (as from `timestamp`)."""
    return field(3, message_id.encode()) + field(4, published)


def attributes(pairs: Mapping[str, str]) -> bytes:
    """Encode attributes of a PubsubMessage; a key that stands twice means the last."""
    return b"".join(field(2, field(1, key.encode()) + field(2, value.encode())) for key, value in pairs.items())


def head(ack_id_size: int, rest: int) -> bytes:
    """Return what stands before an ack id: the tags and lengths of a ReceivedMessage in a response and of its ack id.

    ReceivedMessage is field 1 of both kinds of response; `rest` is the bytes of all that follows the ack id.
    """
    key = ack_id_size, rest
    found = _HEADS.get(key)
    if found is None:
        if len(_HEADS) >= _MAX_HEADS:
            _HEADS.clear()
        ack_id_head = b"\x0a" + varint(ack_id_size)
        found = _HEADS[key] = b"\x0a" + varint(len(ack_id_head) + ack_id_size + rest) + ack_id_head
    return found


def attempt(number: int) -> bytes:
    """Encode a ReceivedMessage's delivery_attempt."""
    return b"\x18" + varint(number)


def read_attributes(message: bytes) -> dict[str, str]:
    """Read the attributes of a serialised PubsubMessage."""
    return dict(_entry(content) for number, content in _fields(message) if number == _ATTRIBUTES)


def _entry(content: bytes) -> tuple[str, str]:
    found = dict(_fields(content))
    return found.get(1, b"").decode(), found.get(2, b"").decode()


def _fields(message: bytes) -> Iterable[tuple[int, bytes]]:
    """Walk over the length-delimited fields, past whatever else a publisher of another version wrote."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, at = _read_varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        else:
            at += _FIXED_SIZES[kind]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
