"""The thread in which an application's events are sent: an event loop, a connection and a `pubsub_publisher`.

It has one owner, `event_publisher`, which decides what is sent, when the thread starts and when it ends. It knows no
events: messages, topics, and a future for each.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from cdc_reactor.errors import PublishError, ReactorError, UsageError
from cdc_reactor.messages import Message
from cdc_reactor.pubsub_connection import Connection
from cdc_reactor.pubsub_publisher import Publisher
from cdc_reactor.settings import ELSEWHERE, variable_of

#: What the publisher below may be late with its own error, which says more than ours.
_MARGIN = 1.0
#: How long an event waits for company: somebody may wait for it, too.
_DELAY = 0.001
#: How long calls that nobody waits for any more may take to end.
_END_PATIENCE = 0.1


class Address(NamedTuple):
    """Where to publish; what is None says the environment, what is empty is not set."""

    project: str | None
    emulator_host: str | None
    endpoint: str | None


class Handed(NamedTuple):
    """A message on its way; `on_failure` is called before the future has the error."""

    topic: str
    message: Message
    confirmed: Future[str]
    on_failure: Callable[[ReactorError], None] | None

    def fail(self, error: ReactorError) -> None:
        """Tell that it is not published."""
        if self.on_failure is not None:
            self.on_failure(error)
        self.confirmed.set_exception(error)


class EventThread:
    """Sends what it is handed, in order within each key; connects with the first message. Stop it when done.

    A message that is not confirmed within `timeout` seconds has failed.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._handed: deque[Handed] = deque()
        self._is_woken = False
        self._is_stopping = self._was_stopped = False
        self._wake_up = asyncio.Event()
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="event-publisher", daemon=True)
        self._thread.start()

    def is_current(self) -> bool:
        """Tell whether the caller runs in it."""
        return threading.current_thread() is self._thread

    def is_foreign(self) -> bool:
        """Tell whether it belongs to the process that this one was forked from, and cannot be used."""
        return os.getpid() != self._pid

    def hand(self, handed: Handed) -> None:
        """Send a message; thread-safe. Those of one key are sent in the order of the calls."""
        self._handed.append(handed)
        # Waking a loop is a write to a socket: once for all that it has not seen.
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._wake_up.set)

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop, and takes nothing more."""
        return self._was_stopped

    def stop(self, patience: float) -> bool:
        """Fail what is not confirmed and close the connection; tell whether the thread ended within so many seconds.

        It may be running a callback of whoever published, or waiting for credentials; then it ends after that.
        """
        self._was_stopped = True
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop_soon)
        if self.is_current():
            return False
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _stop_soon(self) -> None:
        self._is_stopping = True
        self._wake_up.set()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        while not self._is_stopping:
            await self._wake_up.wait()
            self._wake_up.clear()
            # Before looking: whoever hands something over after that wakes us again.
            self._is_woken = False
            publisher = await self._open()
            while publisher is not None and self._handed:
                task = asyncio.create_task(self._send(publisher, self._handed.popleft()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await self._close()

    async def _open(self) -> Publisher | None:
        """Connect, unless that is done; where it fails, so does what waits for it, and the next message tries again."""
        if self._publisher is None and self._handed:
            try:
                async with asyncio.timeout(self._timeout):
                    self._connection = await _connected(self._address)
            except TimeoutError:
                self._fail_handed(PublishError(f"there was no connection to Pub/Sub within {self._timeout:g} s"))
            except ReactorError as error:
                self._fail_handed(error)
            except Exception as error:  # noqa: BLE001 - the thread must go on: futures wait for it
                self._fail_handed(PublishError(f"no connection to Pub/Sub: {type(error).__name__}: {error}"))
            else:
                self._publisher = Publisher(self._connection, delay=_DELAY, timeout=self._timeout)
        return self._publisher

    async def _send(self, publisher: Publisher, handed: Handed) -> None:
        try:
            async with asyncio.timeout(self._timeout + _MARGIN):
                ids = await publisher.publish(handed.topic, [handed.message])
        except TimeoutError:
            handed.fail(PublishError(f"topic {handed.topic} did not confirm an event within {self._timeout:g} s"))
        except ReactorError as error:
            # A topic that is not there, or is not ours to use, is no outage.
            handed.fail(error.__cause__ if isinstance(error.__cause__, UsageError) else error)
        else:
            handed.confirmed.set_result(ids[0])

    def _fail_handed(self, error: ReactorError) -> None:
        while self._handed:
            self._handed.popleft().fail(error)

    async def _close(self) -> None:
        self._fail_handed(PublishError("the publisher was closed before this was sent"))
        if self._publisher is not None:
            await self._publisher.close(_END_PATIENCE)
            await asyncio.gather(*self._tasks)
        if self._connection is not None:
            await self._connection.close()
        # gRPC ends its own thread with the last channel: whoever forks now relies on it.
        self._publisher = self._connection = None


async def _connected(address: Address) -> Connection:
    return await Connection.open(
        _set("pubsub.project", address.project),
        emulator_host=_set("pubsub.emulator_host", address.emulator_host),
        endpoint=_set("pubsub.endpoint", address.endpoint),
    )


def _set(key: str, given: str | None) -> str | None:
    """Return what is given or, like the daemon's settings, what the environment says of it."""
    if given is not None:
        return given or None
    names = (variable_of(key), *ELSEWHERE.get(key, ()))
    found = next((value for name in names if (value := os.environ.get(name))), None)
    return None if found == "none" else found
