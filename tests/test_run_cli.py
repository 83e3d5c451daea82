"""The commands `run`, `broker` and `config`, run as people run them: in processes of their own, ended by signals."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cdc_reactor import run_command
from cdc_reactor.cli import app
from cdc_reactor.discovery import load_handlers
from cdc_reactor.local.broker_server import LocalBroker
from tests.daemon_stage import Stage, change
from tests.shells import Process, environment, until

HANDLERS = '''
"""Users."""
import os
import threading
from pathlib import Path

from cdc_reactor import Batch, Context, Row, handles

SEEN = Path(__file__).with_name("seen")


class User(Row, table="public.users"):
    id: int
    name: str


@handles(User, max_size=1, max_wait=0.0)
def note(batch: Batch[User], ctx: Context) -> None:
    """Write down what came; never come back from "endless", and from "slow" when there is a file `go`."""
    name = batch[0].after.name
    with SEEN.open("a") as file:
        file.write(f"v1 {name}\\n")
    if name == "endless":
        threading.Event().wait()
    while name == "slow" and not SEEN.with_name("go").exists():
        threading.Event().wait(0.01)
'''

BROKEN = '''"""Broken."""

def note(:
'''


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a command in the test's folder."""
    started: list[Process] = []

    def start_one(*arguments: str) -> Process:
        started.append(Process(tmp_path, arguments, len(started), {}))
        return started[-1]

    yield start_one
    for process in started:
        process.end()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with LocalBroker.start() as broker:
        made = Stage.set_up(broker)
        yield made
        made.close()


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    """A folder of handlers, `team`."""
    folder = tmp_path / "team"
    folder.mkdir()
    (folder / "users.py").write_text(HANDLERS)
    return folder


def seen(handlers: Path) -> list[str]:
    path = handlers / "seen"
    return path.read_text().splitlines() if path.exists() else []


def run_of(stage: Stage, *more: str) -> tuple[str, ...]:
    handlers = () if "--handlers" in more else ("--handlers", "team")
    return ("run", "--pubsub-host", stage.address, "--project", "p", "--health-port", "0", *handlers, *more)


def is_seen(handlers: Path, line: str) -> Callable[[], bool]:
    return lambda: line in seen(handlers)


# ── run ──


def test_it_says_where_to_look_handles_what_comes_and_ends_with_0_at_sigterm(start, stage, handlers):
    daemon = start(*run_of(stage))
    health = daemon.says(r"health +http://(\S+)/readyz and /metrics")[1]
    assert re.search(rf"Pub/Sub +{stage.address}, project p; dead letters to cdc-dead-letters", daemon.out)
    assert re.search(r"consumes +cdc \(topic cdc, ordered\)", daemon.out)
    assert httpx.get(f"http://{health}/readyz", trust_env=False).status_code == 200

    stage.publish(change(1, "ada@forum.example"), change(1, "grace@forum.example"))
    until(stage.is_done, "all is acknowledged")
    daemon.terminate()

    assert daemon.status() == 0
    assert seen(handlers) == ["v1 ada@forum.example", "v1 grace@forum.example"]
    assert [json.loads(line)["message"].partition(" in ")[0] for line in daemon.err.splitlines()] == [
        "finishing what runs; a second signal ends at once",
        "drained",
    ]
    assert "forum.example" not in daemon.out + daemon.err


def test_ctrl_c_ends_it_and_its_other_processes_without_a_traceback(start, stage, handlers):
    daemon = start(*run_of(stage, "--processes", "2"))
    daemon.says("1 handler in 2 processes")
    daemon.says(r"/readyz and /metrics")
    stage.publish(*(change(row, "a") for row in range(4)))
    until(stage.is_done, "all is acknowledged")

    daemon.interrupt()

    assert daemon.status() == 130
    until(lambda: not daemon.group(), "no process is left behind")
    assert "Traceback" not in daemon.err
    assert len(seen(handlers)) == 4


