"""The fixtures for workers; `test_testing` has those for handlers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Column, MetaData, Table, Text, insert, select

from cdc_reactor import Allocation, Context, Event, ExperimentsInMemory, subscribes

metadata = MetaData()
layouts = Table("layouts", metadata, Column("name", Text))


class PageOpened(Event, topic="page.opened.v1"):
    reader: str


@subscribes(PageOpened, subscription="page-opened-layout", max_attempts=2)
def lay_out(event: PageOpened, ctx: Context) -> None:
    layout = ctx.experiments.allocate("layout", user_id=event.reader, default="wide")
    ctx.session.execute(insert(layouts).values(name=layout))
    if event.reader == "eve":
        raise RuntimeError("never")


def test_an_acknowledged_message_has_written_to_the_database_of_the_test(expect_acked, database):
    run = expect_acked(lay_out, PageOpened(reader="ada"))

    assert run.engine is database
    with database.connect() as connection:
        assert connection.scalars(select(layouts.c.name)).all() == ["wide"]


def test_what_failed_has_written_nothing(expect_nacked, expect_dead_lettered, database):
    assert expect_nacked(lay_out, PageOpened(reader="eve"), key="eve").nacked == 1
    assert expect_dead_lettered(lay_out, PageOpened(reader="eve"), match="never").runs == 2
    with database.connect() as connection:
        assert connection.scalars(select(layouts.c.name)).all() == []


def test_experiments_are_flushed_to_the_client_of_the_test(expect_acked, harness, experiments):
    expect_acked(lay_out, PageOpened(reader="ada"))
    assert experiments.flushed == []
    own = ExperimentsInMemory({"layout": "narrow"})

    run = expect_acked(lay_out, PageOpened(reader="ada"), experiments=own)

    assert run.allocations == own.flushed == [Allocation("layout", "narrow", "ada", "narrow")]
    assert experiments.flushed == []
    experiments.fail_next_flush = RuntimeError("the sink is full")
    assert harness(lay_out).publish(PageOpened(reader="ada")).run().failures[0].reason.endswith("the sink is full")


def test_the_examples_of_the_guide_pass(tmp_path):
    guide = Path(__file__).parents[1] / "docs" / "how-to" / "test-a-worker.md"
    examples = re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "test_guide.py").write_text("\n\n".join(examples))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert "5 passed" in done.stdout, done.stdout
