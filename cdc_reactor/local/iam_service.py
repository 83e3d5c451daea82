"""google.iam.v1.IAMPolicy: policies are kept and echoed, and everybody may do everything."""

from __future__ import annotations

import hashlib
from typing import Any

from cdc_reactor.local import calls, protos
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.journal import Op
from cdc_reactor.local.recovery import POLICIES
from cdc_reactor.local.refusals import Code, Refused, not_found
from cdc_reactor.local.schema_registry import SchemaRegistry

NAME = "google.iam.v1.IAMPolicy"
_ETAG_LENGTH = 8


class IamService:
    """The methods, each from its parsed request to its reply."""

    def __init__(self, engine: Engine, schemas: SchemaRegistry, policies: dict[str, Any]) -> None:
        self._engine = engine
        self._broker = engine.broker
        self._schemas = schemas
        self._policies = policies

    def handlers(self) -> dict[str, Any]:
        """Return the handlers by method name."""
        methods = {
            "SetIamPolicy": (protos.SetIamPolicyRequest, self._set),
            "GetIamPolicy": (protos.GetIamPolicyRequest, self._get),
            "TestIamPermissions": (protos.TestIamPermissionsRequest, self._test),
        }
        return {name: calls.unary(self._engine, parser, method) for name, (parser, method) in methods.items()}

    async def _set(self, request: Any) -> Any:
        self._check_exists(request.resource)
        current = self._policies.get(request.resource)
        if request.policy.etag and current is not None and request.policy.etag != current.etag:
            raise Refused(Code.ABORTED, "There were concurrent policy changes: read the policy again and retry.")
        policy = protos.Policy()
        policy.CopyFrom(request.policy)
        policy.etag = b""
        policy.etag = hashlib.sha256(policy.SerializeToString()).digest()[:_ETAG_LENGTH]
        self._policies[request.resource] = policy
        self._broker.journal.note(Op.DEFINED, (POLICIES, request.resource, 0, 0, 0.0, policy))
        await self._engine.confirmed()
        return policy

    def _get(self, request: Any) -> Any:
        self._check_exists(request.resource)
        return self._policies.get(request.resource) or protos.Policy(etag=b"\0" * _ETAG_LENGTH)

    def _test(self, request: Any) -> Any:
        # Of what does not exist nobody may do anything, and that is no error (google/iam/v1/iam_policy.proto).
        allowed = request.permissions if self._exists(request.resource) else ()
        return protos.TestIamPermissionsResponse(permissions=allowed)

    def _check_exists(self, resource: str) -> None:
        if not self._exists(resource):
            raise not_found(resource)

    def _exists(self, resource: str) -> bool:
        broker = self._broker
        known = (broker.topics, broker.subscriptions, broker.snapshots)
        return any(resource in kind for kind in known) or any(s.name == resource for s in self._schemas.all())
