"""Captured files through the reactor: read, route, batch, execute, settle.

The same core as the daemon's, driven from files instead of a stream. One capture is settled before the next begins,
so that every count belongs to a file and a checkpoint is one number for each. What a replay can not do is lose
something: a message counts as settled only after its handler's transaction, its events and its dead letter are on
disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
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
# How far what is settled may run ahead of one change that is still being retried.
_MAX_AHEAD = 1_000_000
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


class _Stop:
    """A flag that a signal handler may set, whatever the main thread is doing with it at that moment.

    An Event would not do: it takes a lock that the interrupted thread may hold. `SimpleQueue.put` is reentrant.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._alarm: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._alarm.put(None)

    def wait(self, seconds: float) -> None:
        """Sleep, but not when it is set and not longer than until it is."""
        if not self._is_set:
            with suppress(Empty):
                self._alarm.get(timeout=seconds)


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
        self._reactor = Reactor(router, backoff=backoff)
        self._events = events
        self._dead_letters = dead_letters
        self._on_error = on_error
        self._checkpoint = checkpoint
        self._watcher = watcher
        self._patience = patience
        self._max_rate = max_rate
        # A limited rate is kept from one tenth of a second to the next.
        self._chunk = _CHUNK if max_rate is None else min(_CHUNK, max(1, int(max_rate / 10)))
        self._skip = skip
        self._left = limit
        self._form = form
        self._schemas = schemas
        self._stop = _Stop()
        self._report = Report()
        self._handlers = {name: HandlerCounts() for name in router.handler_names}
        self._unreadable = 0
        self._lost_letters = 0
        self._capture: Capture | None = None
        self._watermark = Watermark()
        self._has_gaps = False
        # The last message that could not be read: where a capture may still grow, it may be half a message.
        self._torn: int | None = None
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
        if self._checkpoint is not None:
            # Before anything else is written: what an earlier run left is gone on with from now on.
            self._checkpoint.save()
        try:
            for capture in captures:
                if self._stop.is_set() or self._left == 0:
                    break
                self._replay(capture)
        finally:
            with suppress(WorldError):
                self._settle()
            self._report.total = self._counts()
            self._note_progress()
            self._save(sync=True)
        self._report.interrupted = self._stop.is_set() and not self._report.stopped
        return self._report

    def _replay(self, capture: Capture) -> None:
        before = self._counts()
        mark, is_done = self._checkpoint.start(capture.name) if self._checkpoint else (Watermark(), False)
        settled = mark.settled
        # What an earlier run took in counts for --skip and --limit, too.
        skipped = min(self._skip, settled)
        self._skip -= skipped
        if self._left is not None:
            self._left = max(0, self._left - (settled - skipped))
        if is_done:
            self._report.notes.append(f"{capture.name}: done before, as the checkpoint says")
        else:
            self._capture, self._watermark, self._has_gaps = capture, mark, bool(mark.ahead)
            self._read(capture, settled)
        self._report.files[capture.name] = self._counts().minus(before)

    def _read(self, capture: Capture, settled: int) -> None:
        elements = capture.messages(self._form, schemas=self._schemas, skip=settled)
        is_whole = True
        try:
            self._take_in(elements, settled)
        except CaptureError as error:
            is_whole = False
            self._problem(str(error))
        self._finish()
        if capture.is_empty:
            self._report.notes.append(f"{capture.name} is empty")
        if self._checkpoint:
            is_done = is_whole and not self._stop.is_set() and self._left != 0 and not self._reactor.outstanding
            is_done = self._settle_torn(capture) and is_done
            self._checkpoint.reached(capture.name, self._watermark, is_done=is_done)
            self._save(sync=True)
        self._capture = None

    def _take_in(self, elements: Iterator[Message | Unreadable], position: int) -> None:
        broken: CaptureError | None = None
        while broken is None and not self._stop.is_set():
            chunk: list[Message | Unreadable] = []
            try:
                # Extended, not made anew: what came before a break is kept.
                chunk.extend(islice(elements, self._chunk if self._left is None else min(self._chunk, self._left)))
            except CaptureError as error:
                broken = error
            if not chunk:
                break
            if self._left is not None:
                self._left -= len(chunk)
            skipped = min(self._skip, len(chunk))
            if skipped:
                self._pass_over(skipped, position)
            deliveries = self._deliveries(chunk[skipped:] if skipped else chunk, position + skipped)
            position += len(chunk)
            if self._has_gaps:
                deliveries = [d for d in deliveries if not self._watermark.is_settled(d.ack_id)]
            self._reactor.receive_all(deliveries, time.monotonic())
            self._settle()
            self._advance()
            while not self._stop.is_set() and (
                self._reactor.outstanding > _MAX_OUTSTANDING or self._is_far_ahead(position)
            ):
                self._advance(flush=not self._reactor.running, wait=True)
            self._keep_pace()
        if broken is not None:
            raise broken

    def _deliveries(self, chunk: Sequence[Message | Unreadable], position: int) -> list[Delivery]:
        if set(map(type, chunk)) == {Message}:
            messages = cast("Sequence[Message]", chunk)
            return list(map(Delivery, messages, range(position, position + len(chunk))))
        self._give_up_unreadable(chunk, position)
        return [Delivery(e, n) for n, e in enumerate(chunk, position) if isinstance(e, Message)]

    def _is_far_ahead(self, position: int) -> bool:
        return self._checkpoint is not None and position - self._watermark.settled > _MAX_AHEAD

    def _pass_over(self, count: int, position: int) -> None:
        """Leave out what --skip names; it counts for nothing else."""
        self._skip -= count
        if self._left is not None:
            self._left += count
        self._watermark.settle(range(position, position + count))

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
            self._settle()
            if not works:
                break
        self._settle()
        if wait and not progressed:
            self._wait()

    def _wait(self) -> None:
        wakeup = self._reactor.next_wakeup()
        # Without room, what is ready has to wait for what runs.
        seconds = 1.0 if wakeup is None or not self._runner.room else min(1.0, max(0.0, wakeup - time.monotonic()))
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
        counts.retries += work.attempt > 1
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
            first = next((s for s in settlements if s.verdict is Verdict.NACK), None)
            place = f"{self._place(first.delivery.ack_id)}: " if first is not None else ""
            self._end(f"{place}{self._router.stopped_by} has no handler, and --unknown-table is stop")
        for name, failure in self._reactor.halted.items():
            self._end(f"{name} halted at a poisoned change (on_poison=halt): {failure.told}")
        if self._checkpoint is not None:
            # What stopped the replay is left unsettled, so that it comes again when the cause is mended.
            left = (Verdict.NACK, Verdict.DEAD_LETTER) if self._on_error == "stop" else (Verdict.NACK,)
            self._watermark.settle(
                [s.delivery.ack_id for s in settlements if s.verdict not in left and not _is_unread(s)]
            )
            for settlement in letters:
                if settlement.verdict not in left and _is_unread(settlement):
                    self._defer(settlement.delivery.ack_id)
        self._look_up()

    def _defer(self, position: int) -> None:
        """Count a message that could not be read as settled once another one follows it."""
        if self._torn is not None:
            self._watermark.settle([self._torn])
        self._torn = position

    def _settle_torn(self, capture: Capture) -> bool:
        """Settle the last message that could not be read, unless its writer may not have ended that line yet."""
        torn, self._torn = self._torn, None
        if torn is None:
            return True
        if capture.ends_torn and self._watermark.settled == torn and not self._watermark.ahead:
            return False
        self._watermark.settle([torn])
        return True

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
                if self._checkpoint is not None and self._on_error != "stop":
                    self._defer(number)

    def _keep(self, settlement: Settlement, place: str) -> None:
        if self._dead_letters is not None:
            message = settlement.delivery.message
            self._dead_letters.write(message, settlement, place, self._router.table_of(message))

    def _place(self, position: int) -> str:
        assert self._capture is not None, "there is no delivery without a capture"
        return self._capture.place(position + 1)

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
            self._note_progress()
            self._save(sync=True)
            self._saved_at = now
        if self._watcher is not None and self._capture is not None and now - self._watched_at >= _REPORT_SECONDS:
            self._watched_at = now
            problems = self._lost_letters + self._unreadable + self._router.tally.undecodable
            self._watcher.watch(self._capture, self._router.tally.messages + self._unreadable, problems)

    def _note_progress(self) -> None:
        """Put into the checkpoint how far a capture came that was not read to its end."""
        if self._checkpoint is not None and self._capture is not None:
            self._checkpoint.reached(self._capture.name, self._watermark)

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
            while (left := due - time.monotonic()) > 0 and not self._stop.is_set():
                self._advance()
                self._stop.wait(min(left, 0.1))

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


def _is_unread(settlement: Settlement) -> bool:
    return settlement.verdict is Verdict.DEAD_LETTER and not settlement.handler and settlement.error is not None
