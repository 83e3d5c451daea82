"""The typed-event dispatcher: which workers a process runs, and how much each of them may take at a time.

Values only: `daemon` opens the subscriptions and makes a WorkerConsumer of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdc_reactor.errors import UsageError
from cdc_reactor.pubsub import Limits
from cdc_reactor.settings import PubSubSettings, Settings
from cdc_reactor.workers import Worker

# The largest message that the service takes; a subscription must be able to hold one.
# https://cloud.google.com/pubsub/quotas#resource_limits
_LARGEST_MESSAGE = 10 * 2**20
# Acknowledgements of few messages each, of hundreds of subscriptions, would be most of what a process does: so many
# requests a second are enough, as long as none waits longer than that, in seconds.
_ACK_REQUESTS_A_SECOND = 250
_LONGEST_LINGER = 0.8


def chosen(workers: Sequence[Worker[Any]], groups: Sequence[str] | None) -> list[Worker[Any]]:
    """Return the workers of these groups; without groups, all that are not dedicated.

    Raises:
        UsageError: a group has no workers.
    """
    if groups is None:
        return [worker for worker in workers if not worker.dedicated]
    known = {worker.group for worker in workers}
    for group in groups:
        if group not in known:
            there_are = f"there are {', '.join(sorted(known))}" if known else "there are no workers at all"
            raise UsageError(f"no worker belongs to the group {group}; {there_are} (run.groups, --group)")
    return [worker for worker in workers if worker.group in groups]


def check_subscriptions(workers: Sequence[Worker[Any]], settings: Settings) -> None:
    """Refuse a worker that would take its messages away from the table handlers, or they from it."""
    short = {name.rpartition("/")[2] for name in settings.subscriptions}
    for worker in workers:
        if worker.subscription in short:
            raise UsageError(
                f"the subscription {worker.subscription} is that of the changes, and of the worker {worker.name} "
                f"({worker.place}); each would get a part of its messages. Give the worker one of its own"
            )


def limits_of(worker: Worker[Any], settings: PubSubSettings, workers: int) -> Limits:
    """Return how much of a worker's messages is held at most, where so many workers share the memory.

    Twice what it handles at a time: enough to go on while acknowledgements are confirmed, and little that waits here
    while another process has nothing to do.
    """
    return Limits(
        max_messages=2 * worker.max_messages,
        max_bytes=max(_LARGEST_MESSAGE, settings.max_bytes // max(1, workers)) if settings.max_bytes else 0,
        ack_deadline=settings.ack_deadline,
        max_lease=max(settings.max_lease, 2 * (worker.timeout or 0.0)),
        linger=min(_LONGEST_LINGER, max(Limits().linger, workers / _ACK_REQUESTS_A_SECOND)),
    )


def share_of(places: int) -> int:
    """Return how many of a runner's places one worker may take, so that slow ones leave room for the others."""
    return max(1, places * 3 // 4)
