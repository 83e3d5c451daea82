"""The commands `workers`, `events` and `asyncapi`, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cdc_reactor.cli import app

FACTS = '''
"""Workers."""
from typing import Annotated
from pydantic import Field
from cdc_reactor import Context
from cdc_reactor.events import Event
from cdc_reactor.messages import Message
from cdc_reactor.workers import subscribes


class Upvoted(Event, topic="post.upvoted.v1", key="post_id"):
    post_id: int
    voter: str | None = None


class Alone(Event, topic="alone.v1"):
    size: Annotated[int, Field(lt=2**70)] = 0


@subscribes(Upvoted, subscription="post-upvoted-reputation", owner="team-a", group="heavy", dedicated=True)
def add_reputation(event: Upvoted, ctx: Context) -> None: ...


@subscribes(Message, topic="raw.v1", subscription="look-at-raw", max_messages=3, dead_letter="raw.dead")
async def look(message: Message, ctx: Context) -> None: ...
'''


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with events and workers, which no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"facts_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(FACTS)
    return name


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def succeeds(*arguments: str) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return str(done.stdout)


def test_workers_are_listed_by_subscription(facts):
    lines = [line.split("  ") for line in succeeds("workers", "--handlers", facts).splitlines()]

    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["SUBSCRIPTION", "TOPIC", "EVENT", "WORKER", "KIND", "GROUP", "MAX_MESSAGES", "MAX_ATTEMPTS", "DEAD_LETTER",
         "OWNER", "PLACE"],
        ["look-at-raw", "raw.v1", "Message", "look", "raw", "default", "3", "5", "raw.dead", "-", f"{facts}.py:24"],
        ["post-upvoted-reputation", "post.upvoted.v1", "Upvoted", "add_reputation", "typed", "heavy (dedicated)", "20",
         "5", "-", "team-a", f"{facts}.py:20"],
    ]  # fmt: skip


def test_workers_are_listed_for_programs(facts):
    assert json.loads(succeeds("workers", "--handlers", facts, "--json"))["workers"][0] == {
        "subscription": "look-at-raw",
        "topic": "raw.v1",
        "event": "Message",
        "encoding": "raw",
        "worker": "look",
        "kind": "raw",
        "group": "default",
        "dedicated": False,
        "ordered": True,
        "max_messages": 3,
        "max_attempts": 5,
        "timeout": None,
        "on_poison": "skip",
        "dead_letter": "raw.dead",
        "is_async": True,
        "owner": "",
        "place": f"{facts}.py:24",
    }


def test_events_are_listed_with_who_subscribes(facts):
    assert succeeds("events", "--handlers", facts) == (
        """\
alone.v1  Alone  json
    size  integer, optional
    → nobody here

post.upvoted.v1  Upvoted  json  key post_id
    post_id  integer
    voter    text or null, optional
    → add_reputation (post-upvoted-reputation)

raw.v1  Message  raw
    → look (look-at-raw)
"""
    )


def test_the_export_is_the_same_each_time_and_sorted(facts):
    text = succeeds("events", "--handlers", facts, "--json")

    assert text == succeeds("events", "--handlers", facts, "--json")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert list(json.loads(text)["events"]) == ["alone.v1", "post.upvoted.v1", "raw.v1"]


def test_asyncapi_says_the_same_in_yaml_and_in_json(facts):
    options = ("asyncapi", "--handlers", facts, "--title", "Forum", "--document-version", "2.0.0")
    text = succeeds(*options)

    assert text.startswith("asyncapi: 3.0.0\ninfo:\n  title: Forum\n  version: 2.0.0\n")
    assert yaml.safe_load(text) == json.loads(succeeds(*options, "--json"))


def test_nothing_found_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert succeeds("workers", "--handlers", "none") == "no workers\n"
    assert succeeds("events", "--handlers", "none") == "no events\n"


@pytest.mark.parametrize("command", ["workers", "events", "asyncapi"])
def test_a_module_that_is_not_there_is_told_in_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(command, "--handlers", "nowhere")

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("cdc-reactor: there is no package or module nowhere")


def test_options_before_check_are_refused_because_they_would_be_lost(facts):
    done = run("events", "--handlers", facts, "check", "--against", "x")

    assert (done.exit_code, done.stdout) == (2, "")
    assert "write the options behind it" in done.stderr
