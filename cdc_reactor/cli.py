"""The commands. Each parses its options, calls what does the work, and turns errors into one sentence and a status.

Heavy packages are imported inside the commands, so that `--help` answers at once. `cli_options` has what they share,
and the exit status; `cli_new` has the commands that write files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cdc_reactor import __version__, cli_catalogue, cli_new
from cdc_reactor.cli_options import PLACEHOLDER, AsJson, Form, Handlers, Placeholder, Prefix, Schemas, speaks_plainly

app = typer.Typer(
    name="cdc-reactor",
    help="React to database changes that Debezium captures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_new.app, name="new")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"cdc-reactor {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    _version: Annotated[  # noqa: FBT002 - typer makes an option of it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """React to database changes that Debezium captures."""


Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="The settings' file [default: cdc-reactor.toml].")
]
Subscriptions = Annotated[
    list[str] | None, typer.Option("--subscription", metavar="NAME", help="Consume this one; may be repeated.")
]
PubSubHost = Annotated[
    str | None,
    typer.Option("--pubsub-host", metavar="HOST:PORT", help="A local broker or emulator instead of the cloud."),
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="The Google Cloud project.")]
DatabaseUrl = Annotated[str | None, typer.Option(metavar="URL", help="What ctx.session connects to.")]


@app.command(
    "run",
    epilog="Examples:  cdc-reactor run --pubsub-host 127.0.0.1:8085  ·  "
    "cdc-reactor run --config production.toml --subscription forum-cdc",
)
@speaks_plainly
def run_daemon(
    *,
    config: Config = None,
    handlers: Handlers = None,
    subscription: Subscriptions = None,
    pubsub_host: PubSubHost = None,
    project: Project = None,
    database_url: DatabaseUrl = None,
    create_tables: Annotated[
        bool | None, typer.Option("--create-tables", help="Create the tables of the handlers' `metadata` there.")
    ] = None,
    dead_letter_topic: Annotated[str | None, typer.Option(metavar="TOPIC", help="Where poison goes.")] = None,
    unknown_table: Annotated[
        str | None, typer.Option(metavar="ack|dead-letter|stop", help="Changes of tables that no handler wants.")
    ] = None,
    schemas: Schemas = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="Only workers of this group; may be repeated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads that run handlers.")] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help="Run handlers in so many processes.")] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="How long what runs may take to end after SIGTERM.")
    ] = None,
    health_port: Annotated[
        str | None, typer.Option(metavar="PORT|off", help="The port of /livez, /readyz and /metrics; 0 for any.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    reload: Annotated[
        bool | None, typer.Option("--reload/--no-reload", help="Restart when a handler's file changes.")
    ] = None,
) -> None:
    """React to changes as they come, until SIGTERM or Ctrl-C.

    Every option can be set in cdc-reactor.toml and in the environment, too: see `cdc-reactor config`.
    """
    from cdc_reactor import run_command
    from cdc_reactor.settings import load

    flags = _flags(
        {
            "config": ("--config", config),
            "handlers": ("--handlers", handlers),
            "subscriptions": ("--subscription", subscription),
            "pubsub.emulator_host": ("--pubsub-host", pubsub_host),
            "pubsub.project": ("--project", project),
            "database_url": ("--database-url", database_url),
            "create_tables": ("--create-tables", create_tables),
            "dead_letter_topic": ("--dead-letter-topic", dead_letter_topic),
            "unknown_table": ("--unknown-table", unknown_table),
            "schemas": ("--schemas", schemas),
            "run.groups": ("--group", group),
            "run.threads": ("--threads", threads),
            "run.processes": ("--processes", processes),
            "run.grace": ("--grace", grace),
            "run.reload": ("--reload", reload),
            "health.port": ("--health-port", health_port),
            "log.level": ("--log-level", log_level),
        }
    )
    raise typer.Exit(run_command.run(load(flags)))


def _flags(typed: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    from cdc_reactor.settings import Flag

    return {key: Flag(name, value) for key, (name, value) in typed.items()}


@app.command(
    "broker",
    epilog="Examples:  cdc-reactor broker  ·  cdc-reactor broker --port 8085 --memory --create orders:orders-worker",
)
@speaks_plainly
def run_a_broker(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")] = 8085,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it keeps everything [default: .cdc-reactor/broker].")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing on disk.")] = False,
    create: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC[:SUBSCRIPTION]", help="Create these first; may be repeated."),
    ] = None,
) -> None:
    """Run a local Pub/Sub that any client can use through PUBSUB_EMULATOR_HOST."""
    from cdc_reactor.broker_command import run_broker

    run_broker(host, port, data, memory, create or [])


@app.command("config", epilog="Examples:  cdc-reactor config  ·  cdc-reactor config --example > cdc-reactor.toml")
@speaks_plainly
def config_command(
    *,
    config: Config = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema of the file, for editors.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a file with every setting, commented.")] = False,
) -> None:
    """Show the settings in force, and where each came from."""
    from cdc_reactor import config_command

    flags = _flags({"config": ("--config", config)})
    raise typer.Exit(config_command.show(flags, as_json=as_json, schema=schema, example=example))


@app.command(
    epilog="Examples:  cdc-reactor replay captures/ --dry-run  ·  "
    "cdc-reactor replay 'day-*.ndjson.zst' --table public.users --checkpoint day.checkpoint  ·  "
    "cdc-reactor replay FILE --handlers none --report json"
)
@speaks_plainly
def replay(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Files, folders, globs, - or gs:// and s3:// URLs.")
    ],
    *,
    handlers: Handlers = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="CDC_DATABASE_URL", metavar="URL", help="What ctx.session connects to [default: a SQLite file]."
        ),
    ] = None,
    create_tables: Annotated[bool, typer.Option(help="Create the tables of the handlers' `metadata` there.")] = False,
    schemas: Schemas = None,
    form: Form = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="SCHEMA.TABLE", help="Only these tables; * matches.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(metavar="OP", help="Only these operations: create, update, …")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Committed at or after.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Committed at or before.")] = None,
    from_lsn: Annotated[str | None, typer.Option(metavar="LSN", help="At or after this log position.")] = None,
    to_lsn: Annotated[str | None, typer.Option(metavar="LSN", help="At or before this log position.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help='Only this row: 42 or {"id": 42}.')] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many messages.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the first messages.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run everything, roll it back, show the events.")] = False,
    events: Annotated[str | None, typer.Option(metavar="FILE", help="Write the events that handlers publish.")] = None,
    checkpoint: Annotated[str | None, typer.Option(metavar="FILE", help="Go on here after Ctrl-C or a crash.")] = None,
    on_error: Annotated[
        str, typer.Option(metavar="stop|skip|FILE", help="At a message that fails: stop, skip it, or keep it in FILE.")
    ] = "skip",
    unknown_table: Annotated[
        str, typer.Option(metavar="ack|dead-letter|stop", help="Changes of tables that no handler wants.")
    ] = "ack",
    workers: Annotated[int, typer.Option(min=1, help="Run handlers in so many processes.")] = 1,
    max_rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many messages a second.")] = None,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a database may be down before the replay stops.")
    ] = 60.0,
    report: Annotated[str, typer.Option(metavar="table|json", help="How to say what happened.")] = "table",
    placeholder: Placeholder = PLACEHOLDER,
    unwrapped_prefix: Prefix = "__",
    max_bytes: Annotated[int, typer.Option(min=1, help="Refuse larger messages.")] = 64 * 1024 * 1024,
) -> None:
    """Run captured changes through table handlers."""
    from cdc_reactor import replay_command
    from cdc_reactor.discovery import DEFAULT_TARGETS

    status = replay_command.run(
        replay_command.Options(
            paths=paths,
            handlers=handlers or DEFAULT_TARGETS,
            database_url=database_url,
            create_tables=create_tables,
            schemas=schemas,
            form=form,
            tables=table or [],
            operations=op or [],
            since=since,
            until=until,
            from_lsn=from_lsn,
            to_lsn=to_lsn,
            key=key,
            limit=limit,
            skip=skip,
            dry_run=dry_run,
            events=events,
            checkpoint=checkpoint,
            on_error=on_error,
            unknown_table=unknown_table,
            workers=workers,
            max_rate=max_rate,
            patience=patience,
            report=report,
            placeholder=placeholder,
            unwrapped_prefix=unwrapped_prefix,
            max_bytes=max_bytes,
        )
    )
    raise typer.Exit(status)


@app.command(
    "explain",
    epilog="Examples:  cdc-reactor explain day.ndjson:1234  ·  cdc-reactor explain dead.ndjson --json --no-values",
)
@speaks_plainly
def explain_command(
    target: Annotated[
        str, typer.Argument(metavar="FILE[:N]", help="A capture and the line (or number) of the message [default: 1].")
    ],
    *,
    handlers: Handlers = None,
    schemas: Schemas = None,
    form: Form = None,
    placeholder: Placeholder = PLACEHOLDER,
    unwrapped_prefix: Prefix = "__",
    as_json: AsJson = False,
    show_values: Annotated[
        bool, typer.Option("--show-values/--no-values", help="Show the row's values, or their types only.")
    ] = True,
) -> None:
    """Say why one captured message goes where it goes."""
    from cdc_reactor import explain

    status = explain.run(
        explain.Options(
            target=target,
            handlers=handlers,
            schemas=schemas,
            form=form,
            placeholder=placeholder,
            unwrapped_prefix=unwrapped_prefix,
            as_json=as_json,
            show_values=show_values,
        )
    )
    raise typer.Exit(status)


@app.command("handlers", epilog="Example:  cdc-reactor handlers --handlers table_handlers --json")
@speaks_plainly
def handlers_command(*, handlers: Handlers = None, as_json: AsJson = False) -> None:
    """List the handlers: their tables, options, owners and places."""
    from cdc_reactor import explain
    from cdc_reactor.discovery import DEFAULT_TARGETS

    raise typer.Exit(explain.list_handlers(handlers or DEFAULT_TARGETS, as_json=as_json))


cli_catalogue.add(app)


def main() -> Any:
    """Run the command line; the console script `cdc-reactor`."""
    return app()


if __name__ == "__main__":
    main()
