"""Calls that may block for long, made beside the event loop, in threads that nobody waits for at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread


async def aside(function: Callable[[], object]) -> None:
    """Call a function in a thread of its own, and raise what it raises.

    asyncio's own threads would do, but for the end: a process waits for them, and a database that does not answer keeps
    its caller for minutes.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def report(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def call() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as caught:  # noqa: BLE001 - a thread ends here; whoever waits raises it
            error = caught
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(report, error)

    Thread(target=call, name="aside", daemon=True).start()
    await done
