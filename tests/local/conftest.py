"""A broker's machine to play with, and a running broker with official clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import from_grpc_error
from google.pubsub_v1 import PublisherClient, SchemaServiceClient, SubscriberClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from cdc_reactor.local import wire
from cdc_reactor.local.broker import Broker, Subscription, open_consumer
from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from cdc_reactor.local.journal import Journal
from cdc_reactor.local.leases import Consumer, Lease
from cdc_reactor.local.options import SubscriptionOptions, TopicOptions

TOPIC = "projects/p/topics/orders"
NONCE = "n" * 160


class Desk:
    """A machine with one topic and one subscription, and a clock; messages are known by their text."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_000_000.0
        self.journal = Journal()
        self.broker = Broker(nonce=NONCE, journal=self.journal)
        self.topic = self.broker.create_topic(TOPIC, TopicOptions(), b"")
        self.subscription = self.subscribe("orders-sub", **options)
        self.consumer = self.open()

    @property
    def backlog(self) -> Any:
        return self.subscription.backlog

    def subscribe(self, name: str, **options: Any) -> Subscription:
        return self.broker.create_subscription(
            f"projects/p/subscriptions/{name}", TOPIC, SubscriptionOptions(**options), b""
        )

    def open(self, *, deadline: float = 10.0, max_messages: float = inf, max_bytes: float = inf) -> Consumer:
        consumer = Consumer(deadline, max_messages=max_messages, max_bytes=max_bytes)
        open_consumer(self.subscription, consumer)
        return consumer

    def publish(self, *texts: str, key: str = "", topic: Any = None, **attributes: str) -> list[int]:
        drafts = [(wire.field(1, text.encode()) + wire.attributes(attributes), key) for text in texts]
        messages, _ = self.broker.prepare(topic or self.topic, drafts, self.now)
        self.broker.deliver(topic or self.topic, messages)
        return [message.seq for message in messages]

    def take(self, count: float = inf, consumer: Consumer | None = None, **limits: float) -> list[Lease]:
        leases: list[Lease] = self.backlog.take(consumer or self.consumer, self.now, max_messages=count, **limits)
        return leases

    def ack(self, *leases: Lease) -> list[str]:
        invalid: list[str] = self.backlog.acknowledge([lease.ack_id for lease in leases], self.now)
        return invalid

    def nack(self, *leases: Lease) -> list[str]:
        return self.modify(leases, 0)

    def modify(self, leases: Iterable[Lease], seconds: float) -> list[str]:
        invalid: list[str] = self.backlog.modify([lease.ack_id for lease in leases], seconds, self.now)
        return invalid

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)

    def texts(self, leases: Sequence[Lease]) -> list[str]:
        return [types.PubsubMessage.pb().FromString(lease.message.body).data.decode() for lease in leases]

    def taken(self, count: float = inf, consumer: Consumer | None = None, **limits: float) -> list[str]:
        return self.texts(self.take(count, consumer, **limits))

    def unacked(self) -> list[str]:
        return [types.PubsubMessage.pb().FromString(message.body).data.decode() for message in self.backlog.unacked()]


@pytest.fixture
def desk() -> Callable[..., Desk]:
    return Desk


class Clients:
    """Official low-level clients of one broker, and short words for what tests do with them."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self.transport: Any = SubscriberGrpcTransport(channel=self.channel)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self.channel))
        self.subscriber = SubscriberClient(transport=self.transport)
        self.schemas = SchemaServiceClient(transport=SchemaServiceGrpcTransport(channel=self.channel))

    def close(self) -> None:
        self.channel.close()

    def pair(self, name: str = "orders", **subscription: Any) -> tuple[str, str]:
        topic, full_name = f"projects/p/topics/{name}", f"projects/p/subscriptions/{name}-sub"
        self.publisher.create_topic(name=topic)
        self.subscriber.create_subscription(request={"name": full_name, "topic": topic, **subscription})
        return topic, full_name

    def publish(self, topic: str, *texts: str, key: str = "") -> list[str]:
        messages = [types.PubsubMessage(data=text.encode(), ordering_key=key) for text in texts]
        return list(self.publisher.publish(request={"topic": topic, "messages": messages}, retry=None).message_ids)

    def pull(self, subscription: str, count: int = 100) -> list[types.ReceivedMessage]:
        # Not by the client, which warns of return_immediately; without it a pull of nothing would wait.
        request = types.PullRequest(subscription=subscription, max_messages=count, return_immediately=True)
        try:
            return list(self.transport.pull(request, timeout=20).received_messages)
        except grpc.RpcError as error:
            raise from_grpc_error(error) from None

    def texts(self, subscription: str, count: int = 100) -> list[str]:
        return [received.message.data.decode() for received in self.pull(subscription, count)]

    def ack(self, subscription: str, ack_ids: Iterable[str]) -> None:
        self.subscriber.acknowledge(request={"subscription": subscription, "ack_ids": list(ack_ids)}, retry=None)

    def stream(self, subscription: str, **first: Any) -> Stream:
        return Stream(self.channel, subscription, first)


class Stream:
    """A StreamingPull: what it delivers is read by a thread of grpc's; `send` adds requests."""

    def __init__(self, channel: grpc.Channel, subscription: str, first: dict[str, Any]) -> None:
        from queue import SimpleQueue

        self._requests: Any = SimpleQueue()
        self.send(**{"subscription": subscription, "stream_ack_deadline_seconds": 10, **first})
        call = channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=types.StreamingPullRequest.pb().SerializeToString,
            response_deserializer=types.StreamingPullResponse.pb().FromString,
        )
        self.call = call(iter(self._requests.get, None), timeout=30)

    def send(self, **fields: Any) -> None:
        self._requests.put(types.StreamingPullRequest.pb()(**fields))

    def response(self) -> Any:
        return next(self.call)

    def receive(self, count: int) -> list[Any]:
        received: list[Any] = []
        while len(received) < count:
            received += self.response().received_messages
        return received

    def texts(self, count: int) -> list[str]:
        return [received.message.data.decode() for received in self.receive(count)]

    def end(self) -> tuple[str, str]:
        """Read on until the stream ends; return its status."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    def close(self) -> None:
        """Close half of it, as a client does that leaves well."""
        self._requests.put(None)
        assert self.end() == ("OK", "")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def running(clock: VirtualClock) -> Iterator[LocalBroker]:
    with LocalBroker.start(clock=clock) as broker:
        yield broker


@pytest.fixture
def clients(running: LocalBroker) -> Iterator[Clients]:
    made = Clients(running.address)
    yield made
    made.close()


@pytest.fixture
def admin(running: LocalBroker) -> Iterator[BrokerAdmin]:
    with BrokerAdmin(running.address) as client:
        yield client


@pytest.fixture
def connect() -> Iterator[Callable[[str], Clients]]:
    """Connect to a broker that the test started itself."""
    made: list[Clients] = []

    def connect_to(address: str) -> Clients:
        made.append(Clients(address))
        return made[-1]

    yield connect_to
    for clients in made:
        clients.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition of a broker whose clock is real."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"

    return wait


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "broker"
