"""The consumers that we are compared with, each as its own documentation shows it, with a handler that does nothing.

    python pubsub_peers.py PEER SUBSCRIPTION

Such a process knows nothing of the benchmark: PUBSUB_EMULATOR_HOST says where the broker is, and it consumes until
SIGTERM. It runs in the peer's own environment, so only the standard library and the peer are imported here, the
latter where it is used. Where BENCH_SEEN names a file, every message that a handler is given goes there, one line of
JSON each: that is how contents are compared, never when times are taken. Neighbour: `pubsub_consumers` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias, cast

#: The project of everything in the benchmark.
PROJECT = "bench"

_See: TypeAlias = Callable[[Any], None]


def subscribe(subscription: str, see: _See | None) -> None:
    """Consume with google-cloud-pubsub's `subscribe()` as it comes, JSON read by orjson."""
    loads, pubsub_v1 = _imported("orjson").loads, _imported("google.cloud.pubsub_v1")

    def callback(message: Any) -> None:
        value = loads(message.data)
        if see is not None:
            see(value)
        message.ack()

    client = pubsub_v1.SubscriberClient()
    client.subscribe(client.subscription_path(PROJECT, subscription), callback=callback)
    _wait_for_the_end()


def rele(subscription: str, see: _See | None) -> None:
    """Consume with rele's worker: json.loads, its default of two threads, its default middleware."""
    package, workers = _imported("rele"), _imported("rele.worker")

    def handler(data: Any, **_: Any) -> None:
        if see is not None:
            see(data)

    # Rele asks www.google.com whether there is a network before it subscribes; where there is none it would end.
    workers.check_internet_connection = lambda _: True
    package.config.setup({"GC_PROJECT_ID": PROJECT, "SUB_PREFIX": None})
    worker = workers.Worker([package.sub(topic=subscription)(handler)], None, PROJECT, None, None, 60, 2)
    worker.start()
    _wait_for_the_end()


def fastpubsub(subscription: str, see: _See | None) -> None:
    """Consume with a FastPubSub application under uvicorn, as its command `run` does; logs from warnings on."""
    package, loads = _imported("fastpubsub"), _imported("orjson").loads
    broker = package.PubSubBroker(project_id=PROJECT)

    async def handler(message: Any) -> None:
        value = loads(message.data)
        if see is not None:
            see(value)

    decorate = broker.subscriber("bench", topic_name=subscription, subscription_name=subscription, autocreate=False)
    decorate(handler)
    # A line for each message is its default; nobody who measures would leave it so.
    os.environ["FASTPUBSUB_LOG_LEVEL"] = "WARNING"
    _imported("fastpubsub.logger").configure()
    _imported("uvicorn").run(package.FastPubSub(broker), lifespan="on", log_level="warning", host="127.0.0.1", port=0)


PEERS: Mapping[str, Callable[[str, _See | None], None]] = {
    "subscribe": subscribe,
    "rele": rele,
    "fastpubsub": fastpubsub,
}


def seen_by(name: str | None) -> _See | None:
    """Return what notes messages in a file of this name; None where none is asked for."""
    if name is None:
        return None
    file = Path(name).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open as long as the process
    lock = threading.Lock()

    def see(value: Any) -> None:
        with lock:
            file.write(json.dumps(value) + "\n")

    return see


def _imported(name: str) -> Any:
    """Import what only a peer's environment has, and what has no types."""
    return importlib.import_module(name)


def _wait_for_the_end() -> None:
    """Sleep until SIGTERM, then leave at once: what is left needs no good order here."""

    def leave(_: int, __: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    while True:
        signal.pause()


if __name__ == "__main__":
    _, peer, its_subscription = cast("tuple[str, str, str]", tuple(sys.argv))
    PEERS[peer](its_subscription, seen_by(os.environ.get("BENCH_SEEN")))
