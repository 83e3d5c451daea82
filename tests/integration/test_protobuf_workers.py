"""Protobuf from end to end: what the official client publishes in another process, and what is no such message."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.pubsub_v1 import types

from cdc_reactor import Context, Event, Message, ProtobufEvent, subscribes
from cdc_reactor.errors import DecodeError
from cdc_reactor.events import event_type
from cdc_reactor.local.broker_server import LocalBroker
from tests import shells
from tests.daemon_stage import NAME, Stage, run, running, until
from tests.integration.candidates import DEFINITION, MatchedCandidate

TOPIC = "candidate.matched.v1"
ADA = MatchedCandidate(candidate_id="ada", score=7, skills=["python", "protobuf"])
GRACE = MatchedCandidate(candidate_id="grace", score=9)

CORRUPT = {
    "a tag that does not end": b"\xff",
    "a message that was cut off": ADA.SerializeToString()[:-1],
    "a length beyond the end": b"\x0a\x7fada",
    "a field of number 0": b"\x00\x01",
    "the end of a group that never began": b"\x0c",
    "a group that never ends": b"\x63",
    "a wire type that does not exist": b"\x0f",
    "text that is no UTF-8": b"\x0a\x02\xc3\x28",
    "JSON": b'{"candidate_id": "ada"}',
}
# Protobuf has no mark of its own: what can be read as fields that nobody knows is a message.
# https://protobuf.dev/programming-guides/proto3/#unknowns
READABLE = {
    "nothing": b"",
    "the two letters hi, which are field 13": b"hi",
    "a field that the class does not know": b"\x52\x03new",
    "a known field in the wire type of another": b"\x08\x07",
}


class CandidateStored(Event, topic="candidate.stored.v1"):
    candidate_id: str
    score: int


candidate_matched = ProtobufEvent(MatchedCandidate, topic=TOPIC, key="candidate_id")
candidate_ranked = ProtobufEvent(MatchedCandidate, topic="candidate.ranked.v1", encoding="protobuf-json")


@pytest.fixture
def stage(broker: LocalBroker) -> Iterator[Stage]:
    made = Stage.set_up(broker)
    for topic, subscription in (
        (TOPIC, "store-match"),
        ("candidate.ranked.v1", "note-rank"),
        ("candidate.stored.v1", "stored"),
    ):
        made.create_topic(topic)
        made.subscribe(subscription, topic)
    yield made
    made.close()


def line(topic: str = TOPIC, **told: Any) -> str:
    if "data" in told:
        told["data"] = base64.b64encode(told["data"]).decode()
    return json.dumps({"topic": topic, **told}) + "\n"


def is_done(stage: Stage, *subscriptions: str) -> bool:
    return all(stage.statistics(name)["backlog"] == 0 for name in subscriptions)


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_these_bytes_are_no_message_of_the_class(data):
    with pytest.raises(DecodeError) as refused:
        event_type(candidate_matched).read(Message(data))

    told = f"MatchedCandidate ({TOPIC}): these {len(data)} bytes are no message of this class"
    assert str(refused.value) == told


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE)
def test_these_bytes_are_a_message_without_any_field_that_is_known(data):
    found = event_type(candidate_matched).read(Message(data))

    assert (found.candidate_id, found.score, list(found.skills)) == ("", 0, [])


def test_a_corrupt_message_of_another_process_is_dead_lettered_with_the_reason_and_the_next_is_handled(stage):
    stored: list[Any] = []

    @subscribes(candidate_matched, subscription="store-match")
    def store_match(match: Any, ctx: Context) -> None:
        stored.append((match, ctx.message.ordering_key, dict(ctx.message.attributes)))

    cut_off = CORRUPT["a message that was cut off"]
    published = (
        line(candidate={"candidate_id": "ada", "score": 7, "skills": ["python", "protobuf"]}, key="k")
        + line(data=cut_off, key="k", attributes={"from": "matcher"})
        + line(candidate={"candidate_id": "grace", "score": 9}, key="k", attributes={"from": "matcher"})
    )

    async def test():
        async with running(stage, store_match) as up:
            ids = shells.publish(stage.address, published)
            assert len(ids) == 3
            await until(lambda: len(stored) == 2 and is_done(stage, "store-match"), show=lambda: stored)
            assert up.metric("dead_letters_total", handler="store_match", table="") == 1

    run(test)

    assert stored == [(ADA, "k", {}), (GRACE, "k", {"from": "matcher"})]
    (letter,) = stage.letters()
    assert (letter.data, letter.ordering_key, letter.attributes["from"]) == (cut_off, "k", "matcher")
    assert {name: letter.attributes[f"cdc_{name}"] for name in ("error_class", "error", "attempts", "handler")} == {
        "error_class": "DecodeError",
        "error": f"MatchedCandidate ({TOPIC}): these {len(cut_off)} bytes are no message of this class",
        "attempts": "1",
        "handler": "store_match",
    }


@pytest.mark.parametrize("who_says", ["the publisher", "the topic's schema"])
def test_what_was_published_as_json_is_read_as_json_and_what_is_none_is_dead_lettered(stage, who_says):
    stored: list[Any] = []
    attributes = {"googclient_schemaencoding": "JSON"} if who_says == "the publisher" else {}
    if who_says == "the topic's schema":
        _delete_and_create_with_schema(stage)

    @subscribes(candidate_matched, subscription="store-match")
    def store_match(match: Any, ctx: Context) -> None:
        stored.append(match)

    texts = ['{"candidateId": "ada", "score": "7", "skills": ["python", "protobuf"], "new": 1}', '{"score": "many"}']

    async def test():
        async with running(stage, store_match):
            lines = [line(data=text.encode(), attributes=attributes, key="k") for text in texts]
            shells.publish(stage.address, "".join(lines))
            await until(lambda: is_done(stage, "store-match"), show=lambda: stored)

    run(test)

    assert stored == [ADA]
    told = f"MatchedCandidate ({TOPIC}): these 17 bytes are no JSON of this message"
    assert [letter.attributes["cdc_error"] for letter in stage.letters()] == [told]


def _delete_and_create_with_schema(stage: Stage) -> None:
    schema = {"type_": "PROTOCOL_BUFFER", "definition": DEFINITION}
    request = types.CreateSchemaRequest(parent="projects/p", schema_id="candidate", schema=schema)
    stage.call("SchemaService", "CreateSchema", types.CreateSchemaRequest.pb(request), types.Schema)
    stage.delete_topic(TOPIC)
    name = NAME("subscriptions", "store-match")
    gone = types.DeleteSubscriptionRequest.pb()(subscription=name)
    stage.call("Subscriber", "DeleteSubscription", gone, types.Topic)
    settings = {"schema": NAME("schemas", "candidate"), "encoding": "JSON"}
    topic = types.Topic(name=NAME("topics", TOPIC), schema_settings=settings)
    stage.call("Publisher", "CreateTopic", types.Topic.pb(topic), types.Topic)
    stage.subscribe("store-match", TOPIC)


def test_what_a_worker_publishes_in_either_encoding_another_reads(stage):
    ranked: list[Any] = []

    @subscribes(candidate_matched, subscription="store-match")
    def rank(match: Any, ctx: Context) -> None:
        match.score += 1
        ctx.publish(candidate_ranked(match), key=match.candidate_id)
        if match.score < 9:
            ctx.publish(candidate_matched(match))

    @subscribes(candidate_ranked, subscription="note-rank")
    async def note_rank(match: Any, ctx: Context) -> None:
        ranked.append((match, ctx.message.ordering_key, ctx.message.data))
        ctx.publish(CandidateStored(candidate_id=match.candidate_id, score=match.score))

    async def test():
        async with running(stage, rank, note_rank):
            shells.publish(stage.address, line(candidate={"candidate_id": "ada", "score": 7}))
            await until(lambda: len(ranked) == 2 and is_done(stage, "store-match", "note-rank"), show=lambda: ranked)

    run(test)

    by_score = sorted(ranked, key=lambda each: each[0].score)
    assert [(match.candidate_id, match.score, key) for match, key, _ in by_score] == [
        ("ada", 8, "ada"),
        ("ada", 9, "ada"),
    ]
    assert [json.loads(data) for _, _, data in by_score] == [
        {"candidateId": "ada", "score": "8"},
        {"candidateId": "ada", "score": "9"},
    ]
    stored = stage.take("stored")
    assert sorted(json.loads(message.data)["score"] for message in stored) == [8, 9]
    assert len({message.attributes["event_id"] for message in stored}) == 2
    assert stage.letters() == []
