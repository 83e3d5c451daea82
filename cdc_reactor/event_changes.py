"""Which changes of the events break somebody who publishes or subscribes: two exports in, findings out.

Pure. `event_schemas.export` makes the exports, `events_command` fetches them; `schema_changes` and `protobuf_changes`
know the rules of what a topic carries, this module those of topics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cdc_reactor import protobuf_changes, schema_changes
from cdc_reactor.errors import UsageError
from cdc_reactor.event_schemas import VERSION
from cdc_reactor.events import Encoding
from cdc_reactor.schema_changes import Difference

Entry: TypeAlias = Mapping[str, Any]

_VERSION_OF_TOPIC = re.compile(r"(.*[^\d]v)(\d+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One change that breaks somebody: the topic, where in its messages (empty for all of them), what, and the cure."""

    topic: str
    path: str
    what: str
    cure: str

    def __str__(self) -> str:
        place = f"{self.topic}: {self.path}" if self.path else self.topic
        return f"{place}: {self.what}; {self.cure}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Finding]:
    """Return what breaks between two exports, by topic. New topics break nobody."""
    found = []
    for topic, entry in sorted(old["events"].items()):
        if topic in new["events"]:
            found += [_finding(topic, difference) for difference in _entries(entry, new["events"][topic])]
        else:
            cure = "keep it until its last subscriber is gone"
            found.append(Finding(topic, "", f"topic removed ({entry['name']})", cure))
    return found


def _entries(old: Entry, new: Entry) -> Iterator[Difference]:
    if old["key"] != new["key"]:
        what = (
            f"key field changed from {old['key'] or 'none'} to {new['key'] or 'none'}: its messages' order is another"
        )
        yield Difference("", what, "keep its key")
    if old["encoding"] != new["encoding"]:
        # Of a raw topic nobody had said how it is written.
        if old["encoding"] != Encoding.RAW:
            yield Difference("", f"encoding changed from {old['encoding']} to {new['encoding']}", "keep its encoding")
    elif "fields" in old["schema"]:
        is_json = old["encoding"] == Encoding.PROTOBUF_JSON
        yield from protobuf_changes.compare(old["schema"], new["schema"], is_json=is_json)
    else:
        yield from schema_changes.compare(old["schema"], new["schema"])


def _finding(topic: str, difference: Difference) -> Finding:
    beside = f"publish it as {next_version(topic)}"
    cure = f"{difference.cure}, or {beside}" if difference.cure else beside
    return Finding(topic, difference.path, difference.what, cure)


def next_version(topic: str) -> str:
    """Name the topic that a broken one is published as: post.upvoted.v2 for post.upvoted.v1."""
    versioned = _VERSION_OF_TOPIC.fullmatch(topic)
    return f"{versioned[1]}{int(versioned[2]) + 1}" if versioned else f"{topic}.v2"


def check_export(value: Any, label: str) -> Mapping[str, Any]:
    """Return what was read from `label`, once it is known to be an export.

    Raises:
        UsageError: it is none, or a later cdc-reactor wrote it.
    """
    if not isinstance(value, dict) or not isinstance(value.get("version"), int) or "events" not in value:
        raise UsageError(f"{label}: it is no export of events; write one with `cdc-reactor events --json > {label}`")
    if value["version"] > VERSION:
        raise UsageError(
            f"{label}: it is an export of version {value['version']}, and this cdc-reactor knows {VERSION}; upgrade it"
        )
    entries = value["events"].values() if isinstance(value["events"], dict) else [None]
    if not all(map(_is_entry, entries)):
        raise UsageError(f"{label}: an event of it lacks name, encoding, key or schema; write the export again")
    return value


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"name", "encoding", "key", "schema"} <= value.keys()
        and isinstance(value["schema"], dict)
    )
