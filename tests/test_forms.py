"""Every form that a message may have, beside the captured ones: DEBEZIUM.md's "What a parser must know", point by point."""

from __future__ import annotations

import json
from base64 import b64encode
from io import BytesIO
from struct import pack
from typing import Any, ClassVar

import fastavro
import msgspec
import pytest

from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Drop, Envelope, Operation, RowSchema, Source, is_null, read_image
from cdc_reactor.errors import DecodeError
from cdc_reactor.messages import Message
from cdc_reactor.schemas import KeptSchemas

SOURCE: dict[str, Any] = {
    "version": "3.6.3.Final",
    "connector": "postgresql",
    "name": "forum",
    "ts_ms": 1795443309471,
    "snapshot": "false",
    "db": "forum",
    "sequence": '["25757391","25757392"]',
    "schema": "public",
    "table": "users",
    "txId": 745,
    "lsn": 25757392,
    "xmin": None,
}
WHERE = Source(name="forum", ts_ms=1795443309471, schema="public", table="users", lsn=25757392)
ROW = {"id": 1, "name": "Ada"}
ENVELOPE = {"before": None, "after": ROW, "source": SOURCE, "transaction": None, "op": "c", "ts_ms": 1795443309756}


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def decode(value: Any, attributes: dict[str, str] | None = None, **options: Any) -> Envelope | Drop:
    data = value if isinstance(value, bytes) else encode(value)
    return Decoder(**options).decode(Message(data, attributes or {}))


def wrapped(value: Any, name: str | None = "forum.public.users.Envelope", **schema: Any) -> dict[str, Any]:
    return {"schema": {"type": "struct", "fields": [], "optional": False, "name": name, **schema}, "payload": value}


def facts(decoded: Envelope | Drop) -> Any:
    if isinstance(decoded, Drop):
        return decoded
    return decoded.op, decoded.source, read_image(decoded.before), read_image(decoded.after)


