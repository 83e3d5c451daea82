"""Runners: works run beside the event loop, come back once each, and a broken run or process loses none."""

import asyncio
import threading
from pathlib import Path

from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import discover
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.pool import PoolRunner, Setup
from cdc_reactor.reactor import Outcome, Reactor, Work
from cdc_reactor.routing import CdcRouter
from cdc_reactor.runners import ProcessRunner, ThreadRunner, given_back

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


async def run_all(runner: ThreadRunner | ProcessRunner, works: list[Work]) -> dict[str, Outcome]:
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
    assert threads <= {"handlers-0", "handlers-1"}


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
    assert (threads, used) == (3, {"handlers-0", "handlers-1", "handlers-2"})


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
