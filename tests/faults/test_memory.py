"""A backlog much larger than memory allows: what is resident stays below the ceiling and what is configured."""

from __future__ import annotations

import pytest

from tests.faults.checker import violations
from tests.faults.stage import Stage
from tests.faults.traffic import schedule

#: What the daemon may have resident beside the bytes that it is configured to hold.
CEILING = 256 * 2**20


@pytest.mark.timeout(1800)
def test_a_large_backlog_is_worked_off_within_the_memory_that_was_promised(stage: Stage, is_full, note):
    """The stock client keeps to its flow control as well (1,000 messages, 100 MiB): there is no fault to show."""
    count, rows, held = (1_000_000, 10_000, 100 * 2**20) if is_full else (20_000, 1000, 2**20)
    changes = schedule(count, rows, seed=6)
    stage.start_broker()
    stage.publish(changes, size_bytes=1024, at_once=10 * rows)

    daemon = stage.start_daemon(pubsub__max_bytes=held)
    stage.until_applied(count, within=900)
    stage.until_settled()
    peak = daemon.peak_bytes()
    note(
        f"backlog of {count:,} x 1 KB: at most {peak / 2**20:.0f} MiB resident, of which {held / 2**20:g} MiB configured"
    )

    assert violations(stage.story(changes)) == []
    assert peak <= CEILING + held
