"""kill -9 at random points: nothing is lost, no row loses its order, and what comes twice was in flight.

The control keeps these promises as well: the stock client acknowledges after its callback, and the broker delivers a
row's unacknowledged changes again, in order. So no fault of it is asserted here, only that the checker agrees.
"""

from __future__ import annotations

import random

from tests.faults.checker import violations
from tests.faults.stage import Process, Stage
from tests.faults.traffic import flaky, schedule


def test_a_daemon_that_is_killed_again_and_again_loses_nothing_and_keeps_the_order_of_rows(stage: Stage, is_full):
    kills, count, rows, in_flight = (50, 100_000, 1000, 1000) if is_full else (3, 3000, 100, 300)
    # What fails for once makes its row wait while others go on.
    changes = flaky(schedule(count, rows, seed=1), 0.01, seed=1)
    stage.start_broker(is_virtual=not is_full)
    stage.publish(changes, at_once=3 * rows)
    rng = random.Random(2)
    for _ in range(kills):
        # Without waiting for it: some die before they are up.
        daemon = stage.begin_daemon(pubsub__max_messages=in_flight, variables={"WORK": "0.05", "BATCH": "20"})
        _kill_after(stage, daemon, rng.randrange(2 * count // kills - in_flight))

    stage.start_daemon()
    stage.until_applied(count)
    stage.until_settled()
    stage.sight()

    assert violations(stage.story(changes, in_flight=in_flight)) == []


def test_the_stock_client_loses_nothing_by_that_either(stage: Stage, is_full):
    kills, count, rows = (10, 20_000, 1000) if is_full else (1, 1000, 100)
    changes = schedule(count, rows, seed=1)
    stage.start_broker(is_virtual=not is_full)
    stage.publish(changes, at_once=3 * rows)
    rng = random.Random(2)
    for _ in range(kills):
        _kill_after(stage, stage.start_stock_client(), rng.randrange(count // kills))

    stage.start_stock_client()
    stage.until_applied(count)

    assert violations(stage.story(changes, in_flight=1000)) == []


def _kill_after(stage: Stage, process: Process, effects: int) -> None:
    stage.until_logged(len(stage.log) + effects)
    process.kill()
    stage.pass_time(15.0)
    stage.sight()
