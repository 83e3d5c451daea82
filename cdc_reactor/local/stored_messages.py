"""A message as the broker keeps it: the bytes that go out, and the little that decides where. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cdc_reactor.local import wire


class StoredMessage:
    """A published message, shared by all the subscriptions that hold it.

    `frame` is the serialised PubsubMessage behind its tag and length in a ReceivedMessage; its last `stamp_size` bytes
    are the message id and publish time. `holders` counts backlogs, retentions and snapshots that still need it.
    """

    __slots__ = ("frame", "holders", "key", "published", "seq", "size_bytes", "stamp_size")

    def __init__(self, seq: int, body: bytes, *, stamp: bytes, published: float, key: str) -> None:
        size = len(body) + len(stamp)
        self.seq = seq
        self.frame = b"".join((b"\x12", wire.varint(size), body, stamp))
        self.stamp_size = len(stamp)
        self.size_bytes = size
        self.published = published
        self.key = key
        self.holders = 0

    def __repr__(self) -> str:
        return f"StoredMessage({self.seq})"

    @property
    def message_id(self) -> str:
        """The id that publishers and subscribers see."""
        return str(self.seq)

    @property
    def body(self) -> bytes:
        """The PubsubMessage as it was published: data, attributes, ordering key."""
        return self.frame[len(self.frame) - self.size_bytes : -self.stamp_size]

    def attributes(self) -> Mapping[str, str]:
        """Read the attributes out of the bytes."""
        return wire.read_attributes(self.body)
