"""What breaks between two shapes of a Protobuf class: each rule, for bytes and for JSON."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_reactor.protobuf_changes import compare
from cdc_reactor.protobuf_shapes import shape_of
from cdc_reactor.schema_changes import Difference
from tests.protobuf_classes import MATCH, protobuf_class

NOTHING: dict[str, Any] = {"numbers": [], "names": []}
MESSAGES = {f"google.protobuf.{name}": {"fields": {}, "reserved": NOTHING} for name in ("Timestamp", "Duration")}


def field(kind, name="a", *, label="implicit", **more):
    return {"name": name, "json_name": name, "type": kind, "label": label, **more}


def message(reserved=NOTHING, **fields):
    """A shape by name and number of its fields: a1=field("int32")."""
    numbered = {key.lstrip("abcde"): {**each, "name": key[0], "json_name": key[0]} for key, each in fields.items()}
    return {"message": "M", "fields": numbered, "reserved": reserved, "messages": MESSAGES, "enums": {}}


def numbers(*numbers):
    return {"numbers": [[each, each] for each in numbers], "names": []}


def told(old, new, *, is_json=False):
    return [f"{each.path}: {each.what}" for each in compare(old, new, is_json=is_json)]


STRING = field("string")
REPEATED, REQUIRED = field("string", label="repeated"), field("string", label="required")
OPTIONAL = field("string", label="optional")
IN_X, IN_Y = field("string", oneof="x"), field("string", oneof="y")
TIMESTAMP, DURATION = (field("message", of=f"google.protobuf.{name}") for name in ("Timestamp", "Duration"))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (message(a1=STRING, b2=STRING), message(a1=STRING), ["b: field removed, and its number 2 not reserved"]),
        (message(a1=STRING), message(b1=STRING), ["a: number 1 is b now"]),
        (message(a1=STRING), message(a1=field("int32")), ["a: type changed from string to int32"]),
        (message(a1=field("bytes")), message(a1=STRING), ["a: type changed from bytes to string"]),
        (message(a1=field("int32")), message(a1=field("sint32")), ["a: type changed from int32 to sint32"]),
        (message(a1=field("fixed32")), message(a1=field("fixed64")), ["a: type changed from fixed32 to fixed64"]),
        (message(a1=TIMESTAMP), message(a1=DURATION),
         ["a: type changed from google.protobuf.Timestamp to google.protobuf.Duration"]),
        (message(a1=STRING), message(a1=REPEATED), ["a: label changed from implicit to repeated"]),
        (message(a1=OPTIONAL), message(a1=REQUIRED), ["a: label changed from optional to required"]),
        (message(a1=REQUIRED), message(a1=OPTIONAL), ["a: label changed from required to optional"]),
        (message(a1=STRING), message(a1=STRING, b2=REQUIRED),
         ["b: new field is required, and what is published already lacks it"]),
        (message(numbers(2), a1=STRING), message(a1=STRING, b2=STRING), ["b: takes the number 2, which was reserved"]),
        (message(a1=STRING, b2=STRING), message(a1=IN_X, b2=IN_X),
         ["a: moved from no oneof to oneof x", "b: moved from no oneof to oneof x"]),
        (message(a1=IN_X, b2=IN_X), message(a1=IN_X, b2=IN_Y),
         ["a: other fields joined or left its oneof x", "b: moved from oneof x to oneof y"]),
        (message(a1=IN_X, b2=IN_X), message(a1=IN_X, b2=STRING),
         ["a: other fields joined or left its oneof x", "b: moved from oneof x to no oneof"]),
    ],
)  # fmt: skip
def test_what_breaks_those_who_read_bytes_is_found(old, new, found):
    assert told(old, new) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (message(a1=STRING), message(a1=STRING, b2=STRING)),
        (message(a1=STRING, b2=STRING), message(numbers(2), a1=STRING)),
        (message(a1=STRING), message(a1=OPTIONAL)),
        (message(a1=STRING), message(a1=field("bytes"))),
        *((message(a1=field(old)), message(a1=field(new))) for old, new in [
            ("int32", "uint64"), ("bool", "int32"), ("sint32", "sint64"), ("fixed32", "sfixed32"),
            ("sfixed64", "fixed64"), ("enum", "int32"),
        ]),
        (message(a1=STRING), message(a1=IN_X, b2=IN_X)),
        (message(a1=IN_X), message(a1=STRING)),
        (message(a1=IN_X, b2=IN_X), message(a1=IN_Y, b2=IN_Y)),
    ],
)  # fmt: skip
def test_what_reads_the_same_bytes_breaks_nobody(old, new):
    assert told(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (message(a1=STRING), message(numbers(1)), ["a: field removed, and its name not reserved"]),
        (message(a1=field("bool")), message(a1=field("int32")), ["a: type changed from bool to int32"]),
        (message(a1=field("int64")), message(a1=field("int32")), ["a: type changed from int64 to int32"]),
        (message(a1=STRING), message(a1=field("bytes")), ["a: type changed from string to bytes"]),
        (message(a1=STRING), message(b1=STRING), ["a: number 1 is b now"]),
    ],
)
def test_what_breaks_those_who_read_json_is_found(old, new, found):
    assert told(old, new, is_json=True) == found


@pytest.mark.parametrize(
    ("old", "new"), [("int32", "sint64"), ("int32", "int64"), ("uint32", "fixed64"), ("float", "double")]
)
def test_a_number_may_become_wider_in_json(old, new):
    assert told(message(a1=field(old)), message(a1=field(new)), is_json=True) == []


def test_a_json_name_counts_where_messages_are_json():
    old, new = message(a1=STRING), message(a1=STRING)
    new["fields"]["1"]["json_name"] = "anders"

    assert told(old, new) == []
    assert told(old, new, is_json=True) == ["a: JSON name changed from a to anders"]


# ── messages within messages ────────────────────────────────────────────────────────────────────────────────────────


def match_with(old_text, new_text):
    assert old_text in MATCH
    return shape_of(protobuf_class("Match", MATCH)), shape_of(
        protobuf_class("Match", MATCH.replace(old_text, new_text))
    )


def test_the_path_leads_into_lists_and_maps():
    in_list = match_with('name: "name" number: 1 type: TYPE_STRING', 'name: "name" number: 1 type: TYPE_INT32')
    in_map = match_with('value { name: "LEVEL_HIGH" number: 1 }', 'value { name: "LEVEL_TOP" number: 1 }')
    inside = match_with('name: "data" number: 1', 'name: "data" number: 2')

    assert told(*in_list) == ["skills[].name: type changed from string to int32"]
    assert told(*in_map) == ["levels{}: value 1 was LEVEL_HIGH and is LEVEL_TOP now"]
    assert compare(*inside, is_json=False) == [
        Difference("place.data", "field removed, and its number 1 not reserved", "add `reserved 1;`")
    ]


def test_a_value_of_an_enum_is_removed_with_its_number_reserved():
    gone = match_with('value { name: "LEVEL_HIGH" number: 1 }', "")
    reserved = match_with('value { name: "LEVEL_HIGH" number: 1 }', "reserved_range { start: 1 end: 1 }")

    assert told(*gone) == ["levels{}: value LEVEL_HIGH removed, and its number 1 not reserved"]
    assert told(*reserved) == []
    assert told(*reserved, is_json=True) == ["levels{}: value LEVEL_HIGH removed, and its name not reserved"]


def test_a_message_may_be_moved_as_long_as_it_looks_the_same():
    assert told(*match_with("Place", "Location")) == []


def test_a_map_may_become_a_list_of_its_entries_in_bytes_and_not_in_json():
    old, new = match_with("options { map_entry: true }", "")

    assert told(old, new) == []
    assert told(old, new, is_json=True) == [
        "levels: type changed from map<string, acme.v1.Match.Level> to repeated acme.v1.Match.LevelsEntry"
    ]


@given(is_json=st.booleans())
def test_a_shape_compared_with_itself_shows_nothing(is_json):
    shape = shape_of(protobuf_class("Match", MATCH))

    assert compare(shape, deepcopy(shape), is_json=is_json) == []


KINDS = st.sampled_from(["int32", "sint64", "bool", "bytes", "string", "double", "fixed32"])
FIELDS = st.dictionaries(st.integers(1, 9), st.builds(field, KINDS, label=st.sampled_from(["implicit", "repeated"])))


@given(FIELDS, FIELDS, st.booleans())
def test_fields_can_be_added_and_then_be_taken_away_with_their_numbers_reserved(before, added, is_json):
    old, more = (message(**{f"a{number}": each for number, each in fields.items()}) for fields in (before, added))
    new = {**old, "fields": {**more["fields"], **old["fields"]}}
    gone = new["fields"].keys() - old["fields"].keys()
    reserved = {"numbers": [[int(number), int(number)] for number in gone], "names": ["a"]}

    assert compare(old, new, is_json=is_json) == []
    assert compare(new, {**old, "reserved": reserved}, is_json=is_json) == []
    assert len(compare(new, old, is_json=is_json)) == len(gone)
