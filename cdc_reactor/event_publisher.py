"""Events from application code outside the daemon: a web request, a script, a cron job.

`EventPublisher` may be used from any thread and any event loop; gRPC and the daemon's own `pubsub_publisher` run on an
event loop in a thread of its own, started with the first event. It never says that an event is published before the
broker confirmed it, and never lets one of a key overtake another. Handlers and workers use `ctx.publish` instead,
which waits for their commit. Neighbours: `publications` checks events, `event_thread` sends them.

Forks: gRPC does not survive one. A child that inherits an open asyncio channel crashes or waits for ever, whatever
GRPC_ENABLE_FORK_SUPPORT says (seen with grpcio 1.85, whose fork handlers pass over threads that wait for messages). So
what is under way is confirmed and the channel closed before a fork; parent and child open anew when they publish next.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, wait
from importlib import import_module
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from cdc_reactor.errors import PublishError, ReactorError
from cdc_reactor.event_thread import Address, EventThread, Handed
from cdc_reactor.events import EVENT_ID, EncodedEvent, Publishable, derived_id, trace_of
from cdc_reactor.messages import Message
from cdc_reactor.publications import write

#: How long the exit of the process, and a fork, wait for what is not confirmed.
_EXIT_PATIENCE = 5.0
_FORK_PATIENCE = 2.0
#: What `publish` waits beyond the timeout: its answer says more than our own could.
_MARGIN = 5.0

_log = logging.getLogger("cdc_reactor.event_publisher")


class EventPublisher:
    """Publishes events; thread-safe, a context manager. Nothing is opened before the first event.

    What is not given is read from the environment when it connects: CDC_PUBSUB__PROJECT, PUBSUB_PROJECT_ID or
    GOOGLE_CLOUD_PROJECT; CDC_PUBSUB__EMULATOR_HOST or PUBSUB_EMULATOR_HOST; CDC_PUBSUB__ENDPOINT; then the machine's
    credentials. An `emulator_host` goes before an endpoint. `source` names the application in derived event ids. An
    event that is not confirmed `timeout` seconds after it was sent has failed.

    Every event carries an id in the attribute `event_id`. With a `cause`, the id of a request or "order-42/v7", it is
    derived from source, cause, topic, key and data, and from nothing else: no count of calls, so that equal events of
    one cause have one id in every process and at every repetition. Who means two of them by one cause says so in the
    cause ("order-42/v7/2"). Without a cause the id is random. An `event_id` that is given goes before both. Where an
    OpenTelemetry span is current, its context travels along.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        emulator_host: str | None = None,
        endpoint: str | None = None,
        source: str = "",
        timeout: float = 60.0,
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._sender = _Sender(Address(project, emulator_host, endpoint), timeout)

    def publish(self, event: Publishable, *, key: str = "", cause: str = "", event_id: str = "") -> str:
        """Publish an event and wait until the broker confirmed it; return the message id.

        Raises:
            TypeError: this is no event, or it cannot be written.
            ValueError: it is larger than its topic takes.
            UsageError: there is no such topic or project, or we may not publish.
            PublishError: it could not be confirmed in time; it may still arrive.
            RuntimeError: the publisher is closed, or this is a callback of `send`, which must not wait.
        """
        if self._sender.is_current():
            raise RuntimeError("publish() waits for a confirmation and so cannot be called in a callback of send()")
        try:
            return self._hand(event, key, cause, event_id).result(self._timeout + _MARGIN)
        except TimeoutError:
            raise PublishError(f"an event was not confirmed within {self._timeout + _MARGIN:g} s") from None

    def send(self, event: Publishable, *, key: str = "", cause: str = "", event_id: str = "") -> Future[str]:
        """Publish an event without waiting; the future has the message id, or raises as `publish` does.

        Events of one key arrive in the order of the calls. Until they are confirmed they are in this process' memory:
        end with `flush` or `close`. Callbacks of the future run in the publisher's thread and must not block.
        """
        return self._hand(event, key, cause, event_id, told_by_flush=True)

    async def publish_async(self, event: Publishable, *, key: str = "", cause: str = "", event_id: str = "") -> str:
        """Publish as `publish` does, from any event loop, which goes on meanwhile; cancelling does not unsend it."""
        return await asyncio.wrap_future(self._hand(event, key, cause, event_id))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything sent before is confirmed, for `timeout` seconds or the publisher's own timeout.

        Raises:
            PublishError: events of `send` failed since the last flush, or are not confirmed in time.
        """
        self._sender.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flush, then end; what is not confirmed by then fails. A second call does nothing.

        Raises:
            PublishError: as `flush` does; it is closed all the same.
        """
        self._sender.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hand(
        self, event: Publishable, key: str, cause: str, event_id: str, *, told_by_flush: bool = False
    ) -> Future[str]:
        written = write(event, who="EventPublisher", key=key)
        attributes = {EVENT_ID: event_id or self._id(written, cause), **_trace()}
        message = Message(written.data, attributes, written.key)
        return self._sender.send(written.topic, message, told_by_flush=told_by_flush)

    def _id(self, written: EncodedEvent, cause: str) -> str:
        if not cause:
            return uuid4().hex
        return derived_id((self._source, cause, written.topic, written.key), written.data)


