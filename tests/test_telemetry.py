"""What is told comes out as Prometheus reads it, and the reference says what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from cdc_reactor import __version__
from cdc_reactor.messages import Verdict
from cdc_reactor.telemetry import ALERTS, MAX_STREAM_ENDS, MAX_TABLES, Telemetry, reference

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"


def shown(telemetry: Telemetry) -> dict[str, float]:
    """Everything of ours but the buckets of histograms, name{label=value} → value, labels in order."""
    body, _ = telemetry.exposition()
    samples = [sample for family in read_text(body.decode()) for sample in family.samples]
    return {
        f"{s.name.removeprefix('cdc_reactor_')}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value
        for s in samples
        if s.name.startswith("cdc_reactor_") and "le" not in s.labels and not s.name.endswith("build_info")
    }


def buckets(telemetry: Telemetry, name: str) -> dict[str, float]:
    """The buckets of a histogram with one child: upper bound → how many, cumulated."""
    body, _ = telemetry.exposition()
    samples = [sample for family in read_text(body.decode()) for sample in family.samples]
    return {s.labels["le"]: s.value for s in samples if s.name == f"cdc_reactor_{name}_bucket"}


def tell_everything(telemetry: Telemetry) -> None:
    telemetry.received("users", 3, 700)
    telemetry.tallied("users", dropped={"heartbeat": 2}, changes={"public.users": {"create": 1}}, undecodable=1)
    telemetry.heartbeat("users", 1_700_000_000.5)
    telemetry.held("users", 5, size_bytes=900, lanes=2, oldest_age=1.5)
    telemetry.settled("users", Verdict.ACK, 4)
    telemetry.settled("users", Verdict.DEAD_LETTER, 1)
    telemetry.worked("announce", "public.users", changes=100, seconds=0.25, lag=2.0)
    telemetry.worked("announce", "public.users", changes=1, seconds=0.5, attempt=2)
    telemetry.ran("note", "post.upvoted.v1", seconds=0.25, attempt=1, lag=0.5)
    telemetry.ran("note", "post.upvoted.v1", seconds=0.5, attempt=2, lag=None)
    telemetry.retried("announce", 1)
    telemetry.dead_lettered("announce", "public.users", 1)
    telemetry.paused("announce", "world", is_paused=True)
    telemetry.breaker("announce", is_open=True)
    telemetry.published("user.renamed.v1", 7, 0.125)
    transport = telemetry.of_subscription("users")
    transport.stream_opened()
    transport.reconnected("UNAVAILABLE: connection reset by 192.0.2.7:443")
    transport.acks_confirmed(4, 0.5)
    transport.leases_expired(2)


def test_all_that_is_told_is_shown():
    telemetry = Telemetry()

    tell_everything(telemetry)

    assert shown(telemetry) == {
        "messages_received_total{subscription=users}": 3,
        "received_bytes_total{subscription=users}": 700,
        "messages_dropped_total{reason=heartbeat,subscription=users}": 2,
        "changes_total{op=create,subscription=users,table=public.users}": 1,
        "messages_undecodable_total{subscription=users}": 1,
        "last_heartbeat_timestamp_seconds{subscription=users}": 1_700_000_000.5,
        "streams_opened_total{subscription=users}": 1,
        "stream_reconnects_total{reason=UNAVAILABLE,subscription=users}": 1,
        "held_messages{subscription=users}": 5,
        "held_bytes{subscription=users}": 900,
        "held_lanes{subscription=users}": 2,
        "oldest_held_age_seconds{subscription=users}": 1.5,
        "settlements_total{subscription=users,verdict=ack}": 4,
        "settlements_total{subscription=users,verdict=dead_letter}": 1,
        "acks_confirmed_total{subscription=users}": 4,
        "ack_seconds_count{subscription=users}": 1,
        "ack_seconds_sum{subscription=users}": 0.5,
        "leases_expired_total{subscription=users}": 2,
        "batches_total{attempt=first,handler=announce,table=public.users}": 1,
        "batches_total{attempt=later,handler=announce,table=public.users}": 1,
        "batch_changes_count{handler=announce,table=public.users}": 2,
        "batch_changes_sum{handler=announce,table=public.users}": 101,
        "handler_seconds_count{handler=announce,table=public.users}": 2,
        "handler_seconds_sum{handler=announce,table=public.users}": 0.75,
        "commit_to_handled_seconds_count{handler=announce,table=public.users}": 1,
        "commit_to_handled_seconds_sum{handler=announce,table=public.users}": 2,
        "worker_runs_total{attempt=first,topic=post.upvoted.v1,worker=note}": 1,
        "worker_runs_total{attempt=later,topic=post.upvoted.v1,worker=note}": 1,
        "worker_seconds_count{topic=post.upvoted.v1,worker=note}": 2,
        "worker_seconds_sum{topic=post.upvoted.v1,worker=note}": 0.75,
        "publish_to_handled_seconds_count{topic=post.upvoted.v1,worker=note}": 1,
        "publish_to_handled_seconds_sum{topic=post.upvoted.v1,worker=note}": 0.5,
        "retries_total{handler=announce}": 1,
        "dead_letters_total{handler=announce,table=public.users}": 1,
        "paused{reason=world,what=announce}": 1,
        "breaker_open{handler=announce}": 1,
        "messages_published_total{topic=user.renamed.v1}": 7,
        "publish_seconds_count{topic=user.renamed.v1}": 1,
        "publish_seconds_sum{topic=user.renamed.v1}": 0.125,
    }


def test_counters_add_up_and_gauges_follow():
    telemetry = Telemetry()

    for _ in range(3):
        telemetry.received("users", 10, 100)
    telemetry.held("users", 5, size_bytes=900, lanes=2, oldest_age=1.5)
    telemetry.held("users", 0, size_bytes=0, lanes=0, oldest_age=None)
    telemetry.paused("announce", "world", is_paused=True)
    telemetry.paused("announce", "world", is_paused=False)

    assert shown(telemetry) == {
        "messages_received_total{subscription=users}": 30,
        "received_bytes_total{subscription=users}": 300,
        "held_messages{subscription=users}": 0,
        "held_bytes{subscription=users}": 0,
        "held_lanes{subscription=users}": 0,
        "oldest_held_age_seconds{subscription=users}": 0,
        "paused{reason=world,what=announce}": 0,
    }


def test_what_is_rare_is_shown_as_zero_from_the_start():
    telemetry = Telemetry()

    telemetry.begin(["users"], [("announce", "public.users")])

    assert shown(telemetry) == {
        "messages_received_total{subscription=users}": 0,
        "received_bytes_total{subscription=users}": 0,
        "messages_undecodable_total{subscription=users}": 0,
        "leases_expired_total{subscription=users}": 0,
        "acks_confirmed_total{subscription=users}": 0,
        "settlements_total{subscription=users,verdict=ack}": 0,
        "settlements_total{subscription=users,verdict=nack}": 0,
        "settlements_total{subscription=users,verdict=dead_letter}": 0,
        "retries_total{handler=announce}": 0,
        "dead_letters_total{handler=announce,table=public.users}": 0,
        "breaker_open{handler=announce}": 0,
    }


def test_of_a_routers_totals_only_what_they_grew_by_is_added():
    telemetry = Telemetry()
    grown = {"public.users": {"create": 5, "update": 2}, "public.posts": {"delete": 1}}

    telemetry.tallied("users", dropped={"heartbeat": 2}, changes={"public.users": {"create": 3}}, undecodable=0)
    for _ in range(3):
        telemetry.tallied("users", dropped={"heartbeat": 4, "tombstone": 1}, changes=grown, undecodable=6)
    telemetry.tallied("posts", dropped={"heartbeat": 1}, changes={}, undecodable=0)

    assert shown(telemetry) == {
        "messages_dropped_total{reason=heartbeat,subscription=users}": 4,
        "messages_dropped_total{reason=tombstone,subscription=users}": 1,
        "messages_dropped_total{reason=heartbeat,subscription=posts}": 1,
        "changes_total{op=create,subscription=users,table=public.users}": 5,
        "changes_total{op=update,subscription=users,table=public.users}": 2,
        "changes_total{op=delete,subscription=users,table=public.posts}": 1,
        "messages_undecodable_total{subscription=users}": 6,
    }


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3)))
def test_however_often_totals_are_told_the_last_ones_are_shown(growths):
    telemetry = Telemetry()
    create = update = dropped = 0

    for more_created, more_updated, more_dropped in growths:
        create, update, dropped = create + more_created, update + more_updated, dropped + more_dropped
        changes = {"public.users": {"create": create, "update": update}}
        telemetry.tallied("users", dropped={"heartbeat": dropped}, changes=changes, undecodable=dropped)

    assert shown(telemetry) == {
        name: total
        for name, total in {
            "messages_dropped_total{reason=heartbeat,subscription=users}": dropped,
            "changes_total{op=create,subscription=users,table=public.users}": create,
            "changes_total{op=update,subscription=users,table=public.users}": update,
            "messages_undecodable_total{subscription=users}": dropped,
        }.items()
        if total
    }


def test_totals_that_fell_are_a_new_routers_and_count_from_zero():
    telemetry = Telemetry()

    telemetry.tallied("users", dropped={"heartbeat": 10}, changes={}, undecodable=0)
    telemetry.tallied("users", dropped={"heartbeat": 3}, changes={}, undecodable=0)

    assert shown(telemetry) == {"messages_dropped_total{reason=heartbeat,subscription=users}": 13}


def test_the_number_of_tables_is_bounded():
    telemetry = Telemetry()
    everything = {f"public.t{n}": {"create": 1} for n in range(MAX_TABLES + 7)}

    telemetry.tallied("users", dropped={}, changes=everything, undecodable=0)
    telemetry.dead_lettered("announce", "public.t0", 1)
    telemetry.dead_lettered("announce", "public.late", 1)
    telemetry.worked("announce", "public.later", changes=1, seconds=0.1)

    values = shown(telemetry)
    assert len([name for name in values if name.startswith("changes_total")]) == MAX_TABLES + 1
    assert {name: value for name, value in values.items() if "=other" in name or "dead_letters" in name} == {
        "changes_total{op=create,subscription=users,table=other}": 7,
        "dead_letters_total{handler=announce,table=public.t0}": 1,
        "dead_letters_total{handler=announce,table=other}": 1,
        "batches_total{attempt=first,handler=announce,table=other}": 1,
        "batch_changes_count{handler=announce,table=other}": 1,
        "batch_changes_sum{handler=announce,table=other}": 1,
        "handler_seconds_count{handler=announce,table=other}": 1,
        "handler_seconds_sum{handler=announce,table=other}": 0.1,
    }


def test_the_number_of_ways_in_which_streams_end_is_bounded():
    telemetry = Telemetry()

    for n in range(MAX_STREAM_ENDS + 5):
        telemetry.reconnected("users", f"nothing came for {n} s")

    values = shown(telemetry)
    assert len(values) == MAX_STREAM_ENDS + 1
    assert values["stream_reconnects_total{reason=other,subscription=users}"] == 5


def test_a_batch_is_sorted_into_its_bucket():
    telemetry = Telemetry()

    telemetry.worked("announce", "public.users", changes=100, seconds=0.25)

    assert buckets(telemetry, "batch_changes") == {
        "1.0": 0,
        "2.0": 0,
        "5.0": 0,
        "10.0": 0,
        "20.0": 0,
        "50.0": 0,
        "100.0": 1,
        "200.0": 1,
        "500.0": 1,
        "1000.0": 1,
        "2000.0": 1,
        "5000.0": 1,
        "+Inf": 1,
    }


def test_a_database_whose_clock_is_ahead_gives_no_negative_lag():
    telemetry = Telemetry()

    telemetry.worked("announce", "public.users", changes=1, seconds=0.1, lag=-3.0)

    assert shown(telemetry)["commit_to_handled_seconds_sum{handler=announce,table=public.users}"] == 0


def test_two_telemetries_share_nothing():
    one, other = Telemetry(), Telemetry()

    one.received("users", 3, 700)

    assert shown(other) == {}


def test_openmetrics_says_the_same():
    telemetry = Telemetry()
    tell_everything(telemetry)

    plain, plain_type = telemetry.exposition()
    body, content_type = telemetry.exposition("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")

    assert plain_type == "text/plain; version=0.0.4; charset=utf-8"
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    read = {
        (s.name, tuple(sorted(s.labels.items()))): s.value for f in read_openmetrics(body.decode()) for s in f.samples
    }
    told = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in read_text(plain.decode()) for s in f.samples}
    ours = {key: value for key, value in told.items() if key[0].startswith("cdc_reactor_")}
    assert {key: value for key, value in read.items() if key[0].startswith("cdc_reactor_")} == ours
    assert not [name for name, _ in told if name.endswith("_created")]


def test_another_thread_may_read_while_we_count():
    telemetry = Telemetry()
    is_over = threading.Event()
    bodies = []

    def read() -> None:
        while not is_over.is_set():
            bodies.append(telemetry.exposition()[0])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(400):
        telemetry.worked(f"handler-{n}", "public.users", changes=n, seconds=0.1, lag=0.1)
    is_over.set()
    reader.join(timeout=60)

    assert all(body.count(b"\n") > 1 for body in bodies)
    assert len([name for name in shown(telemetry) if name.startswith("batches_total")]) == 400


def test_names_are_as_prometheus_wants_them():
    # https://prometheus.io/docs/practices/naming/
    telemetry = Telemetry()

    for metric in telemetry.described:
        assert re.fullmatch(r"cdc_reactor_[a-z_]+", metric.name), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert not re.search(r"_(ms|milliseconds|minutes|kilobytes|mb)(_|$)", metric.name), metric
        assert metric.text.endswith("."), metric


def test_promtool_has_nothing_to_say():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus")
    telemetry = Telemetry()
    tell_everything(telemetry)

    body, _ = telemetry.exposition()
    found = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)

    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_every_metric_that_is_shown_is_described_and_the_reverse():
    telemetry = Telemetry()
    tell_everything(telemetry)

    body, _ = telemetry.exposition()
    families = [f for f in read_text(body.decode()) if f.name.startswith("cdc_reactor_")]

    in_queries = {f"{f.name}_total" if f.type == "counter" else f.name: f.type for f in families}
    assert in_queries == {metric.name: metric.kind for metric in telemetry.described}
    assert {f.documentation for f in families} == {metric.text for metric in telemetry.described}
    shown_labels = {
        (f.name, frozenset(s.labels) - {"le"}) for f in families for s in f.samples if not s.name.endswith("build_info")
    }
    assert shown_labels == {
        (m.name.removesuffix("_total"), frozenset(m.labels)) for m in telemetry.described if m.labels != ("version",)
    }


def test_the_version_is_told():
    body, _ = Telemetry().exposition()

    assert f'cdc_reactor_build_info{{version="{__version__}"}} 1.0'.encode() in body


def test_the_reference_is_what_the_code_says():
    assert REFERENCE.read_text() == reference(), f"write it again: python -m cdc_reactor.telemetry > {REFERENCE.name}"


def test_the_reference_explains_every_label():
    explained = set(re.findall(r"^\| `([a-z]+)` \|", reference().partition("## Labels")[2], re.MULTILINE))

    assert explained == {label for metric in Telemetry().described for label in metric.labels}


def test_alerts_ask_for_metrics_and_labels_that_there_are():
    described = {metric.name: set(metric.labels) for metric in Telemetry().described}

    for alert in ALERTS:
        [name] = re.findall(r"cdc_reactor_[a-z_]+", alert.query)
        grouped = re.search(r"by \(([a-z, ]+)\)", alert.query)
        labels = set(grouped[1].split(", ")) - {"le"} if grouped else set()
        assert labels <= described[name.removesuffix("_bucket")], alert
