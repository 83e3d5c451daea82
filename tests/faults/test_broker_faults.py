"""What a broker does to a consumer: streams that end, outages, lost acks, messages that come twice or late."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.checker import violations
from tests.faults.stage import SUBSCRIPTION, Stage, until, until_time
from tests.faults.traffic import schedule

#: What the issue promises, in seconds from the broker's return to the first change that is delivered and applied.
RECOVER = 5.0
#: One batch of 100 in a tenth of a second: a backlog lasts through all the faults.
SLOWLY = {"WORK": "0.1", "BATCH": "100"}
IN_FLIGHT = 1000


@pytest.mark.timeout(1800)
def test_after_resets_and_outages_work_goes_on_within_seconds_and_nothing_is_lost(stage: Stage, is_full, note):
    """Every other outage is a broker that is killed and started again with what it had on disk."""
    resets, outages, longest, count, rows = (30, 10, 20.0, 150_000, 1000) if is_full else (2, 2, 1.5, 4500, 100)
    changes = schedule(count, rows, seed=7)
    disk = ("--data", str(stage.folder / "broker"))
    stage.start_broker(*disk)
    stage.publish(changes, at_once=5 * rows)
    stage.start_daemon(pubsub__max_messages=IN_FLIGHT, run__threads=1, variables=SLOWLY)
    stage.until_logged(200)
    rng = random.Random(8)
    faults = rng.sample([*["reset"] * resets, *["refuse", "restart"] * (outages // 2)], resets + outages)

    delivered, recoveries = 0, []
    for fault in faults:
        if fault == "reset":
            stage.admin.reset_streams()
        elif fault == "refuse":
            stage.refuse(rng.uniform(1.0, longest))
        else:
            delivered += stage.statistics()["delivered"] + IN_FLIGHT  # … between this look and its end
            stage.kill_broker()
            until_time(time.monotonic() + rng.uniform(1.0, longest))
            stage.restart_broker(*disk)
        recoveries.append(_recovery(stage))
    assert stage.backlog() > 0, "the faults outlasted the backlog"
    stage.until_applied(count, within=300)
    stage.until_settled()
    note(f"{resets} resets, {outages} outages of 1 to {longest:g} s: recovered after {max(recoveries):.2f} s at most")

    # A broker that was killed knows no leases, and others end in an outage: what the broker sent again may come twice.
    redelivered = delivered + stage.statistics()["delivered"] - count
    assert violations(stage.story(changes, redelivered=redelivered)) == []
    assert max(recoveries) <= RECOVER


def test_the_stock_client_takes_longer_to_come_back(stage: Stage):
    """It opens its stream again five times in ten seconds at most, and spends these at once: an outage of a second costs
    ten (google.api_core.bidi.ResumableBidiRpc, `throttle_reopen`). After a reset it is back at once, and it loses
    nothing by either.
    """
    changes = schedule(3000, 100, seed=7)
    stage.start_broker()
    stage.publish(changes)
    stage.start_stock_client(variables={"WORK": "0.01"})
    stage.until_logged(100)

    stage.refuse(1.0)
    back, delivered = time.monotonic(), stage.statistics()["delivered"]
    until_time(back + RECOVER)

    assert delivered < len(changes)
    assert stage.statistics()["delivered"] == delivered


def _recovery(stage: Stage) -> float:
    """Wait until a change is delivered and applied from now on; return the seconds."""
    back, delivered = time.monotonic(), stage.statistics()["delivered"]
    until(lambda: stage.statistics()["delivered"] > delivered, "the broker delivers again", every=0.02)
    seen = len(stage.log)
    until(lambda: len(stage.log) > seen, "what it delivers is applied")
    return stage.log.read()[seen].time - back


def test_lost_acks_twins_and_late_messages_cost_duplicates_and_nothing_else(stage: Stage, is_full):
    """The stock client keeps these promises as well: its order holds while nothing is nacked."""
    count, rows = (100_000, 1000) if is_full else (4000, 100)
    changes = schedule(count, rows, seed=9)
    stage.start_broker(is_virtual=not is_full)
    stage.start_daemon(pubsub__max_messages=IN_FLIGHT, variables={"WORK": "0.02", "BATCH": "20"})
    for number, fault in enumerate(("lost", "unavailable", "unconfirmed", "lost")):
        stage.admin.drop_acks(3, fault)
        stage.admin.duplicate(20, SUBSCRIPTION)
        stage.admin.configure(delay=0.05)
        stage.publish(changes[number * count // 4 : (number + 1) * count // 4])
        stage.until_logged((number + 1) * count // 5)
        stage.sight()
    stage.admin.configure(delay=0.0)
    stage.admin.drop_acks(0)
    stage.until_applied(count)
    # Messages whose acks were lost are leased until their deadline.
    stage.pass_time(15.0)
    stage.until_settled()
    stage.sight()

    statistics = stage.statistics()
    redelivered = statistics["delivered"] - statistics["published"]
    assert redelivered > 0
    assert violations(stage.story(changes, redelivered=redelivered)) == []


def test_with_exactly_once_delivery_nothing_is_applied_twice_while_nothing_crashes(stage: Stage, is_full):
    """Not even when streams end, acks fail for a moment and confirmations are lost.

    Nor does the stock client apply anything twice for any one of these.
    """
    count, rows = (100_000, 1000) if is_full else (3000, 100)
    changes = schedule(count, rows, seed=10)
    stage.start_broker(exactly_once=True)
    stage.start_daemon(pubsub__max_messages=IN_FLIGHT, variables={"WORK": "0.02", "BATCH": "20"})
    for number, fault in enumerate(("unavailable", "transient", "unconfirmed")):
        stage.admin.drop_acks(3, fault)
        stage.publish(changes[number * count // 3 : (number + 1) * count // 3])
        stage.until_logged((number + 1) * count // 4)
        stage.admin.reset_streams()
        stage.sight()
    stage.until_applied(count)
    stage.until_settled()
    stage.sight()

    assert violations(stage.story(changes)) == []
