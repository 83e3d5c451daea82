"""Works in other processes: the reactor stays here, handlers run there.

Lanes, batches, retries and settlements are decided in one place, so order per lane holds however many processes there
are. A work travels as the messages of its changes and is decoded again where it runs; the outcome comes back. Errors
travel as their class and text, because not every exception can be pickled.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_any
from threading import Thread
from typing import Any, NamedTuple, TypeAlias

from cdc_reactor.avro import schema_key
from cdc_reactor.changes import CHANGE_OF, RowReader
from cdc_reactor.columns import Placeholder
from cdc_reactor.database import open_engine
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import discover
from cdc_reactor.envelope import Envelope
from cdc_reactor.errors import RemoteFailure, WorldError
from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.execution import Executor
from cdc_reactor.handlers import Handler
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.reactor import Failure, Held, Outcome, Route, Work
from cdc_reactor.schemas import SchemaStore


class Setup(NamedTuple):
    """What a process needs to run works as its parent would."""

    targets: Sequence[str]
    database_url: str | None
    commit: bool
    placeholder: str
    unwrapped_prefix: str
    max_bytes: int


# A schema id, or a Pub/Sub schema's name and revision.
_SchemaKey: TypeAlias = int | tuple[str, str]


class _Task(NamedTuple):
    table: str
    handler: str
    messages: Sequence[tuple[bytes, Mapping[str, str], str, str]]
    lanes: Sequence[int]
    attempt: int
    schemas: Mapping[_SchemaKey, Any]


class _Answer(NamedTuple):
    verdicts: Sequence[int]
    failures: Mapping[int, tuple[str, str, float | None]]
    events: Sequence[EncodedEvent]
    runs: int
    pause: float | None
    pause_reason: str


class PoolRunner:
    """Runs works in `processes` processes; close it when done."""

    def __init__(self, setup: Setup, processes: int, schemas: SchemaStore | None = None) -> None:
        self._processes = processes
        self._schemas = schemas
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(setup,))
        self._running: dict[Future[_Answer], Work] = {}
        self._begun: dict[Work, Future[_Answer]] = {}
        # Started now, and deaf to Ctrl-C from their first moment: what is ignored here is ignored there.
        earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(processes):
                self._pool.submit(_do_nothing)
        finally:
            signal.signal(signal.SIGINT, earlier)

    @property
    def room(self) -> int:
        """Two works for each process, so that none waits for us."""
        return 2 * self._processes - len(self._running) - len(self._begun)

    def submit(self, work: Work) -> None:
        """Send a work to the next free process, to be collected."""
        self._running[self._send(work)] = work

    def begin(self, work: Work) -> Future[Any]:
        """Send a work to the next free process; once the future is done, `end` tells what became of it.

        Raises:
            WorldError: a process died; the pool is of no use any more.
        """
        future = self._begun[work] = self._send(work)
        return future

    def end(self, work: Work) -> Outcome:
        """Tell what became of a work that was begun; WorldError where its process died."""
        try:
            return _unpack(self._begun.pop(work).result())
        except (BrokenExecutor, CancelledError) as error:
            raise self._died() from error

    def _send(self, work: Work) -> Future[_Answer]:
        try:
            return self._pool.submit(_run, self._pack(work))
        except BrokenExecutor as error:
            raise self._died() from error

    def collect(self, timeout: float | None) -> list[tuple[Work, Outcome]]:
        """Hand back works that are done; wait for one, at most `timeout` seconds, where there is none yet."""
        if not self._running:
            return []
        done, _ = wait(self._running, timeout, return_when=FIRST_COMPLETED)
        try:
            return [(self._running.pop(future), _unpack(future.result())) for future in list(done)]
        except BrokenExecutor as error:
            raise self._died() from error

    def close(self, *, at_once: bool = False) -> None:
        """End the processes; what they still run is finished (or not, `at_once`), what waits is not begun."""
        if at_once:
            self._kill()
        self._pool.shutdown(wait=not at_once, cancel_futures=True)

    def _kill(self) -> None:
        for process in list((self._pool._processes or {}).values()):  # noqa: SLF001 - Python 3.14 has kill_workers
            process.kill()

    def _died(self) -> WorldError:
        # The others heed no SIGTERM, with which the pool would end them.
        self._kill()
        return WorldError("a worker process died (killed, or out of memory); nothing is lost: run it again")

    def _pack(self, work: Work) -> _Task:
        numbers: dict[Any, int] = {}
        messages = [held.delivery.message for held in work.held]
        return _Task(
            table=str(work.consumer.table_id),
            handler=work.consumer.name,
            messages=[(m.data, dict(m.attributes), m.ordering_key, m.message_id) for m in messages],
            lanes=[numbers.setdefault(lane, len(numbers)) for lane in work.lanes],
            attempt=work.attempt,
            schemas=self._needed_schemas(messages),
        )

    def _needed_schemas(self, messages: Sequence[Message]) -> dict[_SchemaKey, Any]:
        if self._schemas is None:
            return {}
        found: dict[_SchemaKey, Any] = {}
        for message in messages:
            key = schema_key(message)
            if key is not None and key not in found:
                found[key] = self._schemas.named(*key) if isinstance(key, tuple) else self._schemas.schema(key)
        return found


def _unpack(answer: _Answer) -> Outcome:
    failures = {i: Failure(RemoteFailure(name, text), delay) for i, (name, text, delay) in answer.failures.items()}
    return Outcome(
        [Verdict(v) for v in answer.verdicts],
        failures,
        answer.events,
        runs=answer.runs,
        pause=answer.pause,
        pause_reason=answer.pause_reason,
    )


class _SentSchemas:
    """The writer schemas that came with the tasks."""

    def __init__(self) -> None:
        self.found: dict[_SchemaKey, Any] = {}

    def schema(self, schema_id: int) -> Any:
        return self.found[schema_id]

    def named(self, name: str, revision: str) -> Any:
        return self.found[name, revision]


class _Process:
    """What one process keeps between works."""

    def __init__(self, setup: Setup) -> None:
        found = discover(setup.targets)
        self._handlers = {(str(h.table_id), h.name): h for h in found.handlers}
        self._schemas = _SentSchemas()
        placeholder = Placeholder(setup.placeholder)
        self._decoder = Decoder(
            schemas=self._schemas,
            placeholder=placeholder,
            unwrapped_prefix=setup.unwrapped_prefix,
            max_bytes=setup.max_bytes,
        )
        self._readers: dict[Any, RowReader[Any]] = {}
        engine = None if setup.database_url is None else open_engine(setup.database_url)
        self._executor = Executor(engine, commit=setup.commit)

    def run(self, task: _Task) -> _Answer:
        handler = self._handlers[task.table, task.handler]
        self._schemas.found.update(task.schemas)
        route = Route(task.table, (handler,))
        held = [
            Held(delivery, self._change(delivery.message, handler), route, lane)
            for delivery, lane in zip(_deliveries(task), task.lanes, strict=True)
        ]
        outcome = self._executor.run(Work(handler, held, None, task.attempt))
        failures = {i: (type(f.error).__name__, f.told, f.delay) for i, f in outcome.failures.items()}
        return _Answer(
            [int(v) for v in outcome.verdicts],
            failures,
            [EncodedEvent.of(event) for event in outcome.events if isinstance(event, Publication)],
            outcome.runs,
            outcome.pause,
            outcome.pause_reason,
        )

    def _change(self, message: Message, handler: Handler[Any]) -> Any:
        envelope = self._decoder.decode(message)
        assert type(envelope) is Envelope, "only changes become work"
        reader = self._readers.get(handler.row)
        if reader is None:
            reader = self._readers[handler.row] = RowReader(handler.row, self._decoder.placeholder)
        return CHANGE_OF[envelope.op](envelope, reader)


def _deliveries(task: _Task) -> list[Delivery]:
    return [
        Delivery(Message(data, attributes, ordering_key, message_id), n)
        for n, (data, attributes, ordering_key, message_id) in enumerate(task.messages)
    ]


_process: _Process | None = None


def _start(setup: Setup) -> None:
    global _process  # noqa: PLW0603 - one for each process, made when it starts
    # Ctrl-C and a service manager's SIGTERM reach the whole group; the parent decides what is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _process = _Process(setup)


def _end_with_parent() -> None:
    """End at once when the parent is gone: another replay may handle the same rows by then."""
    parent = parent_process()
    if parent is not None:
        wait_for_any((parent.sentinel,))
        os._exit(1)


def _do_nothing() -> None:
    """Make the pool start a process."""


def _run(task: _Task) -> _Answer:
    assert _process is not None, "the pool starts its processes"
    return _process.run(task)
