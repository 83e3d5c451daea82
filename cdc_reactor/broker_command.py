"""`cdc-reactor broker`: a local Pub/Sub until it is told to stop.

Raises UsageError and WorldError in plain words; SIGTERM ends it well, Ctrl-C as KeyboardInterrupt. The broker itself is
in `local`.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cdc_reactor.errors import UsageError
from cdc_reactor.local.broker_server import BrokerServer
from cdc_reactor.local.refusals import Refused

DEFAULT_DATA = Path(".cdc-reactor/broker")
DEFAULT_PROJECT = "local"

# A million messages are millions of objects that stay: looking at all of them after every 700 new ones would cost more
# than all else.
_GC_THRESHOLDS = (100_000, 50, 100)


def run_broker(host: str, port: int, data: Path | None, memory: bool, create: Sequence[str]) -> None:  # noqa: FBT001 - as the command has them
    """Run a broker until SIGTERM (returns) or SIGINT (raises KeyboardInterrupt).

    `data` is the folder that it keeps, `.cdc-reactor/broker` by default; with `memory` it keeps nothing. `create` names
    what to create, as TOPIC or TOPIC:SUBSCRIPTION, each a full name or an id in the project `local`.
    """
    if memory and data is not None:
        raise UsageError("--memory keeps nothing and --data keeps everything; give one of them")
    resources = [_Resource(wanted) for wanted in create]
    folder = None if memory else (data or DEFAULT_DATA)
    gc.set_threshold(*_GC_THRESHOLDS)
    if asyncio.run(_serve(host, port, folder, resources)) == signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(host: str, port: int, folder: Path | None, resources: Sequence[_Resource]) -> signal.Signals:
    stopping: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    for received in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(received, _stop, stopping, received)
    server = BrokerServer(host=host, port=port, folder=folder)
    await server.start()
    try:
        for resource in resources:
            await resource.create(server)
        sys.stdout.write(_greeting(server.address, folder))
        sys.stdout.flush()
        return await stopping
    finally:
        await server.stop()


def _stop(stopping: asyncio.Future[signal.Signals], received: signal.Signals) -> None:
    if not stopping.done():
        stopping.set_result(received)


def _greeting(address: str, folder: Path | None) -> str:
    keeps = f"keeping its data in {folder}" if folder else "in memory"
    return f"Pub/Sub broker listening on {address}, {keeps}.  export PUBSUB_EMULATOR_HOST={address}\n"


class _Resource:
    """A topic to create, and perhaps an ordered subscription to it."""

    def __init__(self, wanted: str) -> None:
        topic, _, subscription = wanted.partition(":")
        if not topic:
            raise UsageError(f"--create {wanted}: a topic is needed, as TOPIC or TOPIC:SUBSCRIPTION")
        self.topic = _full_name(topic, "topics")
        self.subscription = _full_name(subscription, "subscriptions") if subscription else ""

    async def create(self, server: BrokerServer) -> None:
        """Create what is not there already; raises UsageError for a name that cannot be one."""
        try:
            await server.create(self.topic, self.subscription)
        except Refused as refused:
            raise UsageError(f"--create: {refused}") from None


def _full_name(name: str, kind: str) -> str:
    return name if name.startswith("projects/") else f"projects/{DEFAULT_PROJECT}/{kind}/{name}"
