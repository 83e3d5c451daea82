"""Columns that Debezium did not send: how it says so on the wire, and the value that then stands in their place.

PostgreSQL leaves a large value that did not change out of the WAL (TOAST), and Debezium puts a placeholder where it
would stand, in whatever guise the column's type allows (UnchangedToastedPlaceholder, PostgresValueConverter).
"""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import md5
from typing import Any, Final, NoReturn, final
from uuid import UUID

import msgspec

from cdc_reactor.errors import ImageUnavailable, UsageError

DEFAULT_PLACEHOLDER: Final = "__debezium_unavailable_value"

# Characters that every JSON writer leaves as they are; others it may escape in more ways than one.
_NEVER_ESCAPED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _-.,:;!?#$%()*@[]^{|}~+=")


@final
class Unavailable:
    """The type of `UNAVAILABLE`, which stands for a column that was not sent; taking it for data raises."""

    __slots__ = ()

    def __new__(cls) -> Unavailable:  # noqa: D102 - there is one, whoever asks
        return UNAVAILABLE

    def __repr__(self) -> str:
        return "UNAVAILABLE"

    def __reduce__(self) -> str:
        return "UNAVAILABLE"

    def _refuse(self, *_: object) -> NoReturn:
        raise ImageUnavailable("this column was not sent: a large value that did not change (TOAST); it has no value")

    __bool__ = __str__ = __format__ = __int__ = __float__ = __bytes__ = _refuse


UNAVAILABLE: Final[Unavailable] = object.__new__(Unavailable)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The connector's `unavailable.value.placeholder`, and all the guises in which it may turn up.

    `configured` is the option's value; `hex:` before it announces the hexadecimal bytes of the text, as Debezium has
    it (PostgresConnectorConfig.getUnavailableValuePlaceholder).

    Raises:
        UsageError: the option is empty, or no hexadecimal follows `hex:`.
    """

    configured: str = DEFAULT_PLACEHOLDER
    text: str = field(init=False)
    content: bytes = field(init=False, repr=False)
    #: Every string that stands for a column that was not sent.
    texts: frozenset[str] = field(init=False, repr=False, compare=False)
    _lists: tuple[list[Any], ...] = field(init=False, repr=False, compare=False)
    _needles: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _always: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        content = _content(self.configured)
        text = content.decode("utf-8", "replace")
        scalars = {text, b64encode(content).decode(), urlsafe_b64encode(content).decode(), content.hex()}
        for name, value in {
            "content": content,
            "text": text,
            "texts": frozenset({*scalars, content.hex().upper(), msgspec.json.encode({text: text}).decode()}),
            "_lists": _lists(text, content),
            "_needles": tuple(s.encode() for s in sorted({*scalars, content.hex().upper()}, key=len)),
            "_always": any(not _NEVER_ESCAPED.issuperset(scalar) for scalar in scalars),
        }.items():
            object.__setattr__(self, name, value)

    def might_occur(self, raw: bytes) -> bool:
        r"""Tell whether the JSON of a row may hold the placeholder; False is certain, True costs a closer look.

        An array may hold it as numbers, and `\u0041` may be any character, so either alone makes it True.
        """
        if self._always or b"[" in raw or (b"\\" in raw and b"\\u" in raw):
            return True
        for needle in self._needles:  # noqa: SIM110 - `any` of a generator takes twice the time
            if needle in raw:
                return True
        return False

    def matches(self, value: object) -> bool:
        """Tell whether this value of a column, as it came from JSON or Avro, is the placeholder."""
        match value:
            case str():
                return value in self.texts
            case list():
                return bool(value) and (value in self._lists or self._spells(value))
            case bytes():
                return value == self.content
            case dict():
                return len(value) == 1 and value.get(self.text) == self.text
        return False

    def _spells(self, value: list[Any]) -> bool:
        """Tell whether a list of decimals has one element for each byte of the placeholder."""
        if len(value) != len(self.content):
            return False
        unscaled = [_unscaled(element) for element in value]
        return unscaled == _signed(self.content)


def _content(configured: str) -> bytes:
    try:
        content = bytes.fromhex(configured[4:]) if configured.startswith("hex:") else configured.encode()
    except ValueError as error:
        raise UsageError(f"unavailable.value.placeholder is {configured!r}, but {error}") from error
    if not content:
        raise UsageError("unavailable.value.placeholder is empty: any empty text would count as not sent")
    return content


def _signed(content: bytes) -> list[int]:
    return [byte - 256 if byte > 127 else byte for byte in content]


def _lists(text: str, content: bytes) -> tuple[list[Any], ...]:
    """Return what UnchangedToastedPlaceholder.getArrayValue makes of it for the element types that are not decimals.

    Numbers of all widths, dates and floats are one element a byte; 95 == 95.0, so one list will do. A uuid is Java's
    nameUUIDFromBytes (version 3 without namespace). Booleans are `byte != 0`.
    """
    base64 = {b64encode(content).decode(), urlsafe_b64encode(content).decode(), content.hex()}
    name_uuid = str(UUID(bytes=md5(content, usedforsecurity=False).digest(), version=3))
    return (
        [text],
        [content],
        *([encoded] for encoded in sorted(base64)),
        [name_uuid],
        [{text: text}],
        [msgspec.json.encode({text: text}).decode()],
        _signed(content),
        [byte != 0 for byte in content],
    )


def _unscaled(element: object) -> int | None:
    """Read the whole number behind one decimal of an array: base64 or bytes of one byte, {scale, value}, a Decimal."""
    if isinstance(element, Mapping):
        element = element.get("value") if element.get("scale") == 0 else None
    if isinstance(element, Decimal) and element.is_finite():
        sign, digits, _ = element.as_tuple()
        number = int("".join(map(str, digits))) if len(digits) <= 3 else None
        return -number if sign and number else number
    if isinstance(element, str) and len(element) == 4 and element.endswith("=="):
        return _BYTES_BY_BASE64.get(element)
    if isinstance(element, bytes) and len(element) == 1:
        return _signed(element)[0]
    return None


_BYTES_BY_BASE64 = {b64encode(bytes([byte])).decode(): _signed(bytes([byte]))[0] for byte in range(256)}
