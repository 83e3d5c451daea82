"""SIGTERM: everything is given back or confirmed, quickly, and the next process goes on at once where this one ended."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

from tests.faults.checker import Effect, violations
from tests.faults.stage import Process, Stage, until
from tests.faults.traffic import Change, schedule

#: What the issue promises, in seconds: to drain in, and to see a held row again after the restart.
DRAIN = 2.0
RESUME = 1.0


def test_after_sigterm_the_next_process_sees_every_held_row_within_a_second(stage: Stage, is_full, note):
    """The second counts from the moment when the new process says that its streams are open."""
    stops, count, rows, held = (50, 200_000, 1000, 500) if is_full else (2, 3000, 100, 200)
    changes = schedule(count, rows, seed=3)
    stage.start_broker()
    stage.publish(changes, at_once=3 * rows)
    rng = random.Random(4)
    work = {"WORK": "0.05", "BATCH": "20"}
    daemon = stage.start_daemon(pubsub__max_messages=held, variables=work)
    drains, resumes = [], []
    for _ in range(stops):
        stage.until_logged(len(stage.log) + 1 + rng.randrange(2 * held))
        drains.append(_drain(stage, daemon))
        stage.sight()
        waiting = _held(changes, stage.log.read(), held)
        assert waiting, "the stops outlasted the backlog"
        before = len(stage.log)
        daemon = stage.start_daemon(pubsub__max_messages=held, variables=work)
        ready = time.monotonic()
        _until_seen(stage, waiting, before)
        resumes.append(_last_first(waiting, stage.log.read()[before:]) - ready)

    stage.until_applied(count, within=120)
    stage.until_settled()
    stage.sight()
    note(f"{stops} x SIGTERM: drained in {_told(drains)} s; held rows seen again after {_told(resumes)} s")

    assert violations(stage.story(changes)) == []
    # The short run shares the machine with other tests, and drains while others start.
    patience = 1 if is_full else 4
    assert max(drains) <= DRAIN * patience
    assert max(resumes) <= RESUME * patience


def test_the_stock_client_strands_what_waits_behind_another_change_of_its_row(stage: Stage):
    """Its shutdown nacks what it has not dispatched, but for changes that wait for an earlier one of their row.

    Those stay leased, and until their deadline is over the next process is given nothing of their rows.
    """
    changes = schedule(3000, 20, seed=3)
    stage.start_broker(is_virtual=True)
    stage.publish(changes)
    client = stage.start_stock_client(variables={"WORK": "0.01"})
    until(lambda: len(stage.log) >= 300, "some changes are applied")

    client.terminate()
    assert client.status(within=30) == 0, client.output

    stranded = stage.statistics()["outstanding"]
    assert stranded > 0
    stage.start_daemon()
    stage.pass_time(9.0)
    assert stage.statistics()["expired"] == 0
    stage.pass_time(9.0)
    assert stage.statistics()["expired"] >= stranded
    stage.until_applied(len(changes))


def _drain(stage: Stage, daemon: Process) -> float:
    """End a daemon as an orchestrator does; return how long that took."""
    started = time.monotonic()
    daemon.terminate()
    assert daemon.status(within=30) == 0, daemon.output
    seconds = time.monotonic() - started
    assert stage.statistics()["outstanding"] == 0, "something is still leased"
    return seconds


def _until_seen(stage: Stage, waiting: Mapping[int, int], before: int) -> None:
    until(lambda: _seen(waiting, stage.log.read()[before:]), "every held row is seen again", every=0.02)


def _held(changes: Sequence[Change], effects: Sequence[Effect], count: int) -> Mapping[int, int]:
    """Say of each row that the last process held the next seq: the first `count` that are not applied were held."""
    applied = {(effect.row, effect.seq) for effect in effects}
    left = [change for change in changes if (change.row, change.seq) not in applied]
    found: dict[int, int] = {}
    for change in left[:count]:
        found.setdefault(change.row, change.seq)
    return found


def _seen(waiting: Mapping[int, int], effects: Sequence[Effect]) -> bool:
    return waiting.items() <= {(effect.row, effect.seq) for effect in effects}


def _last_first(waiting: Mapping[int, int], effects: Sequence[Effect]) -> float:
    """Say when the last of these rows was seen for the first time."""
    return max(min(e.time for e in effects if (e.row, e.seq) == change) for change in waiting.items())


def _told(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} (at most {ordered[-1]:.2f})"
