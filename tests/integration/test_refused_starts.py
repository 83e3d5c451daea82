"""What would eat or mix up messages is refused at the start, in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

DEDICATED = """
from cdc_reactor import Context, Message, subscribes

@subscribes(Message, topic="digest.due.v1", subscription="{subscription}", group="digest", dedicated=True)
def digest(message: Message, ctx: Context) -> None: ...
"""
HANDLER = """
from cdc_reactor import Batch, Context, Row, handles

class User(Row, table="public.users"):
    id: int

@handles(User)
def note(batch: Batch[User], ctx: Context) -> None: ...
"""


def start(folder: Path, *modules: str) -> tuple[int, str]:
    for number, text in enumerate(modules):
        (folder / f"module{number}.py").write_text(dedent(text))
    files = [part for n in range(len(modules)) for part in ("--handlers", str(folder / f"module{n}.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "cdc_reactor.cli", "run", "--pubsub-host", "127.0.0.1:9", *files],
        capture_output=True, text=True, cwd=folder, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def test_dedicated_workers_alone_need_their_group_and_consume_no_changes(tmp_path):
    assert start(tmp_path, DEDICATED.format(subscription="digest")) == (
        2,
        "cdc-reactor: there are no table handlers, and all workers are dedicated: add --group NAME, of digest",
    )


@pytest.mark.parametrize("name", ["cdc"])
def test_a_worker_cannot_take_the_changes_of_handlers_even_where_it_is_not_run(tmp_path, name):
    status, told = start(tmp_path, DEDICATED.format(subscription=name), HANDLER)

    assert status == 2
    assert told.startswith("cdc-reactor: the subscription cdc is that of the changes, and of the worker digest (")
