"""Visits: kept until the table is emptied."""

from datetime import datetime, timedelta

from sqlalchemy import select

from cdc_reactor.testing import Harness, assert_registered
from table_handlers.schema import page_visits
from table_handlers.visits import keep_visits

NOON = datetime.fromisoformat("2026-11-23T12:00:00.000123")


def test_visits_are_kept_once_each() -> None:
    harness = (
        Harness(keep_visits).insert(at=NOON, page="/").insert(at=NOON, page="/about").insert(page="/lost", at=None)
    )

    for run in (harness.run().expect_acked(), harness.redeliver().run().expect_acked()):
        assert run.session.execute(select(page_visits).order_by("page")).all() == [("/", NOON), ("/about", NOON)]


def test_a_truncate_removes_what_was_before_it_and_nothing_else() -> None:
    later = NOON + timedelta(microseconds=1)

    run = Harness(keep_visits).insert(at=NOON, page="/").truncate().insert(at=later, page="/").run().expect_acked()

    assert run.session.execute(select(page_visits)).all() == [("/", later)]
    assert run.runs == 3  # a truncate waits for all, and all wait for it


def test_it_is_registered() -> None:
    assert_registered(keep_visits)
