"""Tells what comes again from what is new, so that a message which we still have is not handled twice.

A broker sends a message again when it lost our lease, and with it all later ones of its ordering key, also those whose
acknowledgement it had confirmed. What of them may be left out? Whatever is still here, and whatever was just done; but
only while nothing earlier of that key is handled again: else its row would go back in time and stay there. So once
something of a key was handed over that may be older than what we know, all that follows of it is handed over, too.

A machine of values; `now` is passed in. Neighbour: `pubsub`, which asks it about every response.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from cdc_reactor.messages import Delivery

#: For how long, in seconds, after a stream was opened again the broker may send what it had confirmed as acknowledged.
#: Later, that is somebody's wish: a subscription was set back in time.
RECOVERY = 30.0

#: How many confirmed acknowledgements are remembered, at least; and how many that came too late, at most.
REMEMBERED = 50_000

_MAX_REWOUND = 200_000


class Arrivals(NamedTuple):
    """What a response brought: the new, the held with its new delivery, and what was done and is to be acknowledged."""

    new: list[Delivery]
    held_again: Sequence[tuple[Delivery, Delivery]] = ()
    done_again: Sequence[Delivery] = ()


class Recognition:
    """What one subscription has, and what it had; not thread-safe."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        #: By message id, what has arrived and is neither given back nor acknowledged for certain.
        self._held: dict[str, Delivery] = {}
        #: What was done when its lease was gone: it comes again.
        self._too_late: dict[str, None] = {}
        #: What was confirmed, in two generations, of which the older is forgotten when the younger is full.
        self._confirmed: dict[str, None] = {}
        self._confirmed_before: dict[str, None] = {}
        #: Ordering keys of which something was handed over that may be older than what is known. None is ever taken
        #: out, for what is known of it may be the earlier run; too many, and all keys count as such.
        self._rewound: set[str] = set()
        self._is_all_rewound = False
        self._recovered_at = -inf

    def __len__(self) -> int:
        return len(self._held)

    def stream_reopened(self, now: float) -> None:
        """Expect that the broker has forgotten what we told it last."""
        self._recovered_at = now + RECOVERY

    def sort(self, deliveries: list[Delivery], now: float) -> Arrivals:
        """Take in a response's deliveries, in their order."""
        fresh = {d.message.message_id: d for d in deliveries}
        if now >= self._recovered_at and len(fresh) == len(deliveries) and self._is_all_new(fresh):
            self._held.update(fresh)
            return Arrivals(deliveries)
        return self._sort_carefully(deliveries, is_recovering=now < self._recovered_at)

    def _is_all_new(self, fresh: dict[str, Delivery]) -> bool:
        return (
            self._held.keys().isdisjoint(fresh)
            and self._confirmed.keys().isdisjoint(fresh)
            and self._confirmed_before.keys().isdisjoint(fresh)
            and self._too_late.keys().isdisjoint(fresh)
            and "" not in fresh
        )

    def _sort_carefully(self, deliveries: list[Delivery], *, is_recovering: bool) -> Arrivals:
        new: list[Delivery] = []
        held_again: list[tuple[Delivery, Delivery]] = []
        done_again: list[Delivery] = []
        for delivery in deliveries:
            message_id, key = delivery.message.message_id, delivery.message.ordering_key
            is_rewound = bool(key) and (self._is_all_rewound or key in self._rewound)
            held = None if is_rewound else self._held.get(message_id)
            was_confirmed = message_id in self._confirmed or message_id in self._confirmed_before
            if held is not None:
                held_again.append((held, delivery))
            elif not is_rewound and (message_id in self._too_late or (was_confirmed and is_recovering)):
                done_again.append(delivery)
            else:
                self._hand_over(delivery, may_be_old=is_recovering or was_confirmed)
                new.append(delivery)
        return Arrivals(new, held_again, done_again)

    def _hand_over(self, delivery: Delivery, *, may_be_old: bool) -> None:
        message = delivery.message
        if message.message_id:
            self._held[message.message_id] = delivery
        if may_be_old and message.ordering_key and not self._is_all_rewound:
            self._rewound.add(message.ordering_key)
            if len(self._rewound) > _MAX_REWOUND:
                self._is_all_rewound = True
                self._rewound.clear()

    def given_back(self, deliveries: Iterable[Delivery]) -> None:
        """Forget what goes back to the broker: it is new when it comes again."""
        for delivery in deliveries:
            self._drop(delivery)

    def confirmed(self, deliveries: Iterable[Delivery]) -> None:
        """Note what the broker confirmed as acknowledged."""
        for delivery in deliveries:
            self._drop(delivery)
            self._too_late.pop(delivery.message.message_id, None)
            self._confirmed[delivery.message.message_id] = None
        if len(self._confirmed) >= self._remembered:
            self._confirmed_before, self._confirmed = self._confirmed, {}

    def too_late(self, deliveries: Iterable[Delivery]) -> None:
        """Note what was done and could not be acknowledged, because its lease was gone."""
        for delivery in deliveries:
            if self._drop(delivery):
                self._too_late[delivery.message.message_id] = None
        excess = len(self._too_late) - self._remembered
        for message_id in list(islice(self._too_late, max(0, excess))):
            del self._too_late[message_id]

    def _drop(self, delivery: Delivery) -> bool:
        """Let go of a delivery; False where its message was handed over again since, and is another one's."""
        message_id = delivery.message.message_id
        held = self._held.pop(message_id, None)
        if held is delivery:
            return True
        if held is not None:
            self._held[message_id] = held
        return False