class _Sender:
    """Messages from any thread to the one thread that sends them, which comes and goes with forks; thread-safe."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        # Held while messages are handed over, so that those of one key stay in the order of the calls; and over a fork.
        self._lock = threading.Lock()
        self._thread: EventThread | None = None
        self._is_closed = False
        self._unconfirmed = _Unconfirmed()
        _senders.add(self)

    def is_current(self) -> bool:
        """Tell whether the caller runs in the thread that sends."""
        thread = self._thread
        return thread is not None and thread.is_current()

    def send(self, topic: str, message: Message, *, told_by_flush: bool) -> Future[str]:
        """Hand a message over."""
        future: Future[str] = Future()
        # From here on it cannot be cancelled: it may be at the broker already.
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the EventPublisher is closed; make another one, or close it later")
            thread = self._open_thread()
            unconfirmed = self._unconfirmed
            unconfirmed.add(future)
            thread.hand(Handed(topic, message, future, unconfirmed.failed if told_by_flush else None))
        return future

    def flush(self, timeout: float | None) -> None:
        """Wait until everything is confirmed; raise PublishError where it is not."""
        unconfirmed = self._unconfirmed.wait(self._timeout + _MARGIN if timeout is None else timeout)
        count, first = self._unconfirmed.take_failures()
        if first is not None:
            raise PublishError(f"{count} events are not published; the first: {first}") from first
        if unconfirmed:
            raise PublishError(f"{unconfirmed} events are not confirmed yet; they may still arrive")

    def close(self, timeout: float | None) -> None:
        """Flush and end; a second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self.flush(timeout)
        finally:
            thread = self._thread
            if thread is not None and not thread.is_foreign():
                thread.stop(_EXIT_PATIENCE)
                self._thread = None
                _senders.let_go(self)

    def before_fork(self) -> None:
        """Confirm what is under way and close the connection; hold whoever wants to send."""
        self._lock.acquire()
        thread = self._thread
        if thread is None or thread.is_foreign() or thread.is_current():
            return
        # A callback that sends waits for our lock: then the thread cannot end, and the child is told so.
        if not self._unconfirmed.wait(_FORK_PATIENCE) and thread.stop(_FORK_PATIENCE):
            self._thread = None

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on with nothing under way; other threads of the parent may have held the locks."""
        self._lock = threading.Lock()
        self._unconfirmed = _Unconfirmed()

    def _open_thread(self) -> EventThread:
        if self._thread is None or (self._thread.is_stopping and not self._thread.is_foreign()):
            self._thread = EventThread(self._address, self._timeout)
            _senders.keep(self)
        elif self._thread.is_foreign():
            # It stays referenced: gRPC crashes when its objects of another process are freed.
            raise PublishError(
                "this process was forked while events were under way, and gRPC does not survive that; fork before the "
                "first event, or flush() before the fork"
            )
        return self._thread


class _Senders:
    """All senders of the process: what forks and the end of the process ask of them."""

    def __init__(self) -> None:
        # Over a fork: one at a time, and nobody comes or goes meanwhile.
        self._lock = threading.Lock()
        self._all: weakref.WeakSet[_Sender] = weakref.WeakSet()
        self._open: set[_Sender] = set()
        self._held: list[_Sender] = []

    def add(self, sender: _Sender) -> None:
        """Know one."""
        with self._lock:
            self._all.add(sender)

    def keep(self, sender: _Sender) -> None:
        """Keep one that may have something to send, even if whoever made it forgets it."""
        self._open.add(sender)

    def let_go(self, sender: _Sender) -> None:
        """Forget one that is closed."""
        self._open.discard(sender)

    def before_fork(self) -> None:
        """Have each confirm and close what it has."""
        self._lock.acquire()
        self._held = list(self._all)
        for sender in self._held:
            sender.before_fork()

    def after_fork(self) -> None:
        """Let each go on, in the parent."""
        for sender in self._held:
            sender.after_fork()
        self._held = []
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Let each begin anew; servers that fork by themselves, as uWSGI does, call this and nothing before."""
        self._lock = threading.Lock()
        self._held = []
        for sender in list(self._all):
            sender.after_fork_in_child()

    def close(self) -> None:
        """Close all of them, and tell in the log what is lost."""
        end = time.monotonic() + _EXIT_PATIENCE
        for sender in list(self._open):
            try:
                sender.close(max(0.0, end - time.monotonic()))
            except PublishError as error:
                _log.error("%s", error)


class _Unconfirmed:
    """What is not confirmed, and what `send` could not publish since the last flush; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: set[Future[str]] = set()
        self._failures = 0
        self._first: ReactorError | None = None

    def add(self, future: Future[str]) -> None:
        """Wait for this one, too."""
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._done)

    def failed(self, error: ReactorError) -> None:
        """Note what flush is to tell; called before the future is done."""
        with self._lock:
            self._failures += 1
            self._first = self._first or error

    def wait(self, seconds: float) -> int:
        """Wait until what is here now is done; return how many are not."""
        with self._lock:
            futures = list(self._futures)
        return len(wait(futures, seconds).not_done)

    def take_failures(self) -> tuple[int, ReactorError | None]:
        """Return how many failed and the first error, once."""
        with self._lock:
            found = self._failures, self._first
            self._failures, self._first = 0, None
        return found

    def _done(self, future: Future[str]) -> None:
        with self._lock:
            self._futures.discard(future)


def _trace() -> Mapping[str, str]:
    """Return what carries the current span on. Where nobody imported OpenTelemetry there is none, and no cost."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    propagate: Any = import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return trace_of(carrier)


_senders = _Senders()
os.register_at_fork(
    before=_senders.before_fork, after_in_parent=_senders.after_fork, after_in_child=_senders.after_fork_in_child
)
atexit.register(_senders.close)

_default = EventPublisher()


def publish(event: Publishable, *, key: str = "", cause: str = "") -> str:
    """Publish an event to where the environment says, and wait until the broker confirmed it; return the message id.

    Raises: as `EventPublisher.publish` does.
    """
    return _default.publish(event, key=key, cause=cause)


async def publish_async(event: Publishable, *, key: str = "", cause: str = "") -> str:
    """Publish as `publish` does, from an event loop."""
    return await _default.publish_async(event, key=key, cause=cause)
