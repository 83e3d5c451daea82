import copy
import json
import math
import pickle
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from io import BytesIO
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal
from uuid import UUID, uuid3

import fastavro
import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, Field, Json, ValidationError
from pydantic_core import CoreSchema, core_schema

from cdc_reactor import temporals
from cdc_reactor.columns import (
    UNAVAILABLE,
    Base64Bytes,
    Base64UrlBytes,
    DecimalBytes,
    DecimalString,
    EpochDays,
    Geometry,
    HexBytes,
    Infinity,
    Interval,
    IsoDate,
    IsoText,
    IsoTime,
    IsoTimestamp,
    MicroDuration,
    MicroTime,
    MicroTimestamp,
    MilliTime,
    MilliTimestamp,
    NanoTime,
    NanoTimestamp,
    Placeholder,
    Point,
    Unavailable,
    VariableDecimal,
    avro_converters,
    connect_converters,
    guard,
)
from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable, UsageError

CAPTURES = Path(__file__).parent / "captures"
TEXT = "__debezium_unavailable_value"
HUGE = 10**5000
NEGATIVE, POSITIVE = Infinity.NEGATIVE, Infinity.POSITIVE


def label(value: object) -> str | None:
    return "huge" if value is HUGE else None  # pytest cannot print it


def b64(content: bytes) -> str:
    return b64encode(content).decode()


