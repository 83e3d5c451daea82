"""One message through its worker: what is committed, sent and told, in which order, and what happens when that fails."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert, select, update
from sqlalchemy.pool import StaticPool

from cdc_reactor import Context, Event, Reject, Retry, Row, handles
from cdc_reactor.changes import CHANGE_OF, Batch, RowReader
from cdc_reactor.columns import Placeholder
from cdc_reactor.database import open_engine
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope
from cdc_reactor.errors import HandlerTimeout, WorldError
from cdc_reactor.event_routing import EventRouter
from cdc_reactor.events import EVENT_ID, Publication, encode
from cdc_reactor.execution import Executor
from cdc_reactor.experiments import Allocation, ExperimentsInMemory
from cdc_reactor.failures import WORLD_PAUSE
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.notifications import Notification
from cdc_reactor.reactor import Held, Outcome, Reactor, Route, Work
from cdc_reactor.workers import Worker, notifies, subscribes

ACK, NACK, DEAD_LETTER = Verdict.ACK, Verdict.NACK, Verdict.DEAD_LETTER

metadata = MetaData()
applied = Table("applied", metadata, Column("id", Integer))


class Upvoted(Event, topic="post.upvoted.v1"):
    post_id: int


class Counted(Event, topic="counted.v1"):
    post_id: int


class User(Row, table="public.users"):
    id: int


class Poison(Exception):
    pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def executor(engine) -> Iterator[Executor]:
    executor = Executor(engine)
    yield executor
    executor.close()


@pytest.fixture
def executor_with(engine) -> Iterator[Callable[..., Executor]]:
    made: list[Executor] = []

    def make(**options: Any) -> Executor:
        made.append(Executor(engine, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def work(worker: Worker[Any], data: bytes | Event = b'{"post_id":7}', *, attempt: int = 1, **fields: Any) -> Work:
    message = Message(encode(data) if isinstance(data, Event) else data, message_id="m1", **fields)
    reactor = Reactor(EventRouter(worker))
    reactor.receive_all([Delivery(message, 0)], 0.0)
    (work,) = reactor.ready(0.0)
    work.attempt = attempt
    return work


def ids_in(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(select(applied.c.id)))


def told(outcome: Outcome) -> list[str]:
    return [type(failure.error).__name__ for failure in outcome.failures.values()]


def count(event: Upvoted, ctx: Context) -> None:
    ctx.session.execute(insert(applied).values(id=event.post_id))
    ctx.publish(Counted(post_id=event.post_id))


KINDS = ["def", "def with timeout", "async def", "async def with timeout"]


def worker_of(kind: str, function: Callable[[Any, Context], Any], *, notifying: bool = False) -> Worker[Any]:
    """Make a worker of either kind that does what the function does."""

    async def later(event: Upvoted, ctx: Context) -> Any:
        await asyncio.sleep(0)
        return function(event, ctx)

    def now(event: Upvoted, ctx: Context) -> Any:
        return function(event, ctx)

    declare: Any = notifies if notifying else subscribes
    worker: Worker[Any] = declare(
        Upvoted, subscription="upvotes", name="count", timeout=30 if "timeout" in kind else None
    )(later if "async" in kind else now)
    return worker


def failing(function: Callable[[Any, Context], Any], error: BaseException) -> Callable[[Any, Context], Any]:
    def fail(event: Any, ctx: Context) -> Any:
        function(event, ctx)
        raise error

    return fail


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_what_a_run_wrote_is_committed_and_its_events_go_with_the_outcome(self, engine, executor, kind):
        outcome = executor.run(work(worker_of(kind, count)))

        assert outcome == Outcome((ACK,), {}, [Publication(Counted(post_id=7))])
        assert ids_in(engine) == [7]

    def test_the_context_knows_its_message_worker_time_and_attempt(self, executor_with, kind):
        noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
        seen: list[Any] = []

        def look(event: Upvoted, ctx: Context) -> None:
            bound = ctx.log.extra if isinstance(ctx.log, logging.LoggerAdapter) else None
            seen.append((event, ctx.message.message_id, ctx.handler, ctx.now, ctx.attempt, bound))

        executor_with(clock=lambda: noon).run(work(worker_of(kind, look), attempt=3))

        bound = {"handler": "count", "topic": "post.upvoted.v1"}
        assert seen == [(Upvoted(post_id=7), "m1", "count", noon, 3, bound)]

    def test_what_cannot_be_read_is_a_dead_letter_at_once_and_tells_no_values(self, engine, executor, kind):
        outcome = executor.run(work(worker_of(kind, count), b'{"post_id":"ada@forum.example"}'))

        assert (outcome.verdicts, told(outcome), ids_in(engine)) == ((DEAD_LETTER,), ["DecodeError"], [])
        assert outcome.failures[0].told.startswith("Upvoted (post.upvoted.v1): post_id: ")
        assert "ada" not in outcome.failures[0].told

    @pytest.mark.parametrize(
        ("error", "verdict", "delay"),
        [
            (Poison("why"), NACK, None),
            (SystemExit(3), NACK, None),
            (asyncio.CancelledError(), NACK, None),
            (TimeoutError(), NACK, None),
            (Retry("busy", delay=5), NACK, 5),
            (Retry("busy", changes=["something"]), NACK, None),
            (Reject("never"), DEAD_LETTER, None),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
    )
    def test_failures_mean_what_they_mean_for_changes(self, engine, kind, error, verdict, delay):
        executor = Executor(engine)
        outcome = executor.run(work(worker_of(kind, failing(count, error))))

        assert (outcome.verdicts, outcome.events, outcome.pause) == ((verdict,), (), None)
        assert (outcome.failures[0].error, outcome.failures[0].delay) == (error, delay)
        assert ids_in(engine) == []
        assert executor.run(work(worker_of(kind, count))).verdicts == (ACK,)
        executor.close()

    def test_what_is_told_of_a_failure_names_the_line_and_no_values(self, executor, kind):
        nobody: dict[str, int] = {}
        outcome = executor.run(work(worker_of(kind, lambda _event, _ctx: nobody["ada@forum.example"])))

        assert re.fullmatch(r"KeyError at test_worker_execution\.py:\d+", outcome.failures[0].told)

    def test_when_the_world_fails_the_message_is_given_back_uncounted(self, engine, executor, kind):
        outcome = executor.run(work(worker_of(kind, failing(count, WorldError("the CRM is down")))))

        assert outcome == Outcome((NACK,), pause=WORLD_PAUSE, pause_reason="the CRM is down")
        assert ids_in(engine) == []

    def test_without_a_database_asking_for_one_says_what_to_do(self, kind):
        executor = Executor(None)

        outcome = executor.run(work(worker_of(kind, count)))
        executor.close()

        assert (outcome.verdicts, outcome.failures, outcome.pause) == ((NACK,), {}, WORLD_PAUSE)
        assert "add --database-url URL" in outcome.pause_reason

    def test_a_commit_that_fails_is_the_workers_failure(self, engine, executor, kind, monkeypatch):
        def refuse(self: object) -> None:
            raise Poison("deferred constraint")

        monkeypatch.setattr("cdc_reactor.transactions.Session.commit", refuse)

        outcome = executor.run(work(worker_of(kind, count)))

        assert (outcome.verdicts, told(outcome), outcome.events) == ((NACK,), ["Poison"], ())
        assert ids_in(engine) == []

    def test_ctrl_c_goes_through_after_a_rollback(self, engine, executor, kind):
        with pytest.raises(KeyboardInterrupt):
            executor.run(work(worker_of(kind, failing(count, KeyboardInterrupt()))))

        assert ids_in(engine) == []
        assert executor.run(work(worker_of(kind, count))).verdicts == (ACK,)

    def test_a_dry_run_runs_everything_and_leaves_nothing(self, engine, executor_with, kind):
        experiments, sent = ExperimentsInMemory({"badge": "b"}), Sink()

        def notify(event: Upvoted, ctx: Context) -> Notification:
            count(event, ctx)
            ctx.experiments.allocate("badge", user_id="u", default="a")
            return told_of(1)

        executor = executor_with(commit=False, experiments=experiments, delivery=sent)
        outcome = executor.run(work(worker_of(kind, notify, notifying=True)))

        assert outcome == Outcome((ACK,), {}, [Publication(Counted(post_id=7))])
        assert (ids_in(engine), experiments.flushed, sent.sent) == ([], [], [])

    def test_a_return_value_that_nobody_wants_is_told_once(self, executor, kind, caplog):
        worker = worker_of(kind, lambda _event, _ctx: 5)

        outcomes = [executor.run(work(worker)) for _ in range(2)]

        assert outcomes == [Outcome.acked(1, [])] * 2
        assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
            "count returned a int, which is dropped"
        ]

    def test_an_awaitable_that_nobody_awaits_is_a_mistake(self, executor, kind):
        async def forgotten() -> None: ...

        outcome = executor.run(work(worker_of(kind, lambda _event, _ctx: forgotten())))

        assert str(outcome.failures[0].error).startswith("count returned an awaitable that nobody awaits")

    def test_the_same_message_publishes_the_same_event_ids_whenever_it_is_handled(self, executor, kind):
        def ids(**fields: Any) -> list[str]:
            outcome = executor.run(work(worker_of(kind, count), **fields))
            return [p.attributes[EVENT_ID] for p in outcome.events if isinstance(p, Publication)]

        assert ids() == ids(attempt=2)
        assert (
            ids(attributes={EVENT_ID: "0f3a91c2d47b5e68", "traceparent": "t"})
            == ids(attributes={EVENT_ID: "0f3a91c2d47b5e68"})
            != ids()
        )


# ── notifications ───────────────────────────────────────────────────────────────────────────────────────────────────


def told_of(n: int) -> Notification:
    return Notification(type="upvoted", recipients=("ada",), context={"n": n})


class Sink:
    """A delivery that sends after the commit, and notes what it saw committed by then."""

    def __init__(self, engine: Engine | None = None, *errors: Exception) -> None:
        self.sent: list[tuple[int, Sequence[int]]] = []
        self._engine = engine
        self._errors = list(errors)

    def deliver(self, notifications: Sequence[Notification], ctx: Context) -> Callable[[], None]:
        def send() -> None:
            if self._errors:
                raise self._errors.pop(0)
            committed = ids_in(self._engine) if self._engine is not None else []
            self.sent.extend((n.context["n"], committed) for n in notifications)

        return send


class Publishing:
    """A delivery that publishes, inside the transaction."""

    def deliver(self, notifications: Sequence[Notification], ctx: Context) -> None:
        for notification in notifications:
            ctx.session.execute(insert(applied).values(id=notification.context["n"]))
            ctx.publish(notification, topic="elsewhere.v1")


@pytest.mark.parametrize("kind", KINDS)
class TestNotifications:
    @pytest.mark.parametrize(
        ("returned", "expected"),
        [(None, []), ([], []), (told_of(1), [1]), ([told_of(1), told_of(2)], [1, 2]), ((told_of(3),), [3])],
        ids=["none", "empty", "one", "list", "tuple"],
    )
    def test_without_a_delivery_what_is_returned_is_published(self, executor, kind, returned, expected):
        outcome = executor.run(work(worker_of(kind, lambda _event, _ctx: returned, notifying=True)))

        assert outcome == Outcome.acked(1, [Publication(told_of(n)) for n in expected])

    @pytest.mark.parametrize(
        ("returned", "called"),
        [
            ("ada", "str"),
            (Upvoted(post_id=1), "Upvoted"),
            ([told_of(1), None], "list with a NoneType in it"),
            (5, "int"),
        ],
    )
    def test_anything_else_is_a_mistake_of_the_worker(self, executor, kind, returned, called):
        outcome = executor.run(work(worker_of(kind, lambda _event, _ctx: returned, notifying=True)))

        assert (outcome.verdicts, told(outcome), outcome.events) == ((NACK,), ["TypeError"], ())
        assert str(outcome.failures[0].error).startswith(f"count returned a {called}; @notifies wants a Notification")

    def test_a_delivery_works_inside_the_transaction(self, engine, executor_with, kind):
        executor = executor_with(delivery=Publishing())
        worker = worker_of(kind, lambda _event, _ctx: [told_of(1), told_of(2)], notifying=True)

        outcome = executor.run(work(worker))

        assert outcome == Outcome.acked(1, [Publication(told_of(n), topic="elsewhere.v1") for n in (1, 2)])
        assert ids_in(engine) == [1, 2]

    def test_a_sink_is_called_after_the_commit(self, engine, executor_with, kind):
        sink = Sink(engine)

        def notify(event: Upvoted, ctx: Context) -> Notification:
            count(event, ctx)
            return told_of(1)

        outcome = executor_with(delivery=sink).run(work(worker_of(kind, notify, notifying=True)))

        assert outcome == Outcome.acked(1, [Publication(Counted(post_id=7))])
        assert sink.sent == [(1, [7])]

    @pytest.mark.parametrize(
        ("error", "expected"),
        [(Poison("no"), ((NACK,), ["Poison"], None)), (WorldError("no"), ((NACK,), [], WORLD_PAUSE))],
    )
    def test_a_sink_that_fails_after_the_commit_fails_the_run_and_it_runs_again(
        self, engine, executor_with, kind, error, expected
    ):
        sink = Sink(engine, error)

        def notify(event: Upvoted, ctx: Context) -> Notification:
            count(event, ctx)
            return told_of(1)

        executor, worker = executor_with(delivery=sink), worker_of(kind, notify, notifying=True)
        first, sent, second = executor.run(work(worker)), list(sink.sent), executor.run(work(worker))

        assert (first.verdicts, told(first), first.pause) == expected
        assert (first.events, sent) == ((), [])
        assert second.verdicts == (ACK,)
        # Committed twice, as every run is that fails after its commit; sent once.
        assert sink.sent == [(1, [7, 7])]

    def test_a_failed_run_sends_nothing(self, engine, executor_with, kind):
        sink = Sink(engine)

        outcome = executor_with(delivery=sink).run(work(worker_of(kind, failing(count, Poison()), notifying=True)))

        assert (outcome.verdicts, sink.sent, ids_in(engine)) == ((NACK,), [], [])


# ── experiments ─────────────────────────────────────────────────────────────────────────────────────────────────────


def try_out(event: Upvoted, ctx: Context) -> None:
    count(event, ctx)
    assert ctx.experiments.allocate("badge", user_id="ada", default="plain") == "gold"


@pytest.mark.parametrize("kind", KINDS)
class TestExperiments:
    def test_what_was_allocated_is_flushed(self, engine, executor_with, kind):
        client = ExperimentsInMemory({"badge": "gold"})

        outcome = executor_with(experiments=client).run(work(worker_of(kind, try_out)))

        assert (outcome.verdicts, ids_in(engine)) == ((ACK,), [7])
        assert client.flushed == [Allocation("badge", "gold", "ada", "gold")]

    def test_a_flush_that_fails_fails_the_run_before_its_commit(self, engine, executor_with, kind):
        client = ExperimentsInMemory({"badge": "gold"})
        client.fail_next_flush = Poison("no")
        executor, worker = executor_with(experiments=client), worker_of(kind, try_out)

        first, left, second = executor.run(work(worker)), ids_in(engine), executor.run(work(worker))

        assert (first.verdicts, told(first), first.events, left) == ((NACK,), ["Poison"], (), [])
        assert (second.verdicts, ids_in(engine), len(client.flushed)) == ((ACK,), [7], 1)

    def test_a_run_that_allocates_nothing_flushes_nothing(self, executor_with, kind):
        client = ExperimentsInMemory()
        client.fail_next_flush = Poison("no")

        assert executor_with(experiments=client).run(work(worker_of(kind, count))).verdicts == (ACK,)

    def test_without_a_client_it_waits_and_says_what_to_configure(self, executor, kind):
        outcome = executor.run(work(worker_of(kind, try_out)))

        assert (outcome.verdicts, outcome.failures, outcome.pause) == ((NACK,), {}, WORLD_PAUSE)
        assert outcome.pause_reason.startswith("count uses ctx.experiments, and no client is configured")


def test_table_handlers_have_experiments_too(engine, executor_with):
    client = ExperimentsInMemory({"badge": "gold"})
    body = b'{"before":null,"after":{"id":1},"source":{"name":"f","schema":"public","table":"users","lsn":1},"op":"c"}'
    envelope = Decoder().decode(Message(body))
    assert isinstance(envelope, Envelope)
    change = CHANGE_OF[envelope.op](envelope, RowReader(User, Placeholder()))

    @handles(User)
    def handler(batch: Batch[User], ctx: Context) -> None:
        ctx.session.execute(insert(applied).values(id=1))
        ctx.experiments.allocate("badge", user_id="ada", default="plain")

    held = Held(Delivery(Message(body), 0), change, Route("users", (handler,)), 0)
    executor = executor_with(experiments=client)
    client.fail_next_flush = Poison("no")
    first, left = executor.run(Work(handler, [held], None)), ids_in(engine)
    second = executor.run(Work(handler, [held], None))

    assert (first.verdicts, left) == ([NACK], [])
    assert (second.verdicts, ids_in(engine)) == ([ACK], [1])
    assert client.flushed == [Allocation("badge", "gold", "ada", "gold")]


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class TestReading:
    def test_a_raw_worker_gets_the_untouched_message(self, executor):
        seen = []

        @subscribes(Message, subscription="raw", topic="raw.v1")
        def look(message: Message, ctx: Context) -> None:
            seen.append((message, message is ctx.message))

        outcome = executor.run(work(look, b"\xff"))

        assert outcome.verdicts == (ACK,)
        assert seen == [(Message(b"\xff", message_id="m1"), True)]

    def test_a_protobuf_class_is_read_by_itself(self, executor):
        seen = []

        @subscribes(Timestamp, subscription="times", topic="times.v1")
        def look(time: Timestamp, ctx: Context) -> None:
            seen.append(time.seconds)

        good, bad = (
            executor.run(work(look, Timestamp(seconds=5).SerializeToString())),
            executor.run(work(look, b"\xff")),
        )

        assert (good.verdicts, bad.verdicts, told(bad), seen) == ((ACK,), (DEAD_LETTER,), ["DecodeError"], [5])

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_parser_runs_in_the_workers_thread_and_never_on_the_event_loop(self, executor, is_async):
        threads: dict[str, str] = {}

        def parse(message: Message) -> int:
            threads["parse"] = threading.current_thread().name
            return int(message.data)

        def look(number: int, ctx: Context) -> None:
            threads["run"] = threading.current_thread().name

        async def look_later(number: int, ctx: Context) -> None:
            look(number, ctx)

        declare = subscribes(int, subscription="numbers", topic="numbers.v1", parse=parse)
        worker = declare(look_later) if is_async else declare(look)
        outcomes = [executor.run(work(worker, data)).verdicts for data in (b"5", b"five")]

        here = threading.current_thread().name
        assert outcomes == [(ACK,), (DEAD_LETTER,)]
        assert threads == (
            {"parse": "async-handlers-beside-0", "run": "async-handlers"} if is_async else {"parse": here, "run": here}
        )


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class TestTime:
    def test_a_def_worker_that_takes_too_long_is_given_up_and_commits_nothing(self, tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path}/a.db")
        metadata.create_all(engine)
        executor = Executor(engine)
        go_on, ended = threading.Event(), threading.Event()

        @subscribes(Upvoted, subscription="upvotes", timeout=0.05)
        def slow(event: Upvoted, ctx: Context) -> None:
            go_on.wait(30)
            count(event, ctx)
            ended.set()

        outcome = executor.run(work(slow))
        left = [thread for thread in threading.enumerate() if thread.name == "handler"]
        go_on.set()
        for thread in left:
            thread.join(30)
        executor.close()

        assert (outcome.verdicts, told(outcome)) == ((NACK,), ["HandlerTimeout"])
        assert str(outcome.failures[0].error).startswith("slow took longer than its timeout of 0.05 s (")
        assert ended.is_set()
        assert ids_in(engine) == []
        engine.dispose()

    def test_an_async_worker_that_takes_too_long_is_cancelled_and_commits_nothing(self, engine, executor):
        cancelled = threading.Event()

        @subscribes(Upvoted, subscription="upvotes", timeout=0.05)
        async def slow(event: Upvoted, ctx: Context) -> None:
            count(event, ctx)
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        outcome = executor.run(work(slow))

        assert (outcome.verdicts, told(outcome), outcome.events) == ((NACK,), ["HandlerTimeout"], ())
        assert cancelled.is_set()
        assert ids_in(engine) == []
        assert issubclass(HandlerTimeout, Exception)


# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Outcomes:
    """What `start` gave back, by any thread."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        with self._came:
            self._outcomes.append(outcome)
            self._came.notify_all()

    def wait(self, number: int) -> list[Outcome]:
        with self._came:
            assert self._came.wait_for(lambda: len(self._outcomes) >= number, 60), len(self._outcomes)
            return list(self._outcomes)


