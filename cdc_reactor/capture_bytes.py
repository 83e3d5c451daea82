"""The bytes of a capture: a file or standard input, counted and unpacked while they are read.

Compression is told by the first bytes, never by the name. Memory is constant: one piece of packed bytes and what it
unpacks to. What the unpacked bytes mean is not known here (capture_formats); cloud objects are in capture_cloud.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import zstandard

from cdc_reactor.errors import DecodeError, UsageError, WorldError

CHUNK_BYTES = 256 * 1024

# Small, because what a piece unpacks to is lost when the damage is found in that same piece.
_PIECE_BYTES = 4 * 1024
_PACKED_BYTES = 32 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CaptureError(DecodeError):
    """Raised when a capture breaks off; all that could be read before the break has been handed out."""


class ByteSource(Protocol):
    """Bytes in order."""

    def read(self, size: int, /) -> bytes | None:
        """Wait for some bytes and return at most `size` of them; none means the end."""

    def close(self) -> None:
        """Let go of the file or connection."""


class Origin(Protocol):
    """Where a capture's bytes come from; `size_bytes` is None when nobody can know."""

    @property
    def name(self) -> str:
        """The path or address, as a person would type it."""

    @property
    def size_bytes(self) -> int | None:
        """How many bytes there are, packed as they are."""

    def open(self) -> ByteSource:
        """Start at the first byte."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def size_bytes(self) -> int | None:
        """The file's size; None for a named pipe or a device."""
        return self.path.stat().st_size if self.path.is_file() else None

    def open(self) -> ByteSource:
        """Start at the first byte.

        Raises: UsageError when we may not read it.
        """
        try:
            return self.path.open("rb", buffering=0)
        except OSError as error:
            raise UsageError(f"{self.name}: cannot be read: {error.strerror}") from error


class _StandardInputSource:
    """Standard input, which is not ours to close; a line is handed out when it arrives, not when a buffer is full."""

    def read(self, size: int, /) -> bytes:
        # Any, because typeshed's BinaryIO lacks read1.
        stream: Any = sys.stdin.buffer
        data: bytes = stream.read1(size)
        return data

    def close(self) -> None:
        """Leave it open for whoever owns it."""


@dataclass(frozen=True, slots=True)
class StandardInput:
    """What is piped to us; it can be read once."""

    name: str = "-"
    size_bytes: int | None = None

    def open(self) -> ByteSource:
        """Start where standard input stands."""
        return _StandardInputSource()


class _Unpacker(Protocol):
    """What zlib, bz2, lzma and zstandard agree on: one member of a packed stream."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def _zstd() -> Any:
    # `zstd --long=31` is the largest window that zstd writes; the default refuses all above 128 MiB.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_PACKINGS: dict[str, tuple[bytes, Callable[[], _Unpacker]]] = {
    "gzip": (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    "zstd": (b"\x28\xb5\x2f\xfd", _zstd),
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
    "xz": (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
}
_LONGEST_MAGIC = 6
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class Unpacked(io.RawIOBase):
    """The bytes of a source, unpacked where they are packed; wrap it in an `io.BufferedReader` to read lines.

    Members one after another (`cat a.gz b.gz`) are one stream. A byte order mark at the start is dropped.

    Raises, when read: CaptureError where a packed stream is cut or damaged; WorldError when the disk fails.
    """

    def __init__(self, source: ByteSource, name: str) -> None:
        super().__init__()
        self._name = name
        self.consumed_bytes = 0
        self._source = source
        self._at_end = False
        self._packed = b""
        # A view, so that taking a part does not copy the rest: a piece may unpack to megabytes.
        self._pending = memoryview(b"")
        self._fill(_LONGEST_MAGIC)
        self.packing = next((name for name, (magic, _) in _PACKINGS.items() if self._packed.startswith(magic)), "")
        self._unpacker = _PACKINGS[self.packing][1]() if self.packing else None
        self._pending = memoryview(self._next().removeprefix(_BYTE_ORDER_MARK))

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is there; 0 means the end."""
        if not self._pending:
            self._pending = memoryview(self._next())
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        """Close the source as well."""
        if not self.closed:
            self._source.close()
        super().close()

    def peek_line(self, limit_bytes: int) -> bytes:
        """Return the bytes ahead, enough to hold the first line that is not blank, without taking them.

        Stops early at a zero byte, which no text has, and at `limit_bytes`. Waits for no more lines than one.
        """
        head = bytearray(self._pending)
        fresh = bytes(head).lstrip()
        while b"\n" not in fresh and b"\0" not in fresh and len(head) < limit_bytes:
            chunk = self._next()
            if not chunk:
                break
            fresh = chunk if head.strip() else chunk.lstrip()
            head += chunk
        self._pending = memoryview(bytes(head))
        return bytes(head)

    def _next(self) -> bytes:
        """Return some unpacked bytes; none at the end."""
        if self._unpacker is None:
            chunk, self._packed = self._packed or self._read(CHUNK_BYTES), b""
            return chunk
        while True:
            if self._unpacker.eof and not self._next_member():
                return b""
            if chunk := self._unpack(self._unpacker):
                return chunk

    def _unpack(self, unpacker: _Unpacker) -> bytes:
        self._fill(1)
        if not self._packed:
            raise CaptureError(f"the {self.packing} stream ends early")
        piece, self._packed = self._packed[:_PIECE_BYTES], self._packed[_PIECE_BYTES:]
        try:
            return unpacker.decompress(piece)
        except _DAMAGE as error:
            raise CaptureError(f"the {self.packing} stream is damaged ({error})") from error

    def _next_member(self) -> bool:
        """Start on the member that follows, past zeros that tapes and xz pad with; False at the end."""
        assert self._unpacker is not None, "only a packed stream has members"
        self._packed = (self._unpacker.unused_data + self._packed).lstrip(b"\0")
        while len(self._packed) < _LONGEST_MAGIC and not self._at_end:
            self._fill(len(self._packed) + 1)
            self._packed = self._packed.lstrip(b"\0")
        if not self._packed:
            return False
        magic, unpacker = _PACKINGS[self.packing]
        if not self._packed.startswith(magic[: len(self._packed)]):
            raise CaptureError(f"the {self.packing} stream ends, and bytes that are no {self.packing} follow")
        self._unpacker = unpacker()
        return True

    def _fill(self, size: int) -> None:
        """Hold at least `size` packed bytes, unless the end comes first."""
        while len(self._packed) < size and not self._at_end:
            self._packed += self._read(_PACKED_BYTES)

    def _read(self, size: int) -> bytes:
        try:
            chunk = self._source.read(size) or b""
        except OSError as error:
            raise WorldError(f"{self._name}: reading failed at byte {self.consumed_bytes:,}: {error}") from error
        self.consumed_bytes += len(chunk)
        self._at_end = not chunk
        return chunk
