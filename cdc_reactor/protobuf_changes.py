"""What two shapes of one Protobuf class differ in, as far as it breaks somebody.

The rules are those of https://protobuf.dev/programming-guides/proto3/#updating for bytes, and of
https://protobuf.dev/programming-guides/json/ where messages are written as JSON; a rename breaks either, because it
cannot be told from the reuse of a number. Pure; `protobuf_shapes` makes the shapes, `schema_changes` does the same for
JSON Schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from cdc_reactor.event_schemas import protobuf_words
from cdc_reactor.schema_changes import Difference

Shape: TypeAlias = Mapping[str, Any]

# What is read as each other, by its bytes.
_VARINTS = frozenset(("int32", "uint32", "int64", "uint64", "bool"))
_SAME_BYTES = (
    _VARINTS,
    frozenset(("sint32", "sint64")),
    frozenset(("fixed32", "sfixed32")),
    frozenset(("fixed64", "sfixed64")),
    # bool is left out: protobuf.dev names the four integers only.
    frozenset(("enum", "int32", "uint32", "int64", "uint64")),
)
# Text is valid as bytes, but bytes need not be text.
_WIDER_BYTES = {"string": ("bytes",)}

# A JSON parser takes integers as numbers and as text, and refuses those out of range.
_INTEGERS = {
    **dict.fromkeys(("int32", "sint32", "sfixed32"), (-(2**31), 2**31 - 1)),
    **dict.fromkeys(("uint32", "fixed32"), (0, 2**32 - 1)),
    **dict.fromkeys(("int64", "sint64", "sfixed64"), (-(2**63), 2**63 - 1)),
    **dict.fromkeys(("uint64", "fixed64"), (0, 2**64 - 1)),
}

# Their JSON, and what they mean, is more than their fields.
_WELL_KNOWN = "google.protobuf."


def compare(old: Shape, new: Shape, *, is_json: bool) -> list[Difference]:
    """Return the differences of two shapes, each once, in the order of the old one's fields."""
    found = _Comparison(old, new, is_json=is_json).compare_messages(old["message"], new["message"])
    return list(dict.fromkeys(found))


