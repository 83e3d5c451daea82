"""Avro: Confluent's wire format, Pub/Sub's schema attributes in both encodings, and values that Python lacks."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from struct import pack
from typing import Any, ClassVar

import fastavro
import pytest

from cdc_reactor.changes import Create, Row, RowReader, Update
from cdc_reactor.columns import Infinity, IsoText, Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Drop, Envelope, Operation, Source
from cdc_reactor.errors import DecodeError, WorldError
from cdc_reactor.messages import Message

CAPTURES = Path(__file__).parent / "captures"
FORUM = {
    int(n): s for n, s in json.loads((CAPTURES / "forum_avro.registry.json").read_bytes())["schemas_by_id"].items()
}
BODIES = [b64decode(line) for line in (CAPTURES / "forum_avro.values.b64").read_bytes().splitlines()]
MANIFEST = json.loads((CAPTURES / "manifest.json").read_bytes())["files"]

NAME = "projects/p/schemas/users"


class Schemas:
    """Schemas in dicts; counts what it was asked for."""

    def __init__(
        self, by_id: Mapping[int, Any] | None = None, by_name: Mapping[tuple[str, str], Any] | None = None
    ) -> None:
        self._by_id = by_id or {}
        self._by_name = by_name or {}
        self.asked: list[Any] = []

    def schema(self, schema_id: int) -> Any:
        self.asked.append(schema_id)
        return self._found(self._by_id, schema_id)

    def named(self, name: str, revision: str) -> Any:
        self.asked.append((name, revision))
        return self._found(self._by_name, (name, revision))

    def _found(self, schemas: Mapping[Any, Any], key: Any) -> Any:
        if key not in schemas:
            raise DecodeError(f"no schema {key}: add --schemas")
        return schemas[key]


def envelope_schema(*columns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    fields = [{"name": name, "type": kind} for name, kind in columns]
    value = {"type": "record", "name": "Value", "fields": fields}
    source = {
        "type": "record",
        "name": "Source",
        "namespace": "io.debezium.connector.postgresql",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "ts_ms", "type": "long"},
            {"name": "schema", "type": "string"},
            {"name": "table", "type": "string"},
            {"name": "lsn", "type": ["null", "long"], "default": None},
        ],
    }
    return {
        "type": "record",
        "name": "Envelope",
        "namespace": "forum.public.users",
        "fields": [
            {"name": "before", "type": ["null", value], "default": None},
            {"name": "after", "type": ["null", "Value"], "default": None},
            {"name": "source", "type": source},
            {"name": "op", "type": "string"},
        ],
        "connect.name": "forum.public.users.Envelope",
        **more,
    }


SOURCE = {"name": "forum", "ts_ms": 1, "schema": "public", "table": "users", "lsn": 5}
WHERE = Source(name="forum", ts_ms=1, schema="public", table="users", lsn=5)


def write(schema: Any, value: Any) -> bytes:
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


def bare(schema: Any) -> Any:
    """The schema without its logical types, to write what Java can and Python cannot say."""
    return json.loads(json.dumps(schema).replace('"logicalType"', '"wasLogicalType"'))


def created(**row: Any) -> dict[str, Any]:
    return {"before": None, "after": row, "source": SOURCE, "op": "c"}


def confluent(schema_id: int, body: bytes) -> Message:
    return Message(pack(">bI", 0, schema_id) + body)


def published(body: bytes, *, encoding: str = "BINARY", revision: str = "a1") -> Message:
    return Message(
        body,
        {
            "googclient_schemaname": NAME,
            "googclient_schemarevisionid": revision,
            "googclient_schemaencoding": encoding,
        },
    )


def facts(decoded: Envelope | Drop) -> Any:
    return decoded if isinstance(decoded, Drop) else (decoded.op, decoded.source, decoded.before, decoded.after)


def refusal(decoder: Decoder, message: Message) -> str:
    with pytest.raises(DecodeError) as refused:
        decoder.decode(message)
    return str(refused.value)


class TestTheForum:
    def test_every_message_counts_as_the_manifest_says(self):
        expected = MANIFEST["forum_avro.values.b64"]["decoded"]
        schemas = Schemas(FORUM)
        decoder = Decoder(schemas=schemas)

        decoded = [decoder.decode(Message(body)) for body in BODIES]

        drops = Counter(d for d in decoded if isinstance(d, Drop))
        changes = Counter((str(d.source.table_id), d.op.value) for d in decoded if isinstance(d, Envelope))
        assert drops == {Drop.HEARTBEAT: 28, Drop.TRANSACTION: 24}
        assert changes == {
            ("", "m"): expected["messages"],
            **{(table, op): n for table, ops in expected["by_table_op"].items() for op, n in ops.items()},
        }
        assert len(schemas.asked) == len(set(schemas.asked)) == 8

    def test_rows_say_what_the_rows_of_the_json_capture_say(self):
        class Post(Row, table="public.posts"):
            id: int
            title: str | None
            tags: list[str | None] | None
            score: Decimal | None
            published: date | None

        rows = {}
        for name, bodies in (
            ("avro", BODIES),
            ("json", (CAPTURES / "forum_schemas_on.values.ndjson").read_bytes().splitlines()),
        ):
            decoder = Decoder(schemas=Schemas(FORUM))
            reader = RowReader(Post, decoder.placeholder)
            envelopes = [d for body in bodies if isinstance(d := decoder.decode(Message(body)), Envelope)]
            rows[name] = [reader.read(e.after, e.schema) for e in envelopes if e.source.table == "posts"]

        assert rows["avro"] == rows["json"]
        assert rows["avro"][0] == Post(
            id=1, title="Hello", tags=["intro", "hello"], score=Decimal("3.50"), published=date(2025, 3, 1)
        )

    def test_a_large_column_that_did_not_change_is_not_sent(self):
        class Post(Row, table="public.posts"):
            id: int
            body: str | None

        decoder = Decoder(schemas=Schemas(FORUM))
        update = next(
            d
            for body in BODIES
            if isinstance(d := decoder.decode(Message(body)), Envelope)
            and (d.op, d.source.table) == (Operation.UPDATE, "posts")
        )

        row = RowReader(Post, decoder.placeholder).read(update.after, update.schema)

        assert row.model_dump() == {"id": 3}


class TestConfluent:
    SCHEMA = envelope_schema(("id", "long"), ("name", ["null", "string"]))

    def test_a_row_is_read_with_the_writers_schema(self):
        message = confluent(7, write(self.SCHEMA, created(id=1, name="Ada")))

        decoded = Decoder(schemas=Schemas({7: self.SCHEMA})).decode(message)

        assert facts(decoded) == (Operation.CREATE, WHERE, None, {"id": 1, "name": "Ada"})

    def test_the_id_is_big_endian_and_unsigned(self):
        for schema_id in (1, 256, 2**31, 2**32 - 1):
            message = confluent(schema_id, write(self.SCHEMA, created(id=1, name=None)))

            assert isinstance(Decoder(schemas=Schemas({schema_id: self.SCHEMA})).decode(message), Envelope)

    def test_a_table_that_is_altered_in_mid_stream_brings_a_new_id(self):
        altered = envelope_schema(("id", "long"), ("day", {"type": "int", "connect.name": "io.debezium.time.Date"}))
        schemas = Schemas({1: self.SCHEMA, 2: altered})
        decoder = Decoder(schemas=schemas)
        old = confluent(1, write(self.SCHEMA, created(id=1, name="Ada")))
        new = confluent(2, write(altered, created(id=1, day=0)))

        got = [decoder.decode(message) for message in (old, new, old, new)]

        assert [d.after for d in got if isinstance(d, Envelope)] == [{"id": 1, "name": "Ada"}, {"id": 1, "day": 0}] * 2
        assert [list(d.schema.converters) for d in got if isinstance(d, Envelope) and d.schema] == [[], ["day"]] * 2
        assert schemas.asked == [1, 2]

    def test_an_unknown_id_is_asked_for_again(self):
        known: dict[int, Any] = {}
        schemas = Schemas(known)
        decoder = Decoder(schemas=schemas)
        message = confluent(7, write(self.SCHEMA, created(id=1, name="Ada")))

        assert refusal(decoder, message) == "no schema 7: add --schemas"
        known[7] = self.SCHEMA
        schemas._by_id = known

        assert isinstance(decoder.decode(message), Envelope)

    def test_without_schemas_the_error_names_the_option(self):
        assert (
            refusal(Decoder(), confluent(7, b""))
            == "Avro with schema id 7, and no schemas are given: add --schemas PATH|URL"
        )

    def test_a_registry_that_is_down_is_an_error_of_the_world(self):
        class Down(Schemas):
            def schema(self, schema_id: int) -> Any:
                raise WorldError("the registry does not answer")

        with pytest.raises(WorldError):
            Decoder(schemas=Down()).decode(confluent(7, b""))

    @pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00\x00"])
    def test_a_header_that_is_too_short_is_refused(self, data):
        assert refusal(Decoder(schemas=Schemas()), Message(data)) == (
            f"{len(data)} bytes that start with zero: too short for Avro in wire format"
        )

    def test_every_truncation_is_refused(self):
        body = write(self.SCHEMA, created(id=1, name="Ada"))
        decoder = Decoder(schemas=Schemas({7: self.SCHEMA}))

        for length in range(len(body)):
            assert refusal(decoder, confluent(7, body[:length])).startswith("the body does not fit schema id 7: ")

    def test_bytes_that_are_left_over_are_refused(self):
        body = write(self.SCHEMA, created(id=1, name="Ada"))

        assert refusal(Decoder(schemas=Schemas({7: self.SCHEMA})), confluent(7, body + b"ab")) == (
            "2 bytes are left over after reading schema id 7: it was written with another schema"
        )

    def test_a_number_of_elements_beyond_the_bytes_is_refused(self):
        schema = {"type": "array", "items": "string"}
        huge = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"

        assert "does not fit" in refusal(
            Decoder(schemas=Schemas({7: {"type": "record", "name": "R", "fields": [{"name": "a", "type": schema}]}})),
            confluent(7, huge + b"\x02a"),
        )

    @pytest.mark.parametrize(
        "schema",
        [
            {},
            {"type": "wrong"},
            {"type": "record"},
            {"type": "record", "name": "R"},
            {"type": "record", "name": "R", "fields": [{"name": "a"}]},
            {"type": "record", "name": "R", "fields": [{"name": "a", "type": "Unknown"}]},
            {"type": "record", "name": "R", "fields": 5},
            {"type": {"type": {"type": "string"}}, "name": 5},
            [],
            ["null", {"type": "record", "name": "R", "fields": []}],
            "string",
            5,
            None,
        ],
    )
    def test_a_schema_that_is_none_or_no_record_is_refused(self, schema):
        assert "schema id 7" in refusal(Decoder(schemas=Schemas({7: schema})), confluent(7, b"\x00"))

    @pytest.mark.parametrize(
        ("name", "drop"),
        [
            ("io.debezium.connector.common.Heartbeat", Drop.HEARTBEAT),
            ("io.debezium.connector.common.TransactionMetadataValue", Drop.TRANSACTION),
            ("io.debezium.connector.common.Notification", Drop.NOTIFICATION),
            ("io.debezium.connector.mysql.SchemaChangeValue", Drop.SCHEMA_CHANGE),
        ],
    )
    def test_the_name_tells_what_is_no_change_with_and_without_connect_name(self, name, drop):
        space, _, short = name.rpartition(".")
        record = {"type": "record", "name": short, "namespace": space, "fields": [{"name": "x", "type": "long"}]}
        full = {"type": "record", "name": name, "fields": [{"name": "x", "type": "long"}]}

        for schema in (record, full, {**record, "namespace": "other", "connect.name": name}):
            assert Decoder(schemas=Schemas({7: schema})).decode(confluent(7, b"\x02")) is drop

    def test_a_flattened_row_is_read_with_its_own_schema(self):
        schema = {
            "type": "record",
            "name": "Value",
            "namespace": "forum.public.users",
            "fields": [
                {"name": "id", "type": "long"},
                {"name": "day", "type": {"type": "int", "connect.name": "io.debezium.time.Date"}},
                *[{"name": f"__{name}", "type": ["null", "string"]} for name in ("op", "table", "schema")],
            ],
        }
        value = {"id": 1, "day": 0, "__op": "c", "__table": "users", "__schema": "public"}

        decoded = Decoder(schemas=Schemas({7: schema})).decode(confluent(7, write(schema, value)))

        assert facts(decoded) == (Operation.CREATE, Source(schema="public", table="users"), None, {"id": 1, "day": 0})
        assert isinstance(decoded, Envelope)
        assert decoded.schema is not None
        assert list(decoded.schema.converters) == ["day"]

    def test_cloud_events_may_be_avro_within_avro(self):
        row = {"type": "record", "name": "Value", "fields": [{"name": "id", "type": "long"}]}
        data = {
            "type": "record",
            "name": "Data",
            "fields": [{"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Value"]}],
        }
        texts = {"id": "1", "source": "/debezium", "specversion": "1.0", "type": "t", "iodebeziumop": "c", "iodebeziumname": "forum",
                 "iodebeziumtsms": "1", "iodebeziumschema": "public", "iodebeziumtable": "users", "iodebeziumlsn": "5"}  # fmt: skip
        event = {
            "type": "record",
            "name": "Envelope",
            "namespace": "forum.CloudEvents",
            "fields": [*[{"name": name, "type": "string"} for name in texts], {"name": "data", "type": "bytes"}],
        }
        inner = confluent(8, write(data, {"before": None, "after": {"id": 1}})).data

        decoded = Decoder(schemas=Schemas({7: event, 8: data})).decode(
            confluent(7, write(event, {**texts, "data": inner}))
        )

        assert facts(decoded) == (Operation.CREATE, WHERE, None, {"id": 1})


class TestPubsubSchemas:
    SCHEMA = envelope_schema(("id", "long"), ("name", ["null", "string"]), ("noise", "bytes"))
    ROW: ClassVar[dict[str, Any]] = {"id": 1, "name": "Ada", "noise": b"\x00\xff"}

    def decoder(self, *revisions: str) -> Decoder:
        return Decoder(schemas=Schemas(by_name={(NAME, r): self.SCHEMA for r in revisions or ("a1",)}))

    def in_json(self, value: Any) -> bytes:
        from io import StringIO

        stream = StringIO()
        fastavro.json_writer(stream, fastavro.parse_schema(self.SCHEMA), [value])
        return stream.getvalue().encode()

    def test_binary_values_have_no_header(self):
        decoded = self.decoder().decode(published(write(self.SCHEMA, created(**self.ROW))))

        assert facts(decoded) == (Operation.CREATE, WHERE, None, self.ROW)

    def test_without_an_encoding_it_is_binary_and_without_a_revision_the_latest(self):
        message = Message(write(self.SCHEMA, created(**self.ROW)), {"googclient_schemaname": NAME})

        assert facts(self.decoder("").decode(message)) == (Operation.CREATE, WHERE, None, self.ROW)

    def test_a_body_that_begins_with_zero_is_no_wire_format_where_attributes_name_the_schema(self):
        body = write(self.SCHEMA, created(**self.ROW))
        assert body[:1] == b"\x00"

        assert isinstance(self.decoder().decode(published(body)), Envelope)

    def test_json_values_say_the_type_of_each_optional_value(self):
        body = self.in_json(created(**self.ROW))
        assert b'{"string": "Ada"}' in body

        assert facts(self.decoder().decode(published(body, encoding="JSON"))) == (
            Operation.CREATE,
            WHERE,
            None,
            self.ROW,
        )

    def test_json_values_are_never_taken_for_a_plain_envelope(self):
        # Without a position nothing in the source block tells the two apart.
        body = self.in_json({**created(**self.ROW), "source": {**SOURCE, "lsn": None}})
        assert isinstance(Decoder().decode(Message(body)), Envelope)

        decoded = self.decoder().decode(published(body, encoding="JSON"))

        assert facts(decoded)[3] == self.ROW

    def test_json_values_may_stand_on_many_lines(self):
        body = json.dumps(json.loads(self.in_json(created(**self.ROW))), indent=2).replace("\n", "\r\n").encode()

        assert facts(self.decoder().decode(published(body, encoding="JSON")))[3] == self.ROW

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"null", b"[]", b"{}", b'"x"', b"\xff", b'{"op":"c"}', b'{"before":{"x":1}}', b"[" * 5000]
    )
    def test_json_that_does_not_fit_is_refused(self, body):
        if not body:
            assert self.decoder().decode(published(body, encoding="JSON")) is Drop.TOMBSTONE
            return
        assert refusal(self.decoder(), published(body, encoding="JSON")).startswith(
            f"the body does not fit schema {NAME}@a1"
        )

    def test_two_values_in_one_body_are_refused(self):
        body = self.in_json(created(**self.ROW))

        assert "does not fit" in refusal(self.decoder(), published(body + b"\n" + body, encoding="JSON"))

    def test_binary_values_that_do_not_fit_are_refused(self):
        body = write(self.SCHEMA, created(**self.ROW))

        assert "does not fit" in refusal(self.decoder(), published(body[:-1]))
        assert "left over" in refusal(self.decoder(), published(body + b"\x00"))

    def test_revisions_are_schemas_of_their_own(self):
        later = envelope_schema(("id", "long"))
        schemas = Schemas(by_name={(NAME, "a1"): self.SCHEMA, (NAME, "b2"): later})
        decoder = Decoder(schemas=schemas)
        old = published(write(self.SCHEMA, created(**self.ROW)))
        new = published(write(later, created(id=1)), revision="b2")

        got = [facts(decoder.decode(message))[3] for message in (old, new, old, new)]

        assert got == [self.ROW, {"id": 1}] * 2
        assert schemas.asked == [(NAME, "a1"), (NAME, "b2")]

    def test_an_unknown_schema_is_refused(self):
        assert (
            refusal(self.decoder(), published(b"\x00", revision="zz")) == f"no schema ('{NAME}', 'zz'): add --schemas"
        )

    @pytest.mark.parametrize("encoding", ["BINARY", "JSON"])
    def test_without_schemas_the_error_names_the_option(self, encoding):
        message = published(self.in_json(created(**self.ROW)), encoding=encoding)

        assert (
            refusal(Decoder(), message)
            == f"Avro with schema {NAME}@a1, and no schemas are given: add --schemas PATH|URL"
        )


class TestValuesThatPythonLacks:
    DATE: ClassVar[dict[str, Any]] = {
        "type": "int",
        "logicalType": "date",
        "connect.name": "org.apache.kafka.connect.data.Date",
    }
    DEBEZIUM_DATE: ClassVar[dict[str, Any]] = {"type": "int", "connect.name": "io.debezium.time.Date"}
    DECIMAL: ClassVar[dict[str, Any]] = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2, "connect.parameters": {"scale": "2"},
               "connect.name": "org.apache.kafka.connect.data.Decimal"}  # fmt: skip
    INSTANT: ClassVar[dict[str, Any]] = {"type": "long", "logicalType": "timestamp-micros"}
    NAIVE: ClassVar[dict[str, Any]] = {
        "type": "long",
        "logicalType": "timestamp-millis",
        "connect.name": "org.apache.kafka.connect.data.Timestamp",
    }

    def read(self, model: type[Row], kind: Any, value: Any) -> Any:
        schema = envelope_schema(("id", "long"), ("x", ["null", kind]))
        message = confluent(7, write(bare(schema), created(id=1, x=value)))
        decoded = Decoder(schemas=Schemas({7: schema})).decode(message)
        assert isinstance(decoded, Envelope)
        row = RowReader(model, Placeholder()).read(decoded.after, decoded.schema)
        return row.model_dump()["x"]

    def test_dates_beyond_python_are_readable(self):
        class Day(Row, table="public.users"):
            id: int
            x: date | Infinity | IsoText | None

        for kind in (self.DATE, self.DEBEZIUM_DATE):
            assert self.read(Day, kind, 0) == date(1970, 1, 1)
            assert self.read(Day, kind, -719_529 - 366) == IsoText("-0001-01-01") or self.read(
                Day, kind, -719_529 - 366
            )
            assert self.read(Day, kind, -2_147_472_692) is Infinity.POSITIVE

    def test_instants_beyond_python_are_readable(self):
        class Instant(Row, table="public.users"):
            id: int
            x: datetime | Infinity | IsoText | None

        assert self.read(Instant, self.INSTANT, 0) == datetime(1970, 1, 1, tzinfo=UTC)
        assert self.read(Instant, self.INSTANT, 9_223_372_036_825_200_000) is Infinity.POSITIVE
        assert self.read(Instant, self.NAIVE, 0) == datetime(1970, 1, 1)  # noqa: DTZ001 - a column without time zone
        assert self.read(Instant, self.NAIVE, 9_223_372_036_825_200) is Infinity.POSITIVE

    def test_decimals_are_exact_whatever_precision_the_schema_declares(self):
        class Price(Row, table="public.users"):
            id: int
            x: Decimal | None

        assert self.read(Price, self.DECIMAL, b"\x01\x5e") == Decimal("3.50")
        unscaled = (10**40 + 1).to_bytes(18, "big", signed=True)
        assert self.read(Price, self.DECIMAL, unscaled) == Decimal((0, (1, *[0] * 39, 1), -2))
        assert self.read(Price, self.DECIMAL, None) is None

    def test_a_value_that_the_row_cannot_hold_is_the_error_of_that_row_alone(self):
        class Day(Row, table="public.users"):
            id: int
            x: date | None

        with pytest.raises(DecodeError, match=r"public\.users does not fit Day: x: "):
            self.read(Day, self.DATE, -2_147_472_692)

    def test_a_row_that_does_not_name_the_column_does_not_mind(self):
        class Key(Row, table="public.users"):
            id: int

        schema = envelope_schema(("id", "long"), ("x", ["null", self.DATE]))
        message = confluent(7, write(bare(schema), created(id=1, x=-2_147_472_692)))
        decoded = Decoder(schemas=Schemas({7: schema})).decode(message)
        assert isinstance(decoded, Envelope)

        assert RowReader(Key, Placeholder()).read(decoded.after, decoded.schema) == Key(id=1)

    def test_uuids_that_are_none_are_the_error_of_that_row_alone(self):
        from uuid import UUID

        class Thing(Row, table="public.users"):
            id: int
            x: UUID | None

        kind = {"type": "string", "logicalType": "uuid"}
        assert self.read(Thing, kind, "6ba7b810-9dad-11d1-80b4-00c04fd430c8") == UUID(
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
        )
        with pytest.raises(DecodeError, match="column x: expected a UUID, got str"):
            self.read(Thing, kind, "secret")


class TestNames:
    def test_a_column_whose_name_avro_cannot_spell_is_read_by_its_adjusted_name(self):
        # AvroSchemaNameAdjuster: with field.name.adjustment.mode=avro "first-name" is sent as "first_name".
        from pydantic import Field

        class Person(Row, table="public.users"):
            id: int
            name: str = Field(alias="first_name")

        schema = envelope_schema(("id", "long"), ("first_name", "string"))
        decoded = Decoder(schemas=Schemas({7: schema})).decode(
            confluent(7, write(schema, created(id=1, first_name="Ada")))
        )
        assert isinstance(decoded, Envelope)

        change = Create(decoded, RowReader(Person, Placeholder()))

        assert change.after == Person(id=1, name="Ada")
        assert change.is_changed("name")

    def test_an_adjusted_schema_name_does_not_move_a_table(self):
        # The names in the schema are adjusted, the values in the source block are not.
        schema = envelope_schema(("id", "long"), namespace="my_forum.public.order_lines")
        value = {**created(id=1), "source": {**SOURCE, "name": "my-forum", "table": "order-lines"}}

        decoded = Decoder(schemas=Schemas({7: schema})).decode(confluent(7, write(schema, value)))

        assert isinstance(decoded, Envelope)
        assert (decoded.source.name, str(decoded.source.table_id)) == ("my-forum", "public.order-lines")


class TestRows:
    def test_changed_columns_are_compared_as_they_stand_on_the_wire(self):
        class Reading(Row, table="public.users"):
            id: int
            x: float | None

        schema = envelope_schema(("id", "long"), ("x", ["null", "double"]), ("y", "bytes"))
        value = {"before": {"id": 1, "x": float("nan"), "y": b"a"}, "after": {"id": 1, "x": float("nan"), "y": b"b"},
                 "source": SOURCE, "op": "u"}  # fmt: skip
        decoded = Decoder(schemas=Schemas({7: schema})).decode(confluent(7, write(schema, value)))
        assert isinstance(decoded, Envelope)

        assert Update(decoded, RowReader(Reading, Placeholder())).changed_columns == {"y"}
