"""Bytes of any kind: the decoder, rows and changes raise what they promise and nothing else, and all roads agree.

Two generators: hypothesis, which shrinks what it finds, and a corpus of all captured and rarer forms, mutated byte by byte
and value by value. A failure of the second prints chunk and number; both are made again by `Mutations(chunk)`. The number
of mutations is CDC_REACTOR_FUZZ, 200,000 by default.
"""

from __future__ import annotations

import json
import os
import random
import re
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from struct import pack
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_reactor.changes import CHANGE_OF, Row, RowReader
from cdc_reactor.columns import Base64Bytes, DecimalBytes, Infinity, IsoText, MicroTimestamp, Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Drop, Envelope, Source, read_image
from cdc_reactor.errors import DecodeError, DefinitionError, SenderError
from cdc_reactor.messages import NO_ATTRIBUTES, Message
from cdc_reactor.schemas import read_schemas

CAPTURES = Path(__file__).parent / "captures"
MUTATIONS = int(os.environ.get("CDC_REACTOR_FUZZ", "200000"))
CHUNKS = 8

SCHEMAS = read_schemas(CAPTURES / "forum_avro.registry.json")
PLACEHOLDER = Placeholder()


class User(Row, table="public.users"):
    id: int
    handle: str
    email: str | None
    karma: int | None
    joined: datetime | Infinity | IsoText | None


class Post(Row, table="public.posts"):
    id: int
    title: str | None
    body: str | None
    tags: list[str | None] | None
    meta: str | None
    score: Annotated[Decimal, DecimalBytes(2)] | None
    published: date | None


class Comment(Row, table="public.comments", identity="full"):
    id: int
    post: int | None
    text: str | None


class Vote(Row, table="public.votes", key=("post", "voter"), identity="default"):
    post: int
    voter: int
    value: float | None


class Visit(Row, table="public.visits"):
    at: MicroTimestamp | Infinity | IsoText | None
    page: Any


class Thing(Row, table="public.things", key=("key",)):
    key: bool | int | str
    data: Base64Bytes | None = None
    more: dict[str, Any] | list[Any] | None = None


READERS: dict[str, RowReader[Any]] = {
    model.table_id.table: RowReader(model, PLACEHOLDER) for model in (User, Post, Comment, Vote, Visit, Thing)
}


def fresh() -> Decoder:
    return Decoder(schemas=SCHEMAS, placeholder=PLACEHOLDER)


def told(decoder: Decoder, message: Message) -> Any:
    """Everything that a decoder says of a message; raises only what nobody promised."""
    try:
        decoded = decoder.decode(message)
    except DecodeError as error:
        return str(error)
    if type(decoded) is Drop:
        return decoded
    assert type(decoded) is Envelope
    schema = decoded.schema
    compiled = schema and (list(schema.converters), schema.defaults)
    return decoded.op, decoded.source, image(decoded.before), image(decoded.after), compiled


def image(raw: Any) -> Any:
    try:
        return read_image(raw)
    except DecodeError as error:
        return str(error)


def are_same(one: Any, other: Any) -> bool:
    # NaN from Avro is not equal to itself, but looks like it.
    return bool(one == other) or repr(one) == repr(other)


def use(envelope: Envelope) -> None:
    """Do with a change all that a handler may; raises only what nobody promised."""
    kind = CHANGE_OF.get(envelope.op)
    if kind is None:
        return
    change = kind(envelope, READERS.get(envelope.source.table, READERS["things"]))
    for ask in (
        lambda: change.after,  # type: ignore[attr-defined]
        lambda: change.before,  # type: ignore[attr-defined]
        lambda: change.columns,
        lambda: change.key,
        lambda: change.changed_columns,
        lambda: change.is_changed("id"),
        lambda: change.committed_at,
        lambda: (change.lsn, change.table_id, repr(change)),
    ):
        with suppress(SenderError, DefinitionError):
            ask()


