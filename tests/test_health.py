"""The judgements on a HealthState, and a real server asked over HTTP."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cdc_reactor.errors import UsageError
from cdc_reactor.health import Check, HealthServer, HealthState, _refusal, checks
from cdc_reactor.telemetry import Telemetry

WELL = HealthState(
    streams={"users": True, "posts": True},
    handlers_loaded=True,
    running_for=60.0,
    stuck_after=300.0,
    database=True,
    last_progress_age=2.0,
    oldest_held_age=4.0,
    expects_heartbeats=True,
    heartbeat_age=5.0,
)

NOTHING_YET = HealthState(streams={}, handlers_loaded=False, running_for=0.0, stuck_after=300.0)


# What is healthy.


def test_where_all_is_well_every_check_says_so():
    assert checks(WELL) == [
        Check("running", ok=True, why="for 60 s"),
        Check("handlers", ok=True, why="all are loaded"),
        Check("streams", ok=True, why="2 open"),
        Check("database", ok=True, why="it answers"),
        Check("progress", ok=True, why="messages are held; none was settled for 2 s"),
        Check("heartbeat", ok=True, why="the last came 5 s ago"),
    ]


def test_what_is_not_asked_for_is_not_checked():
    assert checks(NOTHING_YET) == [
        Check("running", ok=True, why="for 0 s"),
        Check("handlers", ok=False, why="the handlers are not loaded yet"),
        Check("streams", ok=False, why="no stream was opened yet"),
        Check("progress", ok=True, why="no message waits"),
    ]


@pytest.mark.parametrize(
    ("state", "failed"),
    [
        (replace(WELL, draining=True), Check("running", ok=False, why="draining: no new messages are taken in")),
        (
            replace(WELL, fatal="the loop of handlers ended"),
            Check("running", ok=False, why="the loop of handlers ended"),
        ),
        (replace(WELL, handlers_loaded=False), Check("handlers", ok=False, why="the handlers are not loaded yet")),
        (
            replace(WELL, streams={"users": True, "posts": False}),
            Check("streams", ok=False, why="1 of 2 closed: posts"),
        ),
        (
            replace(WELL, streams={f"s{n:02}": False for n in range(12)}),
            Check(
                "streams", ok=False, why="12 of 12 closed: s00, s01, s02, s03, s04, s05, s06, s07, s08, s09 and 2 more"
            ),
        ),
        (replace(WELL, database=False), Check("database", ok=False, why="it does not answer")),
        (
            replace(WELL, database=False, database_reason="the database db.test does not answer: timeout\nDETAIL: row"),
            Check("database", ok=False, why="the database db.test does not answer: timeout"),
        ),
        (
            replace(WELL, last_progress_age=300.0, oldest_held_age=301.0),
            Check(
                "progress", ok=False, why="messages are held and none was settled for 300 s; at most 300 s are allowed"
            ),
        ),
        (
            replace(WELL, last_progress_age=None, oldest_held_age=400.0),
            Check(
                "progress", ok=False, why="messages are held and none was settled for 400 s; at most 300 s are allowed"
            ),
        ),
        (
            replace(WELL, heartbeat_age=300.0),
            Check(
                "heartbeat",
                ok=False,
                why="the last came 300 s ago, at most 300 s are allowed; "
                "look at the connector (heartbeat.interval.ms), its topic and the subscription",
            ),
        ),
        (
            replace(WELL, heartbeat_age=None, running_for=301.0),
            Check(
                "heartbeat",
                ok=False,
                why="none came in 301 s, at most 300 s are allowed; "
                "look at the connector (heartbeat.interval.ms), its topic and the subscription",
            ),
        ),
    ],
)
def test_one_fault_fails_one_check_and_says_why(state, failed):
    assert [check for check in checks(state) if not check.ok] == [failed]


def test_the_first_heartbeat_is_waited_for_as_long_as_any_other():
    state = replace(WELL, heartbeat_age=None, running_for=299.0)

    assert checks(state)[-1] == Check("heartbeat", ok=True, why="none came in 299 s")


@given(idle=st.floats(0, 1e9), held_for=st.floats(0, 299.9))
def test_an_idle_time_before_messages_came_is_never_called_stuck(idle, held_for):
    assert all(check.ok for check in checks(replace(WELL, last_progress_age=idle, oldest_held_age=held_for)))


@given(settled_ago=st.floats(0, 299.9), held_for=st.floats(0, 1e9))
def test_one_old_message_among_many_that_are_settled_is_not_called_stuck(settled_ago, held_for):
    assert all(check.ok for check in checks(replace(WELL, last_progress_age=settled_ago, oldest_held_age=held_for)))


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("postgresql://ada:geheim@db.test/forum is down", "postgresql://…@db.test/forum is down"),
        ("postgresql://ada:ge/he@im@db.test/forum is down", "postgresql://…@db.test/forum is down"),
        ("connection to host=db.test password=geheim failed", "connection to host=db.test password=… failed"),
    ],
)
def test_no_password_is_shown(reason, shown):
    broken = replace(WELL, database=False, database_reason=reason, fatal=reason)

    assert [check.why for check in checks(broken) if not check.ok] == [shown, shown]


# How it is told.

Answer = tuple[int, str, str]


async def ask(server: HealthServer, path: str, *, accept: str = "*/*") -> Answer:
    """Ask over HTTP, from a thread: status, content type, text."""

    def fetch() -> Answer:
        request = Request(f"http://{server.address}{path}", headers={"accept": accept})
        try:
            with urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    return await asyncio.to_thread(fetch)


def serve(
    questions: Callable[[HealthServer], Awaitable[None]],
    *,
    state: Callable[[], HealthState] = lambda: WELL,
    telemetry: Telemetry | None = None,
) -> None:
    """Run a server on a free port for as long as the questions are asked."""

    async def main() -> None:
        server = HealthServer(state, telemetry or Telemetry(), host="127.0.0.1", port=0)
        await server.start()
        try:
            async with asyncio.timeout(30):
                await questions(server)
        finally:
            await server.stop()

    asyncio.run(main())


def test_readyz_tells_every_check_and_follows_the_state():
    states = [WELL, replace(NOTHING_YET, database=False, database_reason="no route to db.test")]
    answers = []

    async def questions(server: HealthServer) -> None:
        answers.append(await ask(server, "/readyz"))
        answers.append(await ask(server, "/readyz"))

    serve(questions, state=lambda: states.pop(0))

    assert [(status, kind, json.loads(text)) for status, kind, text in answers] == [
        (
            200,
            "application/json",
            {
                "ready": True,
                "checks": [
                    {"name": "running", "ok": True, "why": "for 60 s"},
                    {"name": "handlers", "ok": True, "why": "all are loaded"},
                    {"name": "streams", "ok": True, "why": "2 open"},
                    {"name": "database", "ok": True, "why": "it answers"},
                    {"name": "progress", "ok": True, "why": "messages are held; none was settled for 2 s"},
                    {"name": "heartbeat", "ok": True, "why": "the last came 5 s ago"},
                ],
            },
        ),
        (
            503,
            "application/json",
            {
                "ready": False,
                "checks": [
                    {"name": "running", "ok": True, "why": "for 0 s"},
                    {"name": "handlers", "ok": False, "why": "the handlers are not loaded yet"},
                    {"name": "streams", "ok": False, "why": "no stream was opened yet"},
                    {"name": "database", "ok": False, "why": "no route to db.test"},
                    {"name": "progress", "ok": True, "why": "no message waits"},
                ],
            },
        ),
    ]


def test_livez_fails_only_for_what_is_fatal():
    states = [NOTHING_YET, replace(WELL, draining=True), replace(WELL, fatal="the loop ended\nTraceback"), WELL]
    answers = []

    async def questions(server: HealthServer) -> None:
        answers.extend([await ask(server, "/livez") for _ in range(4)])

    serve(questions, state=lambda: states.pop(0))

    plain = "text/plain; charset=utf-8"
    assert answers == [
        (200, plain, "ok\n"),
        (200, plain, "ok\n"),
        (503, plain, "the loop ended\n"),
        (200, plain, "ok\n"),
    ]


def test_metrics_are_told_in_the_format_that_is_asked_for():
    telemetry = Telemetry()
    telemetry.received("users", 3, 700)
    answers = []

    async def questions(server: HealthServer) -> None:
        answers.append(await ask(server, "/metrics"))
        answers.append(await ask(server, "/metrics", accept="application/openmetrics-text;version=1.0.0"))

    serve(questions, telemetry=telemetry)

    (status, kind, text), (open_status, open_kind, open_text) = answers
    assert (status, open_status) == (200, 200)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert open_kind.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert open_text.endswith("# EOF\n")
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    received = [(s.name, s.labels, s.value) for s in samples if s.name == "cdc_reactor_messages_received_total"]
    assert received == [("cdc_reactor_messages_received_total", {"subscription": "users"}, 3.0)]


def test_the_index_names_what_there_is_and_nothing_else_is_there():
    answers = []

    async def questions(server: HealthServer) -> None:
        answers.append(await ask(server, "/"))
        answers.append(await ask(server, "/secrets"))

    serve(questions)

    (status, _, index), (other_status, _, _) = answers
    assert (status, other_status) == (200, 404)
    assert [line.split()[0] for line in index.splitlines()] == ["cdc_reactor", "/livez", "/readyz", "/metrics"]


def test_signals_stay_the_daemons_and_nothing_is_logged(caplog):
    taken = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in taken]
    during: list[object] = []

    async def questions(server: HealthServer) -> None:
        during.extend(signal.getsignal(number) for number in taken)
        await ask(server, "/livez")
        await ask(server, "/nowhere")

    with caplog.at_level(logging.DEBUG):
        serve(questions)

    # asyncio.run itself takes SIGINT while it runs.
    assert during[1] == before[1]
    assert "uvicorn" not in getattr(during[0], "__module__", "")
    assert [signal.getsignal(number) for number in taken] == before
    assert [record.name for record in caplog.records if record.name != "asyncio"] == []


def test_a_port_that_is_taken_is_told_in_a_sentence():
    async def main(port: int) -> None:
        await HealthServer(lambda: WELL, Telemetry(), host="127.0.0.1", port=port).start()

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            asyncio.run(main(port))

    assert str(caught.value) == (
        f"the health server cannot listen on 127.0.0.1:{port}: the port is in use; "
        'set health.port to another one, to 0 for any free one, or to "off" for no server'
    )


# 192.0.2.0/24 is for documentation and belongs to no machine: https://www.rfc-editor.org/rfc/rfc5737
@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_that_is_not_ours_is_told_in_a_sentence(host):
    async def main() -> None:
        await HealthServer(lambda: WELL, Telemetry(), host=host, port=0).start()

    with pytest.raises(UsageError) as caught:
        asyncio.run(main())

    assert str(caught.value) == (
        f"the health server cannot listen on {host}:0: this machine has no such address; "
        "set health.host to one that it has, or to 0.0.0.0 for all"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        # Root may use every port, so the real thing cannot be had everywhere.
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "this user may not use the port; set health.port to 1024 or more",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_what_else_the_system_refuses_is_told_in_words(error, told):
    assert _refusal(error) == told


def test_after_stop_the_port_is_free_at_once_and_stop_may_be_called_again():
    async def main() -> list[int]:
        statuses = []
        port = 0
        for _ in range(2):
            server = HealthServer(lambda: WELL, Telemetry(), host="127.0.0.1", port=port)
            await server.start()
            port = int(server.address.rpartition(":")[2])
            statuses.append((await ask(server, "/livez"))[0])
            await server.stop()
            await server.stop()
        return statuses

    assert asyncio.run(main()) == [200, 200]


def test_a_server_that_never_started_may_be_stopped():
    asyncio.run(HealthServer(lambda: WELL, Telemetry(), host="127.0.0.1", port=0).stop())


def test_a_connection_that_is_kept_open_holds_no_stop_up():
    async def main() -> bytes:
        server = HealthServer(lambda: WELL, Telemetry(), host="127.0.0.1", port=0)
        await server.start()
        connection = http.client.HTTPConnection(server.address, timeout=10)

        def once() -> bytes:
            connection.request("GET", "/livez")
            return connection.getresponse().read()

        body = await asyncio.to_thread(once)
        async with asyncio.timeout(10):
            await server.stop()
        connection.close()
        return body

    assert asyncio.run(main()) == b"ok\n"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_every_address_in_ipv6_means_those_of_ipv4_too():
    async def main() -> tuple[str, int]:
        server = HealthServer(lambda: WELL, Telemetry(), host="::", port=0)
        await server.start()
        shown, _, port = server.address.rpartition(":")
        server.address = f"127.0.0.1:{port}"
        try:
            return shown, (await ask(server, "/livez"))[0]
        finally:
            await server.stop()

    assert asyncio.run(main()) == ("[::]", 200)