def test_what_runs_longer_than_the_grace_is_left_and_given_back(start, stage, handlers):
    daemon = start(*run_of(stage, "--grace", "0.3s"))
    daemon.says(r"/readyz and /metrics")
    stage.publish(change(1, "endless"), change(1, "after"))
    until(is_seen(handlers, "v1 endless"), "it runs")

    daemon.terminate()

    assert daemon.status(within=10) == 0
    assert "some handlers did not end within the grace of 0.3 s; their changes come again" in daemon.err
    # The leases last 60 s by default: what is here at once was given back.
    received = stage.take("cdc")
    assert [json.loads(one.data)["after"]["name"] for one in received] == ["endless", "after"]


def test_a_second_signal_ends_it_at_once(start, stage, handlers):
    daemon = start(*run_of(stage))
    daemon.says(r"/readyz and /metrics")
    stage.publish(change(1, "endless"))
    until(is_seen(handlers, "v1 endless"), "it runs")
    daemon.terminate()
    daemon.says("a second signal ends at once")

    daemon.terminate()

    # The grace is 25 s by default.
    assert daemon.status(within=5) == 128 + signal.SIGTERM


def test_with_reload_a_changed_file_restarts_it_and_ctrl_c_ends_both(start, stage, handlers):
    daemon = start(*run_of(stage, "--reload"))
    daemon.says(r"/readyz and /metrics")
    stage.publish(change(1, "a"))
    until(is_seen(handlers, "v1 a"), "it is handled")

    (handlers / "users.py").write_text(HANDLERS.replace("v1", "v2"))
    daemon.says(r"restarting: users\.py changed")
    stage.publish(change(1, "b"))
    until(is_seen(handlers, "v2 b"), "it is handled by the new code")
    daemon.interrupt()

    assert daemon.status() == 130
    assert [pid for pid in re.findall(r", process (\d+); 1 handlers", daemon.out) if Path("/proc", pid).exists()] == []
    assert seen(handlers) == ["v1 a", "v2 b"]
    assert "Traceback" not in daemon.err


@pytest.mark.parametrize(("end", "status"), [(Process.interrupt, 130), (Process.terminate, 0)])
def test_with_reload_a_signal_lets_what_runs_come_to_its_end(start, stage, handlers, end, status):
    daemon = start(*run_of(stage, "--reload"))
    daemon.says(r"/readyz and /metrics")
    stage.publish(change(1, "slow"))
    until(is_seen(handlers, "v1 slow"), "it runs")

    end(daemon)
    daemon.says("finishing what runs")
    (handlers / "go").touch()

    assert daemon.status() == status
    assert stage.is_done()


# ── run, and cannot ──


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which commands run in this process, and nothing of theirs stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)
    log = logging.getLogger("cdc_reactor")
    level = log.level
    yield tmp_path
    log.setLevel(level)
    gc.unfreeze()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("--subscription nobody", 2, r"knows no subscription projects/p/subscriptions/nobody: create it"),
        ("--dead-letter-topic graveyard", 2, r"the dead-letter topic graveyard does not exist in project p; create it"),
        ("--handlers broken.py", 2, r"broken\.py:3: "),
        ("--handlers nowhere", 2, r"there is no package or module nowhere"),
        ("--pubsub-host 127.0.0.1:{free}", 3, r"127\.0\.0\.1:{free}"),
        ("--database-url postgresql://ada:hunter2@127.0.0.1:{free}/forum", 3, r"database"),
        ("--database-url mystery://forum", 2, r"--database-url: no driver"),
        ("--health-port {taken}", 2, r"the health server cannot listen on 127\.0\.0\.1:{taken}: the port is in use"),
        ("--threads 0", 2, r"flag --threads: run\.threads is 0, but must be"),
        ("--config wrong.toml", 2, r"wrong\.toml:1: there is no setting run\.thread; did you mean run\.threads\?"),
        ("--no-such-flag", 2, r"No such option: --no-such-flag"),
        ("--reload --handlers json", 2, r"--reload watches files, and json is neither a file nor a folder"),
    ],
)
def test_what_is_wrong_at_the_start_is_told_in_one_line_with_its_status(stage, folder, arguments, status, told):
    (folder / "broken.py").write_text(BROKEN)
    (folder / "wrong.toml").write_text("run.thread = 3\n")
    (folder / "cdc-reactor.toml").write_text('create_missing = false\nhandlers = ["none"]\n')
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        ports = {"taken": taken.getsockname()[1], "free": free.getsockname()[1]}
        free.close()
        command = ["run", "--pubsub-host", stage.address, "--project", "p", "--health-port", "0"]

        done = CliRunner().invoke(app, [*command, *arguments.format(**ports).split()])

    assert done.exit_code == status, done.output
    assert re.search(told.format(**ports), done.stderr)
    assert "Traceback" not in done.output
    assert "hunter2" not in done.output
    assert done.stdout == ""


