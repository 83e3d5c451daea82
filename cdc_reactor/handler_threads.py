"""The threads that teams' functions need: with a limit of time, with an event loop, or for what blocks beside one.

All are daemons: a function that never comes back keeps no process alive, only its own thread. Nothing here knows
batches, messages or transactions. Neighbours: `execution` owns them, `runners` has the daemon's own threads.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from cdc_reactor.errors import HandlerTimeout, WorldError

T = TypeVar("T")

# How long the end waits, in seconds, for tasks that handlers left behind and that heed no cancellation.
_LOOP_PATIENCE = 2.0
# How many threads commit, parse and hand over for tasks; a database's pool is seldom larger.
_BESIDE = 4


class Timed(Protocol):
    """What may run for so long: a handler or a worker."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def timeout(self) -> float | None:
        """How long a run may take, in seconds; None for as long as it likes."""

    @property
    def place(self) -> str:
        """File and line of the function."""


def too_long(timed: Timed) -> HandlerTimeout:
    """Make the error of what took longer than it may."""
    return HandlerTimeout(f"{timed.name} took longer than its timeout of {timed.timeout:g} s ({timed.place})")


def refuse_awaitable(result: object, timed: Timed) -> None:
    """Raise TypeError where a function returned what nobody awaits."""
    if result is not None and inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"{timed.name} returned an awaitable that nobody awaits: make it async def ({timed.place})")


class Race:
    """Between a handler that returns and the clock that gives it up, one wins: only the winner decides the commit."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def win(self) -> bool:
        """Tell whether nobody came before."""
        return self._lock.acquire(blocking=False)

    def arrive(self, timed: Timed) -> None:
        """Win for the handler; HandlerTimeout where the clock has won."""
        if not self.win():
            raise HandlerTimeout(f"{timed.name} came back after its time; what it wrote is rolled back")


class TimedThread:
    """A thread that can be waited for with a limit, and left behind when it does not come back."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[_Answer[Any]]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="handler", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T], timed: Timed, race: Race) -> T:
        """Call a function there; HandlerTimeout after the handler's timeout, when it may still be running."""
        answers: SimpleQueue[_Answer[T]] = SimpleQueue()
        self._calls.put((function, answers))
        try:
            answer = answers.get(timeout=timed.timeout)
        except Empty:
            if race.win():
                self.stop()
                raise too_long(timed) from None
            answer = answers.get()
        return answer.value()

    def stop(self) -> None:
        """End the thread once it has nothing to do."""
        self._calls.put(None)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answers = call
            answers.put(_Answer.of(function))


class _Answer(Generic[T]):
    """What a function returned or raised, on its way to another thread."""

    __slots__ = ("_error", "_result")

    def __init__(self, result: T | None, error: BaseException | None = None) -> None:
        self._result = result
        self._error = error

    @classmethod
    def of(cls, function: Callable[[], T]) -> _Answer[T]:
        try:
            return cls(function())
        except BaseException as error:  # noqa: BLE001 - a thread ends here; whoever waits raises it
            return cls(None, error)

    def value(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # a result of T where there is no error


# How many runs of one function may be out that did not come back in time.
_MOST_LEFT = 8


class LeftBehind:
    """Threads that were given up and have not ended, by the function that they run; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[str, list[TimedThread]] = {}

    def add(self, timed: Timed, thread: TimedThread) -> None:
        """Remember a thread that did not come back."""
        with self._lock:
            self._threads.setdefault(timed.name, []).append(thread)

    def check(self, timed: Timed) -> None:
        """Refuse another run of a function that has too many of them out: threads and connections would run out.

        Raises:
            WorldError: it has.
        """
        if timed.name not in self._threads:
            return
        with self._lock:
            alive = self._threads[timed.name] = [t for t in self._threads[timed.name] if t.is_alive]
        if len(alive) >= _MOST_LEFT:
            raise WorldError(
                f"{len(alive)} runs of {timed.name} did not come back after their timeout and are still out; it waits "
                f"until one does. Give what it calls timeouts of their own ({timed.place})"
            )


async def in_time(timed: Timed, awaitable: Awaitable[T]) -> T:
    """Await an async function to its end; HandlerTimeout after its timeout, when it has been cancelled."""
    limit = asyncio.timeout(timed.timeout)
    try:
        async with limit:
            result = await awaitable
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise too_long(timed) from error
    if limit.expired():
        raise too_long(timed)
    return result


class AsyncThread:
    """The event loop of async handlers and workers, in a thread of its own, and a few threads for what blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # The loop itself forgets tasks that nobody else refers to.
        self._tasks: set[asyncio.Task[None]] = set()
        self._beside = _Beside(self._loop)
        #: Whether what is still running is being cancelled.
        self.is_closing = False
        self._thread = threading.Thread(target=self._serve, name="async-handlers", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, from another thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(_answer(coroutine), self._loop).result().value()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine there, which raises nothing, and return at once."""
        self._loop.call_soon_threadsafe(self._add_task, coroutine)

    def _add_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def beside(self, function: Callable[[], T]) -> T:
        """Call from a task what blocks, in one of a few threads, and wait for it, even where the task is cancelled.

        So what a task owns is never in two threads at once. When the loop is over, it is called here.
        """
        if self._loop.is_closed():
            return function()
        future = self._beside.call(function)
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(future)
        return future.result().value()

    def close(self) -> None:
        """Cancel what handlers left running, and end the threads; one that does not come back is left behind."""
        self.is_closing = True
        self.start(self._end())
        self._thread.join(timeout=2 * _LOOP_PATIENCE)

    def _serve(self) -> None:
        # Closed where it ran, so that it is closed even when it comes back late.
        self._loop.run_forever()
        self._loop.close()

    async def _end(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOP_PATIENCE):
                await _cancel_all()
        self._beside.close()
        self._loop.stop()


async def _answer(coroutine: Coroutine[Any, Any, T]) -> _Answer[T]:
    # What ends the process would end the loop, and all async handlers with it, where a task raised it.
    try:
        return _Answer(await coroutine)
    except (SystemExit, KeyboardInterrupt) as error:
        return _Answer(None, error)


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        # Not `gather`, which would itself wait for tasks that heed no cancellation.
        ended, _ = await asyncio.wait(left)
        for task in ended:
            # Nobody else asks, and asyncio complains of what nobody asked for.
            task.cancelled() or task.exception()
    await asyncio.get_running_loop().shutdown_asyncgens()


class _Beside:
    """A few threads for calls that block; used on the loop only.

    Not a ThreadPoolExecutor: the end of a process waits for the threads of one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[_Answer[Any]]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting = 0

    def call(self, function: Callable[[], T]) -> asyncio.Future[_Answer[T]]:
        future: asyncio.Future[_Answer[T]] = self._loop.create_future()
        self._waiting += 1
        if self._waiting > len(self._threads) < _BESIDE:
            name = f"async-handlers-beside-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()
        self._calls.put((function, future))
        return future

    def close(self) -> None:
        for _ in self._threads:
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            answer = _Answer.of(function)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._report, future, answer)

    def _report(self, future: asyncio.Future[_Answer[Any]], answer: _Answer[Any]) -> None:
        self._waiting -= 1
        if not future.done():
            future.set_result(answer)
