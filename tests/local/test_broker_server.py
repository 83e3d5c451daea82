"""The broker by official clients over real gRPC: the wire, streams, errors, restarts. Its clock is virtual."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.api_core.exceptions import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from google.cloud import pubsub_v1
from google.pubsub_v1 import types
from google.rpc import error_details_pb2, status_pb2

from cdc_reactor.errors import WorldError
from cdc_reactor.local.broker_server import LocalBroker


def test_the_high_level_clients_work_with_the_emulator_variable(running, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
    options = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    publisher, subscriber = pubsub_v1.PublisherClient(publisher_options=options), pubsub_v1.SubscriberClient()
    topic, subscription = publisher.topic_path("p", "orders"), subscriber.subscription_path("p", "orders-sub")
    publisher.create_topic(name=topic)
    subscriber.create_subscription(name=subscription, topic=topic)
    received: list[tuple[bytes, str, str]] = []
    enough = threading.Event()

    def handle(message):
        received.append((message.data, message.ordering_key, message.attributes["n"]))
        message.ack()
        if len(received) == 10:
            enough.set()

    pulling = subscriber.subscribe(subscription, callback=handle)
    for n in range(10):
        publisher.publish(topic, b"%d" % n, ordering_key="k", n=str(n)).result(timeout=20)
    assert enough.wait(20)
    pulling.cancel()
    pulling.result(timeout=20)
    subscriber.close()
    publisher.stop()
    publisher.transport.close()

    assert sorted(received) == [(b"%d" % n, "k", str(n)) for n in range(10)]


def test_a_message_arrives_as_it_was_published_with_an_id_and_a_time(clients, clock):
    topic, subscription = clients.pair()
    sent = types.PubsubMessage(data=b"\x00\xff", attributes={"a": "1", "ü": "✓"}, ordering_key="k")
    sent.message_id = "not mine to choose"
    published = clients.publisher.publish(topic=topic, messages=[sent])

    (received,) = clients.pull(subscription)

    message = received.message
    assert (message.data, dict(message.attributes), message.ordering_key) == (b"\x00\xff", {"a": "1", "ü": "✓"}, "k")
    assert message.message_id == published.message_ids[0]
    assert message.publish_time.timestamp() == clock()


def test_a_subscription_shows_its_defaults(clients, running):
    topic, subscription = clients.pair(dead_letter_policy={"dead_letter_topic": clients.pair("dead")[0]})

    shown = clients.subscriber.get_subscription(subscription=subscription)

    assert shown == types.Subscription(
        name=subscription,
        topic=topic,
        push_config={},
        ack_deadline_seconds=10,
        message_retention_duration={"seconds": 604_800},
        expiration_policy={"ttl": {"seconds": 2_678_400}},
        dead_letter_policy={"dead_letter_topic": "projects/p/topics/dead", "max_delivery_attempts": 5},
        state="ACTIVE",
    )


# ── streams ──


def test_a_stream_delivers_acks_and_extends(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, "a", "b", "c")
    stream = clients.stream(subscription)
    a, b, c = stream.receive(3)

    stream.send(ack_ids=[a.ack_id], modify_deadline_ack_ids=[b.ack_id, c.ack_id], modify_deadline_seconds=[0, 60])
    assert stream.texts(1) == ["b"]
    admin.advance(59)
    assert stream.texts(1) == ["b"]
    admin.advance(1)
    assert stream.texts(1) == ["c"]
    stream.close()

    assert admin.subscription(subscription)["acked"] == 1


def test_a_stream_gets_no_more_than_its_flow_control_allows(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, *"abcde")
    stream = clients.stream(subscription, max_outstanding_messages=2)
    first = stream.receive(2)
    assert admin.subscription(subscription)["outstanding"] == 2

    stream.send(ack_ids=[first[0].ack_id])

    assert stream.texts(1) == ["c"]
    stream.close()


def test_responses_stay_within_their_size_and_tell_the_subscriptions_properties(clients, admin):
    topic, subscription = clients.pair(enable_message_ordering=True)
    admin.configure(max_messages=3, max_bytes=1000)
    clients.publish(topic, *["x" * 400] * 2, *["x" * 300] * 3, *["x" * 400] * 3)

    stream = clients.stream(subscription)
    responses = [stream.response() for _ in range(4)]
    stream.close()

    assert [len(response.received_messages) for response in responses] == [2, 3, 2, 1]
    assert {response.subscription_properties.message_ordering_enabled for response in responses} == {True}


@pytest.mark.parametrize("end", ["delete", "detach"])
def test_a_stream_ends_when_its_subscription_does(clients, end):
    _, subscription = clients.pair(enable_exactly_once_delivery=True)
    stream = clients.stream(subscription)
    stream.response()

    if end == "delete":
        clients.subscriber.delete_subscription(subscription=subscription)
    else:
        clients.publisher.detach_subscription(request={"subscription": subscription})

    assert stream.end()[0] == {"delete": "NOT_FOUND", "detach": "FAILED_PRECONDITION"}[end]


def test_streams_of_200_subscriptions_are_served_by_one_broker(clients, running):
    names = [clients.pair(f"topic-{number}") for number in range(200)]
    # About 100 streams fit in one channel.
    channels = [
        grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(3)
    ]
    streams = []
    for number, (_, subscription) in enumerate(names):
        clients.channel, kept = channels[number % 3], clients.channel
        streams.append(clients.stream(subscription))
        clients.channel = kept
    for number, (topic, _) in enumerate(names):
        clients.publish(topic, str(number))

    assert [stream.texts(1) for stream in streams] == [[str(number)] for number in range(200)]

    for stream in streams:
        stream.close()
    for channel in channels:
        channel.close()


# ── pull ──


def test_a_pull_that_may_wait_waits_for_the_first_message(clients, admin):
    topic, subscription = clients.pair()
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(clients.subscriber.pull, subscription=subscription, max_messages=5)
        deadline = time.monotonic() + 20
        while not admin.subscription(subscription)["consumers"]:
            assert time.monotonic() < deadline
        clients.publish(topic, "a")

        assert [received.message.data for received in pull.result(20).received_messages] == [b"a"]


def test_a_pull_stays_under_the_size_that_clients_receive_by_default(clients):
    topic, subscription = clients.pair()
    for _ in range(6):
        clients.publish(topic, "x" * 900_000)

    assert [len(clients.pull(subscription)) for _ in range(3)] == [3, 3, 0]


# ── exactly once ──


def test_with_exactly_once_a_dead_ack_id_is_told_with_its_reason(clients):
    topic, subscription = clients.pair(enable_exactly_once_delivery=True)
    clients.publish(topic, "a", "b")
    a, b = [received.ack_id for received in clients.pull(subscription)]
    clients.ack(subscription, [a])

    with pytest.raises(InvalidArgument) as refused:
        clients.ack(subscription, [a, b])

    trailing = dict(refused.value.errors[0].trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "EXACTLY_ONCE_ACKID_FAILURE",
        "pubsub.googleapis.com",
        {a: "PERMANENT_FAILURE_INVALID_ACK_ID"},
    )
    assert clients.pull(subscription) == []


def test_with_exactly_once_a_stream_confirms_acks_and_extensions(clients):
    topic, subscription = clients.pair(enable_exactly_once_delivery=True)
    stream = clients.stream(subscription)
    first = stream.response()
    assert first.subscription_properties.exactly_once_delivery_enabled
    clients.publish(topic, "a")
    (a,) = [received.ack_id for received in stream.receive(1)]

    stream.send(modify_deadline_ack_ids=[a], modify_deadline_seconds=[60])
    assert list(stream.response().modify_ack_deadline_confirmation.ack_ids) == [a]
    stream.send(ack_ids=[a])
    assert list(stream.response().acknowledge_confirmation.ack_ids) == [a]
    stream.send(ack_ids=[a])
    assert list(stream.response().acknowledge_confirmation.invalid_ack_ids) == [a]
    stream.close()


def test_without_exactly_once_an_ack_of_a_dead_id_is_well_and_one_of_nonsense_is_not(clients):
    topic, subscription = clients.pair()
    clients.publish(topic, "a")
    (a,) = [received.ack_id for received in clients.pull(subscription)]
    clients.ack(subscription, [a])
    clients.ack(subscription, [a])

    with pytest.raises(InvalidArgument, match="invalid ack ID"):
        clients.ack(subscription, ["nonsense"])


# ── refusals ──


def test_what_is_not_there_or_there_already_is_told(clients):
    topic, subscription = clients.pair()
    for call, error in (
        (lambda: clients.publisher.create_topic(name=topic), AlreadyExists),
        (lambda: clients.subscriber.create_subscription(name=subscription, topic=topic), AlreadyExists),
        (lambda: clients.publish("projects/p/topics/none", "a"), NotFound),
        (lambda: clients.pull("projects/p/subscriptions/none"), NotFound),
        (lambda: clients.publisher.get_topic(topic="orders"), InvalidArgument),
        (lambda: clients.publish(topic), InvalidArgument),
        (lambda: clients.publish(topic, *["x"] * 1001), InvalidArgument),
        (lambda: clients.publish(topic, "x", key="k" * 1025), InvalidArgument),
        (lambda: clients.publish(topic, ""), InvalidArgument),
    ):
        with pytest.raises(error):
            call()


def test_messages_of_one_request_have_one_ordering_key(clients):
    topic, _ = clients.pair()
    messages = [types.PubsubMessage(data=b"x", ordering_key=key) for key in ("a", "b")]

    with pytest.raises(InvalidArgument, match="same ordering key"):
        clients.publisher.publish(topic=topic, messages=messages)


def test_bytes_that_are_no_request_are_refused(clients):
    call = clients.channel.unary_unary("/google.pubsub.v1.Publisher/CreateTopic")

    with pytest.raises(grpc.RpcError) as refused:
        call(b"\xff\xff\xff", timeout=20)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_snapshots_of_another_topic_cannot_be_sought(clients):
    _, subscription = clients.pair()
    _, other = clients.pair("other")
    snapshot = clients.subscriber.create_snapshot(request={"subscription": other, "name": "projects/p/snapshots/snap"})

    with pytest.raises(FailedPrecondition):
        clients.subscriber.seek(request={"subscription": subscription, "snapshot": snapshot.name})


# ── life ──


def test_a_port_that_is_taken_is_told(running):
    port = int(running.address.rpartition(":")[2])

    with pytest.raises(WorldError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
        LocalBroker.start(port=port)


def test_stopping_is_quick_even_with_open_streams_and_may_be_repeated(connect):
    broker = LocalBroker.start()
    clients = connect(broker.address)
    _, subscription = clients.pair(enable_exactly_once_delivery=True)
    streams = [clients.stream(subscription) for _ in range(20)]
    for stream in streams:
        stream.response()
    started = time.monotonic()

    broker.stop()
    broker.stop()

    assert time.monotonic() - started < 1
    assert {stream.end()[0] for stream in streams} == {"UNAVAILABLE"}


def test_a_restart_from_a_folder_loses_nothing_that_was_confirmed(folder, connect):
    with LocalBroker.start(folder=folder) as broker:
        clients = connect(broker.address)
        topic, subscription = clients.pair(enable_message_ordering=True, enable_exactly_once_delivery=True)
        ids = clients.publish(topic, *"abc", key="k")
        first, *_ = clients.pull(subscription)
        clients.ack(subscription, [first.ack_id])
    with LocalBroker.start(folder=folder) as broker:
        clients = connect(broker.address)

        received = clients.pull(subscription)

    assert [(r.message.message_id, r.message.data, r.message.ordering_key) for r in received] == [
        (ids[1], b"b", "k"),
        (ids[2], b"c", "k"),
    ]


def test_publishers_that_wait_together_are_confirmed_in_order(folder, connect):
    with LocalBroker.start(folder=folder) as broker:
        clients = connect(broker.address)
        topic, subscription = clients.pair()
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda n: clients.publish(topic, str(n))[0], range(200)))

        received: list[types.ReceivedMessage] = []
        while len(received) < 200:
            received += clients.pull(subscription)

    assert [r.message.message_id for r in received] == sorted(ids)


def test_an_idle_broker_with_streams_uses_no_cpu(connect):
    with LocalBroker.start() as broker:
        clients = connect(broker.address)
        streams = [clients.stream(clients.pair(f"topic-{n}", enable_exactly_once_delivery=True)[1]) for n in range(20)]
        for stream in streams:
            stream.response()
        before, waited = sum(os.times()[:2]), threading.Event()

        waited.wait(1.0)

        assert sum(os.times()[:2]) - before < 0.2
        for stream in streams:
            stream.close()
