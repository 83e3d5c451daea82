"""What two JSON Schemas of one event differ in, as far as it breaks somebody.

A later schema must take every value that an earlier one took, and must keep its fields, because subscribers of the
earlier one still read them. Titles, descriptions, defaults and examples are no difference. Pure; `protobuf_changes`
does the same for Protobuf, `event_changes` calls both.

The words of a schema are those that pydantic writes: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from cdc_reactor.event_schemas import words

Schema: TypeAlias = Mapping[str, Any]


class Difference(NamedTuple):
    """One thing that breaks somebody: where in the event, what, and what can be done short of a new topic."""

    path: str
    what: str
    cure: str = ""

    def below(self, place: str) -> Difference:
        """Return the same, seen from outside of `place`: a field's name, `[]` of a list, `{}` of a map."""
        joint = "" if not self.path or self.path[0] in "[{" else "."
        return self._replace(path=f"{place}{joint}{self.path}")


def compare(old: Schema, new: Schema) -> list[Difference]:
    """Return the differences of two JSON Schemas, each once, in the order of the old one's fields."""
    found = _Comparison(old.get("$defs", {}), new.get("$defs", {})).compare(old, new)
    return list(dict.fromkeys(found))


class _Choice(NamedTuple):
    """One of the schemas of a union; `name` is its model's, where it has one."""

    schema: Schema
    name: str
    kind: str


# Words that say nothing of what is taken, or that are looked at on their own.
_SAYS_NOTHING = frozenset(
    ("$comment", "$defs", "$ref", "default", "deprecated", "description", "discriminator", "examples", "readOnly")
) | {"title", "writeOnly"}
_KNOWN = _SAYS_NOTHING | frozenset(
    (
        "additionalProperties", "anyOf", "const", "enum", "exclusiveMaximum", "exclusiveMinimum", "format",
        "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties",
        "minimum", "multipleOf", "oneOf", "prefixItems", "properties", "propertyNames", "required", "type",
        "uniqueItems",
    )
)  # fmt: skip
_LEAST = ("minLength", "minItems", "minProperties")
_MOST = ("maxLength", "maxItems", "maxProperties")

_KEEP = "keep it"
_NULL = _Choice({"type": "null"}, "", "null")


