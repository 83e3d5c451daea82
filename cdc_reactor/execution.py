"""One Work through its handler: transaction, failures, isolation of the poisoned → Outcome.

Here the I/O begins. A run gets one database transaction, committed after the handler returned and before its events
are handed on. A batch that fails is rolled back and split, so that one poisoned change costs about 2·log₂ n runs and
only its own delivery; what stands behind it in its lane is given back. Errors of the world (the database is down) are
no fault of the data: the whole work is given back uncounted and the handler pauses.

Works of workers go to `worker_execution`, which means the same by each failure (`failures`) and ends a run in the same
way (`transactions`).

No exception of a handler leaves `Executor.run`, `sys.exit()` included: a handler may end its run, not the daemon. Only
KeyboardInterrupt does, after the rollback, for it is a person's and not the handler's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine

from cdc_reactor.causes import BatchCause
from cdc_reactor.errors import DecodeError, HandlerTimeout, Reject, Retry, SenderError
from cdc_reactor.events import Publication
from cdc_reactor.experiments import ExperimentClient
from cdc_reactor.failures import WORLD_PAUSE, judge, place_of, world_reason
from cdc_reactor.handler_threads import AsyncThread, LeftBehind, Race, Timed, TimedThread, in_time, refuse_awaitable
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Verdict
from cdc_reactor.reactor import Failure, Outcome, Work
from cdc_reactor.transactions import Clock, Resources, Transaction, utc_now
from cdc_reactor.worker_execution import WorkerExecution
from cdc_reactor.workers import Worker

if TYPE_CHECKING:
    from cdc_reactor.notification_delivery import NotificationDelivery

__all__ = ["WORLD_PAUSE", "Executor", "place_of"]

T = TypeVar("T")

_log = logging.getLogger("cdc_reactor")


class Executor:
    """Runs works of handlers and workers; thread-safe, one work at a time in each calling thread. Close it when done.

    `engine` is what `ctx.session` connects to; `commit=False` rolls every transaction back (a dry run); `clock` gives
    `ctx.now`; `experiments` is what `ctx.experiments` asks; `delivery` takes what notification workers return, which
    without it is published by `ctx.publish`.
    """

    def __init__(
        self,
        engine: Engine | None,
        *,
        commit: bool = True,
        clock: Clock = utc_now,
        experiments: ExperimentClient | None = None,
        delivery: NotificationDelivery | None = None,
    ) -> None:
        self._resources = Resources(engine, commit, clock, experiments, delivery)
        self._workers = WorkerExecution(self._resources)
        self._local = threading.local()
        self._threads: list[TimedThread] = []
        self._left = LeftBehind()
        self._async: AsyncThread | None = None
        self._lock = threading.Lock()

    def run(self, work: Work) -> Outcome:
        """Run the handler until every change of the work has its verdict; never raises for a handler's failure.

        An async worker's run is waited for.
        """
        worker = work.consumer
        if not isinstance(worker, Worker):
            return _Run(self, work).outcome()
        if worker.is_async:
            thread = self._async_thread()
            return thread.call(self._workers.run_async(work, thread))
        return self._workers.outcome(lambda: self._in_time(worker, lambda race: self._workers.run(work, race)))

    def start(self, work: Work, done: Callable[[Outcome], None]) -> None:
        """Start an async worker's run as a task, which occupies no thread while it waits, and return at once.

        `done` is called with what `run` would have returned, in the event loop's thread, and must not block. A run that
        `close` cancels has given its message back; one that heeds no cancellation does not come back.
        """
        assert work.consumer.is_async, "only async workers wait without a thread"
        thread = self._async_thread()
        thread.start(self._to_the_end(work, thread, done))

    async def _to_the_end(self, work: Work, thread: AsyncThread, done: Callable[[Outcome], None]) -> None:
        try:
            outcome = await self._workers.run_async(work, thread)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - a task ends here, and its work would be lost
            # A fault of ours, or the end of the process.
            _log.exception("%s: the run broke off", work.consumer.name)
            reason = f"the run broke off ({type(error).__name__})"
            outcome = Outcome((Verdict.NACK,), pause=WORLD_PAUSE, pause_reason=reason)
        done(outcome)

    def close(self) -> None:
        """Stop the threads that handlers needed; one whose handler never came back is left behind."""
        for thread in self._threads:
            thread.stop()
        if self._async is not None:
            self._async.close()

    def attempt(self, handler: Handler[Any], cause: BatchCause, attempt: int) -> list[Publication]:
        """Run a handler once in one transaction; return its events, or raise what it raised after a rollback."""

        def run(race: Race) -> list[Publication]:
            about = {"table": str(handler.table_id)}
            with Transaction(
                self._resources,
                handler=handler.name,
                about=about,
                attempt=attempt,
                cause=cause,
                on_loop=handler.is_async,
            ) as transaction:
                result = handler(cause.batch(), transaction.ctx)
                if handler.is_async:
                    assert result is not None, "an async def returns a coroutine"
                    self._async_thread().call(in_time(handler, result))
                else:
                    refuse_awaitable(result, handler)
                    race.arrive(handler)
                transaction.finish()
                return transaction.ctx.publications

        return run(Race()) if handler.is_async else self._in_time(handler, run)

    def _in_time(self, timed: Timed, run: Callable[[Race], T]) -> T:
        """Run here what may take any time, and in a thread that can be left behind what may not."""
        race = Race()
        if timed.timeout is None:
            return run(race)
        self._left.check(timed)
        thread = self._timed_thread()
        try:
            return thread.call(lambda: run(race), timed, race)
        except HandlerTimeout:
            with self._lock, suppress(ValueError):
                self._threads.remove(thread)
            self._local.thread = None
            self._left.add(timed, thread)
            raise

    def _timed_thread(self) -> TimedThread:
        thread: TimedThread | None = getattr(self._local, "thread", None)
        if thread is None:
            thread = self._local.thread = TimedThread()
            with self._lock:
                self._threads.append(thread)
        return thread

    def _async_thread(self) -> AsyncThread:
        with self._lock:
            if self._async is None:
                self._async = AsyncThread()
            return self._async


class _Part:
    """Changes to be run together, by index; `sister` is the other half of a part that failed."""

    __slots__ = ("indices", "is_known_to_fail", "sister")

    def __init__(self, indices: list[int], sister: _Part | None = None) -> None:
        self.indices = indices
        self.sister = sister
        self.is_known_to_fail = False

    def halves(self) -> list[_Part]:
        """Split in two, the earlier half last (on top of the stack)."""
        middle = len(self.indices) // 2
        later = _Part(self.indices[middle:])
        return [later, _Part(self.indices[:middle], sister=later)]


class _Run:
    """One work on its way to an Outcome: what is still to be run, and what has its verdict."""

    def __init__(self, executor: Executor, work: Work) -> None:
        self._executor = executor
        self._attempt = work.attempt
        self._handler: Handler[Any] = work.consumer
        self._subjects = work.subjects
        self._held = work.held
        self._verdicts = [Verdict.NACK] * len(self._subjects)
        self._failures: dict[int, Failure] = {}
        self._events: list[Publication] = []
        # Lanes that are held, each with the index of the change that they wait for.
        self._blocked: dict[Hashable, int] = {}
        self._runs = 0

    def outcome(self) -> Outcome:
        """Run everything; the earliest part is always on top of the stack, so that lanes keep their order."""
        parts = [_Part(list(range(len(self._subjects))))]
        while parts:
            part = parts.pop()
            if self._blocked:
                part.indices = [i for i in part.indices if not self._is_behind(i)]
            if not part.indices:
                continue
            if part.is_known_to_fail and len(part.indices) > 1:
                parts.extend(part.halves())
                continue
            try:
                self._apply(part)
            except (Retry, Reject) as wish:
                parts.extend(self._grant(wish, part))
            except SenderError as error:
                parts.extend(self._blame(error, part))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a handler ends here; its failure becomes the Outcome
                if (reason := world_reason(error)) is not None:
                    return self._result(pause=WORLD_PAUSE, pause_reason=reason)
                parts.extend(self._split(error, part))
        return self._result()

    def _apply(self, part: _Part) -> None:
        self._runs += 1
        is_whole = len(part.indices) == len(self._subjects)
        subjects = self._subjects if is_whole else [self._subjects[i] for i in part.indices]
        held = self._held if is_whole else [self._held[i] for i in part.indices]
        self._events.extend(self._executor.attempt(self._handler, BatchCause(held, subjects), self._attempt))
        if is_whole:
            self._verdicts = [Verdict.ACK] * len(self._subjects)
        else:
            for i in part.indices:
                self._verdicts[i] = Verdict.ACK
        if part.sister is not None:
            # Both halves failed together and this one did not: the other need not be tried whole.
            part.sister.is_known_to_fail = True

    def _is_behind(self, index: int) -> bool:
        """Tell whether an earlier change of its lane failed; those before that one can still be applied."""
        blocked_by = self._blocked.get(self._held[index].lane)
        return blocked_by is not None and index >= blocked_by

    def _split(self, error: BaseException, part: _Part) -> list[_Part]:
        if len(part.indices) > 1:
            return part.halves()
        self._fail(part.indices[0], *judge(error))
        return []

    def _grant(self, wish: Retry | Reject, part: _Part) -> list[_Part]:
        """Mark the changes that the handler named; run the others again without them."""
        named = None if wish.changes is None else set(map(id, wish.changes))
        chosen = [i for i in part.indices if named is None or id(self._subjects[i]) in named]
        if not chosen:
            error = ValueError(
                f"{self._handler.name} raised {type(wish).__name__} for changes that are not in its batch"
            )
            return self._split(error, part)
        for i in chosen:
            if not self._is_behind(i):
                self._fail(i, *judge(wish))
        return self._without(chosen, part)

    def _blame(self, error: SenderError, part: _Part) -> list[_Part]:
        """Settle the one change that cannot be read, where it is known; no second try would read it."""
        change = error.change if isinstance(error, DecodeError) else None
        guilty = [i for i in part.indices if self._subjects[i] is change] or part.indices
        if len(guilty) > 1:
            return part.halves()
        self._fail(guilty[0], *judge(error))
        return self._without(guilty, part)

    @staticmethod
    def _without(settled: list[int], part: _Part) -> list[_Part]:
        rest = [i for i in part.indices if i not in settled]
        return [_Part(rest)] if rest else []

    def _fail(self, index: int, verdict: Verdict, failure: Failure) -> None:
        self._verdicts[index] = verdict
        self._failures[index] = failure
        # A change that is skipped lets its lane go on; any other holds what stands behind it.
        if verdict is Verdict.NACK or self._handler.on_poison != "skip":
            self._blocked[self._held[index].lane] = index

    def _result(self, *, pause: float | None = None, pause_reason: str = "") -> Outcome:
        return Outcome(
            self._verdicts, self._failures, self._events, runs=self._runs, pause=pause, pause_reason=pause_reason
        )
