"""The database goes away in mid-run: nothing is blamed on the data, and work goes on when it is back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.checker import Effect, order_breaks, violations
from tests.faults.proxy import Proxy
from tests.faults.stage import Stage, until, until_time
from tests.faults.traffic import schedule

pytestmark = pytest.mark.postgres

#: What the issue promises, in seconds.
RESUME = 5.0

_BATCH = 10
# As many as the daemon has by default.
_THREADS = 8


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """A way to the database that can be cut."""
    found = Proxy(postgres_url)
    yield found
    found.close()


@pytest.fixture
def database(postgres_url: str) -> Iterator[psycopg.Connection]:
    """The database itself, for whoever looks at what was committed."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection
        connection.execute("DROP TABLE IF EXISTS faults_effects")


def test_a_database_that_is_down_for_a_while_costs_no_change_its_life(
    stage: Stage, is_full, proxy: Proxy, database: psycopg.Connection, note
):
    outage, count = (60.0, 4000) if is_full else (2.0, 1500)
    changes = schedule(count, 100, seed=5)
    stage.start_broker()
    stage.start_daemon(
        handlers=stage.here / "reacting_in_database.py",
        database_url=proxy.url,
        create_tables="true",
        variables={"WORK": "0.05", "BATCH": str(_BATCH)},
    )
    stage.publish(changes)
    until(lambda: _count(database) > 300, "the run is under way")

    proxy.go()
    until_time(time.monotonic() + outage)
    before = _count(database)
    proxy.come_back()
    back = time.monotonic()

    until(lambda: _count(database) > before, "work goes on")
    resumed = _effects(database)[before].time - back
    until(lambda: _count(database) >= len(changes), "everything is applied")
    stage.until_settled()
    note(f"database down for {outage:g} s: resumed {resumed:.2f} s after it was back")

    # A commit whose answer was cut off may have been done or not, and is done again: a batch of each thread at most.
    assert violations(stage.story(changes, effects=_effects(database), in_flight=_THREADS * _BATCH)) == []
    assert before < len(changes)
    assert resumed <= RESUME


def test_with_the_stock_client_an_outage_breaks_the_order_of_rows(stage: Stage, proxy: Proxy):
    """Every change that fails is nacked, and comes again when later ones of its row may have been applied."""
    changes = schedule(1000, 20, seed=5)
    stage.start_broker()
    stage.publish(changes)
    stage.start_stock_client(variables={"WORK": "0.01", "DATABASE": proxy.url})
    until(lambda: len(stage.log) > 100, "the run is under way")

    proxy.go()
    until(lambda: len(stage.failures.read_bytes()) > 100, "changes that fail")
    proxy.come_back()

    until(lambda: len(order_breaks(stage.story(changes))) > 0, "an order break", every=0.1)


def _count(database: psycopg.Connection) -> int:
    (found,) = database.execute("SELECT count(*) FROM faults_effects").fetchone() or (0,)
    return int(found)


def _effects(database: psycopg.Connection) -> list[Effect]:
    rows = database.execute("SELECT row, seq, op, pid, time FROM faults_effects ORDER BY number").fetchall()
    return [Effect(*row) for row in rows]
