"""What the commands share: options that mean the same everywhere, and how errors are told.

Exit status: 0 well, 1 data failed, 2 usage or configuration, 3 something that we need is down, 130 interrupted. The
commands are in `cli` and in the modules `cli_…`, which `cli` puts together; nothing heavy is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

import typer

from cdc_reactor.errors import DecodeError, DefinitionError, ReactorError, UsageError, WorldError

P = ParamSpec("P")
T = TypeVar("T")

DATA_FAILED, USAGE, WORLD_DOWN, INTERRUPTED = 1, 2, 3, 130


def speaks_plainly(command: Callable[P, T]) -> Callable[P, T]:
    """Turn this package's errors into one sentence on standard error and the right exit status."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (UsageError, DefinitionError) as error:
            raise _failed(error, USAGE) from None
        except WorldError as error:
            raise _failed(error, WORLD_DOWN) from None
        except (DecodeError, ReactorError) as error:
            raise _failed(error, DATA_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except UnicodeEncodeError as error:
            reason = f"the output cannot be written as {error.encoding}; set PYTHONIOENCODING=utf-8"
            raise _failed(WorldError(reason), WORLD_DOWN) from None
        except BrokenPipeError:
            # Whoever read our output has enough; nothing more can be said to it.
            sys.stderr.close()
            raise typer.Exit(0) from None

    return wrapped


def _failed(error: Exception, status: int) -> typer.Exit:
    typer.echo(f"cdc-reactor: {error}", err=True)
    return typer.Exit(status)


Handlers = Annotated[
    list[str] | None,
    typer.Option(
        "--handlers",
        metavar="PACKAGE|FILE|none",
        help="Where handlers and workers are [default: table_handlers, workers].",
    ),
]
Schemas = Annotated[
    str | None,
    typer.Option(metavar="PATH|URL", help="Avro writer schemas: a file, a folder, a registry's URL, or pubsub: ."),
]
Form = Annotated[str | None, typer.Option("--format", metavar="NAME", help="Read every capture as this format.")]
Placeholder = Annotated[str, typer.Option(help="Debezium's unavailable.value.placeholder.")]
Prefix = Annotated[str, typer.Option(help="The unwrap transform's add.fields.prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

#: What Debezium writes for a column that it did not read, unless told otherwise.
PLACEHOLDER = "__debezium_unavailable_value"
