"""google.pubsub.v1.SchemaService."""

from __future__ import annotations

from typing import Any

from cdc_reactor.local import calls, names, paging, protos
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.refusals import invalid
from cdc_reactor.local.schema_registry import SchemaRegistry, check_definition

NAME = "google.pubsub.v1.SchemaService"

_BASIC, _FULL = 1, 2


class SchemaService:
    """The methods, each from its parsed request to its reply."""

    def __init__(self, engine: Engine, registry: SchemaRegistry) -> None:
        self._engine = engine
        self._registry = registry

    def handlers(self) -> dict[str, Any]:
        """Return the handlers by method name."""
        methods = {
            "CreateSchema": (protos.CreateSchemaRequest, self._create),
            "GetSchema": (protos.GetSchemaRequest, self._get),
            "ListSchemas": (protos.ListSchemasRequest, self._list),
            "ListSchemaRevisions": (protos.ListSchemaRevisionsRequest, self._list_revisions),
            "CommitSchema": (protos.CommitSchemaRequest, self._commit),
            "RollbackSchema": (protos.RollbackSchemaRequest, self._roll_back),
            "DeleteSchemaRevision": (protos.DeleteSchemaRevisionRequest, self._delete_revision),
            "DeleteSchema": (protos.DeleteSchemaRequest, self._delete),
            "ValidateSchema": (protos.ValidateSchemaRequest, self._validate),
            "ValidateMessage": (protos.ValidateMessageRequest, self._validate_message),
        }
        return {name: calls.unary(self._engine, parser, method) for name, (parser, method) in methods.items()}

    async def _create(self, request: Any) -> Any:
        parent = names.check_project(request.parent)
        schema_id = request.schema_id or f"schema-{self._engine.broker.next_seq():x}"
        schema = self._registry.create(f"{parent}/schemas/{schema_id}", request.schema, self._engine.now())
        await self._engine.confirmed()
        return schema

    def _get(self, request: Any) -> Any:
        return _seen(self._registry.get(request.name), request.view or _FULL)

    def _list(self, request: Any) -> Any:
        prefix = names.check_project(request.parent) + "/"
        owned = [schema for schema in self._registry.all() if schema.name.startswith(prefix)]
        found, token = paging.page(owned, lambda s: s.name, size=request.page_size, token=request.page_token)
        seen = [_seen(schema, request.view or _BASIC) for schema in found]
        return protos.ListSchemasResponse(schemas=seen, next_page_token=token)

    def _list_revisions(self, request: Any) -> Any:
        revisions = list(reversed(self._registry.revisions(request.name)))
        order = {schema.revision_id: f"{place:06}" for place, schema in enumerate(revisions)}
        found, token = paging.page(
            revisions, lambda s: order[s.revision_id], size=request.page_size, token=request.page_token
        )
        seen = [_seen(schema, request.view or _BASIC) for schema in found]
        return protos.ListSchemaRevisionsResponse(schemas=seen, next_page_token=token)

    async def _commit(self, request: Any) -> Any:
        schema = self._registry.commit(request.name, request.schema, self._engine.now())
        await self._engine.confirmed()
        return schema

    async def _roll_back(self, request: Any) -> Any:
        schema = self._registry.roll_back(request.name, request.revision_id, self._engine.now())
        await self._engine.confirmed()
        return schema

    async def _delete_revision(self, request: Any) -> Any:
        schema = self._registry.delete_revision(request.name, request.revision_id)
        await self._engine.confirmed()
        return schema

    async def _delete(self, request: Any) -> Any:
        self._registry.delete(request.name)
        await self._engine.confirmed()
        return protos.Empty()

    def _validate(self, request: Any) -> Any:
        names.check_project(request.parent)
        check_definition(request.schema)
        return protos.ValidateSchemaResponse()

    def _validate_message(self, request: Any) -> Any:
        names.check_project(request.parent)
        match request.WhichOneof("schema_spec"):
            case "name":
                schema = self._registry.get(request.name)
            case "schema":
                schema = request.schema
            case _:
                raise invalid("There is no schema to check the message against: a name or a schema is needed.")
        self._registry.check_message(schema, request.encoding, request.message)
        return protos.ValidateMessageResponse()


def _seen(schema: Any, view: int) -> Any:
    if view == _FULL:
        return schema
    basic = protos.Schema()
    basic.CopyFrom(schema)
    basic.ClearField("definition")
    return basic
