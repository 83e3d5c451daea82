"""The digest: its layout is an experiment, and a process of its own runs it."""

from datetime import date

import pytest

from cdc_reactor import Allocation, ExperimentsInMemory, Notification
from cdc_reactor.testing import Harness, assert_registered, expect_acked, expect_nacked
from workers.digest import DigestDue, send_digest

DUE = DigestDue(user_id=7, day=date(2026, 11, 23))


def digest(layout: str) -> Notification:
    return Notification(
        type="digest",
        recipients=("7",),
        context={"day": "2026-11-23", "layout": layout},
        dedupe_key="digest:7:2026-11-23",
    )


@pytest.mark.parametrize("layout", ["cards", "list"])
def test_the_layout_is_what_the_user_is_allocated_to(layout: str) -> None:
    experiments = ExperimentsInMemory({"digest-layout": layout})

    run = expect_acked(send_digest, DUE, experiments=experiments)

    assert run.notifications == [digest(layout)]
    assert run.allocations == [Allocation("digest-layout", layout, "7", layout)]


def test_whoever_is_in_no_experiment_gets_a_list() -> None:
    run = expect_acked(send_digest, DUE)

    assert (run.notifications, run.allocations) == ([digest("list")], [])


def test_a_digest_whose_allocation_is_not_noted_is_not_sent() -> None:
    experiments = ExperimentsInMemory({"digest-layout": "cards"})
    experiments.fail_next_flush = ConnectionError("the warehouse is closed")

    run = expect_nacked(send_digest, DUE, match="the warehouse is closed", experiments=experiments)

    assert (run.notifications, run.allocations) == ([], [])


def test_a_digest_that_is_due_twice_is_sent_once() -> None:
    run = Harness(send_digest).publish(DUE).publish(DUE).run().expect_acked()

    assert run.notifications == [digest("list")]


def test_a_group_of_its_own_runs_it_one_at_a_time() -> None:
    assert_registered(send_digest)
    assert (send_digest.group, send_digest.dedicated, send_digest.max_messages) == ("personalized-digest", True, 1)