def refusal(value: Any, attributes: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(DecodeError) as refused:
        decode(value, attributes, **options)
    return str(refused.value)


class TestHeartbeats:
    """HeartbeatImpl, SchemaFactory.heartbeatValueSchema."""

    HEARTBEAT: ClassVar[dict[str, Any]] = {"ts_ms": 1795443309917}

    @pytest.mark.parametrize(
        "value",
        [
            HEARTBEAT,
            {"ts_ms": 1, "ts_us": 1000, "ts_ns": 1_000_000},
            wrapped(HEARTBEAT, "io.debezium.connector.common.Heartbeat"),
            wrapped({"ts_ms": 1, "more": 2}, "io.debezium.connector.common.Heartbeat"),
            wrapped(HEARTBEAT, None),
            {"schema": None, "payload": HEARTBEAT},
        ],
    )
    @pytest.mark.parametrize("topic", ["__debezium-heartbeat.forum", "forum-changes", "outbox", ""])
    def test_a_heartbeat_is_known_by_its_body_whatever_its_topic(self, value, topic):
        assert decode(value, {"destination": topic}) is Drop.HEARTBEAT

    def test_a_flattened_row_of_one_time_is_no_heartbeat_where_the_schema_says_so(self):
        assert "__op" in refusal(wrapped({"ts_ms": 5}, "forum.public.clock.Value"))

    def test_a_flattened_row_of_one_time_is_no_heartbeat_where_it_names_its_table(self):
        row = {"ts_ms": 5, "__op": "c", "__table": "clock", "__schema": "public"}

        assert facts(decode(row)) == (Operation.CREATE, Source(schema="public", table="clock"), None, {"ts_ms": 5})


class TestNothing:
    CURE = "transforms.unwrap.delete.tombstone.handling.mode=rewrite"

    def test_a_tombstone_has_no_body(self):
        assert decode(b"") is Drop.TOMBSTONE

    @pytest.mark.parametrize(
        "value",
        [None, {"schema": None, "payload": None}, wrapped(None), wrapped(None, "forum.public.users.Value"), b" null\n"],
    )
    def test_a_null_body_is_no_tombstone_and_the_error_names_the_option(self, value):
        assert self.CURE in refusal(value)

    @pytest.mark.parametrize("value", [{}, {"schema": {}}, {"payload": {}}, {"id": 1}, {"schema": {}, "payload": {}}])
    def test_an_object_that_says_nothing_is_refused_and_told_of_add_fields(self, value):
        assert "add.fields=op,table,schema" in refusal(value)

    @pytest.mark.parametrize(
        ("value", "kind"), [([], "list"), (1, "int"), (True, "bool"), ("text", "str"), (1.5, "float")]
    )
    def test_what_is_no_object_is_refused_by_its_type_alone(self, value, kind):
        assert refusal(value) == refusal(wrapped(value)) == f"a change event is a JSON object, not {kind}"


class TestTransactions:
    """TransactionStructMaker, SchemaFactory.transactionValueSchema."""

    BEGIN: ClassVar[dict[str, Any]] = {
        "status": "BEGIN",
        "id": "747:25757944",
        "event_count": None,
        "data_collections": None,
        "ts_ms": 1,
    }
    END: ClassVar[dict[str, Any]] = {
        "status": "END",
        "id": "747:25758144",
        "event_count": 1,
        "data_collections": [{"data_collection": "public.users", "event_count": 1}],
        "ts_ms": 1,
    }
    NAME = "io.debezium.connector.common.TransactionMetadataValue"

    @pytest.mark.parametrize("value", [BEGIN, END])
    def test_markers_are_known_with_and_without_schema_and_in_older_versions_without_a_time(self, value):
        older = {name: v for name, v in value.items() if name != "ts_ms"}

        decoded = [decode(v) for v in (value, older, wrapped(value, self.NAME), wrapped(value, None))]

        assert decoded == [Drop.TRANSACTION] * 4

    def test_a_status_alone_is_no_marker(self):
        assert "add.fields" in refusal({"status": "BEGIN", "id": 1})

    def test_a_flattened_row_with_the_columns_of_a_marker_is_a_row(self):
        row = {**self.BEGIN, "__op": "u", "__table": "jobs", "__schema": "public"}

        assert facts(decode(row))[3] == self.BEGIN


class TestOtherNews:
    def test_notifications_are_known_with_and_without_schema(self):
        # SchemaFactory.notificationValueSchema; sent by the channel "sink"
        old = {"id": "5563ae14", "aggregate_type": "Initial Snapshot", "type": "STARTED", "additional_data": {"a": "b"}}
        new = {**old, "timestamp": 1695817046353}

        decoded = [decode(v) for v in (old, new, wrapped(new, "io.debezium.connector.common.Notification"))]

        assert decoded == [Drop.NOTIFICATION] * 3

    @pytest.mark.parametrize("connector", ["mysql", "mariadb", "sqlserver", "oracle", "db2"])
    def test_schema_changes_are_known_with_and_without_schema(self, connector):
        # SchemaFactory.schemaHistoryConnectorValueSchema, HistoryRecord.Fields
        source = {**SOURCE, "connector": connector, "schema": None, "table": "users"}
        value = {
            "source": source,
            "ts_ms": 1,
            "databaseName": "forum",
            "schemaName": None,
            "ddl": "CREATE TABLE users (id INT)",
            "tableChanges": [],
        }
        without_ddl = {name: v for name, v in value.items() if name != "ddl"}
        old = {name: v for name, v in value.items() if name in ("source", "databaseName", "ddl")}

        decoded = [decode(v) for v in (value, without_ddl, old)]
        named = decode(wrapped(value, f"io.debezium.connector.{connector}.SchemaChangeValue"))

        assert [*decoded, named] == [Drop.SCHEMA_CHANGE] * 4

    @pytest.mark.parametrize("tx_id", [755, None])
    def test_a_logical_message_is_an_envelope_without_table(self, tx_id):
        value = {
            "op": "m",
            "ts_ms": 1,
            "source": {**SOURCE, "schema": "", "table": "", "txId": tx_id},
            "transaction": None,
            "message": {"prefix": "forum", "content": "bW9kZXJhdG9yIG5vdGU="},
        }
        expected = (
            Operation.MESSAGE,
            Source(name="forum", ts_ms=1795443309471, schema="", table="", lsn=25757392),
            None,
            None,
        )

        assert facts(decode(value)) == expected
        assert facts(decode(wrapped(value, "io.debezium.connector.postgresql.MessageValue"))) == expected


class TestEnvelopes:
    @pytest.mark.parametrize("op", list(Operation))
    def test_every_operation_is_read_with_and_without_schema(self, op):
        value = {**ENVELOPE, "op": op.value}

        assert facts(decode(value)) == facts(decode(wrapped(value))) == (op, WHERE, None, ROW)

    @pytest.mark.parametrize("op", ["", "x", "C", "create", None, 1, ["c"], {"c": 1}, True])
    def test_an_unknown_operation_is_refused(self, op):
        assert refusal({**ENVELOPE, "op": op}) == "op is none of r, c, u, d, t and m, which are all that Debezium sends"

    @pytest.mark.parametrize(
        "snapshot",
        [
            "first",
            "first_in_data_collection",
            "true",
            "last_in_data_collection",
            "last",
            "false",
            "incremental",
            True,
            None,
        ],
    )
    def test_source_snapshot_may_be_anything(self, snapshot):
        value = {**ENVELOPE, "op": "r", "source": {**SOURCE, "snapshot": snapshot}}

        assert facts(decode(value)) == (Operation.READ, WHERE, None, ROW)

    def test_an_incremental_snapshot_knows_no_position(self):
        source = {**SOURCE, "snapshot": "incremental", "lsn": None, "txId": None}

        decoded = decode({**ENVELOPE, "op": "r", "source": source})

        assert facts(decoded) == (
            Operation.READ,
            Source(name="forum", ts_ms=1795443309471, schema="public", table="users"),
            None,
            ROW,
        )

    def test_a_truncate_has_neither_row(self):
        decoded = decode({**ENVELOPE, "op": "t", "after": None})

        assert isinstance(decoded, Envelope)
        assert facts(decoded) == (Operation.TRUNCATE, WHERE, None, None)
        assert is_null(decoded.before)
        assert is_null(decoded.after)

    @pytest.mark.parametrize("space", [b"", b" ", b"\n\t"])
    def test_white_space_within_a_message_means_nothing(self, space):
        data = json.dumps(ENVELOPE).encode().replace(b": ", b":" + space).replace(b", ", space + b"," + space)

        decoded = decode(data)

        assert isinstance(decoded, Envelope)
        assert facts(decoded) == (Operation.CREATE, WHERE, None, ROW)
        assert is_null(decoded.before)

    def test_rows_that_are_left_out_are_null(self):
        decoded = decode({"source": SOURCE, "op": "u"})

        assert isinstance(decoded, Envelope)
        assert is_null(decoded.before)
        assert is_null(decoded.after)

    @pytest.mark.parametrize(
        "order",
        [
            ("before", "after", "source", "op", "ts_ms", "transaction"),
            ("op", "ts_ms", "source", "after", "before"),
            ("transaction", "ts_ms", "op", "source", "after", "before"),
            ("after", "source", "before", "op"),
        ],
    )
    def test_the_order_of_fields_means_nothing(self, order):
        value = {name: ENVELOPE[name] for name in order}

        assert facts(decode(value)) == facts(decode(wrapped(value))) == (Operation.CREATE, WHERE, None, ROW)

    def test_version_0_9_knew_no_commit_time_in_milliseconds(self):
        source = {
            "version": "0.9.5.Final",
            "connector": "postgresql",
            "name": "foo",
            "db": "foo",
            "ts_usec": 1601213844074632,
            "txId": 644,
            "lsn": 28581784,
            "schema": "bar",
            "table": "events",
            "snapshot": False,
            "last_snapshot_record": None,
        }

        decoded = decode({"before": None, "after": ROW, "source": source, "op": "c", "ts_ms": 1601213844598})

        assert facts(decoded) == (
            Operation.CREATE,
            Source(name="foo", schema="bar", table="events", lsn=28581784),
            None,
            ROW,
        )

    def test_fields_that_nobody_knows_are_ignored(self):
        value = {
            **ENVELOPE,
            "ts_us": 1,
            "ts_ns": 1,
            "schemaVersion": {"a": [1]},
            "source": {**SOURCE, "origin": "x", "new": [{}]},
        }

        assert facts(decode(value)) == (Operation.CREATE, WHERE, None, ROW)

    def test_columns_may_have_any_name(self):
        row = {
            "id": 1, "op": "d", "before": {"id": 2}, "after": None, "source": {"table": "x"}, "schema": "s", "payload": {"op": "t"},
            "ts_ms": 5, "status": "BEGIN", "specversion": "1.0", "type": "t", "transaction": None, "__op": "x", "__table": "y",
        }  # fmt: skip
        value = {**ENVELOPE, "before": row, "after": row, "op": "u"}

        assert facts(decode(value)) == facts(decode(wrapped(value))) == (Operation.UPDATE, WHERE, row, row)

    @pytest.mark.parametrize(
        "digits", ["9" * 16, "9" * 19, "1" + "0" * 30, "7" * 4300, "7" * 4301, "3" * 9001, "1" * 130_000]
    )
    @pytest.mark.parametrize("sign", ["", "-"])
    def test_integers_are_exact_at_any_length(self, digits, sign):
        data = encode(ENVELOPE).replace(b'"name":"Ada"', b'"n":' + (sign + digits).encode())

        decoded = decode(data)

        assert isinstance(decoded, Envelope)
        row = read_image(decoded.after)
        assert row is not None
        assert row["n"] == (-1 if sign else 1) * by_hand(digits)

    def test_an_integer_longer_than_any_of_postgresql_is_refused_at_once(self):
        decoded = decode(encode(ENVELOPE).replace(b'"name":"Ada"', b'"n":' + b"9" * 5_000_000))

        assert isinstance(decoded, Envelope)
        with pytest.raises(DecodeError, match="an integer of 5,000,000 digits, more than PostgreSQL has"):
            read_image(decoded.after)

    @pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"9" * 400 + b".5"])
    def test_a_number_that_no_double_holds_is_refused_and_not_infinite(self, number):
        decoded = decode(encode(ENVELOPE).replace(b'"name":"Ada"', b'"n":' + number))

        assert isinstance(decoded, Envelope)
        with pytest.raises(DecodeError, match="too large for a double"):
            read_image(decoded.after)

    @pytest.mark.parametrize(
        "value", [b'"\xff"', b'"\\ud800"', b'"\\udc00\\ud800"', b"[" * 5000 + b"]" * 5000, b'{"\xc3\x28":1}'],
    )  # fmt: skip
    def test_what_is_wrong_within_a_row_is_the_error_of_that_change(self, value):
        data = encode(ENVELOPE).replace(b'"name":"Ada"', b'"name":' + value)

        # Some of it is seen at once, and some when the row is read.
        with pytest.raises(DecodeError, match=r"^not JSON: "):
            facts(decode(data))

    def test_a_row_that_is_no_utf_8_leaves_the_other_row_readable(self):
        data = encode({**ENVELOPE, "op": "u", "before": ROW}).replace(
            b'"after":{"id":1,"name":"Ada"', b'"after":{"id":1,"name":"\xff"'
        )

        decoded = decode(data)

        assert isinstance(decoded, Envelope)
        assert read_image(decoded.before) == ROW
        with pytest.raises(DecodeError):
            read_image(decoded.after)

    @pytest.mark.parametrize("image", [b"1", b"[]", b"true", b'"text"', b'"[1]"', b'"\\"{}\\""'])
    def test_a_row_that_is_no_object_is_refused_when_it_is_read_or_before(self, image):
        for data in (
            encode({**ENVELOPE, "after": 0}).replace(b'"after":0', b'"after":' + image),
            encode({**ENVELOPE, "after": 0, "source": {"db": "d", "table": "t"}}).replace(
                b'"after":0', b'"after":' + image
            ),
        ):
            with pytest.raises(DecodeError):
                facts(decode(data))