def test_an_error_of_the_start_is_the_exit_status_of_the_process(start, stage, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)

    daemon = start(*run_of(stage, "--handlers", "broken.py"))

    assert (daemon.status(), daemon.out) == (2, "")
    assert daemon.err.startswith("cdc-reactor: 1 module(s) cannot be imported; mend them or leave them out:\n")


# ── broker ──


def test_a_broker_keeps_what_it_was_told_over_ctrl_c_and_refuses_to_share_port_or_folder(start, tmp_path):
    first = start(
        "broker", "--port", "0", "--data", "kept", "--create", "projects/p/topics/orders:projects/p/subscriptions/o-s"
    )
    address = first.says(r"listening on (\S+:\d+), .*export PUBSUB_EMULATOR_HOST=\1\n")[1]
    port = address.rpartition(":")[2]
    refused = {
        "port": start("broker", "--port", port, "--memory"),
        "folder": start("broker", "--port", "0", "--data", "kept"),
    }
    plain = Stage(address)
    plain.publish(change(1, "kept"), topic="orders")
    plain.close()
    assert {name: process.status() for name, process in refused.items()} == {"port": 3, "folder": 2}
    assert refused["port"].err == (
        f"cdc-reactor: the broker cannot listen on {address}: Address already in use; give another with --port or --host\n"
    )
    assert refused["folder"].err == (
        "cdc-reactor: another broker keeps its data in kept; stop it, or give this one another folder with --data\n"
    )

    first.interrupt()
    assert (first.status(), first.err) == (130, "")

    again = start("broker", "--port", port, "--data", "kept")
    again.says("listening on")
    plain = Stage(address)
    assert [json.loads(one.data)["after"]["name"] for one in plain.take("o-s")] == ["kept"]
    plain.close()
    again.terminate()
    assert (again.status(), again.err) == (0, "")


# ── config ──


def test_config_shows_what_is_in_force_and_where_it_came_from(start, tmp_path):
    (tmp_path / "cdc-reactor.toml").write_text('subscriptions = ["forum"]\n[run]\nthreads = 3\n')
    shown = start("config")
    wrong = start("config", "--config", "nowhere.toml")

    assert shown.status() == 0
    lines = [re.split(r" {2,}", line) for line in shown.out.splitlines()]
    assert ["subscriptions", "forum", "cdc-reactor.toml:1"] in lines
    assert ["run.threads", "3", "cdc-reactor.toml:3"] in lines
    assert shown.err == ""
    assert (wrong.status(), wrong.err) == (2, "cdc-reactor: flag --config: there is no file nowhere.toml\n")


def test_each_table_of_the_start_shows_its_own_places_whole():
    found = load_handlers(["table_handlers", "workers"])
    console = Console(width=200, record=True, file=io.StringIO())

    for table in (run_command._table(found.handlers), run_command._worker_table(found.workers)):
        console.print(table)

    told = console.export_text().splitlines()
    declared: list[Any] = [*found.handlers, *found.workers]
    for each in declared:
        (line,) = [line for line in told if f"│ {each.name} " in line]
        assert run_command._shortened(each.place) in line
