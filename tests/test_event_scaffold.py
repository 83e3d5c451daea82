"""Generated events: their names, their fields, and what is refused. That tools are content: test_worker_scaffold."""

from __future__ import annotations

import json

import pytest

from cdc_reactor.errors import UsageError
from cdc_reactor.event_scaffold import (
    EventField,
    NewEvent,
    check_key,
    check_new_topic,
    event_name,
    guess_fields,
    module_name,
    read_fields,
    write_event_module,
)
from cdc_reactor.events import Event, encode, event_type
from cdc_reactor.messages import Message


def declared(text: str, name: str) -> type[Event]:
    """Run a module's text; return the event that it declares."""
    names: dict[str, type[Event]] = {}
    # Without this module's own `from __future__`.
    exec(compile(text, "guessed", "exec", dont_inherit=True), names)
    return names[name]


@pytest.mark.parametrize(
    ("topic", "name", "module"),
    [
        ("post.upvoted.v1", "PostUpvoted", "post_upvoted"),
        ("post.upvoted.v2", "PostUpvotedV2", "post_upvoted_v2"),
        ("post-upvoted", "PostUpvoted", "post_upvoted"),
        (
            "gondul.v1.candidate-opportunity-match",
            "GondulCandidateOpportunityMatch",
            "gondul_candidate_opportunity_match",
        ),
        ("postUpvoted", "PostUpvoted", "post_upvoted"),
        ("post.score_changed%v3", "PostScoreChangedV3", "post_score_changed_v3"),
        ("v1.2fa", "Event2fa", "event_2fa"),
        ("v1.v1", "EventEvent", "event"),
        ("context", "ContextEvent", "context"),
        ("exception", "ExceptionEvent", "exception"),
        ("class", "Class", "event_class"),
        ("test.run.v1", "EventTestRun", "event_test_run"),
    ],
)
def test_an_event_and_its_module_are_named_for_their_topic(topic, name, module):
    assert (event_name(topic), module_name(topic)) == (name, module)


def test_fields_are_read_as_they_are_typed():
    fields = read_fields(
        ["post_id:int", " note : str? ", "at:datetime | None", "tags:list[str]", "by:dict[str, list[uuid]]"]
    )

    assert [(each.name, each.annotation, each.is_optional) for each in fields] == [
        ("post_id", "int", False),
        ("note", "str", True),
        ("at", "AwareDatetime", True),
        ("tags", "list[str]", False),
        ("by", "dict[str, list[UUID]]", False),
    ]