def unscaled(number: int) -> str:
    return b64(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def field(kind: str, name: str = "", **more: Any) -> dict[str, Any]:
    return {"type": kind, "optional": True, "field": "c", **({"name": name, "version": 1} if name else {}), **more}


def decimal_field(scale: object) -> dict[str, Any]:
    return field("bytes", "org.apache.kafka.connect.data.Decimal", parameters={"scale": scale})


def connect(schema: dict[str, Any]) -> Any:
    return connect_converters([schema], placeholder=Placeholder()).get("c")


MILLIS = field("int64", "io.debezium.time.Timestamp")
MICROS = field("int64", "io.debezium.time.MicroTimestamp")
NANOS = field("int64", "io.debezium.time.NanoTimestamp")
DAYS = field("int32", "io.debezium.time.Date")
MILLI_TIME = field("int32", "io.debezium.time.Time")
MICRO_TIME = field("int64", "io.debezium.time.MicroTime")
NANO_TIME = field("int64", "io.debezium.time.NanoTime")
ZONED = field("string", "io.debezium.time.ZonedTimestamp")
ZONED_TIME = field("string", "io.debezium.time.ZonedTime")
ISO_TIMESTAMP = field("string", "io.debezium.time.IsoTimestamp")
ISO_DATE = field("string", "io.debezium.time.IsoDate")
ISO_TIME = field("string", "io.debezium.time.IsoTime")
INTERVAL = field("string", "io.debezium.time.Interval")
MICRO_DURATION = field("int64", "io.debezium.time.MicroDuration")
NANO_DURATION = field("int64", "io.debezium.time.NanoDuration")
VARIABLE = field("struct", "io.debezium.data.VariableScaleDecimal", fields=[])
BITS = field("bytes", "io.debezium.data.Bits", parameters={"length": "12"})
UUID_FIELD = field("string", "io.debezium.data.Uuid")
ENUM_SET = field("string", "io.debezium.data.EnumSet", parameters={"allowed": "a,b"})
POINT = field("struct", "io.debezium.data.geometry.Point", fields=[])
GEOMETRY = field("struct", "io.debezium.data.geometry.Geometry", fields=[])
GEOGRAPHY = field("struct", "io.debezium.data.geometry.Geography", fields=[])
DATES = field("array", items=DAYS)
BYTES_MAP = field("map", keys=field("string"), values=field("bytes"))
SPARSE = field(
    "struct",
    "io.debezium.data.SparseDoubleVector",
    fields=[
        {**field("int16"), "field": "dimensions"},
        {**field("map", keys=field("int16"), values=field("double")), "field": "vector"},
    ],
)
STRUCT = field("struct", fields=[{**field("bytes"), "field": "b"}, {**field("string"), "field": "s"}])
ONE = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
NOON = datetime(2026, 11, 23, 14, 15, 7, 52913)  # noqa: DTZ001 - naive on purpose

CONVERTED: list[tuple[dict[str, Any], Any, Any]] = [
    (DAYS, 20148, date(2025, 3, 1)),
    (DAYS, -1, date(1969, 12, 31)),
    (DAYS, -719163, IsoText("0000-12-31")),
    (DAYS, -735_160, IsoText("-0043-03-15")),
    (DAYS, 2_932_897, IsoText("+10000-01-01")),
    (DAYS, -2_147_472_692, POSITIVE),
    (DAYS, -2_147_472_691, NEGATIVE),
    (field("int32", "org.apache.kafka.connect.data.Date"), 0, date(1970, 1, 1)),
    (MILLIS, 1_795_443_307_052, NOON.replace(microsecond=52000)),
    (MILLIS, -1, datetime(1969, 12, 31, 23, 59, 59, 999000)),  # noqa: DTZ001
    (MILLIS, 9_223_372_036_825_200, POSITIVE),
    (MILLIS, -9_223_372_036_832_400, NEGATIVE),
    (field("int64", "org.apache.kafka.connect.data.Timestamp"), 1_795_443_307_052, NOON.replace(microsecond=52000)),
    (MICROS, 1_795_443_307_052_913, NOON),
    (MICROS, 9_223_372_036_825_200, datetime(2262, 4, 11, 23, 47, 16, 825200)),  # noqa: DTZ001
    (MICROS, 9_223_372_036_825_200_000, POSITIVE),
    (MICROS, -9_223_372_036_832_400_000, NEGATIVE),
    (MICROS, -62_135_596_800_000_001, IsoText("0000-12-31T23:59:59.999999")),
    (MICROS, 253_402_300_800_000_000, IsoText("+10000-01-01T00:00:00")),
    (NANOS, 1_795_443_307_052_913_000, NOON),
    (NANOS, 1_795_443_307_052_913_001, IsoText("2026-11-23T14:15:07.052913001")),
    (NANOS, 2**63 - 1, POSITIVE),
    (NANOS, -(2**63), NEGATIVE),
    (MILLI_TIME, 51_307_052, time(14, 15, 7, 52000)),
    (MICRO_TIME, 51_307_052_913, time(14, 15, 7, 52913)),
    (MICRO_TIME, 86_400_000_000, IsoText("24:00:00")),
    (NANO_TIME, 51_307_052_913_000, time(14, 15, 7, 52913)),
    (NANO_TIME, 51_307_052_913_100, IsoText("14:15:07.0529131")),
    (field("int32", "org.apache.kafka.connect.data.Time"), 0, time(0)),
    (ZONED, "2026-11-23T14:15:07.052913Z", NOON.replace(tzinfo=UTC)),
    (ZONED, "2026-11-23T15:15:07.052913+01:00", NOON.replace(tzinfo=UTC)),
    (ZONED, "2026-11-23T14:15:07.052913000Z", NOON.replace(tzinfo=UTC)),
    (ZONED, "2026-11-23T14:15:07.0529131Z", IsoText("2026-11-23T14:15:07.0529131Z")),
    (ZONED, "infinity", POSITIVE),
    (ZONED, "-infinity", NEGATIVE),
    (ZONED, "-0043-03-15T00:00:00Z", IsoText("-0043-03-15T00:00:00Z")),
    (ZONED, "+12026-02-28T00:00:00.5Z", IsoText("+12026-02-28T00:00:00.5Z")),
    (ZONED, "0001-01-01T00:00:00+01:00", IsoText("0001-01-01T00:00:00+01:00")),
    (ZONED_TIME, "14:15:07.052913Z", time(14, 15, 7, 52913, tzinfo=UTC)),
    (ZONED_TIME, "24:00:00Z", IsoText("24:00:00Z")),
    (ISO_TIMESTAMP, "2026-11-23T14:15:07.052913Z", NOON),
    (ISO_TIMESTAMP, "+294247-01-10T04:00:25.2Z", POSITIVE),
    (ISO_TIMESTAMP, "-290308-12-21T19:59:27.6Z", NEGATIVE),
    (ISO_TIMESTAMP, "-0043-03-15T00:00:00Z", IsoText("-0043-03-15T00:00:00")),
    (ISO_DATE, "2026-11-23Z", date(2026, 11, 23)),
    (ISO_DATE, "2026-11-23", date(2026, 11, 23)),
    (ISO_DATE, "-5877611-06-21Z", POSITIVE),
    (ISO_DATE, "-5877611-06-22Z", NEGATIVE),
    (ISO_DATE, "+10000-02-29Z", IsoText("+10000-02-29")),
    (ISO_TIME, "14:15:07.052913Z", time(14, 15, 7, 52913)),
    (ISO_TIME, "24:00:00Z", IsoText("24:00:00")),
    (INTERVAL, "P1Y2M3DT4H5M6.78S", Interval(14, 3, 14_706_780_000)),
    (INTERVAL, "P-1Y2M-3DT-4H0M-0.000001S", Interval(-10, -3, -14_400_000_001)),
    (INTERVAL, "P0Y0M0DT0H0M0S", Interval()),
    (MICRO_DURATION, -1, timedelta(microseconds=-1)),
    (MICRO_DURATION, 2**63 - 1, timedelta(microseconds=2**63 - 1)),
    (NANO_DURATION, 1000, timedelta(microseconds=1)),
    (NANO_DURATION, -1, IsoText("PT-0.000000001S")),
    (decimal_field("2"), "AV4=", Decimal("3.50")),
    (decimal_field("2"), unscaled(-12345), Decimal("-123.45")),
    (decimal_field("0"), unscaled(10**60 + 1), Decimal(10**60 + 1)),
    (decimal_field("-2"), unscaled(123), Decimal("1.23E+4")),
    (decimal_field("2046"), unscaled(12300 * 10**2046), Decimal(12300)),
    (decimal_field("2046"), unscaled(123), Decimal(12300)),
    (VARIABLE, {"scale": 3, "value": unscaled(-1)}, Decimal("-0.001")),
    (VARIABLE, {"scale": 0, "value": unscaled(10**40)}, Decimal(10**40)),
    (field("double"), 1.5, 1.5),
    (field("double"), 1, 1.0),
    (field("float"), "Infinity", math.inf),
    (field("float64"), "-Infinity", -math.inf),
    (BITS, b64(b"\x05\x01"), 261),
    (BITS, b64(b""), 0),
    (UUID_FIELD, str(ONE), ONE),
    (ENUM_SET, "a,b", frozenset({"a", "b"})),
    (ENUM_SET, "", frozenset()),
    (POINT, {"x": 1.5, "y": -2, "wkb": b64(b"\x01"), "srid": None}, Point(1.5, -2.0, b"\x01", None)),
    (POINT, {"x": "-Infinity", "y": "Infinity"}, Point(-math.inf, math.inf)),
    (GEOMETRY, {"wkb": b64(b"\x01"), "srid": 4326}, Geometry(b"\x01", 4326)),
    (GEOMETRY, {"wkb": "", "srid": None, "extensions": {"closed": "true"}}, Geometry(b"", None, {"closed": "true"})),
    (GEOGRAPHY, {"wkb": b64(b"\x01"), "srid": 4326}, Geometry(b"\x01", 4326)),
    (field("bytes"), b64(b"\x00\xff"), b"\x00\xff"),
    (DATES, [0, None, 1], [date(1970, 1, 1), None, date(1970, 1, 2)]),
    (DATES, [None, None], [None, None]),
    (field("array", items=field("array", items=DAYS)), [[0], None], [[date(1970, 1, 1)], None]),
    (BYTES_MAP, {"k": b64(b"v"), "n": None}, {"k": b"v", "n": None}),
    (SPARSE, {"dimensions": 9, "vector": [[1, 3.5], [4, 2]]}, {"dimensions": 9, "vector": {1: 3.5, 4: 2.0}}),
    (STRUCT, {"b": b64(b"v"), "s": "x"}, {"b": b"v", "s": "x"}),
    (STRUCT, {"b": b64(TEXT.encode()), "s": TEXT}, {"b": UNAVAILABLE, "s": UNAVAILABLE}),
]


@pytest.mark.parametrize(("schema", "wire", "expected"), CONVERTED)
def test_a_logical_type_becomes_its_python_value(schema, wire, expected):
    actual = connect(schema)(wire)

    assert actual == expected
    assert type(actual) is type(expected)


@pytest.mark.parametrize("schema", [s for s, _, _ in CONVERTED])
def test_null_stays_null(schema):
    assert connect(schema)(None) is None


@pytest.mark.parametrize(("schema", "value"), [(s, v) for s, _, v in CONVERTED if s not in (BYTES_MAP, SPARSE, STRUCT)])
def test_what_is_converted_already_passes_unchanged(schema, value):
    if schema["type"] != "array":
        assert connect(schema)(value) is value


@pytest.mark.parametrize(
    "schema",
    [
        field("int64"),
        field("string"),
        field("boolean"),
        field("int32", "io.debezium.time.Year"),
        field("string", "io.debezium.data.Json"),
        field("string", "io.debezium.data.Xml"),
        field("string", "io.debezium.data.Enum", parameters={"allowed": "a,b"}),
        field("string", "io.debezium.data.Ltree"),
        field("string", "io.debezium.data.TsVector"),
        field("array", items=field("string", "io.debezium.data.Json")),
        field("map", keys=field("string"), values=field("string")),
        field("int64", "com.example.Unknown"),
    ],
)
def test_what_is_its_python_value_already_has_no_converter(schema):
    assert connect_converters([schema], placeholder=Placeholder()) == {}


def test_vectors_are_lists_of_floats():
    vector = field("array", "io.debezium.data.DoubleVector", items=field("double"))

    assert connect(vector)([1.5, 2]) == [1.5, 2.0]


def test_float_columns_carry_nan_as_text():
    assert math.isnan(connect(field("double"))("NaN"))


@pytest.mark.parametrize(
    ("schema", "wire", "message"),
    [
        (DAYS, "2025-03-01", "expected days since 1970, got str '2025-03-01'"),
        (DAYS, True, "expected days since 1970, got bool True"),
        (DAYS, NOON, "expected days since 1970, got datetime datetime.datetime(2026, 11, 23, 14, 15, 7, 52913)"),
        (MICROS, 1.5, "expected microseconds since 1970, got float 1.5"),
        (MICROS, HUGE, "expected a 64-bit integer, got int …"),
        (NANOS, HUGE, "expected a 64-bit integer, got int …"),
        (DAYS, HUGE, "expected a 64-bit integer, got int …"),
        (MICRO_DURATION, HUGE, "expected a 64-bit integer, got int …"),
        (MICRO_TIME, 86_400_000_001, "expected microseconds since midnight, at most a day, got int 86400000001"),
        (MILLI_TIME, -1, "expected milliseconds since midnight, at most a day, got int -1"),
        (ZONED, "2026-11-23T14:15:07", "expected an ISO timestamp with offset, got str '2026-11-23T14:15:07'"),
        (ZONED, "2026-02-30T14:15:07Z", "expected an ISO timestamp, got str '2026-02-30T14:15:07Z'"),
        (ZONED, "+10001-02-29T00:00:00Z", "expected an ISO timestamp, got str '+10001-02-29T00:00:00Z'"),
        (ISO_DATE, "2026-02-30", "expected an ISO date, got str '2026-02-30'"),
        (ZONED_TIME, "14:15:07", "expected an ISO time with offset, got str '14:15:07'"),
        (INTERVAL, "PT", "expected an ISO interval, got str 'PT'"),
        (INTERVAL, "P1W", "expected an ISO interval, got str 'P1W'"),
        (decimal_field("2"), "AV4", "expected base64 text, got str 'AV4'"),
        (decimal_field("2"), "", "expected a big-endian integer, got no bytes"),
        (decimal_field("2"), 3.5, "expected base64 text of a decimal (decimal.format=BASE64), got float 3.5"),
        (VARIABLE, {"scale": HUGE, "value": "AA=="}, "expected a scale of at most 100,000, got int …"),
        (VARIABLE, {"value": "AA=="}, """expected {"scale": …, "value": …}, got dict {'value': 'AA=='}"""),
        (field("double"), "1.5", "expected a number, got str '1.5'"),
        (field("double"), HUGE, "expected a double, got int …"),
        (field("double"), True, "expected a number, got bool True"),
        (UUID_FIELD, "6ba7", "expected a UUID, got str '6ba7'"),
        (GEOMETRY, {"srid": 1}, """expected {"wkb": …, "srid": …}, got dict {'srid': 1}"""),
        (GEOMETRY, {"wkb": "", "srid": "1"}, "expected int as srid, got str '1'"),
        (POINT, {"x": 1.0}, """expected {"x": …, "y": …}, got dict {'x': 1.0}"""),
        (DATES, 5, "expected an array, got int 5"),
        (DATES, ["x"], "expected days since 1970, got str 'x'"),
        (BYTES_MAP, [], "expected a map, got list []"),
        (STRUCT, "x", "expected a struct, got str 'x'"),
        (SPARSE, {"vector": [[1, 2, 3]]}, "expected a map's key and value, got list [1, 2, 3]"),
        (field("bytes"), "ä", "expected base64 text, got str 'ä'"),
        (field("bytes"), "x" * 99, f"expected base64 text, got str '{'x' * 59}…"),
    ],
    ids=label,
)
def test_a_wrong_wire_value_says_what_was_expected(schema, wire, message):
    with pytest.raises(DecodeError) as caught:
        connect(schema)(wire)

    assert str(caught.value) == message


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(5000).map(lambda digits: 10**digits)  # hypothesis, too, cannot print it
    | st.sampled_from([2**63, -(2**63), 9_223_372_036_825_200_000, "infinity", "24:00:00Z", "AA=="])
    | st.floats()
    | st.text(max_size=12)
    | st.from_regex(r"[+-]?\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", fullmatch=True)
    | st.binary(max_size=12).map(b64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["scale", "value", "x", "y", "wkb", "srid", "b", "vector"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
ALL = list({json.dumps(s): s for s, _, _ in CONVERTED}.values())


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL), ANYTHING)
def test_no_json_value_raises_anything_but_decode_error(schema, value):
    with suppress(DecodeError):
        connect(schema)(value)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_no_instant_is_rounded(nanos):
    value = connect(NANOS)(nanos)

    match value:
        case datetime():
            assert (value - temporals.EPOCH) // timedelta(microseconds=1) * 1000 == nanos
        case IsoText(text=text):
            whole, _, fraction = text.partition(".")
            seconds = (datetime.fromisoformat(whole) - temporals.EPOCH) // timedelta(seconds=1)
            assert seconds * 10**9 + int(fraction.ljust(9, "0")) == nanos
        case Infinity():
            assert nanos in (2**63 - 1, -(2**63))


@settings(max_examples=200, deadline=None)
@given(st.datetimes(), st.integers(-720, 690))
def test_far_years_are_the_near_ones_moved_by_whole_cycles(instant, cycles):
    micros = (instant - temporals.EPOCH) // timedelta(microseconds=1)
    year = instant.year + 400 * cycles
    far = connect(MICROS)(micros + cycles * 146_097 * 86_400_000_000)

    if 1 <= year <= 9999:
        assert far == instant.replace(year=year)
    else:
        sign = "+" if year > 9999 else "-" if year < 0 else ""
        text = f"{sign}{abs(year):04}{instant.isoformat()[4:]}"
        assert far == IsoText(text.rstrip("0") if "." in text else text)
        assert connect(ZONED)(f"{far}Z") == IsoText(f"{far}Z")


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**50), 10**50), st.integers(-50, 900))
def test_decimals_are_exact_at_any_length(number, scale):
    assert connect(decimal_field(str(scale)))(unscaled(number)).as_integer_ratio() == (
        Decimal(f"{number}E{-scale}").as_integer_ratio()
    )


