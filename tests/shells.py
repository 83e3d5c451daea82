"""Commands of ours and clients of others in processes of their own, as people run them.

All that is started here is ended here, by its own process group. All waiting is done by `until`, against a deadline.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

_never = threading.Event()


def until(condition: Callable[[], Any], what: str, within: float = 30.0) -> Any:
    """Wait for a condition; return what it gave."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        _never.wait(0.01)
    return found


def environment(**more: str) -> dict[str, str]:
    """This process's, less what a developer may have set for a daemon of their own; the samples can be imported."""
    theirs = ("CDC_", "PUBSUB_", "GOOGLE_CLOUD_PROJECT")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return {**ours, "PYTHONPATH": str(ROOT), **more}


class Process:
    """A `cdc-reactor` command in a process group of its own; its output goes to files."""

    def __init__(self, folder: Path, arguments: Sequence[str], number: int, variables: dict[str, str]) -> None:
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc_reactor.cli", *arguments],
                cwd=folder,
                env=environment(**variables),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def says(self, pattern: str, within: float = 30.0) -> re.Match[str]:
        """Wait for something in its output."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.out + self.err)
            assert match or self._process.poll() is None, f"it ended with {self._process.returncode}: {self.err}"
            return match

        match = until(found, f"{pattern!r} in {self.out}{self.err}", within)
        assert isinstance(match, re.Match)
        return match

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM, as an orchestrator does."""
        self.send(signal.SIGTERM)

    def interrupt(self) -> None:
        """Press Ctrl-C: every process of the group gets the signal."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash does, and wait for its end."""
        self._process.kill()
        self._process.wait(10)

    def status(self, within: float = 30.0) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        return self._process.wait(within)

    def group(self) -> list[str]:
        """The processes of the group that are still there."""
        return subprocess.run(
            ["ps", "-o", "pid=", "-g", str(self._process.pid)], check=False, capture_output=True, text=True
        ).stdout.split()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.group():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


def publish(address: str, messages: str) -> list[str]:
    """Publish by the official client in another process, see `official_publisher`; return the message ids."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.official_publisher"],
        cwd=ROOT,
        env=environment(PUBSUB_EMULATOR_HOST=address),
        input=messages,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
