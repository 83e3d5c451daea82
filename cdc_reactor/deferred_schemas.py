"""Writer schemas for an event loop, which must not wait for a registry: what is not here yet raises how to fetch it.

Neighbours: `schemas` asks registries and blocks, `consumer` fetches beside the loop and decodes again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from cdc_reactor.errors import DecodeError, WorldError
from cdc_reactor.schemas import AvroSchema, SchemaStore


class SchemaNeeded(WorldError):
    """Raised when a schema must be fetched first: `fetch` does, blocks, and may raise WorldError; then try again."""

    def __init__(self, what: str, fetch: Callable[[], None]) -> None:
        super().__init__(f"{what} is not fetched yet")
        self.fetch = fetch


class DeferredSchemas:
    """A SchemaStore that never waits, in front of one that does."""

    def __init__(self, store: SchemaStore) -> None:
        self._store = store
        self._found: dict[Hashable, AvroSchema | DecodeError] = {}

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the writer schema with this id, or raise SchemaNeeded."""
        return self._known(schema_id, f"the schema {schema_id}", partial(self._store.schema, schema_id))

    def named(self, name: str, revision: str) -> AvroSchema:
        """Return the Pub/Sub schema of this name and revision, or raise SchemaNeeded."""
        return self._known((name, revision), f"the schema {name}", partial(self._store.named, name, revision))

    def add(self, schema: AvroSchema) -> int:
        """Keep a schema that came without an id, and return the id that it has from now on."""
        return self._store.add(schema)

    def _known(self, key: Hashable, what: str, ask: Callable[[], AvroSchema]) -> AvroSchema:
        found = self._found.get(key)
        if found is None:
            raise SchemaNeeded(what, partial(self._fetch, key, ask))
        if isinstance(found, DecodeError):
            # Told once: it may be registered by the time that the next message needs it.
            del self._found[key]
            raise found
        return found

    def _fetch(self, key: Hashable, ask: Callable[[], AvroSchema]) -> None:
        try:
            self._found[key] = ask()
        except DecodeError as error:
            self._found[key] = error
