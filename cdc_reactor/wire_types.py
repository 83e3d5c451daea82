"""What a Row's annotations mean where no schema came with the row: the wire types, and the guard of plain annotations.

Without its schema a wire value says little: 1700000000000 may count milli-, micro- or nanoseconds, and "1000" may be a
decimal or the base64 of one. So a Row states the encoding by an annotation from here (`MicroTimestamp`,
`Annotated[Decimal, DecimalBytes(2)]`), and `guard` makes every plain annotation refuse what pydantic would guess.
Values that are converted already pass both, so a Row reads rows with and without schema alike.

An infinite or far value passes where the annotation admits it: `MicroTimestamp | Infinity | IsoText | None`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypeAlias, Union, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cdc_reactor import scalars, temporals
from cdc_reactor.errors import DecodeError, DefinitionError
from cdc_reactor.scalars import SPECIAL_NUMBERS, Converter, show
from cdc_reactor.temporals import Infinity, Interval, IsoText
from cdc_reactor.unavailable import UNAVAILABLE

_WIRE = "cdc_reactor.wire"
_GUARDED = "cdc_reactor.guarded"


@dataclass(frozen=True, slots=True)
class Wire:
    """How one encoding on the wire becomes the annotated type; stands in `Annotated[datetime, Wire(…)]`."""

    name: str
    convert: Converter

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return self.around(handler(source))

    def around(self, inner: CoreSchema) -> CoreSchema:
        """Put the conversion in front of a schema that then sees Python values only."""
        convert, name = self.convert, self.name

        def validate(value: Any) -> Any:
            try:
                result = convert(value)
            except DecodeError as error:
                raise ValueError(str(error)) from None
            if isinstance(result, (Infinity, IsoText)):
                raise _not_admitted(result, name)
            return result

        return core_schema.no_info_before_validator_function(validate, inner, metadata={_WIRE: self})

    def in_front_of(self, union: CoreSchema, admitted: tuple[type, ...]) -> CoreSchema:
        """Let a union with this type in it see the Infinity or IsoText behind a wire value; else the value itself."""
        convert = self.convert

        def validate(value: Any) -> Any:
            try:
                result = convert(value)
            except DecodeError:
                return value
            return result if isinstance(result, admitted) else value

        return core_schema.no_info_before_validator_function(validate, union, metadata={_GUARDED: True})


def _not_admitted(value: Infinity | IsoText, name: str) -> ValueError:
    text = value.value if isinstance(value, Infinity) else value.text
    return ValueError(f"{text} is nothing that Python can hold: annotate {name} | {type(value).__name__}")


MilliTimestamp: TypeAlias = Annotated[datetime, Wire("MilliTimestamp", temporals.milli_timestamp)]
MicroTimestamp: TypeAlias = Annotated[datetime, Wire("MicroTimestamp", temporals.micro_timestamp)]
NanoTimestamp: TypeAlias = Annotated[datetime, Wire("NanoTimestamp", temporals.nano_timestamp)]
IsoTimestamp: TypeAlias = Annotated[datetime, Wire("IsoTimestamp", temporals.iso_timestamp)]
EpochDays: TypeAlias = Annotated[date, Wire("EpochDays", temporals.epoch_days)]
IsoDate: TypeAlias = Annotated[date, Wire("IsoDate", temporals.iso_date)]
MilliTime: TypeAlias = Annotated[time, Wire("MilliTime", temporals.milli_time)]
MicroTime: TypeAlias = Annotated[time, Wire("MicroTime", temporals.micro_time)]
NanoTime: TypeAlias = Annotated[time, Wire("NanoTime", temporals.nano_time)]
IsoTime: TypeAlias = Annotated[time, Wire("IsoTime", temporals.iso_time)]
MicroDuration: TypeAlias = Annotated[timedelta, Wire("MicroDuration", temporals.micro_duration)]
Base64Bytes: TypeAlias = Annotated[bytes, Wire("Base64Bytes", scalars.octets)]
Base64UrlBytes: TypeAlias = Annotated[bytes, Wire("Base64UrlBytes", scalars.url_safe_octets)]
HexBytes: TypeAlias = Annotated[bytes, Wire("HexBytes", scalars.hex_octets)]


@dataclass(frozen=True, slots=True)
class _DecimalWire(Wire):
    """A Wire of decimals, which may be NaN or infinite."""

    def around(self, inner: CoreSchema) -> CoreSchema:
        if inner["type"] == "decimal":
            inner = cast("CoreSchema", {"allow_inf_nan": True, **inner})
        return Wire.around(self, inner)


DecimalString: TypeAlias = Annotated[Decimal, _DecimalWire("DecimalString", scalars.decimal_text)]
VariableDecimal: TypeAlias = Annotated[Decimal, _DecimalWire("VariableDecimal", scalars.variable_decimal)]


class DecimalBytes:
    """The base64 of a decimal's unscaled value, whose scale only the column's definition says: numeric(8,2) has 2.

    `Annotated[Decimal, DecimalBytes(2)]` is what type checkers understand; `DecimalBytes(2)` alone, also with
    `| None`, means the same to pydantic.
    """

    __slots__ = ("_wire", "scale")

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self._wire = _DecimalWire(f"DecimalBytes({scale})", scalars.decimal_bytes(scale))

    def __repr__(self) -> str:
        return f"DecimalBytes({self.scale})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecimalBytes) and other.scale == self.scale

    def __hash__(self) -> int:
        return hash((DecimalBytes, self.scale))

    def __or__(self, other: Any) -> Any:
        return Union[Annotated[Decimal, self], other]  # noqa: UP007 - a type made at run time

    def __ror__(self, other: Any) -> Any:
        return Union[other, Annotated[Decimal, self]]  # noqa: UP007 - the same

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = core_schema.decimal_schema() if source is self else handler(source)
        return self._wire.around(inner)


# ── the guard of plain annotations ──────────────────────────────────────────────────────────────────────────────────


def _refused(value: object, kind: str, cure: str) -> ValueError:
    if isinstance(value, (Infinity, IsoText)):
        return _not_admitted(value, kind)
    if isinstance(value, str) and value in ("infinity", "-infinity"):
        return ValueError(f"{value} is no {kind}: annotate {kind} | Infinity")
    return ValueError(f"{show(value)} as {kind} {cure}")


def _plain_datetime(value: Any) -> Any:
    if isinstance(value, str):
        if value[4:5] == "-" and len(value) <= 27:  # a year of four digits and at most six of the second
            return value
        if temporals.is_far(value):
            raise _not_admitted(IsoText(value), "datetime")
        if value[4:5] == "-":
            return value
    if isinstance(value, date):
        return value
    raise _refused(
        value,
        "datetime",
        "is ambiguous: milli-, micro- or nanoseconds; annotate MilliTimestamp, MicroTimestamp or NanoTimestamp",
    )


def _plain_time(value: Any) -> Any:
    if isinstance(value, str) and ":" in value:
        if (len(value) > 16 or value.startswith("24:")) and temporals.is_far(value):
            raise _not_admitted(IsoText(value), "time")
        return value
    if isinstance(value, time):
        return value
    raise _refused(
        value, "time", "is ambiguous: milli-, micro- or nanoseconds; annotate MilliTime, MicroTime or NanoTime"
    )


def _plain_timedelta(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.lstrip("+-").startswith("P"):
        return _duration(value)
    if isinstance(value, str) and ":" in value:
        return value
    raise _refused(value, "timedelta", "does not say its unit: annotate MicroDuration")


def _duration(text: str) -> timedelta:
    try:
        parts: Interval = temporals.interval(text)
        if not parts.months:
            return timedelta(parts.days, 0, parts.microseconds)
    except (DecodeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"{show(text)} as timedelta has months, which have no fixed length: annotate Interval")


def _plain_date(value: Any) -> Any:
    if type(value) is int:
        return temporals.epoch_days(value)
    if isinstance(value, date) or (isinstance(value, str) and value[4:5] == "-" and not value.endswith("Z")):
        return value
    if isinstance(value, str):
        return temporals.iso_date(value)
    if isinstance(value, (Infinity, IsoText)):
        return value
    raise DecodeError(f"{show(value)} as date: expected days since 1970 or an ISO date")


def _plain_decimal(value: Any) -> Any:
    if isinstance(value, Decimal) or type(value) in (int, float):
        return value
    if isinstance(value, str):
        raise _refused(
            value,
            "Decimal",
            "may be digits (decimal.handling.mode=string) or base64 (precise): "
            "annotate DecimalString or Annotated[Decimal, DecimalBytes(scale)]",
        )
    raise _refused(value, "Decimal", "is none; annotate VariableDecimal where it is {scale, value}")


def _plain_bytes(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value
    raise _refused(value, "bytes", "does not say its encoding: annotate Base64Bytes, Base64UrlBytes or HexBytes")


def _plain_float(value: Any) -> Any:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, str):
        if value in SPECIAL_NUMBERS:
            return float(SPECIAL_NUMBERS[value])
        raise _refused(value, "float", "may be digits or base64: annotate DecimalString or DecimalBytes(scale)")
    if isinstance(value, (float, int, Decimal)) and not isinstance(value, bool):
        return value
    raise _refused(value, "float", "is no number")


def _plain_bool(value: Any) -> Any:
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return value
    raise _refused(value, "bool", "is neither true nor false")


def _available(value: Any) -> Any:
    if value is UNAVAILABLE:
        raise ValueError("the column was not sent")
    return value


_PLAIN_DATE = Wire("date", _plain_date)
_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "datetime": _plain_datetime,
    "time": _plain_time,
    "timedelta": _plain_timedelta,
    "decimal": _plain_decimal,
    "bytes": _plain_bytes,
    "float": _plain_float,
    "bool": _plain_bool,
    "any": _available,
    # Functions of the team's own may turn anything into anything.
    "function-before": _available,
    "function-wrap": _available,
    "function-plain": _available,
}
# Where schemas stand inside schemas (pydantic_core.core_schema). Not in "json": that is the application's own JSON.
_ONE = ("schema", "keys_schema", "values_schema", "items_schema", "extras_schema", "lax_schema", "strict_schema")
_ONE_MORE = ("json_schema", "python_schema", "arguments_schema")
_MANY = ("items_schema", "steps", "definitions", "choices", "fields", "arguments_schema")


def guard(schema: CoreSchema) -> CoreSchema:
    """Return a model's core schema in which plain annotations refuse what pydantic's lax mode would guess.

    Made for `Row.__get_pydantic_core_schema__`: `return guard(handler(source))`. Guarding twice does no harm. Models
    that are no Row themselves and stand in a Row's field are references here, and keep pydantic's rules.

    Raises:
        DefinitionError: a union holds two wire types, and nothing could tell which of them a value is.
    """
    return cast("CoreSchema", _walk(cast("dict[str, Any]", schema), in_field=False))


def _walk(node: dict[str, Any], *, in_field: bool) -> dict[str, Any]:
    metadata = node.get("metadata") or {}
    if _WIRE in metadata or _GUARDED in metadata or "cdc_reactor.beyond" in metadata or node.get("type") == "json":
        return node
    in_field = in_field or node.get("type") in ("model-field", "typed-dict-field", "dataclass-field")
    walked = _children(node, in_field=in_field)
    match node.get("type"):
        case "int":
            return {"strict": True, **walked}
        case "date":
            return _around(walked, _PLAIN_DATE.around)
        case "datetime" | "time" | "timedelta":
            # By default pydantic drops the digits after the sixth.
            walked["microseconds_precision"] = "error"
        case "union":
            return _union(walked)
        case "function-before" | "function-wrap" | "function-plain" if not in_field:
            return walked
    plain = _PLAIN.get(node.get("type", ""))
    return _around(walked, lambda inner: _before(plain, inner)) if plain else walked


def _children(node: dict[str, Any], *, in_field: bool) -> dict[str, Any]:
    walked = dict(node)
    for part in (*_ONE, *_ONE_MORE):
        if isinstance(node.get(part), dict):
            walked[part] = _walk(node[part], in_field=in_field)
    for part in _MANY:
        match node.get(part):
            case dict() as named if part in ("choices", "fields"):
                walked[part] = {name: _walk_member(member, in_field=in_field) for name, member in named.items()}
            case list() as members:
                walked[part] = [_walk_member(member, in_field=in_field) for member in members]
    return walked


def _walk_member(member: Any, *, in_field: bool) -> Any:
    match member:
        case dict():
            return _walk(member, in_field=in_field)
        case (dict() as schema, label):  # a union's choice with its label
            return _walk(schema, in_field=in_field), label
    return member


def _before(function: Callable[[Any], Any], inner: CoreSchema) -> CoreSchema:
    return core_schema.no_info_before_validator_function(function, inner, metadata={_GUARDED: True})


def _around(node: dict[str, Any], wrap: Callable[[CoreSchema], CoreSchema]) -> dict[str, Any]:
    """Wrap a schema; the wrapper takes over its name, by which others refer to it."""
    named = {"ref": node.pop("ref")} if "ref" in node else {}
    return {**cast("dict[str, Any]", wrap(cast("CoreSchema", node))), **named}


def _union(node: dict[str, Any]) -> dict[str, Any]:
    choices = [choice[0] if isinstance(choice, tuple) else choice for choice in node["choices"]]
    wires = [wire for choice in choices if (wire := _wire_of(choice)) is not None]
    if len(wires) > 1:
        names = " and ".join(wire.name for wire in wires)
        raise DefinitionError(f"{names} in one union: a value does not say which of them it is")
    admitted = tuple(kind for choice in choices if (kind := _beyond(choice)) is not None)
    if not wires or not admitted:
        return node
    return _around(node, lambda inner: wires[0].in_front_of(inner, admitted))


def _wire_of(choice: Mapping[str, Any]) -> Wire | None:
    wire = (choice.get("metadata") or {}).get(_WIRE)
    if wire is None and choice.get("type") in ("nullable", "default", "function-after"):
        return _wire_of(choice["schema"])
    return wire if isinstance(wire, Wire) else None


def _beyond(choice: Mapping[str, Any]) -> type | None:
    if choice.get("type") == "enum" and choice.get("cls") is Infinity:
        return Infinity
    return IsoText if "cdc_reactor.beyond" in (choice.get("metadata") or {}) else None
