"""Bytes, numbers and small structs on the wire → Python values; the half of it that has to do with time is `temporals`.

Pure functions, each called once per value. A function takes the wire form (a str, base64, a dict) or what it would
itself return, so that Avro readers, tests and Row annotations may hand it over already converted; None stays None. It
raises DecodeError and nothing else, and it never rounds. Which column needs which function is read off a schema in
`columns`, or off a Row's annotations in `wire_types`.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, TypeAlias
from uuid import UUID

from pydantic_core import CoreSchema, core_schema

from cdc_reactor.errors import DecodeError

Converter: TypeAlias = Callable[[Any], Any]

_MAX_SCALE = 100_000  # PostgreSQL's numeric has at most 16,383 digits after the point
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # the default context rounds to 28 digits
_FROM_URL_SAFE = str.maketrans("-_", "+/")


def show(value: object) -> str:
    """Describe a value for an error message, however long or odd it is."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than `sys.set_int_max_str_digits` allows
        text = "…"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"


def raising_value_errors(convert: Converter) -> Converter:
    """Let `convert` speak pydantic's language: its DecodeError becomes a ValueError."""

    def validate(value: Any) -> Any:
        try:
            return convert(value)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    return validate


def instance_schema(cls: type, convert: Converter) -> CoreSchema:
    """Return the pydantic schema of a value class of ours: an instance, or what `convert` makes one of."""
    return core_schema.no_info_before_validator_function(
        raising_value_errors(convert), core_schema.is_instance_schema(cls)
    )


def already(value: object, kind: type, expected: str) -> Any:
    """Pass None and a value that is converted already; refuse all else. Every function's way out of its fast path."""
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise DecodeError(f"expected {expected}, got {show(value)}")


def octets(value: Any) -> Any:
    """Convert base64 text, as Connect's JSON writes bytes, to bytes; Avro's are bytes already."""
    if type(value) is not str:
        return already(value, bytes, "base64 text")
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise DecodeError(f"expected base64 text, got {show(value)}") from None


def url_safe_octets(value: Any) -> Any:
    """Convert base64 text of the URL-safe alphabet to bytes (binary.handling.mode=base64-url-safe)."""
    if type(value) is not str:
        return already(value, bytes, "URL-safe base64 text")
    if "+" in value or "/" in value:
        raise DecodeError(f"expected URL-safe base64 text, got {show(value)}")
    try:
        return octets(value.translate(_FROM_URL_SAFE))
    except DecodeError:
        raise DecodeError(f"expected URL-safe base64 text, got {show(value)}") from None


def hex_octets(value: Any) -> Any:
    """Convert hexadecimal text to bytes (binary.handling.mode=hex)."""
    if type(value) is not str:
        return already(value, bytes, "hexadecimal text")
    try:
        return binascii.a2b_hex(value)
    except ValueError:
        raise DecodeError(f"expected hexadecimal text, got {show(value)}") from None


def bits(value: Any) -> Any:
    """Convert little-endian bytes to an int whose lowest bit is the rightmost of the bit string (Bits)."""
    if isinstance(value, (str, bytes)):
        return int.from_bytes(octets(value), "little")
    return already(value, int, "base64 text of bits")


def _unscaled(value: Any) -> int:
    content = octets(value)
    if not content:
        raise DecodeError("expected a big-endian integer, got no bytes")
    return int.from_bytes(content, "big", signed=True)


def scaled(unscaled: int, scale: int) -> Decimal:
    """Divide by ten to the power of `scale`, exactly."""
    if not -_MAX_SCALE <= scale <= _MAX_SCALE:
        raise DecodeError(f"expected a scale of at most {_MAX_SCALE:,}, got {show(scale)}")
    try:
        return Decimal(unscaled).scaleb(-scale, _EXACT)
    except ArithmeticError:
        raise DecodeError(f"expected a decimal, got {show(unscaled)} of scale {scale}") from None


