"""Avro writer schemas, by id (Confluent's wire format) and by name (Pub/Sub's schema attributes).

`open_schemas` chooses a store by where the schemas are: a file, a folder, a schema registry, Pub/Sub's schema service
(pubsub_schemas), or nowhere. The decoder asks; every schema is fetched once and kept, because neither ids nor revisions
ever change their meaning. A store may be shared by threads: at worst two of them fetch the same schema.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import tenacity

from cdc_reactor.errors import DecodeError, UsageError, WorldError

AvroSchema: TypeAlias = Any
"""A schema as JSON: an object, or an array for a union at the top; a bare name is kept as `{"type": name}`."""

FIRST_OWN_ID = 0xF000_0000
"""Ids from here on are ours, for schemas that came without one; registries count from 1."""

_CURE = "say where the schemas are: --schemas PATH|URL"
_MAX_BYTES = 10_000_000
_TIMEOUT = 10.0
_NUMBERED = re.compile(r"(?:.*-)?(\d+)")


class SchemaStore(Protocol):
    """Finds writer schemas.

    Raises: DecodeError, with the cure, for one that nobody knows; WorldError when it cannot ask.
    """

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the writer schema with this id."""

    def named(self, name: str, revision: str) -> AvroSchema:
        """Return the Pub/Sub schema of this name (`projects/P/schemas/S`) and revision; "" is the latest."""

    def add(self, schema: AvroSchema) -> int:
        """Keep a schema that came without an id, and return the id that it has from now on."""


def open_schemas(location: str | None) -> SchemaStore:
    """Return the store for a file, a folder, a registry's http(s):// address, `pubsub:`, or None for none.

    Raises: UsageError when there are no schemas in the file or folder, or the address makes no sense.
    """
    if location is None:
        return KeptSchemas()
    if location.startswith(("http://", "https://")):
        return RegistrySchemas(location)
    if location == "pubsub:":
        from cdc_reactor.pubsub_schemas import PubsubSchemas  # noqa: PLC0415 - Google's packages take 1.5 s to import

        return PubsubSchemas()
    return read_schemas(Path(location))


def registry_beside(captures: Iterable[str]) -> str | None:
    """Find the schema file that captures bring along: `NAME.registry.json` beside `NAME.….ndjson`.

    None where there is none, or more than one: ids of two registries may be the same.
    """
    found = {path.with_name(f"{path.name.split('.', 1)[0]}.registry.json") for path in map(Path, captures)}
    found = {path for path in found if path.is_file()}
    return str(found.pop()) if len(found) == 1 else None


