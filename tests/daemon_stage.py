"""The stage of tests of the daemon: a broker, a plain client beside it, and daemons in this process.

Waits of a daemon (backoffs, pauses) pass by putting the event loop's clock forward; the broker's clock stands still
unless a test wants otherwise, so that no lease ends by itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

import grpc
from google.pubsub_v1 import types
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from cdc_reactor import Batch
from cdc_reactor.daemon import Daemon, Parts, Started
from cdc_reactor.experiments import ExperimentClient
from cdc_reactor.health import checks
from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.messages import Message
from cdc_reactor.notification_delivery import NotificationDelivery
from cdc_reactor.schemas import SchemaStore, open_schemas
from cdc_reactor.settings import Settings
from cdc_reactor.telemetry import Telemetry
from cdc_reactor.workers import Worker

NAME = "projects/p/{}/{}".format


class TravellingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run(test: Callable[[], Awaitable[object]]) -> None:
    """Run a test on such a loop; whatever a task or the loop complains of fails it."""
    complaints: list[Any] = []
    with asyncio.Runner(loop_factory=TravellingLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(test())  # type: ignore[arg-type]  # every test is a coroutine function
    # gRPC has one queue for all event loops of a thread, and now and then serves one of a test that is over.
    assert [c for c in complaints if "PollerCompletionQueue" not in c["message"]] == []


def travel(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TravellingLoop)
    loop.ahead += seconds


async def until(condition: Callable[[], object], within: float = 20.0, *, show: Callable[[], object] = str) -> None:
    """Wait for a condition, by the real clock; `show` tells what is there instead."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"the condition did not come true in time: {show()}"
        await asyncio.sleep(0.005)


def change(row: int, name: str = "", *, table: str = "users", **row_columns: Any) -> Message:
    """A row as it was created, under the ordering key that Debezium gives it."""
    after = {"id": row, "name": name, **row_columns}
    source = {"connector": "postgresql", "name": "forum", "db": "forum", "schema": "public", "table": table, "lsn": 7}
    data = json.dumps({"before": None, "after": after, "source": source, "op": "c"}).encode()
    return Message(data, {"from": "debezium"}, ordering_key=f'{{"id":{row}}}')


def told(batch: Batch[Any]) -> list[tuple[int, str]]:
    return [(each.key["id"], name) for each, name in zip(batch, names(batch), strict=True)]


def names(batch: Batch[Any]) -> list[str]:
    rows: list[Any] = [each.after for each in batch]
    return [row.name for row in rows]


