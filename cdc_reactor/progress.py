"""How far a replay is: a bar on a terminal, a plain line every few seconds elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cdc_reactor.captures import Capture

_LINE_SECONDS = 5.0


class TerminalProgress:
    """A bar with the share of bytes read, the rate, the time left and the problems met."""

    def __init__(self, captures: list[Capture]) -> None:
        sizes = [capture.size_bytes for capture in captures]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._order = {id(capture): sum(size or 0 for size in sizes[:n]) for n, capture in enumerate(captures)}
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("replay", total=self._total, counts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def watch(self, capture: Capture, messages: int, problems: int) -> None:
        """Redraw the bar."""
        rate = messages / max(1e-9, time.monotonic() - self._started)
        counts = f"{messages:,} messages, {rate:,.0f}/s" + (f", [red]{problems:,} problems[/red]" if problems else "")
        done = self._order.get(id(capture), 0) + capture.consumed_bytes
        self._progress.update(self._task, completed=done, description=_short(capture.name), counts=counts)


class LineProgress:
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def watch(self, capture: Capture, messages: int, problems: int) -> None:
        """Print a line where the last is old enough."""
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS:
            return
        self._told = now
        share = f" {capture.consumed_bytes / capture.size_bytes:.0%}" if capture.size_bytes else ""
        rate = messages / (now - self._started)
        with suppress(OSError):  # whoever read standard error is gone; the replay is not
            sys.stderr.write(f"{capture.name}{share}: {messages:,} messages, {rate:,.0f}/s, {problems:,} problems\n")


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"


def progress(captures: list[Capture]) -> TerminalProgress | LineProgress:
    """Choose by where standard error goes."""
    return TerminalProgress(captures) if sys.stderr.isatty() else LineProgress()