@pytest.mark.parametrize(
    "fields",
    [
        "fields",
        [5],
        [{"type": "int32"}],
        [decimal_field(None)],
        [decimal_field("two")],
        [field("array")],
        [field("map", keys=field("string"))],
        [field("struct")],
        [{**STRUCT, "fields": [5]}],
    ],
)
def test_a_broken_schema_is_a_decode_error(fields):
    with pytest.raises(DecodeError, match="schema"):
        connect_converters(fields, placeholder=Placeholder())


def test_a_bottomless_schema_is_a_decode_error():
    nested = field("int32")
    for _ in range(100):
        nested = field("array", items=nested)

    with pytest.raises(DecodeError, match="nests more than 32 levels"):
        connect_converters([nested], placeholder=Placeholder())


def test_the_captured_rows_convert():
    rows: list[Any] = [
        json.loads(line) for line in (CAPTURES / "forum_schemas_on.values.ndjson").read_text().splitlines()
    ]
    converted: dict[str, set[str]] = {}
    for message in rows:
        for row in message.get("schema", {}).get("fields", ()):
            image: Any = message["payload"].get(row["field"]) if row["field"] in ("before", "after") else None
            converters = connect_converters(row["fields"], placeholder=Placeholder()) if image else {}
            for column, convert in converters.items():
                converted.setdefault(column, set()).add(type(convert(image[column])).__name__)

    assert converted == {
        "score": {"Decimal", "NoneType"},
        "published": {"date", "NoneType"},
        "joined": {"datetime"},
        "at": {"datetime"},
    }


