"""StreamingPull: the first request and those after it, flow control, deadlines, and how a stream ends.

What a request may say stands in the comments of `StreamingPullRequest` in google/pubsub/v1/pubsub.proto.
"""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import PubsubMessage


def test_a_stream_gives_what_waits_and_what_comes(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "before")
    stream = pubsub.stream(subscription)
    assert pubsub.texts(stream.receive(1)) == ["before"]

    pubsub.publish(topic, "after")

    assert pubsub.texts(stream.receive(1)) == ["after"]


def test_a_thousand_messages_come_once_each(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)
    for start in range(0, 1000, 100):
        pubsub.publish(topic, *(str(n) for n in range(start, start + 100)))

    received = stream.receive(1000)

    assert sorted(map(int, pubsub.texts(received))) == list(range(1000))
    assert len(set(pubsub.ack_ids(received))) == 1000
    stream.stays_quiet()


def test_a_large_backlog_comes_in_responses_that_every_client_can_receive(pubsub):
    """gRPC's own limit is 4 MiB for a response; the stock clients to an emulator have no other."""
    topic, subscription = pubsub.pair()
    for _ in range(12):
        pubsub.publish(topic, PubsubMessage(data=b"x" * 900_000))

    stream = pubsub.stream(subscription)

    assert len(stream.receive(12)) == 12
    assert max(type(one).pb(one).ByteSize() for one in stream.responses) < 4 * 1024 * 1024


FIRST_REQUESTS = {
    "without_a_subscription": {"stream_ack_deadline_seconds": 10},
    "malformed_subscription": {"subscription": "no-such-form", "stream_ack_deadline_seconds": 10},
    "without_a_deadline": {"subscription": "{}"},
    "deadline_of_9_s": {"subscription": "{}", "stream_ack_deadline_seconds": 9},
    "deadline_of_601_s": {"subscription": "{}", "stream_ack_deadline_seconds": 601},
}


@pytest.mark.parametrize("fields", FIRST_REQUESTS.values(), ids=FIRST_REQUESTS)
def test_a_first_request_that_is_none_ends_the_stream(pubsub, fields):
    _, subscription = pubsub.pair()
    named = {name: value.format(subscription) if isinstance(value, str) else value for name, value in fields.items()}

    assert pubsub.raw_stream(**named).end() == "INVALID_ARGUMENT"


def test_a_stream_of_a_subscription_that_is_not_there_is_not_found(pubsub):
    assert pubsub.stream(pubsub.name("subscriptions")).end() == "NOT_FOUND"


LATER_REQUESTS = {
    "subscription": {"subscription": "{}"},
    "max_outstanding_messages": {"max_outstanding_messages": 10},
    "max_outstanding_bytes": {"max_outstanding_bytes": 10},
    "deadline_of_9_s": {"stream_ack_deadline_seconds": 9},
    "more_ids_than_deadlines": {"modify_deadline_ack_ids": ["{ack_id}"]},
    "more_deadlines_than_ids": {"modify_deadline_seconds": [10]},
    "negative_deadline": {"modify_deadline_ack_ids": ["{ack_id}"], "modify_deadline_seconds": [-1]},
    "malformed_ack_id": {"ack_ids": ["no ack id"]},
}


@pytest.mark.parametrize("fields", LATER_REQUESTS.values(), ids=LATER_REQUESTS)
def test_a_later_request_that_says_what_it_must_not_ends_the_stream(pubsub, fields):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription)
    (received,) = stream.receive(1)
    real = {"subscription": subscription, "modify_deadline_ack_ids": [received.ack_id]}

    stream.send(**{name: real.get(name, value) for name, value in fields.items()})

    assert stream.end() == "INVALID_ARGUMENT"


def test_empty_requests_are_heartbeats(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)

    for text in ("a", "b", "c"):
        stream.send()
        pubsub.publish(topic, text)
        assert pubsub.texts(stream.receive(1)) == [text]


