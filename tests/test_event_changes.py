"""What breaks between two exports: the rules of topics, and how findings are told."""

from __future__ import annotations

from copy import deepcopy

import pytest

from cdc_reactor.errors import UsageError
from cdc_reactor.event_changes import Finding, check_export, compare, next_version
from cdc_reactor.event_schemas import export
from cdc_reactor.events import Event, ProtobufEvent, event_type
from cdc_reactor.notifications import Notification
from tests.protobuf_classes import MATCH, protobuf_class

INTEGER = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}
WITHOUT_B = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}


def entry(schema=INTEGER, *, encoding="json", key="", name="Fact"):
    return {"name": name, "encoding": encoding, "key": key, "schema": schema}


def of(**events):
    return {"version": 1, "events": {topic.replace("_", "."): each for topic, each in events.items()}}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (of(fact_v1=entry()), of(), ["fact.v1: topic removed (Fact); keep it until its last subscriber is gone"]),
        (
            of(fact_v1=entry(key="a")),
            of(fact_v1=entry(key="b")),
            [
                (
                    "fact.v1: key field changed from a to b: its messages' order is another; keep its key, "
                    "or publish it as fact.v2"
                )
            ],
        ),
        (
            of(fact_v1=entry()),
            of(fact_v1=entry(encoding="custom")),
            ["fact.v1: encoding changed from json to custom; keep its encoding, or publish it as fact.v2"],
        ),
        (
            of(fact_v1=entry()),
            of(fact_v1=entry(WITHOUT_B)),
            ["fact.v1: b: field removed; keep it, or publish it as fact.v2"],
        ),
        (of(fact_v1=entry()), of(fact_v1=entry(name="Renamed"), more_v1=entry()), []),
        (of(fact_v1=entry({}, encoding="raw")), of(fact_v1=entry()), []),
    ],
)
def test_each_finding_names_topic_field_and_cure(old, new, found):
    assert [str(finding) for finding in compare(old, new)] == found


def test_findings_come_by_topic():
    old, new = of(b_v1=entry(), a_v1=entry()), of(b_v1=entry(WITHOUT_B), a_v1=entry(WITHOUT_B))

    assert compare(old, new) == [
        Finding("a.v1", "b", "field removed", "keep it, or publish it as a.v2"),
        Finding("b.v1", "b", "field removed", "keep it, or publish it as b.v2"),
    ]


@pytest.mark.parametrize("encoding", ["protobuf", "protobuf-json"])
def test_protobuf_is_compared_by_its_own_rules(encoding):
    def exported(text):
        return export([event_type(ProtobufEvent(protobuf_class("Place", text), topic="place.v1", encoding=encoding))])

    old, new = exported(MATCH), exported(MATCH.replace("TYPE_BYTES", "TYPE_BOOL"))

    assert compare(old, new) == [
        Finding(
            "place.v1",
            "data",
            "type changed from bytes to bool",
            "keep its type, or add a field, or publish it as place.v2",
        )
    ]


def test_an_export_compared_with_itself_shows_nothing():
    match = ProtobufEvent(protobuf_class("Match", MATCH), topic="match.v1", key="user_id")

    class Keyed(Event, topic="keyed.v1", key="a"):
        a: int

    exported = export([event_type(Keyed), event_type(Notification), event_type(match)])

    assert compare(exported, deepcopy(exported)) == []


@pytest.mark.parametrize(
    ("topic", "later"),
    [
        ("post.upvoted.v1", "post.upvoted.v2"),
        ("post-upvoted-v9", "post-upvoted-v10"),
        ("post.upvoted", "post.upvoted.v2"),
        ("gondul.v1.match", "gondul.v1.match.v2"),
        ("post2", "post2.v2"),
    ],
)
def test_the_next_version_of_a_topic(topic, later):
    assert next_version(topic) == later


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "it is no export of events; write one with `cdc-reactor events --json > x`"),
        ([], "no export"),
        ({"version": 1}, "no export"),
        ({"version": 2, "events": {}}, "an export of version 2, and this cdc-reactor knows 1; upgrade it"),
        ({"version": 1, "events": []}, "an event of it lacks name, encoding, key or schema"),
        (of(fact_v1=entry(None)), "an event of it lacks name, encoding, key or schema"),
        ({"version": 1, "events": {"a": {"name": "A"}}}, "an event of it lacks name, encoding, key or schema"),
    ],
)
def test_what_is_no_export_is_refused(value, reason):
    with pytest.raises(UsageError) as refused:
        check_export(value, "x")

    assert str(refused.value).startswith("x: ")
    assert reason in str(refused.value)


def test_an_export_is_returned_as_it_is():
    exported = of(fact_v1=entry())

    assert check_export(exported, "x") is exported