# ── Avro ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def avro(avro_type: Any, named: dict[str, Any] | None = None) -> Any:
    return avro_converters({"type": "record", "name": "R", "fields": [{"name": "c", "type": avro_type}]}, named).get(
        "c"
    )


def named_type(kind: str, name: str, **more: Any) -> list[Any]:
    return ["null", {"type": kind, "connect.name": name, **more}]


MAP_ENTRY = {
    "type": "record",
    "name": "MapEntry",
    "namespace": "io.confluent.connect.avro",
    "fields": [{"name": "key", "type": "int"}, {"name": "value", "type": named_type("int", "io.debezium.time.Date")}],
}
AVRO_DECIMAL = named_type(
    "bytes", "org.apache.kafka.connect.data.Decimal", logicalType="decimal", **{"connect.parameters": {"scale": "2"}}
)
AVRO_VARIABLE = {
    "type": "record",
    "name": "VariableScaleDecimal",
    "namespace": "io.debezium.data",
    "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
    "connect.name": "io.debezium.data.VariableScaleDecimal",
}


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (AVRO_DECIMAL, b"\x01\x5e", Decimal("3.50")),
        (AVRO_DECIMAL, Decimal("3.50"), Decimal("3.50")),
        ({"type": "bytes", "logicalType": "decimal", "scale": 1}, b"\x01\x5e", Decimal("35.0")),
        (named_type("int", "io.debezium.time.Date"), 1, date(1970, 1, 2)),
        (
            named_type("int", "org.apache.kafka.connect.data.Date", logicalType="date"),
            date(1970, 1, 2),
            date(1970, 1, 2),
        ),
        (named_type("int", "org.apache.kafka.connect.data.Time"), time(1), time(1)),
        (named_type("long", "org.apache.kafka.connect.data.Timestamp"), NOON.replace(tzinfo=UTC), NOON),
        (named_type("long", "org.apache.kafka.connect.data.Timestamp"), 0, temporals.EPOCH),
        ({"type": "long", "logicalType": "timestamp-micros"}, 0, datetime(1970, 1, 1, tzinfo=UTC)),
        ({"type": "long", "logicalType": "timestamp-micros"}, 9_223_372_036_825_200_000, POSITIVE),
        ({"type": "long", "logicalType": "local-timestamp-micros"}, 0, temporals.EPOCH),
        (named_type("bytes", "io.debezium.data.Bits"), b"\x05\x01", 261),
        (AVRO_VARIABLE, {"scale": 1, "value": b"\x05"}, Decimal("0.5")),
        ({"type": "array", "items": named_type("int", "io.debezium.time.Date")}, [1, None], [date(1970, 1, 2), None]),
        ({"type": "map", "values": named_type("int", "io.debezium.time.Date")}, {"a": 1}, {"a": date(1970, 1, 2)}),
        ({"type": "array", "items": MAP_ENTRY}, [{"key": 3, "value": 1}], {3: date(1970, 1, 2)}),
        (["null", {"type": {"type": "int", "connect.name": "io.debezium.time.Date"}}], 1, date(1970, 1, 2)),
    ],
)
def test_avro_values_convert_with_and_without_avros_own_logical_types(schema, value, expected):
    converter = avro(schema)

    assert converter(value) == expected
    assert type(converter(value)) is type(expected)
    assert converter(None) is None


