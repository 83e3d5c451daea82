"""Publishing from application code: confirmed, in order per key, with ids, over forks and to the end of the process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from cdc_reactor import Event, ProtobufEvent
from cdc_reactor.errors import MessageRefused, PublishError, UsageError
from cdc_reactor.event_publisher import EventPublisher
from cdc_reactor.events import EVENT_ID, derived_id
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.publications import write
from tests.daemon_stage import Stage

HERE = Path(__file__).parent


class OrderPlaced(Event, topic="order.placed.v1", key="order"):
    order: int
    step: int = 0
    note: str = ""


class Nowhere(Event, topic="nobody.made.v1"):
    pass


class Unbound(Event):
    pass


clock_struck = ProtobufEvent(Timestamp, topic="clock.struck.v1", key="seconds")


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalBroker]:
    with LocalBroker.start() as running:
        yield running


@pytest.fixture
def stage(broker) -> Iterator[Stage]:
    """A plain client that reads both topics; whatever other tests left is taken away."""
    stage = Stage(broker.address)
    for topic in ("order.placed.v1", "clock.struck.v1"):
        if f"projects/p/topics/{topic}" not in broker.broker.topics:
            stage.create_topic(topic)
            stage.subscribe(f"s.{topic}", topic)
        arrived(stage, topic)
    yield stage
    stage.close()


@pytest.fixture
def publisher(broker) -> Iterator[EventPublisher]:
    with EventPublisher(project="p", emulator_host=broker.address, source="shop", timeout=20) as publisher:
        yield publisher


@pytest.fixture
def lone_broker() -> Iterator[LocalBroker]:
    """A broker for one test, which may stop it."""
    with LocalBroker.start() as running:
        stage = Stage(running.address)
        stage.create_topic("order.placed.v1")
        stage.close()
        yield running


@pytest.fixture
def free_address() -> str:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def arrived(stage: Stage, topic: str = "order.placed.v1") -> list[Any]:
    """Everything that is there, in the order of its keys."""
    found: list[Any] = []
    while some := stage.take(f"s.{topic}"):
        found += some
    return found


def script(stage: Stage | None, text: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run an application of its own, configured by the environment."""
    beginning = """
        import asyncio, os, sys
        from cdc_reactor import Event
        from cdc_reactor.errors import ReactorError
        from cdc_reactor.event_publisher import EventPublisher, publish, publish_async

        class OrderPlaced(Event, topic="order.placed.v1"):
            order: int

        def forked(run):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    run()
                    status = 0
                finally:
                    os._exit(status)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUBSUB_", "GOOGLE_", "CDC_"))}
    given = {"PUBSUB_EMULATOR_HOST": stage.address, "PUBSUB_PROJECT_ID": "p"} if stage else {}
    return subprocess.run(
        [sys.executable, "-c", dedent(beginning) + dedent(text)],
        env=kept | given | environ,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestPublish:
    def test_returns_the_message_id_once_the_broker_has_it(self, stage, publisher):
        message_id = publisher.publish(OrderPlaced(order=7, note="ä"))

        [message] = arrived(stage)
        assert (message.message_id, message.ordering_key) == (message_id, "7")
        assert json.loads(message.data) == {"order": 7, "step": 0, "note": "ä"}

    def test_takes_another_key_than_the_events_own(self, stage, publisher):
        publisher.publish(OrderPlaced(order=7), key="customer-1")

        assert [m.ordering_key for m in arrived(stage)] == ["customer-1"]

    def test_takes_protobuf_facts(self, stage, publisher):
        publisher.publish(clock_struck(Timestamp(seconds=5)))

        [message] = arrived(stage, "clock.struck.v1")
        assert (Timestamp.FromString(message.data), message.ordering_key) == (Timestamp(seconds=5), "5")

    def test_async_runs_in_any_event_loop(self, stage, publisher):
        async def both() -> list[str]:
            return list(await asyncio.gather(*[publisher.publish_async(OrderPlaced(order=n)) for n in (1, 2)]))

        ids = asyncio.run(both()) + asyncio.run(both())

        assert sorted(m.message_id for m in arrived(stage)) == sorted(ids)

    def test_async_that_is_cancelled_is_sent_all_the_same(self, stage, publisher):
        async def cancelled() -> None:
            task = asyncio.create_task(publisher.publish_async(OrderPlaced(order=1)))
            await asyncio.wait([task], timeout=0)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(cancelled())
        publisher.flush()

        assert len(arrived(stage)) == 1

    def test_raises_when_the_broker_is_gone(self, lone_broker):
        with EventPublisher(project="p", emulator_host=lone_broker.address, timeout=0.3) as publisher:
            publisher.publish(OrderPlaced(order=1))
            lone_broker.stop()

            with pytest.raises(PublishError, match=r"order\.placed\.v1"):
                publisher.publish(OrderPlaced(order=2))
            publisher.flush()  # it was told already

    def test_names_a_topic_that_is_not_there_its_project_and_the_cure(self, publisher):
        with pytest.raises(UsageError, match=r"knows no topic projects/p/topics/nobody\.made\.v1: create it, or check"):
            publisher.publish(Nowhere())

    def test_does_not_wait_for_itself(self, stage, publisher):
        raised: list[BaseException] = []
        done = threading.Event()

        def publish_again(_: object) -> None:
            try:
                publisher.publish(OrderPlaced(order=2))
            except RuntimeError as error:
                raised.append(error)
            done.set()

        publisher.send(OrderPlaced(order=1)).add_done_callback(publish_again)

        assert done.wait(20)
        assert "cannot be called in a callback of send()" in str(raised)


class TestWhatIsNoEvent:
    def test_is_refused_before_anything_is_opened(self):
        publisher = EventPublisher(project="p", emulator_host="127.0.0.1:1")
        wrong: Any = publisher.publish

        with pytest.raises(TypeError, match="EventPublisher publishes a dict; declare it as a class of Event"):
            wrong({"order": 1})
        with pytest.raises(TypeError, match="a Timestamp; bind its class to a topic with ProtobufEvent"):
            wrong(Timestamp())
        with pytest.raises(TypeError, match=r'Unbound has no topic: class Unbound\(Event, topic="…"\)'):
            wrong(Unbound())
        with pytest.raises(TypeError, match="an ordering key is text, not int"):
            wrong(OrderPlaced(order=1), key=1)
        with pytest.raises(ValueError, match=r"OrderPlaced has 10,000,\d+ bytes and a key of 1; topic order"):
            publisher.send(OrderPlaced(order=1, note="x" * 10_000_000))
        assert "event-publisher" not in [thread.name for thread in threading.enumerate()]
        publisher.close()

    def test_can_also_be_an_id_that_is_too_long(self, stage, publisher):
        with pytest.raises(MessageRefused, match="the attribute 'event_id' has 1,025 bytes and the limit is 1,024"):
            publisher.publish(OrderPlaced(order=1), event_id="x" * 1025)

    def test_that_cannot_be_written_is_a_type_error(self):
        with pytest.raises(TypeError, match="OrderPlaced cannot be written"):
            write(OrderPlaced(order=1, note="\ud800"), who="test")


class TestOrder:
    def test_of_each_key_is_kept_over_a_thousand_sends_from_four_threads(self, stage, publisher):
        def send(order: int) -> None:
            for step in range(250):
                publisher.send(OrderPlaced(order=order, step=step))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(send, range(4)))
        publisher.flush()

        steps: dict[str, list[int]] = defaultdict(list)
        for message in arrived(stage):
            steps[message.ordering_key].append(json.loads(message.data)["step"])
        assert steps == {str(order): list(range(250)) for order in range(4)}


class TestFlush:
    def test_waits_for_all_that_was_sent(self, stage, publisher):
        futures = [publisher.send(OrderPlaced(order=n)) for n in range(50)]

        publisher.flush()

        assert {f.result(0) for f in futures} == {m.message_id for m in arrived(stage)}

    def test_tells_once_what_failed(self, stage, publisher):
        for _ in range(3):
            publisher.send(Nowhere())

        with pytest.raises(PublishError, match=r"3 events are not published; the first: .*nobody\.made\.v1"):
            publisher.flush()
        publisher.flush()

    def test_tells_what_is_not_confirmed_in_time(self, free_address):
        publisher = EventPublisher(project="p", emulator_host=free_address, timeout=20)
        publisher.send(OrderPlaced(order=1))

        with pytest.raises(PublishError, match="1 events are not confirmed yet; they may still arrive"):
            publisher.flush(0)
        with pytest.raises(PublishError, match="1 events are not confirmed yet"):
            publisher.close(0)

    def test_of_nothing_is_nothing(self, free_address):
        with EventPublisher(emulator_host=free_address) as publisher:
            publisher.flush()


class TestClose:
    def test_flushes_and_ends_the_thread(self, stage, broker):
        publisher = EventPublisher(project="p", emulator_host=broker.address)
        future = publisher.send(OrderPlaced(order=1))

        publisher.close()
        publisher.close()

        assert [m.message_id for m in arrived(stage)] == [future.result(0)]
        assert [t for t in threading.enumerate() if t.name == "event-publisher"] == []
        with pytest.raises(RuntimeError, match="the EventPublisher is closed"):
            publisher.publish(OrderPlaced(order=1))

    def test_fails_what_the_broker_did_not_confirm(self, free_address):
        publisher = EventPublisher(project="p", emulator_host=free_address, timeout=20)
        future = publisher.send(OrderPlaced(order=1))

        with pytest.raises(PublishError):
            publisher.close(0)

        assert isinstance(future.exception(20), PublishError)


class TestTheIdOfAnEvent:
    def ids(self, stage: Stage) -> list[str]:
        return [m.attributes[EVENT_ID] for m in arrived(stage)]

    def test_is_derived_from_its_cause(self, stage, broker):
        event, data = OrderPlaced(order=1), b'{"order":1,"step":0,"note":""}'
        for _ in range(2):
            with EventPublisher(project="p", emulator_host=broker.address, source="shop") as publisher:
                publisher.publish(event, cause="order-1/v7")

        assert self.ids(stage) == [derived_id(("shop", "order-1/v7", "order.placed.v1", "1"), data)] * 2

    @pytest.mark.parametrize("other", [{"cause": "order-1/v8"}, {"cause": "order-1/v7", "key": "2"}])
    def test_is_another_with_another_cause_or_key(self, stage, publisher, other):
        publisher.publish(OrderPlaced(order=1), cause="order-1/v7")
        publisher.publish(OrderPlaced(order=1), **other)

        assert len(set(self.ids(stage))) == 2

    def test_is_random_without_a_cause(self, stage, publisher):
        for _ in range(2):
            publisher.publish(OrderPlaced(order=1))

        first, second = self.ids(stage)
        assert (first != second, UUID(first).version, UUID(second).version) == (True, 4, 4)

    def test_is_what_is_given(self, stage, publisher):
        publisher.publish(OrderPlaced(order=1), cause="order-1/v7", event_id="mine")

        assert self.ids(stage) == ["mine"]


class TestTheTrace:
    def test_of_the_current_span_travels_along(self, stage, publisher):
        tracer = TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("request") as span:
            publisher.send(OrderPlaced(order=1))
        publisher.send(OrderPlaced(order=1))
        publisher.flush()

        context = span.get_span_context()
        wanted = f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
        assert [m.attributes.get("traceparent") for m in arrived(stage)] == [wanted, None]

    def test_is_not_missed_where_there_is_no_opentelemetry(self, stage):
        done = script(
            stage,
            """
            class Absent:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] == "opentelemetry":
                        raise ModuleNotFoundError(name)

            sys.meta_path.insert(0, Absent())
            publish(OrderPlaced(order=1))
            print([name for name in sys.modules if name.startswith("opentelemetry.")])
            """,
        )

        assert said(done) == ["[]"]
        assert [list(m.attributes) for m in arrived(stage)] == [[EVENT_ID]]


class TestTheEnvironment:
    def test_says_where_to_publish(self, stage):
        done = script(
            stage,
            """
            print(publish(OrderPlaced(order=1), key="a", cause="c"))
            print(asyncio.run(publish_async(OrderPlaced(order=2), key="a", cause="c")))
            """,
        )

        assert said(done) == [m.message_id for m in arrived(stage)]

    def test_without_a_project_is_told_with_the_cure_each_time(self, stage):
        done = script(
            None,
            """
            for _ in range(2):
                try:
                    publish(OrderPlaced(order=1))
                except ReactorError as error:
                    print(type(error).__name__, error)
            """,
            PUBSUB_EMULATOR_HOST=stage.address,
        )

        assert (
            said(done)
            == ["UsageError no project is given: set PUBSUB_PROJECT_ID or GOOGLE_CLOUD_PROJECT, or use --project"] * 2
        )

    def test_without_a_local_broker_means_the_cloud_and_its_credentials(self, stage, tmp_path):
        done = script(
            stage,
            """
            try:
                publish(OrderPlaced(order=1))
            except ReactorError as error:
                print(type(error).__name__, error)
            """,
            CDC_PUBSUB__EMULATOR_HOST="none",
            GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "missing.json"),
        )

        [line] = said(done)
        assert line.startswith(
            "UsageError no credentials for Google Cloud: run `gcloud auth application-default login`"
        )

    def test_of_ours_goes_before_that_of_others(self, stage):
        done = script(stage, "publish(OrderPlaced(order=1))", PUBSUB_PROJECT_ID="q", CDC_PUBSUB__PROJECT="p")

        assert (said(done), len(arrived(stage))) == ([], 1)


class TestTheEndOfTheProcess:
    def test_waits_for_what_was_sent(self, stage):
        done = script(
            stage,
            """
            publisher = EventPublisher()
            for order in range(100):
                publisher.send(OrderPlaced(order=order))
            """,
        )

        assert (said(done), done.stderr, len(arrived(stage))) == ([], "", 100)

    def test_waits_also_for_a_publisher_that_nobody_remembers(self, stage):
        done = script(stage, "EventPublisher().send(OrderPlaced(order=1))")

        assert (said(done), len(arrived(stage))) == ([], 1)

    def test_tells_in_one_line_what_is_lost(self, free_address):
        done = script(
            None,
            "EventPublisher(timeout=0.2).send(OrderPlaced(order=1))",
            PUBSUB_EMULATOR_HOST=free_address,
            PUBSUB_PROJECT_ID="p",
        )

        assert said(done) == []
        assert done.stderr.count("\n") == 1
        assert "1 events are not published; the first: " in done.stderr


class TestAFork:
    def test_before_the_first_event_is_nothing_special(self, stage):
        done = script(
            stage,
            """
            publisher = EventPublisher()
            print(*[forked(lambda: publisher.publish(OrderPlaced(order=n))) for n in range(2)])
            publisher.publish(OrderPlaced(order=2))
            """,
        )

        assert (said(done), len(arrived(stage))) == (["0 0"], 3)

    def test_after_the_first_event_gives_the_child_a_connection_of_its_own(self, stage):
        done = script(
            stage,
            """
            publish(OrderPlaced(order=0))
            other = EventPublisher()
            futures = [other.send(OrderPlaced(order=1)) for _ in range(100)]
            print(*[forked(lambda: publish(OrderPlaced(order=2))) for n in range(5)], all(f.done() for f in futures))
            publish(OrderPlaced(order=3))
            """,
        )

        assert (said(done), len(arrived(stage))) == (["0 0 0 0 0 True"], 107)

    def test_in_a_callback_leaves_the_parent_as_it_is(self, stage):
        done = script(
            stage,
            """
            publisher = EventPublisher()
            statuses = []
            publisher.send(OrderPlaced(order=0)).add_done_callback(lambda _: statuses.append(forked(lambda: None)))
            publisher.flush()
            publisher.publish(OrderPlaced(order=1))
            print(statuses)
            """,
        )

        assert (said(done), len(arrived(stage))) == (["[0]"], 2)

    def test_while_the_broker_is_away_makes_the_childs_use_an_error_and_no_hang(self, free_address):
        done = script(
            None,
            """
            publisher = EventPublisher(timeout=5)
            future = publisher.send(OrderPlaced(order=0))

            def child():
                try:
                    publisher.publish(OrderPlaced(order=1))
                except ReactorError as error:
                    print(error, flush=True)

            print(forked(child), future.done())
            os._exit(0)
            """,
            PUBSUB_EMULATOR_HOST=free_address,
            PUBSUB_PROJECT_ID="p",
        )

        told, status = said(done)
        assert told.startswith("this process was forked while events were under way, and gRPC does not survive that")
        assert status == "0 False"
