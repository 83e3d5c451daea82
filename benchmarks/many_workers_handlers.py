"""The workers of `many_workers`: as many as it asks for, each noting when it got what.

Asked by the environment, because the daemon is a process of its own: how many workers, over how many topics, and the
file that they write to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.many_workers_topics import NOTE, topic_of
from cdc_reactor import Context, Event, Worker, subscribes

_TOPICS = int(os.environ["MANY_WORKERS_TOPICS"])
_FILE = os.open(os.environ["MANY_WORKERS_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class Tick(Event):
    """What is published: its number, and when (Unix seconds)."""

    number: int
    sent: float


def _event(number: int) -> type[Tick]:
    class OneTick(Tick, topic=topic_of(number)):
        pass

    return OneTick


def _note(worker: int) -> Callable[[Tick, Context], None]:
    def note(event: Tick, ctx: Context) -> None:  # noqa: ARG001 - every worker is given its context
        os.write(_FILE, NOTE.pack(worker, event.number, time.time() - event.sent))

    return note


def _workers() -> dict[str, Worker[Any]]:
    events = [_event(number) for number in range(_TOPICS)]
    return {
        f"worker_{n}": subscribes(events[n % _TOPICS], subscription=f"ticks-worker-{n}", name=f"worker-{n}")(_note(n))
        for n in range(int(os.environ["MANY_WORKERS"]))
    }


globals().update(_workers())
