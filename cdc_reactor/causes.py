"""Causes: what a run is handling when it publishes, so that an event has one id however often its cause is handled.

A worker handles a message, a table handler the change that its loop over the batch is at. Debezium publishes changes
again after a restart of its own, with new message ids, so a change is named by its place in the database's log and not
by its message. Nothing is computed until something is published. Pure, and for one run in one thread at a time.
Neighbours: `handlers.Context` asks, `events.derived_id` makes the id, `execution` and `worker_execution` make causes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from cdc_reactor.changes import Batch, Change
from cdc_reactor.events import EVENT_ID, trace_of
from cdc_reactor.messages import NO_ATTRIBUTES, Message
from cdc_reactor.reactor import Held

# The id that a dead letter's message had at first: sent again from there, it is still the same message.
_FIRST_MESSAGE_ID = "cdc_message_id"


# Ours have 32 digits, UUIDs 36 characters, a time-ordered id rarely less than 16.
_SHORTEST_ID = 16


class MessageCause:
    """A message of an application topic: named by its event's id where its publisher gave one, else by its own.

    An attribute `event_id` of somebody else's may be anything, the name of a kind for one; what is short or has no
    digit is not taken for an id.
    """

    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        self._message = message

    def identity(self) -> str:
        """Name it, the same whenever it is handled again; empty where it has no id of either kind."""
        event_id = self._message.attributes.get(EVENT_ID, "")
        return event_id if _is_id(event_id) else _message_id(self._message)

    def trace(self) -> Mapping[str, str]:
        """Return the attributes that carry its trace on."""
        return trace_of(self._message.attributes)


def _is_id(text: str) -> bool:
    return len(text) >= _SHORTEST_ID and any(map(str.isdigit, text))


class BatchCause:
    """A batch of changes, or that one of them which the handler's loop is at.

    While the handler is in `for change in batch`, the cause is that change, before and after it is the whole batch.
    What holds in detail:

    - nested loops: the change of the innermost that still goes on; where it ends, or is left by `break`, the outer's;
    - a loop that is left by `break`, and no other around it: its last change, until a loop begins anew;
    - repeated loops: each as the first. Events of equal contents that one change causes in one run are told apart by
      their number, so what a change publishes should depend on that change only;
    - what takes the changes out at once (`list(batch)`, `sorted`, a slice) or by index: the whole batch. Cut in another
      way, it is another batch: such events get other ids when they are published again, but never those of others.
    """

    __slots__ = ("_held", "_held_of", "_subjects", "_whole", "at", "left_at")

    def __init__(self, held: Sequence[Held], subjects: Sequence[Change[Any]]) -> None:
        self._held = held
        self._subjects = subjects
        self._held_of: dict[int, Held] | None = None
        self._whole: str | None = None
        #: The change of the innermost loop that goes on.
        self.at: Change[Any] | None = None
        #: The change at which the latest loop was left by `break`.
        self.left_at: Change[Any] | None = None

    def batch(self) -> Batch[Any]:
        """Make the batch whose loops this cause follows; equal to a plain one."""
        return _FollowedBatch(self._subjects, self)

    def identity(self) -> str:
        """Name the change or the batch, the same whenever it is handled again; empty where it cannot be told.

        Raises:
            DecodeError: the change's row cannot be read; it names the change.
        """
        if (held := self._current()) is not None:
            return _identity(held)
        if self._whole is None:
            self._whole = _digest([_identity(held) for held in self._held])
        return self._whole

    def trace(self) -> Mapping[str, str]:
        """Return what carries on the trace of the change's own message, or the one that all of the batch share."""
        if (held := self._current()) is not None:
            return trace_of(held.delivery.message.attributes)
        first, *others = [trace_of(held.delivery.message.attributes) for held in self._held]
        return first if all(other == first for other in others) else NO_ATTRIBUTES

    def _current(self) -> Held | None:
        change = self.left_at if self.at is None else self.at
        if change is None:
            return None
        if self._held_of is None:
            self._held_of = {id(subject): held for subject, held in zip(self._subjects, self._held, strict=True)}
        return self._held_of[id(change)]


class _FollowedBatch(Batch[Any]):
    """A Batch that tells its cause at which change a loop is; it costs 0.04 µs a change."""

    # No __slots__: a tuple's subclass cannot have any.
    _cause: BatchCause

    def __new__(cls, changes: Iterable[Change[Any]], cause: BatchCause) -> Self:
        self = super().__new__(cls, changes)
        self._cause = cause
        return self

    def __iter__(self) -> Iterator[Change[Any]]:
        cause = self._cause
        outer, cause.left_at = cause.at, None
        try:
            for change in tuple.__iter__(self):
                cause.at = change
                yield change
        except GeneratorExit:
            # `break` ends here at once, because nothing but the loop refers to its iterator.
            if outer is None:
                cause.left_at = cause.at
            raise
        finally:
            cause.at = outer

    def __reduce__(self) -> tuple[type[Batch[Any]], tuple[list[Change[Any]]]]:
        return Batch, (list(tuple.__iter__(self)),)


def _identity(held: Held) -> str:
    """Name a change by its place in the log, its operation and its row; empty where it has no place.

    The rows that one COPY or one truncate writes share a log position, so the row must be in it. Debezium Server gives
    all rows without a key the one ordering key "default" (`debezium.sink.pubsub.null.key`): such a row is told apart by
    all of its columns.
    https://debezium.io/documentation/reference/stable/operations/debezium-server.html#_google_cloud_pubsub
    """
    change, message = held.subject, held.delivery.message
    source = change.source
    if source.lsn is not None:
        place = f"lsn {source.lsn}"
    elif message_id := _message_id(message):
        place = f"ts_ms {source.ts_ms} message {message_id}"
    else:
        return ""
    key = change.key
    row = repr(key) if any(value is not None for value in key.values()) else repr(change.columns)
    # ascii quotes, so that no two are written alike, and escapes what UTF-8 cannot write.
    return ascii((source.name, source.schema, source.table, place, change.op.value, message.ordering_key, row))


def _message_id(message: Message) -> str:
    return message.attributes.get(_FIRST_MESSAGE_ID, "") or message.message_id


def _digest(identities: Sequence[str]) -> str:
    """Name all of them together, in their order; empty where one has no name."""
    if not all(identities):
        return ""
    return hashlib.blake2b(ascii(identities).encode(), digest_size=16).hexdigest()
