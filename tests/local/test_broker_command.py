"""`cdc-reactor broker` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from cdc_reactor.broker_command import run_broker
from cdc_reactor.errors import UsageError

COMMAND = """
import sys
from pathlib import Path
from cdc_reactor.broker_command import run_broker
from cdc_reactor.errors import ReactorError
try:
    run_broker("127.0.0.1", int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None, not sys.argv[2], sys.argv[3:])
except KeyboardInterrupt:
    sys.exit(130)
except ReactorError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def start():
    started = []

    def start(port=0, folder="", *create):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(port), str(folder), *create],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def address(process):
    line = process.stdout.readline()
    found = re.fullmatch(
        r"Pub/Sub broker listening on (\S+:\d+), (?:in memory|keeping its data in .*)\.  "
        r"export PUBSUB_EMULATOR_HOST=\1\n",
        line,
    )
    assert found, line + process.stderr.read()
    return found[1]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_says_where_it_listens_and_ends_within_a_second_even_with_open_streams(start, connect, sent, status):
    process = start(0, "", "orders:orders-sub")
    clients = connect(address(process))
    clients.publish("projects/local/topics/orders", "a")
    stream = clients.stream("projects/local/subscriptions/orders-sub")
    assert stream.texts(1) == ["a"]

    process.send_signal(sent)

    # Python itself needs a moment to end; the broker's own limit is tested where it runs in this process.
    assert process.wait(timeout=5) == status
    assert stream.end()[0] == "UNAVAILABLE"
    assert process.stderr.read() == ""


def test_what_it_creates_is_ordered_and_may_be_there_already(start, connect, folder):
    for _ in range(2):
        process = start(0, folder, "orders:orders-sub", "projects/q/topics/bare")
        clients = connect(address(process))
        shown = clients.subscriber.get_subscription(subscription="projects/local/subscriptions/orders-sub")
        assert (shown.topic, shown.enable_message_ordering) == ("projects/local/topics/orders", True)
        assert clients.publisher.get_topic(topic="projects/q/topics/bare").name == "projects/q/topics/bare"
        process.terminate()
        assert process.wait(timeout=5) == 0


def test_a_killed_broker_comes_back_with_everything_that_was_confirmed(start, connect, folder):
    process = start(0, folder, "orders:orders-sub")
    clients = connect(address(process))
    ids = [clients.publish("projects/local/topics/orders", str(n), key="k")[0] for n in range(50)]
    process.kill()
    process.wait(timeout=5)

    clients = connect(address(start(0, folder)))

    received = clients.pull("projects/local/subscriptions/orders-sub")
    assert [r.message.message_id for r in received] == ids


def test_a_port_or_a_folder_that_is_taken_is_told_in_one_sentence(start, folder):
    taken = address(start(0, folder)).rpartition(":")[2]

    port, data = start(taken, ""), start(0, folder)

    assert port.wait(timeout=20) == data.wait(timeout=20) == 1
    assert port.stderr.read() == (
        f"WorldError: the broker cannot listen on 127.0.0.1:{taken}: Address already in use; give another with --port "
        "or --host\n"
    )
    assert data.stderr.read() == (
        f"UsageError: another broker keeps its data in {folder}; stop it, or give this one another folder with --data\n"
    )


@pytest.mark.parametrize("wanted", [":orders-sub", "o", "orders:o"])
def test_a_name_that_cannot_be_one_is_told(wanted):
    with pytest.raises(UsageError, match="--create"):
        run_broker("127.0.0.1", 0, None, memory=True, create=[wanted])


def test_memory_and_a_folder_exclude_each_other(folder):
    with pytest.raises(UsageError, match="give one of them"):
        run_broker("127.0.0.1", 0, folder, memory=True, create=[])
