"""Group commit: who waits is answered in order and only when it is safe; a full disk refuses and loses nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.refusals import Code, Refused
from cdc_reactor.local.store import Store
from cdc_reactor.local.writer import Writer


def published(seq, size=10):
    return (seq, 1, 1.0, "", b"x" * size)


def run(folder, scenario):
    """Run a scenario with a journal, its writer and the store; return the numbers of the messages that are stored then."""

    async def whole():
        store, journal = Store.open(folder), Journal()
        writer = Writer(journal, store)
        try:
            await scenario(journal, writer, store)
            await writer.stop()
            return [seq for seq, *_ in store.messages()]
        finally:
            store.close()

    return asyncio.run(whole())


def test_those_who_wait_together_are_answered_in_order_after_one_write(folder):
    done = []

    async def scenario(journal, writer, store):
        waiting = []
        for seq in range(1, 6):
            journal.note(Op.PUBLISHED, published(seq))
            waiting.append(asyncio.create_task(writer.written(lambda seq=seq: done.append(seq))))
        await asyncio.gather(*waiting)
        assert [seq for seq, *_ in store.messages()] == [1, 2, 3, 4, 5]

    assert run(folder, scenario) == [1, 2, 3, 4, 5]
    assert done == [1, 2, 3, 4, 5]


def test_what_nobody_waits_for_is_written_soon_or_at_the_end(folder, eventually):
    def is_written():
        with closing(sqlite3.connect(folder / "broker.sqlite3")) as reader:
            return reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)

    async def scenario(journal, writer, store):
        journal.note(Op.PUBLISHED, published(1))
        writer.poke()
        await asyncio.to_thread(eventually, is_written)
        journal.note(Op.PUBLISHED, published(2))

    assert run(folder, scenario) == [1, 2]


def test_a_full_disk_refuses_publishers_and_keeps_all_else_for_later(folder, caplog):
    delivered: list[str] = []

    async def scenario(journal, writer, store):
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        journal.note(Op.PUBLISHED, published(1, 1_000_000))
        journal.note(Op.PUBLISHED, published(2))
        journal.note(Op.RESERVED, (77,))
        with pytest.raises(Refused) as refused:
            await writer.written(lambda: delivered.append("refused"), seqs=[1])
        assert refused.value.code is Code.UNAVAILABLE
        store._connection.execute("PRAGMA max_page_count = 1000000")
        await writer.written(lambda: delivered.append("later"))
        assert store.reserved() == 77

    assert run(folder, scenario) == [2]
    assert delivered == ["later"]
    assert "could not write" in caplog.text
