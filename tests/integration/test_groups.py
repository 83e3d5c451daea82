"""Groups of workers, as people run them: `cdc-reactor run --group NAME` as a process beside a broker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc_reactor.messages import Message
from tests.daemon_stage import Stage
from tests.integration import forum
from tests.shells import Process, until

#: Who decides the layout of the digest.
EXPERIMENTS = """
from cdc_reactor.experiments import ExperimentsInMemory

client = ExperimentsInMemory({"digest-layout": "cards"})
"""
OTHERS = {"user-created-welcome", "post-upvoted-notify-author", "post-upvoted-reputation"}
DIGEST = "digest-due-personalized"


@pytest.fixture
def run(start: Callable[..., Process], stage: Stage, tmp_path: Path) -> Callable[..., Process]:
    """Start a daemon with the samples."""
    (tmp_path / "layouts.py").write_text(EXPERIMENTS)

    def run_one(*more: str) -> Process:
        place = ("--pubsub-host", stage.address, "--project", "p", "--health-port", "0")
        return start("run", *place, *more, CDC_EXPERIMENTS="layouts:client")

    return run_one


def consumed(stage: Stage) -> set[str]:
    """The subscriptions of changes and workers that somebody reads."""
    names = ["cdc", *(worker.subscription for worker in forum.shipped().workers)]
    return {name for name in names if stage.statistics(name)["consumers"]}


def event(**fields: Any) -> Message:
    return Message(json.dumps(fields).encode())


def publish_one_of_each(stage: Stage) -> None:
    stage.publish(event(user_id=6, day="2026-11-23"), topic="digest.due.v1")
    stage.publish(event(user_id=6, handle="newcomer"), topic="user.created.v1")


def backlog(stage: Stage, subscription: str) -> int:
    return stage.statistics(subscription)["backlog"]


def told(stage: Stage) -> list[Any]:
    return [json.loads(message.data) for message in stage.take("told")]


def test_a_group_is_run_alone_and_nothing_else_is_touched(run, stage):
    publish_one_of_each(stage)
    daemon = run("--group", "personalized-digest")
    daemon.says(r"/readyz and /metrics")

    until(lambda: backlog(stage, DIGEST) == 0, "the digest is sent")
    assert consumed(stage) == {DIGEST}
    daemon.terminate()

    assert daemon.status() == 0
    assert re.search(r"1 worker of personalized-digest in ", daemon.out)
    assert [(each["type"], each["context"]) for each in told(stage)] == [
        ("digest", {"day": "2026-11-23", "layout": "cards"})
    ]
    assert backlog(stage, "user-created-welcome") == 1
    assert stage.letters() == []


def test_without_a_group_everything_runs_but_what_is_dedicated(run, stage):
    publish_one_of_each(stage)
    daemon = run()
    daemon.says(r"/readyz and /metrics")

    until(lambda: backlog(stage, "user-created-welcome") == 0, "the welcome is sent")
    assert consumed(stage) == {"cdc", *OTHERS}
    daemon.terminate()

    assert daemon.status() == 0
    assert DIGEST not in daemon.out
    assert [each["type"] for each in told(stage)] == ["welcome"]
    assert backlog(stage, DIGEST) == 1
    assert stage.letters() == []


def test_several_groups_are_run_together_and_no_table_handler_with_them(run, stage):
    publish_one_of_each(stage)
    daemon = run("--group", "personalized-digest", "--group", "default")
    daemon.says(r"/readyz and /metrics")

    until(lambda: backlog(stage, DIGEST) == backlog(stage, "user-created-welcome") == 0, "both are sent")
    assert consumed(stage) == {DIGEST, *OTHERS}
    daemon.terminate()

    assert daemon.status() == 0
    assert sorted(each["type"] for each in told(stage)) == ["digest", "welcome"]


def test_a_group_that_nobody_belongs_to_is_told_in_one_sentence(run):
    daemon = run("--group", "digest")

    assert (daemon.status(), daemon.out) == (2, "")
    assert daemon.err == (
        "cdc-reactor: no worker belongs to the group digest; there are default, personalized-digest "
        "(run.groups, --group)\n"
    )