class _Comparison:
    """Two schemas with the models that they name. Models may hold themselves: each pair is looked at once."""

    def __init__(self, old_models: Schema, new_models: Schema) -> None:
        self._old_models = old_models
        self._new_models = new_models
        self._known: dict[tuple[str, str], list[Difference]] = {}

    def compare(self, old: Any, new: Any) -> list[Difference]:
        olds = list(_choices(old, self._old_models))
        news = list(_choices(new, self._new_models))
        if any(choice.kind == "any" for choice in news):
            return []
        return [found for choice in olds for found in self._fit(choice, olds, news)]

    def _fit(self, old: _Choice, olds: list[_Choice], news: list[_Choice]) -> list[Difference]:
        """Find what takes all that one choice of the old union took; where nothing does, say what is nearest to it."""
        if old.kind == "null" and _NULL.kind not in [new.kind for new in news]:
            return [Difference("", "may no longer be null", "keep `| None`")]
        candidates = [new for new in news if _is_kind_of(old, new)]
        found = [self._compare_choice(old, new) for new in candidates]
        if [] in found:
            return []
        nearest = [
            differences
            for differences, new in zip(found, candidates, strict=True)
            if _are_counterparts(old, olds, new, news)
        ]
        return min(nearest, key=len) if nearest else [_gone(old, olds, news)]

    def _compare_choice(self, old: _Choice, new: _Choice) -> list[Difference]:
        pair = (old.name, new.name)
        if not all(pair):
            return list(self._differences(old, new))
        if pair not in self._known:
            # While it is being looked at, it counts as the same: it is then told once, and not without end.
            self._known[pair] = []
            self._known[pair] = list(self._differences(old, new))
        return self._known[pair]

    def _differences(self, old: _Choice, new: _Choice) -> Iterator[Difference]:
        yield from _values(old.schema, new.schema)
        yield from _formats(old.schema, new.schema)
        yield from _bounds(old, new)
        yield from _other_words(old.schema, new.schema)
        if old.kind == "object":
            yield from self._objects(old.schema, new.schema)
        elif old.kind == "array":
            yield from self._arrays(old.schema, new.schema)

    def _objects(self, old: Schema, new: Schema) -> Iterator[Difference]:
        if _is_map(old) != _is_map(new):
            what = "a map", "an object with fields"
            yield Difference("", f"type changed from {what[_is_map(new)]} to {what[_is_map(old)]}")
        elif _is_map(old):
            yield from self._inside("{}", old.get("additionalProperties", True), new.get("additionalProperties", True))
            yield from self._inside("{key}", old.get("propertyNames", True), new.get("propertyNames", True))
        else:
            yield from self._fields(old, new)
            if new.get("additionalProperties") is False and old.get("additionalProperties") is not False:
                yield Difference("", "fields that it does not know are refused now", 'keep extra="ignore"')

    def _fields(self, old: Schema, new: Schema) -> Iterator[Difference]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, field in before.items():
            if name not in after:
                yield Difference(name, "field removed", _KEEP)
                continue
            yield from self._inside(name, field, after[name])
            if name in new.get("required", ()) and name not in old.get("required", ()):
                yield Difference(name, "optional field made required", "keep its default")
        for name in new.get("required", ()):
            if name not in before:
                yield Difference(
                    name, "new field is required, and what is published already lacks it", "give it a default"
                )

    def _arrays(self, old: Schema, new: Schema) -> Iterator[Difference]:
        if new.get("uniqueItems") and not old.get("uniqueItems"):
            yield Difference("", "its items must be unique now")
        before, after = old.get("prefixItems", []), new.get("prefixItems", [])
        for index in range(max(len(before), len(after))):
            if index < old.get("maxItems", math.inf):
                yield from self._inside(f"[{index}]", _item(old, index), _item(new, index))
        # A tuple of a fixed length has no other items.
        if old.get("maxItems", math.inf) > len(before):
            yield from self._inside("[]", old.get("items", True), new.get("items", True))

    def _inside(self, place: str, old: Any, new: Any) -> Iterator[Difference]:
        return (difference.below(place) for difference in self.compare(old, new))


# ── unions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choices(schema: Any, models: Schema, name: str = "") -> Iterator[_Choice]:
    """Return the schemas of a union, or the one that there is, with what they refer to in place of references."""
    if schema is False:
        return
    if schema is True:
        schema = {}
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        schema = {**models.get(name, {}), **{word: value for word, value in schema.items() if word != "$ref"}}
    for wrapper in ("anyOf", "oneOf", "allOf"):
        # An `allOf` of one is how a reference was given a description before pydantic 2.9.
        inner = schema.get(wrapper, ())
        if inner and (wrapper != "allOf" or len(inner) == 1):
            for each in inner:
                yield from _choices(each, models, name if len(inner) == 1 else "")
            return
    for kind, narrowed in _by_kind(schema):
        yield _Choice({**schema, **narrowed, "type": kind}, name, kind)


