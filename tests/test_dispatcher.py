"""Which workers a process runs, and how much each may take."""

from __future__ import annotations

import pytest

from cdc_reactor import Context, Message, Worker, subscribes
from cdc_reactor.dispatcher import check_subscriptions, chosen, limits_of, share_of
from cdc_reactor.errors import UsageError
from cdc_reactor.pubsub import Limits
from cdc_reactor.settings import PubSubSettings, Settings
from cdc_reactor.workers import WorkerOptions


def worker(subscription: str, **options: object) -> Worker[Message]:
    given: WorkerOptions = options  # type: ignore[assignment]  # each test gives what it needs

    @subscribes(Message, topic="ticks.v1", subscription=subscription, **given)
    def note(message: Message, ctx: Context) -> None:
        """Do nothing."""

    return note


PLAIN = worker("plain")
GROUPED = worker("grouped", group="digest")
HEAVY = worker("heavy", group="digest", dedicated=True)


def test_without_groups_all_run_but_the_dedicated():
    assert chosen([PLAIN, GROUPED, HEAVY], None) == [PLAIN, GROUPED]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["digest"], [GROUPED, HEAVY]),
        (["default"], [PLAIN]),
        (["digest", "default"], [PLAIN, GROUPED, HEAVY]),
    ],
)
def test_with_groups_only_theirs_run_dedicated_or_not(groups, expected):
    assert chosen([PLAIN, GROUPED, HEAVY], groups) == expected


def test_a_group_that_nobody_belongs_to_is_refused_by_name():
    with pytest.raises(UsageError, match="no worker belongs to the group digests; there are default, digest"):
        chosen([PLAIN, HEAVY], ["digests"])
    with pytest.raises(UsageError, match="there are no workers at all"):
        chosen([], ["digest"])


def test_a_worker_cannot_share_the_subscription_of_the_changes():
    check_subscriptions([PLAIN], Settings())

    with pytest.raises(UsageError, match=r"the subscription cdc is that of the changes, and of the worker note \("):
        check_subscriptions([worker("cdc")], Settings(subscriptions=["projects/p/subscriptions/cdc"]))


@pytest.mark.parametrize(
    ("options", "settings", "workers", "expected"),
    [
        ({}, {}, 1, {"max_messages": 40, "max_bytes": 104_857_600}),
        ({"max_messages": 1}, {}, 200, {"max_messages": 2, "max_bytes": 10_485_760, "linger": 0.8}),
        ({"max_messages": 1}, {}, 20, {"max_messages": 2, "max_bytes": 10_485_760, "linger": 0.08}),
        ({"max_messages": 1}, {}, 2_000, {"max_messages": 2, "max_bytes": 10_485_760, "linger": 0.8}),
        ({"timeout": 500}, {"max_bytes": 0}, 2, {"max_messages": 40, "max_bytes": 0, "max_lease": 1000.0}),
    ],
)
def test_what_is_held_follows_from_what_is_handled_at_a_time(options, settings, workers, expected):
    limits = limits_of(worker("one", **options), PubSubSettings(**settings), workers)

    assert limits == Limits(**{"ack_deadline": 60, "max_lease": 600, **expected})


@pytest.mark.parametrize(("places", "share"), [(1, 1), (2, 1), (4, 3), (24, 18)])
def test_one_worker_leaves_room_for_others(places, share):
    assert share_of(places) == share
