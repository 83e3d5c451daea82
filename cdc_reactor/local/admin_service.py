"""cdc_reactor.broker.v1.Admin: faults on demand and statistics, for tests. JSON in and out.

`broker_admin.BrokerAdmin` is its client. It answers even while everything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf
from typing import Any

from cdc_reactor.local import calls
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.refusals import Refused, invalid

NAME = "cdc_reactor.broker.v1.Admin"


class AdminService:
    """The methods, each from its arguments to its answer.

    `restart` is told the seconds to stay away; `starts` counts how often the broker came up.
    """

    def __init__(self, engine: Engine, *, restart: Callable[[float], None], starts: int) -> None:
        self._engine = engine
        self._restart = restart
        self._starts = starts

    def handlers(self) -> dict[str, Any]:
        """Return the handlers by method name."""
        methods: dict[str, Callable[..., Any]] = {
            "Statistics": self._statistics,
            "Configure": self._configure,
            "ResetStreams": self._reset_streams,
            "Refuse": self._refuse,
            "DropAcks": self._drop_acks,
            "Duplicate": self._duplicate,
            "Restart": self._restart_soon,
            "Advance": self._advance,
        }
        return {name: calls.raw_unary(_json_call(method)) for name, method in methods.items()}

    def _statistics(self) -> dict[str, Any]:
        broker = self._engine.broker
        return {
            "now": self._engine.now(),
            "starts": self._starts,
            "streams": len(self._engine.streams),
            "topics": {topic.name: {"published": topic.published} for topic in broker.topics.values()},
            "subscriptions": {
                name: {
                    "backlog": len(subscription.backlog),
                    "outstanding": subscription.backlog.outstanding,
                    "consumers": len(subscription.backlog.consumers),
                    **{field: getattr(subscription.backlog.counts, field) for field in _COUNTS},
                }
                for name, subscription in broker.subscriptions.items()
            },
        }

    def _configure(
        self,
        *,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        delay: float | None = None,
        stream_life: float | None = None,
    ) -> None:
        responses, faults = self._engine.responses, self._engine.faults
        if max_messages is not None:
            responses.max_messages = max_messages
        if max_bytes is not None:
            responses.max_bytes = max_bytes
        if delay is not None:
            faults.delay = delay
        if stream_life is not None:
            faults.stream_life = stream_life or inf

    def _reset_streams(self) -> int:
        return self._engine.reset_streams()

    def _refuse(self, seconds: float | None) -> None:
        self._engine.refuse(inf if seconds is None else seconds)

    def _drop_acks(self, count: int, fault: str) -> None:
        self._engine.faults.drop_acks(count, fault)

    def _duplicate(self, count: int, subscription: str) -> None:
        self._engine.broker.subscription(subscription).backlog.duplicates = count

    def _restart_soon(self, down: float) -> int:
        self._restart(down)
        return self._starts

    def _advance(self, seconds: float) -> None:
        self._engine.advance(seconds)


_COUNTS = ("published", "delivered", "acked", "nacked", "expired", "dead_lettered", "duplicated")


def _json_call(method: Callable[..., Any]) -> Any:
    async def call(raw: bytes, context: Any) -> bytes:
        try:
            return json.dumps(method(**_arguments(raw))).encode()
        except TypeError as error:
            await calls.abort(context, invalid(f"Wrong arguments: {error}."))
        except Refused as refused:
            await calls.abort(context, refused)
        raise AssertionError("abort does not return")

    return call


def _arguments(raw: bytes) -> dict[str, Any]:
    try:
        arguments = json.loads(raw or b"{}")
    except ValueError as error:
        raise invalid(f"The request is no JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise invalid("The request is no JSON object.")
    return arguments
