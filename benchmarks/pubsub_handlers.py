"""The handlers that the daemon runs in the Pub/Sub benchmark: one for each table, none of which does anything.

Where BENCH_SEEN names a file, what they are given goes there in place of that, to be compared with what was published.
With BENCH_READING they read every change: `dicts` or `pydantic` (see `corpus`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from benchmarks.corpus import READINGS, by_columns, handlers
from benchmarks.pubsub_peers import seen_by
from cdc_reactor.changes import Batch

_see = seen_by(os.environ.get("BENCH_SEEN"))


def _note(batch: Batch[Any]) -> None:
    assert _see is not None
    for change in batch:
        _see(by_columns(change))


# The last changes fill no batch; waiting half a second for more of them would be counted as work.
_MAX_WAIT = 0.05

users, posts, comments, votes, visits = [
    replace(handler, max_wait=_MAX_WAIT)
    for handler in handlers(READINGS[os.environ.get("BENCH_READING", "lazy")] if _see is None else _note)
]
