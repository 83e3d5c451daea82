"""Captured files through the reactor: read, route, batch, execute, settle.

The same core as the daemon's, driven from files instead of a stream. One capture is settled before the next begins,
so that every count belongs to a file and a checkpoint is one number for each. What a replay can not do is lose
something: a message counts as settled only after its handler's transaction, its events and its dead letter are on
disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal, Protocol, TypeAlias, cast

from cdc_reactor.captures import Capture, CaptureError, Unreadable
from cdc_reactor.checkpoint import Checkpoint, Watermark
from cdc_reactor.errors import DecodeError, WorldError
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.outputs import DeadLetters, EventLog
from cdc_reactor.reactor import Backoff, Outcome, Reactor, Work
from cdc_reactor.report import Counts, HandlerCounts, Report
from cdc_reactor.routing import CdcRouter
from cdc_reactor.schemas import SchemaStore

_log = logging.getLogger("cdc_reactor")

OnError: TypeAlias = Literal["stop", "skip"]

# Messages taken in at once: enough to make the loop cheap, few enough to stay in the processor's cache.
_CHUNK = 256
# Messages held at most, so that slow handlers or a hot row do not fill the memory.
_MAX_OUTSTANDING = 20_000
_MAX_PROBLEMS = 20
_CHECKPOINT_SECONDS = 1.0
_REPORT_SECONDS = 0.2


class Runner(Protocol):
    """Runs works, here or elsewhere."""

    @property
    def room(self) -> int:
        """How many works it takes now."""

    def submit(self, work: Work) -> None:
        """Take a work."""

    def collect(self, timeout: float | None) -> list[tuple[Work, Outcome]]:
        """Hand back works that are done; wait for one, at most `timeout` seconds, where there is none yet."""


class InlineRunner:
    """Runs each work at once, in this thread."""

    def __init__(self, run: Callable[[Work], Outcome]) -> None:
        self._run = run
        self._done: list[tuple[Work, Outcome]] = []

    @property
    def room(self) -> int:
        """One work at a time."""
        return 1 - len(self._done)

    def submit(self, work: Work) -> None:
        """Run it."""
        self._done.append((work, self._run(work)))

    def collect(self, timeout: float | None) -> list[tuple[Work, Outcome]]:  # noqa: ARG002 - nothing to wait for
        """Hand back what was run."""
        done, self._done = self._done, []
        return done


class Watcher(Protocol):
    """Is told how a replay goes on, a few times a second."""

    def watch(self, capture: Capture, messages: int, problems: int) -> None:
        """`messages` seen and `problems` met so far, in all captures."""


class Replay:
    """Replays captures; one object for one replay.

    `router` says where messages go, `runner` runs the handlers, `events` and `dead_letters` keep what comes of it.
    `patience` is how long, in seconds, the world (a database) may be down before the replay stops with WorldError.
    Call `stop` (from a signal handler or another thread) to end early: what runs is finished, the rest is left.
    """

    def __init__(
        self,
        router: CdcRouter,
        runner: Runner,
        *,
        events: EventLog | None = None,
        dead_letters: DeadLetters | None = None,
        on_error: OnError = "skip",
        checkpoint: Checkpoint | None = None,
        watcher: Watcher | None = None,
        backoff: Backoff | None = None,
        patience: float = 60.0,
        max_rate: float | None = None,
        skip: int = 0,
        limit: int | None = None,
        form: str | None = None,
        schemas: SchemaStore | None = None,
    ) -> None:
        self._router = router
        self._runner = runner
        self._reactor = Reactor(router.route, backoff=backoff)
        self._events = events
        self._dead_letters = dead_letters
        self._on_error = on_error
        self._checkpoint = checkpoint
        self._watcher = watcher
        self._patience = patience
        self._max_rate = max_rate
        self._skip = skip
        self._left = limit
        self._form = form
        self._schemas = schemas
        self._stop = threading.Event()
        self._report = Report()
        self._handlers = {name: HandlerCounts() for name in router.handler_names}
        self._unreadable = 0
        self._lost_letters = 0
        self._capture: Capture | None = None
        self._watermark = Watermark()
        self._offset = 0
        self._started = time.monotonic()
        self._down_since: float | None = None
        self._saved_at = self._started
        self._watched_at = 0.0

    def stop(self) -> None:
        """End early: finish what runs, leave the rest; safe to call from a signal handler."""
        self._stop.set()

    def run(self, captures: Sequence[Capture]) -> Report:
        """Replay captures in their order.

        Raises:
            UsageError: a capture is of no known format, or not the one that the checkpoint was written for.
            WorldError: a disk, a database or a network is down; what was settled before is in the checkpoint.
        """
        try:
            for capture in captures:
                if self._stop.is_set() or self._left == 0:
                    break
                self._replay(capture)
        finally:
            self._report.total = self._counts()
            self._save(sync=True)
        self._report.interrupted = self._stop.is_set() and not self._report.stopped
        return self._report

    def _replay(self, capture: Capture) -> None:
        before = self._counts()
        settled, is_done = self._checkpoint.start(capture.name) if self._checkpoint else (0, False)
        # What an earlier run took in counts for --skip and --limit, too.
        skipped = min(self._skip, settled)
        self._skip -= skipped
        if self._left is not None:
            self._left = max(0, self._left - (settled - skipped))
        if is_done:
            self._report.notes.append(f"{capture.name}: done before, as the checkpoint says")
        else:
            self._capture, self._watermark, self._offset = capture, Watermark(), settled
            self._read(capture, settled)
        self._report.files[capture.name] = self._counts().minus(before)

    def _read(self, capture: Capture, settled: int) -> None:
        elements = capture.messages(self._form, schemas=self._schemas, skip=settled)
        is_whole = True
        try:
            self._take_in(elements)
        except CaptureError as error:
            is_whole = False
            self._problem(str(error))
        self._finish()
        if capture.is_empty:
            self._report.notes.append(f"{capture.name} is empty")
        if self._checkpoint:
            is_done = is_whole and not self._stop.is_set() and self._left != 0 and not self._reactor.outstanding
            self._checkpoint.reached(capture.name, self._offset + self._watermark.settled, is_done=is_done)
            self._save(sync=True)

    def _take_in(self, elements: Iterator[Message | Unreadable]) -> None:
        position = 0
        while not self._stop.is_set():
            size = _CHUNK if self._left is None else min(_CHUNK, self._left)
            chunk = list(islice(elements, size))
            if not chunk:
                return
            if self._left is not None:
                self._left -= len(chunk)
            deliveries = self._deliveries(chunk, position)
            position += len(chunk)
            if self._skip:
                deliveries = self._skipped(deliveries)
            self._reactor.receive_all(deliveries, time.monotonic())
            self._settle()
            self._advance()
            while self._reactor.outstanding > _MAX_OUTSTANDING and not self._stop.is_set():
                self._advance(wait=True)
            self._keep_pace()

    def _deliveries(self, chunk: Sequence[Message | Unreadable], position: int) -> list[Delivery]:
        if set(map(type, chunk)) == {Message}:
            messages = cast("Sequence[Message]", chunk)
            return list(map(Delivery, messages, range(position, position + len(chunk))))
        self._give_up_unreadable(chunk, position)
        return [Delivery(e, n) for n, e in enumerate(chunk, position) if isinstance(e, Message)]

    def _skipped(self, deliveries: list[Delivery]) -> list[Delivery]:
        skipped, rest = deliveries[: self._skip], deliveries[self._skip :]
        self._skip -= len(skipped)
        if self._left is not None:
            self._left += len(skipped)
        self._watermark.settle([d.ack_id for d in skipped])
        return rest

    def _finish(self) -> None:
        """Settle everything that was taken in, waiting for retries; where the replay stops, only what runs."""
        while self._reactor.outstanding and not self._stop.is_set():
            self._advance(flush=True, wait=True)
        if self._reactor.outstanding:
            self._reactor.drain()
            while self._reactor.running:
                self._collect(timeout=None)
            self._settle()

    def _advance(self, *, flush: bool = False, wait: bool = False) -> None:
        """Run what can be run; with `wait`, sleep until something changes where nothing can."""
        progressed = False
        while (room := self._runner.room) and not self._stop.is_set():
            works = self._reactor.ready(time.monotonic(), limit=room, flush=flush)
            for work in works:
                self._runner.submit(work)
            progressed |= self._collect(timeout=0.0)
            if not works:
                break
        self._settle()
        if wait and not progressed:
            self._wait()

    def _wait(self) -> None:
        wakeup = self._reactor.next_wakeup()
        seconds = 1.0 if wakeup is None else min(1.0, max(0.0, wakeup - time.monotonic()))
        if self._reactor.running:
            self._collect(timeout=seconds)
        else:
            self._stop.wait(seconds)
        self._settle()

    def _collect(self, timeout: float | None) -> bool:
        done = self._runner.collect(timeout)
        for work, outcome in done:
            self._complete(work, outcome)
        return bool(done)

    def _complete(self, work: Work, outcome: Outcome) -> None:
        counts = self._handlers[work.consumer.name]
        counts.batches += 1
        counts.changes += (
            sum(1 for v in outcome.verdicts if not v) if outcome.failures or outcome.pause else len(work.held)
        )
        counts.events += len(outcome.events)
        counts.retries += sum(1 for i in outcome.failures if outcome.verdicts[i] is Verdict.NACK)
        if outcome.events and self._events is not None:
            self._events.write(outcome.events)
        now = time.monotonic()
        self._reactor.complete(work, outcome, now)
        if outcome.pause is None:
            self._down_since = None
            return
        if self._down_since is None:
            self._down_since = now
            _log.warning("%s waits: %s", work.consumer.name, outcome.pause_reason)
        if now - self._down_since > self._patience:
            raise WorldError(f"{outcome.pause_reason}; waited {self._patience:g} s. Nothing is lost: run it again")

    def _settle(self) -> None:
        settlements = self._reactor.settlements()
        letters = [s for s in settlements if s.verdict]
        for settlement in letters:
            if settlement.verdict is Verdict.DEAD_LETTER:
                self._give_up(settlement)
        if self._router.stopped_by is not None:
            self._end(f"{self._router.stopped_by} has no handler (--unknown-table stop)")
        for name, failure in self._reactor.halted.items():
            self._end(f"{name} halted at a poisoned change (on_poison=halt): {failure.error}")
        if self._checkpoint is not None:
            # What stopped the replay is left unsettled, so that it comes again when the cause is mended.
            left = (Verdict.NACK, Verdict.DEAD_LETTER) if self._on_error == "stop" else (Verdict.NACK,)
            self._watermark.settle([s.delivery.ack_id for s in settlements if s.verdict not in left])
        self._look_up()

    def _give_up(self, settlement: Settlement) -> None:
        place = self._place(settlement.delivery.ack_id)
        handler = f"{settlement.handler}: " if settlement.handler else ""
        if settlement.handler:
            self._handlers[settlement.handler].dead_letters += 1
        if not isinstance(settlement.error, DecodeError) or settlement.handler:
            self._lost_letters += 1
        self._keep(settlement, place)
        self._problem(f"{place}: {handler}{settlement.reason}")

    def _give_up_unreadable(self, chunk: Sequence[Message | Unreadable], position: int) -> None:
        for number, element in enumerate(chunk, position):
            if isinstance(element, Unreadable):
                self._unreadable += 1
                delivery = Delivery(Message(element.data), number)
                self._keep(
                    Settlement(delivery, Verdict.DEAD_LETTER, str(element.error), element.error), self._place(number)
                )
                self._problem(str(element.error))
                if self._on_error != "stop":
                    self._watermark.settle([number])

    def _keep(self, settlement: Settlement, place: str) -> None:
        if self._dead_letters is not None:
            message = settlement.delivery.message
            self._dead_letters.write(message, settlement, place, self._router.table_of(message))

    def _place(self, position: int) -> str:
        assert self._capture is not None, "there is no delivery without a capture"
        return self._capture.place(self._offset + position + 1)

    def _problem(self, text: str) -> None:
        if len(self._report.problems) < _MAX_PROBLEMS:
            self._report.problems.append(text)
        if self._on_error == "stop":
            self._end(text)

    def _end(self, why: str) -> None:
        if not self._report.stopped:
            self._report.stopped = why
            self._stop.set()

    def _look_up(self) -> None:
        """Save the checkpoint and tell the watcher, now and then."""
        now = time.monotonic()
        if self._checkpoint is not None and now - self._saved_at >= _CHECKPOINT_SECONDS and self._capture is not None:
            self._checkpoint.reached(self._capture.name, self._offset + self._watermark.settled)
            self._save(sync=True)
            self._saved_at = now
        if self._watcher is not None and self._capture is not None and now - self._watched_at >= _REPORT_SECONDS:
            self._watched_at = now
            problems = self._lost_letters + self._unreadable + self._router.tally.undecodable
            self._watcher.watch(self._capture, self._router.tally.messages + self._unreadable, problems)

    def _save(self, *, sync: bool) -> None:
        """Put everything on disk, what the checkpoint vouches for before the checkpoint."""
        for output in (self._events, self._dead_letters):
            if output is not None:
                output.flush(sync=sync and self._checkpoint is not None)
        if self._checkpoint is not None:
            self._checkpoint.save()

    def _keep_pace(self) -> None:
        if self._max_rate:
            due = self._started + (self._router.tally.messages + self._unreadable) / self._max_rate
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _counts(self) -> Counts:
        tally = self._router.tally
        return Counts(
            messages=tally.messages + self._unreadable,
            dropped=tally.drops(),
            changes=tally.changes(),
            snapshot_reads=tally.snapshot_reads(),
            unhandled=tally.unhandled(),
            handlers={name: counts.copy() for name, counts in self._handlers.items()},
            undecodable=tally.undecodable + self._unreadable,
            dead_letters=self._lost_letters,
            seconds=time.monotonic() - self._started,
        )
