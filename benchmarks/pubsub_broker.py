"""The process of the local broker in the Pub/Sub benchmark: `cdc-reactor broker --memory`, and a way to fill it fast.

Each line on its standard input, `SUBSCRIPTION COUNT FORM`, publishes so many messages of a form to the topic that has
the subscription's name, and is answered by a line on standard output. That goes past gRPC on purpose: a publish request
may have messages of one ordering key only (https://cloud.google.com/pubsub/docs/publisher), so that a backlog of a
hundred thousand rows would take as many requests. Everything else is the broker as it is. `pubsub_feed` starts it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

from google.pubsub_v1 import types

from benchmarks.pubsub_messages import Published, endless, form_named
from benchmarks.pubsub_peers import PROJECT
from cdc_reactor.local.broker_server import BrokerServer

_CHUNK = 1000

# As `broker_command` has it.
_GC_THRESHOLDS = (100_000, 50, 100)


async def serve() -> None:
    """Serve until standard input ends."""
    server = BrokerServer()
    await server.start()
    _say(f"listening on {server.address}")
    async for line in _lines():
        subscription, count, form = line.split(" ", 2)
        await _publish(server, subscription, int(count), form)
        _say(f"published {line}")
    await server.stop()


async def _publish(server: BrokerServer, subscription: str, count: int, form: str) -> None:
    topic = server.engine.broker.topic(f"projects/{PROJECT}/topics/{subscription}")
    messages = endless(form_named(form))
    for done in range(0, count, _CHUNK):
        chunk = islice(messages, min(_CHUNK, count - done))
        await server.engine.publish(topic, [(_body(message), message.ordering_key) for message in chunk])
        await asyncio.sleep(0)  # whoever calls meanwhile is answered


def _body(message: Published) -> bytes:
    encoded: bytes = _new(
        data=message.data, ordering_key=message.ordering_key, attributes=dict(message.attributes)
    ).SerializeToString()
    return encoded


_new: Any = types.PubsubMessage.pb()


async def _lines() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line.strip()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    gc.set_threshold(*_GC_THRESHOLDS)
    asyncio.run(serve())
