"""The broker as a server: the machine, its store and its services on one port, in one event loop.

`BrokerServer` is what `cdc-reactor broker` runs; `LocalBroker` runs one in a thread of the caller's process, for tests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cdc_reactor.errors import WorldError
from cdc_reactor.local import (
    admin_service,
    calls,
    definitions,
    iam_service,
    protos,
    publisher_service,
    schema_service,
    subscriber_service,
)
from cdc_reactor.local.admin_service import AdminService
from cdc_reactor.local.broker import Broker
from cdc_reactor.local.engine import Engine, new_nonce
from cdc_reactor.local.iam_service import IamService
from cdc_reactor.local.publisher_service import PublisherService
from cdc_reactor.local.recovery import Memory, recover
from cdc_reactor.local.schema_service import SchemaService
from cdc_reactor.local.store import Store
from cdc_reactor.local.subscriber_service import SubscriberService

#: How long a thread may take to come up or go down.
THREAD_TIMEOUT = 60.0
#: How long calls may take to end when the broker goes down; most need a moment.
GRACE = 0.5


class BrokerServer:
    """One broker, listening from `start` to `stop`, and again after each restart on the same port.

    Without a folder a restart keeps what was published and acked, and forgets leases only. All methods belong to one
    event loop.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._host = host
        self._folder = folder
        self._clock = clock
        self._memory: Memory | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._server: Any = None
        self._starts = 0
        self.port = port
        self.engine: Engine

    @property
    def address(self) -> str:
        """Where it listens, as PUBSUB_EMULATOR_HOST wants it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    async def start(self) -> None:
        """Listen; raises WorldError when the port is taken or the folder cannot be used, UsageError when it is."""
        store = Store.open(self._folder) if self._folder is not None else None
        try:
            memory = self._memory = self._remember(store)
            server = calls.new_server()
            self._bind(server)
        except BaseException:
            if store is not None:
                store.close()
            raise
        self._starts += 1
        self.engine = engine = Engine(memory.broker, store=store, clock=self._clock)
        services = {
            publisher_service.NAME: PublisherService(engine, memory.schemas).handlers(),
            subscriber_service.NAME: SubscriberService(engine).handlers(),
            schema_service.NAME: SchemaService(engine, memory.schemas).handlers(),
            iam_service.NAME: IamService(engine, memory.schemas, memory.policies).handlers(),
            admin_service.NAME: AdminService(engine, restart=self._restart_soon, starts=self._starts).handlers(),
        }
        server.add_generic_rpc_handlers([calls.service(name, handlers) for name, handlers in services.items()])
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Cut all calls, write what is confirmed, let the port and the folder go."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        await self._halt()

    async def create(self, topic: str, subscription: str = "") -> None:
        """Create a topic, and an ordered subscription to it, by their full names; what exists already is left as it is.

        Raises Refused for a name that cannot be one.
        """
        broker = self.engine.broker
        if topic not in broker.topics:
            definition, topic_options = definitions.new_topic(protos.Topic(name=topic))
            broker.create_topic(topic, topic_options, definition)
        if subscription and subscription not in broker.subscriptions:
            wanted = protos.Subscription(name=subscription, topic=topic, enable_message_ordering=True)
            definition, options = definitions.new_subscription(wanted)
            broker.create_subscription(subscription, topic, options, definition)
        await self.engine.confirmed()

    def _remember(self, store: Store | None) -> Memory:
        if store is not None:
            return recover(store, nonce=new_nonce())
        if self._memory is None:
            return Memory.new(nonce=new_nonce())
        self._memory.broker.forget_leases(nonce=new_nonce())
        return self._memory

    def _bind(self, server: Any) -> None:
        # Asked of the system first: grpc would write a line of its own to the terminal.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            socket.create_server((self._host, self.port), family=family).close()
            self.port = server.add_insecure_port(self.address)
        except (OSError, RuntimeError) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error)
            raise WorldError(
                f"the broker cannot listen on {self.address}: {reason}; give another with --port or --host"
            ) from error

    async def _halt(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self.engine.end_calls()
            await server.stop(GRACE)
            await self.engine.stop()

    def _restart_soon(self, down: float) -> None:
        self._restarting = asyncio.create_task(self._restart(down))

    async def _restart(self, down: float) -> None:
        await self._halt()
        await asyncio.sleep(down)
        await self.start()


class LocalBroker:
    """A broker in a thread of this process, on its own event loop; a context manager. Its methods are thread-safe."""

    def __init__(self, server: BrokerServer) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="local-broker", daemon=True)

    @classmethod
    def start(
        cls,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> LocalBroker:
        """Start a broker and wait until it listens; in memory without a folder, on any free port for 0.

        With a `clock` (`clocks.VirtualClock`) nothing ends by itself, only by `advance`. Raises WorldError when the
        port is taken or the folder cannot be used, UsageError when another broker has the folder.
        """
        broker = cls(BrokerServer(host=host, port=port, folder=folder, clock=clock))
        broker._thread.start()
        broker._started.result(THREAD_TIMEOUT)
        return broker

    @property
    def address(self) -> str:
        """Where it listens: what PUBSUB_EMULATOR_HOST should be."""
        return self._server.address

    @property
    def broker(self) -> Broker:
        """The machine, for tests to look at while nothing else happens; another one after a restart from a folder."""
        return self._server.engine.broker

    def advance(self, seconds: float) -> None:
        """Move the virtual clock and let the broker act on it."""
        self._call(lambda: self._server.engine.advance(seconds))

    def stop(self) -> None:
        """Stop it and wait until its thread has ended; a second call does nothing."""
        if self._thread.is_alive() and self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(THREAD_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _call(self, function: Callable[[], None]) -> None:
        async def called() -> None:
            function()

        assert self._loop is not None, "a started broker has a loop"
        asyncio.run_coroutine_threadsafe(called(), self._loop).result(THREAD_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - a thread ends here; whoever waits for it gets the error
            if not self._started.done():
                self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        await self._server.start()
        self._started.set_result(None)
        await self._stopping.wait()
        await self._server.stop()
