"""Dates, times, timestamps and intervals on the wire → Python values, and the values that Python lacks.

The rules are those of `scalars`: pure, wire form or converted value, None stays None, DecodeError only, no rounding.
What Python's own types cannot hold becomes `Infinity` or `IsoText`, never an error, because the row is not to blame;
it reaches a Row only where the annotation admits it.

Facts are from Debezium's source: PostgresValueConverter, JdbcValueConverters and the classes of io.debezium.time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from typing import Any

from pydantic_core import CoreSchema, core_schema

from cdc_reactor.errors import DecodeError
from cdc_reactor.scalars import Converter, instance_schema, raising_value_errors, show

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - columns without time zone become naive datetimes

_EPOCH_ORDINAL = EPOCH.toordinal()
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_NS_PER_DAY = 86_400_000_000_000
_DAYS_PER_400_YEARS = 146_097
_INT64 = range(-(2**63), 2**63)


class Infinity(Enum):
    """PostgreSQL's `infinity` and `-infinity` of dates and timestamps; admit it with `datetime | Infinity`."""

    POSITIVE = "infinity"
    NEGATIVE = "-infinity"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.enum_schema(cls, list(cls.__members__.values()))


@dataclass(frozen=True, slots=True)
class IsoText:
    """A date, time or timestamp that Python cannot hold, as exact ISO 8601 text; admit it with `datetime | IsoText`.

    It stands for years before 1 and after 9999 (as Java prints them: `-0043-03-15` is 44 BC, `+12026-01-01`), for the
    time `24:00:00`, and for nanoseconds that are no whole microseconds.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            raising_value_errors(_beyond_python),
            metadata={"cdc_reactor.beyond": cls},
            serialization=core_schema.to_string_ser_schema(),
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """PostgreSQL's interval in its own three parts, for a month has no fixed length (io.debezium.time.Interval)."""

    months: int = 0
    days: int = 0
    microseconds: int = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return instance_schema(cls, interval)


def _already(value: object, kind: type, expected: str) -> Any:
    if value is None or isinstance(value, (Infinity, IsoText)):
        return value
    if isinstance(value, kind) and not (kind is date and isinstance(value, datetime)):
        return value
    raise DecodeError(f"expected {expected}, got {show(value)}")


def _iso_date(epoch_days: int) -> str:
    cycles, days = divmod(epoch_days, _DAYS_PER_400_YEARS)
    near = date.fromordinal(_EPOCH_ORDINAL + days)
    year = near.year + 400 * cycles
    sign = "+" if year > 9999 else "-" if year < 0 else ""
    return f"{sign}{abs(year):04}-{near.month:02}-{near.day:02}"


def _iso_time(nanos: int) -> str:
    seconds, fraction = divmod(nanos, 1_000_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:09}".rstrip("0") if fraction else text


def _far_timestamp(value: int, unit_ns: int, infinities: tuple[int, int]) -> Infinity | IsoText:
    if value in infinities:
        return Infinity.POSITIVE if value > 0 else Infinity.NEGATIVE
    if value not in _INT64:
        raise DecodeError(f"expected a 64-bit integer, got {show(value)}")
    days, nanos = divmod(value * unit_ns, _NS_PER_DAY)
    return IsoText(f"{_iso_date(days)}T{_iso_time(nanos)}")


# PostgresValueConverter.POSITIVE_INFINITY_INSTANT is PGStatement.DATE_POSITIVE_INFINITY read as *micro*seconds, and
# that instant is then written in each unit; only NanoTimestamp has sentinels of its own (convertTimestampToEpochNanos).
_INFINITE_MICROS = (9_223_372_036_825_200_000, -9_223_372_036_832_400_000)
_INFINITE_MILLIS = (9_223_372_036_825_200, -9_223_372_036_832_400)
_INFINITE_NANOS = (2**63 - 1, -(2**63))


