"""How far a replay came, kept in a file so that the next run goes on there.

For each capture the checkpoint holds how many of its messages, from the first on, are settled without a gap. It is
written whole and renamed into place, after everything that it vouches for is on disk; so a replay that is killed at
any moment repeats some messages and loses none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import orjson

from cdc_reactor.errors import UsageError, WorldError

_VERSION = 1
_HEAD_BYTES = 65_536


class _Entry(msgspec.Struct):
    settled: int
    is_done: bool
    size: int
    head_bytes: int
    head: str
    #: First and last positions of what is settled beyond that.
    ahead: list[tuple[int, int]] = []


class _Content(msgspec.Struct):
    version: int
    conditions: dict[str, Any]
    files: dict[str, _Entry]


class Watermark:
    """The number of positions, from the first on, that are settled without a gap."""

    __slots__ = ("_ahead", "settled")

    def __init__(self, settled: int = 0, ahead: Iterable[tuple[int, int]] = ()) -> None:
        self.settled = settled
        self._ahead = {position for first, last in ahead for position in range(first, last + 1)}

    @property
    def ahead(self) -> list[tuple[int, int]]:
        """First and last position of each run of positions that are settled beyond a gap."""
        runs: list[tuple[int, int]] = []
        for position in sorted(self._ahead):
            if runs and runs[-1][1] == position - 1:
                runs[-1] = runs[-1][0], position
            else:
                runs.append((position, position))
        return runs

    def is_settled(self, position: int) -> bool:
        """Tell whether a position is settled."""
        return position < self.settled or position in self._ahead

    def settle(self, positions: Iterable[int]) -> None:
        """Count positions (from 0) as settled, in any order."""
        self._ahead.update(positions)
        while self.settled in self._ahead:
            self._ahead.discard(self.settled)
            self.settled += 1


class Checkpoint:
    """The file behind `--checkpoint`; `conditions` is what must be the same when a replay is resumed."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        self._path = path
        self._files: dict[str, dict[str, Any]] = {}
        self._conditions: dict[str, Any] = orjson.loads(orjson.dumps(conditions))
        if path.exists() and not path.is_file():
            raise UsageError(f"--checkpoint {path}: this is no file; name one that may be written")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"--checkpoint {path}: its folder does not exist or may not be written")
        self.is_resumed = path.exists()
        if self.is_resumed:
            self._load()

    def _load(self) -> None:
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
            version, conditions = content.version, content.conditions
            files = {name: msgspec.structs.asdict(entry) for name, entry in content.files.items()}
        except OSError as error:
            raise UsageError(f"--checkpoint {self._path}: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise UsageError(f"--checkpoint {self._path}: this is no checkpoint; name another file") from None
        if version != _VERSION:
            raise UsageError(f"--checkpoint {self._path}: version {version} is not one that we read ({_VERSION})")
        if conditions != self._conditions:
            names = conditions | self._conditions
            other = [name for name in names if conditions.get(name) != self._conditions.get(name)]
            raise UsageError(
                f"--checkpoint {self._path} belongs to a replay with another {', '.join(other)}; "
                "repeat that command, or name another file"
            )
        self._files = files

    def start(self, name: str) -> tuple[Watermark, bool]:
        """Tell which messages of a capture are settled, and whether that is all of them.

        Raises:
            UsageError: the capture is another one than when the checkpoint was written.
        """
        key = _as_unicode(name)
        known = self._files.get(key)
        now = _identify(name)
        if known is None:
            self._files[key] = {"settled": 0, "is_done": False, "ahead": [], **now}
            return Watermark(), False
        if now["size"] < known["size"] or _digest(name, known["head_bytes"]) != known["head"]:
            raise UsageError(
                f"{name} is not the file that --checkpoint {self._path} was written for; name another checkpoint"
            )
        # A file that grew has more to give.
        is_done = known["is_done"] and known["size"] == now["size"]
        known.update(now, is_done=is_done)
        return Watermark(known["settled"], known["ahead"]), is_done

    def reached(self, name: str, mark: Watermark, *, is_done: bool = False) -> None:
        """Note how far a capture came; `save` writes it."""
        self._files[_as_unicode(name)].update(settled=mark.settled, ahead=mark.ahead, is_done=is_done)

    def save(self) -> None:
        """Write the file; WorldError where the disk refuses."""
        content = {"version": _VERSION, "conditions": self._conditions, "files": self._files}
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            with new.open("wb") as file:
                file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise WorldError(f"--checkpoint {self._path} cannot be written: {error.strerror}") from error


def _as_unicode(name: str) -> str:
    """Make a path printable whose bytes are no UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _identify(name: str) -> dict[str, Any]:
    """Tell a file again: its size, and a digest of how it begins. What is no local file is known by its name only."""
    path = Path(name)
    size = path.stat().st_size if path.is_file() else 0
    head_bytes = min(size, _HEAD_BYTES)
    return {"size": size, "head_bytes": head_bytes, "head": _digest(name, head_bytes)}


def _digest(name: str, head_bytes: int) -> str:
    if not head_bytes:
        return ""
    try:
        with Path(name).open("rb") as file:
            return hashlib.sha256(file.read(head_bytes)).hexdigest()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