@pytest.mark.parametrize(
    "schema", ["bytes", "string", "double", ["null", "long"], named_type("string", "io.debezium.data.Json")]
)
def test_avros_plain_types_have_no_converter(schema):
    assert avro(schema) is None


@pytest.mark.parametrize("reference", ["VariableScaleDecimal", "io.debezium.data.VariableScaleDecimal"])
def test_avro_types_are_found_by_name(reference):
    record = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": ["null", AVRO_VARIABLE]}, {"name": "b", "type": ["null", reference]}],
    }

    assert set(avro_converters(record)) == {"a", "b"}
    assert avro([reference], {reference: AVRO_VARIABLE})({"scale": 0, "value": b"\x05"}) == Decimal(5)


def test_an_avro_type_within_itself_is_a_decode_error():
    with pytest.raises(DecodeError, match="refers to itself"):
        avro({"type": "record", "name": "Tree", "fields": [{"name": "child", "type": ["null", "Tree"]}]})


@pytest.mark.parametrize("applied", [True, False])
def test_the_captured_avro_rows_convert(applied):
    schemas = json.loads((CAPTURES / "forum_avro.registry.json").read_text())["schemas_by_id"]
    converted: dict[str, set[str]] = {}
    for line in (CAPTURES / "forum_avro.values.b64").read_text().splitlines():
        body = b64decode(line)
        schema = schemas[str(int.from_bytes(body[1:5], "big"))] if body else {}
        row = next((f["type"][1] for f in schema.get("fields", ()) if f["name"] == "before"), None)
        if row is None:
            continue
        text = json.dumps(schema)
        parsed = json.loads(text if applied else text.replace("logicalType", "was"))
        value: Any = fastavro.schemaless_reader(BytesIO(body[5:]), fastavro.parse_schema(parsed), None)
        for column, convert in avro_converters(row).items():
            for image in filter(None, (value["before"], value["after"])):
                converted.setdefault(column, set()).add(type(convert(image[column])).__name__)

    assert converted == {
        "score": {"Decimal", "NoneType"},
        "published": {"date", "NoneType"},
        "joined": {"datetime"},
        "at": {"datetime"},
    }


# ── what was not sent ───────────────────────────────────────────────────────────────────────────────────────────────

PLACEHOLDER = Placeholder()
CONTENT = TEXT.encode()
GUISES: list[Any] = [
    TEXT,
    b64(CONTENT),
    CONTENT.hex(),
    CONTENT.hex().upper(),
    f'{{"{TEXT}":"{TEXT}"}}',
    [TEXT],
    [b64(CONTENT)],
    {TEXT: TEXT},
    list(CONTENT),
    [float(byte) for byte in CONTENT],
    [True] * len(CONTENT),
    [b64(bytes([byte])) for byte in CONTENT],
    [{"scale": 0, "value": b64(bytes([byte]))} for byte in CONTENT],
]


@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_placeholder_is_known_in_every_guise(guise, indent):
    raw = json.dumps({"a": 1, "c": guise}, indent=indent).encode()

    assert PLACEHOLDER.might_occur(raw)
    assert PLACEHOLDER.matches(guise)