def milli_timestamp(value: Any) -> Any:
    """Convert milliseconds since 1970 to a naive datetime (io.debezium.time.Timestamp, Connect's Timestamp)."""
    if type(value) is not int:
        return _already(value, datetime, "milliseconds since 1970")
    try:
        return EPOCH + value * _MILLISECOND
    except OverflowError:
        return _far_timestamp(value, 1_000_000, _INFINITE_MILLIS)


def micro_timestamp(value: Any) -> Any:
    """Convert microseconds since 1970 to a naive datetime (io.debezium.time.MicroTimestamp)."""
    if type(value) is not int:
        return _already(value, datetime, "microseconds since 1970")
    try:
        return EPOCH + value * _MICROSECOND
    except OverflowError:
        return _far_timestamp(value, 1_000, _INFINITE_MICROS)


def nano_timestamp(value: Any) -> Any:
    """Convert nanoseconds since 1970 to a naive datetime, or IsoText where microseconds do not suffice."""
    if type(value) is not int:
        return _already(value, datetime, "nanoseconds since 1970")
    micros, rest = divmod(value, 1000)
    if rest or value not in _INT64:
        return _far_timestamp(value, 1, _INFINITE_NANOS)
    return EPOCH + micros * _MICROSECOND


def utc(convert: Converter) -> Converter:
    """Let `convert` give aware datetimes: what it reads is an instant, not a column without time zone."""

    def converted(value: Any) -> Any:
        instant = convert(value)
        return instant.replace(tzinfo=UTC) if isinstance(instant, datetime) and instant.tzinfo is None else instant

    return converted


# PostgresValueConverter.POSITIVE_INFINITY_LOCAL_DATE is -5877611-06-21: java.sql.Date's overflow, one day *before*
# NEGATIVE_INFINITY_LOCAL_DATE. PostgreSQL's own dates begin in 4713 BC, day -2440588.
_INFINITE_DAYS = {-2_147_472_692: Infinity.POSITIVE, -2_147_472_691: Infinity.NEGATIVE}


def epoch_days(value: Any) -> Any:
    """Convert days since 1970 to a date (io.debezium.time.Date, Connect's Date)."""
    if type(value) is not int:
        return _already(value, date, "days since 1970")
    try:
        return date.fromordinal(_EPOCH_ORDINAL + value)
    except (ValueError, OverflowError):
        if value in _INFINITE_DAYS:
            return _INFINITE_DAYS[value]
        if value not in _INT64:
            raise DecodeError(f"expected a 64-bit integer, got {show(value)}") from None
        return IsoText(_iso_date(value))


def _clock(value: Any, unit_ns: int, expected: str) -> Any:
    if type(value) is not int:
        return _already(value, time, expected)
    nanos = value * unit_ns
    if 0 <= nanos < _NS_PER_DAY:
        micros, rest = divmod(nanos, 1000)
        return IsoText(_iso_time(nanos)) if rest else (EPOCH + micros * _MICROSECOND).time()
    if nanos == _NS_PER_DAY:
        return IsoText("24:00:00")
    raise DecodeError(f"expected {expected}, at most a day, got {show(value)}")


def milli_time(value: Any) -> Any:
    """Convert milliseconds since midnight to a naive time (io.debezium.time.Time, Connect's Time)."""
    return _clock(value, 1_000_000, "milliseconds since midnight")


def micro_time(value: Any) -> Any:
    """Convert microseconds since midnight to a naive time (io.debezium.time.MicroTime)."""
    return _clock(value, 1_000, "microseconds since midnight")


def nano_time(value: Any) -> Any:
    """Convert nanoseconds since midnight to a naive time (io.debezium.time.NanoTime)."""
    return _clock(value, 1, "nanoseconds since midnight")


def micro_duration(value: Any) -> Any:
    """Convert microseconds to a timedelta; of months Debezium made 30.4375 days each (MicroDuration)."""
    if type(value) is not int:
        return _already(value, timedelta, "microseconds")
    if value not in _INT64:
        raise DecodeError(f"expected a 64-bit integer, got {show(value)}")
    return timedelta(microseconds=value)


