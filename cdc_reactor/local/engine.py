"""Drives the broker's machine in one event loop: its clock, its timer, its writer, its faults.

Everything here runs in that loop. Services go through an Engine for whatever must be safe on disk or wakes later;
idle, it sleeps until the next lease ends.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from cdc_reactor.local.broker import Broker, Subscription, Topic
from cdc_reactor.local.clocks import VirtualClock
from cdc_reactor.local.faults import Faults, unavailable
from cdc_reactor.local.refusals import Refused, precondition
from cdc_reactor.local.store import Store
from cdc_reactor.local.writer import Writer

#: The timer fires at most so often; a lease may last so much longer.
TICK = 0.05
PURGE_INTERVAL = 60.0
#: How often a clock of somebody else's is looked at.
WATCH_INTERVAL = 0.02


def new_nonce() -> str:
    """Return the first 160 characters of ack ids: theirs are 150 to 200 at the service."""
    return secrets.token_urlsafe(120)


class SystemClock:
    """Seconds since 1970 that never go back, whatever happens to the system's clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the time."""
        return self._offset + time.monotonic()


@dataclass(slots=True)
class ResponseLimits:
    """How large a response with messages may be; a single larger message still goes."""

    max_messages: int = 250
    max_bytes: int = 1_048_576


class Engine:
    """The machine, running.

    `clock` replaces the system's. A VirtualClock moves by `advance` only; any other one moves as its owner likes and is
    looked at every `WATCH_INTERVAL`.
    """

    def __init__(self, broker: Broker, *, store: Store | None = None, clock: Callable[[], float] | None = None) -> None:
        self.broker = broker
        self.faults = Faults()
        self.responses = ResponseLimits()
        #: What ends an open stream or a waiting pull, called with the reason; each has its own.
        self.streams: set[Callable[[Refused], None]] = set()
        self.pulls: set[Callable[[Refused], None]] = set()
        self.now: Callable[[], float] = clock or SystemClock()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._writer = Writer(broker.journal, store) if store else None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._purge_timer: asyncio.TimerHandle | None = None
        if clock is None:
            self._purge()
        elif not isinstance(clock, VirtualClock):
            self._watch()

    def end_calls(self) -> None:
        """End what would go on for ever: the broker goes down."""
        for end in (*self.streams, *self.pulls):
            end(unavailable("The broker is going down"))

    async def stop(self) -> None:
        """Stop the timers, write the rest, close the store."""
        for timer in (self._timer, self._purge_timer):
            if timer is not None:
                timer.cancel()
        if self._writer is not None:
            await self._writer.stop()
        if self._store is not None:
            self._store.close()

    # ── what must be safe before it is answered ──

    async def publish(self, topic: Topic, drafts: Sequence[tuple[bytes, str]]) -> list[str]:
        """Publish serialised messages with their ordering keys; return their ids once they are safe."""
        messages, ids = self.broker.prepare(topic, drafts, self.now())
        if self._writer is None:
            self.broker.deliver(topic, messages)
        elif messages:
            seqs = [message.seq for message in messages]
            await self._writer.written(lambda: self.broker.deliver(topic, messages), seqs=seqs)
        return ids

    async def confirmed(self) -> None:
        """Wait until all that the machine was told is safe."""
        if self._writer is not None:
            await self._writer.written()

    # ── time ──

    def settle(self, subscription: Subscription) -> None:
        """See to it that what just changed in a subscription is written soon and acted on in time."""
        if self._writer is not None:
            self._writer.poke()
        if self._clock is None:
            self._arm(subscription.backlog.next_wakeup())

    def advance(self, seconds: float) -> None:
        """Move the virtual clock and act on it; raises FAILED_PRECONDITION where there is none."""
        if isinstance(self._clock, VirtualClock):
            self._clock.advance(seconds)
        elif seconds or self._clock is None:
            raise precondition("The broker has no virtual clock; start it with clock=VirtualClock().")
        self.broker.tick(self.now())
        self.broker.purge(self.now())
        self._poke()

    def _arm(self, when: float) -> None:
        if when >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(max(TICK, when - self.now()), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, inf
        self.broker.tick(self.now())
        self._poke()
        self._arm(self.broker.next_wakeup())

    def _purge(self) -> None:
        self.broker.purge(self.now())
        self._poke()
        self._purge_timer = self._loop.call_later(PURGE_INTERVAL, self._purge)

    def _watch(self) -> None:
        self.broker.tick(self.now())
        self.broker.purge(self.now())
        self._poke()
        self._purge_timer = self._loop.call_later(WATCH_INTERVAL, self._watch)

    def _poke(self) -> None:
        if self._writer is not None:
            self._writer.poke()

    # ── faults ──

    def admit(self) -> None:
        """Let a call in; raises UNAVAILABLE while all are refused."""
        self.faults.admit(self._loop.time())

    def refuse(self, seconds: float) -> None:
        """Refuse all calls for so long and end all streams; none or less admits them again."""
        self.faults.refuse_until = self._loop.time() + seconds
        if seconds > 0:
            self.reset_streams()

    def reset_streams(self) -> int:
        """End all streams with UNAVAILABLE, as the service does now and then; return how many there were."""
        reset = list(self.streams)
        for end in reset:
            end(unavailable("The stream was reset"))
        return len(reset)