class _Comparison:
    """Two shapes. Messages may hold themselves: each pair is looked at once."""

    def __init__(self, old: Shape, new: Shape, *, is_json: bool) -> None:
        self._old = old
        self._new = new
        self._is_json = is_json
        self._known: dict[tuple[str, str], list[Difference]] = {}

    def compare_messages(self, old: str, new: str) -> list[Difference]:
        pair = (old, new)
        if pair not in self._known:
            # While it is being looked at, it counts as the same: it is then told once, and not without end.
            self._known[pair] = []
            self._known[pair] = list(self._messages(_message(self._old, old), _message(self._new, new)))
        return self._known[pair]

    def _messages(self, old: Shape, new: Shape) -> Iterator[Difference]:
        before, after = old["fields"], new["fields"]
        for number, field in before.items():
            if number in after:
                yield from self._fields(field, after[number], number)
                if _partners(number, before, after) != _partners(number, after, before):
                    yield _moved(field, after[number])
            else:
                yield from self._removed(number, field["name"], new["reserved"], "field")
        for number in after.keys() - before.keys():
            yield from _added(number, after[number], old["reserved"])

    def _removed(self, number: str, name: str, reserved: Shape, kind: str) -> Iterator[Difference]:
        if not _is_reserved(number, reserved):
            yield Difference(name, f"{kind} removed, and its number {number} not reserved", f"add `reserved {number};`")
        elif self._is_json and name not in reserved["names"]:
            yield Difference(name, f"{kind} removed, and its name not reserved", f'add `reserved "{name}";`')

    def _fields(self, old: Shape, new: Shape, number: str) -> Iterator[Difference]:
        name = old["name"]
        if old["name"] != new["name"]:
            yield Difference(
                name, f"number {number} is {new['name']} now", "keep the name, and give a new field a new number"
            )
        elif self._is_json and old["json_name"] != new["json_name"]:
            yield Difference(name, f"JSON name changed from {old['json_name']} to {new['json_name']}", "keep json_name")
        if _times(old) != _times(new):
            yield Difference(name, f"label changed from {old['label']} to {new['label']}", "keep its label")
        yield from (difference.below(name) for difference in self._types(old, new))

    def _types(self, old: Shape, new: Shape) -> Iterator[Difference]:
        is_map = _is_map(self._old, old)
        if not self._is_compatible(old, new) or (self._is_json and is_map != _is_map(self._new, new)):
            before, after = protobuf_words(old, self._old), protobuf_words(new, self._new)
            yield Difference("", f"type changed from {before} to {after}", "keep its type, or add a field")
        elif old["type"] == new["type"] == "enum":
            yield from self._enums(self._old["enums"][old["of"]], self._new["enums"][new["of"]])
        elif "of" in old and "of" in new:
            place = "{}" if is_map else "[]" if old["label"] == "repeated" else ""
            for difference in self.compare_messages(old["of"], new["of"]):
                inner = (
                    difference._replace(path=difference.path.removeprefix("value").lstrip("."))
                    if is_map
                    else difference
                )
                yield inner.below(place) if place else inner

    def _is_compatible(self, old: Shape, new: Shape) -> bool:
        before, after = old["type"], new["type"]
        if before == after:
            return not _is_other_well_known(old, new)
        if not self._is_json:
            return after in _WIDER_BYTES.get(before, ()) or any({before, after} <= group for group in _SAME_BYTES)
        if before in _INTEGERS and after in _INTEGERS:
            lowest, highest = _INTEGERS[after]
            return lowest <= _INTEGERS[before][0] and _INTEGERS[before][1] <= highest
        return (before, after) == ("float", "double")

    def _enums(self, old: Shape, new: Shape) -> Iterator[Difference]:
        names = {number: name for name, number in new["values"].items()}
        for name, number in old["values"].items():
            if new["values"].get(name) == number:
                continue
            if number in names:
                yield Difference("", f"value {number} was {name} and is {names[number]} now", "keep the value")
            else:
                removed = self._removed(str(number), name, new["reserved"], f"value {name}")
                yield from (difference._replace(path="") for difference in removed)


def _message(shape: Shape, name: str) -> Shape:
    found: Shape = shape if name == shape["message"] else shape["messages"][name]
    return found


def _is_map(shape: Shape, field: Shape) -> bool:
    return field["type"] == "message" and "map" in _message(shape, field["of"])


def _is_other_well_known(old: Shape, new: Shape) -> bool:
    names = old.get("of", ""), new.get("of", "")
    return names[0] != names[1] and any(name.startswith(_WELL_KNOWN) for name in names)


def _times(field: Shape) -> str:
    """Say how often a field is on the wire; whether its absence shows makes no difference there."""
    return "once" if field["label"] in ("implicit", "optional") else str(field["label"])


def _is_reserved(number: str, reserved: Shape) -> bool:
    return any(first <= int(number) <= last for first, last in reserved["numbers"])


def _partners(number: str, fields: Shape, others: Shape) -> set[str]:
    """Return the numbers that share a oneof with this one, of those that both versions have."""
    oneof = fields[number].get("oneof")
    return {
        each for each in fields.keys() & others.keys() if oneof is not None and fields[each].get("oneof") == oneof
    } - {number}


def _moved(old: Shape, new: Shape) -> Difference:
    before, after = (f"oneof {field['oneof']}" if "oneof" in field else "no oneof" for field in (old, new))
    if before == after:
        return Difference(old["name"], f"other fields joined or left its {before}", "leave oneofs as they are")
    return Difference(old["name"], f"moved from {before} to {after}", "leave it where it was")


def _added(number: str, field: Shape, reserved: Shape) -> Iterator[Difference]:
    if _is_reserved(number, reserved):
        yield Difference(field["name"], f"takes the number {number}, which was reserved", "give it a new number")
    if field["label"] == "required":
        yield Difference(
            field["name"], "new field is required, and what is published already lacks it", "make it optional"
        )
