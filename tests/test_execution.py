"""One work through its handler: what is committed, what is published, who is blamed, and who is left alone."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.pool import StaticPool

from cdc_reactor import Batch, Context, Event, Handler, Reject, Retry, Row, handles
from cdc_reactor.changes import CHANGE_OF, RowReader
from cdc_reactor.columns import Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope
from cdc_reactor.errors import DecodeError, HandlerTimeout, ImageUnavailable, WorldError
from cdc_reactor.events import Publication
from cdc_reactor.execution import Executor
from cdc_reactor.failures import WORLD_PAUSE
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.reactor import Held, Outcome, Reactor, Route, Work

ACK, NACK, DEAD_LETTER = Verdict.ACK, Verdict.NACK, Verdict.DEAD_LETTER

metadata = MetaData()
# Without a key, so that whatever is applied twice is seen twice.
applied = Table("applied", metadata, Column("n", Integer), Column("id", Integer))


class User(Row, table="public.users"):
    id: int
    karma: int = 0


class Applied(Event, topic="applied.v1"):
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


def work(handler: Handler[Any], *ids: int | str, lanes: str = "", attempt: int = 1) -> Work:
    """Make a work of creates; `lanes` has a letter for each, without it each has a lane of its own."""
    decoder, reader, route = Decoder(), RowReader(handler.row, Placeholder()), Route("users", (handler,))
    held = []
    for n, user in enumerate(ids):
        source = {"name": "forum", "schema": "public", "table": "users", "lsn": n}
        message = Message(json.dumps({"before": None, "after": {"id": user}, "source": source, "op": "c"}).encode())
        envelope = decoder.decode(message)
        assert isinstance(envelope, Envelope)
        held.append(
            Held(Delivery(message, n), CHANGE_OF[envelope.op](envelope, reader), route, lanes[n] if lanes else n)
        )
    return Work(handler, held, None, attempt)


def apply(batch: Batch[User], ctx: Context) -> None:
    for change in batch:
        assert change.after is not None
        ctx.session.execute(insert(applied).values(id=change.after.id))
        ctx.publish(Applied(id=change.after.id))


def applier(*poisoned: int, **options: Any) -> Handler[User]:
    """Make a handler that applies its changes and fails, after some of it is done, on poisoned ones."""

    @handles(User, **options)
    def handler(batch: Batch[User], ctx: Context) -> None:
        apply(batch, ctx)
        for change in batch:
            assert change.after is not None
            if change.after.id in poisoned:
                raise Poison(change.after.id)

    return handler


def ids_in(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(select(applied.c.id)))


def events_of(outcome: Outcome) -> list[int]:
    return [getattr(p.event, "id", 0) for p in outcome.events if isinstance(p, Publication)]


def told(outcome: Outcome) -> dict[int, str]:
    return {index: type(failure.error).__name__ for index, failure in outcome.failures.items()}


class TestOneTransaction:
    def test_what_a_run_wrote_is_committed_once_and_its_events_are_handed_on_in_order(self, engine, executor):
        outcome = executor.run(work(applier(), 3, 1, 2))

        assert outcome == Outcome([ACK] * 3, {}, [Publication(Applied(id=n)) for n in (3, 1, 2)])
        assert ids_in(engine) == [3, 1, 2]

    def test_a_run_that_fails_leaves_nothing_behind(self, engine, executor):
        outcome = executor.run(work(applier(1), 1))

        assert (outcome.verdicts, told(outcome), outcome.events) == ([NACK], {0: "Poison"}, [])
        assert ids_in(engine) == []

    def test_a_commit_that_fails_is_the_handlers_failure(self, engine, executor, monkeypatch):
        def refuse(self: object) -> None:
            raise Poison("deferred constraint")

        monkeypatch.setattr("cdc_reactor.transactions.Session.commit", refuse)

        outcome = executor.run(work(applier(), 1))

        assert (outcome.verdicts, told(outcome), outcome.events) == ([NACK], {0: "Poison"}, [])
        assert ids_in(engine) == []

    def test_a_dry_run_runs_everything_and_commits_nothing(self, engine):
        executor = Executor(engine, commit=False)

        outcome = executor.run(work(applier(), 1, 2))

        assert (outcome.verdicts, events_of(outcome)) == ([ACK, ACK], [1, 2])
        assert ids_in(engine) == []

    def test_a_session_that_nobody_asks_for_is_not_opened(self):
        @handles(User)
        def publish(batch: Batch[User], ctx: Context) -> None:
            ctx.publish(Applied(id=len(batch)))

        assert Executor(None).run(work(publish, 1, 2)).verdicts == [ACK, ACK]

    def test_without_a_database_asking_for_one_says_what_to_do(self):
        outcome = Executor(None).run(work(applier(), 1))

        assert (outcome.verdicts, outcome.failures, outcome.pause) == ([NACK], {}, WORLD_PAUSE)
        assert "add --database-url URL" in outcome.pause_reason

    def test_the_context_knows_its_handler_its_time_and_its_attempt(self, engine):
        noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
        seen = []

        @handles(User)
        def look(batch: Batch[User], ctx: Context) -> None:
            seen.append((ctx.handler, ctx.now, ctx.attempt, ctx.session is ctx.session))

        Executor(engine, clock=lambda: noon).run(work(look, 1, attempt=3))

        assert seen == [("look", noon, 3, True)]


class TestIsolation:
    @pytest.mark.parametrize("poison", range(100))
    def test_one_poisoned_change_in_a_hundred_costs_at_most_fifteen_runs(self, engine, executor, poison):
        outcome = executor.run(work(applier(poison), *range(100)))

        others = [n for n in range(100) if n != poison]
        assert outcome.runs <= 15
        assert told(outcome) == {poison: "Poison"}
        assert [n for n, verdict in enumerate(outcome.verdicts) if verdict is ACK] == others
        assert ids_in(engine) == others
        assert events_of(outcome) == others

    @pytest.mark.parametrize("poison", [(0, 1), (0, 99), (49, 50), (33, 66), (98, 99)])
    def test_two_poisoned_changes_cost_themselves_only(self, engine, executor, poison):
        outcome = executor.run(work(applier(*poison), *range(100)))

        assert outcome.runs <= 30
        assert told(outcome) == dict.fromkeys(poison, "Poison")
        assert ids_in(engine) == events_of(outcome) == [n for n in range(100) if n not in poison]

    def test_when_all_are_poisoned_each_is_told(self, executor):
        outcome = executor.run(work(applier(*range(8)), *range(8)))

        assert told(outcome) == dict.fromkeys(range(8), "Poison")
        assert outcome.runs == 15

    def test_a_failure_of_two_together_is_no_failure_of_either(self, engine, executor):
        @handles(User)
        def not_together(batch: Batch[User], ctx: Context) -> None:
            if len(batch) > 3:
                raise Poison
            apply(batch, ctx)

        outcome = executor.run(work(not_together, *range(10)))

        assert (outcome.verdicts, ids_in(engine)) == ([ACK] * 10, list(range(10)))

    @pytest.mark.parametrize("on_poison", ["skip", "park", "halt"])
    def test_what_stands_behind_a_failed_change_in_its_lane_is_given_back_uncounted(self, engine, executor, on_poison):
        outcome = executor.run(work(applier(2, on_poison=on_poison), *range(8), lanes="abababab"))

        assert outcome.verdicts == [ACK, ACK, NACK, ACK, NACK, ACK, NACK, ACK]
        assert told(outcome) == {2: "Poison"}
        assert sorted(ids_in(engine)) == [0, 1, 3, 5, 7]

    @pytest.mark.parametrize("seed", range(40))
    def test_whatever_fails_lanes_keep_their_order_and_nothing_is_applied_twice(self, engine, executor, seed):
        import random

        chance = random.Random(seed)
        lanes = "".join(chance.choice("abcd") for _ in range(40))
        poisoned = set(chance.sample(range(40), chance.randint(1, 6)))

        outcome = executor.run(work(applier(*poisoned), *range(40), lanes=lanes))

        first = {lane: min((p for p in poisoned if lanes[p] == lane), default=99) for lane in "abcd"}
        expected = [n for n in range(40) if n < first[lanes[n]]]
        assert ids_in(engine) == events_of(outcome) == expected
        assert told(outcome) == {p: "Poison" for p in first.values() if p < 99}


class TestWishes:
    def test_a_retry_without_changes_is_for_all_of_them(self, executor):
        @handles(User)
        def busy(batch: Batch[User], ctx: Context) -> None:
            raise Retry("busy", delay=5)

        outcome = executor.run(work(busy, 1, 2, 3))

        assert (outcome.verdicts, told(outcome), outcome.runs) == ([NACK] * 3, dict.fromkeys(range(3), "Retry"), 1)
        assert [failure.delay for failure in outcome.failures.values()] == [5, 5, 5]

    @pytest.mark.parametrize(("wish", "verdict"), [(Retry, NACK), (Reject, DEAD_LETTER)])
    def test_a_wish_for_some_settles_these_and_runs_the_others_without_them(self, engine, executor, wish, verdict):
        @handles(User)
        def choosy(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            if odd := [c for c in batch if c.after is not None and c.after.id % 2]:
                raise wish("odd", changes=odd)

        outcome = executor.run(work(choosy, *range(6)))

        assert outcome.verdicts == [ACK, verdict] * 3
        assert told(outcome) == dict.fromkeys((1, 3, 5), wish.__name__)
        assert ids_in(engine) == events_of(outcome) == [0, 2, 4]
        assert outcome.runs == 2

    def test_what_stands_before_a_change_that_must_wait_is_applied_and_what_stands_behind_is_held(
        self, engine, executor
    ):
        @handles(User)
        def choosy(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            if chosen := [c for c in batch if c.after is not None and c.after.id == 1]:
                raise Retry("not yet", changes=chosen)

        outcome = executor.run(work(choosy, 0, 1, 2, 3, lanes="aaab"))

        assert outcome.verdicts == [ACK, NACK, NACK, ACK]
        assert told(outcome) == {1: "Retry"}
        assert ids_in(engine) == [0, 3]

    def test_the_lane_of_a_rejected_change_goes_on_unless_it_is_to_be_parked(self, executor):
        def choosy(batch: Batch[User], ctx: Context) -> None:
            if chosen := [c for c in batch if c.after is not None and c.after.id == 0]:
                raise Reject("never", changes=chosen)

        skipping = executor.run(work(handles(User)(choosy), 0, 1, lanes="aa"))
        parking = executor.run(work(handles(User, on_poison="park")(choosy), 0, 1, lanes="aa"))

        assert skipping.verdicts == [DEAD_LETTER, ACK]
        assert parking.verdicts == [DEAD_LETTER, NACK]
        assert told(parking) == {0: "Reject"}

    def test_a_wish_for_changes_of_another_batch_is_a_mistake_that_is_told(self, executor):
        @handles(User)
        def confused(batch: Batch[User], ctx: Context) -> None:
            raise Retry("these", changes=["something else"])

        outcome = executor.run(work(confused, 1, 2))

        assert [str(f.error) for f in outcome.failures.values()] == [
            "confused raised Retry for changes that are not in its batch"
        ] * 2


class TestBlame:
    def test_a_change_that_cannot_be_read_settles_itself_and_the_others_run_once_more(self, engine, executor):
        outcome = executor.run(work(applier(), 0, "x", 2, 3))

        assert outcome.verdicts == [ACK, DEAD_LETTER, ACK, ACK]
        assert told(outcome) == {1: "DecodeError"}
        assert ids_in(engine) == events_of(outcome) == [0, 2, 3]
        assert outcome.runs == 2

    def test_a_decode_error_of_nobody_is_found_by_splitting(self, engine, executor):
        @handles(User)
        def strict(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            if any(c.after is not None and c.after.id == 5 for c in batch):
                raise DecodeError("the text in it is no JSON")

        outcome = executor.run(work(strict, *range(8)))

        assert told(outcome) == {5: "DecodeError"}
        assert outcome.verdicts[5] is DEAD_LETTER
        assert ids_in(engine) == [0, 1, 2, 3, 4, 6, 7]

    def test_a_missing_image_is_no_more_there_at_a_second_try(self, executor):
        @handles(User)
        def needy(batch: Batch[User], ctx: Context) -> None:
            raise ImageUnavailable("no before")

        outcome = executor.run(work(needy, 1))

        assert (outcome.verdicts, told(outcome), outcome.runs) == ([DEAD_LETTER], {0: "ImageUnavailable"}, 1)


class LostConnection(psycopg.OperationalError):
    sqlstate = "57P01"


class StatementTimeout(psycopg.OperationalError):
    sqlstate = "57014"


class Deadlock(psycopg.OperationalError):
    sqlstate = "40P01"


def sqlite_error(statement: str) -> sqlite3.OperationalError:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        return error
    finally:
        connection.close()
    raise AssertionError("it should fail")


def sqlite_locked(path: str) -> sqlite3.OperationalError:
    one, other = sqlite3.connect(path), sqlite3.connect(path, timeout=0)
    try:
        one.execute("BEGIN EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        return error
    finally:
        one.close()
        other.close()
    raise AssertionError("it should be locked")


def database_error(cause: Exception, kind: type[OperationalError | InterfaceError] = OperationalError) -> Exception:
    return kind("SELECT 1", {}, cause)


class TestTheWorld:
    @pytest.mark.parametrize(
        "error",
        [
            WorldError("the CRM is down"),
            database_error(psycopg.OperationalError("connection refused")),
            database_error(LostConnection()),
            database_error(psycopg.InterfaceError("closed"), InterfaceError),
            database_error(sqlite_error("ATTACH '/nowhere/at/all.db' AS x")),
            database_error(sqlite_error("SELECT * FROM no_migration_was_run")),
            NoFreeConnection(),
            OperationalError("SELECT 1", {}, Exception("gone"), connection_invalidated=True),
        ],
        ids=lambda error: str(error)[:40],
    )
    def test_when_the_world_fails_everything_is_given_back_uncounted(self, engine, executor, error):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            raise error

        outcome = executor.run(work(unlucky, 1, 2, 3))

        assert (outcome.verdicts, outcome.failures, outcome.events) == ([NACK] * 3, {}, [])
        assert (outcome.pause, outcome.runs) == (WORLD_PAUSE, 1)
        assert outcome.pause_reason
        assert ids_in(engine) == []

    @pytest.mark.parametrize(
        "error",
        [
            database_error(StatementTimeout()),
            database_error(Deadlock()),
            database_error(sqlite_error("SELECT disk.full")),
            database_error(sqlite_error("SELECT locked.a")),
            ConnectionError("some service of the handler's own"),
            TimeoutError(),
        ],
        ids=lambda error: str(error)[:40],
    )
    def test_what_may_be_the_changes_own_fault_is_counted(self, executor, error):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            raise error

        outcome = executor.run(work(unlucky, 1))

        assert (outcome.pause, list(outcome.failures)) == (None, [0])

    def test_what_is_told_of_a_database_error_holds_no_row_data(self, executor):
        cause = psycopg.errors.UniqueViolation(
            "duplicate key\nDETAIL:  Key (email)=(ada@forum.example) already exists."
        )

        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            raise IntegrityError("INSERT …", {"email": "ada@forum.example"}, cause)

        outcome = executor.run(work(unlucky, 1))

        assert re.fullmatch(r"IntegrityError at test_execution\.py:\d+: duplicate key", outcome.failures[0].told)

    def test_what_is_told_of_an_invalid_model_holds_no_row_data(self, executor):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            User.model_validate({"id": "ada@forum.example"})

        outcome = executor.run(work(unlucky, 1))

        assert "ada@forum.example" not in outcome.failures[0].told
        assert "User is not valid: id: " in outcome.failures[0].told

    @pytest.mark.parametrize("mistake", [lambda value: {}[value], int, [].index])
    def test_what_python_itself_says_of_a_value_is_not_told_but_where_it_was(self, executor, mistake):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            mistake("ada@forum.example")

        told = executor.run(work(unlucky, 1)).failures[0].told

        assert re.fullmatch(r"\w+Error at test_execution\.py:\d+", told)

    def test_a_locked_sqlite_file_is_no_fault_of_the_data(self, executor, tmp_path):
        error = database_error(sqlite_locked(str(tmp_path / "a.db")))

        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            raise error

        assert executor.run(work(unlucky, 1)).pause == WORLD_PAUSE

    def test_a_database_that_is_really_down_pauses_the_handler(self):
        engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")

        outcome = Executor(engine).run(work(applier(), 1, 2))

        assert (outcome.verdicts, outcome.failures, outcome.pause) == ([NACK, NACK], {}, WORLD_PAUSE)
        assert outcome.pause_reason == "the database does not answer (OperationalError)"

    def test_what_was_applied_before_the_world_failed_stays_applied(self, engine, executor):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            if len(batch) > 2:
                raise Poison
            if any(c.after is not None and c.after.id == 2 for c in batch):
                raise WorldError("down")

        outcome = executor.run(work(unlucky, 0, 1, 2, 3))

        assert outcome.verdicts == [ACK, ACK, NACK, NACK]
        assert (outcome.failures, outcome.pause) == ({}, WORLD_PAUSE)
        assert ids_in(engine) == events_of(outcome) == [0, 1]


class TestTime:
    def test_a_handler_that_takes_too_long_is_given_up_and_commits_nothing(self, tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path}/a.db")
        metadata.create_all(engine)
        executor = Executor(engine)
        go_on, is_done = threading.Event(), threading.Event()

        @handles(User, timeout=0.05)
        def slow(batch: Batch[User], ctx: Context) -> None:
            ctx.session.execute(select(applied))
            go_on.wait(30)
            apply(batch, ctx)
            is_done.set()

        outcome = executor.run(work(slow, 1))
        go_on.set()
        left = [thread for thread in threading.enumerate() if thread.name == "handler"]
        for thread in left:
            thread.join(30)
        executor.close()

        assert (outcome.verdicts, outcome.events) == ([NACK], [])
        assert [str(f.error).partition(" (")[0] for f in outcome.failures.values()] == [
            "slow took longer than its timeout of 0.05 s"
        ]
        assert is_done.is_set()
        assert ids_in(engine) == []
        engine.dispose()

    def test_after_a_late_handler_the_next_one_runs(self, engine, executor):
        block = threading.Event()

        @handles(User, timeout=0.05)
        def slow(batch: Batch[User], ctx: Context) -> None:
            block.wait(30)

        late = executor.run(work(slow, 1))
        in_time = executor.run(work(applier(timeout=30), 2))
        block.set()

        assert told(late) == {0: "HandlerTimeout"}
        assert (in_time.verdicts, ids_in(engine)) == ([ACK], [2])

    def test_a_handler_within_its_time_is_isolated_as_any_other(self, engine, executor):
        outcome = executor.run(work(applier(5, timeout=30), *range(8)))

        assert told(outcome) == {5: "Poison"}
        assert ids_in(engine) == [0, 1, 2, 3, 4, 6, 7]


class TestAsync:
    def test_async_handlers_write_and_publish_like_any_other(self, engine, executor):
        @handles(User)
        async def handler(batch: Batch[User], ctx: Context) -> None:
            await asyncio.sleep(0)
            apply(batch, ctx)
            if any(c.after is not None and c.after.id == 2 for c in batch):
                raise Poison

        outcome = executor.run(work(handler, *range(4)))

        assert told(outcome) == {2: "Poison"}
        assert ids_in(engine) == events_of(outcome) == [0, 1, 3]

    def test_all_run_on_one_loop(self, executor):
        loops = []

        @handles(User)
        async def handler(batch: Batch[User], ctx: Context) -> None:
            loops.append(asyncio.get_running_loop())

        executor.run(work(handler, 1))
        executor.run(work(handler, 1))

        assert loops[0] is loops[1]

    def test_one_that_takes_too_long_is_cancelled_and_commits_nothing(self, engine, executor):
        was_cancelled = threading.Event()

        @handles(User, timeout=0.05)
        async def slow(batch: Batch[User], ctx: Context) -> None:
            apply(batch, ctx)
            try:
                await asyncio.Event().wait()
            finally:
                was_cancelled.set()

        outcome = executor.run(work(slow, 1))

        assert told(outcome) == {0: "HandlerTimeout"}
        assert was_cancelled.is_set()
        assert ids_in(engine) == []

    def test_one_that_will_not_be_cancelled_commits_nothing_either(self, engine, executor):
        @handles(User, timeout=0.05)
        async def stubborn(batch: Batch[User], ctx: Context) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                apply(batch, ctx)

        outcome = executor.run(work(stubborn, 1))

        assert (told(outcome), ids_in(engine)) == ({0: "HandlerTimeout"}, [])

    @pytest.mark.parametrize("timeout", [None, 30.0])
    def test_a_timeout_of_its_own_making_is_its_own(self, executor, timeout):
        @handles(User, timeout=timeout)
        async def impatient(batch: Batch[User], ctx: Context) -> None:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

        outcome = executor.run(work(impatient, 1))

        assert told(outcome) == {0: "TimeoutError"}

    def test_one_that_cancels_itself_has_failed(self, executor):
        @handles(User)
        async def quitter(batch: Batch[User], ctx: Context) -> None:
            raise asyncio.CancelledError

        assert told(executor.run(work(quitter, 1))) == {0: "CancelledError"}

    def test_what_one_leaves_running_is_cancelled_at_the_end(self, engine):
        executor = Executor(engine)
        was_cancelled = threading.Event()
        tasks = []

        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                was_cancelled.set()

        @handles(User)
        async def starter(batch: Batch[User], ctx: Context) -> None:
            tasks.append(asyncio.create_task(forever()))
            await asyncio.sleep(0)

        executor.run(work(starter, 1))
        executor.close()

        assert was_cancelled.is_set()

    def test_a_wrapper_that_forgets_to_await_is_told(self, executor):
        async def handler(batch: Batch[User], ctx: Context) -> None: ...

        @handles(User)
        @functools.wraps(handler)
        def wrapper(batch: Batch[User], ctx: Context) -> Any:
            return handler(batch, ctx)

        (failure,) = executor.run(work(wrapper, 1)).failures.values()

        assert str(failure.error).startswith("handler returned an awaitable that nobody awaits: make it async def (")


KINDS = ["def", "def with timeout", "async def"]


def raiser(kind: str, error: BaseException) -> Handler[User]:
    def handler(batch: Batch[User], ctx: Context) -> None:
        apply(batch, ctx)
        raise error

    async def async_handler(batch: Batch[User], ctx: Context) -> None:
        handler(batch, ctx)

    return handles(User, timeout=30 if "timeout" in kind else None)(async_handler if "async" in kind else handler)


class TestTheEndOfTheProcess:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_handler_that_exits_has_failed_and_ends_nothing_else(self, engine, executor, kind):
        outcome = executor.run(work(raiser(kind, SystemExit(3)), 1))

        assert (outcome.verdicts, told(outcome)) == ([NACK], {0: "SystemExit"})
        assert ids_in(engine) == []
        assert executor.run(work(applier(), 2)).verdicts == [ACK]
        assert executor.run(work(raiser(kind, Poison()), 1)).failures

    @pytest.mark.parametrize("kind", KINDS)
    def test_ctrl_c_goes_through_after_a_rollback(self, engine, executor, kind):
        with pytest.raises(KeyboardInterrupt):
            executor.run(work(raiser(kind, KeyboardInterrupt()), 1))

        assert ids_in(engine) == []
        assert executor.run(work(applier(), 2)).verdicts == [ACK]


def test_an_outcome_is_what_the_reactor_takes_back(engine, executor):
    handler = applier(2, max_attempts=2)
    queue = list(work(handler, *range(4)).held)
    reactor = Reactor(lambda delivery: queue[delivery.ack_id])
    for held in queue:
        reactor.receive(held.delivery, 0.0)

    now, settled = 0.0, []
    while reactor.outstanding:
        for each in reactor.ready(now, flush=True):
            reactor.complete(each, executor.run(each), now)
        settled += reactor.settlements()
        now = reactor.next_wakeup() or now

    assert sorted((s.delivery.ack_id, s.verdict) for s in settled) == [(0, ACK), (1, ACK), (2, DEAD_LETTER), (3, ACK)]
    assert ids_in(engine) == [0, 1, 3]


def test_errors_stay_what_they_were(executor):
    error = Poison("why")

    assert executor.run(work(raiser("def", error), 1)).failures[0].error is error
    assert issubclass(HandlerTimeout, Exception)
