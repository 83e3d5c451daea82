"""The decoder: one fast road for common envelopes, one for known schema prefixes, and both agree with a full parse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cdc_reactor.decoder import _MAX_PREFIXES, MAX_BYTES, NOT_PLAIN, Decoder
from cdc_reactor.envelope import Drop, Envelope, Lsn, Operation, Source, TableId, read_image
from cdc_reactor.errors import DecodeError, UsageError
from cdc_reactor.messages import Message
from cdc_reactor.schemas import read_schemas

CAPTURES = Path(__file__).parent / "captures"
MANIFEST = json.loads((CAPTURES / "manifest.json").read_bytes())["files"]
WITH_SCHEMAS = (CAPTURES / "forum_schemas_on.values.ndjson").read_bytes().splitlines()
WITHOUT = (CAPTURES / "forum_schemas_off.values.ndjson").read_bytes().splitlines()
CHANGES_WITH = [body for body in WITH_SCHEMAS if b'"name":"io.debezium.connector.common.' not in body]


def decode(data: bytes, decoder: Decoder | None = None) -> Envelope | Drop:
    return (decoder or Decoder()).decode(Message(data))


def facts(decoded: Envelope | Drop) -> Any:
    """Everything that a decoded message says, comparable."""
    if isinstance(decoded, Drop):
        return decoded
    schema = decoded.schema
    return (
        decoded.op,
        decoded.source,
        read_image(decoded.before),
        read_image(decoded.after),
        schema and (sorted(schema.converters), schema.defaults),
    )


def with_schema(columns: list[dict[str, Any]], *, table: str = "t", row: dict[str, Any] | None = None) -> bytes:
    value = {"type": "struct", "fields": columns, "optional": True, "name": f"c.public.{table}.Value"}
    schema = {
        "type": "struct",
        "fields": [{**value, "field": "before"}, {**value, "field": "after"}],
        "optional": False,
        "name": f"c.public.{table}.Envelope",
    }
    source = {"name": "c", "ts_ms": 1, "schema": "public", "table": table, "lsn": 5}
    payload = {"before": None, "after": row or {"id": 1}, "source": source, "op": "c"}
    return msgspec.json.encode({"schema": schema, "payload": payload})


ID = {"type": "int64", "optional": False, "field": "id"}


class TestTheForum:
    @pytest.mark.parametrize("name", ["forum_schemas_off", "forum_schemas_on", "forum_one_topic"])
    def test_every_message_counts_as_the_manifest_says(self, name):
        expected = MANIFEST[f"{name}.values.ndjson"]["counts"]
        decoder = Decoder()

        decoded = [decode(line, decoder) for line in (CAPTURES / f"{name}.values.ndjson").read_bytes().splitlines()]

        drops = Counter(d for d in decoded if isinstance(d, Drop))
        tables: dict[str, Counter[str]] = {}
        for envelope in decoded:
            if isinstance(envelope, Envelope) and envelope.op is not Operation.MESSAGE:
                tables.setdefault(str(envelope.source.table_id), Counter())[envelope.op.value] += 1
        assert tables == {table: Counter(ops) for table, ops in expected["by_table_op"].items()}
        assert drops[Drop.HEARTBEAT] == expected["heartbeats"]
        assert drops[Drop.TRANSACTION] == sum(expected["transaction_metadata"].values())
        assert sum(isinstance(d, Envelope) and d.op is Operation.MESSAGE for d in decoded) == expected["messages"]

    @pytest.mark.parametrize("name", ["forum_schemas_off", "forum_schemas_on", "forum_one_topic", "forum_avro"])
    def test_snapshot_rows_and_tombstones_of_records_count_as_the_manifest_says(self, name):
        from cdc_reactor.captures import find_captures

        (capture,) = find_captures([str(CAPTURES / f"{name}.records.ndjson")])
        decoder = Decoder(schemas=read_schemas(CAPTURES / "forum_avro.registry.json"))

        decoded = [decoder.decode(m) for m in capture.messages() if isinstance(m, Message)]

        reads = sum(isinstance(d, Envelope) and d.op is Operation.READ for d in decoded)
        assert (reads, decoded.count(Drop.TOMBSTONE)) == (10, 5)

    def test_schemas_change_nothing_but_the_row_schema(self):
        # Both captures are of their own database, so positions and times differ.
        seen = [facts(decode(body)) for body in WITH_SCHEMAS]
        bare = [facts(decode(body)) for body in WITHOUT]

        changes = [[(f[0], f[1].table_id) for f in those if isinstance(f, tuple)] for those in (seen, bare)]
        assert changes[0] == changes[1]

    def test_an_envelope_holds_the_source_and_the_rows_unread(self):
        body = next(b for b in WITHOUT if b'"op":"u"' in b and b'"table":"comments"' in b)

        envelope = decode(body)

        assert isinstance(envelope, Envelope)
        assert envelope.source == Source(
            name="forum", ts_ms=1795443312644, schema="public", table="comments", lsn=25763992
        )
        assert (type(envelope.before), type(envelope.after)) == (msgspec.Raw, msgspec.Raw)
        assert read_image(envelope.before) == {"id": 2, "post": 3, "author": 3, "text": "comment 2"}
        assert read_image(envelope.after) == {"id": 2, "post": 3, "author": 3, "text": "(edited) comment 2"}
        assert envelope.schema is None


class TestSources:
    """Of a source only the table is read; what is read later must be what would have been read at once."""

    @pytest.mark.parametrize(
        ("ts_ms", "lsn", "expected"),
        [
            ("5", "7", (5, 7)),
            ("null", "null", (None, None)),
            ('"5"', '"7"', (5, 7)),
            ('"x"', '"0000002a:00000758:0003"', (None, None)),
            ("5", "true", (5, None)),
            ("1.5", "7", (None, 7)),
            ("5", "{}", (5, None)),
            ("5", "9" * 5000, (5, int("9" * 4000) * 10**1000 + int("9" * 1000))),
            ("5", "1e999", (None, None)),
        ],
    )
    @pytest.mark.parametrize(
        "form",
        [
            "%s",
            '{"schema":{"type":"struct"},"payload":%s}',
            '{"schema":null,"payload":%s}\n',
            '{"schema":{},"payload":%s,"source":1}',
        ],
    )
    def test_a_position_is_a_number_or_none(self, ts_ms, lsn, expected, form):
        source = '{"name":"c","ts_ms":%s,"schema":"s","table":"t","lsn":%s}' % (ts_ms, lsn)  # noqa: UP031 - holds braces

        envelope = decode((form % f'{{"op":"c","source":{source}}}').encode())

        assert isinstance(envelope, Envelope)
        assert envelope.source == Source(name="c", ts_ms=expected[0], schema="s", table="t", lsn=expected[1])

    def test_a_source_never_shows_the_message_that_it_keeps(self):
        envelope = decode(b'{"op":"c","source":{"schema":"s","table":"t","lsn":1},"after":{"name":"secret"}}')

        assert isinstance(envelope, Envelope)
        assert repr(envelope.source) == repr(Source(schema="s", table="t", lsn=1))

    def test_of_a_position_that_stands_twice_the_last_counts(self):
        source = b'{"schema":"s","table":"t","lsn":1,"lsn":2}'

        envelope = decode(b'{"op":"c","source":{"schema":"x","table":"y","lsn":3},"source":%s}' % source)

        assert isinstance(envelope, Envelope)
        assert (envelope.source, envelope.source.table_id) == (Source(schema="s", table="t", lsn=2), TableId("s", "t"))

    def test_a_message_cannot_bring_its_own(self):
        envelope = decode(b'{"op":"c","source":{"schema":"s","table":"t","lsn":1,"<unread>":{"lsn":2},"unread":3}}')

        assert isinstance(envelope, Envelope)
        assert envelope.source == Source(schema="s", table="t", lsn=1)

    def test_sources_that_differ_are_not_equal(self):
        one, other = (decode(b'{"op":"c","source":{"schema":"s","table":"t","lsn":%d}}' % lsn) for lsn in (1, 2))

        assert isinstance(one, Envelope)
        assert isinstance(other, Envelope)
        assert one.source != other.source
        assert one.source == one.source
        assert one.source != "s.t"


class TestKnownPrefixes:
    def test_a_known_prefix_gives_what_a_full_parse_gives(self):
        warm = Decoder()
        for body in WITH_SCHEMAS:
            decode(body, warm)

        assert [facts(decode(body, warm)) for body in WITH_SCHEMAS] == [facts(decode(body)) for body in WITH_SCHEMAS]

    def test_messages_of_one_schema_share_the_compiled_schema(self):
        decoder = Decoder()
        bodies = [b for b in CHANGES_WITH if b'"table":"users"' in b]

        schemas = {id(e.schema) for b in bodies if isinstance(e := decode(b, decoder), Envelope)}

        assert len(schemas) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body[:-1],
            lambda body: body + b"}",
            lambda body: body[:-2] + b"]}",
            lambda body: body[:-1] + b',"payload":null}',
            lambda body: body[:-1] + b',"schema":null}',
            lambda body: body[:-1] + b',"more":1}',
            lambda body: body + b"\n",
            lambda body: body[:-1] + b" \t}\r\n",
            lambda body: body.replace(b'"payload":', b'"payload": ', 1),
            lambda body: body.replace(b'{"schema":', b'{ "schema":', 1),
            lambda body: body.replace(b'"op":"', b'"op":"x', 1),
            lambda body: body.replace(b'"payload":{', b'"payload":{"op":"d",', 1),
            lambda body: body.replace(b'"int64"', b'"int32"', 1),
            lambda body: body.replace(b'"optional":', b'"optionaL":', 1),
            lambda body: body.replace(b'"payload":', b'"payload":{"ts_ms":1},"ignored":', 1),
            lambda body: body.replace(b'"payload":', b'"payload":null,"payload":', 1),
        ],
    )
    @pytest.mark.parametrize("body", CHANGES_WITH[::9])
    def test_whatever_is_changed_a_warm_decoder_says_what_a_fresh_one_says(self, body, change):
        warm = Decoder()
        for known in WITH_SCHEMAS:
            decode(known, warm)
        changed = change(body)

        assert told(changed, warm) == told(changed, Decoder())

    def test_tables_whose_telltale_bytes_agree_are_told_apart(self):
        first = [{**ID, "field": name} for name in ("id", "created_at", "updated_at", "deleted_at")]
        one = with_schema([*first, {"type": "bytes", "optional": True, "field": "a"}], table="one")
        two = with_schema([*first, {"type": "string", "optional": True, "field": "a"}], table="two")
        assert one[72:264] == two[72:264]
        decoder = Decoder()

        got = [decode(body, decoder) for body in (one, two, one, two)]

        assert [(e.source.table, sorted(e.schema.converters)) for e in got if isinstance(e, Envelope) and e.schema] == [
            ("one", ["a"]),
            ("two", []),
            ("one", ["a"]),
            ("two", []),
        ]

    def test_a_table_that_is_altered_in_mid_stream_gets_a_schema_of_its_own(self):
        decoder = Decoder()
        before = with_schema([ID])
        after = with_schema([ID, {"type": "int32", "name": "io.debezium.time.Date", "field": "day"}])

        got = [decode(body, decoder) for body in (before, after, before)]

        assert [sorted(e.schema.converters) for e in got if isinstance(e, Envelope) and e.schema] == [[], ["day"], []]

    def test_a_body_that_the_prefix_alone_cannot_read_is_remembered_once(self):
        decoder = Decoder()
        body = with_schema([ID]) + b"\n"

        schemas = {id(e.schema) for _ in range(50) if isinstance(e := decode(body, decoder), Envelope)}

        assert len(schemas) == 1
        assert [len(known) for known in decoder._prefixes.values()] == [1]

    def test_the_memory_for_prefixes_is_bounded(self):
        decoder = Decoder()
        for n in range(_MAX_PREFIXES + 10):
            decode(with_schema([{**ID, "field": f"column{n}"}]), decoder)

        assert sum(len(known) for known in decoder._prefixes.values()) == decoder._known == 10
        assert len(decoder._row_schemas._compiled) <= 4096
        assert isinstance(decode(with_schema([ID]), decoder), Envelope)

    def test_slower_roads_share_the_compiled_schema_too(self):
        decoder = Decoder()
        columns = [{"type": "bytes", "field": "a"}]
        wrapped = json.loads(with_schema(columns))
        backwards = msgspec.json.encode({"payload": wrapped["payload"], "schema": wrapped["schema"]})

        schemas = {
            id(e.schema) for b in [with_schema(columns), backwards] * 3 if isinstance(e := decode(b, decoder), Envelope)
        }

        assert len(schemas) == 1

    def test_a_schema_that_describes_no_row_is_none(self):
        body = with_schema([ID]).replace(b'"fields"', b'"Fields"')

        decoded = decode(body)

        assert isinstance(decoded, Envelope)
        assert decoded.schema is None

    @pytest.mark.parametrize(
        "fields",
        [
            b"5",
            b'[{"field":["after"],"type":"struct"}]',
            b'[{"field":"after","type":"struct","fields":5}]',
            b'[{"field":"after","type":"struct","fields":[{"field":"a","type":' + b"9" * 5000 + b"}]}]",
            b'[{"field":"after","type":"struct","fields":[{"field":"a","type":"array","items":1}]}]',
            b'[{"field":"after","type":"struct","fields":[{"field":"a","type":"struct","fields":"\\ud800"}]}]',
            b"[" * 600 + b"]" * 600,
        ],
    )
    def test_a_schema_that_makes_no_sense_raises_nothing_but_a_decode_error(self, fields):
        source = b'{"schema":"public","table":"t"}'
        envelope = b'{"source":' + source + b',"op":"c","after":{"id":1}}'
        body = b'{"schema":{"type":"struct","fields":' + fields + b'},"payload":' + envelope + b"}"

        assert told(body, Decoder()) == "DecodeError" or told(body, Decoder())[:4] == facts(decode(envelope))[:4]


def told(data: bytes, decoder: Decoder) -> Any:
    try:
        return facts(decode(data, decoder))
    except DecodeError:
        return "DecodeError"


class TestBytes:
    @pytest.mark.parametrize("field", ["payload", "row_schema", "<row schema>"])
    @pytest.mark.parametrize("value", ["null", '{"x":1}', '"x"'])
    def test_a_hostile_row_schema_in_the_envelope_is_none(self, field, value):
        body = b'{"before":null,"after":{"id":1},"source":{"schema":"s","table":"t"},"op":"c","%s":%s}'

        envelope = decode(body % (field.encode(), value.encode()))

        assert isinstance(envelope, Envelope)
        assert envelope.schema is None

    @pytest.mark.parametrize(
        "body", [WITHOUT[0], CHANGES_WITH[0], WITHOUT[0].replace(b'{"before"', b'{"s":1,"before"')]
    )
    @pytest.mark.parametrize("first", [b"", WITHOUT[0], CHANGES_WITH[0], b'{"s":1}'])
    def test_a_fast_road_reads_as_decode_does_or_refuses(self, body, first):
        road = Decoder().fast_road(first)

        if body == CHANGES_WITH[0] and first[2:3] != b"s":
            with pytest.raises(NOT_PLAIN):
                road(body)
        else:
            envelope = road(body)
            envelope.keep(body)
            assert facts(envelope) == facts(decode(body))

    def test_no_bytes_are_a_tombstone(self):
        assert decode(b"") is Drop.TOMBSTONE

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b" ", b"\n\n\t"])
    @pytest.mark.parametrize("body", [WITHOUT[0], WITH_SCHEMAS[0], WITHOUT[10], WITH_SCHEMAS[10]])
    def test_white_space_around_a_message_means_nothing(self, body, end):
        assert facts(decode(body + end)) == facts(decode(end + body)) == facts(decode(body))

    @pytest.mark.parametrize(
        "data",
        [
            b"\xef\xbb\xbf" + WITHOUT[0],  # a byte order mark
            WITHOUT[0].decode().encode("utf-16"),
            b" ",
            b"\n",
            b"{",
            b"nul",
            b"nothing",
            b"'single'",
            b"\xff\xfe",
            WITHOUT[0] + WITHOUT[0],
            WITHOUT[0] + b"\n" + WITHOUT[0],
            WITHOUT[0][:-1],
            WITHOUT[0][1:],
            WITHOUT[0].replace(b'"public"', b'"pub\xfflic"'),
            WITHOUT[0].replace(b'"public"', b'"\\ud800"'),
            WITHOUT[0].replace(b'"author":1', b'"author":NaN'),
            WITHOUT[0].replace(b'"author":1', b'"author":Infinity'),
            WITHOUT[0].replace(b'"author":1', b'"author":-Infinity'),
            WITHOUT[0].replace(b'"author":1', b'"author":01'),
            WITHOUT[0].replace(b'"author":1', b'"author":0x10'),
            WITHOUT[0].replace(b'"author":1', b'"author":1,'),
            WITHOUT[0].replace(b'"First post"', b'"First\npost"'),
            WITHOUT[0].replace(b'"First post"', b'"\\x41"'),
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        ],
    )
    def test_what_is_no_json_is_a_decode_error(self, data):
        with pytest.raises(DecodeError, match=r"^not JSON: "):
            decode(data)

    def test_what_is_too_large_is_refused_unread_and_says_how_to_admit_it(self):
        with pytest.raises(
            DecodeError, match=r"^11 bytes in one message, more than the limit of 10; raise --max-bytes$"
        ):
            Decoder(max_bytes=10).decode(Message(b"[" * 11))
        assert MAX_BYTES >= 10_000_000  # Pub/Sub's own limit

    def test_what_is_just_not_too_large_is_read(self):
        body = WITHOUT[0]

        assert isinstance(Decoder(max_bytes=len(body)).decode(Message(body)), Envelope)

    def test_of_a_field_that_stands_twice_the_last_counts_on_every_road(self):
        twice = b'{"op":"c","op":"d","source":{"schema":"s","table":"t"},"before":{"id":1},"before":{"id":2}}'
        slow = twice.replace(b'"schema":"s"', b'"db":"s"')

        assert facts(decode(twice)) == facts(decode(slow)) == (
            Operation.DELETE, Source(schema="s", table="t"), {"id": 2}, None, None,
        )  # fmt: skip

    def test_an_event_that_comes_again_says_the_same_but_when_it_was_sent(self):
        again = WITHOUT[0].replace(b'"op":"r","ts_ms":1795443309756', b'"op":"r","ts_ms":1795443319999')
        assert again != WITHOUT[0]

        assert facts(decode(again)) == facts(decode(WITHOUT[0]))

    def test_an_empty_prefix_of_added_fields_is_a_usage_error(self):
        with pytest.raises(UsageError, match=r"add\.fields\.prefix"):
            Decoder(unwrapped_prefix="")


class TestNames:
    @pytest.mark.parametrize(
        ("lsn", "text"),
        [(0, "0/0"), (25757392, "0/18906D0"), (0x16B374D848, "16/B374D848"), (2**64 - 1, "FFFFFFFF/FFFFFFFF")],
    )
    def test_an_lsn_is_printed_as_postgresql_prints_it(self, lsn, text):
        assert str(Lsn(lsn)) == text
        assert Lsn.parse(text) == Lsn.parse(str(lsn)) == lsn

    @pytest.mark.parametrize("text", ["", "/", "x", "1/", "/1", "g/1", "1/2/3"])
    def test_what_is_no_lsn_is_a_value_error(self, text):
        with pytest.raises(ValueError, match="invalid literal"):
            Lsn.parse(text)

    def test_a_table_without_schema_is_printed_alone(self):
        assert [str(TableId("public", "users")), str(TableId("", "users"))] == ["public.users", "users"]