def by_hand(digits: str) -> int:
    value = 0
    for start in range(0, len(digits), 4000):
        chunk = digits[start : start + 4000]
        value = value * 10 ** len(chunk) + int(chunk)
    return value


class TestOtherDatabases:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            pytest.param(
                {"connector": "mysql", "name": "shop", "ts_ms": 1, "db": "inventory", "table": "orders", "server_id": 1,
                 "gtid": None, "file": "binlog.000003", "pos": 154, "row": 0, "thread": 7, "query": None},
                Source(name="shop", ts_ms=1, schema="inventory", table="orders"),
                id="mysql",
            ),
            pytest.param(
                {"connector": "sqlserver", "name": "s", "ts_ms": 1, "db": "testDB", "schema": "dbo", "table": "orders",
                 "change_lsn": "00000027:00000758:0003", "commit_lsn": "00000027:00000758:0005", "event_serial_no": "1"},
                Source(name="s", ts_ms=1, schema="dbo", table="orders"),
                id="sqlserver",
            ),
            pytest.param(
                {"connector": "oracle", "name": "o", "ts_ms": 1, "db": "ORCLPDB1", "schema": "DEBEZIUM", "table": "CUSTOMERS",
                 "txId": "06000f00", "scn": "2122185", "commit_scn": "2122185", "lcr_position": None},
                Source(name="o", ts_ms=1, schema="DEBEZIUM", table="CUSTOMERS"),
                id="oracle",
            ),
            pytest.param(
                {"connector": "vitess", "name": "v", "ts_ms": 1, "db": "", "keyspace": "k", "table": "orders", "vgtid": "[]"},
                Source(name="v", ts_ms=1, schema="", table="orders"),
                id="vitess",
            ),
            pytest.param({**SOURCE, "lsn": "25757392"}, WHERE, id="lsn as text"),
            pytest.param({**SOURCE, "lsn": "0000002a:00000758:0003"}, Source(**{**msgspec.structs.asdict(WHERE), "lsn": None}), id="lsn of another kind"),
            pytest.param({**SOURCE, "ts_ms": "1795443309471"}, WHERE, id="time as text"),
            pytest.param({**SOURCE, "schema": None}, Source(**{**msgspec.structs.asdict(WHERE), "schema": "forum"}), id="no schema"),
        ],
    )  # fmt: skip
    def test_the_source_block_is_made_one(self, source, expected):
        value = {**ENVELOPE, "source": source}

        assert facts(decode(value)) == facts(decode(wrapped(value))) == (Operation.CREATE, expected, None, ROW)

    def test_mongodb_sends_documents_as_json_in_a_string(self):
        source = {
            "connector": "mongodb",
            "name": "m",
            "ts_ms": 1,
            "db": "shop",
            "collection": "orders",
            "ord": 1,
            "lsid": None,
        }
        document = {"_id": {"$oid": "64b0"}, "total": {"$numberLong": "5"}}
        value = {
            "before": None,
            "after": json.dumps(document),
            "updateDescription": {"removedFields": None, "updatedFields": '{"total": 5}'},
            "source": source,
            "op": "u",
            "ts_ms": 2,
        }

        assert facts(decode(value)) == (
            Operation.UPDATE,
            Source(name="m", ts_ms=1, schema="shop", table="orders"),
            None,
            document,
        )

    def test_a_source_block_without_table_is_refused(self):
        assert refusal({**ENVELOPE, "source": {"db": "d"}}) == "the source block names no table and no collection"

    def test_text_for_a_row_may_hold_what_no_text_holds(self):
        value = encode({**ENVELOPE, "source": {"db": "d", "table": "t"}, "after": "X", "more": 1})
        value = value.replace(b'"X"', b'"\\ud800"').replace(b'"more":1', b'"more":' + b"9" * 5000)

        assert "not JSON" in refusal(value)


