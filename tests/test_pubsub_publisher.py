"""The publisher against the local broker: batches, order, limits, outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from cdc_reactor.errors import MessageRefused, PublishError, ReactorError
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.pubsub import Subscription
from cdc_reactor.pubsub_connection import PUBLISH, Connection, Method
from cdc_reactor.pubsub_publisher import Publisher


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker.start() as running:
        yield running


class Watched(Connection):
    """A connection that notes each Publish request, and how many of one ordering key are under way at once.

    A data that `refuses` names is answered as the service answers what a topic's schema does not allow; one that
    `fails` names, for so many times, as an outage.
    """

    requests: list[list[bytes]]
    most_at_once: int
    refuses: frozenset[bytes]
    fails: dict[bytes, int]

    async def call(self, method: Method, request: Any, *, within: float) -> Any:
        if method is not PUBLISH:
            return await super().call(method, request, within=within)
        data = [m.data for m in request.messages]
        self.requests.append(data)
        if not self.refuses.isdisjoint(data):
            raise AioRpcError(StatusCode.INVALID_ARGUMENT, Metadata(), Metadata(), details="no such field")
        for each in data:
            if self.fails.get(each, 0):
                self.fails[each] -= 1
                raise AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="try again")
        key = request.messages[0].ordering_key
        assert all(m.ordering_key == key for m in request.messages), "a request has one ordering key"
        under_way[key] = under_way.get(key, 0) + 1
        self.most_at_once = max(self.most_at_once, under_way[key])
        try:
            return await super().call(method, request, within=within)
        finally:
            under_way[key] -= 1


under_way: dict[str, int] = {}


@asynccontextmanager
async def publishing(
    broker: LocalBroker, *, delay: float = 0.005, patience: float = 10.0
) -> AsyncIterator[tuple[Watched, Publisher]]:
    under_way.clear()
    connection = await Watched.open("p", emulator_host=broker.address)
    assert isinstance(connection, Watched)
    connection.requests, connection.most_at_once, connection.refuses, connection.fails = [], 0, frozenset(), {}
    await connection.create_topic("orders")
    await connection.create_subscription("orders-s", "orders")
    publisher = Publisher(connection, delay=delay, timeout=patience)
    try:
        yield connection, publisher
    finally:
        await publisher.close()
        await connection.close()


async def arrived(connection: Connection, count: int) -> list[Delivery]:
    subscription = Subscription(connection, "orders-s")
    await subscription.open()
    deliveries: list[Delivery] = []
    try:
        while len(deliveries) < count:
            deliveries += await asyncio.wait_for(subscription.receive(), 10)
        subscription.ack(deliveries)
        assert await subscription.drained(10)
    finally:
        await subscription.close()
    return deliveries


def test_the_ids_come_in_the_order_of_the_messages(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            messages = [Message(b"%d" % i, {"n": str(i)}, ordering_key=f"k{i % 3}") for i in range(100)]

            ids = await publisher.publish("orders", messages)

            found = {d.message.message_id: d.message for d in await arrived(connection, 100)}
            assert [found[i].data for i in ids] == [m.data for m in messages]
            assert [dict(found[i].attributes) for i in ids] == [dict(m.attributes) for m in messages]
            assert [found[i].ordering_key for i in ids] == [m.ordering_key for m in messages]

    asyncio.run(run())


def test_no_messages_are_no_request(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            assert await publisher.publish("orders", []) == []
            assert connection.requests == []

    asyncio.run(run())


def test_messages_of_one_key_arrive_in_order_and_never_two_requests_at_once(broker):
    async def run():
        async with publishing(broker, delay=0) as (connection, publisher):
            calls = [publisher.publish("orders", [Message(b"%d" % i, ordering_key="k")]) for i in range(3000)]

            await asyncio.gather(*calls)

            assert [d.message.data for d in await arrived(connection, 3000)] == [b"%d" % i for i in range(3000)]
            assert connection.most_at_once == 1

    asyncio.run(run())


def test_calls_at_the_same_time_share_a_request(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            await asyncio.gather(*[publisher.publish("orders", [Message(b"x")]) for _ in range(500)])

            assert [len(request) for request in connection.requests] == [500]

    asyncio.run(run())


def test_a_request_has_a_thousand_messages_at_most(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            await publisher.publish("orders", [Message(b"x", ordering_key="k")] * 2500)

            assert [len(request) for request in connection.requests] == [1000, 1000, 500]

    asyncio.run(run())


def test_a_request_has_ten_million_bytes_at_most(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            await publisher.publish("orders", [Message(b"x" * 4_900_000, ordering_key="k")] * 5)

            assert [len(request) for request in connection.requests] == [2, 2, 1]

    asyncio.run(run())


def test_the_largest_message_that_is_not_refused_is_taken_by_the_broker(broker):
    async def run():
        async with publishing(broker) as (_, publisher):
            room = 10_000_000 - len("projects/p/topics/orders") - 2 * 6 - 5

            assert len(await publisher.publish("orders", [Message(b"x" * room)])) == 1
            with pytest.raises(MessageRefused):
                publisher.check("orders", Message(b"x" * (room + 1)))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message(b""), "it has neither data nor attributes, of which one is needed"),
        (Message(b"x" * 10_000_000), "it has 10,000,005 bytes and the limit is 9,999,964"),
        (Message(b"x", ordering_key="ü" * 513), "an ordering key has 1,026 bytes and the limit is 1,024"),
        (Message(b"x", {str(i): "" for i in range(101)}), "it has 101 attributes and the limit is 100"),
        (Message(b"x", {"a": "b" * 1025}), "the attribute 'a' has 1,025 bytes and the limit is 1,024"),
        (Message(b"x", {"a" * 257: ""}), f"an attribute's name ('{'a' * 40}'…) has 257 bytes and the limit is 256"),
        (
            Message(b"x", {"a": "\ud800"}),
            "it cannot be encoded: 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
        ),
    ],
)
def test_a_message_over_a_limit_is_refused_before_anything_is_sent(broker, message, why):
    async def run():
        async with publishing(broker) as (connection, publisher):
            for attempt in (publisher.publish("orders", [Message(b"fine"), message]), check(publisher, message)):
                with pytest.raises(MessageRefused) as refused:
                    await attempt
                assert str(refused.value) == (
                    f"a message for topic projects/p/topics/orders cannot be published: {why}"
                )
            assert connection.requests == []

    async def check(publisher, message):
        publisher.check("orders", message)

    asyncio.run(run())


@pytest.mark.parametrize(
    "message",
    [
        Message(b"", {"a": ""}),
        Message(b"x", ordering_key="ü" * 512),
        Message(b"x", {str(i): "ü" * 512 for i in range(100)}),
        Message(b"x", {"a" * 256: ""}),
    ],
)
def test_a_message_at_a_limit_is_published(broker, message):
    async def run():
        async with publishing(broker) as (connection, publisher):
            (message_id,) = await publisher.publish("orders", [message])

            (delivery,) = await arrived(connection, 1)
            assert delivery.message == Message(
                message.data, message.attributes, message.ordering_key, message_id=message_id
            )

    asyncio.run(run())


def test_a_missing_topic_is_told_with_the_cure(broker):
    async def run():
        async with publishing(broker) as (_, publisher):
            with pytest.raises(PublishError, match=r"knows no topic projects/p/topics/nowhere: create it, or check"):
                await publisher.publish("nowhere", [Message(b"x")])

    asyncio.run(run())


def test_an_outage_shorter_than_the_timeout_is_not_noticed(broker):
    async def run():
        async with publishing(broker, delay=0) as (connection, publisher):
            connection.fails = {b"1": 3}

            await publisher.publish("orders", [Message(b"%d" % i, ordering_key="k") for i in range(1200)])

            assert [d.message.data for d in await arrived(connection, 1200)] == [b"%d" % i for i in range(1200)]

    asyncio.run(run())


def test_after_a_failure_nothing_behind_it_of_the_same_key_is_sent_and_publishing_again_goes_on(broker):
    async def run():
        async with publishing(broker, patience=0) as (connection, publisher):
            large = b"a1" * 10_000
            connection.fails = {large: 1}
            first = [Message(large, ordering_key="a"), Message(b"b1", ordering_key="b")]
            first += [Message(b"x" * 9_990_000, ordering_key="a")]
            calls = [
                publisher.publish("orders", first),
                publisher.publish("orders", [Message(b"a3", ordering_key="a")]),
            ]

            failures = await asyncio.gather(*calls, return_exceptions=True)

            assert [type(f) for f in failures] == [PublishError, PublishError]
            told = [str(f).partition(":")[0].partition(",")[0] for f in failures]
            assert told == ["1 messages are not published", "not sent to topic projects/p/topics/orders"]
            assert [r for r in connection.requests if r != [b"b1"]] == [[large]]
            publisher._timeout = 10
            assert len(await publisher.publish("orders", [m for m in first if m.ordering_key == "a"])) == 2
            in_order = [d.message.data[:2] for d in await arrived(connection, 3) if d.message.ordering_key == "a"]
            assert in_order == [b"a1", b"xx"]

    asyncio.run(run())


def test_a_message_that_the_broker_will_never_take_does_not_take_others_with_it(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            connection.refuses = frozenset({b"37"})
            calls = [publisher.publish("orders", [Message(b"%d" % i)]) for i in range(100)]

            outcomes = await asyncio.gather(*calls, return_exceptions=True)

            refused = [o for o in outcomes if isinstance(o, ReactorError)]
            assert refused == [outcomes[37]]
            assert isinstance(outcomes[37], MessageRefused)
            assert str(outcomes[37]).startswith("topic projects/p/topics/orders does not take a message of 4 bytes")
            assert len({d.message.message_id for d in await arrived(connection, 99)}) == 99

    asyncio.run(run())


def test_what_stands_behind_a_refused_message_of_its_key_is_not_sent(broker):
    async def run():
        async with publishing(broker) as (connection, publisher):
            connection.refuses = frozenset({b"2"})

            with pytest.raises(MessageRefused):
                await publisher.publish("orders", [Message(b"%d" % i, ordering_key="k") for i in range(4)])

            assert [d.message.data for d in await arrived(connection, 2)] == [b"0", b"1"]

    asyncio.run(run())


def test_a_cancelled_call_is_not_sent_and_others_are(broker):
    async def run():
        async with publishing(broker, delay=0.02) as (connection, publisher):
            gone = asyncio.create_task(publisher.publish("orders", [Message(b"gone")]))
            stays = asyncio.create_task(publisher.publish("orders", [Message(b"stays")]))
            await asyncio.sleep(0)
            gone.cancel()

            assert len(await stays) == 1
            assert connection.requests == [[b"stays"]]

    asyncio.run(run())


def test_close_sends_what_waits(broker):
    async def run():
        async with publishing(broker, delay=60) as (connection, publisher):
            waiting = asyncio.create_task(publisher.publish("orders", [Message(b"x")]))
            await asyncio.sleep(0)

            await publisher.close()

            assert len(await waiting) == 1
            with pytest.raises(PublishError, match="after the publisher was closed"):
                await publisher.publish("orders", [Message(b"y")])
            assert connection.requests == [[b"x"]]

    asyncio.run(run())


def test_close_gives_up_what_cannot_be_sent(broker):
    async def run():
        async with publishing(broker, delay=0, patience=60) as (connection, publisher):
            connection.fails = {b"x": 1_000_000}
            messages = [Message(b"x", ordering_key="k")] * 1500
            waiting = asyncio.create_task(publisher.publish("orders", messages))
            await asyncio.sleep(0)

            await publisher.close(within=0.2)

            with pytest.raises(PublishError, match="the publisher was closed before topic projects/p/topics/orders"):
                await waiting

    asyncio.run(run())
