"""Messages as published, deliveries as received, and how each delivery is settled.

These are the words that every transport shares; nothing here knows Pub/Sub, files or handlers. Plain msgspec structs,
because one of each is made for every message (0.06 µs, against 0.78 µs for a frozen dataclass).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import msgspec

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


class Message(msgspec.Struct, frozen=True, gc=False):
    """Data and attributes exactly as published; `data` is empty for a tombstone."""

    data: bytes
    attributes: Mapping[str, str] = NO_ATTRIBUTES
    ordering_key: str = ""
    message_id: str = ""
    publish_time: datetime | None = None


class Delivery(msgspec.Struct, gc=False):
    """One arrival of a Message at us; `ack_id` is opaque and new for each delivery, `attempt` counts from 1."""

    message: Message
    ack_id: Any
    attempt: int = 1


class Verdict(IntEnum):
    """What becomes of a delivery; where handlers disagree the larger wins."""

    ACK = 0
    NACK = 1
    DEAD_LETTER = 2


class Settlement(msgspec.Struct, gc=False):
    """A verdict applied to a delivery; every delivery gets exactly one.

    `reason` says in words why it is no plain acknowledgement of work done; `error` is the exception behind it, if any.
    """

    delivery: Delivery
    verdict: Verdict
    reason: str = ""
    error: BaseException | None = None
    handler: str = ""
    attempts: int = 0
