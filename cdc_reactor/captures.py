"""Captured files → Messages: what `cdc-reactor replay PATH…` reads.

`find_captures` turns what was typed into Captures, and a Capture streams its Messages in constant memory. Neighbours:
capture_bytes and capture_cloud (where bytes come from), capture_recognition (which format), capture_formats and
capture_avro (how it is read). `dead_letter_line` writes what the format `dead-letters` reads back.
"""

from __future__ import annotations

import base64
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from cdc_reactor.capture_avro import read_container
from cdc_reactor.capture_bytes import CHUNK_BYTES, CaptureError, LocalFile, Origin, StandardInput, Unpacked
from cdc_reactor.capture_formats import TEXT_FORMATS, Element, Reader, Reading, Unreadable
from cdc_reactor.capture_recognition import MAX_HEAD_BYTES, is_document, recognise
from cdc_reactor.errors import UsageError
from cdc_reactor.messages import Message
from cdc_reactor.schemas import SchemaStore

__all__ = ["FORMATS", "Capture", "CaptureError", "Element", "Unreadable", "dead_letter_line", "find_captures"]

_READERS: Mapping[str, Reader] = {**TEXT_FORMATS, "avro": read_container}

FORMATS: tuple[str, ...] = tuple(_READERS)
"""The names that `--format` knows."""

_CAPTURE = re.compile(r".*\.(ndjson|jsonl|json|b64|avro|txt)(\.(gz|zst|bz2|xz))?", re.IGNORECASE)
_NO_CAPTURE = re.compile(r"(manifest|.*\.registry)\.json(\.(gz|zst|bz2|xz))?", re.IGNORECASE)
_LOOKED_FOR = "*.ndjson, *.jsonl, *.json, *.b64, *.avro, *.txt, packed or not (.gz .zst .bz2 .xz)"
_CLOUD_SCHEMES = ("gs://", "s3://")


class Capture:
    """One captured file, cloud object or stream; read by one thread, one reading at a time.

    name: the path or address as text.
    size_bytes: its size as stored; None for standard input.
    consumed_bytes: how much of that has been read, for a progress bar; a little ahead of the messages handed out.
    format: the name of the format, once reading has begun.
    is_empty: whether it was read to its end and held nothing at all.
    """

    def __init__(self, origin: Origin) -> None:
        self.name = origin.name
        self.size_bytes = origin.size_bytes
        self.format: str | None = None
        self.is_empty = False
        self._origin = origin
        self._unpacked: Unpacked | None = None
        self._reading = Reading(origin.name)

    def __repr__(self) -> str:
        return f"Capture({self.name!r})"

    @property
    def consumed_bytes(self) -> int:
        """How many bytes, as stored, have been read."""
        return 0 if self._unpacked is None else self._unpacked.consumed_bytes

    @property
    def ends_torn(self) -> bool:
        """Whether it is a local file of lines whose last line has no end, so that its writer may not be done."""
        if not isinstance(self._origin, LocalFile) or not self.size_bytes or self.format not in TEXT_FORMATS:
            return False
        with self._origin.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def place(self, n: int) -> str:
        """Say where the n-th element of `messages` stands, counted from 1: `PATH:LINE`, or `PATH: message N`."""
        return self._reading.place(n)

    def messages(
        self, form: str | None = None, *, schemas: SchemaStore | None = None, skip: int = 0
    ) -> Iterator[Element]:
        """Read from the start, lazily: a Message, or an Unreadable where one should be, in order.

        `form` is one of FORMATS; without it the content tells. `schemas` learns the writer schemas of Avro containers.
        The first `skip` elements are read and not handed out; `place` still counts them.

        Raises: CaptureError where it breaks off; UsageError when its format is none that we know, or it may not be
        read; WorldError when a disk or the network fails.
        """
        if form is not None and form not in _READERS:
            raise UsageError(f"--format {form}: no such format; there are {', '.join(FORMATS)}")
        return self._read(form, schemas, skip)

    def _read(self, form: str | None, schemas: SchemaStore | None, skip: int) -> Iterator[Element]:
        reading = self._reading = Reading(self.name, schemas)
        with closing(self._origin.open()) as source:
            try:
                self._unpacked = Unpacked(source, self.name)
                self.format = form or self._recognise(self._unpacked)
                if self.format is not None:
                    stream: io.BufferedReader = io.BufferedReader(self._unpacked, CHUNK_BYTES)
                    yield from islice(_READERS[self.format](stream, reading), skip, None)
            except CaptureError as error:
                raise self._broken(error) from error
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from error
        self.is_empty = reading.count == len(reading.blank_lines)

    def check(self) -> None:
        """Look at how a local file begins; UsageError where it is no capture or may not be read."""
        if not isinstance(self._origin, LocalFile) or self.size_bytes is None:
            return  # what is read here could not be read again
        with closing(self._origin.open()) as source, suppress(CaptureError):
            try:
                self._recognise(Unpacked(source, self.name))
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from error

    def _recognise(self, unpacked: Unpacked) -> str | None:
        """Return the format's name; None for nothing but white space, which is a capture of no messages."""
        head = unpacked.peek_line(MAX_HEAD_BYTES)
        form = recognise(head)
        if form is None and head.strip():
            raise UsageError(_unknown(head))
        return form

    def _broken(self, error: CaptureError) -> CaptureError:
        reading = self._reading
        return CaptureError(
            f"{self.name}: {error} after {reading.count:,} {reading.unit}s, at byte {self.consumed_bytes:,} or shortly "
            "before; the file is cut or damaged: copy it again"
        )


