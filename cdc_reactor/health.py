"""The daemon's answers to its surroundings: /livez, /readyz and /metrics, served from its own event loop.

`HealthState` is a value, and `checks` decides on it without a clock, so that every judgement can be tested as one. The
server runs inside the daemon's loop on purpose: that it answers is the proof that the loop turns. It must never take a
signal, write to the access log, or show a password, a message or a row. Neighbours: `daemon` makes the state (and asks
the database, in a thread of its own), `telemetry` writes what /metrics answers.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdc_reactor.errors import UsageError
from cdc_reactor.telemetry import Telemetry

# ─────────── what is healthy ───────────


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthState:
    """What the daemon knows of itself at one moment; ages and durations are seconds.

    `streams` tells for each subscription whether its stream is open. `database` is None where handlers need none.
    `last_progress_age` is the time since any message was settled, None before the first; `oldest_held_age` that since
    the oldest message now held arrived, None where none is held; `heartbeat_age` that since the last Debezium
    heartbeat, None before the first. `halted` names handlers that stopped at poison. `fatal` says why the daemon cannot
    go on, and is empty while it can.
    """

    streams: Mapping[str, bool]
    handlers_loaded: bool
    running_for: float
    stuck_after: float
    database: bool | None = None
    database_reason: str = ""
    draining: bool = False
    last_progress_age: float | None = None
    oldest_held_age: float | None = None
    expects_heartbeats: bool = False
    heartbeat_age: float | None = None
    halted: tuple[str, ...] = ()
    fatal: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One judgement and its reason, which is a sentence also where all is well."""

    name: str
    ok: bool
    why: str


def checks(state: HealthState) -> list[Check]:
    """Judge every part that must be well for the daemon to be ready, always in the same order."""
    found = [_running(state), _handlers(state), _streams(state)]
    if state.database is not None:
        found.append(_database(state))
    found.append(_progress(state))
    if state.expects_heartbeats:
        found.append(_heartbeat(state))
    return found


def _running(state: HealthState) -> Check:
    if state.fatal:
        return Check("running", ok=False, why=_without_password(state.fatal))
    if state.draining:
        return Check("running", ok=False, why="draining: no new messages are taken in")
    return Check("running", ok=True, why=f"for {state.running_for:.0f} s")


def _handlers(state: HealthState) -> Check:
    if state.halted:
        return Check(
            "handlers", ok=False, why=f"halted at a poisoned change: {_listed(list(state.halted))}; see the log"
        )
    why = "all are loaded" if state.handlers_loaded else "the handlers are not loaded yet"
    return Check("handlers", state.handlers_loaded, why)


def _streams(state: HealthState) -> Check:
    closed = [name for name, is_open in state.streams.items() if not is_open]
    if not state.streams:
        return Check("streams", ok=False, why="no stream was opened yet")
    if closed:
        return Check("streams", ok=False, why=f"{len(closed)} of {len(state.streams)} closed: {_listed(closed)}")
    return Check("streams", ok=True, why=f"{len(state.streams)} open")


def _database(state: HealthState) -> Check:
    if state.database:
        return Check("database", ok=True, why="it answers")
    return Check("database", ok=False, why=_without_password(state.database_reason) or "it does not answer")


def _progress(state: HealthState) -> Check:
    """Call it stuck where messages are held and none was settled; an idle hour before they came is no fault."""
    if state.oldest_held_age is None:
        return Check("progress", ok=True, why="no message waits")
    still = state.oldest_held_age
    if state.last_progress_age is not None:
        still = min(still, state.last_progress_age)
    if still < state.stuck_after:
        return Check("progress", ok=True, why=f"messages are held; none was settled for {still:.0f} s")
    why = f"messages are held and none was settled for {still:.0f} s; at most {state.stuck_after:.0f} s are allowed"
    return Check("progress", ok=False, why=why)