def close_while(executor: Executor, go_on: threading.Event) -> None:
    """Close while something is going on in a thread, which goes on once its task is being cancelled."""
    closing = threading.Thread(target=executor.close)
    closing.start()
    assert executor._async is not None
    deadline = time.monotonic() + 60
    while not executor._async.is_closing:
        assert time.monotonic() < deadline
    go_on.set()
    closing.join(60)


class TestTasks:
    def test_many_hundreds_wait_at_once_on_few_threads(self, executor_with):
        client = ExperimentsInMemory({"badge": "gold"})
        executor = executor_with(experiments=client)
        outcomes, everyone, at_work = Outcomes(), threading.Event(), 0
        gates: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        before = threading.active_count()

        @subscribes(Upvoted, subscription="upvotes")
        async def wait(event: Upvoted, ctx: Context) -> None:
            nonlocal at_work
            if not gates:
                gates.append((asyncio.get_running_loop(), asyncio.Event()))
            at_work += 1
            if at_work == 500:
                everyone.set()
            await gates[0][1].wait()
            ctx.publish(Counted(post_id=event.post_id))
            ctx.experiments.allocate("badge", user_id=str(event.post_id), default="plain")

        for n in range(500):
            executor.start(work(wait, Upvoted(post_id=n)), outcomes.add)
        assert everyone.wait(60)
        threads = threading.active_count() - before
        loop, gate = gates[0]
        loop.call_soon_threadsafe(gate.set)

        events = [event for outcome in outcomes.wait(500) for event in outcome.events]
        published = {event.event for event in events if isinstance(event, Publication)}
        assert published == {Counted(post_id=n) for n in range(500)}
        assert {allocation.user_id for allocation in client.flushed} == {str(n) for n in range(500)}
        assert threads <= 5
        assert threading.active_count() - before <= 5

    def test_each_run_has_a_session_of_its_own(self, tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=20)
        metadata.create_all(engine)
        executor, outcomes = Executor(engine), Outcomes()
        sessions = set()

        @subscribes(Upvoted, subscription="upvotes")
        async def look(event: Upvoted, ctx: Context) -> None:
            sessions.add(ctx.session)
            assert ctx.session.execute(select(applied)).all() == []
            await asyncio.sleep(0)
            assert ctx.session.execute(select(applied)).all() == []

        for _ in range(20):
            executor.start(work(look), outcomes.add)

        assert [outcome.verdicts for outcome in outcomes.wait(20)] == [(ACK,)] * 20
        assert len(sessions) == 20
        executor.close()
        engine.dispose()

    def test_a_session_may_go_from_thread_to_thread_one_after_another(self, engine, executor):
        @subscribes(Upvoted, subscription="upvotes")
        async def write(event: Upvoted, ctx: Context) -> None:
            await asyncio.to_thread(count, event, ctx)

        assert executor.run(work(write)).verdicts == (ACK,)
        assert ids_in(engine) == [7]

    def test_what_waits_at_the_end_is_cancelled_and_given_back(self, engine):
        executor, outcomes, waiting = Executor(engine), Outcomes(), threading.Event()

        @subscribes(Upvoted, subscription="upvotes")
        async def forever(event: Upvoted, ctx: Context) -> None:
            count(event, ctx)
            waiting.set()
            await asyncio.Event().wait()

        executor.start(work(forever), outcomes.add)
        assert waiting.wait(60)
        executor.close()

        assert outcomes.wait(1) == [Outcome((NACK,), pause_reason="cancelled at the end")]
        assert ids_in(engine) == []

    def test_what_is_being_read_at_the_end_is_given_back_and_not_run(self, engine):
        executor, outcomes, reading, go_on = Executor(engine), Outcomes(), threading.Event(), threading.Event()
        ran = []

        def parse(message: Message) -> int:
            reading.set()
            assert go_on.wait(60)
            return 5

        @subscribes(int, subscription="numbers", topic="numbers.v1", parse=parse)
        async def note(number: int, ctx: Context) -> None:
            ran.append(number)

        executor.start(work(note), outcomes.add)
        assert reading.wait(60)
        close_while(executor, go_on)

        assert outcomes.wait(1) == [Outcome((NACK,), pause_reason="cancelled at the end")]
        assert ran == []

    def test_what_is_being_committed_at_the_end_stays_committed_and_says_so(self, engine):
        outcomes, committing, go_on = Outcomes(), threading.Event(), threading.Event()

        class Slow(Sink):
            def deliver(self, notifications: Sequence[Notification], ctx: Context) -> Callable[[], None]:
                committing.set()
                assert go_on.wait(60)
                return super().deliver(notifications, ctx)

        sink = Slow(engine)
        executor = Executor(engine, delivery=sink)

        @notifies(Upvoted, subscription="upvotes")
        async def notify(event: Upvoted, ctx: Context) -> Notification:
            count(event, ctx)
            return told_of(1)

        executor.start(work(notify), outcomes.add)
        assert committing.wait(60)
        close_while(executor, go_on)

        assert outcomes.wait(1) == [Outcome.acked(1, [Publication(Counted(post_id=7))])]
        assert (ids_in(engine), sink.sent) == ([7], [(1, [7])])

    def test_one_that_heeds_no_cancellation_does_not_hold_the_end_up(self, engine, monkeypatch):
        monkeypatch.setattr("cdc_reactor.handler_threads._LOOP_PATIENCE", 0.05)
        executor, outcomes, waiting, go_on = Executor(engine), Outcomes(), threading.Event(), threading.Event()

        @subscribes(Upvoted, subscription="upvotes")
        async def stubborn(event: Upvoted, ctx: Context) -> None:
            waiting.set()
            go_on.wait(60)

        executor.start(work(stubborn), outcomes.add)
        assert waiting.wait(60)
        thread = next(t for t in threading.enumerate() if t.name == "async-handlers")
        executor.close()
        was_running = thread.is_alive()
        go_on.set()
        thread.join(60)

        assert was_running
        assert not thread.is_alive()

    def test_a_fault_of_ours_loses_no_work(self, executor_with, caplog):
        outcomes = Outcomes()

        @subscribes(Upvoted, subscription="upvotes")
        async def interrupted(event: Upvoted, ctx: Context) -> None:
            raise KeyboardInterrupt

        executor_with().start(work(interrupted), outcomes.add)

        (outcome,) = outcomes.wait(1)
        assert outcome == Outcome((NACK,), pause=WORLD_PAUSE, pause_reason="the run broke off (KeyboardInterrupt)")
        assert "interrupted: the run broke off" in caplog.text


