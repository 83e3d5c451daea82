"""The commands `new …`: they write the first files of a table handler, a worker or an event.

What is written comes from `scaffold`, `worker_scaffold` and `event_scaffold`; here are the options, the folders and the
files. Nothing that is there is overwritten, unless `--force` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc_reactor.cli_options import PLACEHOLDER, Form, Placeholder, Prefix, Schemas, speaks_plainly
from cdc_reactor.errors import UsageError

if TYPE_CHECKING:
    from cdc_reactor.event_scaffold import EventField

app = typer.Typer(
    help="Write the files of a new handler, worker or event.", no_args_is_help=True, rich_markup_mode=None
)


@app.command(
    "table-handler",
    epilog="Examples:  cdc-reactor new table-handler public.users --from capture.ndjson  ·  "
    "cdc-reactor new table-handler users --from postgresql://me@localhost/forum",
)
@speaks_plainly
def new_table_handler(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="The table: public.users, or users where that is clear.")
    ],
    *,
    origin: Annotated[
        str,
        typer.Option("--from", metavar="FILE|URL", help="Captured changes, or postgresql://… to read its catalogue."),
    ],
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")] = Path("table_handlers"),
    schemas: Schemas = None,
    form: Form = None,
    placeholder: Placeholder = PLACEHOLDER,
    unwrapped_prefix: Prefix = "__",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files that are there.")] = False,
) -> None:
    """Write a Row model, a small handler and its test for a table."""
    from cdc_reactor import table_columns
    from cdc_reactor.scaffold import write_sources

    package = _package_of(folder)
    if origin.startswith(("postgresql://", "postgres://", "postgresql+")):
        found = table_columns.read_postgres_table(origin, table)
    else:
        options = table_columns.CaptureOptions(
            schemas=schemas, form=form, placeholder=placeholder, unwrapped_prefix=unwrapped_prefix
        )
        found = table_columns.read_captured_table(origin, table, options)
    sources = write_sources(found, package, is_our_project=Path("cdc_reactor", "__init__.py").exists())
    files = {
        folder / f"{sources.module}.py": sources.handler,
        folder / f"test_{sources.module}.py": sources.test,
    }
    if not force:
        _refuse_existing(files, "--force overwrites")
    _write_files(folder, files, docstring="Reactions to changes, one module a table.")
    for path in files:
        typer.echo(f"wrote {path}")
    typer.echo(f"next: python -m pytest {folder}, then cdc-reactor handlers --handlers {package}")


Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic, as post.upvoted.v1.")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="NAME:TYPE", help="A field, as post_id:int or 'note:str?' if optional; may be repeated."
    ),
]
Captured = Annotated[
    Path | None, typer.Option("--from", metavar="FILE", help="Guess the fields from this message, one JSON object.")
]


@app.command(
    "event",
    epilog="Examples:  cdc-reactor new event post.upvoted.v1 --field post_id:int --field 'note:str?' --key post_id  ·  "
    "cdc-reactor new event post.upvoted.v1 --from message.json",
)
@speaks_plainly
def new_event(
    topic: Topic,
    *,
    field: Fields = None,
    key: Annotated[str, typer.Option(metavar="FIELD", help="The field whose value is the ordering key.")] = "",
    captured: Captured = None,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")] = Path("events"),
) -> None:
    """Write the class of a topic's events."""
    from cdc_reactor import event_scaffold
    from cdc_reactor.event_search import find_event

    package = _package_of(folder)
    event_scaffold.check_new_topic(topic)
    event = event_scaffold.NewEvent(topic, _read_fields(field, captured), key)
    event_scaffold.check_key(key, event.fields)
    path = folder / f"{event_scaffold.module_name(topic)}.py"
    _refuse_existing([path])
    if found := find_event(topic, _targets(None, package)).event:
        raise UsageError(f"{found.model.__module__} declares {found.name} for {topic} already; a topic has one type")
    text = event_scaffold.write_event_module(event, first_party=_first_party(package))
    _write_files(folder, {path: text}, docstring="Events, one module a topic.")
    typer.echo(f"wrote {path}")
    typer.echo(f"next: from {package}.{path.stem} import {event.name}, or cdc-reactor new worker {topic}")


