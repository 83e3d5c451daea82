"""The command `config`: what is in force and where it came from, a schema for editors, an example, the reference page.

It prints and decides nothing. Passwords are masked by the kinds of the settings; nothing here reads them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import typer
from pydantic import BaseModel

from cdc_reactor.errors import UsageError
from cdc_reactor.settings import DEFAULT_FILE, ELSEWHERE, KEYS, SECTIONS, Settings, kind_of, load, variable_of


def show(flags: Mapping[str, Any], *, as_json: bool = False, schema: bool = False, example: bool = False) -> int:
    """Print one of the four forms; return the exit status. A schema and an example need no settings that are right.

    Raises:
        UsageError: a setting is wrong, or two forms are wanted at once.
    """
    if as_json + schema + example > 1:
        raise UsageError("--json, --schema and --example are different outputs; name one of them")
    if schema:
        typer.echo(_json(editor_schema()))
    elif example:
        typer.echo(example_file(), nl=False)
    else:
        settings = load(flags)
        typer.echo(_json(as_object(settings)) if as_json else as_table(settings))
    return 0


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def as_table(settings: Settings) -> str:
    """Write key, value and origin of every setting, aligned; each value can be typed back as it stands there."""
    rows = [
        ("key", "value", "origin"),
        *((key, kind_of(key).show(settings.value(key)), settings.origin(key)) for key in KEYS),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:{widths[0]}}  {value:{widths[1]}}  {origin}" for key, value, origin in rows)


def as_object(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return value and origin by key, for programs: sizes in bytes, durations in seconds, null for what is not set."""
    return {
        key: {
            "value": kind_of(key).show(value) if _is_shown_as_text(value) else value,
            "origin": settings.origin(key),
        }
        for key in KEYS
        for value in [settings.value(key)]
    }


def _is_shown_as_text(value: object) -> bool:
    # Text and secrets may hold a password, which only their kind knows how to mask.
    return value is not None and not isinstance(value, bool | int | float | list)


def editor_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file; TOML has no null, so that what has no default is left out."""
    schema = Settings.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        model.pop("title")
        for told in model["properties"].values():
            told.pop("title", None)
            if told.get("default", "") is None:
                del told["default"]
    about = "Settings of cdc-reactor, for its file cdc-reactor.toml."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "description": about}


def example_file() -> str:
    """Write a TOML file of every setting at its default, each behind a # so that later defaults still count."""
    parts = [_EXAMPLE_HEAD]
    for section, keys in _by_section():
        if section:
            parts.append(f"[{section}]  # {_about(SECTIONS[section])}\n")
        parts += [_example_of(key) for key in keys]
    return "\n".join(parts)


def _about(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]


def _by_section() -> Iterator[tuple[str, list[str]]]:
    for section in ("", *SECTIONS):
        yield section, [key for key in KEYS if key.rpartition(".")[0] == section]


def _example_of(key: str) -> str:
    field = KEYS[key]
    value = field.examples[0] if field.examples else field.default
    lines = [f"# {field.description}", f"# Must be {kind_of(key).allowed}."]
    if field.examples:
        lines.append(f"# Not set by default; {kind_of(key).toml(None)} says so, too. For example:")
    return "\n".join([*lines, f"#{key.rpartition('.')[2]} = {_toml(key, value)}", ""])


def _toml(key: str, value: Any) -> str:
    return orjson.dumps(value).decode() if KEYS[key].examples else kind_of(key).toml(value)


def reference() -> str:
    """Write docs/reference/settings.md."""
    parts = [_HEAD]
    for section, keys in _by_section():
        if section:
            parts.append(f"## [{section}]\n\n{_about(SECTIONS[section])}\n")
        rows = "".join(f"{_row(key)}\n" for key in keys)
        parts.append(f"| key | default | must be | what it is |\n|---|---|---|---|\n{rows}")
    return "\n".join(parts)


def _row(key: str) -> str:
    field, kind = KEYS[key], kind_of(key)
    variables = ", else ".join(f"`{name}`" for name in ELSEWHERE.get(key, ()))
    others = f" Where our variable is not set: {variables}." if variables else ""
    return f"| `{key}` | `{kind.toml(field.default)}` | {kind.allowed} | {field.description}{others} |"


_EXAMPLE_HEAD = f"""\
# {DEFAULT_FILE}: settings of cdc-reactor. Take the # away from what you change; `cdc-reactor config` shows what is
# in force. Variables ({variable_of("pubsub.max_bytes")}) and flags come before this file.
"""

_HEAD = f"""# Settings

A setting can stand in a file, in the environment and on the command line. Later wins:

1. its default;
2. the file: `{DEFAULT_FILE}` in the current folder, or the one that `--config FILE` or `CDC_CONFIG` names;
3. the environment: `{variable_of("pubsub.max_bytes")}` is `pubsub.max_bytes`. A variable that is set to nothing
   counts as not set. Lists have commas between their parts;
4. flags of the command.

`cdc-reactor config` prints every setting that is in force and where it came from, passwords masked; `--json` does so
for programs. `cdc-reactor config --example` prints a file to begin with, and `--schema` a JSON Schema, by which an
editor checks and completes the file: keep it as `cdc-reactor.schema.json` and begin the file with
`#:schema ./cdc-reactor.schema.json` (Even Better TOML, Taplo).

Names that are not known are errors, in the file and in the environment. Left alone are variables that begin with
`CDC_REACTOR_`, and those that Kubernetes sets for a Service named `cdc` or `cdc-…` (`CDC_PORT_80_TCP`).

The word under "default" that stands for "not set" can be written, too: `CDC_PUBSUB__EMULATOR_HOST=none` overrules
a file.

Sizes are bytes; durations are seconds, and may be parts of one. With units they are text: `"100 MiB"`, `"90s"`.

## At the top of the file
"""
