"""The way to Pub/Sub: names, credentials, management calls, channels."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from itertools import islice

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.messages import Message
from cdc_reactor.pubsub import Subscription
from cdc_reactor.pubsub_connection import STREAMS_A_CHANNEL, Connection, SubscriptionInfo, backoff, routed
from cdc_reactor.pubsub_publisher import Publisher


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker.start() as running:
        yield running


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """A machine without credentials: no variables, no gcloud, no metadata server."""
    for name in [n for n in os.environ if n.startswith(("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "PUBSUB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def test_short_names_are_completed_and_full_ones_are_kept(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=f"http://{broker.address}/")
        names = [
            connection.address,
            connection.topic_path("t"),
            connection.topic_path("projects/other/topics/t"),
            connection.subscription_path("s"),
            connection.subscription_path("projects/other/subscriptions/s"),
        ]
        await connection.close()
        return names

    assert asyncio.run(run()) == [
        broker.address,
        "projects/p/topics/t",
        "projects/other/topics/t",
        "projects/p/subscriptions/s",
        "projects/other/subscriptions/s",
    ]


def test_what_is_created_can_be_asked_for_and_created_once_more(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        before = await connection.topic_exists("orders")
        for _ in range(2):
            await connection.create_topic("orders")
            await connection.create_subscription("orders-s", "orders", ack_deadline=20)
        found = (await connection.topic_exists("orders"), await connection.subscription("orders-s"))
        await connection.close()
        return (before, *found)

    assert asyncio.run(run()) == (
        False,
        True,
        SubscriptionInfo(
            name="projects/p/subscriptions/orders-s",
            topic="projects/p/topics/orders",
            ack_deadline=20,
            ordering=True,
            exactly_once=False,
            dead_letter_topic="",
            filter="",
        ),
    )


def test_a_subscription_of_a_missing_topic_is_told_with_both_names(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        try:
            await connection.create_subscription("orders-s", "nowhere")
        finally:
            await connection.close()

    with pytest.raises(UsageError, match=r"subscriptions/orders-s of topic projects/p/topics/nowhere"):
        asyncio.run(run())


def test_a_management_call_waits_for_a_broker_that_is_about_to_come(broker):
    async def run():
        with BrokerAdmin(broker.address) as admin:
            connection = await Connection.open("p", emulator_host=broker.address, patience=10)
            admin.refuse(0.5)
            await connection.create_topic("orders")
            await connection.close()

    asyncio.run(run())


def test_a_broker_that_is_not_there_is_told_in_time():
    async def run():
        connection = await Connection.open("p", emulator_host="127.0.0.1:1", patience=0.3)
        try:
            await connection.topic_exists("orders")
        finally:
            await connection.close()

    start = time.monotonic()
    with pytest.raises(WorldError, match=r"127\.0\.0\.1:1 does not answer about topic .* is it running"):
        asyncio.run(run())
    assert time.monotonic() - start < 3


def test_a_project_must_be_named(broker):
    with pytest.raises(UsageError, match="no project is given: set PUBSUB_PROJECT_ID or GOOGLE_CLOUD_PROJECT"):
        asyncio.run(Connection.open(emulator_host=broker.address))


def test_a_machine_without_credentials_is_told_the_cure(no_credentials):
    with pytest.raises(
        UsageError, match="no credentials for Google Cloud: run `gcloud auth application-default login`"
    ):
        asyncio.run(Connection.open("p"))


@pytest.fixture
def own_credentials(no_credentials, monkeypatch, tmp_path):
    """Credentials of a person, which are not asked for a token before they are needed."""
    written = tmp_path / "adc.json"
    person = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    written.write_text(json.dumps({**person, "quota_project_id": "q"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(written))


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (None, "pubsub.googleapis.com:443"),
        ("europe-west1-pubsub.googleapis.com", "europe-west1-pubsub.googleapis.com:443"),
        ("europe-west1-pubsub.googleapis.com:443", "europe-west1-pubsub.googleapis.com:443"),
    ],
)
def test_the_service_is_reached_at_its_endpoint_with_the_credentials_of_the_machine(own_credentials, endpoint, address):
    async def run():
        connection = await Connection.open("p", endpoint=endpoint)
        await connection.close()
        return connection.address

    assert asyncio.run(run()) == address


def test_an_endpoint_that_is_not_there_is_told_over_tls_as_well(own_credentials):
    async def run():
        connection = await Connection.open("p", endpoint="127.0.0.1:1", patience=0.3)
        try:
            await connection.topic_exists("orders")
        finally:
            await connection.close()

    with pytest.raises(WorldError, match=r"127\.0\.0\.1:1 does not answer about topic"):
        asyncio.run(run())


def test_credentials_without_a_project_need_one(own_credentials):
    with pytest.raises(UsageError, match="no project is given"):
        asyncio.run(Connection.open())


@pytest.mark.parametrize(
    ("code", "details", "kind", "words"),
    [
        (StatusCode.NOT_FOUND, "gone", UsageError, "knows no topic t: create it, or check the name and the project"),
        (StatusCode.PERMISSION_DENIED, "no", UsageError, "give our account the permission pubsub.topics.get"),
        (StatusCode.UNAUTHENTICATED, "who?", UsageError, "gcloud auth application-default login"),
        (StatusCode.INVALID_ARGUMENT, "bad name", UsageError, "refuses topic t: bad name"),
        (StatusCode.UNAVAILABLE, "down", WorldError, "UNAVAILABLE, down; is it running, and is the address right?"),
        (
            StatusCode.UNAVAILABLE,
            "Getting metadata from plugin failed with error: reauthenticate",
            UsageError,
            "no access token for Pub/Sub: run `gcloud auth application-default login`",
        ),
    ],
)
def test_a_failure_is_told_in_plain_words(broker, code, details, kind, words):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        error = AioRpcError(code, Metadata(), Metadata(), details=details)
        failure = connection.failure(error, "topic t", "pubsub.topics.get")
        await connection.close()
        return failure

    failure = asyncio.run(run())
    assert type(failure) is kind
    assert words in str(failure)


def test_eighty_subscriptions_share_a_channel_and_places_are_given_back(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        taken = [connection.take_stream_channel() for _ in range(STREAMS_A_CHANNEL + 1)]
        assert [id(c) for c in taken[:80]] == [id(taken[0])] * 80
        assert taken[80] is not taken[0]
        taken[0].release()
        assert connection.take_stream_channel() is taken[0]
        await connection.close()

    asyncio.run(run())


def test_two_hundred_subscriptions_receive_and_acknowledge_at_once(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        await connection.create_topic("orders")
        names = [f"orders-{i}" for i in range(200)]
        for name in names:
            await connection.create_subscription(name, "orders")
        subscriptions = [Subscription(connection, name) for name in names]
        await asyncio.gather(*[s.open() for s in subscriptions])
        publisher = Publisher(connection)
        await publisher.publish("orders", [Message(b"x")])

        async def settle(subscription):
            subscription.ack(await subscription.receive())
            return await subscription.drained(20)

        assert await asyncio.gather(*[settle(s) for s in subscriptions]) == [True] * 200
        assert [s.held for s in subscriptions] == [0] * 200
        await asyncio.gather(*[s.close() for s in subscriptions])
        await publisher.close()
        await connection.close()

    asyncio.run(run())


def test_a_call_on_a_closed_connection_fails_as_any_other_call(broker):
    async def run():
        connection = await Connection.open("p", emulator_host=broker.address)
        await connection.close()
        with pytest.raises(UsageError, match="it is closed here"):
            await connection.topic_exists("orders")

    asyncio.run(run())


def test_pauses_grow_to_their_limit_with_jitter_and_begin_anew():
    pauses = backoff(0.1, 2.0)
    some = list(islice(pauses, 10))
    limits = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(some, limits, strict=True))

    pauses.reset()
    assert next(pauses) <= 0.1


def test_a_request_is_routed_by_its_escaped_name():
    assert routed("topic", "projects/p/topics/a b") == (
        ("x-goog-request-params", "topic=projects%2Fp%2Ftopics%2Fa%20b"),
    )
