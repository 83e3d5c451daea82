"""Bytes → Envelope, or the reason why a message is no change.

The common forms, Debezium's JSON with and without its schema block, are parsed in one pass by a typed msgspec struct
that names only what routing needs and keeps `before` and `after` raw. Everything else takes the slow road: a full
untyped parse that `forms` classifies. Whatever is wrong with the bytes leaves `Decoder.decode` as DecodeError and as
nothing else.

The schema block is four fifths of a message and the same for all messages of a table. Its bytes, once parsed, are
remembered with what was compiled from them: a message that begins with the same bytes is parsed from there on (measured
on the forum captures, not in cache: 1.6 µs against 2.6 µs). On any doubt the whole message is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec import Raw

from cdc_reactor.avro import NAMED, AvroReader, Schemas
from cdc_reactor.columns import Placeholder
from cdc_reactor.envelope import BAD_BYTES, Drop, Envelope, RowSchema, RowSchemas
from cdc_reactor.errors import DecodeError
from cdc_reactor.forms import FormReader
from cdc_reactor.messages import NO_ATTRIBUTES, Message

#: Anything larger is refused unread; Pub/Sub's own limit for a message is 10 MB, Kafka's is configurable.
MAX_BYTES = 64 * 1024 * 1024


class _WithSchema(msgspec.Struct, kw_only=True, gc=False):
    schema: Raw
    payload: Envelope


_parse_envelope = msgspec.json.Decoder(Envelope).decode
_parse_with_schema = msgspec.json.Decoder(_WithSchema).decode

_SCHEMA_FIRST = b'{"schema":'
_S = ord("s")
# What the fast road raises for what is not its own; IndexError for less than three bytes.
NOT_PLAIN = (*BAD_BYTES, IndexError)
# Where, in the bytes of a schema block, the first columns stand: tables that differ mostly differ there.
_TELLTALE = slice(72, 264)
_MAX_PREFIXES = 4096


class _Prefix(NamedTuple):
    start: bytes
    size: int
    schema: RowSchema


class Decoder:
    """Decodes messages of every form that Debezium has; not thread-safe, one for each reactor.

    `schemas` finds Avro writer schemas, `unwrapped_prefix` is what the ExtractNewRecordState transform puts before the
    fields that it adds (`add.fields.prefix`), `placeholder` what stands for a column that was not sent. Messages of
    more than `max_bytes` are refused unread.

    Raises:
        UsageError: the prefix is empty, so nothing tells what was added from the row's own columns.
    """

    def __init__(
        self,
        *,
        schemas: Schemas | None = None,
        placeholder: Placeholder | None = None,
        unwrapped_prefix: str = "__",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.placeholder = placeholder or Placeholder()
        self._row_schemas = RowSchemas(self.placeholder)
        self._forms = FormReader(AvroReader(schemas, self.placeholder), self._row_schemas, unwrapped_prefix)
        self.max_bytes = max_bytes
        self._prefixes: dict[bytes, list[_Prefix]] = {}
        self._known = 0

    def decode(self, message: Message) -> Envelope | Drop:
        """Tell what a message says happened.

        Raises:
            DecodeError: the bytes are no event of Debezium's.
            WorldError: a schema registry that is needed to read them does not answer.
        """
        data = message.data
        if len(data) > self.max_bytes:
            raise DecodeError(
                f"{len(data):,} bytes in one message, more than the limit of {self.max_bytes:,}; raise --max-bytes"
            )
        try:
            # The third byte tells {"schema":… from {"before":…; whatever else has an "s" there is told apart below.
            if data[2] == _S:
                envelope = self._decode_with_schema(data)
                envelope.keep(data)
                return envelope
            # Avro in JSON looks like a plain envelope; it says of each optional value which type it has.
            if message.attributes is NO_ATTRIBUTES or NAMED not in message.attributes:
                envelope = _parse_envelope(data)
                envelope.keep(data)
                return envelope
        except NOT_PLAIN:
            pass
        return self._forms.classify(message)

    def fast_road(self, first: bytes) -> Callable[[bytes], Envelope]:
        """Return the parser for messages that begin as this one does; it reads others that are plain as well.

        It raises DecodeError or one of NOT_PLAIN for what only `decode` can tell. What it does read, `decode` reads in
        the same way, unless it is longer than `max_bytes` or an attribute names an Avro schema. The caller must see to
        it that the envelope, or the change made of it, keeps the message.
        """
        return self._decode_plain if first[2:3] == b"s" else _parse_envelope

    def _decode_plain(self, data: bytes) -> Envelope:
        return self._decode_with_schema(data) if data[2] == _S else _parse_envelope(data)

    def _decode_with_schema(self, data: bytes) -> Envelope:
        for prefix in self._prefixes.get(data[_TELLTALE], ()):
            if data.startswith(prefix.start) and data.endswith(b"}"):
                payload = data[prefix.size : -1]
                try:
                    envelope = _parse_envelope(payload)
                except BAD_BYTES:
                    break
                envelope.row_schema = prefix.schema
                envelope.keep(payload)
                return envelope
        try:
            whole = _parse_with_schema(data)
        except msgspec.ValidationError:
            # Well-formed, but no wrapper: it may be an envelope all the same, whose first field is another with an "s".
            return _parse_envelope(data)
        whole.payload.row_schema = self._remember(data, bytes(whole.schema))
        return whole.payload

    def _remember(self, data: bytes, block: bytes) -> RowSchema | None:
        """Compile a schema block, and know it again when a message starts with the same bytes."""
        schema = self._row_schemas.of_text(block)
        start = _SCHEMA_FIRST + block + b',"payload":'
        if schema is not None and data.startswith(start):
            if self._known >= _MAX_PREFIXES:
                self._prefixes.clear()
                self._known = 0
            known = self._prefixes.setdefault(data[_TELLTALE], [])
            # A message that the prefix alone could not read (a newline at its end) comes here again and again.
            if all(prefix.start != start for prefix in known):
                known.append(_Prefix(start, len(start), schema))
                self._known += 1
        return schema