def _heartbeat(state: HealthState) -> Check:
    """Before the first heartbeat, wait for it as long as for any other."""
    age = state.running_for if state.heartbeat_age is None else state.heartbeat_age
    since = f"none came in {age:.0f} s" if state.heartbeat_age is None else f"the last came {age:.0f} s ago"
    if age < state.stuck_after:
        return Check("heartbeat", ok=True, why=since)
    cure = "look at the connector (heartbeat.interval.ms), its topic and the subscription"
    return Check("heartbeat", ok=False, why=f"{since}, at most {state.stuck_after:.0f} s are allowed; {cure}")


def _listed(names: list[str], limit: int = 10) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


# What stands between :// and @ in an address, and what follows `password=` in a connection string.
_PASSWORD = re.compile(r"(?<=://)\S+(?=@)|(?<=password=)\S+", re.IGNORECASE)


def _without_password(text: str) -> str:
    """Keep the first line of a reason, which an error of the world wrote, less any password."""
    return _PASSWORD.sub("…", text.strip().partition("\n")[0])


# ─────────── how it is told ───────────

_INDEX = """\
cdc_reactor
/livez    200 while the event loop turns and nothing fatal happened
/readyz   200 while messages can be handled; each check and its reason
/metrics  for Prometheus
"""

# A probe wants to know how it is now.
_NO_STORE = {"cache-control": "no-store"}


def application(state: Callable[[], HealthState], telemetry: Telemetry) -> Starlette:
    """Make the ASGI application; `state` is called on the event loop for each answer, so it must be cheap."""

    async def index(_: Request) -> Response:
        return PlainTextResponse(_INDEX)

    async def livez(_: Request) -> Response:
        fatal = state().fatal
        return PlainTextResponse(f"{_without_password(fatal) or 'ok'}\n", 503 if fatal else 200, _NO_STORE)

    async def readyz(_: Request) -> Response:
        found = checks(state())
        is_ready = all(check.ok for check in found)
        answer = {"ready": is_ready, "checks": [asdict(check) for check in found]}
        body = orjson.dumps(answer, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return Response(body, 200 if is_ready else 503, _NO_STORE, "application/json")

    async def metrics(request: Request) -> Response:
        # Hundreds of tables take 60 ms to write, in which no lease would be extended.
        body, content_type = await asyncio.to_thread(telemetry.exposition, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )


class _Server(uvicorn.Server):
    """uvicorn, less its hands on the signals: those are the daemon's."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class HealthServer:
    """Serves the answers from the running event loop, between `start` and `stop`; port 0 takes any free one."""

    def __init__(self, state: Callable[[], HealthState], telemetry: Telemetry, *, host: str, port: int) -> None:
        self._application = application(state, telemetry)
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        #: Where it listens, as "127.0.0.1:8080"; empty before `start`.
        self.address = ""

    async def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            UsageError: the address is not ours to listen on: the port is taken, or the host is no address of this
                machine.
        """
        listener = await _listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = _Server(_config(self._application))
        self._serving = asyncio.create_task(self._server.serve([listener]), name="health server")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            listening.cancel()
            self._serving.result()

    async def stop(self) -> None:
        """Finish the answers that are on their way, and close; also where it never started."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None


def _config(app: Starlette) -> uvicorn.Config:
    """Configure uvicorn for a guest: no log but its errors, no lifespan, no upgrade, a second for what is open."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


async def _listen(host: str, port: int) -> socket.socket:
    """Bind here and not in uvicorn, which would end the program where it cannot."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        # "::" means every address of this machine, IPv4 too where the system can.
        both = family is socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(f"the health server cannot listen on {host}:{port}: {_refusal(error)}") from None


def _refusal(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; set health.host to one that it has, or to 0.0.0.0 for all"
    if error.errno == errno.EADDRINUSE:
        return 'the port is in use; set health.port to another one, to 0 for any free one, or to "off" for no server'
    if error.errno == errno.EACCES:
        return "this user may not use the port; set health.port to 1024 or more"
    return error.strerror or type(error).__name__