def nano_duration(value: Any) -> Any:
    """Convert nanoseconds to a timedelta, or to IsoText (`PT0.000000001S`) where microseconds do not suffice."""
    if type(value) is not int:
        return _already(value, timedelta, "nanoseconds")
    if value not in _INT64:
        raise DecodeError(f"expected a 64-bit integer, got {show(value)}")
    micros, rest = divmod(value, 1000)
    if not rest:
        return timedelta(microseconds=micros)
    seconds, fraction = divmod(abs(value), 1_000_000_000)
    return IsoText(f"PT{'-' if value < 0 else ''}{seconds}.{fraction:09}S")


_ISO_TIMESTAMP = re.compile(
    r"(\+\d{5,10}|-\d{4,10}|\d{4})-(\d\d-\d\d)T(\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d(?::\d\d)?)?",
    re.ASCII,
)
_ISO_DATE = re.compile(r"(\+\d{5,10}|-\d{4,10}|\d{4})-(\d\d-\d\d)Z?", re.ASCII)
_ISO_TIME = re.compile(r"(\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d(?::\d\d)?)?", re.ASCII)
_ISO_INTERVAL = re.compile(
    r"P(?:(-?\d{1,12})Y)?(?:(-?\d{1,12})M)?(?:(-?\d{1,12})D)?"
    r"(?:T(?:(-?\d{1,12})H)?(?:(-?\d{1,12})M)?(?:(-?)(\d{1,12})(?:\.(\d{1,6})0*)?S)?)?",
    re.ASCII,
)
# time.precision.mode=isostring writes the infinite instants and dates above as what they are to Java.
_INFINITE_TEXTS = {
    "infinity": Infinity.POSITIVE,
    "-infinity": Infinity.NEGATIVE,
    "+294247-01-10T04:00:25.2Z": Infinity.POSITIVE,
    "-290308-12-21T19:59:27.6Z": Infinity.NEGATIVE,
    "-5877611-06-21Z": Infinity.POSITIVE,
    "-5877611-06-22Z": Infinity.NEGATIVE,
}


def _fits(year: str) -> bool:
    return len(year) == 4 and year != "0000"


def _timestamp(text: str) -> datetime | Infinity | IsoText:
    # With more digits of the second than 27 characters leave room for, `fromisoformat` drops the rest without a word.
    if len(text) <= 27 and text[-1:] == "Z" and text[10:11] == "T":
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return _slow_timestamp(text)
    return _slow_timestamp(text)


def _slow_timestamp(text: str) -> datetime | Infinity | IsoText:
    if text in _INFINITE_TEXTS:
        return _INFINITE_TEXTS[text]
    match = _ISO_TIMESTAMP.fullmatch(text)
    if match is None:
        raise DecodeError(f"expected an ISO timestamp, got {show(text)}")
    year, day, clock, fraction, zone = match.groups()
    fraction = (fraction or "").rstrip("0")
    near = year if _fits(year) else str(2000 + int(year) % 400)  # a year with the same calendar
    try:
        instant = datetime.fromisoformat(f"{near}-{day}T{clock}{zone or ''}")
    except ValueError:
        raise DecodeError(f"expected an ISO timestamp, got {show(text)}") from None
    if near != year or len(fraction) > 6:
        return IsoText(text)
    instant = instant.replace(microsecond=int(fraction.ljust(6, "0")))
    try:
        return instant.astimezone(UTC) if zone else instant
    except OverflowError:
        return IsoText(text)


def zoned_timestamp(value: Any) -> Any:
    """Convert ISO text with an offset to an aware datetime in UTC (io.debezium.time.ZonedTimestamp)."""
    if type(value) is not str:
        return _already(value, datetime, "an ISO timestamp with offset")
    instant = _timestamp(value)
    if isinstance(instant, datetime) and instant.tzinfo is None:
        raise DecodeError(f"expected an ISO timestamp with offset, got {show(value)}")
    return instant


