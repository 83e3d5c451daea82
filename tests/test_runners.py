"""Runners: works run beside the event loop, come back once each, and a broken run or process loses none."""

import asyncio
import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from cdc_reactor import Context, Event
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import discover
from cdc_reactor.event_routing import EventRouter
from cdc_reactor.execution import Executor
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.pool import PoolRunner, Setup
from cdc_reactor.reactor import Outcome, Reactor, Work
from cdc_reactor.routing import CdcRouter
from cdc_reactor.runners import ProcessRunner, TaskRunner, ThreadRunner, given_back
from cdc_reactor.workers import Worker, subscribes

MODULE = '''
"""Users."""
import os
import signal
from pathlib import Path

from cdc_reactor import Batch, Context, Row, handles


class User(Row, table="public.users"):
    id: int


@handles(User, max_size=1, max_wait=0.0)
def note(batch: Batch[User], ctx: Context) -> None:
    """Kill the process at row 13, once."""
    died = Path(__file__).with_name("died")
    if batch[0].after.id == 13 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
'''


def change(row: int) -> Message:
    data = (
        b'{"before":null,"after":{"id":%d},"source":{"connector":"postgresql","name":"f","db":"f","schema":"public",'
        b'"table":"users","lsn":%d},"op":"c"}' % (row, row)
    )
    return Message(data, ordering_key=str(row), message_id=str(row))


def works_of(tmp_path: Path, rows: list[int]) -> tuple[list[Work], list[str]]:
    folder = tmp_path / f"handlers_{tmp_path.name.replace('-', '_')}"
    folder.mkdir()
    (folder / "users.py").write_text(MODULE)
    targets = [str(folder)]
    router = CdcRouter(discover(targets, entry_points=False).handlers, Decoder())
    reactor = Reactor(router.route)
    reactor.receive_all([Delivery(change(row), row) for row in rows], 0.0)
    return reactor.ready(0.0), targets


