"""What the daemon counts and measures, and how Prometheus reads it.

One Telemetry for a process, with a registry of its own. It is told numbers once per response, batch or tick, never per
message: a bound counter costs 0.27 µs and `.labels()` four times that, so each family's children are looked up once and
kept. It must never see a message, a row or an error's text: labels are names from settings, code and the catalogue,
and their number is bounded. Neighbours: `daemon` and `consumer` tell it what happened, `health` serves what it says.
`python -m cdc_reactor.telemetry` prints docs/reference/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cdc_reactor import __version__
from cdc_reactor.messages import Verdict

#: So many tables, and reasons of a stream's end, get a label of their own in one process; all later ones share OTHER.
MAX_TABLES = 500
MAX_STREAM_ENDS = 30
OTHER = "other"

_PREFIX = "cdc_reactor_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Commit-to-handled goes from a healthy pipeline to a weekend's outage of the connector.
_LAG_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)

_VERDICTS = {verdict: verdict.name.lower() for verdict in Verdict}

_M = TypeVar("_M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Described:
    """One metric, as docs/reference/metrics.md lists it; `name` is what a query says."""

    group: str
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _Family(Generic[_M]):
    """A metric and its children, each looked up once."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: _M) -> None:
        self._metric: _M = metric
        self._children: dict[tuple[str, ...], _M] = {}

    def __call__(self, *labels: str) -> _M:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._metric.labels(*labels)
        return child


class _Catalogue:
    """Makes families, registers them and remembers how they are described."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._group = ""
        self.described: list[Described] = []

    def begin(self, group: str) -> None:
        """Put what is made from now on under this heading."""
        self._group = group

    def counter(self, name: str, text: str, *labels: str) -> _Family[Counter]:
        metric = Counter(_PREFIX + name, text, labels, registry=self._registry)
        return _Family(self._describe(metric, f"{name}_total", "counter", labels, text))

    def gauge(self, name: str, text: str, *labels: str) -> _Family[Gauge]:
        metric = Gauge(_PREFIX + name, text, labels, registry=self._registry)
        return _Family(self._describe(metric, name, "gauge", labels, text))

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float]) -> _Family[Histogram]:
        metric = Histogram(_PREFIX + name, text, labels, registry=self._registry, buckets=buckets)
        return _Family(self._describe(metric, name, "histogram", labels, text))

    def _describe(self, metric: _M, name: str, kind: str, labels: tuple[str, ...], text: str) -> _M:
        self.described.append(Described(self._group, _PREFIX + name, kind, labels, text))
        return metric


class _Names:
    """Names that come from outside, as labels: the first so many are kept, the others become OTHER."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name


class _WithoutCreated(Collector):
    """A registry less the `…_created` series, which double its size and which no query of ours asks for.

    prometheus_client can leave them out only for the whole process, which is not ours to decide for handlers' metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class _Totals:
    """The running totals of one subscription's router, as they were last told."""

    __slots__ = ("changes", "dropped", "undecodable")

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}
        self.changes: dict[str, dict[str, int]] = {}
        self.undecodable: dict[str, int] = {}