@app.command(
    "worker",
    epilog="Examples:  cdc-reactor new worker post.upvoted.v1 --name add_reputation  ·  "
    "cdc-reactor new worker mail.bounced.v1 --field address_id:int --async",
)
@speaks_plainly
def new_worker(
    topic: Topic,
    *,
    name: Annotated[str, typer.Option(metavar="NAME", help="What it is called [default: on_ and the topic].")] = "",
    subscription: Annotated[
        str, typer.Option(metavar="NAME", help="Its subscription [default: the topic's words and its name].")
    ] = "",
    is_async: Annotated[bool, typer.Option("--async", help="Write an async def.")] = False,
    notifies: Annotated[bool, typer.Option("--notifies", help="It returns notifications.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="It takes the untouched message.")] = False,
    field: Fields = None,
    captured: Captured = None,
    handlers: Annotated[
        list[str] | None,
        typer.Option(
            "--handlers",
            metavar="PACKAGE|FILE",
            help="Where its event may be declared [default: table_handlers, workers, events].",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")] = Path("workers"),
) -> None:
    """Write a worker that only logs, and its test; the event is imported, or declared in its module with --field."""
    from cdc_reactor import event_scaffold, event_search, worker_scaffold

    package = _package_of(folder)
    event_scaffold.check_new_topic(topic)
    name = name or worker_scaffold.default_name(topic)
    worker_scaffold.check_name(name)
    subscription = subscription or worker_scaffold.default_subscription(topic, name)
    worker_scaffold.check_subscription(subscription)
    paths = folder / f"{name}.py", folder / f"test_{name}.py"
    _refuse_existing(paths)
    worker = worker_scaffold.NewWorker(
        name, subscription, f"{package}.{name}", _first_party(package), is_async=is_async, notifies=notifies
    )
    wishes = event_search.Wishes(is_raw=raw, fields=_read_fields(field, captured) if field or captured else ())
    event = event_search.choose(topic, worker, wishes, _targets(handlers, package))
    sources = worker_scaffold.write_worker(worker, event)
    _write_files(
        folder, dict(zip(paths, (sources.worker, sources.test), strict=True)), docstring="Workers, one module each."
    )
    for path in paths:
        typer.echo(f"wrote {path}")
    listing = "cdc-reactor workers" if package == "workers" else f"cdc-reactor workers --handlers {package}"
    typer.echo(f"next: python -m pytest {paths[1]}, then {listing}")


def _read_fields(specs: list[str] | None, captured: Path | None) -> tuple[EventField, ...]:
    from cdc_reactor.event_scaffold import guess_fields, read_fields

    if specs and captured:
        raise UsageError("--field and --from: fields are either typed or guessed; leave one out")
    if captured is not None:
        return guess_fields(_read_message(captured))
    if not specs:
        raise UsageError("an event has fields: give them by --field NAME:TYPE, or a message by --from FILE")
    return read_fields(specs)


def _read_message(path: Path) -> dict[str, Any]:
    try:
        message = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--from {path}: cannot be read: {error.strerror}") from error
    except ValueError:
        raise UsageError(f"--from {path}: it is no JSON; give a file with one message, as it was published") from None
    if not isinstance(message, dict):
        raise UsageError(f"--from {path}: it holds a JSON {type(message).__name__}, and a message is one object")
    return message


def _targets(handlers: list[str] | None, package: str) -> list[str]:
    """Say where an event may be declared: those places that are there."""
    if handlers:
        return handlers
    # Only what stands here: an installed package may be called `events`, too.
    names = dict.fromkeys(("table_handlers", "workers", "events", package))
    return [name for name in names if Path(*name.split(".")).is_dir()]


def _first_party(package: str) -> frozenset[str]:
    """Name the project's packages, which linters sort apart: what stands in the current folder."""
    here = {path.stem for path in Path.cwd().iterdir() if path.suffix == ".py" or path.is_dir()}
    return frozenset({package.partition(".")[0], *here})


def _package_of(folder: Path) -> str:
    """Name the package that a folder is, seen from the current folder."""
    absolute, here = folder.absolute(), Path.cwd()
    parts = absolute.relative_to(here).parts if absolute.is_relative_to(here) else (absolute.name,)
    if not parts or not all(part.isidentifier() and not iskeyword(part) for part in parts):
        raise UsageError(
            f"--folder {folder}: handlers are imported from there, so it must be a package, as table_handlers"
        )
    return ".".join(parts)


def _refuse_existing(paths: Iterable[Path], cure: str = "choose another name, or remove what is there") -> None:
    if existing := [str(path) for path in paths if path.exists()]:
        raise UsageError(f"{' and '.join(existing)}: already there; {cure}")


def _write_files(folder: Path, files: Mapping[Path, str], *, docstring: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        package = folder / "__init__.py"
        if not package.exists():
            package.write_text(f'"""{docstring}"""\n')
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
