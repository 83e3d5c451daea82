"""The typed-event router: every message of a subscription goes to its one worker, untouched.

A message is read where its worker runs and not here: a parser is the team's code, and reading takes time that the event
loop has not. The lane is the ordering key; a message without one, or of a worker that wants no order, is a lane of its
own. Neighbour: `routing` does the
same for changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from cdc_reactor.lanes import Lone
from cdc_reactor.messages import Delivery, Message, Settlement
from cdc_reactor.reactor import Held, Route, Routed
from cdc_reactor.workers import Worker


class EventRouter:
    """Routes the deliveries of one worker's subscription; give it to a Reactor of its own."""

    def __init__(self, worker: Worker[Any]) -> None:
        self.worker = worker
        self._route = Route(worker.subscription, (worker,), _lane_of)

    def route_all(self, deliveries: Sequence[Delivery], routed: list[Routed | Held | Settlement]) -> None:
        """Append to `routed` a Held for each delivery, in order; its subject is the message."""
        route = self._route
        if self.worker.ordered:
            routed.extend([Held(delivery, delivery.message, route) for delivery in deliveries])
        else:
            routed.extend(
                [Held(delivery, delivery.message, route, _lane_of(delivery.message)) for delivery in deliveries]
            )


def _lane_of(message: Message) -> Hashable:
    # A tuple is equal to no ordering key. Ids are missing in tests only.
    return Lone((message.message_id or id(message),))
