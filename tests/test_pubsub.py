"""Subscriptions against the local broker: deliveries, leases, acks, faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types
from grpc import StatusCode

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from cdc_reactor.messages import NO_ATTRIBUTES, Delivery, Message
from cdc_reactor.pubsub import Limits, Subscription
from cdc_reactor.pubsub_connection import CREATE_SUBSCRIPTION, Connection
from cdc_reactor.pubsub_publisher import Publisher
from tests.daemon_stage import run, travel, until

NAME = "projects/p/subscriptions/orders-s"


@dataclass
class Heard:
    """What an observer heard."""

    opened: int = 0
    reconnected: list[str] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    expired: int = 0

    def observer(self) -> Any:
        heard = self

        class Listening:
            def stream_opened(self) -> None:
                heard.opened += 1

            def reconnected(self, reason: str) -> None:
                heard.reconnected.append(reason)

            def acks_confirmed(self, count: int, seconds: float) -> None:
                assert seconds >= 0
                heard.acks.append(count)

            def leases_expired(self, count: int) -> None:
                heard.expired += count

        return Listening()


class Side:
    """A broker with a topic and a subscription, and our side of it."""

    def __init__(self, broker: LocalBroker, connection: Connection) -> None:
        self.broker = broker
        self.admin = BrokerAdmin(broker.address)
        self.connection = connection
        self.publisher = Publisher(connection, delay=0)
        self.heard = Heard()
        self.opened: list[Subscription] = []

    def subscription(self, **limits: Any) -> Subscription:
        subscription = Subscription(
            self.connection, "orders-s", limits=Limits(**limits), observer=self.heard.observer()
        )
        self.opened.append(subscription)
        return subscription

    async def open(self, **limits: Any) -> Subscription:
        subscription = self.subscription(**limits)
        await subscription.open()
        return subscription

    async def publish(self, count: int, *, start: int = 0, key: str = "k", size: int = 0) -> None:
        messages = [Message(b"%d" % i + b"." * size, ordering_key=key) for i in range(start, start + count)]
        await self.publisher.publish("orders", messages)

    def counts(self) -> tuple[int, int]:
        """What is not acknowledged at the broker, and how much of it is leased."""
        found = self.admin.subscription(NAME)
        return found["backlog"], found["outstanding"]

    async def close(self) -> None:
        for subscription in self.opened:
            await subscription.close()
        await self.publisher.close()
        await self.connection.close()
        self.admin.close()


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker.start() as running:
        yield running


@pytest.fixture
def timed_broker() -> Iterator[LocalBroker]:
    """A broker whose clock stands still until it is advanced."""
    with LocalBroker.start(clock=VirtualClock()) as running:
        yield running


@asynccontextmanager
async def using(broker: LocalBroker, *, exactly_once: bool = False) -> AsyncIterator[Side]:
    connection = await Connection.open("p", emulator_host=broker.address, patience=0.5)
    side = Side(broker, connection)
    try:
        await connection.create_topic("orders")
        request = types.Subscription.pb()(
            name=NAME,
            topic=connection.topic_path("orders"),
            enable_message_ordering=True,
            enable_exactly_once_delivery=exactly_once,
            ack_deadline_seconds=60,
        )
        await connection.patient_call(CREATE_SUBSCRIPTION, request)
        yield side
    finally:
        await side.close()


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await asyncio.wait_for(subscription.receive(), 60)
    return deliveries


def data(deliveries: list[Delivery]) -> list[bytes]:
    return [d.message.data for d in deliveries]


def numbers(*of: int) -> list[bytes]:
    return [b"%d" % i for i in of]


# ── what arrives ──


def test_a_message_arrives_as_it_was_published(broker):
    async def test():
        async with using(broker) as side:
            sent = [
                Message(b"\x00\xff" * 1000, {"a": "ü", "b": ""}, ordering_key='{"id":1}'),
                Message(b"", {"tombstone": "yes"}),
                Message(b"x" * 9_000_000),
            ]
            ids = await side.publisher.publish("orders", sent)
            subscription = await side.open()

            deliveries = await take(subscription, 3)

            by_id = {d.message.message_id: d for d in deliveries}
            assert [by_id[i].message for i in ids] == [
                Message(m.data, m.attributes, m.ordering_key, message_id=i) for m, i in zip(sent, ids, strict=True)
            ]
            assert by_id[ids[2]].message.attributes is NO_ATTRIBUTES
            assert [d.attempt for d in deliveries] == [1, 1, 1]
            assert len({d.ack_id for d in deliveries}) == 3

    run(test)


def test_messages_of_one_key_arrive_in_order_over_many_responses(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=7)
            await side.publish(1000)

            assert data(await take(await side.open(), 1000)) == numbers(*range(1000))

    run(test)


def test_responses_that_wait_are_received_together(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=10)
            subscription = await side.open()
            await side.publish(100)
            await until(lambda: subscription.held == 100)

            assert len(await subscription.receive()) == 100

    run(test)


def test_what_the_broker_tells_of_the_subscription_is_known_after_the_opening(broker):
    async def test():
        async with using(broker, exactly_once=True) as side:
            subscription = await side.open()

            assert subscription.info is not None
            assert (subscription.info.ordering, subscription.info.exactly_once) == (True, True)
            assert subscription.is_open
            assert side.heard.opened == 1

    run(test)


# ── acks and nacks ──


def test_an_acknowledged_delivery_is_held_until_the_broker_confirmed_it(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(3, size=9)
            subscription = await side.open()
            deliveries = await take(subscription, 3)
            assert (subscription.held, subscription.held_bytes) == (3, 30)

            subscription.ack(deliveries[:2])
            assert (subscription.held, subscription.held_bytes) == (3, 30)
            assert await subscription.drained(10)

            assert (subscription.held, subscription.held_bytes) == (1, 10)
            assert side.counts() == (1, 1)

    run(test)


def test_acks_share_requests(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(2500)
            subscription = await side.open()

            for delivery in await take(subscription, 2500):
                subscription.ack([delivery])
            assert await subscription.drained(10)

            assert sum(side.heard.acks) == 2500
            assert max(side.heard.acks) == 1000
            assert len(side.heard.acks) <= 10
            assert side.counts() == (0, 0)

    run(test)


def test_a_lone_ack_needs_no_company(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(1)
            subscription = await side.open()

            subscription.ack(await take(subscription, 1))
            await until(lambda: subscription.held == 0, within=2)

            assert side.heard.acks == [1]

    run(test)


def test_what_is_given_back_comes_again_in_order_with_all_behind_it(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(5)
            subscription = await side.open()
            first = await take(subscription, 5)

            subscription.ack(first[:2])
            subscription.nack(first[2:])
            assert await subscription.drained(10)
            again = await take(subscription, 3)

            assert data(again) == numbers(2, 3, 4)
            assert subscription.held == 3

    run(test)


@pytest.mark.parametrize("fault", ["unavailable", "unconfirmed", "transient"])
@pytest.mark.parametrize("exactly_once", [False, True])
def test_an_ack_that_fails_is_sent_again_and_its_lease_kept(broker, fault, exactly_once):
    async def test():
        async with using(broker, exactly_once=exactly_once) as side:
            await side.publish(10)
            subscription = await side.open()
            deliveries = await take(subscription, 10)
            side.admin.drop_acks(2, fault)

            subscription.ack(deliveries)
            assert await subscription.drained(10)

            assert side.counts() == (0, 0)
            assert subscription.held == 0
            if not (exactly_once and fault == "unconfirmed"):
                assert (subscription.lost(), side.heard.acks) == ([], [10])

    run(test)


def test_a_nack_survives_an_outage(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(3)
            subscription = await side.open()
            deliveries = await take(subscription, 3)
            side.admin.refuse()

            subscription.nack(deliveries)
            assert not await subscription.drained(0.2)
            assert subscription.held == 3
            side.admin.admit()

            assert data(await take(subscription, 3)) == numbers(0, 1, 2)
            assert await subscription.drained(10)

    run(test)


@pytest.mark.parametrize("exactly_once", [False, True])
def test_what_the_broker_sends_again_while_it_is_held_goes_on_under_its_new_ack_id(timed_broker, exactly_once):
    async def test():
        async with using(timed_broker, exactly_once=exactly_once) as side:
            await side.publish(2)
            subscription = await side.open()
            deliveries = await take(subscription, 2)
            ack_ids = [d.ack_id for d in deliveries]
            side.admin.advance(61)
            await until(lambda: all(d.ack_id not in ack_ids for d in deliveries))

            subscription.ack(deliveries)
            assert await subscription.drained(10)

            assert (side.counts(), side.heard.expired, subscription.held) == ((0, 0), 0, 0)
            await side.publish(1, start=2)
            assert data(await take(subscription, 1)) == numbers(2)

    run(test)


def test_what_was_acknowledged_without_a_lease_and_comes_again_is_acknowledged_and_not_received(timed_broker):
    async def test():
        async with using(timed_broker) as side:
            await side.publish(2)
            subscription = await side.open(max_lease=20)
            deliveries = await take(subscription, 2)
            travel(21)
            await until(lambda: side.heard.expired)
            subscription.ack(deliveries)
            assert await subscription.drained(10)
            assert side.counts() == (2, 2)

            side.admin.advance(61)

            await until(lambda: side.counts() == (0, 0))
            await side.publish(1, start=2)
            assert data(await take(subscription, 1)) == numbers(2)

    run(test)


def test_an_acknowledgement_that_is_refused_is_made_good_when_the_message_comes_again(timed_broker):
    async def test():
        async with using(timed_broker, exactly_once=True) as side:
            await side.publish(3)
            subscription = await side.open(max_messages=1)
            deliveries = await take(subscription, 1)
            side.admin.advance(61)

            subscription.ack(deliveries)

            assert data(await take(subscription, 1)) == numbers(1)
            assert side.counts()[0] == 2

    run(test)


def test_what_was_received_counts_against_the_limits_also_when_its_lease_was_given_up(timed_broker):
    async def test():
        async with using(timed_broker) as side:
            await side.publish(4, size=100)
            subscription = await side.open(max_messages=2, max_lease=20)
            deliveries = await take(subscription, 2)

            travel(21)
            await until(lambda: side.heard.expired)

            assert (subscription.held, subscription.is_full()) == (0, True)
            subscription.ack(deliveries)
            assert not subscription.is_full()
            side.admin.advance(61)
            assert data(await take(subscription, 2)) == [m + b"." * 100 for m in numbers(2, 3)]

    run(test)


def test_what_was_given_back_is_received_again(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(2)
            subscription = await side.open()
            deliveries = await take(subscription, 2)

            subscription.nack(reversed(deliveries))

            again = await take(subscription, 2)
            assert data(again) == numbers(0, 1)
            assert {d.ack_id for d in again}.isdisjoint(d.ack_id for d in deliveries)

    run(test)


# ── leases ──


def test_a_lease_is_extended_for_as_long_as_it_is_held(timed_broker):
    async def test():
        async with using(timed_broker) as side:
            await side.publish(1500)
            subscription = await side.open(max_messages=0)
            deliveries = await take(subscription, 1500)
            subscription.ack(deliveries[:100])
            assert await subscription.drained(10)
            for _ in range(5):
                travel(31)
                # Extended means that nothing is due for some time.
                await until(lambda: subscription._leases.next_due() > asyncio.get_running_loop().time() + 20)
                side.admin.advance(31)

            assert side.counts() == (1400, 1400)
            assert side.admin.subscription(NAME)["expired"] == 0
            assert subscription.lost() == []

    run(test)


def test_a_lease_is_given_up_when_it_is_too_old_and_taken_up_again_when_the_message_comes_again(timed_broker):
    async def test():
        async with using(timed_broker) as side:
            await side.publish(2)
            subscription = await side.open(max_lease=20)
            deliveries = await take(subscription, 2)

            travel(21)
            await until(lambda: side.heard.expired)
            assert subscription.lost() == deliveries
            assert subscription.held == 0
            side.admin.advance(61)

            await until(lambda: subscription.held == 2)
            subscription.ack(deliveries)
            assert await subscription.drained(10)
            assert (side.heard.acks, subscription.held, side.counts()) == ([2], 0, (0, 0))

    run(test)


def test_a_lease_that_runs_out_while_the_broker_is_away_is_given_up(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(2)
            subscription = await side.open()
            deliveries = await take(subscription, 2)
            side.admin.refuse()
            subscription.ack(deliveries[:1])

            travel(61)
            await until(lambda: side.heard.expired)

            assert subscription.lost() == deliveries
            assert await subscription.drained(10)
            assert (side.heard.expired, side.heard.acks, subscription.held) == (2, [], 0)
            side.admin.admit()

    run(test)


# ── flow control ──


def test_no_more_messages_are_held_than_the_limit_says(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=3)
            await side.publish(50)
            subscription = await side.open(max_messages=10)
            seen: list[Delivery] = []
            while len(seen) < 50:
                deliveries = await take(subscription, 1)
                assert subscription.held <= 10
                subscription.ack(deliveries)
                seen += deliveries

            assert data(seen) == numbers(*range(50))

    run(test)


def test_no_more_bytes_are_held_than_the_limit_says_but_for_one_message(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=1)
            await side.publish(10, size=999)
            subscription = await side.open(max_bytes=3000)
            seen: list[Delivery] = []
            while len(seen) < 10:
                deliveries = await take(subscription, 1)
                assert subscription.held_bytes <= 4000
                subscription.ack(deliveries)
                seen += deliveries

            assert len(seen) == 10

    run(test)


def test_a_broker_without_flow_control_is_not_read_further_than_the_limit(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=5)
            subscription = side.subscription(max_messages=0)
            await subscription.open()
            subscription.limits = Limits(max_messages=10)
            await side.publish(100)
            await until(lambda: subscription.held == 10)
            await until(lambda: side.counts() == (100, 100))
            seen = await take(subscription, 10)
            assert subscription.held == 10

            while len(seen) < 100:
                subscription.ack(seen[-subscription.held :])
                seen += await take(subscription, 1)
                assert subscription.held <= 10

            assert data(seen) == numbers(*range(100))

    run(test)


# ── streams that end ──


def test_after_a_reset_the_stream_is_opened_again_and_what_is_held_can_be_acknowledged(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(10)
            subscription = await side.open()
            held = await take(subscription, 10)

            for _ in range(3):
                streams = side.heard.opened
                side.admin.reset_streams()
                await until(lambda before=streams: side.heard.opened > before)  # type: ignore[misc]  # it has a default
            subscription.ack(held)
            await side.publish(5, start=10)

            assert data(await take(subscription, 5)) == numbers(10, 11, 12, 13, 14)
            assert await subscription.drained(10)
            assert [r.partition(":")[0] for r in side.heard.reconnected] == ["UNAVAILABLE"] * 3
            assert side.counts()[0] == 5

    run(test)


def test_a_broker_that_was_away_is_back_within_five_seconds(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            await asyncio.to_thread(side.admin.restart, 1.5)
            back = time.monotonic()

            await side.publish(3)

            assert data(await take(subscription, 3)) == numbers(0, 1, 2)
            assert time.monotonic() - back < 5
            assert subscription.is_open

    run(test)


def test_a_stream_that_is_down_does_not_count_as_open(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            side.admin.refuse()
            await until(lambda: not subscription.is_open)
            side.admin.admit()
            await until(lambda: subscription.is_open)

    run(test)


def test_a_stream_on_which_nothing_comes_is_opened_anew(broker):
    async def test():
        async with using(broker) as side:
            await side.open(quiet=0.05, heartbeat=100)

            await until(lambda: side.heard.opened >= 3)

            assert set(side.heard.reconnected) == {"nothing came for 0.05 s"}

    run(test)


def test_a_stream_that_waits_for_room_is_not_taken_for_dead(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(1)
            subscription = await side.open(max_messages=1, quiet=0.05)
            deliveries = await take(subscription, 1)
            stream = subscription._stream
            assert stream is not None
            before = side.heard.opened

            travel(10)
            assert stream._stuck(asyncio.get_running_loop().time()) == ""
            subscription.ack(deliveries)
            await until(lambda: side.heard.opened > before)

    run(test)


def test_a_subscription_that_is_deleted_ends_the_receiving(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            receiving = asyncio.create_task(subscription.receive())

            broker_side = types.DeleteSubscriptionRequest.pb()(subscription=NAME)
            delete = side.connection._unary.unary_unary(
                "/google.pubsub.v1.Subscriber/DeleteSubscription",
                request_serializer=type(broker_side).SerializeToString,
            )
            await delete(broker_side)

            with pytest.raises(UsageError, match=f"knows no subscription {NAME}: create it, or check the name"):
                await asyncio.wait_for(receiving, 10)
            with pytest.raises(UsageError):
                await subscription.receive()
            assert not subscription.is_open

    run(test)


def test_a_connection_that_is_closed_ends_the_receiving(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            receiving = asyncio.create_task(subscription.receive())

            await side.connection.close()

            with pytest.raises(WorldError, match=f"the stream of {NAME} failed"):
                await asyncio.wait_for(receiving, 10)

    run(test)


# ── the opening ──


def test_a_missing_subscription_is_told_at_the_opening(broker):
    async def test():
        async with using(broker) as side:
            with pytest.raises(UsageError, match="knows no subscription projects/p/subscriptions/nowhere: create it"):
                await Subscription(side.connection, "nowhere").open()

    run(test)


def test_a_broker_that_does_not_answer_is_told_at_the_opening():
    async def test():
        connection = await Connection.open("p", emulator_host="127.0.0.1:1", patience=0.2)
        with pytest.raises(WorldError, match=r"Pub/Sub at 127\.0\.0\.1:1 does not answer about subscription"):
            await Subscription(connection, "orders-s").open()
        await connection.close()

    run(test)


# ── brokers that ours is not ──


class Script:
    """A Pub/Sub that says what a test wants: the part of the service that a subscription calls."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.answered_pings: float = float("inf")
        self.refusals: dict[str, StatusCode] = {}
        self.streams = 0
        self.acks: list[list[str]] = []

    async def serve(self) -> tuple[Any, str]:
        server = grpc.aio.server()
        parse: dict[str, Any] = {
            "GetSubscription": types.GetSubscriptionRequest,
            "Acknowledge": types.AcknowledgeRequest,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(getattr(self, name), request.pb().FromString, bytes)
            for name, request in parse.items()
        }
        handlers["StreamingPull"] = grpc.stream_stream_rpc_method_handler(
            self.StreamingPull,
            types.StreamingPullRequest.pb().FromString,
            types.StreamingPullResponse.pb().SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"

    async def GetSubscription(self, request: Any, context: Any) -> bytes:  # noqa: N802 - the service's name
        await self.refuse("GetSubscription", context)
        return b""

    async def Acknowledge(self, request: Any, context: Any) -> bytes:  # noqa: N802 - the service's name
        self.acks.append(list(request.ack_ids))
        await self.refuse("Acknowledge", context)
        return b""

    async def StreamingPull(self, requests: Any, context: Any) -> None:  # noqa: N802 - the service's name
        await self.refuse("StreamingPull", context)
        self.streams += 1
        first = types.StreamingPullResponse.pb()()
        first.received_messages.add(ack_id=f"a{self.streams}", message={"data": b"x", "message_id": f"{self.streams}"})
        async for request in requests:
            self.requests.append(request)
            if request.subscription:
                await context.write(first)
            elif self.answered_pings:
                self.answered_pings -= 1
                await context.write(types.StreamingPullResponse.pb()())

    async def refuse(self, method: str, context: Any) -> None:
        if method in self.refusals:
            await context.abort(self.refusals[method], "so it is written")


@asynccontextmanager
async def scripted(script: Script, **limits: Any) -> AsyncIterator[tuple[Subscription, Heard]]:
    server, address = await script.serve()
    connection = await Connection.open("p", emulator_host=address, patience=0.5)
    heard = Heard()
    subscription = Subscription(connection, "orders-s", limits=Limits(**limits), observer=heard.observer())
    try:
        yield subscription, heard
    finally:
        await subscription.close()
        await connection.close()
        await server.stop(None)


def test_the_first_request_says_what_we_want_and_the_others_nothing():
    async def test():
        script = Script()
        async with scripted(script, max_messages=7, max_bytes=9, ack_deadline=30, heartbeat=0.05) as (subscription, _):
            await subscription.open()
            await until(lambda: len(script.requests) >= 3)

            first, *others = script.requests
            assert first.client_id
            first.client_id = ""
            assert first == types.StreamingPullRequest.pb()(
                subscription=NAME,
                stream_ack_deadline_seconds=30,
                max_outstanding_messages=7,
                max_outstanding_bytes=9,
                protocol_version=1,
            )
            assert all(other == types.StreamingPullRequest.pb()() for other in others)

    run(test)


def test_a_stream_whose_broker_stops_answering_heartbeats_is_opened_anew():
    async def test():
        script = Script()
        script.answered_pings = 2
        async with scripted(script, heartbeat=0.1) as (subscription, heard):
            await subscription.open()

            await until(lambda: script.streams == 2)

            assert heard.reconnected == ["the broker left a heartbeat without an answer"]

    run(test)


def test_the_local_broker_answers_heartbeats(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open(heartbeat=1.0)
            started = subscription.last_response

            await until(lambda: subscription.last_response - started > 1.5)

            assert side.heard.reconnected == []

    run(test)


def test_a_quiet_stream_whose_broker_answers_heartbeats_is_left_alone():
    async def test():
        script = Script()
        async with scripted(script, quiet=1.5, heartbeat=1.0) as (subscription, heard):
            await subscription.open()
            started = subscription.last_response

            await until(lambda: subscription.last_response - started > 3.0)

            assert (script.streams, heard.reconnected) == (1, [])

    run(test)


def test_who_may_consume_and_not_look_receives():
    async def test():
        script = Script()
        script.refusals["GetSubscription"] = StatusCode.PERMISSION_DENIED
        async with scripted(script) as (subscription, _):
            await subscription.open()

            assert data(await take(subscription, 1)) == [b"x"]
            assert subscription.info is None

    run(test)


@pytest.mark.parametrize("may_look", [True, False])
def test_who_may_not_consume_is_told_the_permission_at_the_opening(may_look):
    async def test():
        script = Script()
        script.refusals["StreamingPull"] = StatusCode.PERMISSION_DENIED
        if not may_look:
            script.refusals["GetSubscription"] = StatusCode.PERMISSION_DENIED
        async with scripted(script) as (subscription, _):
            with pytest.raises(UsageError, match=r"give our account the permission pubsub\.subscriptions\.consume"):
                await subscription.open()

    run(test)


@pytest.mark.parametrize("status", ["ABORTED", "CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"])
def test_an_ack_is_sent_again_after_a_status_that_may_pass(status):
    async def test():
        script = Script()
        async with scripted(script) as (subscription, heard):
            await subscription.open()
            deliveries = await take(subscription, 1)
            script.refusals["Acknowledge"] = StatusCode[status]

            subscription.ack(deliveries)
            await until(lambda: len(script.acks) >= 2)
            assert (subscription.held, heard.acks) == (1, [])
            script.refusals.clear()
            assert await subscription.drained(10)

            assert (subscription.held, heard.acks, subscription.lost()) == (0, [1], [])

    run(test)


def test_an_ack_that_the_broker_will_never_take_is_given_up():
    async def test():
        script = Script()
        async with scripted(script) as (subscription, heard):
            await subscription.open()
            deliveries = await take(subscription, 1)
            script.refusals["Acknowledge"] = StatusCode.INVALID_ARGUMENT

            subscription.ack(deliveries)
            assert await subscription.drained(10)

            assert (script.acks, heard.acks, heard.expired) == ([["a1"]], [], 1)
            assert (subscription.held, subscription.lost()) == (0, deliveries)

    run(test)


# ── the end ──


def test_stopping_the_intake_gives_back_what_nobody_received_and_keeps_what_somebody_did(broker):
    async def test():
        async with using(broker) as side:
            side.admin.configure(max_messages=10)
            await side.publish(500)
            subscription = await side.open()
            received = await take(subscription, 1)
            await until(lambda: subscription.held >= 30)

            await subscription.stop_intake()
            assert await subscription.receive() == []
            assert await subscription.drained(10)

            assert subscription.held == len(received)
            assert side.counts() == (500, len(received))
            subscription.nack(received[::-1])
            assert await subscription.drained(10)
            assert side.counts() == (500, 0)
            assert data(await take(await side.open(), 500)) == numbers(*range(500))

    run(test)


def test_a_receive_that_waits_when_the_intake_stops_returns_nothing(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            receiving = asyncio.create_task(subscription.receive())
            await asyncio.sleep(0)

            await subscription.stop_intake()

            assert await asyncio.wait_for(receiving, 1) == []

    run(test)


def test_the_intake_stops_at_once_while_the_broker_is_away(broker):
    async def test():
        async with using(broker) as side:
            subscription = await side.open()
            side.admin.refuse()
            await until(lambda: not subscription.is_open)
            start = time.monotonic()

            await subscription.stop_intake()
            await subscription.close()

            assert time.monotonic() - start < 1.0
            side.admin.admit()

    run(test)


def test_a_subscription_that_was_never_opened_can_be_closed(broker):
    async def test():
        async with using(broker) as side:
            subscription = side.subscription()
            await subscription.stop_intake()
            assert await subscription.drained(1)
            await subscription.close()

    run(test)


def test_closing_drops_what_is_under_way(broker):
    async def test():
        async with using(broker) as side:
            await side.publish(20)
            subscription = await side.open()
            deliveries = await take(subscription, 20)
            side.admin.refuse()
            subscription.ack(deliveries[:10])
            subscription.nack(deliveries[10:])
            assert not await subscription.drained(0.1)

            await asyncio.wait_for(subscription.close(), 5)

            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
            side.admin.admit()

    run(test)