@pytest.mark.postgres
def test_async_runs_that_want_the_same_row_do_not_stand_in_each_others_way_for_good(postgres_url):
    """The first waits for something else while it holds the row; the second must let the event loop go."""
    engine = open_engine(postgres_url)
    points = Table(f"points_{uuid4().hex}", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
    points.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(points), {"id": 1, "n": 0})

    second_has_begun: list[asyncio.Event] = []

    async def add(event: Upvoted, ctx: Context) -> None:
        if second_has_begun:
            second_has_begun[0].set()
        else:
            second_has_begun.append(asyncio.Event())
        ctx.session.execute(update(points).values(n=points.c.n + 1))
        await second_has_begun[0].wait()

    executor, outcomes = Executor(engine), SimpleQueue[Outcome]()
    worker = subscribes(Upvoted, subscription="points", name="add")(add)
    for _ in range(2):
        executor.start(work(worker), outcomes.put)
    came = [outcomes.get(timeout=20) for _ in range(2)]
    executor.close()

    with engine.connect() as connection:
        assert connection.scalar(select(points.c.n)) == 1
    points.metadata.drop_all(engine)
    engine.dispose()
    assert sorted(tuple(outcome.verdicts) for outcome in came) == [(ACK,), (NACK,)]
    (waits,) = [outcome for outcome in came if outcome.pause is not None]
    assert waits.pause_reason.startswith("another run holds rows that this one needs")


def test_a_worker_whose_runs_do_not_come_back_waits_instead_of_leaving_ever_more_threads(executor):
    gate = threading.Event()

    def hang(event: Upvoted, ctx: Context) -> None:
        gate.wait(20)

    worker = subscribes(Upvoted, subscription="hanging", timeout=0.001)(hang)
    outcomes = [executor.run(work(worker)) for _ in range(10)]

    assert [outcome.pause is None for outcome in outcomes] == [True] * 8 + [False] * 2
    assert outcomes[-1].pause_reason.startswith(
        "8 runs of hang did not come back after their timeout and are still out"
    )
    gate.set()
    end = time.monotonic() + 20
    while executor.run(work(worker)).pause is not None:
        assert time.monotonic() < end, "they came back, and it goes on"