@pytest.mark.parametrize("guise", [CONTENT, [CONTENT], [Decimal(byte).scaleb(-2) for byte in CONTENT]])
def test_the_placeholder_is_known_as_avro_gives_it(guise):
    assert PLACEHOLDER.matches(guise)


def test_the_placeholder_of_uuids_is_javas_name_uuid():
    # UUID.nameUUIDFromBytes("__debezium_unavailable_value".getBytes()): MD5 of the bytes alone, no namespace
    class NoNamespace:
        bytes = b""

    assert PLACEHOLDER.matches([str(uuid3(NoNamespace, TEXT))])  # type: ignore[arg-type]  # a namespace of no bytes


@pytest.mark.parametrize(
    "value",
    [None, True, 5, "", "x", TEXT[:-1], [], [TEXT, "x"], {}, {TEXT: "x"}, {"x": TEXT}, b"x", [1, 2], ["AA=="] * 28],
)
def test_data_is_no_placeholder(value):
    assert not PLACEHOLDER.matches(value)


def test_a_row_without_placeholder_is_told_apart_by_its_bytes():
    assert not PLACEHOLDER.might_occur(b'{"id":1,"name":"Ada","score":"AV4=","at":1795443312645142}')
    assert PLACEHOLDER.might_occur(json.dumps(TEXT).replace("_", "\\u005f").encode())


def test_a_placeholder_that_json_may_escape_in_two_ways_always_might_occur():
    assert Placeholder("nicht verfügbar").might_occur(b"{}")
    assert Placeholder("n/a").might_occur(b"{}")


def test_a_placeholder_may_be_configured_in_hexadecimal():
    assert Placeholder(f"hex:{CONTENT.hex()}").matches(TEXT)
    assert Placeholder("hex:80ff").matches([-128, -1])
    assert Placeholder().text == TEXT


@pytest.mark.parametrize("configured", ["", "hex:", "hex:xyz"])
def test_a_placeholder_that_means_nothing_is_refused(configured):
    with pytest.raises(UsageError, match=r"unavailable\.value\.placeholder"):
        Placeholder(configured)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_the_bytes_of_a_row_never_hide_the_placeholder(text, ensure_ascii):
    placeholder = Placeholder(text) if not text.startswith("hex:") else PLACEHOLDER

    for guise in (placeholder.text, b64(placeholder.content), [placeholder.text], {placeholder.text: placeholder.text}):
        assert placeholder.matches(guise)
        assert placeholder.might_occur(json.dumps({"c": guise}, ensure_ascii=ensure_ascii).encode("utf-8", "replace"))


def test_unavailable_is_one_value_that_is_no_data():
    assert repr(UNAVAILABLE) == "UNAVAILABLE"
    assert Unavailable() is UNAVAILABLE
    assert copy.deepcopy([UNAVAILABLE])[0] is copy.copy(UNAVAILABLE) is UNAVAILABLE
    assert pickle.loads(pickle.dumps(UNAVAILABLE)) is UNAVAILABLE
    assert UNAVAILABLE not in (None, "", "UNAVAILABLE", False)
    for take in (bool, str, int, float, "{}".format, lambda v: not v):
        with pytest.raises(ImageUnavailable, match="was not sent"):
            take(UNAVAILABLE)
    for encode in (json.dumps, msgspec.json.encode, orjson.dumps, len, list):
        with pytest.raises(TypeError):
            encode(UNAVAILABLE)


# ── Row annotations ─────────────────────────────────────────────────────────────────────────────────────────────────


class Guarded(BaseModel):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return guard(handler(source))


def model(annotation: Any) -> Any:
    return type("Model", (Guarded,), {"__annotations__": {"c": annotation}, "__module__": __name__})


def read(annotation: Any, value: Any) -> Any:
    return model(annotation)(c=value).c


