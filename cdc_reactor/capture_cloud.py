"""Captures in buckets: gs:// and s3:// addresses, by obstore, which the extra `cloud` brings.

Credentials and endpoints are obstore's business (`GOOGLE_*`, `AWS_*` and the machine's own identity). Objects are read
in ranges, so a replay may take as long as it likes: no request outlives one range.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import GCSStore, ObjectStore, S3Store

from cdc_reactor.capture_bytes import ByteSource
from cdc_reactor.errors import UsageError, WorldError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_RANGE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CloudObject:
    """One object of a bucket."""

    name: str
    size_bytes: int
    key: str
    store: ObjectStore = field(repr=False)

    def open(self) -> ByteSource:
        """Start at the first byte; the connection is made by the first read."""
        return _ObjectSource(self)


class _ObjectSource:
    def __init__(self, cloud_object: CloudObject) -> None:
        self._object = cloud_object
        with _translated(cloud_object.name):
            self._file = obstore.open_reader(
                cloud_object.store, cloud_object.key, buffer_size=_RANGE_BYTES, size=cloud_object.size_bytes
            )

    def read(self, size: int, /) -> bytes:
        with _translated(self._object.name):
            return bytes(self._file.read(size))

    def close(self) -> None:
        self._file.close()


def find_objects(url: str) -> list[CloudObject]:
    """Return the object that `url` names or, where it names a bucket or ends in `/`, all objects under it.

    Raises: UsageError when there is nothing, or we may not look; WorldError when the cloud does not answer.
    """
    parts = urlsplit(url, allow_fragments=False)
    bucket, key = parts.netloc, url.split("://", 1)[1].partition("/")[2]
    if not bucket:
        raise UsageError(f"{url}: names no bucket; write {parts.scheme}://BUCKET/OBJECT")
    with _translated(url):
        store = _open_store(parts.scheme, bucket)
        if key and not key.endswith("/"):
            return [CloudObject(url, obstore.head(store, key)["size"], key, store)]
        metas = [meta for page in obstore.list(store, prefix=key.rstrip("/") or None) for meta in page]
    return [
        CloudObject(f"{parts.scheme}://{bucket}/{meta['path']}", meta["size"], meta["path"], store) for meta in metas
    ]


def _open_store(scheme: str, bucket: str) -> ObjectStore:
    # obstore's own ten retries keep a typing error in an endpoint silent for minutes.
    retries: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
    if scheme == "gs":
        return GCSStore(bucket, retry_config=retries)
    return S3Store(bucket, retry_config=retries)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn obstore's errors into ours, without its debug dump."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{name}: there is no such object (a folder's address ends in /)") from error
    except (PermissionError, BaseError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, PermissionError) or "401 " in reason or "403 " in reason or "credential" in reason.lower():
            raise UsageError(f"{name}: access is refused: {reason}") from error
        raise WorldError(f"{name}: {reason}") from error