def check(message: Message, warm: Decoder) -> str:
    """Hold every promise for one message; returns what it was."""
    new, old = told(fresh(), message), told(warm, message)
    assert are_same(new, old), (new, old)
    if isinstance(new, tuple):
        envelope = warm.decode(message)
        assert isinstance(envelope, Envelope)
        use(envelope)
        return "envelope"
    return "drop" if isinstance(new, Drop) else "refused"


# ── the corpus ──────────────────────────────────────────────────────────────────────────────────────────────────────

_SOURCE = {"name": "forum", "ts_ms": 1795443309471, "schema": "public", "table": "users", "lsn": 25757392}
_USER = {"id": 1, "handle": "ada", "email": None, "karma": 5, "joined": "2026-11-23T14:15:07.052913Z"}
_RARE: list[Any] = [
    None,
    {"schema": None, "payload": None},
    {"op": "u", "source": _SOURCE, "before": _USER, "after": {**_USER, "handle": "__debezium_unavailable_value"}},
    {"op": "c", "source": {"db": "shop", "table": "things", "name": "m", "ts_ms": "5"}, "after": {"key": "k", "data": "AA=="}},
    {"op": "u", "source": {"db": "shop", "collection": "users", "name": "m"}, "after": json.dumps(_USER)},
    {**_USER, "__op": "d", "__table": "users", "__schema": "public", "__lsn": 1, "__deleted": "true"},
    {"schema": {"type": "struct", "name": "forum.public.users.Value", "fields": [{"type": "bytes", "field": "handle"}]},
     "payload": {**_USER, "__op": "c", "__table": "users", "__schema": "public"}},
    {"id": "1", "source": "/debezium", "specversion": "1.0", "type": "t", "datacontenttype": "application/json",
     "iodebeziumop": "u", "iodebeziumname": "forum", "iodebeziumschema": "public", "iodebeziumtable": "users",
     "iodebeziumtsms": "1795443309471", "iodebeziumlsn": "25757392", "data": {"before": _USER, "after": _USER}},
    {"id": "1", "source": "/debezium", "specversion": "1.0", "type": "t", "data": {"op": "c", "source": _SOURCE, "after": _USER}},
    {"id": "1", "source": "/debezium", "specversion": "1.0", "type": "t", "datacontenttype": "application/avro",
     "iodebeziumop": "c", "iodebeziumtable": "users", "iodebeziumschema": "public", "data": "AAAAAAMC"},
    {"source": _SOURCE, "databaseName": "forum", "ddl": "DROP TABLE users", "tableChanges": []},
    {"id": "1", "aggregate_type": "Initial Snapshot", "type": "STARTED", "additional_data": {}, "timestamp": 1},
    '{"order": 1}',
]  # fmt: skip


def bodies() -> list[bytes]:
    """Return every captured body in each of its forms, and the rarer forms; Avro's last."""
    lines = [
        line
        for name in ("forum_schemas_off", "forum_schemas_on", "forum_one_topic")
        for line in (CAPTURES / f"{name}.values.ndjson").read_bytes().splitlines()
    ]
    rare = [json.dumps(value, separators=(",", ":")).encode() for value in _RARE]
    avro = [b64decode(line) for line in (CAPTURES / "forum_avro.values.b64").read_bytes().splitlines()]
    # 70 of the lines are heartbeats and markers: a few of each will do.
    small = [line for line in lines if len(line) < 700 and b'"source"' not in line]
    return [line for line in lines if line not in small] + small[::12] + rare * 4 + avro


CORPUS = bodies()
WARMING = [Message(body) for body in CORPUS]
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+0-9.eE]+|true|false|null|[\[\]{}]')


def spans(body: bytes) -> list[tuple[int, int]]:
    """Return where the values and the names of a JSON text stand, objects and arrays as a whole too."""
    found, opened = [], []
    if body[:1] == b"\x00":
        return []
    for token in _TOKEN.finditer(body):
        if token[0] in b"[{":
            opened.append(token.start())
        elif token[0] in b"]}":
            found.append((opened.pop(), token.end()))
        else:
            found.append(token.span())
    return found


