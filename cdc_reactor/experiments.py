"""Experiments: what `ctx.experiments` offers, and a client for tests.

An `ExperimentClient` belongs to the process; `begin` gives each run its own `Allocations`, whose `flush` hands over for
good what was allocated, before the run's transaction is committed and its message acknowledged. A flush that fails is a
failed run. Neighbour: `experiments_growthbook` is the client for GrowthBook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct


class Allocation(Struct, frozen=True):
    """A user who was put into a variation of an experiment; `value` is what the variation says."""

    experiment: str
    variation: str
    user_id: str
    value: Any = None


class Allocations(Protocol):
    """The experiments of one run."""

    def allocate(self, feature: str, *, user_id: str, default: Any, attributes: Mapping[str, Any] = {}) -> Any:
        """Return the value that a feature has for a user, and note the allocation where an experiment decides it."""

    def flush(self) -> None:
        """Hand over for good what was allocated, each experiment and user once; whatever this raises fails the run."""


class ExperimentClient(Protocol):
    """Where allocations come from; thread-safe."""

    def begin(self) -> Allocations:
        """Give a run its allocations; WorldError where there is nothing to allocate by, and the run is tried again."""


class ExperimentsInMemory:
    """Experiments for tests: values are as given, and what was flushed can be looked at.

    `values` has a feature's value for everybody; `choose` decides for each user and goes before it.
    """

    def __init__(
        self, values: Mapping[str, Any] | None = None, *, choose: Callable[[str, str], Any] | None = None
    ) -> None:
        self._values = dict(values or {})
        self._choose = choose
        #: What runs handed over, in order.
        self.flushed: list[Allocation] = []
        #: Raised by the next flush, once, where it is set.
        self.fail_next_flush: Exception | None = None

    def give(self, feature: str, value: Any) -> None:
        """Let a feature have a value for everybody."""
        self._values[feature] = value

    def begin(self) -> Allocations:
        """Give a run its allocations."""
        return _InMemory(self)

    def value(self, feature: str, user_id: str, default: Any) -> tuple[Any, bool]:
        """Return a feature's value for a user, and whether an experiment decided it."""
        if self._choose is not None:
            return self._choose(feature, user_id), True
        return (self._values[feature], True) if feature in self._values else (default, False)


class _InMemory:
    def __init__(self, client: ExperimentsInMemory) -> None:
        self._client = client
        self._noted: dict[tuple[str, str], Allocation] = {}

    def allocate(
        self,
        feature: str,
        *,
        user_id: str,
        default: Any,
        attributes: Mapping[str, Any] = {},  # noqa: ARG002 - part of the interface
    ) -> Any:
        value, is_decided = self._client.value(feature, user_id, default)
        if is_decided:
            self._noted.setdefault((feature, user_id), Allocation(feature, str(value), user_id, value))
        return value

    def flush(self) -> None:
        error, self._client.fail_next_flush = self._client.fail_next_flush, None
        if error is not None:
            raise error
        self._client.flushed.extend(self._noted.values())
        self._noted.clear()