class TestCloudEvents:
    """CloudEventsConverter; attributes are named "iodebezium" and the letters and digits of the field's name."""

    EVENT: ClassVar[dict[str, Any]] = {
        "id": "name:forum;lsn:25757392;txId:745",
        "source": "/debezium/postgresql/forum",
        "specversion": "1.0",
        "type": "io.debezium.connector.postgresql.DataChangeEvent",
        "time": "2026-11-23T14:15:09.471Z",
        "datacontenttype": "application/json",
        "iodebeziumop": "u",
        "iodebeziumversion": "3.6.3.Final",
        "iodebeziumconnector": "postgresql",
        "iodebeziumname": "forum",
        "iodebeziumtsms": "1795443309471",
        "iodebeziumsnapshot": "false",
        "iodebeziumdb": "forum",
        "iodebeziumschema": "public",
        "iodebeziumtable": "users",
        "iodebeziumtxId": "745",
        "iodebeziumtxid": "745:25757392",
        "iodebeziumlsn": "25757392",
        "iodebeziumxmin": None,
    }
    BOTH: ClassVar[dict[str, Any]] = {"before": {"id": 1, "name": None}, "after": ROW}

    def test_op_and_source_stand_beside_the_data(self):
        decoded = decode({**self.EVENT, "data": self.BOTH})

        assert facts(decoded) == (Operation.UPDATE, WHERE, self.BOTH["before"], ROW)

    def test_the_data_may_carry_its_schema(self):
        columns = [{"type": "int64", "field": "id"}, {"type": "bytes", "optional": True, "field": "name"}]
        struct = {"type": "struct", "fields": columns, "name": "forum.public.users.Value"}
        block = {"type": "struct", "name": "io.debezium.connector.postgresql.Data",
                 "fields": [{**struct, "field": "before"}, {**struct, "field": "after"}]}  # fmt: skip

        decoder = Decoder()
        got = [
            decoder.decode(Message(encode({**self.EVENT, "data": {"schema": block, "payload": self.BOTH}})))
            for _ in range(2)
        ]

        assert [facts(d) for d in got] == [(Operation.UPDATE, WHERE, self.BOTH["before"], ROW)] * 2
        schemas = [d.schema for d in got if isinstance(d, Envelope)]
        assert isinstance(schemas[0], RowSchema)
        assert list(schemas[0].converters) == ["name"]
        assert schemas[0] is schemas[1]

    def test_the_data_may_be_an_envelope_whole(self):
        bare = {name: v for name, v in self.EVENT.items() if not name.startswith("iodebezium")}

        for data in (ENVELOPE, wrapped(ENVELOPE)):
            assert facts(decode({**bare, "data": data})) == (Operation.CREATE, WHERE, None, ROW)
            assert facts(decode({**self.EVENT, "data": data})) == (Operation.UPDATE, WHERE, None, ROW)

    def test_with_metadata_from_headers_the_data_is_a_flattened_row_of_any_columns(self):
        row = {"id": 1, "op": "x", "status": "BEGIN", "before": 5}

        assert facts(decode({**self.EVENT, "data": row})) == (Operation.UPDATE, WHERE, None, row)
        assert facts(decode({**self.EVENT, "iodebeziumop": "d", "data": row})) == (Operation.DELETE, WHERE, row, None)

    def test_a_truncate_has_neither_row(self):
        value = {**self.EVENT, "iodebeziumop": "t", "data": {"before": None, "after": None}}

        assert facts(decode(value)) == (Operation.TRUNCATE, WHERE, None, None)

    def test_the_data_may_be_avro_in_base64(self):
        row = {
            "type": "record",
            "name": "Value",
            "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "string"}],
        }
        schema = {
            "type": "record",
            "name": "Data",
            "fields": [{"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Value"]}],
        }
        stream = BytesIO(pack(">bI", 0, 7))
        stream.seek(5)
        fastavro.schemaless_writer(stream, schema, {"before": None, "after": ROW})
        event = {**self.EVENT, "datacontenttype": "application/avro", "dataschema": "http://r/schemas/ids/7"}
        schemas = KeptSchemas({7: schema})

        decoded = decode({**event, "data": b64encode(stream.getvalue()).decode()}, schemas=schemas)

        assert facts(decoded) == (Operation.UPDATE, WHERE, None, ROW)
        assert (
            refusal({**event, "data": "no base64"}, schemas=schemas)
            == "the data of a CloudEvent of application/avro is no base64 text"
        )
        assert "add --schemas" in refusal({**event, "data": "AAAAAAcA"})

    def test_heartbeats_have_null_values(self):
        # CloudEventsConverter.fromConnectData: null for all that is no envelope
        assert decode(b"") is Drop.TOMBSTONE
        bare = {name: v for name, v in self.EVENT.items() if not name.startswith("iodebezium")}
        assert decode({**bare, "data": {"ts_ms": 5}}) is Drop.HEARTBEAT

    @pytest.mark.parametrize("data", [None, {}, BOTH, "text", 5])
    def test_without_extension_attributes_nothing_says_which_table_it_is(self, data):
        bare = {name: v for name, v in self.EVENT.items() if not name.startswith("iodebezium")}

        assert "extension.attributes.enable=true" in refusal({**bare, "data": data})

    def test_a_flattened_row_with_such_columns_is_never_dropped_and_told_of_add_fields(self):
        assert "add.fields" in refusal({"id": 1, "specversion": "1.0", "source": "web", "type": "a"})

    @pytest.mark.parametrize("data", [None, 5, "text", []])
    def test_data_that_is_no_object_is_refused(self, data):
        assert refusal({**self.EVENT, "data": data}).startswith("the data of a CloudEvent is an object, not ")


