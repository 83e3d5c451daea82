"""One Work through its handler: transaction, failures, isolation of the poisoned → Outcome.

Here the I/O begins. A run gets one database transaction, committed after the handler returned and before its events
are handed on. A batch that fails is rolled back and split, so that one poisoned change costs about 2·log₂ n runs and
only its own delivery; what stands behind it in its lane is given back. Errors of the world (the database is down) are
no fault of the data: the whole work is given back uncounted and the handler pauses.

No exception of a handler leaves `Executor.run`, `sys.exit()` included: a handler may end its run, not the daemon. Only
KeyboardInterrupt does, after the rollback, for it is a person's and not the handler's.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sqlite3
import sysconfig
import threading
import traceback
from collections.abc import Callable, Hashable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.orm import Session

from cdc_reactor.changes import Batch
from cdc_reactor.errors import DecodeError, HandlerTimeout, Reject, Retry, SenderError, WorldError
from cdc_reactor.events import Publication
from cdc_reactor.handlers import Context, Handler
from cdc_reactor.messages import Verdict
from cdc_reactor.reactor import Failure, Outcome, Work

_log = logging.getLogger("cdc_reactor")

_Invoke: TypeAlias = Callable[[Handler[Any], Batch[Any], Context], None]
_Answer: TypeAlias = tuple[list[Publication], BaseException | None]
_Clock: TypeAlias = Callable[[], datetime]

# How long the end waits, in seconds, for tasks that handlers left behind and that heed no cancellation.
_LOOP_PATIENCE = 2.0

#: How long a handler pauses when the world fails, in seconds.
WORLD_PAUSE = 1.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Executor:
    """Runs works; thread-safe, one work at a time in each calling thread. Close it when done.

    `engine` is what `ctx.session` connects to; `commit=False` rolls every transaction back (a dry run); `clock` gives
    `ctx.now`.
    """

    def __init__(self, engine: Engine | None, *, commit: bool = True, clock: _Clock = _utc_now) -> None:
        self._engine = engine
        self._commit = commit
        self._clock = clock
        self._local = threading.local()
        self._runners: list[_Runner] = []
        self._loop: _Loop | None = None
        self._lock = threading.Lock()

    def run(self, work: Work) -> Outcome:
        """Run the handler until every change of the work has its verdict; never raises for a handler's failure."""
        return _Run(self, work).outcome()

    def close(self) -> None:
        """Stop the threads that handlers needed; one whose handler never came back is left behind."""
        for runner in self._runners:
            runner.stop()
        if self._loop is not None:
            self._loop.close()

    def attempt(self, handler: Handler[Any], batch: Batch[Any], attempt: int) -> list[Publication]:
        """Run a handler once in one transaction; return its events, or raise what it raised after a rollback."""
        if handler.is_async:
            return self._in_transaction(handler, batch, attempt, self._event_loop().wait)
        if handler.timeout is None:
            return self._in_transaction(handler, batch, attempt, _call)
        race = _Race()
        try:
            return self._runner().call(
                lambda: self._in_transaction(handler, batch, attempt, _call, race), handler, race
            )
        except HandlerTimeout:
            with self._lock, suppress(ValueError):
                self._runners.remove(self._local.runner)
            self._local.runner = None
            raise

    def _in_transaction(
        self, handler: Handler[Any], batch: Batch[Any], attempt: int, invoke: _Invoke, race: _Race | None = None
    ) -> list[Publication]:
        with ExitStack() as stack:
            opened: list[Session] = []

            def open_session() -> Session:
                if not opened:
                    opened.append(stack.enter_context(Session(self._given_engine(handler))))
                return opened[0]

            ctx = Context(
                handler=handler.name,
                log=logging.LoggerAdapter(_log, {"handler": handler.name, "table": str(handler.table_id)}),
                now=self._clock(),
                open_session=open_session,
                attempt=attempt,
            )
            invoke(handler, batch, ctx)
            if race is not None and not race.win():
                raise HandlerTimeout(f"{handler.name} came back after its time; what it wrote is rolled back")
            if opened:
                self._end(opened[0])
            return ctx.publications

    def _given_engine(self, handler: Handler[Any]) -> Engine:
        if self._engine is None:
            raise WorldError(f"{handler.name} uses ctx.session and no database is given; add --database-url URL")
        return self._engine

    def _end(self, session: Session) -> None:
        if self._commit:
            session.commit()
        else:
            session.flush()
            session.rollback()

    def _runner(self) -> _Runner:
        runner: _Runner | None = getattr(self._local, "runner", None)
        if runner is None:
            runner = self._local.runner = _Runner()
            with self._lock:
                self._runners.append(runner)
        return runner

    def _event_loop(self) -> _Loop:
        with self._lock:
            if self._loop is None:
                self._loop = _Loop()
            return self._loop


