from __future__ import annotations

import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor.captures import find_captures
from cdc_reactor.errors import DecodeError, UsageError
from cdc_reactor.events import Event, ProtobufEvent, Publication
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.outputs import DeadLetters, EventLog


class Greeted(Event, topic="user.greeted.v1"):
    name: str


def event(name: str) -> dict[str, object]:
    return {"topic": "user.greeted.v1", "key": "", "event": {"name": name}}


@pytest.mark.parametrize("torn", ["", '{"topic":"user.gre', '{"whole":1}\n{"torn'])
def test_an_event_log_goes_on_after_the_last_whole_line(tmp_path, torn):
    path = tmp_path / "events.ndjson"
    log = EventLog(path)
    log.write([Publication(Greeted(name="ada"))])
    log.close()
    with path.open("a") as file:
        file.write(torn)

    log = EventLog(path, append=True)
    log.write([Publication(Greeted(name="grace"))])
    log.close()

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line for line in lines if line != {"whole": 1}] == [event("ada"), event("grace")]


def test_an_event_log_that_is_not_resumed_begins_anew(tmp_path):
    path = tmp_path / "events.ndjson"
    path.write_text('{"topic":"old"}\n')

    log = EventLog(path)
    log.close()

    assert path.read_text() == ""


@pytest.mark.parametrize("content", ["notes of somebody, without an end", "{}\n"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)

    with pytest.raises(UsageError, match="none of ours"):
        DeadLetters(path)
    with pytest.raises(UsageError, match="none of ours"):
        EventLog(path)
    assert path.read_text() == content


def test_dead_letters_are_added_and_come_back_byte_for_byte(tmp_path):
    path = tmp_path / "dead.ndjson"
    messages = [Message(b"\x00\xff\n", {"a": "ü"}, "key", "id-1"), Message(b"", {}, "", "")]
    for message in messages:
        letters = DeadLetters(path)
        settlement = Settlement(Delivery(message, 0), Verdict.DEAD_LETTER, "why", DecodeError("why"), "announce", 3)
        letters.write(message, settlement, "a.ndjson:1", "public.users")
        letters.close()

    assert list(find_captures([str(path)])[0].messages()) == messages
    assert json.loads(path.read_text().splitlines()[0])["dead_letter"] == {
        "reason": "why",
        "error_class": "DecodeError",
        "handler": "announce",
        "table": "public.users",
        "place": "a.ndjson:1",
        "attempts": 3,
    }


def test_a_path_that_cannot_be_opened_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--on-error"):
        DeadLetters(tmp_path / "no such folder" / "dead.ndjson")


def test_what_is_no_json_is_written_as_base64_and_attributes_stand_beside_it(tmp_path):
    log = EventLog(tmp_path / "events.ndjson")
    stamped = ProtobufEvent(Timestamp, topic="stamped.v1")
    plain = Publication(Greeted(name="ada"), attributes={"event_id": "e1"})

    log.write([Publication(stamped(Timestamp(seconds=5)), "k"), plain])
    log.close()

    assert [json.loads(line) for line in (tmp_path / "events.ndjson").read_text().splitlines()] == [
        {"topic": "stamped.v1", "key": "k", "data_base64": "CAU="},
        {"topic": "user.greeted.v1", "key": "", "attributes": {"event_id": "e1"}, "event": {"name": "ada"}},
    ]