def _by_kind(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Return each kind of JSON that a schema takes, with the values of that kind where it lists values."""
    kinds, values = schema.get("type"), _listed(schema)
    if kinds is None and values is not None:
        for kind in dict.fromkeys(map(_kind_of_value, values)):
            yield kind, {"enum": [value for value in values if _kind_of_value(value) == kind]}
    elif kinds is None:
        is_anything = schema.keys() <= _SAYS_NOTHING
        yield "object" if "properties" in schema else "any" if is_anything else "several", {}
    else:
        yield from ((str(kind), {}) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _kind_of_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
    return "array" if isinstance(value, list) else "object"


def _is_kind_of(old: _Choice, new: _Choice) -> bool:
    return old.kind == new.kind or (old.kind == "integer" and new.kind == "number")


def _are_counterparts(old: _Choice, olds: list[_Choice], new: _Choice, news: list[_Choice]) -> bool:
    """Tell whether the new choice is what became of the old one, and not of another choice beside it."""
    if old.name == new.name:
        return True
    is_elsewhere = old.name in [each.name for each in news] or new.name in [each.name for each in olds]
    return not is_elsewhere or not (old.name and new.name)


def _gone(old: _Choice, olds: list[_Choice], news: list[_Choice]) -> Difference:
    before, after = ([each for each in choices if each.kind != "null"] for choices in (olds, news))
    if len(before) == len(after) == 1 or old.kind == "any":
        told = " or ".join(_words(each) for each in after) or "null"
        return Difference("", f"type changed from {_words(old)} to {told}", "keep its type")
    return Difference("", f"no longer takes {_words(old)}", "keep it in the union")


def _words(choice: _Choice) -> str:
    return choice.name or words(choice.schema)


# ── values, formats, bounds ─────────────────────────────────────────────────────────────────────────────────────────


def _listed(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _values(old: Schema, new: Schema) -> Iterator[Difference]:
    before, after = _listed(old), _listed(new)
    if after is None:
        return
    allowed = {json.dumps(value, sort_keys=True) for value in after}
    if before is None:
        yield Difference("", f"only {_told(after)} allowed now")
    for value in before or ():
        if json.dumps(value, sort_keys=True) not in allowed:
            yield Difference("", f"value {value!r} removed", _KEEP)


def _told(values: list[Any]) -> str:
    return f"{', '.join(repr(value) for value in values)} {'is' if len(values) == 1 else 'are'}"


def _formats(old: Schema, new: Schema) -> Iterator[Difference]:
    before, after = old.get("format"), new.get("format")
    if before != after:
        yield Difference("", f"format changed from {before or 'none'} to {after or 'none'}", "keep its type")


def _bounds(old: _Choice, new: _Choice) -> Iterator[Difference]:
    if _lowest(new) > _lowest(old):
        yield Difference("", f"lower bound raised to {_told_bound(new.schema, 'inimum')}")
    if _highest(new) < _highest(old):
        yield Difference("", f"upper bound lowered to {_told_bound(new.schema, 'aximum')}")
    for word in _LEAST:
        if new.schema.get(word, 0) > old.schema.get(word, 0):
            yield Difference("", f"{word} raised from {old.schema.get(word, 0)} to {new.schema[word]}")
    for word in _MOST:
        if new.schema.get(word, math.inf) < old.schema.get(word, math.inf):
            yield Difference("", f"{word} lowered from {old.schema.get(word, 'none')} to {new.schema[word]}")
    step = new.schema.get("multipleOf")
    if step is not None and ("multipleOf" not in old.schema or old.schema["multipleOf"] % step):
        yield Difference("", f"must be a multiple of {step} now")


def _lowest(choice: _Choice) -> tuple[float, bool]:
    """Return the lower bound, and whether it is excluded itself; above 3 is from 4 on, for integers."""
    schema = choice.schema
    bound = schema.get("exclusiveMinimum")
    if bound is not None and choice.kind == "integer":
        return max(math.floor(bound) + 1, schema.get("minimum", -math.inf)), False
    return max((schema.get("minimum", -math.inf), False), (-math.inf if bound is None else bound, True))


def _highest(choice: _Choice) -> tuple[float, bool]:
    """Return the upper bound, and whether it is included itself."""
    schema = choice.schema
    bound = schema.get("exclusiveMaximum")
    if bound is not None and choice.kind == "integer":
        return min(math.ceil(bound) - 1, schema.get("maximum", math.inf)), True
    return min((schema.get("maximum", math.inf), True), (math.inf if bound is None else bound, False))


def _told_bound(schema: Schema, word: str) -> str:
    excluded = schema.get(f"exclusiveM{word}")
    return f"{schema[f'm{word}']}" if excluded is None else f"{excluded}, itself excluded"


def _other_words(old: Schema, new: Schema) -> Iterator[Difference]:
    """Report a word that we do not understand where it is new or says something else: it may well be tighter."""
    for word in sorted(new.keys() - _KNOWN):
        if new[word] != old.get(word):
            yield Difference("", f"{word} changed" if word in old else f"{word} added")


# ── containers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_map(schema: Schema) -> bool:
    return not schema.get("properties") and _holds_more(schema)


def _holds_more(schema: Schema) -> bool:
    return schema.get("additionalProperties", False) is not False or "patternProperties" in schema


def _item(schema: Schema, index: int) -> Any:
    given: Iterable[Any] = schema.get("prefixItems", ())
    return dict(enumerate(given)).get(index, schema.get("items", True))
