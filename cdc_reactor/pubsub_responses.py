"""Responses of a streaming pull → deliveries, parsed no further than we look.

The service's own message class makes a map of each message's attributes, which costs more than all else that is read of
a message (a quarter of the daemon's processor time, measured on Debezium's headers). A protobuf map is a repeated
message of key and value on the wire (https://protobuf.dev/programming-guides/encoding/#maps), so a class of our own
leaves its entries as bytes; messages of one connector share nearly always the same ones, which are then parsed once.
Neighbour: `pubsub`, which reads the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor.messages import NO_ATTRIBUTES, Delivery, Message

_MAX_KNOWN = 1_000

_Field = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED

# Numbers and types as in https://github.com/googleapis/googleapis/blob/master/google/pubsub/v1/pubsub.proto;
# `publish_time` is left as bytes, for those who want it; `subscription_properties` are passed over.
_SHAPES: Mapping[str, tuple[tuple[str, int, Any, Any, str], ...]] = {
    "Entry": (("key", 1, _Field.TYPE_STRING, _ONE, ""), ("value", 2, _Field.TYPE_STRING, _ONE, "")),
    "Message": (
        ("data", 1, _Field.TYPE_BYTES, _ONE, ""),
        ("attributes", 2, _Field.TYPE_BYTES, _MANY, ""),
        ("message_id", 3, _Field.TYPE_STRING, _ONE, ""),
        ("publish_time", 4, _Field.TYPE_BYTES, _ONE, ""),
        ("ordering_key", 5, _Field.TYPE_STRING, _ONE, ""),
    ),
    "Received": (
        ("ack_id", 1, _Field.TYPE_STRING, _ONE, ""),
        ("message", 2, _Field.TYPE_MESSAGE, _ONE, "Message"),
        ("delivery_attempt", 3, _Field.TYPE_INT32, _ONE, ""),
    ),
    "Response": (("received_messages", 1, _Field.TYPE_MESSAGE, _MANY, "Received"),),
}
_PACKAGE = "cdc_reactor.pubsub"


def _classes() -> dict[str, Any]:
    """Make the message classes, in a pool of their own: the service's own stand in the default one."""
    file = descriptor_pb2.FileDescriptorProto(name="responses.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _SHAPES.items():
        shape = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            type_name = f".{_PACKAGE}.{of}" if of else None
            shape.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SHAPES}


_CLASSES = _classes()
_parse_entry = _CLASSES["Entry"].FromString

#: Parses the bytes of a StreamingPullResponse; give what it returns to `Deliveries`.
parse_response = _CLASSES["Response"].FromString


class Deliveries:
    """Makes deliveries of responses; not thread-safe. Messages with the same attributes share one mapping of them.

    Without `publish_times` messages have none: reading one costs a sixth of what all else of a message does.
    """

    def __init__(self, *, publish_times: bool = False) -> None:
        self._known: dict[tuple[bytes, ...], Mapping[str, str]] = {}
        self._publish_times = publish_times

    def of(self, response: Any) -> list[Delivery]:
        """Return what a response brought, in its order."""
        known = self._known
        deliveries = []
        for received in response.received_messages:
            message = received.message
            attributes = NO_ATTRIBUTES
            if entries := tuple(message.attributes):
                attributes = known.get(entries) or self._parse(entries)
            deliveries.append(
                Delivery(
                    Message(
                        message.data,
                        attributes,
                        message.ordering_key,
                        message.message_id,
                        _time_of(message.publish_time) if self._publish_times else None,
                    ),
                    received.ack_id,
                    received.delivery_attempt or 1,
                )
            )
        return deliveries

    def _parse(self, entries: tuple[bytes, ...]) -> Mapping[str, str]:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        attributes = {entry.key: entry.value for entry in map(_parse_entry, entries)}
        self._known[entries] = attributes
        return attributes


def _time_of(encoded: bytes) -> datetime:
    return Timestamp.FromString(encoded).ToDatetime(UTC)