def decimal_bytes(scale: int) -> Converter:
    """Return the converter of two's complement big-endian bytes with this scale (Connect's Decimal).

    A scale from 1024 to 2047 is a negative one: PostgreSQL keeps it in 11 bits of the typmod (numeric.c,
    make_numeric_typmod) and the JDBC driver does not extend the sign, so numeric(5,-2) arrives with scale 2046, its
    values multiplied accordingly (PostgresValueConverter.withScaleAdjustedIfNeeded). Such values are whole numbers.
    """
    whole = 1024 <= scale < 2048

    def convert(value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            unscaled = _unscaled(value)
            return _negatively_scaled(unscaled, scale) if whole else scaled(unscaled, scale)
        return already(value, Decimal, "base64 text of a decimal (decimal.format=BASE64)")

    return convert


def _negatively_scaled(unscaled: int, scale: int) -> Decimal:
    number, rest = divmod(unscaled, 10**scale)
    return Decimal(unscaled * 10 ** (2048 - scale)) if rest else Decimal(number)


def variable_decimal(value: Any) -> Any:
    """Convert `{"scale": 2, "value": "AV4="}` to a Decimal (io.debezium.data.VariableScaleDecimal)."""
    if not isinstance(value, Mapping):
        return already(value, Decimal, '{"scale": …, "value": …}')
    scale, unscaled = value.get("scale"), value.get("value")
    if type(scale) is not int or unscaled is None:
        raise DecodeError(f'expected {{"scale": …, "value": …}}, got {show(value)}')
    return scaled(_unscaled(unscaled), scale)


# SpecialValueDecimal.toString (decimal.handling.mode=string) and Jackson (floats), with java.lang.Double's spelling.
SPECIAL_NUMBERS: Mapping[str, str] = {
    "NaN": "NaN",
    "NAN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "POSITIVE_INFINITY": "Infinity",
    "NEGATIVE_INFINITY": "-Infinity",
}
_SPECIAL_FLOATS = {text: float(number) for text, number in SPECIAL_NUMBERS.items()}
_DECIMAL_TEXT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)


def decimal_text(value: Any) -> Any:
    """Convert decimal digits, or NaN and the infinities, to a Decimal (decimal.handling.mode=string)."""
    if type(value) is not str:
        return already(value, Decimal, "decimal digits")
    if value in SPECIAL_NUMBERS:
        return Decimal(SPECIAL_NUMBERS[value])
    if _DECIMAL_TEXT.fullmatch(value) is None:
        raise DecodeError(f"expected decimal digits, got {show(value)}")
    return Decimal(value)


def floating(value: Any) -> Any:
    """Convert a JSON number, or the text of NaN and the infinities, to a float."""
    if type(value) is str and value in _SPECIAL_FLOATS:
        return _SPECIAL_FLOATS[value]
    try:
        return float(value) if type(value) is int else already(value, float, "a number")
    except OverflowError:
        raise DecodeError(f"expected a double, got {show(value)}") from None


@dataclass(frozen=True, slots=True)
class Geometry:
    """A geometry or geography: well-known binary, and what else Debezium says of it (io.debezium.data.geometry)."""

    wkb: bytes
    srid: int | None = None
    extensions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return instance_schema(cls, geometry)


@dataclass(frozen=True, slots=True)
class Point:
    """PostgreSQL's point (io.debezium.data.geometry.Point)."""

    x: float
    y: float
    wkb: bytes | None = None
    srid: int | None = None

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return instance_schema(cls, point)


def uuid(value: Any) -> Any:
    """Convert text to a UUID (io.debezium.data.Uuid)."""
    if type(value) is not str:
        return already(value, UUID, "a UUID")
    try:
        return UUID(value)
    except ValueError:
        raise DecodeError(f"expected a UUID, got {show(value)}") from None


def enum_set(value: Any) -> Any:
    """Convert `a,b` to a frozenset of str: a set has no order (io.debezium.data.EnumSet)."""
    if type(value) is not str:
        return already(value, frozenset, "comma-separated names")
    return frozenset(value.split(",")) if value else frozenset()


def _member(value: Mapping[str, Any], name: str, kind: type, *, optional: bool = False) -> Any:
    member = value.get(name)
    if (member is None and optional) or (isinstance(member, kind) and not isinstance(member, bool)):
        return member
    raise DecodeError(f"expected {kind.__name__} as {name}, got {show(member)}")


def geometry(value: Any) -> Any:
    """Convert `{"wkb": base64, "srid": 4326}` to a Geometry (io.debezium.data.geometry.Geometry and Geography)."""
    if not isinstance(value, Mapping):
        return already(value, Geometry, '{"wkb": …, "srid": …}')
    wkb = octets(value.get("wkb"))
    if wkb is None:
        raise DecodeError(f'expected {{"wkb": …, "srid": …}}, got {show(value)}')
    extensions = _member(value, "extensions", dict, optional=True)
    return Geometry(wkb, _member(value, "srid", int, optional=True), extensions or {})


def point(value: Any) -> Any:
    """Convert `{"x": 1.0, "y": 2.0, "wkb": base64, "srid": null}` to a Point (io.debezium.data.geometry.Point)."""
    if not isinstance(value, Mapping):
        return already(value, Point, '{"x": …, "y": …}')
    x, y = floating(value.get("x")), floating(value.get("y"))
    if x is None or y is None:
        raise DecodeError(f'expected {{"x": …, "y": …}}, got {show(value)}')
    return Point(x, y, octets(value.get("wkb")), _member(value, "srid", int, optional=True))
