"""The command `run`: from the settings to a Daemon, and from what the daemon tells to a few lines on the terminal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table
from sqlalchemy import Engine, MetaData

from cdc_reactor import __version__, notification_delivery
from cdc_reactor.daemon import Daemon, Parts, Started
from cdc_reactor.database import check, create_tables, metadata_of, open_engine
from cdc_reactor.discovery import Discovery, load_handlers, present
from cdc_reactor.dispatcher import check_subscriptions, chosen
from cdc_reactor.errors import ReactorError, UsageError
from cdc_reactor.events import declared_topics
from cdc_reactor.experiments import ExperimentClient
from cdc_reactor.failures import place_of
from cdc_reactor.handlers import Handler
from cdc_reactor.imports import load_object
from cdc_reactor.pubsub_connection import SubscriptionInfo
from cdc_reactor.schemas import open_schemas
from cdc_reactor.settings import Settings
from cdc_reactor.workers import Worker, WorkerKind

_LOCAL_DATABASE = "sqlite:///.cdc-reactor/run.db"
_LINE = "%(asctime)s %(levelname)-7s %(message)s"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def run(settings: Settings) -> int:
    """Run the daemon, or with `reload` a process that restarts it; return the exit status.

    Raises:
        UsageError: a setting, a handler module, a subscription or a permission is wrong.
        WorldError: Pub/Sub or the database does not answer.
    """
    if settings.run.reload:
        return _run_reloading(settings)
    _set_up_logs(settings)
    found = load_handlers(settings.handlers)
    for target in found.empty:
        typer.echo(f"note: {target} has no handlers and no workers", err=True)
    return asyncio.run(_run(_parts(settings, found)))


def _parts(settings: Settings, found: Discovery) -> Parts:
    handlers = found.handlers if settings.run.groups is None else ()
    workers = chosen(found.workers, settings.run.groups)
    if found.handlers:
        check_subscriptions(found.workers, settings)
    elif found.workers and not workers:
        groups = ", ".join(sorted({worker.group for worker in found.workers}))
        raise UsageError(f"there are no table handlers, and all workers are dedicated: add --group NAME, of {groups}")
    tables = metadata_of([*handlers, *workers])
    url = _database_url(settings, tables)
    # One for each thread that runs something; async workers take from what may be opened beyond that.
    connections = settings.run.threads + (settings.run.worker_threads if workers else 0)
    engine = None if url is None else open_engine(url, connections=connections)
    if engine is not None and any(worker.kind is WorkerKind.NOTIFICATION for worker in workers):
        tables.append(notification_delivery.metadata)
    if engine is not None and (settings.create_tables or settings.database_url is None):
        _create(tables, engine)
    return Parts(
        settings=settings,
        handlers=handlers,
        engine=engine,
        database_url=url,
        schemas=open_schemas(settings.schemas),
        workers=workers,
        topics=sorted({*declared_topics(), *(e.topic for e in found.events), settings.notifications.topic}),
        experiments=_experiments(settings),
        delivery=_delivery(settings, in_database=engine is not None),
    )


def _experiments(settings: Settings) -> ExperimentClient | None:
    if settings.experiments is None:
        return None
    client = load_object("experiments", settings.experiments)
    try:
        if isinstance(client, type) or (callable(client) and not hasattr(client, "begin")):
            client = client()
    except ReactorError:
        raise
    except Exception as error:
        place = place_of(error)
        raise UsageError(
            f"experiments = {settings.experiments} failed: {type(error).__name__}{place and f' at {place}'}; mend it, "
            'or set experiments = "none"'
        ) from error
    if not hasattr(client, "begin"):
        raise UsageError(f"experiments = {settings.experiments} is no ExperimentClient: it has no begin()")
    # What it needs is looked at now, and not when the first message comes.
    client.begin()
    found: ExperimentClient = client
    return found


def _delivery(settings: Settings, *, in_database: bool) -> notification_delivery.Delivery:
    name = settings.notifications.sink
    sink = None if name is None else load_object("notifications.sink", name)
    if sink is not None and not callable(sink):
        raise UsageError(f"notifications.sink = {name} is no function that is given a list of notifications")
    return notification_delivery.Delivery(
        topic=settings.notifications.topic,
        window=settings.notifications.window,
        sink=sink,
        in_database=in_database,
    )


async def _run(parts: Parts) -> int:
    daemon = Daemon(parts, on_start=lambda started: _begin(parts, started))
    status = await daemon.run()
    if not daemon.is_clean:
        # A handler that never returns would keep the process; its changes were given back.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status


def _begin(parts: Parts, started: Started) -> None:
    _greet(parts, started)
    # What is loaded and opened by now stays; the collector would look at it again and again, and all else wait.
    gc.collect()
    gc.freeze()


def _set_up_logs(settings: Settings) -> None:
    handler = logging.StreamHandler()
    is_json = settings.log.format == "json" or (settings.log.format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(_JsonFormatter() if is_json else logging.Formatter(_LINE, "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # It tells of each attempt what we tell once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("cdc_reactor").setLevel(_LEVELS[settings.log.level])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names that Cloud Logging reads.

    https://cloud.google.com/logging/docs/structured-logging#special-payload-fields
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; of an error in our own code its traceback, too."""
        line = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("handler", "table", "topic"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _database_url(settings: Settings, tables: Sequence[MetaData]) -> str | None:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    # Beside a local broker everything is local; in the cloud a forgotten address must not become a file in a pod.
    return _LOCAL_DATABASE if tables and settings.pubsub.emulator_host is not None else None


def _create(tables: Sequence[MetaData], engine: Engine) -> None:
    check(engine)
    for metadata in tables:
        create_tables(engine, metadata)


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────


def _greet(parts: Parts, started: Started) -> None:
    for line in greeting(parts, started):
        typer.echo(line)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if parts.handlers:
        console.print(_table(parts.handlers))
    if parts.workers:
        console.print(_worker_table(parts.workers))


def greeting(parts: Parts, started: Started) -> list[str]:
    """Say in five lines what runs, on what, and where to look."""
    settings = parts.settings
    place = settings.pubsub.emulator_host or settings.pubsub.endpoint or "the cloud"
    engine = parts.engine
    database = "none" if engine is None else engine.url.render_as_string(hide_password=True)
    where = f"{settings.run.processes} processes" if settings.run.processes else f"{started.threads} threads"
    if started.threads == 1 and settings.run.threads > 1:
        where = "1 thread (SQLite takes one writer at a time)"
    changes = ", ".join(_subscription(name, info) for name, info in started.subscriptions)
    workers = _many(len(parts.workers), "subscription of workers", "subscriptions of workers") if parts.workers else ""
    return [
        f"cdc-reactor {__version__}, process {os.getpid()}; {_counted(parts)} in {where}",
        f"Pub/Sub   {place}, project {started.connection.project}; dead letters to {settings.dead_letter_topic}",
        f"consumes  {', '.join(filter(None, (changes, workers)))}",
        f"database  {database}",
        f"health    {f'http://{started.health}/readyz and /metrics' if started.health else 'off'}",
    ]


def _counted(parts: Parts) -> str:
    groups = parts.settings.run.groups
    of = f" of {', '.join(groups)}" if groups else ""
    told = [_many(len(parts.handlers), "handler", "handlers")] if parts.handlers or not parts.workers else []
    told += [_many(len(parts.workers), "worker", "workers") + of] if parts.workers else []
    return " and ".join(told)


def _many(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _subscription(name: str, info: SubscriptionInfo | None) -> str:
    if info is None:
        return f"{name} (we may not look at it)"
    kinds = [
        "ordered" if info.ordering else "not ordered",
        *(["exactly once"] if info.exactly_once else []),
    ]
    return f"{name} (topic {info.topic.rpartition('/')[2]}, {', '.join(kinds)})"


def _whole(name: str) -> Column:
    """Make a column of which nothing may be cut off."""
    return Column(name, overflow="fold")


def _table(handlers: Sequence[Handler[Any]]) -> Table:
    table = Table("table", "handler", "batch", "wait", "on poison", "owner", _whole("where"))
    for handler in handlers:
        table.add_row(
            str(handler.table_id),
            handler.name,
            str(handler.max_size),
            f"{handler.max_wait:g} s",
            handler.on_poison,
            handler.owner or "·",
            _shortened(handler.place),
        )
    return table


def _worker_table(workers: Sequence[Worker[Any]]) -> Table:
    table = Table(_whole("subscription"), "event", "worker", "kind", "at a time", "group", "owner", _whole("where"))
    for worker in workers:
        table.add_row(
            worker.subscription,
            worker.event_type.name,
            worker.name,
            worker.kind,
            str(worker.max_messages),
            worker.group,
            worker.owner or "·",
            _shortened(worker.place),
        )
    return table


def _shortened(place: str) -> str:
    with suppress(ValueError):
        return str(Path(place).relative_to(Path.cwd()))
    return place


# ── reload ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run_reloading(settings: Settings) -> int:
    """Run the daemon in a process of its own, and restart that when a file of the handlers changes."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise UsageError("--reload needs watchfiles: pip install 'cdc-reactor[reload]'") from None
    folders = _folders(settings.handlers)
    typer.echo(f"watching {', '.join(str(folder) for folder in folders)} for changes", err=True)
    child = _Child([*(arg for arg in sys.argv[1:] if arg != "--reload"), "--no-reload"], settings.run.grace + 6)
    child.start()
    for changes in watch(*folders, watch_filter=PythonFilter(), stop_event=child.is_stopping, raise_interrupt=False):
        typer.echo(f"restarting: {', '.join(sorted({Path(path).name for _, path in changes}))} changed", err=True)
        child.end()
        child.start()
    child.end()
    return child.status


class _Child:
    """The daemon as a process in a session of its own: the one signal that it gets is ours, and not the terminal's.

    A first signal to us ends it in good order, a second one at once.
    """

    def __init__(self, arguments: Sequence[str], patience: float) -> None:
        self._command = [sys.executable, "-m", "cdc_reactor.cli", *arguments]
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopping = threading.Event()
        #: What to exit with.
        self.status = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.is_stopping.is_set() and self._process is not None:
            self._process.send_signal(number)
        self.status = 130 if number == signal.SIGINT else 0
        self.is_stopping.set()

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603 - our own command

    def end(self) -> None:
        """Let it drain, and wait for its end; it may have ended by itself."""
        assert self._process is not None, "it was started"
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _folders(targets: Sequence[str]) -> list[Path]:
    found = []
    for target in present(targets):
        path = Path(target) if Path(target).exists() else Path(target.replace(".", "/"))
        if not path.exists():
            raise UsageError(f"--reload watches files, and {target} is neither a file nor a folder here")
        found.append(path.resolve())
    return found