@pytest.mark.parametrize(
    ("specs", "error"),
    [
        (["post_id"], "--field post_id: a field is NAME:TYPE, as post_id:int or note:str?"),
        ([":int"], "--field :int: a field is NAME:TYPE, as post_id:int or note:str?"),
        (["class:int"], "--field class:int: class is a word of Python; choose another name"),
        (["postId:int"], "--field postId:int: postId is no name of a field: small letters, digits and underscores, a letter first; choose another name"),
        (["copy:int"], "--field copy:int: copy is taken by what every event has, or by a type; choose another name"),
        (["topic:int"], "--field topic:int: topic is taken by what every event has, or by a type; choose another name"),
        (["date:date"], "--field date:date: date is taken by what every event has, or by a type; choose another name"),
        (["model_x:int"], "--field model_x:int: model_x is taken by what every event has, or by a type; choose another name"),
        ([f"{'a' * 61}:int"], f"--field {'a' * 61}:int: {'a' * 61} is too long: 60 characters at most; choose another name"),
        (["a:number"], "--field a:number: there is no type number; there are Any, bool, bytes, date, datetime, Decimal, float, int, str, time, UUID, list[…] and dict[str, …]"),
        (["a:strr"], "--field a:strr: there is no type strr; did you mean str?"),
        (["a:list[strr]"], "--field a:list[strr]: there is no type strr; did you mean str?"),
        (["a:int", "a:str"], "--field a:str: there are two fields a; give each a name of its own"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_refused_in_one_sentence(specs, error):
    with pytest.raises(UsageError) as refused:
        read_fields(specs)

    assert str(refused.value) == error


@pytest.mark.parametrize("topic", ["a", "1st.thing", "google.thing", "a b c", "a/b/c", "ab", "", f"a{'.b' * 40}"])
def test_a_topic_that_cannot_be_is_refused(topic):
    with pytest.raises(UsageError, match="TOPIC"):
        check_new_topic(topic)


def test_a_key_is_a_field_that_is_always_there():
    fields = read_fields(["a:int", "b:int?"])

    check_key("a", fields)
    check_key("", fields)
    with pytest.raises(UsageError, match="--key c: the event has no such field; it has a, b"):
        check_key("c", fields)
    with pytest.raises(UsageError, match="--key b: it may be missing"):
        check_key("b", fields)


MESSAGE = {
    "id": 1, "postId": 2, "post_id": 3, "class": "x", "copy": True, "when": "2026-11-23T10:00:00Z", "day": "2026-11-23",
    "user": "7b0e9d4e-6a5a-4b6c-9f6e-0d3c8a2f1e00", "score": 1.5, "note": None, "tags": ["a"], "mixed": [1, "a"], "empty": [],
    "nested": {"a": 1}, "é t": "not 2026-11-23", "2nd": "2026-99-99", "数": 1, "model_x": [[1]],
}  # fmt: skip


def test_fields_are_guessed_from_a_message_without_its_values():
    fields = guess_fields(MESSAGE)

    assert [(each.name, each.annotation, each.json_name) for each in fields] == [
        ("id", "int", ""), ("post_id", "int", "postId"), ("post_id_2", "int", "post_id"), ("class_", "str", "class"),
        ("copy_", "bool", "copy"), ("when", "AwareDatetime", ""), ("day", "date", ""), ("user", "UUID", ""), ("score", "float", ""),
        ("note", "Any", ""), ("tags", "list[str]", ""), ("mixed", "list[Any]", ""), ("empty", "list[Any]", ""),
        ("nested", "dict[str, Any]", ""), ("e_t", "str", "é t"), ("field_2nd", "str", "2nd"), ("field", "int", "数"),
        ("model_x_", "list[list[int]]", "model_x"),
    ]  # fmt: skip
    assert [each.name for each in fields if each.is_optional] == ["note"]


def test_a_guessed_event_reads_its_message_and_writes_it_again():
    text = write_event_module(NewEvent("guessed.v1", guess_fields(MESSAGE)), first_party=())
    kind = event_type(declared(text, "Guessed"))

    event = kind.read(Message(json.dumps(MESSAGE).encode()))

    assert json.loads(encode(event)) == MESSAGE


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({}, "the message has no fields"),
        ({"a" * 61: 1}, "a name of 61 characters"),
        ({"": 1}, "a field without a name"),
    ],
)
def test_a_message_that_says_nothing_is_refused(message, error):
    with pytest.raises(UsageError, match=error):
        guess_fields(message)


def test_an_event_is_written_whole():
    fields = read_fields(["post_id:int", "voter_id:UUID", "note:str?"])
    fields += (EventField("class_", "int", int, json_name="class"),)

    text = write_event_module(NewEvent("post.upvoted.v2", fields, key="post_id"), first_party={"cdc_reactor"})

    assert text == (
        '"""The event post.upvoted.v2."""\n\n'
        "from uuid import UUID\n\n"
        "from pydantic import Field\n\n"
        "from cdc_reactor import Event\n\n\n"
        'class PostUpvotedV2(Event, topic="post.upvoted.v2", key="post_id"):\n'
        '    """Say here what has happened when this is published."""\n\n'
        "    post_id: int\n"
        "    voter_id: UUID\n"
        "    note: str | None = None\n"
        '    class_: int = Field(alias="class")\n'
    )
