"""A settlement that gives a delivery up → the message that goes to the dead-letter topic.

The letter is the message as it was published, byte for byte, with its ordering key, plus attributes that say what
failed and where. Whoever publishes it acknowledges the delivery only once the broker has confirmed the letter.
Neighbours: `consumer` publishes; `outputs` keeps letters of a replay in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope, Lsn
from cdc_reactor.errors import ReactorError, RemoteFailure
from cdc_reactor.execution import place_of
from cdc_reactor.messages import Message, Settlement

#: What all attributes of ours begin with.
PREFIX = "cdc_"

# What a message that was given up, sent again and given up once more keeps of the first time.
_OF_THE_FIRST = frozenset({"message_id", "publish_time", "first_failure"})
# https://cloud.google.com/pubsub/quotas#resource_limits
_MAX_ATTRIBUTES = 100
_MAX_VALUE_BYTES = 1024


class Circumstances(msgspec.Struct, frozen=True):
    """What is known of a failure beside its settlement; times are Unix seconds."""

    subscription: str
    first_failure: float
    last_failure: float


def letter(settlement: Settlement, decoder: Decoder | None, circumstances: Circumstances) -> Message:
    """Write the dead letter of a delivery that was given up; without a decoder it is of no table."""
    message = settlement.delivery.message
    attributes = dict(message.attributes)
    for name, value in _reasons(settlement, decoder, circumstances):
        key = PREFIX + name
        if name in _OF_THE_FIRST and key in attributes:
            # It was given up before and sent again: what it is known by stays.
            continue
        # The sender's own attributes come first: a letter that is sent again must be the message that it was.
        if value and (key in attributes or len(attributes) < _MAX_ATTRIBUTES):
            attributes[key] = _shortened(value)
    return Message(message.data, attributes, message.ordering_key)


def without_reasons(message: Message) -> Message:
    """Leave of a letter's reasons the class of the error only, for a message that has no room for more."""
    kept = PREFIX + "error_class"
    attributes = {k: v for k, v in message.attributes.items() if k == kept or not k.startswith(PREFIX)}
    return Message(message.data, attributes, message.ordering_key)


def _reasons(
    settlement: Settlement, decoder: Decoder | None, circumstances: Circumstances
) -> Iterator[tuple[str, str]]:
    """Name what is told, the most important first."""
    message = settlement.delivery.message
    table, lsn = _place_in_database(message, decoder)
    yield "error_class", error_class(settlement.error)
    yield "error", settlement.reason
    yield "fingerprint", fingerprint(settlement, table)
    yield "handler", settlement.handler
    yield "table", table
    yield "lsn", lsn
    yield "attempts", str(settlement.attempts) if settlement.attempts else ""
    yield "first_failure", _written(circumstances.first_failure)
    yield "last_failure", _written(circumstances.last_failure)
    yield "subscription", circumstances.subscription
    yield "message_id", message.message_id
    yield "publish_time", message.publish_time.isoformat() if message.publish_time is not None else ""


def error_class(error: BaseException | None) -> str:
    """Name an error's class, also one that happened in another process; empty where there is none."""
    if error is None:
        return ""
    return error.error_class if isinstance(error, RemoteFailure) else type(error).__name__


def fingerprint(settlement: Settlement, table: str) -> str:
    """Give the same 12 digits to all failures of one cause: handler, table, class and line of the error."""
    error = settlement.error
    place = place_of(error) if error is not None else ""
    cause = "\0".join((settlement.handler, table, error_class(error), place))
    return hashlib.sha256(cause.encode()).hexdigest()[:12]


def _place_in_database(message: Message, decoder: Decoder | None) -> tuple[str, str]:
    if decoder is None:
        return "", ""
    try:
        envelope = decoder.decode(message)
    except ReactorError:
        return "", ""
    if type(envelope) is not Envelope:
        return "", ""
    lsn = envelope.source.lsn
    return str(envelope.source.table_id), str(Lsn(lsn)) if isinstance(lsn, int) else ""


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _shortened(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= _MAX_VALUE_BYTES:
        return data.decode()
    return data[: _MAX_VALUE_BYTES - 3].decode(errors="ignore") + "…"
