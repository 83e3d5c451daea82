"""The same file through bytewax, as its documentation has it: file source, map, batches, a sink that does nothing.

Two flows. The lean one hands the sink the batches of lines as the source read them, whatever their tables: the least
that a bytewax flow can do. The keyed one collects a batch for each table, as the reactor does.
Import it only where bytewax is installed (the extra `bench`).
"""

# bytewax may be absent, and its bases then are Any; where it is there, some of its functions have no annotations.
# mypy: disallow-subclassing-any=False, disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from benchmarks.corpus import MAX_SIZE

#: What a sink is given: a list for each batch.
Take = Callable[[list[Any]], None]


def take_nothing(_: list[Any]) -> None:
    """Do nothing with a batch."""


class _Partition(StatelessSinkPartition[Any]):
    def __init__(self, take: Take) -> None:
        self._take = take

    def write_batch(self, items: list[Any]) -> None:
        self._take(items)


class _Sink(DynamicSink[Any]):
    def __init__(self, take: Take) -> None:
        self._take = take

    def build(self, _step_id: str, _worker_index: int, _worker_count: int) -> _Partition:
        return _Partition(self._take)


def run_lean(path: Path, take: Take = take_nothing) -> None:
    """Run the flow whose batches are those of the source."""
    flow = Dataflow("lean")
    lines = op.input("lines", flow, FileSource(path, batch_size=MAX_SIZE))
    op.output("sink", op.map("parse", lines, orjson.loads), _Sink(take))
    run_main(flow)


def run_keyed(path: Path, take: Take = take_nothing) -> None:
    """Run the flow that collects batches for each table."""
    flow = Dataflow("keyed")
    lines = op.input("lines", flow, FileSource(path, batch_size=MAX_SIZE))
    keyed = op.key_on("key", op.map("parse", lines, orjson.loads), _table)
    batches = op.collect("collect", keyed, timedelta(seconds=60), MAX_SIZE)

    def take_each(collected: list[tuple[str, list[Any]]]) -> None:
        for _, batch in collected:
            take(batch)

    op.output("sink", batches, _Sink(take_each))
    run_main(flow)


def _table(message: dict[str, Any]) -> str:
    payload = message.get("payload", message)
    table: str = payload["source"]["table"]
    return table
