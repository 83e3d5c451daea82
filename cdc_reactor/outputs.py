"""The files that a replay writes: events and dead letters, one to a line.

Both raise WorldError, naming the file and the cure, when the disk refuses; nothing counts as settled before they took
it.
"""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from cdc_reactor.captures import dead_letter_line
from cdc_reactor.errors import RemoteFailure, UsageError, WorldError
from cdc_reactor.events import EncodedEvent, Publication
from cdc_reactor.messages import Message, Settlement


class _Lines:
    """A file of lines; `append` goes on after its last whole line, else it begins anew."""

    def __init__(self, path: Path, option: str, *, append: bool, start: bytes) -> None:
        self._label = f"{option} {path}"
        try:
            if path.is_file():
                self._check_own(path, start)
                if append:
                    _cut_torn_line(path)
            self._file: BinaryIO = path.open("ab" if append else "wb")
        except OSError as error:
            raise UsageError(f"{self._label}: cannot be written: {error.strerror}") from error

    def _check_own(self, path: Path, start: bytes) -> None:
        """Leave a file alone that somebody else wrote."""
        with path.open("rb") as file:
            head = file.read(len(start))
        if head and not start.startswith(head):
            raise UsageError(f"{self._label}: there is a file of this name that is none of ours; name another one")

    def write_lines(self, lines: Iterator[bytes]) -> None:
        """Write lines; they are the system's, if not yet the disk's, when this returns."""
        try:
            self._file.writelines(lines)
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def flush(self, *, sync: bool) -> None:
        """Hand everything to the system, with `sync` to the disk."""
        try:
            self._file.flush()
            if sync and self._file.seekable():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the file; what could not be written was told before."""
        try:
            self._file.close()
        except OSError:
            return

    def _refused(self, error: OSError) -> WorldError:
        return WorldError(
            f"{self._label}: cannot be written: {error.strerror}. The replay stopped and lost nothing; make room and "
            "run it again (with --checkpoint it goes on where it was)"
        )


def _cut_torn_line(path: Path) -> None:
    """Remove a last line without an end, which a killed replay left; its message comes again."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep:
            start = max(0, keep - 65_536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < size:
            file.truncate(keep)


class EventLog:
    """Keeps events as NDJSON: `{"topic":…,"key":…,"event":{…}}`; to a file, to standard error, or nowhere."""

    def __init__(self, path: Path | None, *, append: bool = False, show: bool = False) -> None:
        self._lines = None if path is None else _Lines(path, "--events", append=append, start=b'{"topic":')
        self._show = show

    def write(self, publications: Sequence[Publication | EncodedEvent]) -> None:
        """Keep events in their order."""
        if self._lines is not None:
            self._lines.write_lines(_event_line(p, is_whole=True) for p in publications)
        if self._show:
            for publication in publications:
                with suppress(OSError):  # whoever read standard error is gone; the replay is not
                    sys.stderr.write(f"event {_event_line(publication, is_whole=False).decode()}")

    def flush(self, *, sync: bool) -> None:
        """Put what was written on disk."""
        if self._lines is not None:
            self._lines.flush(sync=sync)

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()


def _event_line(publication: Publication | EncodedEvent, *, is_whole: bool) -> bytes:
    """Write an event; whole, its attributes stand beside it, which people are spared."""
    event = publication if isinstance(publication, EncodedEvent) else EncodedEvent.of(publication)
    line: dict[str, Any] = {"topic": event.topic, "key": event.key}
    if is_whole and event.attributes:
        line["attributes"] = dict(event.attributes)
    if event.is_json:
        line["event"] = orjson.Fragment(event.data)
    else:
        line["data_base64"] = b64encode(event.data).decode()
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


class DeadLetters:
    """Keeps messages that were given up, byte for byte, in the form that replay reads back."""

    def __init__(self, path: Path) -> None:
        # Never begun anew: the letters of an earlier run may be the only trace of their messages.
        self._lines = _Lines(path, "--on-error", append=True, start=b'{"dead_letter":')

    def write(self, message: Message, settlement: Settlement, place: str, table: str) -> None:
        """Keep one message and why it lies there."""
        line = dead_letter_line(
            message,
            error=settlement.reason,
            error_class=_class_name(settlement.error),
            handler=settlement.handler,
            table=table,
            place=place,
            attempts=settlement.attempts,
        )
        self._lines.write_lines(iter((line,)))

    def flush(self, *, sync: bool) -> None:
        """Put what was written on disk."""
        self._lines.flush(sync=sync)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _class_name(error: BaseException | None) -> str:
    if error is None:
        return ""
    return error.error_class if isinstance(error, RemoteFailure) else type(error).__name__