def refusal(annotation: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        read(annotation, value)
    return " / ".join(e["msg"] for e in caught.value.errors(include_input=False, include_context=False))


WIRE_TYPES: list[tuple[Any, Any, Any]] = [
    (MilliTimestamp, 1_795_443_307_052, NOON.replace(microsecond=52000)),
    (MicroTimestamp, 1_795_443_307_052_913, NOON),
    (NanoTimestamp, 1_795_443_307_052_913_000, NOON),
    (IsoTimestamp, "2026-11-23T14:15:07.052913Z", NOON),
    (EpochDays, 20148, date(2025, 3, 1)),
    (IsoDate, "2025-03-01Z", date(2025, 3, 1)),
    (MilliTime, 1, time(microsecond=1000)),
    (MicroTime, 1, time(microsecond=1)),
    (NanoTime, 1000, time(microsecond=1)),
    (IsoTime, "14:15:07Z", time(14, 15, 7)),
    (MicroDuration, 1, timedelta(microseconds=1)),
    (DecimalBytes(2), "AV4=", Decimal("3.50")),
    (Annotated[Decimal, DecimalBytes(2)], "AV4=", Decimal("3.50")),
    (DecimalString, "3.50", Decimal("3.50")),
    (DecimalString, "POSITIVE_INFINITY", Decimal("Infinity")),
    (VariableDecimal, {"scale": 2, "value": "AV4="}, Decimal("3.50")),
    (Base64Bytes, "+/8=", b"\xfb\xff"),
    (Base64UrlBytes, "-_8=", b"\xfb\xff"),
    (HexBytes, "fbff", b"\xfb\xff"),
    (Interval, "P0Y0M3DT0H0M0S", Interval(days=3)),
    (Geometry, {"wkb": "AA==", "srid": 1}, Geometry(b"\x00", 1)),
    (Point, {"x": 1.0, "y": 2.0}, Point(1.0, 2.0)),
]


@pytest.mark.parametrize(("annotation", "wire", "expected"), WIRE_TYPES)
def test_a_wire_type_reads_its_wire_form_and_its_python_value(annotation, wire, expected):
    assert read(annotation, wire) == expected
    assert read(annotation, expected) == expected
    assert model(annotation).model_validate_json(json.dumps({"c": wire})).c == expected
    assert read(annotation | None, None) is None
    assert read(annotation | None, wire) == expected
    assert read(GenericAlias(list, annotation), [wire]) == [expected]


@pytest.mark.parametrize("annotation", [annotation for annotation, _, _ in WIRE_TYPES])
@pytest.mark.parametrize("value", [True, 1.5, "?", HUGE, [], UNAVAILABLE, None], ids=label)
def test_a_wire_type_refuses_all_else(annotation, value):
    assert refusal(annotation, value)


def test_a_nan_decimal_is_a_decimal():
    assert read(DecimalString, "NAN").is_nan()


def test_a_wire_type_takes_constraints():
    limited = Annotated[Decimal, DecimalBytes(2), Field(gt=10)]

    assert read(limited, unscaled(1001)) == Decimal("10.01")
    assert refusal(limited, "AV4=") == "Input should be greater than 10"


def test_decimal_bytes_of_one_scale_are_one_type():
    assert DecimalBytes(2) == DecimalBytes(2) != DecimalBytes(3)
    assert len({DecimalBytes(2), DecimalBytes(2)}) == 1
    assert repr(DecimalBytes(2)) == "DecimalBytes(2)"
    assert read(None | DecimalBytes(2), None) is None


FAR = datetime | Infinity | IsoText | None


@pytest.mark.parametrize(
    ("annotation", "wire", "expected"),
    [
        (MicroTimestamp | Infinity, 9_223_372_036_825_200_000, POSITIVE),
        (MilliTimestamp | Infinity, 9_223_372_036_825_200, POSITIVE),
        (NanoTimestamp | Infinity, -(2**63), NEGATIVE),
        (MicroTimestamp | Infinity, 9_223_372_036_825_200, datetime(2262, 4, 11, 23, 47, 16, 825200)),  # noqa: DTZ001
        (Infinity | MicroTimestamp, 9_223_372_036_825_200_000, POSITIVE),
        (MicroTimestamp | Infinity | None, None, None),
        (Annotated[MicroTimestamp, Field(gt=temporals.EPOCH)] | Infinity, 9_223_372_036_825_200_000, POSITIVE),
        (MicroTimestamp | IsoText, 253_402_300_800_000_000, IsoText("+10000-01-01T00:00:00")),
        (NanoTimestamp | IsoText, 1, IsoText("1970-01-01T00:00:00.000000001")),
        (MicroTime | IsoText, 86_400_000_000, IsoText("24:00:00")),
        (MicroTime | IsoText, 0, time(0)),
        (EpochDays | Infinity, -2_147_472_692, POSITIVE),
        (date | Infinity, -2_147_472_691, NEGATIVE),
        (date | IsoText, -719163, IsoText("0000-12-31")),
        (date | Infinity | IsoText, "2025-03-01", date(2025, 3, 1)),
        (FAR, "2026-11-23T14:15:07Z", datetime(2026, 11, 23, 14, 15, 7, tzinfo=UTC)),
        (FAR, "infinity", POSITIVE),
        (FAR, POSITIVE, POSITIVE),
        (FAR, "-0043-03-15T00:00:00Z", IsoText("-0043-03-15T00:00:00Z")),
        (FAR, "0000-03-15T00:00:00Z", IsoText("0000-03-15T00:00:00Z")),
        (FAR, "2026-11-23T14:15:07.0529131Z", IsoText("2026-11-23T14:15:07.0529131Z")),
        (FAR, IsoText("x"), IsoText("x")),
        (FAR, None, None),
        (time | IsoText, "24:00:00Z", IsoText("24:00:00Z")),
    ],
)
def test_infinite_and_far_values_pass_where_they_are_admitted(annotation, wire, expected):
    assert read(annotation, wire) == expected
    if isinstance(wire, str | int | None):
        assert model(annotation).model_validate_json(json.dumps({"c": wire})).c == expected


@pytest.mark.parametrize(
    ("annotation", "wire", "cure"),
    [
        (MicroTimestamp, 9_223_372_036_825_200_000, "MicroTimestamp | Infinity"),
        (MicroTimestamp, POSITIVE, "MicroTimestamp | Infinity"),
        (MicroTimestamp | Infinity, 253_402_300_800_000_000, "MicroTimestamp | IsoText"),
        (MicroTime, 86_400_000_000, "MicroTime | IsoText"),
        (NanoTime, 1, "NanoTime | IsoText"),
        (date, -2_147_472_692, "date | Infinity"),
        (date, "-0043-03-15", "date | IsoText"),
        (datetime, "infinity", "datetime | Infinity"),
        (datetime, POSITIVE, "datetime | Infinity"),
        (datetime, "-0043-03-15T00:00:00Z", "datetime | IsoText"),
        (datetime, "2026-11-23T14:15:07.0529131Z", "datetime | IsoText"),
        (time, "24:00:00Z", "time | IsoText"),
        (time, "14:15:07.1234567890Z"[:-2] + "Z", "time | IsoText"),
    ],
)
def test_where_they_are_not_admitted_the_error_names_the_cure(annotation, wire, cure):
    assert f"annotate {cure}" in refusal(annotation, wire)


def test_two_wire_types_in_one_union_are_refused_at_import():
    with pytest.raises(DefinitionError, match="MicroTimestamp and MilliTimestamp in one union"):
        model(MicroTimestamp | MilliTimestamp)


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("annotation", "wire", "expected"),
    [
        (datetime, "2026-11-23T14:15:07.052913", NOON),
        (datetime, "2026-11-23T14:15:07.052913+00:00", NOON.replace(tzinfo=UTC)),
        (datetime, NOON, NOON),
        (date, 20148, date(2025, 3, 1)),
        (date, "2025-03-01", date(2025, 3, 1)),
        (date, "2025-03-01Z", date(2025, 3, 1)),
        (time, "14:15:07", time(14, 15, 7)),
        (time, time(1), time(1)),
        (timedelta, "P0Y0M3DT0H0M-1S", timedelta(days=3, seconds=-1)),
        (timedelta, "01:00:00", timedelta(hours=1)),
        (timedelta, timedelta(1), timedelta(1)),
        (Decimal, 5, Decimal(5)),
        (Decimal, 0.1, Decimal("0.1")),
        (Decimal, HUGE, Decimal(HUGE)),
        (Decimal, Decimal("1.50"), Decimal("1.50")),
        (bytes, b"x", b"x"),
        (float, 1, 1.0),
        (float, 1.5, 1.5),
        (float, "Infinity", math.inf),
        (float, Decimal("1.5"), 1.5),
        (int, HUGE, HUGE),
        (bool, 1, True),
        (bool, False, False),
        (str, "1", "1"),
        (UUID, str(ONE), ONE),
        (Colour, "red", Colour.RED),
        (Literal["a"], "a", "a"),
        (Any, 5, 5),
        (Json[datetime], '"2026-11-23T14:15:07.052913"', NOON),
        (Annotated[str, BeforeValidator(repr)], 5, "5"),
        (list[date], [0], [date(1970, 1, 1)]),
        (dict[str, Decimal | None], {"a": 1, "b": None}, {"a": Decimal(1), "b": None}),
        (tuple[date, int], [0, 1], (date(1970, 1, 1), 1)),
        (Annotated[int, Field(gt=3)], 4, 4),
    ],
    ids=label,
)
def test_a_plain_annotation_takes_what_is_certain(annotation, wire, expected):
    actual = read(annotation, wire)

    assert actual == expected
    assert type(actual) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "wire", "message"),
    [
        *(
            (datetime, v, "annotate MilliTimestamp, MicroTimestamp or NanoTimestamp")
            for v in (5, 1.5, True, "1700000000", "-1", b"1700000000")
        ),
        (time, 5, "annotate MilliTime, MicroTime or NanoTime"),
        (time, 5.0, "annotate MilliTime, MicroTime or NanoTime"),
        (timedelta, 5, "annotate MicroDuration"),
        (timedelta, "5", "annotate MicroDuration"),
        (timedelta, "P1Y0M0DT0H0M0S", "annotate Interval"),
        (date, 1.5, "expected days since 1970 or an ISO date"),
        (date, True, "expected days since 1970 or an ISO date"),
        (date, "20148", "expected an ISO date"),
        (Decimal, "1000", "annotate DecimalString or Annotated[Decimal, DecimalBytes(scale)]"),
        (Decimal, {"scale": 0, "value": "AA=="}, "annotate VariableDecimal"),
        (Decimal, True, "is none"),
        (bytes, "AA==", "annotate Base64Bytes, Base64UrlBytes or HexBytes"),
        (float, "1000", "annotate DecimalString or DecimalBytes(scale)"),
        (float, True, "is no number"),
        (int, "5", "valid integer"),
        (int, 5.0, "valid integer"),
        (int, True, "valid integer"),
        (bool, "true", "is neither true nor false"),
        (bool, 2, "is neither true nor false"),
        (bool, HUGE, "int … as bool is neither true nor false"),
        (str, 5, "valid string"),
        (list[datetime] | None, [5], "annotate MilliTimestamp"),
        (dict[str, Decimal], {"a": "1"}, "annotate DecimalString"),
        (tuple[datetime, ...], [5], "annotate MilliTimestamp"),
        (set[Decimal], ["1"], "annotate DecimalString"),
        (datetime | Infinity | None, 5, "annotate MilliTimestamp"),
        (Annotated[datetime, Field(gt=NOON)], 5, "annotate MilliTimestamp"),
    ],
    ids=label,
)
def test_a_plain_annotation_refuses_what_would_be_a_guess(annotation, wire, message):
    assert message in refusal(annotation, wire)


