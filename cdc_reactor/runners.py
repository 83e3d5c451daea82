"""Where a daemon's works are run: threads, tasks, or other processes. The event loop hands over and is told.

Works go in by `start`, and each comes back once, on the event loop, to the callback that it was started with. A runner
decides nothing about order: whoever starts two works has made sure that they may run side by side. Neighbours:
`execution` runs one work, `pool` keeps the processes, `consumer` starts works.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, TypeAlias

from cdc_reactor.errors import WorldError
from cdc_reactor.failures import WORLD_PAUSE
from cdc_reactor.messages import Verdict
from cdc_reactor.pool import PoolRunner
from cdc_reactor.reactor import Outcome, Work

_log = logging.getLogger("cdc_reactor")

# How long, in seconds, a work waits for a thread before another one is added.
_PATIENCE = 0.020

#: Is given a work, what became of it, and how many seconds the run took.
Done: TypeAlias = Callable[[Work, Outcome, float], None]


class Runner(Protocol):
    """Runs works beside the event loop."""

    @property
    def room(self) -> int:
        """How many works it takes now."""

    def start(self, work: Work, done: Done) -> None:
        """Take a work; `done` is called on the event loop."""

    def take_back(self) -> list[tuple[Work, Done]]:
        """Hand back what was taken and not yet begun."""


class _Task(NamedTuple):
    work: Work
    done: Done
    number: int


class _Finished(NamedTuple):
    done: Done
    work: Work
    outcome: Outcome
    seconds: float


class _Reports:
    """Brings what other threads have finished to the event loop; `on_each` is called there before each is told.

    Made on the event loop; `add` is for any thread.
    """

    def __init__(self, on_each: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_each = on_each
        self._finished: deque[_Finished] = deque()
        self._is_called = False

    def add(self, finished: _Finished) -> None:
        """Tell the event loop soon."""
        self._finished.append(finished)
        if not self._is_called:
            # One call for all that is finished by then; a hand-over between threads costs more than a batch.
            self._is_called = True
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_called = False
        try:
            while self._finished:
                done, work, outcome, seconds = self._finished.popleft()
                self._on_each()
                done(work, outcome, seconds)
        finally:
            # Whatever one work's callback raises is told by the event loop, and keeps no other from coming back.
            if self._finished:
                self._loop.call_soon(self._tell)


def given_back(work: Work, reason: str = "", *, pause: float | None = None) -> Outcome:
    """Say of a work that nothing of it was applied and nothing of it is to blame."""
    return Outcome((Verdict.NACK,) * len(work.held), pause=pause, pause_reason=reason)


class ThreadRunner:
    """Runs works in threads, two for each thread at most, so that none waits for the event loop.

    Threads are added when a work waits for one: handlers that wait for a database get them all, while quick ones stay
    in few threads, for each that is woken costs more than a small batch. Made on the event loop and used there only.
    The threads are daemons: one whose handler never returns keeps no process alive.
    """

    def __init__(self, run: Callable[[Work], Outcome], threads: int) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._reports = _Reports(self._make_room)
        self._limit = threads
        self._room = 2 * threads
        # Numbers of works: the last that was sent, and the last that a thread has begun.
        self._sent = self._begun = 0
        self._growth: asyncio.TimerHandle | None = None
        self._threads: list[threading.Thread] = []
        self._add_thread()

    @property
    def room(self) -> int:
        """How many works it takes now."""
        return self._room

    def start(self, work: Work, done: Done) -> None:
        """Take a work; `done` is called on the event loop."""
        self._room -= 1
        self._sent += 1
        self._tasks.put(_Task(work, done, self._sent))
        self._look_again()

    def _look_again(self) -> None:
        if self._growth is None and len(self._threads) < self._limit and self._begun < self._sent:
            self._growth = self._loop.call_later(_PATIENCE, self._grow, self._sent)

    def _grow(self, sent: int) -> None:
        """Add a thread where what was sent by then has still not been begun."""
        self._growth = None
        if self._begun < sent:
            self._add_thread()
        self._look_again()

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"handlers-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def take_back(self) -> list[tuple[Work, Done]]:
        """Hand back what was taken and not yet begun."""
        taken: list[tuple[Work, Done]] = []
        with suppress(Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    taken.append((task.work, task.done))
        self._room += len(taken)
        return taken

    def close(self) -> None:
        """End the threads that have nothing to do."""
        if self._growth is not None:
            self._growth.cancel()
        for _ in self._threads:
            self._tasks.put(None)

    def _serve(self) -> None:
        thread = threading.current_thread()
        name = thread.name
        while (task := self._tasks.get()) is not None:
            self._begun = task.number
            started = time.perf_counter()
            # For whoever looks at a process that hangs.
            thread.name = f"{name} {task.work.consumer.name}"
            outcome = self._outcome(task.work)
            thread.name = name
            self._reports.add(_Finished(task.done, task.work, outcome, time.perf_counter() - started))

    def _outcome(self, work: Work) -> Outcome:
        try:
            return self._run(work)
        except BaseException as error:  # noqa: BLE001 - a thread would end here, and its works be lost
            # A fault of ours, not of the handler: nothing is lost by it, and the thread goes on.
            _log.exception("%s: the run broke off", work.consumer.name)
            return given_back(work, f"the run broke off ({type(error).__name__})", pause=WORLD_PAUSE)

    def _make_room(self) -> None:
        self._room += 1


class TaskRunner:
    """Runs works of async workers as tasks, `limit` at once; none occupies a thread while it waits.

    `start` is `Executor.start`. Made on the event loop and used there only.
    """

    def __init__(self, start: Callable[[Work, Callable[[Outcome], None]], None], limit: int = 1_000) -> None:
        self._start = start
        self._room = limit
        self._is_closed = False
        self._reports = _Reports(self._make_room)

    @property
    def room(self) -> int:
        """How many works it takes now."""
        return 0 if self._is_closed else self._room

    def start(self, work: Work, done: Done) -> None:
        """Take a work; `done` is called on the event loop."""
        self._room -= 1
        started = time.perf_counter()

        def finish(outcome: Outcome) -> None:
            self._reports.add(_Finished(done, work, outcome, time.perf_counter() - started))

        self._start(work, finish)

    def take_back(self) -> list[tuple[Work, Done]]:
        """Hand back nothing: what was taken has begun."""
        return []

    def close(self) -> None:
        """Take nothing more. What still runs is waited for by nobody here; `Executor.close` cancels it."""
        self._is_closed = True

    def _make_room(self) -> None:
        self._room += 1


class ProcessRunner:
    """Runs works in the processes of a pool; when one dies, its works are given back and the pool is made anew."""

    def __init__(self, make_pool: Callable[[], PoolRunner]) -> None:
        self._make_pool = make_pool
        self._pool = make_pool()
        self._loop = asyncio.get_running_loop()

    @property
    def room(self) -> int:
        """How many works it takes now."""
        return self._pool.room

    def start(self, work: Work, done: Done) -> None:
        """Take a work; `done` is called on the event loop."""
        started = time.perf_counter()
        pool = self._pool

        def finish() -> None:
            outcome = self._collect(pool, work)
            done(work, outcome, time.perf_counter() - started)

        try:
            future = pool.begin(work)
        except WorldError as error:
            outcome = self._replace(pool, work, str(error))
            self._loop.call_soon(done, work, outcome, 0.0)
            return
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(finish))

    def _collect(self, pool: PoolRunner, work: Work) -> Outcome:
        try:
            return pool.end(work)
        except WorldError as error:
            return self._replace(pool, work, str(error))
        except Exception as error:  # noqa: BLE001 - a callback ends here, and its work would be lost
            _log.exception("%s: the answer of a process cannot be read", work.consumer.name)
            return given_back(work, f"the run broke off ({type(error).__name__})", pause=WORLD_PAUSE)

    def _replace(self, pool: PoolRunner, work: Work, reason: str) -> Outcome:
        if pool is self._pool:
            _log.error("%s; starting others", reason.partition(";")[0])
            try:
                self._pool = self._make_pool()
            except OSError as error:
                # No memory, no file descriptors: the next work tries again.
                _log.error("no process can be started: %s", error)
        return given_back(work, reason, pause=WORLD_PAUSE)

    def take_back(self) -> list[tuple[Work, Done]]:
        """Hand back nothing: what a process was sent is as good as begun."""
        return []

    def close(self, *, at_once: bool = False) -> None:
        """End the processes."""
        self._pool.close(at_once=at_once)