def _call(handler: Handler[Any], batch: Batch[Any], ctx: Context) -> None:
    result: object = handler(batch, ctx)
    if result is not None and inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"{handler.name} returned an awaitable that nobody awaits: make it async def ({handler.place})")


class _Race:
    """Between a handler that returns and the clock that gives it up, one wins: only the winner decides the commit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def win(self) -> bool:
        return self._lock.acquire(blocking=False)


class _Runner:
    """A thread that can be waited for with a limit, and left behind when it does not come back."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], list[Publication]], SimpleQueue[_Answer]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="handler", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], list[Publication]], handler: Handler[Any], race: _Race) -> list[Publication]:
        """Call a function there; HandlerTimeout after the handler's timeout, when it may still be running."""
        answers: SimpleQueue[_Answer] = SimpleQueue()
        self._calls.put((function, answers))
        try:
            result, error = answers.get(timeout=handler.timeout)
        except Empty:
            if race.win():
                self.stop()
                raise _too_long(handler) from None
            result, error = answers.get()
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End the thread once it has nothing to do."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answers = call
            try:
                answers.put((function(), None))
            except BaseException as error:  # noqa: BLE001 - a thread ends here; the caller raises it
                answers.put(([], error))


def _too_long(handler: Handler[Any]) -> HandlerTimeout:
    return HandlerTimeout(f"{handler.name} took longer than its timeout of {handler.timeout:g} s ({handler.place})")


class _Loop:
    """The event loop of async handlers, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-handlers", daemon=True)
        self._thread.start()

    def wait(self, handler: Handler[Any], batch: Batch[Any], ctx: Context) -> None:
        """Run an async handler to its end; HandlerTimeout after its timeout, when it has been cancelled."""

        async def bounded() -> BaseException | None:
            result = handler(batch, ctx)
            assert result is not None, "an async def returns a coroutine"
            limit = asyncio.timeout(handler.timeout)
            try:
                async with limit:
                    await result
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise _too_long(handler) from error
            except (SystemExit, KeyboardInterrupt) as error:
                # Raised in a task, these would end the loop, and all async handlers with it.
                return error
            if limit.expired():
                raise _too_long(handler)
            return None

        error = asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        if error is not None:
            raise error

    def close(self) -> None:
        """Cancel what handlers left running, and end the thread."""
        cancelled = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        with suppress(TimeoutError):
            cancelled.result(timeout=_LOOP_PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_LOOP_PATIENCE)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


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
                if (reason := _world_reason(error)) is not None:
                    return self._result(pause=WORLD_PAUSE, pause_reason=reason)
                parts.extend(self._split(error, part))
        return self._result()

    def _apply(self, part: _Part) -> None:
        self._runs += 1
        is_whole = len(part.indices) == len(self._subjects)
        batch = Batch(self._subjects if is_whole else [self._subjects[i] for i in part.indices])
        self._events.extend(self._executor.attempt(self._handler, batch, self._attempt))
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
        self._fail(part.indices[0], Verdict.NACK, Failure(error, reason=_describe(error)))
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
        if isinstance(wish, Reject):
            verdict, failure = Verdict.DEAD_LETTER, Failure(wish)
        else:
            verdict, failure = Verdict.NACK, Failure(wish, wish.delay)
        for i in chosen:
            if not self._is_behind(i):
                self._fail(i, verdict, failure)
        return self._without(chosen, part)

    def _blame(self, error: SenderError, part: _Part) -> list[_Part]:
        """Settle the one change that cannot be read, where it is known; no second try would read it."""
        change = error.change if isinstance(error, DecodeError) else None
        guilty = [i for i in part.indices if self._subjects[i] is change] or part.indices
        if len(guilty) > 1:
            return part.halves()
        self._fail(guilty[0], Verdict.DEAD_LETTER, Failure(error))
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


def _describe(error: BaseException) -> str:
    """Tell of a handler's failure its class, the team's own line, and its text where that is no row data."""
    place = place_of(error)
    text = _text_without_row_data(error)
    return f"{type(error).__name__}{place and f' at {place}'}{f': {text}' if text else ''}"


def place_of(error: BaseException) -> str:
    """Name file and line of the team's own code that an error came from; empty where it passed none."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next(
        (f"{Path(f.filename).name}:{f.lineno}" for f in frames if not f.filename.startswith(_NOT_THE_TEAMS)), ""
    )


