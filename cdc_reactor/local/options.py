"""What a subscription or a topic was asked to do, as values that the broker's machine reads. Pure.

`definitions` makes them from the messages of the API and fills in the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from cdc_reactor.local.filters import Predicate
from cdc_reactor.local.limits import DEFAULT_ACK_DEADLINE, DEFAULT_RETENTION


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a message that was given back waits: doubled each time, between the two."""

    minimum: float
    maximum: float

    def delay(self, attempt: int) -> float:
        """Seconds to wait after this delivery attempt failed (1 for the first)."""
        return min(self.maximum, self.minimum * 2.0 ** min(attempt - 1, 60))


@dataclass(frozen=True, slots=True)
class DeadLetterPolicy:
    """Where a message goes that failed so many delivery attempts."""

    topic: str
    max_attempts: int


@dataclass(frozen=True, slots=True)
class SubscriptionOptions:
    """How a subscription delivers; `expires_after` so many seconds without use."""

    ack_deadline: float = DEFAULT_ACK_DEADLINE
    retention: float = DEFAULT_RETENTION
    expires_after: float = inf
    retains_acked: bool = False
    is_ordered: bool = False
    is_exactly_once: bool = False
    retry: RetryPolicy | None = None
    dead_letter: DeadLetterPolicy | None = None
    accepts: Predicate | None = None


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """How long a topic keeps messages for whoever seeks back; None keeps none."""

    retention: float | None = None
