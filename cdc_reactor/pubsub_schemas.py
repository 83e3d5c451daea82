"""Avro schemas by name, from Pub/Sub's schema service.

Messages of a topic that has a schema carry `googclient_schemaname`, `googclient_schemarevisionid` and
`googclient_schemaencoding` (https://cloud.google.com/pubsub/docs/schemas). Importing this imports Google's packages.
"""

from __future__ import annotations

import json

from google.api_core import exceptions as google_errors
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import GetSchemaRequest, Schema, SchemaServiceClient, SchemaView

from cdc_reactor.errors import DecodeError, UsageError, WorldError
from cdc_reactor.schemas import AvroSchema, KeptSchemas, SchemaStore

_TIMEOUT = 10.0
_REFUSALS = (google_errors.PermissionDenied, google_errors.Unauthenticated, GoogleAuthError)


class PubsubSchemas:
    """Asks the schema service for what `local` does not have; ids are left to `local`.

    Without a `client`, one with the machine's own credentials is made when it is first needed.
    """

    def __init__(self, client: SchemaServiceClient | None = None, *, local: SchemaStore | None = None) -> None:
        self._client = client
        self._local = KeptSchemas() if local is None else local
        self._fetched: dict[tuple[str, str], AvroSchema] = {}

    def schema(self, schema_id: int) -> AvroSchema:
        """Return the writer schema with this id from `local`."""
        return self._local.schema(schema_id)

    def add(self, schema: AvroSchema) -> int:
        """Keep a schema in `local`, and return its id."""
        return self._local.add(schema)

    def named(self, name: str, revision: str) -> AvroSchema:
        """Return the schema of this name and revision, from `local` if it is there.

        Raises: DecodeError when there is none, or it is not Avro; UsageError when we may not look; WorldError when the
        service does not answer.
        """
        try:
            return self._local.named(name, revision)
        except DecodeError:
            pass
        if (name, revision) not in self._fetched:
            self._fetched[name, revision] = self._fetch(f"{name}@{revision}" if revision else name)
        return self._fetched[name, revision]

    def _fetch(self, name: str) -> AvroSchema:
        try:
            self._client = self._client or SchemaServiceClient()
            found = self._client.get_schema(GetSchemaRequest(name=name, view=SchemaView.FULL), timeout=_TIMEOUT)
        except (google_errors.NotFound, google_errors.InvalidArgument) as error:
            raise DecodeError(f"Avro with schema {name}, which Pub/Sub does not know: {error.message}") from error
        except _REFUSALS as error:
            raise UsageError(f"Pub/Sub does not let us read schema {name} (pubsub.schemas.get): {error}") from error
        except (google_errors.GoogleAPICallError, google_errors.RetryError) as error:
            raise WorldError(f"Pub/Sub's schema service does not answer for {name}: {error}") from error
        if found.type_ is not Schema.Type.AVRO:
            raise DecodeError(f"schema {name} is of type {found.type_.name} where Avro is needed")
        return json.loads(found.definition)
