"""The pytest plugin: a clean database for each test, Harnesses and expectations of workers on it, rows to begin with.

pytest imports this module at every start, wherever cdc_reactor is installed; so everything is imported inside the
fixtures. The database is SQLite in memory, or PostgreSQL where `--cdc-database-url` or CDC_REACTOR_TEST_DATABASE_URL
names one: each test then gets a schema of its own, which is removed after it.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table

    from cdc_reactor.experiments import ExperimentClient, ExperimentsInMemory
    from cdc_reactor.handlers import Handler
    from cdc_reactor.testing import ExpectsAck, ExpectsFailure, Harness, Run
    from cdc_reactor.workers import Worker

URL_VARIABLE = "CDC_REACTOR_TEST_DATABASE_URL"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--cdc-database-url`."""
    parser.getgroup("cdc_reactor").addoption(
        "--cdc-database-url",
        metavar="URL",
        default=None,
        help=f"PostgreSQL for the fixture `database` [default: {URL_VARIABLE}, else SQLite in memory]",
    )


class ReplaysFile(Protocol):
    """What the fixture `replay_file` gives."""

    def __call__(self, path: str | Path, *handlers: Handler[Any] | Worker[Any], format: str | None = None) -> Run:  # noqa: A002 - as in Harness
        """Replay a captured file through handlers."""


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Give an engine of an empty database."""
    from cdc_reactor.testing import fresh_database

    url = request.config.getoption("--cdc-database-url") or os.environ.get(URL_VARIABLE) or None
    with fresh_database(url) as engine:
        yield engine


@pytest.fixture
def experiments() -> ExperimentsInMemory:
    """Decide for `ctx.experiments` in the test's harnesses and expectations."""
    from cdc_reactor.experiments import ExperimentsInMemory

    return ExperimentsInMemory()


@pytest.fixture
def harness(database: Engine, experiments: ExperimentClient) -> Callable[..., Harness]:
    """Make Harnesses on the test's database: `harness(announce).insert(id=1).run()`; options are those of Harness."""
    from cdc_reactor.testing import Harness

    def make(*handlers: Handler[Any] | Worker[Any], **options: Any) -> Harness:
        return Harness(*handlers, **{"engine": database, "experiments": experiments, **options})

    return make


@pytest.fixture
def expect_acked(database: Engine, experiments: ExperimentClient) -> ExpectsAck:
    """Expect that a worker handles a message at its first attempt: `expect_acked(add_reputation, PostUpvoted(…))`."""
    from cdc_reactor.testing import expect_acked as expect

    return partial(expect, engine=database, experiments=experiments)


@pytest.fixture
def expect_nacked(database: Engine, experiments: ExperimentClient) -> ExpectsFailure:
    """Expect that a first attempt fails and the message is tried again: `expect_nacked(rate, vote, match="later")`."""
    from cdc_reactor.testing import expect_nacked as expect

    return partial(expect, engine=database, experiments=experiments)


@pytest.fixture
def expect_dead_lettered(database: Engine, experiments: ExperimentClient) -> ExpectsFailure:
    """Expect that a message ends among the dead letters: `expect_dead_lettered(store, b"{", match="not JSON")`."""
    from cdc_reactor.testing import expect_dead_lettered as expect

    return partial(expect, engine=database, experiments=experiments)


@pytest.fixture
def replay_file(database: Engine) -> ReplaysFile:
    """Replay a captured file through handlers: `replay_file("captures/forum.ndjson", announce)`."""
    from cdc_reactor.testing import Harness

    def replay(path: str | Path, *handlers: Handler[Any] | Worker[Any], format: str | None = None) -> Run:  # noqa: A002 - the same
        return Harness(*handlers, engine=database).replay_file(path, format=format).run()

    return replay


@pytest.fixture
def save_fixtures(database: Engine) -> Callable[..., None]:
    """Save what a test begins with: `save_fixtures(user, post)` or `save_fixtures(table, [{"id": 1}, …])`.

    Tables that do not exist are created.
    """
    from sqlalchemy import Table

    def save(first: Any, *rest: Any) -> None:
        if isinstance(first, Table):
            _save_rows(database, first, *rest)
        else:
            _save_objects(database, [first, *rest])

    return save


def _save_rows(database: Engine, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    from sqlalchemy import insert

    table.metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(insert(table), [dict(row) for row in rows])


def _save_objects(database: Engine, objects: Iterable[Any]) -> None:
    from sqlalchemy.orm import Session

    saved = list(objects)
    for each in saved:
        each.metadata.create_all(database)
    # What was saved stays readable after the session.
    with Session(database, expire_on_commit=False) as session:
        session.add_all(saved)
        session.commit()
