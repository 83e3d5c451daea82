"""The daemon as a whole, in this process: its start, health, signals, drain, neighbours."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.pubsub_v1 import types

from cdc_reactor import Batch, Context, Row, handles
from cdc_reactor.daemon import Daemon
from cdc_reactor.database import open_engine
from cdc_reactor.discovery import load_handlers
from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from tests.daemon_stage import NAME, Stage, change, parts_of, run, running, running_to_its_end, told, until


class User(Row, table="public.users"):
    id: int
    name: str


@handles(User, max_wait=0)
def ignore(batch: Batch[User], ctx: Context) -> None: ...


@pytest.fixture
def stage() -> Iterator[Stage]:
    with LocalBroker.start(clock=VirtualClock()) as broker:
        made = Stage.set_up(broker)
        yield made
        made.close()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Log:
    """What several handlers were given, in order; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: list[tuple[int, str]] = []
        self.by: list[str] = []

    def note(self, batch: Batch[Any], by: str = "") -> None:
        with self._lock:
            self.seen.extend(told(batch))
            self.by.append(by)

    def rows(self) -> dict[int, list[str]]:
        """Each row's changes, without those that came again."""
        return {row: list(dict.fromkeys(name for of, name in self.seen if of == row)) for row, _ in self.seen}


def texts(count: int) -> list[str]:
    return [str(n) for n in range(count)]


# ── the start ──


def test_a_missing_subscription_is_told_with_the_cure(stage):
    with pytest.raises(
        UsageError,
        match="knows no subscription projects/p/subscriptions/nobody: create it, or check the name and the project",
    ):
        run(partial(running_to_its_end, stage, ignore, subscriptions=["cdc", "nobody"]))


def test_a_missing_dead_letter_topic_is_told_with_the_cure(stage):
    with pytest.raises(UsageError, match="dead-letter topic graveyard does not exist in project p; create it"):
        run(partial(running_to_its_end, stage, ignore, dead_letter_topic="graveyard"))


def test_a_broker_that_does_not_answer_is_the_worlds_fault(stage, free_port):
    with pytest.raises(WorldError, match=f"127.0.0.1:{free_port}"):
        run(partial(running_to_its_end, stage, ignore, pubsub={"emulator_host": f"127.0.0.1:{free_port}"}))


def test_a_database_that_does_not_answer_is_the_worlds_fault_and_its_password_is_not_told(stage, free_port):
    engine = open_engine(f"postgresql://ada:hunter2@127.0.0.1:{free_port}/forum")

    with pytest.raises(WorldError, match="database") as error:
        run(partial(running_to_its_end, stage, ignore, engine=engine))

    assert "hunter2" not in str(error.value)
    engine.dispose()


def test_a_health_port_that_is_taken_is_told_with_the_cure(stage, taken_port):
    with pytest.raises(UsageError, match=f"health server cannot listen on 127.0.0.1:{taken_port}: the port is in use"):
        run(partial(running_to_its_end, stage, ignore, health={"port": taken_port}))


def test_a_start_that_fails_leaves_nothing_leased(stage, taken_port):
    stage.publish(*(change(1, text) for text in texts(100)))

    with pytest.raises(UsageError, match="the port is in use"):
        run(partial(running_to_its_end, stage, ignore, health={"port": taken_port}))

    assert stage.counts() == (100, 0)


def test_what_is_missing_is_created_where_that_is_wanted(stage):
    async def test():
        async with running(
            stage,
            ignore,
            create_missing=True,
            subscriptions=["new-subscription"],
            topic="new-topic",
            dead_letter_topic="new-letters",
        ):
            stage.publish(change(1, "a"), topic="new-topic")
            await until(lambda: stage.statistics("new-subscription")["acked"] == 1)

    run(test)

    request = types.GetSubscriptionRequest.pb()(subscription=NAME("subscriptions", "new-subscription"))
    created = stage.call("Subscriber", "GetSubscription", request, types.Subscription)
    assert (created.topic, created.enable_message_ordering) == (NAME("topics", "new-topic"), True)
    assert stage.publish(change(1, "a"), topic="new-letters") != []


def test_a_dead_letter_policy_of_an_ordered_subscription_is_warned_of(stage, caplog):
    policy = types.DeadLetterPolicy.pb()(dead_letter_topic=NAME("topics", "cdc-dead-letters"), max_delivery_attempts=5)
    stage.subscribe("with-policy", "cdc", dead_letter_policy=policy)

    async def test():
        async with running(stage, ignore, subscriptions=["with-policy"]):
            pass

    run(test)

    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("subscription with-policy is ordered and has a dead-letter policy of its own")