SPANS = [spans(body) for body in CORPUS]
SPECIAL = [
    b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"1.5", b'""', b"{}", b"[]", b'"x"', b"[null]", b'[""]', b"NaN",
    b"Infinity", b"1e400", b"-1e999", b"1e-999", b"9" * 19, b"9" * 30, b"-" + b"9" * 4301, b"9" * 6000, b'"' + b"9" * 400 + b'"',
    b'"\\ud800"', b'"\xff"', b'"\\u0000"', b'"\xc3\x28"', b'"__debezium_unavailable_value"', b'"op"', b'"source"', b'"before"',
    b'"after"', b'"schema"', b'"payload"', b'"fields"', b'"type"', b'"field"', b'"default"', b'"struct"', b'"bytes"', b'"array"',
    b'"map"', b'"items"', b'"name"', b'"parameters"', b'"c"', b'"u"', b'"d"', b'"t"', b'"m"', b'"r"', b'"io.debezium.time.Date"',
    b'"org.apache.kafka.connect.data.Decimal"', b'"io.debezium.data.VariableScaleDecimal"', b'"io.debezium.connector.common.Heartbeat"',
    b'"io.debezium.time.ZonedTimestamp"', b'"<row schema>"', b'"__op"', b'"__table"', b'"data"', b'"specversion"', b"[" * 40 + b"]" * 40,
    b"[" * 900 + b"]" * 900, b"[" * 3000, b'{"a":' * 990 + b"1" + b"}" * 990, b'{"type":"struct","fields":[]}', b'{"scale":1,"value":"AQ=="}',
]  # fmt: skip
ATTRIBUTES = [
    *[NO_ATTRIBUTES] * 40,
    {"id": "1"},
    {"destination": "outbox.event.x"},
    {"googclient_schemaname": "projects/p/schemas/forum", "googclient_schemaencoding": "JSON"},
    {"googclient_schemaname": "projects/p/schemas/forum"},
]


