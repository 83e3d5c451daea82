"""The commands `workers`, `events` and `asyncapi`: what topics carry and who subscribes, for people and programs.

They print and decide nothing; `discovery` finds, `event_schemas` and `asyncapi` describe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

from cdc_reactor.asyncapi import About, document
from cdc_reactor.discovery import Discovery, load_handlers
from cdc_reactor.event_schemas import export, fields_of
from cdc_reactor.workers import Worker


def to_json(value: Any) -> str:
    """Write JSON that is the same each time: indented, sorted."""
    # Bounds of integers may be of more than 64 bits, which orjson does not know.
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_workers(targets: Sequence[str], *, as_json: bool) -> int:
    """Show the workers by subscription; return the exit status.

    Raises:
        UsageError: a target is nothing that can be imported, or what is there contradicts itself.
    """
    described = [describe(worker) for worker in load_handlers(targets).workers]
    typer.echo(to_json({"workers": described}) if as_json else _workers_table(described))
    return 0


def describe(worker: Worker[Any]) -> dict[str, Any]:
    """Name everything that a worker's declaration says; what is unset is empty, or null where it is a number."""
    return {
        "subscription": worker.subscription,
        "topic": worker.topic,
        "event": worker.event_type.name,
        "encoding": str(worker.event_type.encoding),
        "worker": worker.name,
        "kind": str(worker.kind),
        "group": worker.group,
        "dedicated": worker.dedicated,
        "ordered": worker.ordered,
        "max_messages": worker.max_messages,
        "max_attempts": worker.max_attempts,
        "timeout": worker.timeout,
        "on_poison": worker.on_poison,
        "dead_letter": worker.dead_letter,
        "is_async": worker.is_async,
        "owner": worker.owner,
        "place": _relative(worker.place),
    }


def _relative(place: str) -> str:
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


_SHOWN = ("subscription", "topic", "event", "worker", "kind", "group", "max_messages", "max_attempts", "dead_letter")


def _workers_table(described: Sequence[dict[str, Any]]) -> str:
    if not described:
        return "no workers"
    columns = (*_SHOWN, "owner", "place")
    head = tuple(column.upper() for column in columns)
    return _aligned([head, *(tuple(_cell(each, column) for column in columns) for each in described)])


def _cell(described: dict[str, Any], column: str) -> str:
    text = str(described[column]) or "-"
    return f"{text} (dedicated)" if column == "group" and described["dedicated"] else text


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_events(targets: Sequence[str], *, as_json: bool) -> int:
    """Show what each topic carries and who subscribes to it; as JSON, the export that `events check` compares.

    Raises:
        UsageError: a target is nothing that can be imported, or what is there contradicts itself.
    """
    found = load_handlers(targets)
    typer.echo(to_json(export(found.events)) if as_json else _events_text(found))
    return 0


def _events_text(found: Discovery) -> str:
    exported = export(found.events)["events"]
    return "\n\n".join(_event_text(topic, entry, found) for topic, entry in exported.items()) or "no events"


def _event_text(topic: str, entry: dict[str, Any], found: Discovery) -> str:
    key = f"  key {entry['key']}" if entry["key"] else ""
    fields = [(f"    {name}", told) for name, told in fields_of(entry)]
    subscribed = [f"{each.name} ({each.subscription})" for each in found.workers if each.topic == topic]
    lines = [f"{topic}  {entry['name']}  {entry['encoding']}{key}", *([_aligned(fields)] if fields else [])]
    return "\n".join([*lines, f"    → {', '.join(subscribed) or 'nobody here'}"])


# ── AsyncAPI ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Yaml(yaml.SafeDumper):
    """Writes text of several lines as such a block."""


def _write_text(dumper: _Yaml, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Yaml.add_representer(str, _write_text)


def print_asyncapi(targets: Sequence[str], about: About, *, as_json: bool) -> int:
    """Print the AsyncAPI document, as YAML unless JSON is wanted; return the exit status.

    Raises:
        UsageError: a target is nothing that can be imported, or what is there contradicts itself.
        DefinitionError: a field of an event has no JSON Schema.
    """
    found = load_handlers(targets)
    written = document(found.events, found.workers, about)
    # Through JSON: YAML's safe writer knows plain values only, and would write one that stands twice as an alias.
    plain = json.loads(json.dumps(written))
    if as_json:
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.dump(plain, Dumper=_Yaml, sort_keys=False, allow_unicode=True, width=120), nl=False)
    return 0
