"""Kinds: how people write a setting, in a file, a variable or a flag, and how it is written for them.

A Kind stands in the annotation of a field of `settings`. It says what is allowed in words that an error can end with,
turns text into a value and a value into text that can be typed back, and gives the JSON Schema for editors. It knows no
key and no place; `settings` adds those to what it refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema
from typing_extensions import override


class Kind:
    """How values of one sort are written.

    `parse` is given typed values by a TOML file and text by a variable or a flag, and accepts either from all of them.
    """

    #: What is allowed, after "must be".
    allowed: str
    #: JSON Schema of what a TOML file may hold.
    schema: Mapping[str, Any]

    def parse(self, value: Any) -> Any:
        """Read what was given; ValueError where that is not allowed."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """Write a value for people; `parse` reads it again."""
        return str(value)

    def toml(self, value: Any) -> str:
        """Write a value as TOML."""
        return json.dumps(self.show(value), ensure_ascii=False)

    def refusal(self) -> ValueError:
        """Say what is allowed."""
        return ValueError(f"must be {self.allowed}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)


def written(amount: float) -> str:
    """Write a number, without a point where it is whole."""
    return str(int(amount)) if amount == int(amount) else repr(amount)


_AMOUNT = re.compile(r"\s*(?P<number>\d[\d_]*(?P<part>(\.\d+)?(e[+-]?\d+)?))\s*(?P<unit>[A-Za-z%]*)\s*")


class Number(Kind):
    """An amount, bare or as text with one of `units`; it lies from `lowest` to `highest`, or above `above`."""

    noun: ClassVar[str] = "a number"
    example: ClassVar[str] = ""
    units: ClassVar[Mapping[str, float]] = MappingProxyType({"": 1})
    is_whole: ClassVar[bool] = False

    def __init__(
        self, lowest: float | None = None, highest: float | None = None, *, above: float | None = None
    ) -> None:
        self._lowest, self._highest, self._above = lowest, highest, above
        bounds = [(lowest, "from"), (above, "above"), (highest, "up to" if lowest is None else "to")]
        told = [f"{word} {written(bound)}" for bound, word in bounds if bound is not None]
        self.allowed = " ".join([self.noun, *told]) + (" on" if lowest is not None is highest else "") + self.example
        self.schema = self._schema({"minimum": lowest, "maximum": highest, "exclusiveMinimum": above})

    def _schema(self, limits: Mapping[str, float | None]) -> Mapping[str, Any]:
        number: dict[str, Any] = {"type": "integer" if self.is_whole else "number"}
        number |= {name: limit for name, limit in limits.items() if limit is not None}
        units = "|".join(re.escape(unit) for unit in self.units if unit)
        if not units:
            return number
        return {"anyOf": [number, {"type": "string", "pattern": rf"^\d[\d_]*(\.\d+)? ?({units})$"}]}

    @override
    def parse(self, value: Any) -> float | int:
        amount = self._amount(value)
        is_inside = (
            (self._lowest is None or amount >= self._lowest)
            and (self._highest is None or amount <= self._highest)
            and (self._above is None or amount > self._above)
            # TOML knows inf, nan and integers of any length.
            and amount < 2**63
        )
        if not is_inside or (self.is_whole and amount != int(amount)):
            raise self.refusal()
        return int(amount) if self.is_whole else float(amount)

    def _amount(self, value: Any) -> float | int:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
        if found is None or found["unit"] not in self.units:
            raise self.refusal()
        number = float(found["number"]) if found["part"] else int(found["number"])
        return number * self.units[found["unit"]]

    @override
    def show(self, value: Any) -> str:
        return written(value)

    @override
    def toml(self, value: Any) -> str:
        return written(value)


class Whole(Number):
    """A count."""

    noun = "a whole number"
    is_whole = True


class Share(Number):
    """A part of one."""

    noun = "a share"
    example = ', such as 0.01 or "1%"'
    units = MappingProxyType({"": 1, "%": 0.01})


class Seconds(Number):
    """A duration."""

    noun = "seconds"
    example = ', such as 30, "30s" or "5m"'
    units = MappingProxyType({"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600})

    @override
    def show(self, value: Any) -> str:
        return f"{written(value)} s"


class WholeSeconds(Seconds):
    """A duration that travels to Pub/Sub, which knows no parts of a second."""

    noun = "whole seconds"
    is_whole = True


class Size(Number):
    """Bytes."""

    noun = "a size in bytes"
    example = ', such as 1048576, "100 MiB" or "1 GB"'
    units = MappingProxyType(
        {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    )
    is_whole = True

    @override
    def show(self, value: Any) -> str:
        for unit in ("GiB", "MiB", "KiB"):
            factor = int(self.units[unit])
            if value and value % factor == 0:
                return f"{value // factor} {unit}"
        return f"{value} B"

    @override
    def toml(self, value: Any) -> str:
        return json.dumps(self.show(value)) if value else "0"


_YES, _NO = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


class Truth(Kind):
    """Yes or no."""

    allowed = "true or false"
    schema = MappingProxyType({"type": "boolean"})

    @override
    def parse(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = value.lower() if isinstance(value, str) else ""
        if word not in _YES | _NO:
            raise self.refusal()
        return word in _YES

    @override
    def show(self, value: Any) -> str:
        return "true" if value else "false"

    @override
    def toml(self, value: Any) -> str:
        return self.show(value)


class Choice(Kind):
    """One of a few words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words
        self.allowed = f"one of {', '.join(words)}"
        self.schema = {"enum": list(words)}

    @override
    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in self._words:
            raise self.refusal()
        return value.lower()