class Mutations:
    """An endless number of messages, the same for each chunk."""

    def __init__(self, chunk: int) -> None:
        self.chance = random.Random(f"chunk {chunk}")
        wounds = [self.flip, self.delete, self.insert, self.truncate, self.splice, self.repeat]
        self._wounds = wounds
        self._kinds = [*wounds, *[self.special, self.swap, self.transplant, self.number] * 4]

    def __iter__(self) -> Iterator[Message]:
        while True:
            index = self.chance.randrange(len(CORPUS))
            kind = self.chance.choice(self._kinds)
            body = kind(CORPUS[index], SPANS[index])
            if self.chance.random() < 0.1:
                body = self.chance.choice(self._wounds)(body, [])
            yield Message(body, self.chance.choice(ATTRIBUTES))

    def _range(self, body: bytes, longest: int = 40) -> tuple[int, int]:
        start = self.chance.randrange(len(body) + 1)
        return start, min(len(body), start + self.chance.randint(1, longest))

    def flip(self, body: bytes, _: Any) -> bytes:
        changed = bytearray(body)
        for _ in range(self.chance.choice((1, 1, 1, 2, 8)) if body else 0):
            changed[self.chance.randrange(len(body))] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def delete(self, body: bytes, _: Any) -> bytes:
        start, end = self._range(body)
        return body[:start] + body[end:]

    def insert(self, body: bytes, _: Any) -> bytes:
        start = self.chance.randrange(len(body) + 1)
        new = (
            self.chance.choice(SPECIAL)
            if self.chance.random() < 0.5
            else self.chance.randbytes(self.chance.randint(1, 9))
        )
        return body[:start] + new + body[start:]

    def truncate(self, body: bytes, _: Any) -> bytes:
        start = self.chance.randrange(len(body) + 1)
        return body[:start] if self.chance.random() < 0.8 else body[start:]

    def splice(self, body: bytes, _: Any) -> bytes:
        other = self.chance.choice(CORPUS)
        if self.chance.random() < 0.5:
            middle = self.chance.randrange(min(len(body), len(other)) + 1)
            return body[:middle] + other[middle:]
        return body[: self.chance.randrange(len(body) + 1)] + other[self.chance.randrange(len(other)) :]

    def repeat(self, body: bytes, _: Any) -> bytes:
        start, end = self._range(body, 400)
        return body[:end] + body[start:end] * self.chance.choice((1, 1, 2, 50)) + body[end:]

    def number(self, body: bytes, places: list[tuple[int, int]]) -> bytes:
        """Make a number huge; in Avro a varint, or another schema."""
        numbers = [(a, b) for a, b in places if body[a : a + 1] in b"-0123456789"]
        if numbers:
            start, end = self.chance.choice(numbers)
            return body[:end] + b"0" * self.chance.choice((1, 10, 30, 300, 4300)) + body[end:]
        if self.chance.random() < 0.3:
            return pack(">bI", 0, self.chance.randrange(17)) + body[5:]
        start = self.chance.randrange(5, len(body)) if len(body) > 5 else 0
        return body[:start] + b"\xff" * self.chance.randint(1, 10) + body[start + 1 :]

    def special(self, body: bytes, places: list[tuple[int, int]]) -> bytes:
        if not places:
            return self.flip(body, ())
        start, end = self.chance.choice(places)
        return body[:start] + self.chance.choice(SPECIAL) + body[end:]

    def swap(self, body: bytes, places: list[tuple[int, int]]) -> bytes:
        if not places:
            return self.delete(body, ())
        (a, b), (c, d) = sorted((self.chance.choice(places), self.chance.choice(places)))
        return body[:a] + body[c:d] + body[b:c] + body[a:b] + body[d:] if b <= c else body[:a] + body[c:d] + body[b:]

    def transplant(self, body: bytes, places: list[tuple[int, int]]) -> bytes:
        index = self.chance.randrange(len(CORPUS))
        if not places or not SPANS[index]:
            return self.splice(body, ())
        start, end = self.chance.choice(places)
        a, b = self.chance.choice(SPANS[index])
        return body[:start] + CORPUS[index][a:b] + body[end:]