def test_an_ack_on_the_stream_counts(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription, max_outstanding_messages=1)
    (received,) = stream.receive(1)

    stream.send(ack_ids=[received.ack_id])

    # The next one comes only when the ack was taken.
    pubsub.publish(topic, "b")
    (other,) = stream.receive(1)
    stream.send(modify_deadline_ack_ids=[received.ack_id, other.ack_id], modify_deadline_seconds=[0, 0])
    assert pubsub.texts(stream.receive(1)) == ["b"]
    stream.stays_quiet()


def test_a_nack_on_the_stream_brings_the_message_again_with_a_new_ack_id(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription)
    (first,) = stream.receive(1)

    stream.send(modify_deadline_ack_ids=[first.ack_id], modify_deadline_seconds=[0])

    (again,) = stream.receive(1)
    assert (again.message, again.ack_id != first.ack_id) == (first.message, True)


def test_a_streamed_message_can_be_acked_and_nacked_by_a_call(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")
    stream = pubsub.stream(subscription)
    received = {one.message.data: one for one in stream.receive(2)}

    pubsub.ack(subscription, received[b"a"])
    pubsub.nack(subscription, *received.values())

    assert pubsub.texts(stream.receive(1)) == ["b"]
    stream.stays_quiet()


def test_a_pulled_message_can_be_nacked_on_a_stream(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)
    stream = pubsub.stream(subscription)

    stream.send(modify_deadline_ack_ids=[received.ack_id], modify_deadline_seconds=[0])

    assert pubsub.texts(stream.receive(1)) == ["a"]


def test_no_more_messages_are_outstanding_than_allowed(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, *(str(n) for n in range(5)))

    stream = pubsub.stream(subscription, max_outstanding_messages=2)

    first = stream.receive(2)
    assert len(first) == 2
    stream.stays_quiet()
    pubsub.ack(subscription, first[0])
    second = stream.receive(1)
    assert len(second) == 1
    stream.stays_quiet()
    stream.send(ack_ids=pubsub.ack_ids([first[1], *second]))
    assert len({one.message.data for one in [*first, *second, *stream.receive(2)]}) == 5


def test_a_nack_makes_room_too(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")
    stream = pubsub.stream(subscription, max_outstanding_messages=1)
    first = stream.receive(1)
    assert len(first) == 1

    pubsub.nack(subscription, *first)

    assert len(stream.receive(1)) == 1
    stream.stays_quiet()


@pytest.mark.virtual_clock("a stream's deadline is of ten seconds at least")
def test_an_expired_deadline_makes_room_too(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")
    stream = pubsub.stream(subscription, deadline=10, max_outstanding_messages=1)
    assert len(stream.receive(1)) == 1

    pubsub.pass_time(11)

    assert len(stream.receive(1)) == 1
    stream.stays_quiet()


def test_what_another_stream_holds_takes_no_room(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")
    one = pubsub.stream(subscription, max_outstanding_messages=1)
    first = one.receive(1)

    other = pubsub.stream(subscription, max_outstanding_messages=1)

    assert sorted(pubsub.texts([*first, *other.receive(1)])) == ["a", "b"]


def test_no_more_bytes_are_outstanding_than_allowed(pubsub):
    """The service stops sending when it has sent "max_outstanding_bytes or more": the last one may go over it."""
    topic, subscription = pubsub.pair()
    for _ in range(6):
        pubsub.publish(topic, PubsubMessage(data=b"x" * 10_000))

    stream = pubsub.stream(subscription, max_outstanding_bytes=25_000)

    first = stream.receive(2)
    assert 2 <= len(first) <= 3
    stream.stays_quiet()
    pubsub.ack(subscription, *first)
    assert 2 <= len(stream.receive(2)) <= 3


def test_one_message_that_is_larger_than_the_allowed_bytes_still_comes(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, PubsubMessage(data=b"x" * 100_000))

    stream = pubsub.stream(subscription, max_outstanding_bytes=1000)

    assert len(stream.receive(1)) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_is_no_limit(pubsub, limit):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, *(str(n) for n in range(1000)))

    stream = pubsub.stream(subscription, max_outstanding_messages=limit, max_outstanding_bytes=limit)

    assert len(stream.receive(1000)) == 1000


@pytest.mark.virtual_clock("to the second")
def test_the_streams_deadline_goes_before_the_subscriptions(pubsub):
    topic, subscription = pubsub.pair(ack_deadline_seconds=600)
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription, deadline=20)
    stream.receive(1)

    pubsub.pass_time(19)
    stream.stays_quiet(0.2)
    pubsub.pass_time(2)

    assert pubsub.texts(stream.receive(1)) == ["a"]


@pytest.mark.slow_clock
def test_the_streams_deadline_passes(pubsub):
    topic, subscription = pubsub.pair(ack_deadline_seconds=600)
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription, deadline=10)
    stream.receive(1)

    pubsub.pass_time(11)

    assert pubsub.texts(stream.receive(1)) == ["a"]


@pytest.mark.virtual_clock("it takes half a minute")
def test_a_later_request_changes_the_streams_deadline(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription, deadline=600, max_outstanding_messages=1)
    (first,) = stream.receive(1)

    # One request: what comes after the ack comes after the new deadline too.
    stream.send(stream_ack_deadline_seconds=10, ack_ids=[first.ack_id])
    pubsub.publish(topic, "b")
    assert pubsub.texts(stream.receive(1)) == ["b"]

    pubsub.pass_time(11)
    assert pubsub.texts(stream.receive(1)) == ["b"]


@pytest.mark.slow_clock
def test_a_deadline_set_on_the_stream_passes(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription)
    (first,) = stream.receive(1)

    stream.send(modify_deadline_ack_ids=[first.ack_id], modify_deadline_seconds=[1])
    stream.stays_quiet(0.2)
    pubsub.pass_time(2)

    assert pubsub.texts(stream.receive(1)) == ["a"]


def test_what_a_dead_stream_held_stays_leased(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription)
    (received,) = stream.receive(1)

    stream.close()

    pubsub.gives_nothing(subscription)
    pubsub.nack(subscription, received)
    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


def test_an_ack_of_what_came_on_a_dead_stream_counts(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    stream = pubsub.stream(subscription)
    (received,) = stream.receive(1)
    stream.close()

    pubsub.ack(subscription, received)
    pubsub.nack(subscription, received)

    pubsub.gives_nothing(subscription)


def test_two_streams_share_the_messages(pubsub):
    topic, subscription = pubsub.pair()
    one = pubsub.stream(subscription, max_outstanding_messages=10)
    other = pubsub.stream(subscription, max_outstanding_messages=10)

    pubsub.publish(topic, *(str(n) for n in range(20)))

    received = [*one.receive(10), *other.receive(10)]
    assert sorted(map(int, pubsub.texts(received))) == list(range(20))
    one.stays_quiet()


def test_deleting_the_subscription_ends_its_streams(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")
    stream.receive(1)

    pubsub.subscriber.delete_subscription({"subscription": subscription})

    assert stream.end() == "NOT_FOUND"


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_response_tells_of_the_subscription(pubsub, is_ordered):
    topic, subscription = pubsub.pair(enable_message_ordering=is_ordered)
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")

    stream.receive(1)

    properties = stream.responses[0].subscription_properties
    assert (properties.message_ordering_enabled, properties.exactly_once_delivery_enabled) == (is_ordered, False)


def test_many_streams_live_on_one_channel(pubsub):
    topic, subscription = pubsub.pair()
    streams = [pubsub.stream(subscription, max_outstanding_messages=1) for _ in range(20)]

    pubsub.publish(topic, *(str(n) for n in range(20)))

    received = [one for stream in streams for one in stream.receive(1)]
    assert sorted(map(int, pubsub.texts(received))) == list(range(20))


def test_a_client_that_ends_its_requests_gets_the_end(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")
    stream.receive(1)

    stream.end_requests()

    assert stream.end() in {"OK", "UNAVAILABLE"}
