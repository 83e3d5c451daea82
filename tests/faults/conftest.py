"""The stage of a fault test, and whether the faults are to be as many as promised or as few as show them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, postgres_url: str) -> Iterator[Stage]:
    """A stage with nothing on it yet.

    The database is PostgreSQL even where handlers do not write to it: beside SQLite they would run in one thread.
    """
    found = Stage(tmp_path, postgres_url)
    yield found
    found.close()


@pytest.fixture(scope="session")
def is_full() -> bool:
    """Whether this is the long run."""
    return os.environ.get("CDC_REACTOR_FAULTS") == "full"


@pytest.fixture
def note(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keep a figure: in the report of the run, and on the terminal with -rP or -s."""

    def keep(figure: str) -> None:
        record_property("figure", figure)
        print(f"{request.node.name}: {figure}")  # noqa: T201 - figures are what the long run is for

    return keep
