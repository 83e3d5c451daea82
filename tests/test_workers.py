"""What a worker may be declared as, and what is refused at import, with the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import (
    Context,
    DefinitionError,
    Event,
    Message,
    Notification,
    ProtobufEvent,
    Worker,
    notifies,
    subscribes,
)
from cdc_reactor.errors import DecodeError
from cdc_reactor.events import Encoding


class PostUpvoted(Event, topic="post.upvoted.v1", key="post_id"):
    post_id: int


class Unbound(Event):
    post_id: int


@dataclass
class Click:
    x: int


stamped = ProtobufEvent(Timestamp, topic="stamped.v1", key="seconds")


def click(message: Message) -> Click:
    return Click(int(message.data))


def declare(*event: Any, decorator: Any = subscribes, **options: Any) -> Worker[Any]:
    @decorator(*event, **{"subscription": "some-worker", **options})
    def note(event: Any, ctx: Context) -> None: ...

    worker: Worker[Any] = note
    return worker


class TestADeclaration:
    def test_has_defaults(self):
        worker = declare(PostUpvoted)

        told = {name: getattr(worker, name) for name in Worker.__slots__ if name not in ("function", "event_type")}
        assert told == {
            "subscription": "some-worker",
            "name": "note",
            "kind": "typed",
            "max_messages": 20,
            "max_attempts": 5,
            "timeout": None,
            "dead_letter": "",
            "on_poison": "skip",
            "group": "default",
            "dedicated": False,
            "ordered": True,
            "owner": "",
        }
        assert (worker.topic, worker.max_size, worker.max_wait, worker.is_async) == ("post.upvoted.v1", 1, 0.0, False)
        assert worker.place.startswith(__file__)

    @pytest.mark.parametrize(
        ("event", "options", "topic", "encoding", "kind"),
        [
            (PostUpvoted, {}, "post.upvoted.v1", Encoding.JSON, "typed"),
            (PostUpvoted, {"parse": lambda _: PostUpvoted(post_id=1)}, "post.upvoted.v1", Encoding.CUSTOM, "typed"),
            (stamped, {}, "stamped.v1", Encoding.PROTOBUF, "typed"),
            (Timestamp, {"topic": "other.v1"}, "other.v1", Encoding.PROTOBUF, "typed"),
            (Click, {"topic": "click.v1", "parse": click}, "click.v1", Encoding.CUSTOM, "typed"),
            (Message, {"topic": "any.v1"}, "any.v1", Encoding.RAW, "raw"),
            (PostUpvoted, {"decorator": notifies}, "post.upvoted.v1", Encoding.JSON, "notification"),
        ],
    )
    def test_says_what_its_function_is_given(self, event, options, topic, encoding, kind):
        worker = declare(event, **options)

        assert (worker.topic, worker.event_type.encoding, worker.kind) == (topic, encoding, kind)

    def test_can_still_be_called(self):
        @subscribes(PostUpvoted, subscription="calls")
        def double(event: PostUpvoted, ctx: Context) -> None:
            return event.post_id * 2  # type: ignore[return-value]  # what a test may look at

        assert double(PostUpvoted(post_id=4), None) == 8  # type: ignore[arg-type]  # it needs none


@pytest.mark.parametrize(
    ("event", "options", "says"),
    [
        (PostUpvoted, {"subscription": ""}, 'name whose messages it wants: subscription="…"'),
        (PostUpvoted, {"subscription": "a/b"}, "subscription='a/b' is no legal Pub/Sub name: a letter, then 2 to 254"),
        (PostUpvoted, {"max_mesages": 3}, "there is no option 'max_mesages'; did you mean max_messages?"),
        (PostUpvoted, {"subscripton": "x"}, "there is no option 'subscripton'; did you mean subscription?"),
        (PostUpvoted, {"max_messages": 0}, "max_messages=0 must be a whole number of at least 1"),
        (PostUpvoted, {"max_messages": 2**62}, "max_messages=.* must be 100,000 at most"),
        (PostUpvoted, {"max_attempts": True}, "max_attempts=True must be a whole number"),
        (PostUpvoted, {"timeout": 0}, "timeout=0 must be seconds above zero, or None"),
        (PostUpvoted, {"timeout": 1e10}, "timeout=10000000000.0 must be 604800 s, a week, at most"),
        (PostUpvoted, {"on_poison": "stop"}, 'on_poison=\'stop\' must be "skip", "park" or "halt"'),
        (PostUpvoted, {"dead_letter": "a b"}, "dead_letter: topic='a b' is no legal Pub/Sub name"),
        (PostUpvoted, {"group": "Big"}, "group='Big' must be small letters, digits and hyphens"),
        (PostUpvoted, {"group": 3}, "group=3 must be text"),
        (PostUpvoted, {"name": 3}, "name=3 must be text"),
        (PostUpvoted, {"ordered": "no"}, "ordered='no' must be True or False"),
        (PostUpvoted, {"dedicated": True}, "dedicated=True needs a group that a process can name"),
        (PostUpvoted, {"topic": "other.v1"}, "topic='other.v1', but its event type has a topic of its own"),
        (PostUpvoted, {"parse": 3}, "parse=3 must be a function that is given the Message"),
        (Unbound, {}, "Unbound has no topic: class Unbound"),
        (Timestamp, {}, 'Timestamp is bound to no topic; add topic="…"'),
        (Click, {"topic": "click.v1"}, "nobody knows how to read Click; make it an Event, or add parse="),
        (Message, {"topic": "any.v1", "parse": click}, "Message is the untouched message; with parse, name the class"),
        ("post.upvoted.v1", {}, "'post.upvoted.v1' is no event type"),
    ],
)
def test_what_is_wrong_is_refused_with_file_line_and_cure(event, options, says):
    with pytest.raises(DefinitionError, match=rf"test_workers.py:\d+ note.*{says}"):
        declare(event, **options)


def test_a_parser_that_must_be_awaited_is_refused():
    async def parse(message: Message) -> Click:
        return Click(1)

    with pytest.raises(DefinitionError, match="parse must be a plain def"):
        declare(Click, topic="click.v1", parse=parse)


def test_parameters_and_annotations_are_held_to_the_event():
    with pytest.raises(DefinitionError, match=r"a worker takes \(event: PostUpvoted, ctx: Context\)"):

        @subscribes(PostUpvoted, subscription="one")  # type: ignore[arg-type]  # the point
        def lonely(event: PostUpvoted) -> None: ...

    with pytest.raises(DefinitionError, match="but its first parameter is annotated Click"):

        @subscribes(PostUpvoted, subscription="other")  # type: ignore[arg-type]  # the point
        def other(event: Click, ctx: Context) -> None: ...

    with pytest.raises(DefinitionError, match="@subscribes takes what its function is given"):
        subscribes(click)  # type: ignore[call-overload]  # as if without parentheses


@pytest.mark.parametrize("annotation", [Any, Event, PostUpvoted, object, "PostUpvoted", "NotThereAtRunTime"])
def test_annotations_that_take_the_event_pass(annotation):
    def note(event, ctx): ...

    note.__annotations__["event"] = annotation

    assert subscribes(PostUpvoted, subscription="passes")(note).name == "note"


class TestReading:
    def test_a_parsers_failure_is_told_without_its_text(self):
        read = declare(Click, topic="click.v1", parse=click).event_type.read

        assert read(Message(b"7")) == Click(7)
        with pytest.raises(DecodeError, match=r"^Click \(click.v1\): click raised ValueError$"):
            read(Message(b"ada@forum.example"))

    def test_what_a_parser_returns_must_be_what_it_says(self):
        read = declare(Click, topic="click.v1", parse=lambda _: None).event_type.read

        with pytest.raises(DecodeError, match="returned a NoneType"):
            read(Message(b"7"))

    def test_a_notification_is_an_event_like_any_other(self):
        read = declare(Notification).event_type.read

        told = read(Message(b'{"type": "liked", "recipients": ["ada"], "context": {"n": 1}}'))
        assert told == Notification(type="liked", recipients=("ada",), context={"n": 1})

    def test_a_misspelt_option_of_an_event_is_refused(self):
        with pytest.raises(DefinitionError, match="Late: there is no option 'topicc'; did you mean topic"):

            class Late(Event, topicc="late.v1"):
                x: int