class TestTheMutatedCorpus:
    @pytest.mark.parametrize("chunk", range(CHUNKS))
    def test_whatever_happens_to_a_message_the_promises_hold(self, chunk):
        warm = fresh()
        for message in WARMING:
            told(warm, message)
        seen = dict.fromkeys(("envelope", "drop", "refused"), 0)
        for number, message in zip(range(MUTATIONS // CHUNKS), Mutations(chunk), strict=False):
            try:
                seen[check(message, warm)] += 1
            except Exception as error:
                raise AssertionError(f"mutation {number} of chunk {chunk}: {message!r}") from error
        # Else the mutations are too wild to say anything.
        assert MUTATIONS < 10_000 or min(seen.values()) > MUTATIONS // CHUNKS // 200, seen

    @pytest.mark.parametrize("body", CORPUS[::7])
    def test_at_whatever_byte_a_message_breaks_off_the_promises_hold(self, body):
        warm = fresh()
        told(warm, Message(body))

        for length in range(0, len(body), 1 + len(body) // 150):
            check(Message(body[:length]), warm)

    def test_the_corpus_itself_is_read(self):
        warm = fresh()

        seen = [check(message, warm) for message in WARMING * 2]

        assert seen.count("refused") <= 2 * 4 * 3  # null bodies, and the rare CloudEvent in Avro
        assert seen.count("envelope") > 250


# ── hypothesis ──────────────────────────────────────────────────────────────────────────────────────────────────────

_texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    [token.decode("utf-8", "replace").strip('"') for token in SPECIAL if token[:1] == b'"' and len(token) < 60]
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, 2**63, -(2**63) - 1, 10**4000])
    | st.floats()
    | _texts
)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=5), max_leaves=12
)
_rows = (
    st.none() | st.dictionaries(st.sampled_from(["id", "handle", "karma", "joined", "key", "data", "x"]), _json) | _json
)
_sources = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("forum") | _json,
        "ts_ms": st.integers() | _json,
        "schema": st.just("public") | _json,
        "db": st.just("forum") | _json,
        "table": st.sampled_from(sorted(READERS)) | _json,
        "collection": _json,
        "lsn": st.integers() | _json,
    },
)
_envelopes = st.fixed_dictionaries(
    {"source": _sources | _json, "op": st.sampled_from("rcudtm") | _json},
    optional={"before": _rows, "after": _rows, "ts_ms": _json, "transaction": _json, "<row schema>": _json},
)
_types = st.sampled_from(["struct", "array", "map", "bytes", "string", "int64", "double"]) | _json
_blocks: st.SearchStrategy[Any] = st.recursive(
    _json,
    lambda inner: st.fixed_dictionaries(
        {"type": _types},
        optional={
            "field": st.sampled_from(["before", "after", "id", "handle", "joined"]) | _json,
            "name": st.sampled_from([t.decode()[1:-1] for t in SPECIAL if b"io.debezium" in t or b"kafka" in t])
            | _json,
            "fields": st.lists(inner, max_size=3) | inner,
            "items": inner,
            "keys": inner,
            "values": inner,
            "parameters": st.fixed_dictionaries({"scale": st.sampled_from(["0", "2", "2046", "x"]) | _json}) | _json,
            "default": _json,
        },
    ),
    max_leaves=6,
)
_events = st.fixed_dictionaries(
    {"id": _json, "source": _json, "specversion": _json, "type": _json},
    optional={
        "data": _envelopes | _json,
        "iodebeziumop": st.sampled_from("rcudtm") | _json,
        "iodebeziumschema": _json,
        "iodebeziumtable": st.just("users") | _json,
        "iodebeziumtsms": _json,
        "iodebeziumlsn": _json,
        "datacontenttype": st.just("application/avro"),
    },
)
_flat = st.dictionaries(
    st.sampled_from(
        ["__op", "__table", "__schema", "__db", "__lsn", "__ts_ms", "__source_ts_ms", "__deleted", "id", "op"]
    ),
    _json,
)
_values = _envelopes | _events | _flat | _json
_documents = _values | st.fixed_dictionaries({"schema": _blocks, "payload": _values})
_attributes = st.sampled_from(ATTRIBUTES)
_WARM = fresh()
_quick = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class TestAnything:
    @_quick
    @given(_documents, _attributes)
    def test_any_json_keeps_the_promises(self, value, attributes):
        data = json.dumps(value, separators=(",", ":")).encode()

        check(Message(data, attributes), _WARM)

    @_quick
    @given(st.binary(max_size=200), _attributes)
    def test_any_bytes_keep_the_promises(self, data, attributes):
        check(Message(data, attributes), _WARM)

    @_quick
    @given(st.sampled_from(range(17)), st.binary(max_size=120))
    def test_any_bytes_in_avros_wire_format_keep_the_promises(self, schema_id, body):
        check(Message(pack(">bI", 0, schema_id) + body), _WARM)

    @_quick
    @given(_rows, _rows, st.sampled_from(sorted(READERS)))
    def test_a_row_is_what_json_says_it_is(self, before, after, table):
        value = {"before": before, "after": after, "source": {"schema": "public", "table": table}, "op": "u"}

        said = told(fresh(), Message(json.dumps(value).encode()))

        if isinstance(said, tuple) and not isinstance(said[2], str) and not isinstance(said[3], str):
            assert said[1] == Source(schema="public", table=table)
            for mine, theirs in ((said[2], before), (said[3], after)):
                if isinstance(theirs, dict | None):
                    assert are_same(mine, theirs)