class TestOutbox:
    """EventRouterDelegate: the payload column, as text or expanded; header id; topic outbox.event.<type>."""

    @pytest.mark.parametrize(
        "value",
        ['{"order": 1}', "text", "", wrapped('{"order": 1}', None, type="string"), {"schema": None, "payload": "x"}],
    )
    def test_json_in_a_string_with_the_header_id_is_the_outbox(self, value):
        assert decode(value, {"id": "4d47e190"}) is Drop.OUTBOX

    @pytest.mark.parametrize(
        "value", [{"order": 1}, {"payload": {"order": 1}, "version": 1}, [1], wrapped({"order": 1}, None), None]
    )
    def test_an_expanded_object_is_known_by_its_topic(self, value):
        assert decode(value, {"destination": "outbox.event.order"}) is Drop.OUTBOX

    def test_envelopes_are_changes_whatever_their_topic(self):
        assert facts(decode(ENVELOPE, {"destination": "outbox.event.order", "id": "1"})) == (
            Operation.CREATE,
            WHERE,
            None,
            ROW,
        )

    def test_text_without_the_header_is_refused(self):
        assert refusal("text") == "a change event is a JSON object, not str"


class TestFlattenedRows:
    """ExtractNewRecordState; AbstractExtractNewRecordState.FieldReference names the fields that it adds."""

    ADDED: ClassVar[dict[str, Any]] = {
        "__op": "c",
        "__table": "users",
        "__schema": "public",
        "__lsn": 25757392,
        "__source_ts_ms": 1795443309471,
        "__name": "forum",
    }

    @pytest.mark.parametrize("op", ["c", "u", "r"])
    def test_a_row_with_op_and_table_is_a_change(self, op):
        value = {**ROW, **self.ADDED, "__op": op, "__deleted": "false"}

        expected = (Operation(op), WHERE, None, ROW)
        assert facts(decode(value)) == expected
        assert facts(decode(wrapped(value, "forum.public.users.Value"))) == expected
        assert facts(decode(wrapped(value, None))) == expected

    def test_a_rewritten_delete_is_a_delete(self):
        value = {**ROW, **self.ADDED, "__op": "d", "__deleted": "true"}

        assert facts(decode(value)) == (Operation.DELETE, WHERE, ROW, None)

    def test_a_truncate_has_neither_row(self):
        assert facts(decode({**self.ADDED, "__op": "t"})) == (Operation.TRUNCATE, WHERE, None, None)

    def test_the_prefix_may_be_another_and_deleted_keeps_its_own(self):
        added = {name.replace("__", "cdc."): value for name, value in self.ADDED.items()}

        decoded = decode({**ROW, **added, "__deleted": "false"}, unwrapped_prefix="cdc.")

        assert facts(decoded) == (Operation.CREATE, WHERE, None, ROW)

    def test_fields_may_be_added_by_their_path(self):
        added = {"__op": "c", "__source_table": "users", "__source_schema": "public", "__source_lsn": 25757392,
                 "__source_ts_ms": 1795443309471, "__source_name": "forum"}  # fmt: skip

        assert facts(decode({**ROW, **added})) == (Operation.CREATE, WHERE, None, ROW)

    def test_mysql_names_its_database(self):
        decoded = decode({**ROW, "__op": "c", "__table": "orders", "__db": "shop", "__ts_ms": 7})

        assert facts(decoded) == (Operation.CREATE, Source(ts_ms=7, schema="shop", table="orders"), None, ROW)

    def test_the_schema_of_the_row_is_compiled(self):
        columns = [
            {"type": "int64", "field": "id"},
            {"type": "int32", "name": "io.debezium.time.Date", "field": "name"},
        ]
        value = wrapped({"id": 1, "name": 5, **self.ADDED}, "forum.public.users.Value", fields=columns)

        decoded = decode(value)

        assert isinstance(decoded, Envelope)
        assert decoded.schema is not None
        assert list(decoded.schema.converters) == ["name"]

    @pytest.mark.parametrize(
        ("value", "missing"),
        [
            (ROW, "__op, __table, __schema"),
            ({**ROW, "__op": "c"}, "__table, __schema"),
            ({**ROW, "__op": "c", "__table": "users"}, "__schema"),
            ({**ROW, "__deleted": "false"}, "__op, __table, __schema"),
            ({**ROW, "op": "c", "source": "web", "schema": "public", "table": "users"}, "__op, __table, __schema"),
        ],
    )
    def test_what_is_missing_is_named_and_so_is_the_option(self, value, missing):
        assert f"flattened row with {missing};" in refusal(value)
        assert "transforms.unwrap.add.fields=op,table,schema,lsn,source.ts_ms" in refusal(value)

    def test_the_prefix_that_is_missing_is_the_one_that_was_given(self):
        assert "with cdc_op, cdc_table, cdc_schema;" in refusal({**ROW, **self.ADDED}, unwrapped_prefix="cdc_")

    @pytest.mark.parametrize(
        "columns",
        [
            {"op": "d", "before": 1, "after": 2, "source": "web", "ts_ms": 3},
            {"op": "c", "source": {"schema": 1, "table": "x"}},
            {"schema": "s", "payload": "p"},
            {"schema": {"type": "x"}, "payload": {"a": 1}},
            {"status": "BEGIN", "id": 1, "event_count": 2, "data_collections": 3, "ts_ms": 4},
            {"specversion": "1.0", "source": "web", "type": "t", "id": 1, "data": None},
            {"source": "x", "ddl": "DROP", "databaseName": "d", "tableChanges": []},
            {"id": 1, "aggregate_type": "a", "type": "t", "additional_data": {}},
            {"ts_ms": 1, "ts_us": 2, "ts_ns": 3},
        ],
    )
    def test_columns_may_have_any_name(self, columns):
        assert facts(decode({**columns, **self.ADDED})) == (Operation.CREATE, WHERE, None, columns)
        named = wrapped({**columns, **self.ADDED}, "forum.public.users.Value")
        assert facts(decode(named)) == (Operation.CREATE, WHERE, None, columns)

    def test_no_value_of_the_row_stands_in_the_error(self):
        text = refusal({"id": 4711, "name": "Ada Lovelace", "__op": "c"})

        assert "4711" not in text
        assert "Ada" not in text