def _unknown(head: bytes) -> str:
    if is_document(head):
        return "it is one JSON document, and no capture: captures hold one JSON value a line (`jq -c .` makes them so)"
    return (
        f"it is no capture of a format that we know: it starts with {head[:16]!r}; "
        f"if it is one, name its format: --format {'|'.join(FORMATS)}"
    )


def find_captures(paths: Sequence[str]) -> list[Capture]:
    """Return the captures that `paths` name, each once, in the order of `paths`; folders and globs in natural order.

    A path is a file, a folder (searched to its depths), a glob, `-` for standard input, or a gs:// or s3:// address of
    an object or, where it ends in `/`, of all objects under it.

    Raises: UsageError when a path names nothing.
    """
    found: dict[str, Origin] = {}
    for path in paths:
        for origin in _find(path):
            key = os.path.realpath(origin.path) if isinstance(origin, LocalFile) else origin.name
            found.setdefault(key, origin)
    return [Capture(origin) for origin in found.values()]


def _find(path: str) -> Iterable[Origin]:
    if path == "-":
        return [StandardInput()]
    if path.startswith(_CLOUD_SCHEMES):
        return _find_in_cloud(path)
    try:
        is_there = Path(path).exists()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if is_there:
        return _find_local(Path(path))
    if glob.has_magic(path):
        return _find_by_glob(path)
    raise UsageError(f"{path}: there is no such file or folder")


def _find_local(path: Path) -> list[LocalFile]:
    return _find_in_folder(path) if path.is_dir() else [LocalFile(path)]


def _find_in_folder(folder: Path) -> list[LocalFile]:
    captures = [LocalFile(file) for file in sorted(_walk(folder), key=_natural) if not _is_json_document(file)]
    if not captures:
        raise UsageError(f"{folder}: there is no capture in this folder; looked for {_LOOKED_FOR}")
    return captures


def _walk(folder: Path) -> Iterator[Path]:
    """Hand out the files named like captures, leaving out what is hidden."""
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if _is_named_like_capture(name) and name[0] != ".")


def _refuse_folder(error: OSError) -> None:
    """Say of a folder that it cannot be read; passing it over would leave captures out without a word."""
    raise UsageError(f"{error.filename}: cannot be read: {error.strerror}")


def _is_json_document(file: Path) -> bool:
    """Tell whether a file of a folder is a JSON document beside the captures, such as a schema."""
    if ".json" not in file.suffixes:
        return False
    with closing(LocalFile(file).open()) as source:
        try:
            return is_document(Unpacked(source, str(file)).peek_line(MAX_HEAD_BYTES))
        except CaptureError:
            return False


def _find_by_glob(pattern: str) -> list[LocalFile]:
    matches = sorted(map(Path, glob.glob(pattern, recursive=True)), key=_natural)  # noqa: PTH207 - it takes any pattern
    if not matches:
        raise UsageError(f"{pattern}: no file matches")
    return [file for match in matches for file in _find_local(match)]


def _find_in_cloud(url: str) -> list[Origin]:
    try:
        from cdc_reactor.capture_cloud import find_objects  # noqa: PLC0415 - its package is the extra `cloud`
    except ImportError as error:
        raise UsageError(f"{url}: reading from the cloud needs obstore: pip install 'cdc-reactor[cloud]'") from error
    found = find_objects(url)
    if len(found) == 1 and found[0].name == url:
        return list(found)
    # Pub/Sub gives the objects that it writes no suffix, unless told to.
    captures = [each for each in found if _is_object_of_capture(each)]
    if not captures:
        raise UsageError(f"{url}: there is no capture under this address; looked for {_LOOKED_FOR}")
    return sorted(captures, key=lambda each: _natural(each.name))


def _is_object_of_capture(found: Origin) -> bool:
    """Tell by the name; an empty object without a suffix is how consoles mark a folder."""
    has_suffix = "." in found.name.rsplit("/", 1)[-1]
    return _is_named_like_capture(found.name) if has_suffix else bool(found.size_bytes)


def _is_named_like_capture(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return _CAPTURE.fullmatch(name) is not None and _NO_CAPTURE.fullmatch(name) is None


def _natural(path: Path | str) -> list[tuple[int, str]]:
    """Order as people count: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def dead_letter_line(
    message: Message, *, error: str, error_class: str, handler: str, table: str, place: str, attempts: int
) -> bytes:
    """Write a line of the format `dead-letters`, line end included: the message exactly, and why it lies there."""
    why = {"reason": error, "error_class": error_class, "handler": handler, "table": table, "place": place}
    letter = {
        "dead_letter": {name: _as_unicode(text) for name, text in why.items()} | {"attempts": attempts},
        "message": _to_json(message),
    }
    return orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE)


def _to_json(message: Message) -> dict[str, Any]:
    """Name the fields as Google's REST interface names those of a `PubsubMessage`."""
    fields = {
        "data": base64.b64encode(message.data).decode(),
        "attributes": dict(message.attributes),
        "orderingKey": message.ordering_key,
        "messageId": message.message_id,
    }
    if message.publish_time is not None:
        fields["publishTime"] = message.publish_time.isoformat()
    return fields


def _as_unicode(text: str) -> str:
    """Make what orjson refuses printable: paths whose bytes are no UTF-8 come as lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