class Stage:
    """A plain client of one broker in project p, which publishes and looks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.admin = BrokerAdmin(address)
        self._channel = grpc.insecure_channel(address)
        self._buried: list[Any] = []

    @classmethod
    def set_up(cls, broker: LocalBroker) -> Self:
        """Create what a daemon needs with the settings' defaults, and a subscription to the dead letters."""
        stage = cls(broker.address)
        for topic in ("cdc", "cdc-dead-letters"):
            stage.create_topic(topic)
        stage.subscribe("cdc", "cdc")
        stage.subscribe("letters", "cdc-dead-letters")
        return stage

    def call(self, service: str, method: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(
            f"/google.pubsub.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.pb().FromString,
        )
        return call(request, timeout=20)

    def create_topic(self, name: str) -> None:
        self.call("Publisher", "CreateTopic", types.Topic.pb()(name=NAME("topics", name)), types.Topic)

    def delete_topic(self, name: str) -> None:
        self.call("Publisher", "DeleteTopic", types.DeleteTopicRequest.pb()(topic=NAME("topics", name)), types.Topic)

    def subscribe(self, name: str, topic: str, **options: Any) -> None:
        sets = {"ack_deadline_seconds": 60, "enable_message_ordering": True, **options}
        request = types.Subscription.pb()(name=NAME("subscriptions", name), topic=NAME("topics", topic), **sets)
        self.call("Subscriber", "CreateSubscription", request, types.Subscription)

    def publish(self, *messages: Message, topic: str = "cdc") -> list[str]:
        """Publish in order; a request takes one ordering key only."""
        ids: list[str] = []
        for _, run_of_one in groupby(messages, key=lambda message: message.ordering_key):
            written = [
                {"data": m.data, "attributes": dict(m.attributes), "ordering_key": m.ordering_key} for m in run_of_one
            ]
            request = types.PublishRequest.pb()(topic=NAME("topics", topic), messages=written)
            ids += self.call("Publisher", "Publish", request, types.PublishResponse).message_ids
        return ids

    def take(self, subscription: str) -> list[Any]:
        """Take all that is there and acknowledge it."""
        name = NAME("subscriptions", subscription)
        pull = types.PullRequest.pb()(subscription=name, max_messages=1000, return_immediately=True)
        received = self.call("Subscriber", "Pull", pull, types.PullResponse).received_messages
        if received:
            ack = types.AcknowledgeRequest.pb()(subscription=name, ack_ids=[one.ack_id for one in received])
            self.call("Subscriber", "Acknowledge", ack, types.Topic)
        return [one.message for one in received]

    def letters(self) -> list[Any]:
        """Everything that ever came to the dead letters, in order."""
        self._buried += self.take("letters")
        return self._buried

    def names_buried(self) -> list[str]:
        return [json.loads(letter.data)["after"]["name"] for letter in self.letters()]

    def counts(self) -> tuple[int, int]:
        """What is not acknowledged at the broker, and how much of it is leased."""
        found = self.statistics("cdc")
        return found["backlog"], found["outstanding"]

    def statistics(self, subscription: str) -> dict[str, int]:
        return self.admin.subscription(NAME("subscriptions", subscription))

    def is_done(self) -> bool:
        return self.counts()[0] == 0

    def close(self) -> None:
        self.admin.close()
        self._channel.close()


@dataclass
class Running:
    """A daemon that is up."""

    daemon: Daemon
    task: asyncio.Task[int]
    telemetry: Telemetry
    started: list[Started] = field(default_factory=list)

    def metric(self, name: str, **labels: str) -> float | None:
        """A metric as /metrics shows it; None where it shows none."""
        text = self.telemetry.exposition()[0].decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next((s.value for s in samples if s.name == f"cdc_reactor_{name}" and s.labels == labels), None)

    def why_not_ready(self) -> list[str]:
        return [check.why for check in checks(self.daemon._state()) if not check.ok]


def parts_of(
    stage: Stage,
    *handlers: Any,
    engine: Engine | None = None,
    database_url: str | None = None,
    schemas: SchemaStore | None = None,
    experiments: ExperimentClient | None = None,
    delivery: NotificationDelivery | None = None,
    pubsub: dict[str, Any] | None = None,
    **settings: Any,
) -> Parts:
    """What a daemon on the stage is made of, workers among the handlers; settings are defaults but for those given."""
    connects = {"project": "p", "emulator_host": stage.address, "ack_deadline": 600, "max_lease": 3600}
    sets = {"health": {"port": None}, "create_missing": False, **settings, "pubsub": {**connects, **(pubsub or {})}}
    return Parts(
        settings=Settings(**sets),
        handlers=[each for each in handlers if not isinstance(each, Worker)],
        workers=[each for each in handlers if isinstance(each, Worker)],
        engine=engine,
        database_url=database_url,
        schemas=schemas or open_schemas(None),
        experiments=experiments,
        delivery=delivery,
    )


async def running_to_its_end(stage: Stage, *handlers: Any, **options: Any) -> int:
    """Run a daemon that ends by itself; return its status or raise what it raises."""
    async with asyncio.timeout(30):
        return await Daemon(parts_of(stage, *handlers, **options)).run()


@asynccontextmanager
async def running(stage: Stage, *handlers: Any, **options: Any) -> AsyncIterator[Running]:
    """Run a daemon, until the block ends and it is drained."""
    parts = parts_of(stage, *handlers, **options)
    started: list[Started] = []
    daemon = Daemon(parts, on_start=started.append)
    up = Running(daemon, asyncio.create_task(daemon.run()), parts.telemetry, started)
    await until(lambda: started or up.task.done())
    try:
        yield up
    finally:
        daemon.stop()
        await asyncio.wait([up.task], timeout=30)
    assert up.task.result() == 0
