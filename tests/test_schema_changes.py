"""What breaks between two JSON Schemas: each rule, and that a schema compared with itself shows nothing."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from types import GenericAlias
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model

from cdc_reactor.event_schemas import json_schema
from cdc_reactor.schema_changes import Difference, compare


def fact(**fields: Any) -> dict[str, Any]:
    """The schema of a model; a type alone is a required field, (type, default) an optional one."""
    create: Any = create_model
    given_fields = {name: each if isinstance(each, tuple) else (each, ...) for name, each in fields.items()}
    return json_schema(create("Fact", **given_fields), "fact.v1")


def told(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{each.path}: {each.what}" for each in compare(old, new)]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Author(BaseModel):
    email: str


class Writer(BaseModel):
    email: str


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Later:
    """The same models, as they became."""

    class Author(BaseModel):
        email: int

    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: str


class Empty:
    """The same model, without its field."""

    class Author(BaseModel):
        pass


class Node(BaseModel):
    value: int
    below: list[Node] = []


class NarrowNode(BaseModel):
    value: Annotated[int, Field(ge=0)]
    below: list[NarrowNode] = []


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    value: int


class Open(BaseModel):
    value: int


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": int, "b": int}, {"a": int}, "b: field removed"),
        ({"a": int, "b": (int, 0)}, {"a": int}, "b: field removed"),
        ({"a": int}, {"a": str}, "a: type changed from integer to text"),
        ({"a": int}, {"a": bool}, "a: type changed from integer to boolean"),
        ({"a": float}, {"a": int}, "a: type changed from number to integer"),
        ({"a": list[int]}, {"a": int}, "a: type changed from list of integer to integer"),
        ({"a": int | None}, {"a": int}, "a: may no longer be null"),
        ({"a": int | str}, {"a": int}, "a: no longer takes text"),
        ({"a": Any}, {"a": int}, "a: type changed from anything to integer"),
        ({"a": int}, {"a": int, "b": str}, "b: new field is required, and what is published already lacks it"),
        ({"a": (int, 0)}, {"a": int}, "a: optional field made required"),
        ({"a": UUID}, {"a": str}, "a: format changed from uuid to none"),
        ({"a": str}, {"a": UUID}, "a: format changed from none to uuid"),
        ({"a": date}, {"a": datetime}, "a: format changed from date to date-time"),
        ({"a": Literal["x", "y"]}, {"a": Literal["x"]}, "a: value 'y' removed"),
        ({"a": str}, {"a": Literal["x"]}, "a: only 'x' is allowed now"),
        ({"a": Literal["x", 1]}, {"a": Literal["x"]}, "a: no longer takes 1"),
        ({"a": Colour}, {"a": Literal["red"]}, "a: value 'blue' removed"),
        ({"a": int}, {"a": Annotated[int, Field(ge=0)]}, "a: lower bound raised to 0"),
        ({"a": Annotated[float, Field(ge=0)]}, {"a": Annotated[float, Field(gt=0)]},
         "a: lower bound raised to 0, itself excluded"),
        ({"a": Annotated[int, Field(le=9)]}, {"a": Annotated[int, Field(lt=9)]},
         "a: upper bound lowered to 9, itself excluded"),
        ({"a": str}, {"a": Annotated[str, Field(min_length=1)]}, "a: minLength raised from 0 to 1"),
        ({"a": str}, {"a": Annotated[str, Field(max_length=9)]}, "a: maxLength lowered from none to 9"),
        ({"a": str}, {"a": Annotated[str, Field(pattern="^a")]}, "a: pattern added"),
        ({"a": Annotated[str, Field(pattern="^a")]}, {"a": Annotated[str, Field(pattern="^b")]}, "a: pattern changed"),
        ({"a": Annotated[int, Field(multiple_of=2)]}, {"a": Annotated[int, Field(multiple_of=4)]},
         "a: must be a multiple of 4 now"),
        ({"a": list[int]}, {"a": set[int]}, "a: its items must be unique now"),
        ({"a": list[int]}, {"a": list[str]}, "a[]: type changed from integer to text"),
        ({"a": list[Author]}, {"a": list[Empty.Author]}, "a[].email: field removed"),
        ({"a": list[Author] | None}, {"a": list[Later.Author] | None},
         "a[].email: type changed from text to integer"),
        ({"a": dict[str, Author]}, {"a": dict[str, Later.Author]}, "a{}.email: type changed from text to integer"),
        ({"a": dict[str, int]}, {"a": Author}, "a: type changed from a map to an object with fields"),
        ({"a": Author}, {"a": dict[str, str]}, "a: type changed from an object with fields to a map"),
        ({"a": tuple[int, str]}, {"a": tuple[int, int]}, "a[1]: type changed from text to integer"),
        ({"a": tuple[int, ...]}, {"a": tuple[str, ...]}, "a[]: type changed from integer to text"),
        ({"a": tuple[int, int]}, {"a": list[str]}, "a[0]: type changed from integer to text"),
        ({"a": Cat | Dog}, {"a": Later.Cat | Dog}, "a.lives: type changed from integer to text"),
        ({"a": Cat | Dog}, {"a": Dog}, "a: no longer takes Cat"),
        ({"a": Annotated[Cat | Dog, Field(discriminator="kind")]}, {"a": Annotated[Later.Cat | Dog, Field(discriminator="kind")]},
         "a.lives: type changed from integer to text"),
        ({"a": Open}, {"a": Closed}, "a: fields that it does not know are refused now"),
        ({"a": Node}, {"a": NarrowNode}, "a.value: lower bound raised to 0"),
    ],
)  # fmt: skip
def test_what_breaks_somebody_is_found_where_it_is(old, new, found):
    assert found in told(fact(**old), fact(**new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": int}, {"a": int, "b": (str, "")}),
        ({"a": int}, {"a": int, "b": (str | None, None)}),
        ({"a": int}, {"a": (int, 0)}),
        ({"a": int}, {"a": int | None}),
        ({"a": int}, {"a": int | str}),
        ({"a": int}, {"a": float}),
        ({"a": int}, {"a": Decimal}),
        ({"a": int}, {"a": Any}),
        ({"a": UUID}, {"a": UUID | str}),
        ({"a": Literal["x"]}, {"a": Literal["x", "y"]}),
        ({"a": Literal["x"]}, {"a": str}),
        ({"a": Literal["x", "y"]}, {"a": Literal["x", 1, "y"] | None}),
        ({"a": (int, 0)}, {"a": (int, 1)}),
        ({"a": int}, {"a": Annotated[int, Field(description="A number.", title="Number", examples=[1])]}),
        ({"a": Annotated[int, Field(ge=1)]}, {"a": Annotated[int, Field(gt=0)]}),
        ({"a": Annotated[int, Field(ge=1)]}, {"a": Annotated[int, Field(ge=0)]}),
        ({"a": Annotated[int, Field(le=8)]}, {"a": Annotated[int, Field(lt=9)]}),
        ({"a": Annotated[int, Field(multiple_of=4)]}, {"a": Annotated[int, Field(multiple_of=2)]}),
        ({"a": Annotated[str, Field(min_length=2, max_length=5, pattern="^a")]}, {"a": str}),
        ({"a": set[int]}, {"a": list[int]}),
        ({"a": tuple[int, int]}, {"a": list[int]}),
        ({"a": Author}, {"a": Annotated[Author, Field(description="Who wrote it.")]}),
        ({"a": Author}, {"a": Writer}),
        ({"a": Cat}, {"a": Cat | Dog}),
        ({"a": Closed}, {"a": Open}),
        ({"a": NarrowNode}, {"a": Node}),
    ],
)  # fmt: skip
def test_what_widens_or_only_tells_breaks_nobody(old, new):
    assert told(fact(**old), fact(**new)) == []


def test_a_model_that_stands_twice_is_told_at_each_of_its_places():
    assert compare(fact(a=Author, b=Author), fact(a=Empty.Author, b=Empty.Author)) == [
        Difference("a.email", "field removed", "keep it"),
        Difference("b.email", "field removed", "keep it"),
    ]


def test_a_model_that_holds_itself_is_looked_at_once():
    assert told(json_schema(Node, "node.v1"), json_schema(NarrowNode, "node.v1")) == ["value: lower bound raised to 0"]


def test_all_of_it_is_told_in_the_order_of_the_fields():
    old = fact(a=int, b=Author, c=str | None)
    new = fact(a=str, b=Later.Author, c=str, d=int)

    assert told(old, new) == [
        "a: type changed from integer to text",
        "b.email: type changed from text to integer",
        "c: may no longer be null",
        "d: new field is required, and what is published already lacks it",
    ]


def test_a_word_that_nobody_knows_counts_as_tighter_where_it_is_new():
    assert told({"type": "string"}, {"type": "string", "contentEncoding": "base64"}) == [": contentEncoding added"]
    assert told({"type": "string", "contentEncoding": "base64"}, {"type": "string"}) == []


# ── any model ───────────────────────────────────────────────────────────────────────────────────────────────────────

SCALARS: list[Any] = [int, str, float, bool, bytes, UUID, Decimal, datetime, Colour, Any, Author, Node, Literal["x", 1]]
KINDS = st.recursive(
    st.sampled_from([*SCALARS, Annotated[int, Field(ge=0, lt=7)], Annotated[str, Field(max_length=3)]]),
    lambda inner: st.one_of(
        inner.map(lambda each: GenericAlias(list, (each,))),
        inner.map(lambda each: GenericAlias(dict, (str, each))),
        inner.map(lambda each: each | None),
        inner.map(lambda each: GenericAlias(tuple, (each, ...))),
        st.tuples(inner, inner).map(lambda both: GenericAlias(tuple, both)),
        st.tuples(inner, inner).map(lambda both: both[0] | both[1] | None),
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.sampled_from("abcdef"), KINDS, min_size=1)


@given(FIELDS)
def test_a_schema_compared_with_itself_shows_nothing(fields):
    assert compare(fact(**fields), fact(**fields)) == []


@given(FIELDS, KINDS)
def test_an_optional_field_can_always_be_added_and_a_required_one_never(fields, kind):
    assert compare(fact(**fields), fact(**fields, added=(kind | None, None))) == []
    assert told(fact(**fields), fact(**fields, added=kind)) == [
        "added: new field is required, and what is published already lacks it"
    ]


@given(FIELDS, st.data())
def test_a_removed_field_is_always_found(fields, data):
    gone = data.draw(st.sampled_from(sorted(fields)))
    left = {name: kind for name, kind in fields.items() if name != gone}

    assert told(fact(**fields), fact(**left)) == [f"{gone}: field removed"]


@given(FIELDS, st.data())
def test_a_field_can_always_become_wider(fields, data):
    name = data.draw(st.sampled_from(sorted(fields)))

    assert compare(fact(**fields), fact(**{**fields, name: fields[name] | None})) == []
    assert compare(fact(**fields), fact(**{**fields, name: Any})) == []


#: Types, each with the JSON values that it takes.
WITH_VALUES = st.recursive(
    st.sampled_from(
        [
            (int, st.integers()),
            (str, st.text(max_size=3)),
            (float, st.floats(allow_nan=False, allow_infinity=False)),
            (UUID, st.uuids().map(str)),
            (Literal["x", 1], st.sampled_from(["x", 1])),
            (Annotated[int, Field(ge=0, lt=7)], st.integers(0, 6)),
            (Annotated[str, Field(min_length=1)], st.text(min_size=1, max_size=3)),
            (Author, st.fixed_dictionaries({"email": st.text(max_size=3)})),
            (Later.Author, st.fixed_dictionaries({"email": st.integers()})),
            (Any, st.none() | st.integers()),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(lambda each: (GenericAlias(list, (each[0],)), st.lists(each[1], max_size=2))),
        inner.map(lambda each: (GenericAlias(dict, (str, each[0])), st.dictionaries(st.text(), each[1], max_size=2))),
        inner.map(lambda each: (each[0] | None, st.none() | each[1])),
        st.tuples(inner, inner).map(lambda both: (both[0][0] | both[1][0], both[0][1] | both[1][1])),
    ),
    max_leaves=4,
)


@given(WITH_VALUES, KINDS, st.sampled_from(["another", "wider"]), st.data())
def test_where_nothing_is_found_the_later_schema_takes_every_earlier_value(old, other, how, data):
    kind, values = old
    later = fact(a=kind | other if how == "wider" else other)
    value = data.draw(values)

    if not compare(fact(a=kind), later):
        jsonschema.Draft202012Validator(later).validate({"a": value})
