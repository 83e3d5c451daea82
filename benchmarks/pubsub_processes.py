"""Processes seen from outside: started, told to end, and asked how much of the processors they have used.

What is measured knows nothing of it. CPU time comes from Linux' /proc, in which it stands in hundredths of a second,
so a window should have a second or more. Neighbours: `pubsub_feed` is the broker's process, `pubsub_consumers` are
those that consume.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 10.0
_TOLD_LINES = 12
_POLL_SECONDS = 0.02


class Process:
    """A child in a process group of its own; what it prints goes to a file. A context manager, which ends it."""

    def __init__(self, command: Sequence[str], *, environ: Mapping[str, str], folder: Path, name: str) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-').replace('/', '-')}.log"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603 - commands of this benchmark
                command,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def cpu_seconds(self) -> float:
        """Say how much CPU time all its threads have used; 0 where it has ended."""
        with suppress(OSError):
            # After the name in brackets, which may hold anything: proc_pid_stat(5), utime and stime.
            fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return 0.0

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._child.stdin is not None, "it is a pipe"
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until it has printed what matches; AssertionError where it ends, or where that takes too long."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.said)) is None:
            self.check()
            assert time.monotonic() < deadline, f"{self.name} did not say {pattern} in {seconds:g} s"
            time.sleep(_POLL_SECONDS)
        return found

    def check(self) -> None:
        """Raise AssertionError with its last words where it has ended by itself."""
        assert self.is_running, f"{self.name} ended: {' | '.join(self.said.splitlines()[-_TOLD_LINES:])}"

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL where that is not enough."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        if self.is_running:
            self._child.terminate()
            try:
                self._child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()


def busy_seconds() -> float:
    """Say how much CPU time this machine has used for anything, stolen time included, since it was started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS
