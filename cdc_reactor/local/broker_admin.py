"""The client of the broker's admin service: faults on demand, statistics, time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import grpc

from cdc_reactor.errors import WorldError
from cdc_reactor.local.admin_service import NAME
from cdc_reactor.local.faults import LOST

NOTHING: Mapping[str, Any] = MappingProxyType({})

#: How long to wait for a broker that restarts.
READY_TIMEOUT = 30.0
_POLL_INTERVAL = 0.02


class BrokerAdmin:
    """Speaks to one broker; thread-safe, and a context manager that closes its channel.

    Refusals arrive as grpc.RpcError.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address, options=(("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def statistics(self) -> dict[str, Any]:
        """Return `now`, `streams`, `topics` and `subscriptions`.

        Of each topic how many messages were published; of each subscription `backlog` (not acked), `outstanding`
        (leased), `consumers`, and since the start `published`, `delivered`, `acked`, `nacked`, `expired`,
        `dead_lettered`, `duplicated`.
        """
        found: dict[str, Any] = self._call("Statistics")
        return found

    def subscription(self, name: str) -> dict[str, int]:
        """Return the statistics of one subscription."""
        found: dict[str, int] = self.statistics()["subscriptions"][name]
        return found

    def configure(
        self,
        *,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        delay: float | None = None,
        stream_life: float | None = None,
    ) -> None:
        """Set what is given, and leave the rest.

        `max_messages` and `max_bytes` a response; `delay` by which deliveries are late; `stream_life` after which
        streams end with UNAVAILABLE (0 for never).
        """
        given = {"max_messages": max_messages, "max_bytes": max_bytes, "delay": delay, "stream_life": stream_life}
        self._call("Configure", given)

    def reset_streams(self) -> int:
        """End all streams with UNAVAILABLE; what they hold stays leased. Return how many there were."""
        return int(self._call("ResetStreams"))

    def refuse(self, seconds: float | None = None) -> None:
        """End all streams and answer every call with UNAVAILABLE for so many seconds, or until `admit`."""
        self._call("Refuse", {"seconds": seconds})

    def admit(self) -> None:
        """Serve calls again after `refuse`."""
        self._call("Refuse", {"seconds": -1.0})

    def drop_acks(self, count: int, fault: str = LOST) -> None:
        """Treat the next ack requests badly; `faults.Faults` tells how."""
        self._call("DropAcks", {"count": count, "fault": fault})

    def duplicate(self, count: int, subscription: str) -> None:
        """Deliver the next so many deliveries of a subscription twice; the first one's ack id is dead."""
        self._call("Duplicate", {"count": count, "subscription": subscription})

    def restart(self, down: float = 0.0) -> None:
        """Let the broker go down for so many seconds and come up again; return when it answers."""
        starts = self._call("Restart", {"down": down})
        deadline = time.monotonic() + down + READY_TIMEOUT
        while self._starts() in (starts, None):
            if time.monotonic() > deadline:
                raise WorldError(f"the broker did not come up again within {READY_TIMEOUT:g} seconds")
            time.sleep(_POLL_INTERVAL)

    def _starts(self) -> int | None:
        try:
            return int(self._call("Statistics")["starts"])
        except grpc.RpcError:
            return None

    def advance(self, seconds: float) -> None:
        """Move the broker's virtual clock; FAILED_PRECONDITION where it has none. 0 only lets it look at its clock."""
        self._call("Advance", {"seconds": seconds})

    def _call(self, method: str, arguments: Mapping[str, Any] = NOTHING) -> Any:
        call = self._channel.unary_unary(f"/{NAME}/{method}")
        return json.loads(call(json.dumps(dict(arguments)).encode(), timeout=READY_TIMEOUT))