# This package's and other packages' files; what remains is the team's.
_NOT_THE_TEAMS = (str(Path(__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))


def _text_without_row_data(error: BaseException) -> str:
    if isinstance(error, DBAPIError):
        # The first line of the driver's own message, less what it quotes; DETAIL and parameters come after it.
        return re.sub(r'"[^"]*"$', '"…"', str(error.orig).strip().partition("\n")[0])
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:4])
        return f"{error.title} is not valid: {told}"
    if isinstance(error, LookupError | ValueError):
        # KeyError('ada@forum.example'), invalid literal for int(): 'ada'. Python puts the value itself there.
        return ""
    try:
        return str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 - a team's own __str__ ends here
        return ""


def _world_reason(error: BaseException) -> str | None:
    """Say what of the world failed, or None where the data or the handler is to blame."""
    if isinstance(error, WorldError):
        return str(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return f"the database connection was lost ({type(error.orig).__name__})"
    if isinstance(error, InterfaceError) or (isinstance(error, OperationalError) and _is_connection_trouble(error)):
        return f"the database does not answer ({type(error.orig).__name__})"
    if isinstance(error, DBAPIError) and _is_not_set_up(error):
        return (
            f"the database is not set up for this handler: {str(error.orig).strip().partition(chr(10))[0]}; run its "
            "migrations (replay: --create-tables), or grant what it needs"
        )
    if isinstance(error, NoFreeConnection):
        return "no database connection became free"
    return None


# SQLSTATE classes of trouble that is not the statement's: connection, resources, operator intervention, system.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_WORLD_CLASSES = ("08", "53", "57", "58")
# Of these, `statement_timeout` is the statement's own after all.
_QUERY_CANCELED = "57014"

# https://www.sqlite.org/rescode.html; the text is no guide: "no such table: disk" is a handler's mistake.
_WORLD_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


# A table or schema that is not there or may not be touched: a migration or a grant is missing, no row is to blame.
_NOT_SET_UP = ("42P01", "3F000", "42501", "28000", "28P01")


def _is_not_set_up(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return str(error.orig).startswith("no such table")
    return getattr(error.orig, "sqlstate", None) in _NOT_SET_UP


def _is_connection_trouble(error: OperationalError) -> bool:
    cause = error.orig
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_WORLD_CLASSES) and state != _QUERY_CANCELED
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code, the rest tells its kinds apart.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _WORLD_CODES
    # psycopg gives no SQLSTATE for a connection that was never made.
    return type(cause).__module__.startswith("psycopg")
