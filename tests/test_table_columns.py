"""The columns of a table, as captures and PostgreSQL tell of them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_reactor.envelope import TableId
from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.scaffold import Column, Table, write_sources
from cdc_reactor.table_columns import (
    CaptureOptions,
    choose_table,
    connect_type,
    read_captured_table,
    read_postgres_table,
)

ROOT = Path(__file__).parents[1]
CAPTURES = ROOT / "tests" / "captures"
REGISTRY = CAPTURES / "forum_avro.registry.json"

NOT_NULL, NULLABLE = False, True


def columns(*described: tuple[Any, ...]) -> tuple[Column, ...]:
    return tuple(Column(*each) for each in described)


WITH_SCHEMA = {
    "users": Table(
        TableId("public", "users"),
        columns(
            ("id", "int"),
            ("handle", "str"),
            ("email", "str", NULLABLE),
            ("karma", "int", NULLABLE),
            ("joined", "datetime", NULLABLE),
        ),
        key=("id",),
        identity="default",
    ),
    "posts": Table(
        TableId("public", "posts"),
        columns(
            ("id", "int"),
            ("author", "int"),
            ("title", "str", NULLABLE),
            ("body", "str", NULLABLE),
            ("tags", "list[str | None]", NULLABLE),
            ("meta", "Json[Any]", NULLABLE),
            ("score", "Annotated[Decimal, DecimalBytes(2)]", NULLABLE),
            ("published", "EpochDays", NULLABLE),
        ),
        key=("id",),
        identity="default",
    ),
    "comments": Table(
        TableId("public", "comments"),
        columns(("id", "int"), ("post", "int", NULLABLE), ("author", "int", NULLABLE), ("text", "str", NULLABLE)),
        key=("id",),
        identity="full",
    ),
    "votes": Table(
        TableId("public", "votes"),
        columns(("post", "int"), ("voter", "int"), ("value", "int", NULLABLE)),
        key=("post", "voter"),
        identity="default",
    ),
    "visits": Table(
        TableId("public", "visits"),
        columns(("at", "MicroTimestamp", NULLABLE), ("page", "str", NULLABLE)),
        notes=("No key was seen, so all rows are one lane, in order: name the key's columns as key=(…) above.",),
    ),
}


@pytest.mark.parametrize("capture", ["forum_schemas_on.records.ndjson", "forum_avro.records.ndjson"])
@pytest.mark.parametrize("table", WITH_SCHEMA)
def test_a_schema_says_it_all(capture, table):
    assert read_captured_table(str(CAPTURES / capture), table) == WITH_SCHEMA[table]


def test_avro_without_keys_needs_its_schemas_named():
    capture = str(CAPTURES / "forum_avro.values.b64")

    assert read_captured_table(capture, "users", CaptureOptions(schemas=str(REGISTRY))) == WITH_SCHEMA["users"]


def test_without_a_schema_values_tell_and_guesses_say_so():
    assert read_captured_table(str(CAPTURES / "forum_schemas_off.records.ndjson"), "public.posts") == Table(
        TableId("public", "posts"),
        columns(
            ("id", "int"),
            ("author", "int"),
            ("title", "str"),
            ("body", "str", NULLABLE),
            ("tags", "list[str | None]", NULLABLE),
            ("meta", "Json[Any]", NULLABLE, "a guess: every value was JSON text"),
            (
                "score",
                "str",
                NULLABLE,
                "maybe base64: Annotated[Decimal, DecimalBytes(SCALE)] for a numeric, Base64Bytes for bytea",
            ),
            ("published", "EpochDays", NULLABLE, "a guess: int where it is no date"),
        ),
        key=("id",),
        identity="default",
        notes=("Inferred from 4 rows without schema: check what is called a guess, and what may be null.",),
    )


def test_the_key_is_the_message_s_own():
    keyed = read_captured_table(str(CAPTURES / "forum_one_topic.records.ndjson"), "votes")
    keyless = read_captured_table(str(CAPTURES / "forum_one_topic.values.ndjson"), "votes")

    # ByLogicalTableRouter adds a field of its own to the key.
    assert (keyed.key, keyless.key) == (("post", "voter"), ())


# ── made-up captures ────────────────────────────────────────────────────────────────────────────────────────────────


def change(
    after: Any = None, before: Any = None, *, op: str = "c", table: str = "t", schema: str = "public", **more: Any
) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "source": {"name": "x", "schema": schema, "table": table},
        "op": op,
        **more,
    }


def capture_of(tmp_path: Path, changes: Iterable[Any]) -> str:
    path = tmp_path / "made.ndjson"
    path.write_text("".join(json.dumps(each) + "\n" for each in changes))
    return str(path)


def inferred(tmp_path: Path, *values: Any, name: str = "c") -> Column:
    path = capture_of(tmp_path, [change({"id": 1, name: value}) for value in values])
    return read_captured_table(path, "t").columns[1]


def b64(*octets: int) -> str:
    return base64.b64encode(bytes(octets)).decode()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((True, False), ("bool",)),
        ((1, 2), ("int",)),
        ((1, 2.5), ("float",)),
        ((2.5, None), ("float", NULLABLE)),
        ((None,), ("Any", NULLABLE, "a guess: only nulls were seen")),
        ((1, "a"), ("Any", NOT_NULL, "a guess: values of several types were seen")),
        (("a", "2026-11-23Z"), ("str",)),
        (("00000000-0000-0000-0000-000000000001",), ("UUID", NOT_NULL, "a guess: every value looked like one")),
        (
            ("2026-11-23T14:15:00Z", "2026-11-23T14:15:00.123456Z"),
            ("datetime", NOT_NULL, "a guess; IsoTimestamp where the column has no time zone"),
        ),
        (
            ("2026-11-23T14:15:00Z", "infinity", "+12026-01-01T00:00:00Z"),
            ("datetime | Infinity | IsoText", NOT_NULL, "a guess; IsoTimestamp where the column has no time zone"),
        ),
        (("2026-11-23Z",), ("IsoDate", NOT_NULL, "a guess: every value looked like a date")),
        (("14:15:00Z",), ("time", NOT_NULL, "a guess: every value looked like a time of day")),
        (("P0Y0M1DT2H3M4.5S",), ("Interval", NOT_NULL, "a guess: every value looked like an ISO interval")),
        (('{"a": 1}', "[]"), ("Json[Any]", NOT_NULL, "a guess: every value was JSON text")),
        (("1.50", "-2.25"), ("DecimalString", NOT_NULL, "a guess: digits as decimal.handling.mode=string writes them")),
        (({"scale": 2, "value": "AV4="},), ("VariableDecimal",)),
        (({"x": 1.0, "y": 2.0, "wkb": b64(1), "srid": None},), ("Point",)),
        (({"wkb": b64(1), "srid": 4326},), ("Geometry",)),
        (({"a": "b"},), ("dict[str, Any]",)),
        (([1, None], []), ("list[int | None]",)),
        (([],), ("list[Any]", NOT_NULL, "a guess: only empty arrays were seen")),
        (([{"a": 1}], [[1]]), ("list[Any]", NOT_NULL, "a guess: values of several types were seen")),
        ((1795443312645142,), ("MicroTimestamp", NOT_NULL, "a guess: int where it is no time")),
        ((1795443312645, 1795443312646), ("MilliTimestamp", NOT_NULL, "a guess: int where it is no time")),
        ((1795443312645142000,), ("int",)),
        ((20148,), ("int",)),
        (("__debezium_unavailable_value", "a"), ("str",)),
    ],
)
def test_a_type_is_inferred_from_values(tmp_path, values, expected):
    assert inferred(tmp_path, *values) == Column("c", *expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("created_at", 1795443312645142000, ("NanoTimestamp", NOT_NULL, "a guess: int where it is no time")),
        ("publishedDate", 20148, ("EpochDays", NOT_NULL, "a guess: int where it is no date")),
        ("message_id", 1795443312645142, ("int",)),
        ("messageId", 1795443312645, ("int",)),
        ("birthday", 3, ("int",)),
    ],
)
def test_the_name_of_a_number_says_whether_it_may_be_a_time(tmp_path, name, value, expected):
    assert inferred(tmp_path, value, name=name) == Column(name, *expected)


def test_rows_that_hold_a_key_only_teach_nothing_of_columns(tmp_path):
    deleted = change(before={"id": 1, "name": None}, op="d")

    seen = read_captured_table(capture_of(tmp_path, [change({"id": 1, "name": "a"}), deleted]), "t")
    only_deleted = read_captured_table(capture_of(tmp_path, [deleted]), "t")

    assert seen.columns == columns(("id", "int"), ("name", "str"))
    assert only_deleted.columns == columns(
        ("id", "int", NULLABLE), ("name", "Any", NULLABLE, "a guess: only nulls were seen")
    )
    assert only_deleted.notes == ("No row was seen but deleted ones, which may hold their key only: check every line.",)


@pytest.mark.parametrize(
    ("before", "identity"),
    [
        (None, "default"),
        ({"id": 1, "name": "a", "size": 5}, "full"),
        ({"id": 1, "name": "b", "size": None}, None),
        ({"id": 1, "name": "a", "size": 4}, None),
    ],
)
def test_updates_tell_the_replica_identity_where_they_can(tmp_path, before, identity):
    path = capture_of(tmp_path, [change({"id": 1, "name": "b", "size": 5}, before, op="u")])

    assert read_captured_table(path, "t").identity == identity


def with_schema(value: dict[str, Any], *fields: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "struct", "optional": True, "field": "after", "fields": list(fields)}
    return {"schema": {"type": "struct", "name": "x.Envelope", "fields": [row]}, "payload": value}


ID = {"type": "int64", "optional": False, "field": "id"}


def test_the_newest_schema_counts(tmp_path):
    old = {"type": "string", "optional": False, "field": "old"}
    new = {"type": "bytes", "optional": True, "field": "new"}
    path = capture_of(
        tmp_path,
        [with_schema(change({"id": 1, "old": "a"}), ID, old), with_schema(change({"id": 1, "new": "AA=="}), ID, new)],
    )

    assert read_captured_table(path, "t").columns == columns(("id", "int"), ("new", "Base64Bytes", NULLABLE))


def test_values_that_python_cannot_hold_are_admitted(tmp_path):
    far = {"type": "int64", "name": "io.debezium.time.MicroTimestamp", "optional": True, "field": "far"}
    days = {
        "type": "array",
        "items": {"type": "int32", "name": "io.debezium.time.Date", "optional": True},
        "optional": False,
        "field": "days",
    }
    row = {"id": 1, "far": 9223372036825200000, "days": [10**7, None]}

    assert read_captured_table(capture_of(tmp_path, [with_schema(change(row), ID, far, days)]), "t").columns == columns(
        ("id", "int"), ("far", "MicroTimestamp | Infinity", NULLABLE), ("days", "list[EpochDays | IsoText | None]")
    )


def test_flattened_rows_and_cloud_events_have_schemas_too(tmp_path):
    text = {"type": "string", "optional": True, "field": "name"}
    added = [{"type": "string", "optional": True, "field": f"__{name}"} for name in ("op", "table", "schema")]
    flat = {"id": 1, "name": "a", "__op": "c", "__table": "t", "__schema": "public"}
    block = {"type": "struct", "name": "x.public.t.Value", "fields": [ID, text, *added]}
    event = {
        "id": "1", "source": "/debezium/x", "specversion": "1.0", "type": "io.debezium.postgresql.datachangeevent",
        "iodebeziumop": "c", "iodebeziumname": "x", "iodebeziumschema": "public", "iodebeziumtable": "t",
        "data": with_schema({"before": None, "after": {"id": 1, "name": "a"}}, ID, text),
    }  # fmt: skip

    expected = columns(("id", "int"), ("name", "str", NULLABLE))
    for value in ({"schema": block, "payload": flat}, event):
        assert read_captured_table(capture_of(tmp_path, [value]), "t").columns == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "name": "io.debezium.data.Enum", "parameters": {"allowed": "a,b"}}, ("str", "one of a, b")),
        ({"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "3"}},
         ("Annotated[Decimal, DecimalBytes(3)]", "")),
        ({"type": "map", "keys": {"type": "string"}, "values": {"type": "string"}}, ("dict[str, str | None]", "")),
        ({"type": "map", "keys": {"type": "string"}, "values": {"type": "int32"}}, ("dict[str, Any]", "")),
        ({"type": "struct", "fields": []}, ("dict[str, Any]", "")),
        ({"type": "array", "items": {"type": "double", "optional": False}, "name": "io.debezium.data.DoubleVector"},
         ("list[float]", "")),
        ({"type": "strange"}, ("Any", "of a type that we do not know: strange")),
        ({"type": "string", "name": "io.debezium.data.Xml"}, ("str", "")),
    ],
)  # fmt: skip
def test_connect_schemas_become_annotations(schema, expected):
    found = connect_type(schema)

    assert (found.annotation, found.comment) == expected


def test_a_table_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    capture = str(CAPTURES / "forum_schemas_off.values.ndjson")
    with pytest.raises(
        UsageError, match=r"usrs: there is no such table in .*; did you mean users\? found: public\.comm"
    ):
        read_captured_table(capture, "usrs")
    with pytest.raises(UsageError, match=r"others: there are several such tables in here: a\.others, b\.others"):
        choose_table("others", [TableId("a", "others"), TableId("b", "others")], "here")
    with pytest.raises(UsageError, match=r"there is no table at all in .* \(2 messages cannot be decoded"):
        read_captured_table(capture_of(tmp_path, [{"a": 1}, {"b": 2}]), "t")


def test_reading_ends_once_enough_was_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("cdc_reactor.table_columns.MAX_MESSAGES", 2)
    changes = [change({"id": 1}), change({"id": 2}), change({"id": "x"})]

    assert read_captured_table(capture_of(tmp_path, changes), "public.t").columns == columns(("id", "int"))


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────

EVERYTHING = """
CREATE SCHEMA scaffold;
CREATE TYPE scaffold.mood AS ENUM ('sad', 'happy');
CREATE DOMAIN scaffold.price AS numeric(10, 3) NOT NULL;
CREATE TABLE scaffold.everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "class" text NOT NULL, "op-code" integer, "model_x" boolean, small smallint, r real, d double precision, o oid,
    free numeric, fixed numeric(8, 2), negative numeric(5, -2), price scaffold.price, cash money,
    zoned timestamptz, micro timestamp, milli timestamp(3), clock time, clock_ms time(2), clock_zoned timetz,
    day date, span interval, u uuid, j json, jb jsonb, b bytea, flag bit, flags bit(8), more_flags bit varying,
    mood scaffold.mood NOT NULL, point point, address inet, period tstzrange, doc xml, search tsvector, code "char",
    texts text[], numbers int8[], prices numeric(6, 1)[], uuids uuid[], days date[], moods scaffold.mood[], grid int[][],
    doubled integer GENERATED ALWAYS AS (small * 2) STORED, circle circle, monies money[], domains scaffold.price[],
    dropped text
);
ALTER TABLE scaffold.everything DROP COLUMN dropped;
ALTER TABLE scaffold.everything REPLICA IDENTITY FULL;
CREATE TABLE scaffold.pairs (b int, a int, note text, PRIMARY KEY (a, b) INCLUDE (note));
CREATE TABLE scaffold.unique_only (a int NOT NULL, b int NOT NULL UNIQUE);
CREATE TABLE scaffold.keyless (id int, at date);
CREATE TABLE scaffold.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE public.twice (here int);
CREATE TABLE scaffold.twice (there int);
"""

DEFAULTS = (
    "Debezium's defaults are assumed: decimal.handling.mode=precise, time.precision.mode=adaptive, "
    "interval.handling.mode=numeric, binary.handling.mode=bytes."
)
BITS = "an int where the schema comes along, else little-endian bytes"


@pytest.fixture(scope="module")
def database(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE scaffold")
    url = f"{postgres_url.rpartition('/')[0]}/scaffold"
    with psycopg.connect(url) as connection:
        connection.execute(EVERYTHING)
    return url


@pytest.mark.postgres
def test_postgresql_s_catalogue_says_it_all(database):
    assert read_postgres_table(database, "scaffold.everything") == Table(
        TableId("scaffold", "everything"),
        columns(
            ("id", "int"), ("class", "str"), ("op-code", "int", NULLABLE), ("model_x", "bool", NULLABLE),
            ("small", "int", NULLABLE), ("r", "float", NULLABLE), ("d", "float", NULLABLE), ("o", "int", NULLABLE),
            ("free", "VariableDecimal", NULLABLE), ("fixed", "Annotated[Decimal, DecimalBytes(2)]", NULLABLE),
            ("negative", "Annotated[Decimal, DecimalBytes(2046)]", NULLABLE),
            ("price", "Annotated[Decimal, DecimalBytes(3)]"),
            ("cash", "Annotated[Decimal, DecimalBytes(2)]", NULLABLE, "money.fraction.digits=2"),
            ("zoned", "datetime", NULLABLE), ("micro", "MicroTimestamp", NULLABLE), ("milli", "MilliTimestamp", NULLABLE),
            ("clock", "MicroTime", NULLABLE), ("clock_ms", "MilliTime", NULLABLE), ("clock_zoned", "time", NULLABLE),
            ("day", "EpochDays", NULLABLE), ("span", "MicroDuration", NULLABLE), ("u", "UUID", NULLABLE),
            ("j", "Json[Any]", NULLABLE), ("jb", "Json[Any]", NULLABLE), ("b", "Base64Bytes", NULLABLE),
            ("flag", "bool", NULLABLE), ("flags", "int | Base64Bytes", NULLABLE, BITS),
            ("more_flags", "int | Base64Bytes", NULLABLE, BITS), ("mood", "str", NOT_NULL, "one of sad, happy"),
            ("point", "Point", NULLABLE), ("address", "str", NULLABLE), ("period", "str", NULLABLE),
            ("doc", "str", NULLABLE), ("search", "str", NULLABLE), ("code", "str", NULLABLE),
            ("texts", "list[str | None]", NULLABLE), ("numbers", "list[int | None]", NULLABLE),
            ("prices", "list[Annotated[Decimal, DecimalBytes(1)] | None]", NULLABLE),
            ("uuids", "list[UUID | None]", NULLABLE), ("days", "list[EpochDays | None]", NULLABLE),
            ("moods", "list[str | None]", NULLABLE, "one of sad, happy"), ("grid", "list[int | None]", NULLABLE),
        ),
        key=("id",),
        identity="full",
        notes=(
            DEFAULTS,
            "Debezium does not send doubled (integer): generated columns are not in the WAL.",
            "Debezium does not send circle (circle), unless include.unknown.datatypes=true.",
            "Debezium does not send monies (money[]), unless include.unknown.datatypes=true.",
            "Debezium does not send domains (scaffold.price[]), unless include.unknown.datatypes=true.",
        ),
    )  # fmt: skip


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("table", "key"),
    [("pairs", ("a", "b")), ("unique_only", ("b",)), ("keyless", ()), ("parts", ("id",)), ("scaffold.twice", ())],
)
def test_a_row_s_key_is_that_of_the_table(database, table, key):
    found = read_postgres_table(database, table)

    assert (found.table_id, found.key, found.identity) == (TableId("scaffold", table.split(".")[-1]), key, "default")


@pytest.mark.postgres
def test_a_bare_name_means_the_table_in_public_first(database):
    assert read_postgres_table(database, "twice").table_id == TableId("public", "twice")


@pytest.mark.postgres
def test_a_database_answers_with_its_tables_and_says_why_it_does_not_answer(database):
    with pytest.raises(
        UsageError, match=r"keyles: there is no such table in the database scaffold; did you mean keyless\?"
    ):
        read_postgres_table(database, "keyles")
    with pytest.raises(WorldError, match=r'PostgreSQL: .* database "nowhere" does not exist'):
        read_postgres_table(database.replace("/scaffold", "/nowhere"), "pairs")
    with pytest.raises(UsageError, match="PostgreSQL: invalid URI query parameter"):
        read_postgres_table(f"{database}?nonsense=1", "pairs")


def test_a_database_that_is_not_there_is_the_world_s_fault():
    with pytest.raises(WorldError, match=r"PostgreSQL: connection failed: .* refused") as caught:
        read_postgres_table("postgresql+psycopg://me:secret@127.0.0.1:1/nothing", "t")

    assert "secret" not in str(caught.value)


@pytest.mark.postgres
def test_what_is_generated_from_a_database_satisfies_every_tool(database, tmp_path):
    package = tmp_path / "made_of_postgres"
    package.mkdir()
    (package / "__init__.py").write_text('"""Handlers."""\n')
    for table in ("everything", "pairs", "unique_only", "keyless", "parts", "twice"):
        sources = write_sources(read_postgres_table(database, table), package.name)
        (package / f"{sources.module}.py").write_text(sources.handler)
        (package / f"test_{sources.module}.py").write_text(sources.test)
    config = str(ROOT / "pyproject.toml")

    for command in (
        ("ruff", "check", "--no-cache", "--config", config, "."),
        ("ruff", "format", "--no-cache", "--check", "--config", config, "."),
        ("mypy", "--config-file", config, f"--cache-dir={ROOT / '.mypy_cache'}", f"--package={package.name}"),
        ("pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=error", "--import-mode=importlib", "."),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_decimals_of_avro_count_as_numbers():
    # Inferred columns of Avro rows without a schema block of their own hold Python's own values.
    from cdc_reactor.table_columns import _kinds

    assert (_kinds(Decimal(1)), _kinds(b"a"), _kinds(1.0)) == ({"float"}, {"bytes"}, {"float"})
