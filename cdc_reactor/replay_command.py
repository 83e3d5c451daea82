"""The command `replay`: from its options to a Replay, and from its Report to what is printed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table
from sqlalchemy import Engine

from cdc_reactor.captures import Capture, find_captures
from cdc_reactor.checkpoint import Checkpoint
from cdc_reactor.columns import Placeholder
from cdc_reactor.database import check, create_tables, metadata_of, open_engine
from cdc_reactor.decoder import Decoder
from cdc_reactor.discovery import DEFAULT_TARGETS, Discovery, load_handlers
from cdc_reactor.errors import UsageError
from cdc_reactor.execution import Executor
from cdc_reactor.filters import build_filter
from cdc_reactor.handlers import Handler
from cdc_reactor.outputs import DeadLetters, EventLog
from cdc_reactor.pool import PoolRunner, Setup
from cdc_reactor.progress import progress
from cdc_reactor.reactor import Backoff
from cdc_reactor.replay import InlineRunner, Replay, Runner
from cdc_reactor.report import Counts, Report
from cdc_reactor.routing import CdcRouter, UnknownTable
from cdc_reactor.schemas import SchemaStore, open_schemas, registry_beside

_DEFAULT_DATABASE = "sqlite:///.cdc-reactor/replay.db"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of the command, as typed."""

    paths: Sequence[str]
    handlers: Sequence[str] = DEFAULT_TARGETS
    database_url: str | None = None
    create_tables: bool = False
    schemas: str | None = None
    form: str | None = None
    tables: Sequence[str] = ()
    operations: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    from_lsn: str | None = None
    to_lsn: str | None = None
    key: str | None = None
    limit: int | None = None
    skip: int = 0
    dry_run: bool = False
    events: str | None = None
    checkpoint: str | None = None
    on_error: str = "skip"
    unknown_table: str = "ack"
    workers: int = 1
    max_rate: float | None = None
    patience: float = 60.0
    report: str = "table"
    placeholder: str = "__debezium_unavailable_value"
    unwrapped_prefix: str = "__"
    max_bytes: int = 64 * 1024 * 1024


def run(options: Options) -> int:
    """Replay; return the exit status.

    Raises:
        UsageError: an option, a path or a handler module is wrong.
        WorldError: a database, a disk or a registry is down.
    """
    _check_choices(options)
    captures = find_captures(options.paths)
    _check_outputs(options, captures)
    if options.form is None:
        for capture in captures:
            # All of them before the first is applied: half a replay helps nobody.
            capture.check()
    found = load_handlers(options.handlers)
    for target in found.empty:
        typer.echo(f"note: {target} has no handlers", err=True)
    with ExitStack() as stack:
        replay = _assemble(options, captures, found, stack)
        with _interruptible(replay):
            report = replay.run(captures)
    _print(report, options.report)
    return report.exit_status


def _check_choices(options: Options) -> None:
    choices = (
        ("--report", options.report, ("table", "json")),
        ("--unknown-table", options.unknown_table, get_args(UnknownTable)),
    )
    for option, value, known in choices:
        if value not in known:
            raise UsageError(f"{option} {value}: it is one of {', '.join(known)}")
    if options.checkpoint is not None and "-" in options.paths:
        raise UsageError("--checkpoint needs files: standard input cannot be read from the same place again")


def _check_outputs(options: Options, captures: Sequence[Capture]) -> None:
    """Refuse to write where something is read, or two things into one file."""
    taken = {os.path.realpath(capture.name): f"the capture {capture.name}" for capture in captures}
    files = {
        "--events": options.events,
        "--checkpoint": options.checkpoint,
        "--on-error": None if options.on_error in ("stop", "skip") else options.on_error,
    }
    for option, path in files.items():
        if path is None or Path(path).is_char_device():
            continue
        other = taken.setdefault(os.path.realpath(path), option)
        if other is not option:
            raise UsageError(f"{option} {path}: this is {other}, too; name another file")


def _assemble(options: Options, captures: list[Capture], found: Discovery, stack: ExitStack) -> Replay:
    store = open_schemas(options.schemas or registry_beside(capture.name for capture in captures))
    decoder = Decoder(
        schemas=store,
        placeholder=Placeholder(options.placeholder),
        unwrapped_prefix=options.unwrapped_prefix,
        max_bytes=options.max_bytes,
    )
    accept = build_filter(
        tables=options.tables,
        operations=options.operations,
        since=options.since,
        until=options.until,
        from_lsn=options.from_lsn,
        to_lsn=options.to_lsn,
        key=options.key,
    )
    unknown_table: Any = options.unknown_table
    router = CdcRouter(found.handlers, decoder, unknown_table=unknown_table, accept=accept)
    checkpoint = _checkpoint(options)
    is_resumed = checkpoint is not None and checkpoint.is_resumed
    events = EventLog(
        Path(options.events) if options.events and not options.dry_run else None,
        append=is_resumed,
        show=options.dry_run,
    )
    stack.callback(events.close)
    dead_letters = None if options.on_error in ("stop", "skip") else DeadLetters(Path(options.on_error))
    if dead_letters is not None:
        stack.callback(dead_letters.close)
    watcher = progress(captures)
    stack.enter_context(watcher)
    return Replay(
        router,
        _runner(options, found, store, stack),
        events=events,
        dead_letters=dead_letters,
        on_error="stop" if options.on_error == "stop" else "skip",
        checkpoint=checkpoint,
        watcher=watcher,
        backoff=Backoff(random=random.random),
        max_rate=options.max_rate,
        patience=options.patience,
        skip=options.skip,
        limit=options.limit,
        form=options.form,
        schemas=store,
    )