async def run_all(runner: ThreadRunner | TaskRunner | ProcessRunner, works: list[Work]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    everything = asyncio.Event()

    def done(work: Work, outcome: Outcome, seconds: float) -> None:
        assert seconds >= 0
        assert work.held[0].delivery.message.message_id not in outcomes, "each work comes back once"
        outcomes[work.held[0].delivery.message.message_id] = outcome
        if len(outcomes) == len(works):
            everything.set()

    for work in works:
        runner.start(work, done)
    async with asyncio.timeout(60):
        await everything.wait()
    return outcomes


def test_each_work_comes_back_once_on_the_event_loop(tmp_path: Path):
    works, _ = works_of(tmp_path, [1, 2, 3, 4])
    threads = set()

    def run(work: Work) -> Outcome:
        threads.add(threading.current_thread().name)
        return Outcome.acked(len(work.held))

    async def main():
        runner = ThreadRunner(run, 2)
        try:
            return await run_all(runner, works), runner.room
        finally:
            runner.close()

    outcomes, room = asyncio.run(main())

    assert outcomes == {str(n): Outcome.acked(1) for n in (1, 2, 3, 4)}
    assert room == 4
    assert threads <= {"handlers-0 note", "handlers-1 note"}


def test_threads_are_added_while_works_wait_for_one_and_no_more_than_allowed(tmp_path: Path):
    works, _ = works_of(tmp_path, [1, 2, 3, 4])
    together = threading.Barrier(3, timeout=60)
    used = set()

    def run(work: Work) -> Outcome:
        used.add(threading.current_thread().name)
        if work is not works[3]:
            together.wait()
        return Outcome.acked(len(work.held))

    async def main():
        runner = ThreadRunner(run, 3)
        assert len(runner._threads) == 1
        try:
            return await run_all(runner, works), len(runner._threads)
        finally:
            runner.close()

    outcomes, threads = asyncio.run(main())

    assert outcomes == {str(n): Outcome.acked(1) for n in (1, 2, 3, 4)}
    assert (threads, used) == (3, {"handlers-0 note", "handlers-1 note", "handlers-2 note"})


def test_quick_works_stay_in_one_thread(tmp_path: Path):
    works, _ = works_of(tmp_path, list(range(1, 15)))

    async def main():
        runner = ThreadRunner(lambda work: Outcome.acked(len(work.held)), 8)
        try:
            for _ in range(20):
                await run_all(runner, works)
            return len(runner._threads)
        finally:
            runner.close()

    assert asyncio.run(main()) <= 2


def test_a_run_that_breaks_off_is_given_back_uncounted_and_its_thread_goes_on(tmp_path: Path, caplog):
    works, _ = works_of(tmp_path, [1, 2])

    def run(work: Work) -> Outcome:
        if work.held[0].delivery.message.message_id == "1":
            raise RuntimeError("a fault of ours")
        return Outcome.acked(1)

    async def main():
        runner = ThreadRunner(run, 1)
        try:
            return await run_all(runner, works)
        finally:
            runner.close()

    outcomes = asyncio.run(main())

    assert outcomes["2"] == Outcome.acked(1)
    assert outcomes["1"].verdicts == (Verdict.NACK,)
    assert outcomes["1"].failures == {}
    assert outcomes["1"].pause is not None
    assert "the run broke off" in caplog.text


def test_what_has_not_begun_can_be_taken_back(tmp_path: Path):
    works, _ = works_of(tmp_path, [1, 2, 3])
    entered, leave = threading.Event(), threading.Event()

    def run(work: Work) -> Outcome:
        entered.set()
        leave.wait(60)
        return Outcome.acked(len(work.held))

    async def main():
        finished = asyncio.Event()
        runner = ThreadRunner(run, 1)
        for work in works:
            runner.start(work, lambda *_: finished.set())
        await asyncio.to_thread(entered.wait, 60)
        taken = [work for work, _ in runner.take_back()]
        leave.set()
        async with asyncio.timeout(60):
            await finished.wait()
        runner.close()
        return taken, runner.room

    taken, room = asyncio.run(main())

    assert taken == works[1:]
    assert room == 2


class Asked(Event, topic="asked.v1"):
    n: int


def asked(worker: Worker[Any], numbers: list[int]) -> list[Work]:
    reactor = Reactor(EventRouter(worker))
    deliveries = [Delivery(Message(b'{"n":%d}' % n, message_id=str(n)), n) for n in numbers]
    reactor.receive_all(deliveries, 0.0)
    return reactor.ready(0.0)


def test_tasks_wait_together_and_each_comes_back_once_on_the_event_loop():
    gate, at_work, everyone = asyncio.Event(), [], threading.Event()

    @subscribes(Asked, subscription="asked", max_messages=1000)
    async def wait(event: Asked, ctx: Context) -> None:
        at_work.append((event.n, asyncio.get_running_loop()))
        if len(at_work) == 300:
            everyone.set()
        await gate.wait()

    works = asked(wait, list(range(300)))

    async def main():
        executor = Executor(None)
        runner = TaskRunner(executor.start, limit=310)
        running = asyncio.create_task(run_all(runner, works))
        assert await asyncio.to_thread(everyone.wait, 60)
        room = runner.room
        at_work[0][1].call_soon_threadsafe(gate.set)
        outcomes = await running
        assert runner.take_back() == []
        rooms = room, runner.room
        runner.close()
        executor.close()
        return outcomes, rooms, runner.room

    outcomes, rooms, room_at_the_end = asyncio.run(main())

    assert outcomes == {str(n): Outcome.acked(1, []) for n in range(300)}
    assert (rooms, room_at_the_end) == ((10, 310), 0)


def test_a_task_whose_callback_fails_keeps_no_other_from_coming_back():
    @subscribes(Asked, subscription="asked")
    async def quick(event: Asked, ctx: Context) -> None: ...

    first, second = asked(quick, [1, 2])

    async def main():
        told: list[object] = []
        came = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        executor = Executor(None)
        runner = TaskRunner(executor.start)

        def fail(*_: object) -> None:
            raise ValueError

        runner.start(first, fail)
        runner.start(second, lambda *_: came.set())
        async with asyncio.timeout(60):
            await came.wait()
        executor.close()
        return told, runner.room

    told, room = asyncio.run(main())

    assert [type(error) for error in told] == [ValueError]
    assert room == 1000


def test_a_task_that_heeds_no_cancellation_does_not_hold_the_end_up(monkeypatch):
    monkeypatch.setattr("cdc_reactor.handler_threads._LOOP_PATIENCE", 0.05)
    at_work, cancelled, ended = threading.Event(), threading.Event(), threading.Event()
    outcomes: list[Outcome] = []
    loops = []

    @subscribes(Asked, subscription="asked")
    async def stubborn(event: Asked, ctx: Context) -> None:
        loops.append(asyncio.get_running_loop())
        assert ctx.session.execute(text("SELECT 1")).scalar() == 1
        at_work.set()
        try:
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                cancelled.set()
        finally:
            ended.set()

    async def main():
        executor = Executor(engine)
        runner = TaskRunner(executor.start)
        runner.start(asked(stubborn, [1])[0], lambda _, outcome, __: outcomes.append(outcome))
        assert await asyncio.to_thread(at_work.wait, 60)
        runner.close()
        await asyncio.to_thread(executor.close)

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    asyncio.run(main())
    gc.collect()

    assert cancelled.is_set()
    assert ended.is_set()
    assert loops[0].is_closed()
    assert outcomes == []
    engine.dispose()


def test_a_process_that_dies_costs_nothing_but_the_time_to_start_another(tmp_path: Path):
    works, targets = works_of(tmp_path, [13, 14])
    setup = Setup(targets, None, commit=True, placeholder="x", unwrapped_prefix="__", max_bytes=1 << 20)

    async def main():
        runner = ProcessRunner(lambda: PoolRunner(setup, 1))
        try:
            first = await run_all(runner, works)
            return first, await run_all(runner, works)
        finally:
            runner.close(at_once=True)

    first, second = asyncio.run(main())

    assert [outcome.verdicts for outcome in first.values()] == [(Verdict.NACK,), (Verdict.NACK,)]
    assert all(not outcome.failures and outcome.pause for outcome in first.values())
    assert {key: list(outcome.verdicts) for key, outcome in second.items()} == {
        "13": [Verdict.ACK],
        "14": [Verdict.ACK],
    }


def test_given_back_blames_nothing(tmp_path: Path):
    works, _ = works_of(tmp_path, [1])

    assert given_back(works[0], "why", pause=1.0) == Outcome((Verdict.NACK,), pause=1.0, pause_reason="why")