# ── at work ──


def test_its_health_and_metrics_are_told_by_http(stage):
    async def test():
        async with running(stage, ignore, health={"port": 0}) as up, httpx.AsyncClient(trust_env=False) as client:
            stage.publish(change(1, "a"))
            await until(stage.is_done)
            answers = {path: await client.get(f"http://{up.started[0].health}{path}") for path in ("/livez", "/readyz")}
            assert {path: answer.status_code for path, answer in answers.items()} == {"/livez": 200, "/readyz": 200}
            assert [check["name"] for check in answers["/readyz"].json()["checks"]] == [
                "running",
                "handlers",
                "streams",
                "progress",
            ]
            metrics = (await client.get(f"http://{up.started[0].health}/metrics")).text
            assert 'cdc_reactor_batches_total{attempt="first",handler="ignore",table="public.users"} 1.0' in metrics

    run(test)


def test_several_subscriptions_share_the_threads(stage):
    log = Log()
    stage.create_topic("other")
    stage.subscribe("other", "other")

    @handles(User, max_size=1, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        log.note(batch)

    async def test():
        stage.publish(*(change(1, text) for text in texts(300)))
        stage.publish(*(change(2, text) for text in texts(300)), topic="other")
        async with running(stage, note, subscriptions=["cdc", "other"], run={"threads": 1}):
            await until(lambda: stage.is_done() and stage.statistics("other")["backlog"] == 0)

    run(test)

    assert log.rows() == {1: texts(300), 2: texts(300)}
    turns = [row for row, _ in log.seen]
    assert len(set(turns[150:450])) == 2, "neither is served only when the other has nothing more"


def test_two_daemons_on_one_subscription_keep_the_order_of_each_row(stage):
    log = Log()

    @handles(User, max_size=5, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        log.note(batch, "first")

    @handles(User, max_size=5, max_wait=0)
    def note_too(batch: Batch[User], ctx: Context) -> None:
        log.note(batch, "second")

    async def test():
        few = {"max_messages": 20}
        async with running(stage, note, pubsub=few) as first, running(stage, note_too, pubsub=few):
            for start in range(0, 40, 10):
                stage.publish(*(change(row, str(n)) for row in range(20) for n in range(start, start + 10)))
            await until(lambda: len(log.seen) >= 200)
            # One leaves in the middle; what it held goes on at the other.
            first.daemon.stop()
            await until(first.task.done)
            await until(stage.is_done)

    run(test)

    assert log.rows() == {row: texts(40) for row in range(20)}
    assert len(log.seen) == 800, "a drain causes no second delivery of what was applied"
    assert set(log.by) == {"first", "second"}


def test_an_exactly_once_subscription_is_consumed_to_its_end(stage):
    log = Log()
    stage.subscribe("once", "cdc", enable_exactly_once_delivery=True)

    @handles(User, max_size=5, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        log.note(batch)

    async def test():
        async with running(stage, note, subscriptions=["once"]):
            stage.publish(*(change(row, text) for row in range(5) for text in texts(20)))
            await until(lambda: stage.statistics("once")["acked"] == 100)

    run(test)

    assert log.rows() == {row: texts(20) for row in range(5)}
    assert len(log.seen) == 100


def test_a_broker_that_was_away_is_found_again(stage):
    log = Log()

    @handles(User, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        log.note(batch)

    async def test():
        async with running(stage, note) as up:
            stage.publish(change(1, "before"))
            await until(stage.is_done)
            await asyncio.to_thread(stage.admin.restart, 0.2)
            stage.publish(change(1, "after"))
            await until(stage.is_done)
            await until(lambda: not up.why_not_ready())

    run(test)

    assert log.rows() == {1: ["before", "after"]}


def test_a_subscription_that_is_deleted_ends_the_daemon(stage):
    async def test():
        request = types.DeleteSubscriptionRequest.pb()(subscription=NAME("subscriptions", "cdc"))
        daemon = Daemon(parts_of(stage, ignore), on_start=lambda _: deletes())

        def deletes() -> None:
            stage.call("Subscriber", "DeleteSubscription", request, types.Subscription)

        async with asyncio.timeout(30):
            await daemon.run()

    with pytest.raises(UsageError, match="knows no subscription projects/p/subscriptions/cdc: create it"):
        run(test)


# ── the end ──


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_well(stage, number, status):
    async def test():
        daemon = Daemon(parts_of(stage, ignore), on_start=lambda _: os.kill(os.getpid(), number))
        async with asyncio.timeout(30):
            assert await daemon.run() == status
        assert daemon.is_clean

    run(test)


def test_a_drain_gives_back_what_waits_at_once_and_finishes_what_runs(stage):
    log = Log()
    begun, gate = threading.Event(), threading.Event()

    @handles(User, max_size=1, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        begun.set()
        gate.wait(30)
        log.note(batch)

    async def test():
        async with running(stage, note, run={"threads": 1}) as up:
            stage.publish(*(change(row, text) for row in range(10) for text in texts(5)))
            await until(lambda: begun.is_set() and stage.counts() == (50, 50))
            up.daemon.stop()
            # The leases last ten minutes, and the broker's clock stands still.
            back: list[Any] = []

            def is_back() -> bool:
                back.extend(stage.take("cdc"))
                return len(back) >= 45

            await until(is_back, within=1.0)
            assert log.seen == []
            gate.set()
            await until(up.task.done)
            assert up.daemon.is_clean
            assert stage.counts()[1] == 0
        return back

    run(test)

    assert log.seen == [(0, "0")]


def test_a_handler_that_exceeds_the_grace_is_left_behind_and_its_changes_go_back(stage, caplog):
    begun, gate = threading.Event(), threading.Event()

    @handles(User, max_size=1, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        begun.set()
        gate.wait(30)

    async def test():
        async with running(stage, note, run={"threads": 1, "grace": 0.2}) as up:
            stage.publish(*(change(1, text) for text in texts(3)))
            await until(lambda: begun.is_set() and stage.counts() == (3, 3))
            up.daemon.stop()
            await until(up.task.done)
            assert not up.daemon.is_clean
            assert stage.counts() == (3, 0)
            assert [json.loads(one.data)["after"]["name"] for one in stage.take("cdc")] == texts(3)
            gate.set()

    run(test)

    assert "some handlers did not end within the grace of 0.2 s; their changes come again" in caplog.messages


# ── handlers in other processes ──

MODULE = '''
"""Users."""
import os
import signal
from pathlib import Path

from cdc_reactor import Batch, Context, Row, handles


class User(Row, table="public.users"):
    id: int
    name: str


@handles(User, max_size=4, max_wait=0.0)
def note(batch: Batch[User], ctx: Context) -> None:
    """Write to a file what came and which process saw it; kill that process once, at row 3's change 10."""
    if any(change.after.name == "poison" for change in batch):
        raise RuntimeError("cannot stand this one")
    died = Path(__file__).with_name("died")
    if any((change.after.id, change.after.name) == (3, "10") for change in batch) and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    lines = "".join(f"{os.getpid()} {change.after.id} {change.after.name}\\n" for change in batch)
    with Path(__file__).with_name("seen").open("a") as file:
        file.write(lines)
'''


class Elsewhere:
    """Handlers in a file, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        module = folder / f"users_{folder.name.replace('-', '_')}.py"
        module.write_text(MODULE)
        self.target = str(module)
        self.handlers = load_handlers([self.target]).handlers
        self._seen = folder / "seen"

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._seen.read_text().splitlines()] if self._seen.exists() else []

    def pids(self) -> set[int]:
        return {int(pid) for pid, _, _ in self.lines()}

    def rows(self) -> dict[int, list[str]]:
        lines = self.lines()
        return {int(row): list(dict.fromkeys(name for _, of, name in lines if of == row)) for _, row, _ in lines}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


def test_handlers_in_other_processes_see_each_row_in_order_and_one_that_dies_loses_nothing(stage, elsewhere, caplog):
    async def test():
        async with running(stage, *elsewhere.handlers, handlers=[elsewhere.target], run={"processes": 2}):
            stage.publish(change(9, "poison"), *(change(row, str(n)) for row in range(8) for n in range(40)))
            await until(stage.is_done, within=60)

    run(test)

    assert elsewhere.rows() == {row: texts(40) for row in range(8)}
    assert len([message for message in caplog.messages if "starting others" in message]) == 1
    assert os.getpid() not in elsewhere.pids()
    assert stage.names_buried() == ["poison"]
    assert stage.letters()[0].attributes["cdc_error_class"] == "RuntimeError"