def _checkpoint(options: Options) -> Checkpoint | None:
    if options.checkpoint is None:
        return None
    # What decides which messages are applied must be the same when the replay is resumed.
    names = (
        "handlers", "tables", "operations", "since", "until", "from_lsn", "to_lsn", "key", "skip", "form", "dry_run",
        "unknown_table", "max_bytes", "placeholder", "unwrapped_prefix",
    )  # fmt: skip
    conditions = {name: getattr(options, name) for name in names}
    # A digest, because the address may hold a password.
    conditions["database_url"] = hashlib.sha256((options.database_url or "").encode()).hexdigest()[:16]
    return Checkpoint(Path(options.checkpoint), conditions)


def _runner(options: Options, found: Discovery, store: SchemaStore, stack: ExitStack) -> Runner:
    if not found.handlers:
        return InlineRunner(Executor(None).run)
    url = _DEFAULT_DATABASE if options.database_url is None else options.database_url
    engine = open_engine(url)
    stack.callback(engine.dispose)
    _prepare(engine, options, found.handlers)
    if options.workers == 1:
        executor = Executor(engine, commit=not options.dry_run)
        stack.callback(executor.close)
        return InlineRunner(executor.run)
    setup = Setup(
        targets=options.handlers,
        database_url=url,
        commit=not options.dry_run,
        placeholder=options.placeholder,
        unwrapped_prefix=options.unwrapped_prefix,
        max_bytes=options.max_bytes,
    )
    pool = PoolRunner(setup, options.workers, store)
    stack.push(lambda kind, *_: pool.close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt)))
    return pool


def _prepare(engine: Engine, options: Options, handlers: Sequence[Handler[Any]]) -> None:
    """Create the handlers' own tables where that is wanted: always in the default database, which is ours."""
    wanted = options.create_tables or options.database_url is None
    tables = metadata_of(handlers) if wanted else []
    if options.database_url is not None or tables:
        check(engine)
    for metadata in tables:
        create_tables(engine, metadata)


@contextmanager
def _interruptible(replay: Replay) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the replay in good order, and the second at once."""

    def interrupt(number: int, _: FrameType | None) -> None:
        replay.stop()
        signal.signal(number, signal.default_int_handler)
        typer.echo("cdc-reactor: finishing what runs; press Ctrl-C again to end at once", err=True)

    earlier = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _print(report: Report, form: str) -> None:
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if report.total.messages and report.total.dropped.get("filtered") == report.total.messages:
        typer.echo("note: the filters let nothing through", err=True)
    for problem in report.problems:
        typer.echo(f"problem: {problem}", err=True)
    failed = report.total.undecodable + report.total.dead_letters
    if failed > len(report.problems):
        typer.echo(f"problem: … and {failed - len(report.problems):,} more", err=True)
    if form == "json":
        sys.stdout.write(orjson.dumps(report.to_json()).decode() + "\n")
    else:
        _print_tables(report.total)
    if report.stopped:
        typer.echo(f"cdc-reactor: stopped: {report.stopped}", err=True)
    elif report.interrupted:
        typer.echo("cdc-reactor: interrupted; what ran was finished", err=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command what it means that nobody reads any more."""
        raise BrokenPipeError


def _print_tables(total: Counts) -> None:
    console = _Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    changes = Table(
        "table", *(_numeric(op) for op in _OPS), _numeric("snapshot"), _numeric("unhandled"), title="Changes"
    )
    for name in sorted(total.changes.keys() | total.snapshot_reads.keys()):
        ops = total.changes.get(name, {})
        numbers = [*(ops.get(op, 0) for op in _OPS), total.snapshot_reads.get(name, 0), total.unhandled.get(name, 0)]
        changes.add_row(name, *map(_show, numbers))
    if changes.row_count:
        console.print(changes)
    handlers = Table("handler", *map(_numeric, _HANDLER_COLUMNS), title="Handlers")
    for name, counts in sorted(total.handlers.items()):
        handlers.add_row(name, *(_show(getattr(counts, column.replace(" ", "_"))) for column in _HANDLER_COLUMNS))
    if handlers.row_count:
        console.print(handlers)
    dropped = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(total.dropped.items()) if n)
    rate = total.messages / total.seconds if total.seconds else 0.0
    console.print(
        f"{total.messages:,} messages in {total.seconds:.2f} s ({rate:,.0f}/s); dropped: {dropped or 'none'}; "
        f"undecodable: {total.undecodable:,}; dead letters: {total.dead_letters:,}"
    )


_OPS = ("create", "update", "delete", "truncate")
_HANDLER_COLUMNS = ("batches", "changes", "events", "retries", "dead letters")


def _numeric(header: str) -> Column:
    return Column(header, justify="right")


def _show(number: int) -> str:
    return f"{number:,}" if number else "·"
