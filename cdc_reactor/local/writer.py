"""Group commit: everything that the journal collected while a write was under way goes into the next one.

One task of the event loop and one thread. In order: writes, and what is done after them. Without acks or publishes it
sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from cdc_reactor.local.faults import unavailable
from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.store import Store

_log = logging.getLogger("cdc_reactor")

#: How long an ack, which nobody waits for, may wait for company.
ACK_DELAY = 0.02


class _Waiting(NamedTuple):
    then: Callable[[], None]
    seqs: Collection[int]
    future: asyncio.Future[None]


class Writer:
    """Writes a journal to a store. Start and stop it in the event loop that uses it."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._thread = ThreadPoolExecutor(1, "broker-store")
        self._waiting: list[_Waiting] = []
        self._wanted = asyncio.Event()
        self._is_poked = False
        self._task = asyncio.create_task(self._run())

    async def written(self, then: Callable[[], None] = lambda: None, *, seqs: Collection[int] = ()) -> None:
        """Wait until everything noted so far is safe, then do `then`, in the order of these calls.

        Raises UNAVAILABLE when it could not be written; then `then` is not done, and the messages `seqs` are forgotten.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(then, seqs, future))
        self._wanted.set()
        await future

    def poke(self) -> None:
        """See to it that what was noted is written soon."""
        if not self._is_poked and self._journal:
            self._is_poked = True
            asyncio.get_running_loop().call_later(ACK_DELAY, self._wanted.set)

    async def stop(self) -> None:
        """Write the rest and end the thread."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._write_once()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._is_poked = False
            await asyncio.shield(asyncio.create_task(self._write_once()))

    async def _write_once(self) -> None:
        waiting, self._waiting = self._waiting, []
        runs = self._journal.take()
        try:
            if runs:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._store.write, runs)
        except sqlite3.Error as error:
            _log.error("the broker could not write: %s; it refuses what it could not keep", error)
            self._put_back(runs, {seq for one in waiting for seq in one.seqs})
            for one in waiting:
                _fail(one.future)
            return
        for one in waiting:
            one.then()
            if not one.future.done():
                one.future.set_result(None)

    def _put_back(self, runs: list[tuple[Op, list[Any]]], forgotten: Collection[int]) -> None:
        """Keep for the next time all but what publishers are told to publish again."""
        later = self._journal.take()
        for op, rows in (*runs, *later):
            for row in rows:
                if op is not Op.PUBLISHED or row[0] not in forgotten:
                    self._journal.note(op, row)


def _fail(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(unavailable("The broker could not write to its disk"))
