"""What a replay did, counted: for each capture and in all, as JSON and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Every reason is reported, seen or not; others (`outbox`) appear when there are any.
DROP_REASONS = (
    "heartbeat",
    "snapshot_read",
    "tombstone",
    "transaction",
    "logical_message",
    "schema_change",
    "filtered",
)


@dataclass(slots=True)
class HandlerCounts:
    """What one handler did: batches handed out, changes applied, events, retries, dead letters."""

    batches: int = 0
    changes: int = 0
    events: int = 0
    retries: int = 0
    dead_letters: int = 0

    def minus(self, other: HandlerCounts) -> HandlerCounts:
        """Return what came on top of an earlier count."""
        return HandlerCounts(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    def copy(self) -> HandlerCounts:
        """Keep the counts as they stand."""
        return self.minus(HandlerCounts())


@dataclass(slots=True)
class Counts:
    """Counts of messages, by what became of them; `changes` counts every table, handled or not."""

    messages: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    snapshot_reads: Mapping[str, int] = field(default_factory=dict)
    unhandled: Mapping[str, int] = field(default_factory=dict)
    handlers: Mapping[str, HandlerCounts] = field(default_factory=dict)
    undecodable: int = 0
    dead_letters: int = 0
    seconds: float = 0.0

    def minus(self, other: Counts) -> Counts:
        """Return what came on top of an earlier count; tables and reasons without any are left out."""
        return Counts(
            messages=self.messages - other.messages,
            dropped=_less(self.dropped, other.dropped),
            changes={
                table: counts
                for table, ops in self.changes.items()
                if any((counts := {op: n - other.changes.get(table, {}).get(op, 0) for op, n in ops.items()}).values())
            },
            snapshot_reads=_less(self.snapshot_reads, other.snapshot_reads),
            unhandled=_less(self.unhandled, other.unhandled),
            handlers={n: c.minus(other.handlers.get(n, HandlerCounts())) for n, c in self.handlers.items()},
            undecodable=self.undecodable - other.undecodable,
            dead_letters=self.dead_letters - other.dead_letters,
            seconds=self.seconds - other.seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object; docs/reference/report.md says what each means."""
        return {
            "messages": self.messages,
            "dropped": dict.fromkeys(DROP_REASONS, 0) | dict(self.dropped),
            "changes": self.changes,
            "snapshot_reads": self.snapshot_reads,
            "unhandled": self.unhandled,
            "handlers": {
                name: {what: getattr(counts, what) for what in HandlerCounts.__slots__}
                for name, counts in self.handlers.items()
            },
            "undecodable": self.undecodable,
            "dead_letters": self.dead_letters,
            "seconds": round(self.seconds, 3),
        }


def _less(counts: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(+Counter({key: n - other.get(key, 0) for key, n in counts.items()}))


@dataclass(slots=True)
class Report:
    """A whole replay: the total, an entry for each capture, and how it ended."""

    total: Counts = field(default_factory=Counts)
    files: dict[str, Counts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    stopped: str = ""

    @property
    def exit_status(self) -> int:
        """0 all applied, 1 something dead-lettered or undecodable, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.stopped or self.problems or self.total.undecodable or self.total.dead_letters else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        # A path whose bytes are no UTF-8 is made printable.
        files = {name.encode(errors="backslashreplace").decode(): counts for name, counts in self.files.items()}
        return {"files": {name: counts.to_json() for name, counts in files.items()}, **self.total.to_json()}