@pytest.mark.parametrize(
    "annotation",
    [int, str, float, bool, bytes, Decimal, datetime, date, time, timedelta, UUID, Colour, Literal["a"], Any, FAR,
     Any | None, list[Any] | None, Json, Annotated[str, BeforeValidator(repr)], IsoText, Infinity, MicroTimestamp | Infinity],
)  # fmt: skip
def test_what_was_not_sent_never_validates(annotation):
    assert refusal(annotation, UNAVAILABLE)


def test_guarding_twice_changes_nothing():
    schema = core_schema.typed_dict_schema({"a": core_schema.typed_dict_field(core_schema.datetime_schema())})
    once = guard(schema)

    assert guard(once) == once


def test_a_subclass_of_a_guarded_model_is_guarded():
    class Base(Guarded):
        at: datetime | None = None
        day: date | Infinity = POSITIVE

    class Derived(Base):
        by: Decimal = Decimal(0)

    assert Derived(day=0) == Derived(at=None, day=date(1970, 1, 1))
    with pytest.raises(ValidationError, match="annotate DecimalString"):
        Derived(by="1")


def test_a_row_with_far_values_dumps_to_json():
    row = model(FAR)(c="-0043-03-15T00:00:00Z")

    assert row.model_dump_json() == '{"c":"-0043-03-15T00:00:00Z"}'
    assert model(FAR)(c=POSITIVE).model_dump_json() == '{"c":"infinity"}'
