"""What we hold of a subscription: until when, what to extend now, and what is given up.

A machine of values: instants come in as `now`, seconds of one monotonic clock. It never asks the broker for anything;
`pubsub` sends what `due` says and tells how it went. Deliveries that arrived at about the same time form a cohort with
one deadline, so that the cost is one dict entry a delivery and one timer a subscription.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import msgspec

from cdc_reactor.messages import Delivery

#: What arrives within this share of the ack deadline has one deadline: that of the first.
_COHORT = 1 / 40

#: What falls due within this share of the ack deadline is extended together with what is due already.
_TOGETHER = 1 / 20


class Round(msgspec.Struct, frozen=True):
    """Ack ids to extend now; say `extended` or `not_extended` when it is known how that went."""

    ack_ids: list[str]
    cohorts: list[_Cohort]


class _Cohort:
    """Deliveries that arrived at about the same time."""

    __slots__ = ("deadline", "extend_at", "give_up_at", "is_asked", "members", "since")

    def __init__(self, since: float, *, deadline: float, extend_at: float, give_up_at: float) -> None:
        self.since = since
        self.deadline = deadline
        self.extend_at = extend_at
        self.give_up_at = give_up_at
        self.is_asked = False
        self.members: dict[str, Delivery] = {}

    def due_at(self) -> float:
        """When something is to be done about it."""
        end = min(self.deadline, self.give_up_at)
        return end if self.is_asked else min(end, self.extend_at)


class Leases:
    """The leases of one subscription; not thread-safe.

    `ack_deadline` is how long, in seconds, the broker keeps a lease that is not extended, and `max_lease` how long we
    go on extending it. `jitter` gives numbers from 0 to 1, which spread the extensions of many consumers.
    """

    def __init__(self, ack_deadline: float, max_lease: float, *, jitter: Callable[[], float]) -> None:
        self._ack_deadline = ack_deadline
        self._max_lease = max_lease
        self._jitter = jitter
        self._cohorts: list[_Cohort] = []
        self._cohort_of: dict[str, _Cohort] = {}
        self._lost: list[Delivery] = []
        #: How many leases were given up so far.
        self.given_up = 0
        #: Bytes of data of everything that is held.
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._cohort_of)

    def still_held(self, ack_ids: Iterable[str]) -> list[str]:
        """Leave out what was let go of."""
        held = self._cohort_of
        return [a for a in ack_ids if a in held]

    @property
    def oldest_since(self) -> float | None:
        """When the oldest of what is held arrived; None where nothing is held."""
        return min((cohort.since for cohort in self._cohorts if cohort.members), default=None)

    def take(self, deliveries: list[Delivery], now: float) -> None:
        """Hold what just arrived."""
        ack_ids = [d.ack_id for d in deliveries]
        before = len(self._cohort_of)
        cohort = self._open_cohort(now)
        self._cohort_of.update(dict.fromkeys(ack_ids, cohort))
        cohort.members.update(zip(ack_ids, deliveries, strict=True))
        self.size_bytes += sum([len(d.message.data) for d in deliveries])
        if len(self._cohort_of) - before != len(deliveries):
            self._settle_twins()

    def release(self, ack_ids: Iterable[str]) -> list[Delivery]:
        """Let go of what the broker confirmed or what is given back; what is not held any more is left out."""
        released = []
        pop = self._cohort_of.pop
        for ack_id in ack_ids:
            cohort = pop(ack_id, None)
            if cohort is not None:
                released.append(cohort.members.pop(ack_id))
        self.size_bytes -= sum([len(d.message.data) for d in released])
        return released

    def give_up(self, ack_ids: Iterable[str]) -> None:
        """Let go of what the broker will not have from us any more."""
        given_up = self.release(ack_ids)
        self._lost.extend(given_up)
        self.given_up += len(given_up)

    def lost(self) -> list[Delivery]:
        """Return what was given up since the last call: it will be delivered again, here or elsewhere."""
        lost, self._lost = self._lost, []
        return lost

    def next_due(self) -> float:
        """When `due` has something to do; `inf` while nothing is held."""
        return min([c.due_at() for c in self._cohorts], default=inf)

    def due(self, now: float) -> Round | None:
        """Give up what is too old or has run out, and return what to extend now, if anything."""
        self._cohorts = [c for c in self._cohorts if c.members]
        for cohort in self._cohorts:
            if min(cohort.deadline, cohort.give_up_at) <= now:
                self.give_up(list(cohort.members))
        waiting = [c for c in self._cohorts if c.members and not c.is_asked]
        if not any(c.extend_at <= now for c in waiting):
            return None
        soon = now + self._ack_deadline * _TOGETHER
        chosen = [c for c in waiting if c.extend_at <= soon]
        for cohort in chosen:
            cohort.is_asked = True
        return Round([ack_id for c in chosen for ack_id in c.members], chosen)

    def extended(self, asked: Round, asked_at: float) -> None:
        """Note that the broker confirmed a round that was sent at `asked_at`."""
        extend_at = self._extend_at(asked_at)
        for cohort in asked.cohorts:
            cohort.is_asked = False
            cohort.deadline = asked_at + self._ack_deadline
            cohort.extend_at = extend_at

    def not_extended(self, asked: Round, again_at: float) -> None:
        """Note that a round failed; its leases end as they would have, unless a later round saves them."""
        for cohort in asked.cohorts:
            cohort.is_asked = False
            cohort.extend_at = again_at

    def _open_cohort(self, now: float) -> _Cohort:
        newest = self._cohorts[-1] if self._cohorts else None
        if newest is not None and now - newest.since <= self._ack_deadline * _COHORT:
            return newest
        cohort = _Cohort(
            now,
            deadline=now + self._ack_deadline,
            extend_at=self._extend_at(now),
            give_up_at=now + self._max_lease,
        )
        # Here and not only when something is due: a steady stream must not leave empty cohorts behind.
        self._cohorts = [c for c in self._cohorts if c.members]
        self._cohorts.append(cohort)
        return cohort

    def _extend_at(self, now: float) -> float:
        # Half the deadline leaves room for retries; the share that is taken off keeps consumers out of step.
        return now + self._ack_deadline * (0.5 - 0.1 * self._jitter())

    def _settle_twins(self) -> None:
        """Keep one of deliveries that came with the same ack id: the last."""
        for cohort in self._cohorts:
            for ack_id in [a for a in cohort.members if self._cohort_of.get(a) is not cohort]:
                del cohort.members[ack_id]
        self.size_bytes = sum([len(d.message.data) for c in self._cohorts for d in c.members.values()])
