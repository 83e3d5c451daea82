"""The commands of the catalogue: `workers`, `events`, `events check` and `asyncapi`.

What they do is in `catalogue_command` and `events_command`, which are imported inside the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc_reactor.cli_options import AsJson, Handlers, speaks_plainly
from cdc_reactor.errors import UsageError


def add(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command("workers", epilog="Example:  cdc-reactor workers --handlers workers --json")(workers)
    app.command("asyncapi", epilog="Example:  cdc-reactor asyncapi --title 'Forum events' > asyncapi.yaml")(asyncapi)
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback(epilog="Examples:  cdc-reactor events  ·  cdc-reactor events --json > events.json")(events)
    group.command(
        "check",
        epilog="Examples:  cdc-reactor events check --against origin/main  ·  "
        "cdc-reactor events check --against events.json",
    )(check)
    app.add_typer(group, name="events")


@speaks_plainly
def workers(*, handlers: Handlers = None, as_json: AsJson = False) -> None:
    """List the workers: their subscriptions, topics, options, owners and places."""
    from cdc_reactor import catalogue_command
    from cdc_reactor.discovery import DEFAULT_TARGETS

    raise typer.Exit(catalogue_command.list_workers(handlers or DEFAULT_TARGETS, as_json=as_json))


@speaks_plainly
def events(context: typer.Context, *, handlers: Handlers = None, as_json: AsJson = False) -> None:
    """List what each topic carries and who subscribes to it; --json is what `events check` compares."""
    if context.invoked_subcommand is not None:
        if handlers or as_json:
            raise UsageError("write the options behind it: cdc-reactor events check --against … --handlers … --json")
        return
    from cdc_reactor import catalogue_command
    from cdc_reactor.discovery import DEFAULT_TARGETS

    raise typer.Exit(catalogue_command.list_events(handlers or DEFAULT_TARGETS, as_json=as_json))


@speaks_plainly
def check(
    *,
    against: Annotated[
        str, typer.Option(metavar="REV|FILE", help="A revision of git, or a file from `cdc-reactor events --json`.")
    ],
    handlers: Handlers = None,
    as_json: AsJson = False,
) -> None:
    """Find changes of events that break who publishes or subscribes; exit status 1 where there are any."""
    from cdc_reactor import events_command
    from cdc_reactor.discovery import DEFAULT_TARGETS

    raise typer.Exit(events_command.check(against, handlers or DEFAULT_TARGETS, as_json=as_json))


@speaks_plainly
def asyncapi(
    *,
    handlers: Handlers = None,
    title: Annotated[str, typer.Option(metavar="TEXT", help="What the document is called.")] = "Events and workers",
    document_version: Annotated[
        str, typer.Option(metavar="VERSION", help="The version of the whole document, not of an event.")
    ] = "1.0.0",
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is about; CommonMark.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print an AsyncAPI 3 document of all topics, messages and subscriptions."""
    from cdc_reactor import catalogue_command
    from cdc_reactor.asyncapi import About
    from cdc_reactor.discovery import DEFAULT_TARGETS

    about = About(title, document_version, description)
    raise typer.Exit(catalogue_command.print_asyncapi(handlers or DEFAULT_TARGETS, about, as_json=as_json))
