"""Faults on demand, as tests ask for them through the admin service."""

from __future__ import annotations

import grpc
import pytest
from google.api_core.exceptions import InvalidArgument, ServiceUnavailable

from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.faults import TRANSIENT, UNAVAILABLE, UNCONFIRMED


def test_statistics_count_what_happened(clients, admin, clock):
    topic, subscription = clients.pair()
    clients.publish(topic, *"abcd")
    a, b, _, _ = [received.ack_id for received in clients.pull(subscription)]
    clients.ack(subscription, [a])
    clients.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[b], ack_deadline_seconds=0)
    admin.advance(10)

    statistics = admin.statistics()

    assert statistics == {
        "now": clock(),
        "starts": 1,
        "streams": 0,
        "topics": {topic: {"published": 4}},
        "subscriptions": {
            subscription: {
                "backlog": 3,
                "outstanding": 0,
                "consumers": 0,
                "published": 4,
                "delivered": 4,
                "acked": 1,
                "nacked": 1,
                "expired": 2,
                "dead_lettered": 0,
                "duplicated": 0,
            }
        },
    }


def test_reset_ends_all_streams_and_leaves_what_they_hold_leased(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, "a")
    stream = clients.stream(subscription)
    (a,) = stream.receive(1)

    assert admin.reset_streams() == 1

    assert stream.end()[0] == "UNAVAILABLE"
    assert clients.texts(subscription) == []
    clients.ack(subscription, [a.ack_id])
    assert admin.subscription(subscription)["backlog"] == 0


def test_everything_is_refused_until_the_broker_is_told_otherwise(clients, admin):
    topic, subscription = clients.pair()
    stream = clients.stream(subscription)
    clients.publish(topic, "a")
    stream.receive(1)

    admin.refuse()

    assert stream.end()[0] == "UNAVAILABLE"
    with pytest.raises(ServiceUnavailable):
        clients.publish(topic, "b")
    assert clients.stream(subscription).end()[0] == "UNAVAILABLE"
    admin.admit()
    clients.publish(topic, "b")
    assert clients.texts(subscription) == ["b"]


def test_refusing_for_a_time_ends_by_itself(clients, admin, eventually):
    topic, _ = clients.pair()

    admin.refuse(0.2)

    def is_admitted():
        try:
            return clients.publish(topic, "a")
        except ServiceUnavailable:
            return None

    assert is_admitted() is None
    eventually(is_admitted)


def test_a_lost_ack_request_is_answered_well_and_forgotten(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, "a", "b")
    a, b = [received.ack_id for received in clients.pull(subscription)]
    admin.drop_acks(1)

    clients.ack(subscription, [a])
    clients.ack(subscription, [b])
    admin.advance(10)

    assert clients.texts(subscription) == ["a"]


def test_a_refused_ack_request_is_forgotten_too(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, "a")
    admin.drop_acks(1, UNAVAILABLE)

    with pytest.raises(ServiceUnavailable):
        clients.ack(subscription, [received.ack_id for received in clients.pull(subscription)])

    assert admin.subscription(subscription)["backlog"] == 1


def test_an_unconfirmed_ack_request_counts(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, "a")
    admin.drop_acks(1, UNCONFIRMED)

    with pytest.raises(ServiceUnavailable):
        clients.ack(subscription, [received.ack_id for received in clients.pull(subscription)])

    assert admin.subscription(subscription)["backlog"] == 0


def test_a_transient_failure_names_each_ack_id(clients, admin):
    topic, subscription = clients.pair(enable_exactly_once_delivery=True)
    clients.publish(topic, "a")
    ack_ids = [received.ack_id for received in clients.pull(subscription)]
    admin.drop_acks(1, TRANSIENT)

    with pytest.raises(InvalidArgument) as refused:
        clients.ack(subscription, ack_ids)

    details = dict(refused.value.errors[0].trailing_metadata())["grpc-status-details-bin"]
    assert b"TRANSIENT_FAILURE_SERVICE_UNAVAILABLE" in details
    clients.ack(subscription, ack_ids)
    assert admin.subscription(subscription)["backlog"] == 0


def test_an_ack_fault_that_is_none_is_told(admin):
    with pytest.raises(grpc.RpcError, match="no ack fault 'odd'"):
        admin.drop_acks(1, "odd")


def test_duplicates_come_twice(clients, admin):
    topic, subscription = clients.pair()
    clients.publish(topic, *"abc")
    admin.duplicate(2, subscription)

    first, again = clients.pull(subscription), clients.pull(subscription)

    assert [[r.message.data for r in received] for received in (first, again)] == [[b"a", b"b", b"c"], [b"a", b"b"]]
    clients.ack(subscription, [received.ack_id for received in (*first, *again)])
    assert admin.subscription(subscription)["backlog"] == 0


def test_deliveries_can_be_delayed(clients, admin):
    topic, subscription = clients.pair()
    admin.configure(delay=0.2)
    stream = clients.stream(subscription)
    clients.publish(topic, "a")

    assert stream.texts(1) == ["a"]
    stream.close()


def test_streams_can_be_short_lived(clients, admin):
    _, subscription = clients.pair()
    admin.configure(stream_life=0.05)

    assert clients.stream(subscription).end() == ("UNAVAILABLE", "The stream is over.")


def test_a_restart_in_memory_keeps_messages_and_forgets_leases(clients, admin, running):
    topic, subscription = clients.pair()
    clients.publish(topic, "a", "b")
    a, _ = clients.pull(subscription)
    clients.ack(subscription, [a.ack_id])
    stream = clients.stream(subscription)
    address = running.address

    admin.restart(down=0.1)

    assert stream.end()[0] == "UNAVAILABLE"
    assert running.address == address
    assert clients.texts(subscription) == ["b"]


def test_a_restart_from_a_folder_reads_it_again(folder, connect):
    with LocalBroker.start(folder=folder) as broker, BrokerAdmin(broker.address) as admin:
        clients = connect(broker.address)
        topic, subscription = clients.pair()
        clients.publish(topic, "a", "b")
        a, _ = clients.pull(subscription)
        clients.ack(subscription, [a.ack_id])
        before = broker.broker

        admin.restart()

        assert broker.broker is not before
        assert clients.texts(subscription) == ["b"]


def test_without_a_virtual_clock_time_cannot_be_moved():
    with (
        LocalBroker.start() as broker,
        BrokerAdmin(broker.address) as admin,
        pytest.raises(grpc.RpcError, match="no virtual clock"),
    ):
        admin.advance(1)


def test_a_clock_of_somebody_elses_is_looked_at(connect, eventually):
    moment = [1_000_000.0]
    with LocalBroker.start(clock=lambda: moment[0]) as broker:
        clients = connect(broker.address)
        topic, subscription = clients.pair()
        clients.publish(topic, "a")
        stream = clients.stream(subscription)
        stream.receive(1)

        moment[0] += 10

        assert stream.texts(1) == ["a"]
        stream.close()


def test_with_a_real_clock_leases_end_by_themselves(connect):
    with LocalBroker.start() as broker:
        clients = connect(broker.address)
        topic, subscription = clients.pair()
        clients.publish(topic, "a")
        (a,) = clients.pull(subscription)
        stream = clients.stream(subscription)
        clients.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[a.ack_id], ack_deadline_seconds=1)

        assert stream.texts(1) == ["a"]
        stream.close()