class Text(Kind):
    """Text that matches a pattern, the whole of it."""

    def __init__(self, allowed: str = "text, and not empty", pattern: str = r"(?s:.+)") -> None:
        self.allowed = allowed
        self._pattern = re.compile(pattern)
        self.schema = {"type": "string"}

    @override
    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or self._pattern.fullmatch(value) is None:
            raise self.refusal()
        return value

    @override
    def show(self, value: Any) -> str:
        return masked(value)


class Secret(Text):
    """Text that is shown masked."""

    @override
    def parse(self, value: Any) -> str:
        return super().parse(value.get_secret_value() if isinstance(value, SecretStr) else value)

    @override
    def show(self, value: Any) -> str:
        return masked(value.get_secret_value())


class Texts(Kind):
    """A list, at least one and none twice; a variable has commas between them."""

    def __init__(self, each: Text) -> None:
        self._each = each
        self.allowed = f"a list, none of it twice, each {each.allowed}"
        self.schema = {"type": "array", "minItems": 1, "uniqueItems": True, "items": dict(each.schema)}

    @override
    def parse(self, value: Any) -> list[str]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, list | tuple) or not value:
            raise self.refusal()
        try:
            texts = [self._each.parse(text) for text in value]
        except ValueError:
            raise self.refusal() from None
        if len(set(texts)) != len(texts):
            raise self.refusal()
        return texts

    @override
    def show(self, value: Any) -> str:
        return ", ".join(value)

    @override
    def toml(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)


class Maybe(Kind):
    """What another kind allows, or a word that stands for None."""

    def __init__(self, kind: Kind, word: str = "none") -> None:
        self._kind = kind
        self.word = word
        self.allowed = f'{kind.allowed}; or "{word}"'
        self.schema = {"anyOf": [*kind.schema.get("anyOf", [dict(kind.schema)]), {"const": word}]}

    @override
    def parse(self, value: Any) -> Any:
        if value is None or value == self.word:
            return None
        try:
            return self._kind.parse(value)
        except ValueError:
            raise self.refusal() from None

    @override
    def show(self, value: Any) -> str:
        return self.word if value is None else self._kind.show(value)

    @override
    def toml(self, value: Any) -> str:
        return json.dumps(self.word) if value is None else self._kind.toml(value)


# `scheme://user:password@host` up to the last @, since passwords are pasted unescaped; `?password=` as libpq has it.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
_PASSWORD = re.compile(r"(?s)(://[^:/@]*:).*@|([?&](?:ssl)?password=)[^&]*")


def masked(url: str) -> str:
    """Replace the passwords in a URL by `***`; other text stays as it is."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", url)