def _growth(totals: Mapping[str, int], last: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield by how much each total grew since `last`, and bring `last` up to date.

    A total that fell is a new router's, and counts from zero.
    """
    for key, total in totals.items():
        before = last.get(key, 0)
        if total != before:
            last[key] = total
            yield key, total - before if total > before else total


class Telemetry:
    """Counts what the daemon tells it; confined to the event loop's thread, but for `exposition`.

    Every number is of what happened since the last call, except where a docstring says otherwise. Durations and ages
    are seconds.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._table = _Names(MAX_TABLES)
        self._stream_end = _Names(MAX_STREAM_ENDS)
        self._totals: dict[str, _Totals] = {}
        catalogue = _Catalogue(self._registry)
        self._describe_intake(catalogue)
        self._describe_settling(catalogue)
        self._describe_handlers(catalogue)
        self._describe_workers(catalogue)
        self._describe_publishing(catalogue)
        self._describe_process(catalogue)
        #: Every metric but those of the operating system's process, in the order of the reference.
        self.described: Sequence[Described] = tuple(catalogue.described)

    def _describe_intake(self, make: _Catalogue) -> None:
        make.begin("What comes in")
        self._received = make.counter(
            "messages_received", "Messages that came from the subscription, redeliveries among them.", "subscription"
        )
        self._received_bytes = make.counter("received_bytes", "Bytes of data of these messages.", "subscription")
        self._dropped = make.counter(
            "messages_dropped", "Messages that are no change for any handler, by reason.", "subscription", "reason"
        )
        self._changes = make.counter(
            "changes",
            "Changes by table and operation, whether a handler wants them or not.",
            "subscription",
            "table",
            "op",
        )
        self._undecodable = make.counter(
            "messages_undecodable", "Messages that are nothing that the decoder knows.", "subscription"
        )
        self._heartbeat = make.gauge(
            "last_heartbeat_timestamp_seconds",
            "Unix time at which the last Debezium heartbeat arrived; the canary of the whole pipeline.",
            "subscription",
        )
        self._reconnects = make.counter(
            "stream_reconnects",
            "Streams that ended and are opened again, by how they ended.",
            "subscription",
            "reason",
        )
        self._streams_opened = make.counter(
            "streams_opened", "Streams on which the broker has answered.", "subscription"
        )

    def _describe_settling(self, make: _Catalogue) -> None:
        make.begin("What is held and settled")
        self._held_messages = make.gauge(
            "held_messages",
            "Messages held now: received, and neither confirmed as settled nor given up.",
            "subscription",
        )
        self._held_bytes = make.gauge("held_bytes", "Bytes of data of the messages held now.", "subscription")
        self._held_lanes = make.gauge(
            "held_lanes", "Lanes of which something runs now or waits to be tried again.", "subscription"
        )
        self._oldest_held = make.gauge(
            "oldest_held_age_seconds", "Age of the oldest message held; 0 where none is.", "subscription"
        )
        self._settlements = make.counter("settlements", "Deliveries that got their verdict.", "subscription", "verdict")
        self._acks = make.counter("acks_confirmed", "Acknowledgements that the broker has confirmed.", "subscription")
        self._ack_seconds = make.histogram(
            "ack_seconds",
            "Time that a request of acknowledgements took with its retries, until the broker confirmed it.",
            "subscription",
            buckets=_SECONDS,
        )
        self._leases_expired = make.counter(
            "leases_expired",
            "Leases lost or given up before the message was settled; these messages come again.",
            "subscription",
        )

    def _describe_handlers(self, make: _Catalogue) -> None:
        make.begin("What handlers do")
        which = ("handler", "table")
        self._batches = make.counter(
            "batches", "Batches that a handler was given, first tries and later ones apart.", *which, "attempt"
        )
        self._batch_changes = make.histogram("batch_changes", "Changes in a batch.", *which, buckets=_SIZES)
        self._handler_seconds = make.histogram(
            "handler_seconds",
            "Time that a batch took: its transaction, the handler, and all runs where it was split.",
            *which,
            buckets=_SECONDS,
        )
        self._lag = make.histogram(
            "commit_to_handled_seconds",
            "Time from the commit of the oldest change of a batch in the database until its handler was done.",
            *which,
            buckets=_LAG_SECONDS,
        )
        self._retries = make.counter("retries", "Failed changes and messages that were tried again.", "handler")
        self._dead_letters = make.counter("dead_letters", "Changes and messages that were given up.", *which)
        self._paused = make.gauge(
            "paused",
            "1 while something waits for what is down; nothing is lost, and no attempt is spent.",
            "what",
            "reason",
        )
        self._breaker = make.gauge(
            "breaker_open", "1 while a handler rests because too many of its changes were given up.", "handler"
        )

    def _describe_workers(self, make: _Catalogue) -> None:
        make.begin("What workers do")
        which = ("worker", "topic")
        self._worker_runs = make.counter(
            "worker_runs", "Messages that a worker was given, first tries and later ones apart.", *which, "attempt"
        )
        self._worker_seconds = make.histogram(
            "worker_seconds",
            "Time that a message took: reading it, its transaction, the worker.",
            *which,
            buckets=_SECONDS,
        )
        self._worker_lag = make.histogram(
            "publish_to_handled_seconds",
            "Time from the publication of a message until its worker was done.",
            *which,
            buckets=_LAG_SECONDS,
        )

    def _describe_publishing(self, make: _Catalogue) -> None:
        make.begin("What is published")
        self._published = make.counter(
            "messages_published", "Messages published and confirmed: events and dead letters.", "topic"
        )
        self._publish_seconds = make.histogram(
            "publish_seconds",
            "Time from handing messages to the publisher until the broker confirmed all of them.",
            "topic",
            buckets=_SECONDS,
        )

    def _describe_process(self, make: _Catalogue) -> None:
        make.begin("The process")
        text = "Always 1; the label is the version of cdc_reactor."
        Info(f"{_PREFIX}build", text, registry=self._registry).info({"version": __version__})
        make.described.append(Described("The process", f"{_PREFIX}build_info", "gauge", ("version",), text))
        # It names what it counts `process_…`; https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics
        ProcessCollector(registry=self._registry)

    def begin(self, subscriptions: Iterable[str], handlers: Iterable[tuple[str, str]]) -> None:
        """Show what is rare, and what alerts ask for, as 0 from the start.

        `handlers` are pairs of handler and table; a worker stands there with no table.

        A counter that appears with its first increment has grown by nothing as far as `increase()` can tell:
        https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics
        """
        for subscription in subscriptions:
            self.received(subscription, 0, 0)
            self._undecodable(subscription)
            self._leases_expired(subscription)
            self._acks(subscription)
            for verdict in Verdict:
                self.settled(subscription, verdict, 0)
        for handler, table in handlers:
            self.retried(handler, 0)
            self.dead_lettered(handler, table, 0)
            self.breaker(handler, is_open=False)

    # What comes in.

    def received(self, subscription: str, messages: int, size_bytes: int) -> None:
        """Count a response's messages."""
        self._received(subscription).inc(messages)
        self._received_bytes(subscription).inc(size_bytes)

    def tallied(
        self,
        subscription: str,
        *,
        dropped: Mapping[str, int],
        changes: Mapping[str, Mapping[str, int]],
        undecodable: int,
    ) -> None:
        """Take a router's running totals (by reason; by table and operation); what they grew by is counted."""
        last = self._totals.get(subscription)
        if last is None:
            last = self._totals[subscription] = _Totals()
        for reason, grown in _growth(dropped, last.dropped):
            self._dropped(subscription, reason).inc(grown)
        for _, grown in _growth({"": undecodable}, last.undecodable):
            self._undecodable(subscription).inc(grown)
        for table, operations in changes.items():
            known = last.changes.setdefault(table, {})
            # Most tables rest most of the time, and comparing two dicts is one step.
            if operations != known:
                self._count_changes(subscription, table, _growth(operations, known))

    def _count_changes(self, subscription: str, table: str, grown: Iterable[tuple[str, int]]) -> None:
        label = self._table(table)
        for operation, count in grown:
            self._changes(subscription, label, operation).inc(count)

    def heartbeat(self, subscription: str, at: float) -> None:
        """Note that a heartbeat arrived `at` (Unix seconds)."""
        self._heartbeat(subscription).set(at)

    def stream_opened(self, subscription: str) -> None:
        """Count a stream on which the broker has answered."""
        self._streams_opened(subscription).inc()

    def reconnected(self, subscription: str, reason: str) -> None:
        """Count a stream that ended and is opened again; `reason` is a gRPC status or a few words."""
        self._reconnects(subscription, self._stream_end(reason)).inc()

    # What is held and settled.

    def held(self, subscription: str, messages: int, *, size_bytes: int, lanes: int, oldest_age: float | None) -> None:
        """Show what is held now; `oldest_age` is None where nothing is."""
        self._held_messages(subscription).set(messages)
        self._held_bytes(subscription).set(size_bytes)
        self._held_lanes(subscription).set(lanes)
        self._oldest_held(subscription).set(oldest_age or 0.0)

    def settled(self, subscription: str, verdict: Verdict, count: int) -> None:
        """Count deliveries that got this verdict."""
        self._settlements(subscription, _VERDICTS[verdict]).inc(count)

    def acked(self, subscription: str, count: int, seconds: float) -> None:
        """Count the acknowledgements of one request that the broker confirmed after so many seconds."""
        self._acks(subscription).inc(count)
        self._ack_seconds(subscription).observe(seconds)

    def leases_expired(self, subscription: str, count: int) -> None:
        """Count leases that were lost or given up."""
        self._leases_expired(subscription).inc(count)

    # What handlers do.

    def worked(
        self, handler: str, table: str, *, changes: int, seconds: float, attempt: int = 1, lag: float | None = None
    ) -> None:
        """Count a batch that came back; `lag` is that of its oldest change, None where its commit time is unknown."""
        table = self._table(table)
        self._batches(handler, table, "first" if attempt == 1 else "later").inc()
        self._batch_changes(handler, table).observe(changes)
        self._handler_seconds(handler, table).observe(seconds)
        if lag is not None:
            # The database's clock may be ahead of ours.
            self._lag(handler, table).observe(max(0.0, lag))

    def ran(self, worker: str, topic: str, *, seconds: float, attempt: int, lag: float | None) -> None:
        """Count a worker's run; `lag` is since the publication of its message, None where that is unknown."""
        self._worker_runs(worker, topic, "first" if attempt == 1 else "later").inc()
        self._worker_seconds(worker, topic).observe(seconds)
        if lag is not None:
            # The broker's clock may be ahead of ours.
            self._worker_lag(worker, topic).observe(max(0.0, lag))

    def retried(self, handler: str, count: int) -> None:
        """Count changes that failed and are tried again."""
        self._retries(handler).inc(count)

    def dead_lettered(self, handler: str, table: str, count: int) -> None:
        """Count changes that were given up."""
        self._dead_letters(handler, self._table(table)).inc(count)

    def paused(self, what: str, reason: str, *, is_paused: bool) -> None:
        """Show whether a handler, subscription or topic waits; `reason` is one of few kinds, never an error's text."""
        self._paused(what, reason).set(is_paused)

    def breaker(self, handler: str, *, is_open: bool) -> None:
        """Show whether a handler's breaker is open; of messages that reached no handler, their subscription's."""
        self._breaker(handler).set(is_open)

    # What is published.

    def published(self, topic: str, count: int, seconds: float) -> None:
        """Count messages that the broker confirmed after so many seconds."""
        self._published(topic).inc(count)
        self._publish_seconds(topic).observe(seconds)

    def of_subscription(self, name: str) -> SubscriptionTelemetry:
        """Give the hooks that one subscription's transport calls."""
        return SubscriptionTelemetry(self, name)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Write all metrics as the Accept header wants them (OpenMetrics, or Prometheus' text); body, content type.

        Any thread may call it, while the event loop goes on counting.
        """
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreated(self._registry)), content_type


class SubscriptionTelemetry:
    """What one subscription's transport tells, as `pubsub.Observer` wants it; to be called on the event loop."""

    __slots__ = ("_name", "_telemetry")

    def __init__(self, telemetry: Telemetry, name: str) -> None:
        self._telemetry = telemetry
        self._name = name

    def stream_opened(self) -> None:
        """Count a stream on which the broker has answered."""
        self._telemetry.stream_opened(self._name)

    def reconnected(self, reason: str) -> None:
        """Count a stream that ended and is opened again, by a gRPC status ("UNAVAILABLE: details") or a few words."""
        # The details are the server's own words, one day with an address or a number in them.
        self._telemetry.reconnected(self._name, reason.partition(":")[0])

    def acks_confirmed(self, count: int, seconds: float) -> None:
        """Count acknowledgements that one request confirmed."""
        self._telemetry.acked(self._name, count, seconds)

    def leases_expired(self, count: int) -> None:
        """Count leases that were lost or given up."""
        self._telemetry.leases_expired(self._name, count)


# Everything below writes docs/reference/metrics.md.

_LABELS = {
    "subscription": "the subscription's short name, as configured",
    "reason": "of a drop: the words of the replay's report (`heartbeat`, `tombstone`, …); of a stream's end: the gRPC "
    f"status or a few words, and after {MAX_STREAM_ENDS} different ones `{OTHER}`; of a wait: `world` (what a handler "
    "needs, its database above all), `schemas` (the schema registry), `publish` (Pub/Sub)",
    "table": f"schema and table, empty for workers; after {MAX_TABLES} tables in one process, `{OTHER}`",
    "op": "`create`, `update`, `delete`, `truncate`",
    "verdict": ", ".join(f"`{verdict}`" for verdict in _VERDICTS.values()),
    "handler": "the handler's or worker's name; empty for dead letters that reached none, and the subscription's for "
    "their breaker",
    "worker": "the worker's name",
    "what": "what waits: a handler, a worker, a subscription or a topic",
    "attempt": "`first` for a batch or message that is tried for the first time, `later` for one that failed before",
    "topic": "the topic's short name, as configured",
    "version": "of the package cdc-reactor",
}


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition worth waking somebody for: the query, and what it says when it is true."""

    says: str
    query: str


#: Starting points; the numbers are for a database that is written to all day.
ALERTS = (
    Alert(
        "no heartbeat for five minutes: the database, the connector, Pub/Sub or the daemon stands still",
        "time() - max by (subscription) (cdc_reactor_last_heartbeat_timestamp_seconds) > 300",
    ),
    Alert("no heartbeat since the daemon began", "absent(cdc_reactor_last_heartbeat_timestamp_seconds)"),
    Alert(
        "a message waits to be settled for ten minutes",
        "max by (subscription) (cdc_reactor_oldest_held_age_seconds) > 600",
    ),
    Alert(
        "one batch in a hundred is handled more than a minute after its commit",
        "histogram_quantile(0.99, sum by (handler, le) (rate(cdc_reactor_commit_to_handled_seconds_bucket[10m]))) > 60",
    ),
    Alert(
        "changes are given up",
        "sum by (handler, table) (increase(cdc_reactor_dead_letters_total[10m])) > 0",
    ),
    Alert("a handler rests because it gave up too many changes", "max by (handler) (cdc_reactor_breaker_open) == 1"),
    Alert("the database, a schema registry or Pub/Sub is down", "max by (what, reason) (cdc_reactor_paused) == 1"),
    Alert(
        "messages come that nobody can read",
        "sum by (subscription) (increase(cdc_reactor_messages_undecodable_total[10m])) > 0",
    ),
    Alert(
        "leases are lost: handlers are too slow for what is held, so work is done twice",
        "sum by (subscription) (increase(cdc_reactor_leases_expired_total[10m])) > 0",
    ),
)

_INTRODUCTION = """\
# Metrics

The daemon answers `GET /metrics` in Prometheus' text format, or in OpenMetrics where the scraper asks for it. This page
is written by `python -m cdc_reactor.telemetry`, and a test holds it true.

Numbers are added once for each response, batch or tick, so a scrape may be a batch behind. They start from zero with
the process. Durations are seconds, sizes bytes. They are those of the daemon's own process, which also counts what
handlers do in the processes of `--processes N`; what those processes count themselves is not collected yet (Prometheus'
multi-process mode).
"""

_PROCESS = """\
Beside these, the metrics of the operating system's process as every Prometheus client names them, where it tells them
(Linux): `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds` and their like.
"""


def reference() -> str:
    """Write the page docs/reference/metrics.md."""
    described = Telemetry().described
    groups = dict.fromkeys(metric.group for metric in described)
    heads = ("metric", "kind", "labels", "what it says")
    parts = [_INTRODUCTION, *(_section(group, heads, _rows(described, group)) for group in groups)]
    labels = ((f"`{name}`", text) for name, text in _LABELS.items())
    alerts = ((alert.says, f"`{alert.query}`") for alert in ALERTS)
    parts += [_PROCESS, _section("Labels", ("label", "values"), labels)]
    parts.append(_section("Worth an alert", ("what is wrong", "query"), alerts))
    return "\n".join(parts)


def _rows(described: Iterable[Described], group: str) -> Iterator[tuple[str, ...]]:
    for metric in described:
        if metric.group == group:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            yield f"`{metric.name}`", metric.kind, labels, metric.text.removesuffix(".")


def _section(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    # The rule between head and rows is written as our other pages write it.
    table = ["|" + "|".join(f"{cell}" if cell == "---" else f" {cell} " for cell in line) + "|" for line in lines]
    return "\n".join([f"## {title}", "", *table, ""])


if __name__ == "__main__":
    sys.stdout.write(reference())