class KeptSchemas:
    """The schemas that it was given, and those that `add` brings."""

    def __init__(
        self,
        by_id: Mapping[int, AvroSchema] | None = None,
        by_name: Mapping[str, AvroSchema] | None = None,
        *,
        origin: str = "",
    ) -> None:
        self._by_id = dict(by_id or {})
        self._by_name = dict(by_name or {})
        self._own_ids: dict[str, int] = {}
        self._origin = origin

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the writer schema with this id.

        Raises: DecodeError when there is none.
        """
        found = self._by_id.get(schema_id)
        return self._missing(f"schema id {schema_id}") if found is None else found

    def named(self, name: str, revision: str) -> AvroSchema:
        """Return the schema of `S@REVISION`, else of `S`, where `name` is `projects/P/schemas/S`.

        Raises: DecodeError when there is neither.
        """
        short = name.rsplit("/", 1)[-1]
        found = self._by_name.get(f"{short}@{revision}", self._by_name.get(short))
        return self._missing(f"schema {name}@{revision}") if found is None else found

    def add(self, schema: AvroSchema) -> int:
        """Keep a schema under an id of our own; the same schema always has the same id."""
        text = json.dumps(schema, sort_keys=True)
        schema_id = self._own_ids.setdefault(text, FIRST_OWN_ID + len(self._own_ids))
        self._by_id.setdefault(schema_id, schema)
        return schema_id

    def _missing(self, what: str) -> AvroSchema:
        where = f"which is not in {self._origin}" if self._origin else "and no schemas were given"
        raise DecodeError(f"Avro with {what}, {where}; {_CURE}")


def read_schemas(path: Path) -> KeptSchemas:
    """Read a file of schemas by id, or a folder of such files and of `ID.avsc`, `NAME-ID.avsc`, `NAME[@REVISION].avsc`.

    Raises: UsageError when the path does not exist, a file is no JSON, or no schema is there.
    """
    if not path.exists():
        raise UsageError(f"--schemas {path}: there is no such file or folder")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    by_id: dict[int, AvroSchema] = {}
    by_name: dict[str, AvroSchema] = {}
    for file in files:
        if file.suffix in {".avsc", ".json"} or file == path:
            _read_file(file, by_id, by_name)
    if not by_id and not by_name:
        raise UsageError(f"--schemas {path}: there is no schema; looked for ID.avsc, NAME-ID.avsc and registry files")
    return KeptSchemas(by_id, by_name, origin=str(path))


def _read_file(file: Path, by_id: dict[int, AvroSchema], by_name: dict[str, AvroSchema]) -> None:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--schemas {file}: cannot be read as JSON: {error}") from error
    if (listed := _listed(content)) is not None:
        by_id.update({int(schema_id): _opened(schema) for schema_id, schema in listed.items()})
        return
    if file.suffix == ".json" and not _NUMBERED.fullmatch(file.stem):
        return
    if numbered := _NUMBERED.fullmatch(file.stem):
        by_id[int(numbered[1])] = _opened(content)
    if not file.stem.isdecimal():
        by_name[file.stem] = _opened(content)


def _listed(content: Any) -> dict[str, Any] | None:
    """Return the schemas by id of a registry file; None when it is no such file."""
    if isinstance(content, dict):
        listed = content.get("schemas_by_id", content)
        if isinstance(listed, dict) and listed and all(isinstance(key, str) and key.isdecimal() for key in listed):
            return listed
    return None


def _opened(schema: Any) -> AvroSchema:
    """Return a schema that may be JSON text, may be wrapped as registries wrap it, or may be a bare name."""
    match schema:
        case {"schema": str(text)} if "type" not in schema:
            return _opened(json.loads(text))
        case str() if schema.lstrip()[:1] in {"{", "[", '"'}:
            return _opened(json.loads(schema))
        case str():
            return {"type": schema}
    return schema


class RegistrySchemas(KeptSchemas):
    """A schema registry that speaks Confluent's REST interface; `user:password@` in the address is sent as basic auth.

    Asking is tried three times. The password is in no message.
    """

    def __init__(self, url: str, *, first_wait: float = 0.5) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        if not host:
            raise UsageError("--schemas: the address of the registry has no host; write http://HOST[:PORT]")
        self._base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        self._authorization = ""
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._wait = tenacity.wait_random_exponential(multiplier=first_wait, max=5.0)
        super().__init__(origin=f"the registry {self._base}")

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the writer schema with this id, with the schemas that it refers to put in their places.

        Raises: DecodeError when the registry knows none, or it is not Avro; WorldError when it does not answer;
        UsageError when it refuses us.
        """
        if schema_id not in self._by_id and schema_id < FIRST_OWN_ID:
            self._by_id[schema_id] = self._fetch_whole(schema_id)
        return super().schema(schema_id)

    def _fetch_whole(self, schema_id: int) -> AvroSchema:
        """Return a schema together with what it refers to."""
        answer = self._fetch(f"/schemas/ids/{schema_id}", f"schema id {schema_id}")
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise DecodeError(f"{self._origin} has a schema of type {answer['schemaType']} where Avro is needed")
        try:
            schema = _opened(answer["schema"])
            referred = dict(self._fetch_referred(answer, set()))
        except (ValueError, LookupError, TypeError) as error:
            raise DecodeError(f"{self._origin} has a schema id {schema_id} that makes no sense: {error!r}") from error
        return _inlined(schema, "", referred) if referred else schema

    def _fetch_referred(
        self, answer: Mapping[str, Any], seen: set[tuple[str, int]]
    ) -> Iterator[tuple[str, AvroSchema]]:
        for reference in answer.get("references") or ():
            subject, version = reference["subject"], reference["version"]
            if (subject, version) not in seen:
                seen.add((subject, version))
                path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
                found = self._fetch(path, f"schema {subject} version {version}")
                yield reference["name"], _opened(found["schema"])
                yield from self._fetch_referred(found, seen)

    def _fetch(self, path: str, what: str) -> Mapping[str, Any]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(WorldError),
            stop=tenacity.stop_after_attempt(3),
            wait=self._wait,
            reraise=True,
        )
        return retrying(self._fetch_once, path, what)

    def _fetch_once(self, path: str, what: str) -> Mapping[str, Any]:
        request = urllib.request.Request(self._base + path, headers={"Accept": "application/json"})  # noqa: S310 - http(s) only
        if self._authorization:
            # Unredirected, so that a redirect does not carry the password to another host.
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310 - http(s) only
                body = response.read(_MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, what) from error
        except (OSError, HTTPException) as error:
            raise WorldError(f"{self._origin} does not answer: {error}") from error
        return self._checked(body, what)

    def _refused(self, status: int, what: str) -> Exception:
        if status == 404:
            return DecodeError(f"Avro with {what}, which is not in {self._origin}; {_CURE}")
        if status in {401, 403}:
            return UsageError(f"{self._origin} refuses us (HTTP {status}): write --schemas http://USER:PASSWORD@HOST")
        return WorldError(f"{self._origin} answered HTTP {status} for {what}")

    def _checked(self, body: bytes, what: str) -> Mapping[str, Any]:
        try:
            answer = json.loads(body) if len(body) <= _MAX_BYTES else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
            raise WorldError(f"{self._origin} answered {body[:40]!r} for {what}: that is no schema")
        return answer


def _inlined(schema: AvroSchema, namespace: str, referred: dict[str, AvroSchema]) -> AvroSchema:
    """Put each referred schema where it is first named; Avro then knows it by name (Specification, "Names")."""
    match schema:
        case str():
            full = schema if "." in schema or not namespace else f"{namespace}.{schema}"
            name = full if full in referred else schema
            return _inlined(_anchored(referred.pop(name), name), namespace, referred) if name in referred else schema
        case list():
            return [_inlined(branch, namespace, referred) for branch in schema]
        case dict():
            inner = _namespace(schema, namespace)
            return {key: _inlined_part(key, value, inner, referred) for key, value in schema.items()}
    return schema


def _inlined_part(key: str, value: Any, namespace: str, referred: dict[str, AvroSchema]) -> Any:
    if key == "fields":
        return [field | {"type": _inlined(field["type"], namespace, referred)} for field in value]
    return _inlined(value, namespace, referred) if key in {"type", "items", "values"} else value


def _namespace(schema: Mapping[str, Any], around: str) -> str:
    name = str(schema.get("name", ""))
    return name.rpartition(".")[0] if "." in name else str(schema.get("namespace", around))


def _anchored(schema: AvroSchema, name: str) -> AvroSchema:
    """Give a schema its full name, so that its new surroundings do not lend it another namespace."""
    if not isinstance(schema, dict) or "name" not in schema:
        return schema
    return schema | {"name": name.rpartition(".")[2], "namespace": name.rpartition(".")[0]}