def iso_timestamp(value: Any) -> Any:
    """Convert ISO text to a naive datetime: the column has no zone, Debezium's `Z` says nothing (IsoTimestamp)."""
    if type(value) is not str:
        return _already(value, datetime, "an ISO timestamp")
    instant = _timestamp(value)
    if isinstance(instant, datetime):
        return instant.replace(tzinfo=None)
    return IsoText(instant.text.removesuffix("Z")) if isinstance(instant, IsoText) else instant


def iso_date(value: Any) -> Any:
    """Convert ISO text to a date; Debezium writes `2026-11-23Z` (io.debezium.time.IsoDate)."""
    if type(value) is not str:
        return _already(value, date, "an ISO date")
    if value in _INFINITE_TEXTS:
        return _INFINITE_TEXTS[value]
    match = _ISO_DATE.fullmatch(value)
    try:
        if match and _fits(match[1]):
            return date.fromisoformat(f"{match[1]}-{match[2]}")
        if match and date.fromisoformat(f"{2000 + int(match[1]) % 400}-{match[2]}"):
            return IsoText(value.removesuffix("Z"))
    except ValueError:
        pass
    raise DecodeError(f"expected an ISO date, got {show(value)}")


def _time_text(value: str) -> time | IsoText:
    match = _ISO_TIME.fullmatch(value)
    if match is None:
        raise DecodeError(f"expected an ISO time, got {show(value)}")
    clock, fraction, zone = match.groups()
    fraction = (fraction or "").rstrip("0")
    if clock in ("24:00", "24:00:00") and not fraction:
        return IsoText(value)
    try:
        at = time.fromisoformat(f"{clock}{zone or ''}")
    except ValueError:
        raise DecodeError(f"expected an ISO time, got {show(value)}") from None
    return IsoText(value) if len(fraction) > 6 else at.replace(microsecond=int(fraction.ljust(6, "0")))


def zoned_time(value: Any) -> Any:
    """Convert ISO text with an offset to an aware time; `24:00:00Z` stays IsoText (io.debezium.time.ZonedTime)."""
    if type(value) is not str:
        return _already(value, time, "an ISO time with offset")
    at = _time_text(value)
    if isinstance(at, time) and at.tzinfo is None:
        raise DecodeError(f"expected an ISO time with offset, got {show(value)}")
    return at


def iso_time(value: Any) -> Any:
    """Convert ISO text to a naive time: the column has no zone (io.debezium.time.IsoTime)."""
    if type(value) is not str:
        return _already(value, time, "an ISO time")
    at = _time_text(value)
    return at.replace(tzinfo=None) if isinstance(at, time) else IsoText(at.text.removesuffix("Z"))


def interval(value: Any) -> Any:
    """Convert `P1Y2M3DT4H5M6.78S` to an Interval; every part has its own sign (io.debezium.time.Interval)."""
    if type(value) is not str:
        return _already(value, Interval, "an ISO interval")
    match = _ISO_INTERVAL.fullmatch(value)
    if match is None or value[-1] in "PT":
        raise DecodeError(f"expected an ISO interval, got {show(value)}")
    years, months, days, hours, minutes = (int(part or 0) for part in match.groups()[:5])
    sign, seconds, fraction = match.groups()[5:]
    micros = int(seconds or 0) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    micros = -micros if sign else micros
    return Interval(years * 12 + months, days, (hours * 60 + minutes) * 60_000_000 + micros)


def _beyond_python(value: Any) -> IsoText:
    """Accept IsoText, and text that would become it; nothing that Python can hold."""
    for parse in (zoned_timestamp, iso_timestamp, iso_date, zoned_time, iso_time) if isinstance(value, str) else ():
        try:
            beyond = parse(value)
        except DecodeError:
            continue
        if isinstance(beyond, IsoText):
            return beyond
        break
    if isinstance(value, IsoText):
        return value
    raise DecodeError(f"expected a date or time beyond Python's range, got {show(value)}")


def is_far(text: str) -> bool:
    """Tell whether text would become IsoText."""
    try:
        return isinstance(_beyond_python(text), IsoText)
    except DecodeError:
        return False
