"""The commands `new worker` and `new event`, as a person runs them; every tool is content with what they write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdc_reactor.cli import app

ROOT = Path(__file__).parents[1]
LONG = "a_field_with_a_rather_long_name_as_some_of_us_like_them_to_be"

# Events of every kind that a worker may be written for.
FACTS = f'''"""Events of a team."""

from enum import Enum
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, Field

from cdc_reactor import Context, Event, Message, ProtobufEvent, subscribes


class Colour(Enum):
    """A colour."""

    RED = "red"


class Place(BaseModel):
    """A place."""

    city: str


class PlaceSeen(Event, topic="place.seen.v1"):
    """A place was seen."""

    place: Place
    colours: list[Colour]
    how: Literal["near", "far"]
    class_: int = Field(alias="class")


class CodeSent(Event, topic="code.sent.v1"):
    """A code was sent."""

    code: str = Field(pattern="^[A-Z]{{12}}$")


class MuchSaid(Event, topic="much.said.v1"):
    """Much was said."""

    {LONG}_1: int
    {LONG}_2: str
    {LONG}_id: bytes


ticked = ProtobufEvent(Timestamp, topic="clock.ticked.v1")


@subscribes(Timestamp, subscription="tocks", topic="clock.tocked.v1")
def bare_one(event: Timestamp, ctx: Context) -> None:
    """Take a class that nothing binds to its topic."""


@subscribes(Message, subscription="olds", topic="old.thing.v1")
def old_one(message: Message, ctx: Context) -> None:
    """Take anything."""
'''

MESSAGE = {"postId": 1, "at": "2026-11-23T10:00:00Z", "class": "x", "tags": [], "by": None, "secret": "s3cr3t"}

# Each once by itself, and in all combinations that differ.
COMMANDS = (
    "event mail.bounced.v2 --field address_id:UUID --field why:str? --field at:datetime --key address_id --folder made_events",
    "event page.read.v1 --from message.json --folder made_events",
    "worker mail.bounced.v2 --name mend_address --async",
    "worker mail.bounced.v2 --name tell_owner --notifies --subscription tell-owner",
    "worker page.read.v1 --async --notifies",
    "worker place.seen.v1",
    "worker code.sent.v1",
    "worker much.said.v1",
    "worker clock.ticked.v1",
    "worker clock.tocked.v1",
    "worker old.thing.v1 --raw",
    "worker old.thing.v1 --raw --async --name old_async",
    "worker own.thing.v3 --field thing_id:int --field other_id:int? --field day:date --field cost:Decimal",
    f"worker {'x' * 60} --field {LONG[:60]}:int --name {'y' * 60} --subscription {'z' * 90}",
    f"worker {'a.b' * 20} --from message.json --name {'w' * 60} --subscription short",
)


def command(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with some events and all workers that can be made."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "made_events").mkdir()
    (folder / "made_events" / "__init__.py").write_text('"""Ours."""\n')
    (folder / "made_events" / "facts.py").write_text(FACTS)
    (folder / "message.json").write_text(json.dumps(MESSAGE))
    places = ["--folder", "made_workers", "--handlers", "made_events", "--handlers", "made_workers"]
    (folder / "made_workers").mkdir()
    run_all = (
        "from cdc_reactor.cli import app\n"
        f"for line in {COMMANDS!r}:\n"
        f"    places = {places!r} if line.startswith('worker') else []\n"
        "    assert not app(['new', *line.split(), *places], standalone_mode=False), line\n"
    )
    (folder / "run_all.py").write_text(run_all)
    command(folder, "run_all")
    (folder / "run_all.py").unlink()
    return folder


def test_all_that_is_written_is_linted_and_formatted(project):
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "made_workers", "made_events/mail_bounced_v2.py"]

    command(project, "ruff", "check", *config, "made_events/page_read.py")
    command(project, "ruff", "format", "--check", *config, "made_events/page_read.py")


def test_all_that_is_written_is_typed(project):
    config = ["--config-file", str(ROOT / "pyproject.toml"), f"--cache-dir={ROOT / '.mypy_cache'}"]

    command(project, "mypy", *config, "--package=made_events", "--package=made_workers")


def test_all_tests_that_are_written_pass(project):
    options = ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=error", "--import-mode=importlib"]

    assert "13 passed" in command(project, "pytest", *options, "made_workers")


def test_no_value_of_a_captured_message_is_kept(project):
    assert [path for path in project.glob("made_*/*.py") if MESSAGE["secret"] in path.read_text()] == []


def test_a_package_keeps_its_docstring_and_a_folder_becomes_a_package(project):
    assert (project / "made_events" / "__init__.py").read_text() == '"""Ours."""\n'
    assert (project / "made_workers" / "__init__.py").read_text() == '"""Workers, one module each."""\n'


def test_an_event_and_its_worker_are_written_one_after_the_other(tmp_path):
    """Everything in processes of its own, in the folders that are there unless others are named."""
    new = ("cdc_reactor.cli", "new")

    event = command(tmp_path, *new, "event", "post.upvoted.v1", "--field", "post_id:int", "--field", "note:str?")
    worker = command(tmp_path, *new, "worker", "post.upvoted.v1", "--name", "add_reputation")
    tested = command(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "workers/test_add_reputation.py")

    assert event.splitlines() == [
        "wrote events/post_upvoted.py",
        "next: from events.post_upvoted import PostUpvoted, or cdc-reactor new worker post.upvoted.v1",
    ]
    assert worker.splitlines() == [
        "wrote workers/add_reputation.py",
        "wrote workers/test_add_reputation.py",
        "next: python -m pytest workers/test_add_reputation.py, then cdc-reactor workers",
    ]
    assert "1 passed" in tested
    assert "from events.post_upvoted import PostUpvoted\n" in (tmp_path / "workers" / "add_reputation.py").read_text()


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; no other test imports packages of these names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


def refusal(line: str) -> str:
    done = CliRunner().invoke(app, ["new", *line.split()])
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stderr.removeprefix("cdc-reactor: ").rstrip("\n")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("worker a", "TOPIC: topic='a' is no legal Pub/Sub name"),
        ("worker google.thing --raw", "TOPIC: topic='google.thing' is no legal Pub/Sub name"),
        ("event a/b --field a:int", "TOPIC: topic='a/b' is no legal Pub/Sub name"),
        ("worker a.b.v1 --name class", "--name class: it is a word of Python"),
        ("worker a.b.v1 --name test_it", "--name test_it: a worker and its module are named in small letters"),
        ("worker a.b.v1 --subscription goog", "--subscription goog: it is no legal Pub/Sub name"),
        ("worker a.b.v1 --folder no-package", "--folder no-package: handlers are imported from there"),
        ("worker a.b.v1 --field class:int", "--field class:int: class is a word of Python"),
        ("worker a.b.v1 --field a", "--field a: a field is NAME:TYPE"),
        ("worker a.b.v1 --raw --field a:int", "--raw: the message is untouched; leave out --field, --from and --notifies"),
        ("worker a.b.v1 --raw --notifies", "--raw: the message is untouched"),
        ("worker a.b.v1", "no module declares what a.b.v1 carries; give its fields (--field post_id:int, or --from FILE)"),
        ("worker a.b.v1 --handlers nowhere_at_all", "there is no package or module nowhere_at_all"),
        ("worker a.b.v1 --field a:int --folder occupied", "occupied: cannot be written: "),
        ("event a.b.v1", "an event has fields: give them by --field NAME:TYPE, or a message by --from FILE"),
        ("event a.b.v1 --field a:int --from m.json", "--field and --from: fields are either typed or guessed"),
        ("event a.b.v1 --from nowhere.json", "--from nowhere.json: cannot be read: No such file or directory"),
        ("event a.b.v1 --from occupied", "--from occupied: it is no JSON; give a file with one message"),
        ("event a.b.v1 --from list.json", "--from list.json: it holds a JSON list, and a message is one object"),
        ("event a.b.v1 --field a:int --key b", "--key b: the event has no such field; it has a"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_one_sentence(folder, line, error):
    Path("occupied").write_text("a file where a folder should be")
    Path("list.json").write_text("[1]")

    told = refusal(line)

    assert error in told
    assert "\n" not in told
    assert sorted(path.name for path in folder.iterdir()) == ["list.json", "occupied"]


def test_a_file_that_is_there_is_never_overwritten(folder):
    for path in (Path("events/a_b.py"), Path("workers/test_on_a_b.py")):
        path.parent.mkdir()
        path.write_text("mine")

    cure = "already there; choose another name, or remove what is there"
    assert refusal("event a.b.v1 --field a:int") == f"events/a_b.py: {cure}"
    assert refusal("worker a.b.v1 --field a:int") == f"workers/test_on_a_b.py: {cure}"
    assert Path("workers/test_on_a_b.py").read_text() == "mine"


def test_what_is_declared_already_is_not_declared_again(folder):
    Path("told_facts.py").write_text(
        "from cdc_reactor import Context, Event, subscribes\n"
        "class TwiceTold(Event, topic='told.twice.v1'):\n"
        "    a: int\n"
        "@subscribes(TwiceTold, subscription='told-twice')\n"
        "def tell(event: TwiceTold, ctx: Context) -> None: ...\n"
    )
    Path("told").mkdir()
    Path("told/facts.py").write_text("from told_facts import *\n")
    place = folder / "told_facts.py"
    worker = "worker told.twice.v1 --handlers told_facts.py --folder told"

    assert refusal("event told.twice.v1 --field a:int --folder told") == (
        "told_facts declares TwiceTold for told.twice.v1 already; a topic has one type"
    )
    assert refusal(f"{worker} --field a:int") == (
        "told_facts declares TwiceTold for told.twice.v1; leave out --field and --from: it is imported"
    )
    assert refusal(f"{worker} --name tell") == f"--name tell: {place}:4 has that name already; choose another"
    assert refusal(f"{worker} --subscription told-twice") == (
        f"--subscription told-twice: it is tell's already ({place}:4); choose another"
    )
    assert refusal(f"{worker} --raw --subscription told-twice").startswith("--subscription told-twice: it is tell's")


def test_a_module_that_cannot_be_imported_may_declare_what_is_looked_for(folder):
    Path("broken_facts.py").write_text("import nothing_of_that_name\n")

    assert refusal("worker a.b.v1 --handlers broken_facts --field a:int") == (
        "broken_facts.py:1: ModuleNotFoundError: No module named 'nothing_of_that_name'; mend it first: it may declare "
        "what a.b.v1 carries"
    )
