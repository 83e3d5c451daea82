"""The effect log: what handlers append to, and how it is read back.

A line begins with a line feed and ends with a semicolon, and the lines of one run are one write with O_APPEND. What the
kernel took is there whatever becomes of the process; where a kill cut a write off in the middle (Linux looks for a
fatal signal between two pages), the torn line lacks its semicolon, and does not count: its handler never returned.
Neighbours: `reacting` and `stock_client` write it, `checker` judges it.
"""

from __future__ import annotations

from pathlib import Path

from tests.faults.checker import Effect


class EffectLog:
    """Reads a log that others append to; reading again takes in only what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._taken = self._size_bytes = 0
        self._effects: list[Effect] = []

    def read(self) -> list[Effect]:
        """Give all effects so far, in their order; the same list each time, longer."""
        size_bytes = self.path.stat().st_size
        if size_bytes == self._size_bytes:
            return self._effects
        self._size_bytes = size_bytes
        with self.path.open("rb") as log:
            log.seek(self._taken)
            new = log.read()
        # A line that has no end yet may still be under way, unless another one has begun behind it.
        end = new.rfind(b";") + 1
        self._taken += end
        self._effects.extend(_effect(line) for line in new[:end].split(b"\n") if line.endswith(b";"))
        return self._effects

    def __len__(self) -> int:
        return len(self.read())


def _effect(line: bytes) -> Effect:
    row, seq, op, pid, time = line[:-1].split()
    return Effect(int(row), int(seq), op.decode(), int(pid), float(time))
