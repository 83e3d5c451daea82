"""Experiments by GrowthBook: real definitions, evaluated here, from a mapping, a file or an endpoint."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.events import encode
from cdc_reactor.execution import Executor
from cdc_reactor.experiments import Allocation, ExperimentClient, ExperimentsInMemory
from cdc_reactor.experiments_growthbook import ExperimentAllocated, GrowthBookExperiments, publish_allocations
from cdc_reactor.messages import Verdict
from cdc_reactor.notifications import Notification
from tests import how_to

# As an SDK endpoint answers: a feature with an experiment behind a rule that forces a value, and one for members of a
# saved group. https://docs.growthbook.io/lib/build-your-own#feature-definitions
DEFINITIONS: dict[str, Any] = {
    "status": 200,
    "features": {
        "digest-layout": {
            "defaultValue": "plain",
            "rules": [
                {"condition": {"plan": "staff"}, "force": "staff"},
                {
                    "key": "digest-layout-2026",
                    "hashAttribute": "id",
                    "seed": "digest-layout-2026",
                    "hashVersion": 2,
                    "coverage": 1,
                    "variations": ["plain", "cards", "magazine"],
                    "weights": [0.34, 0.33, 0.33],
                    "meta": [{"key": "control"}, {"key": "cards"}, {"key": "magazine"}],
                },
            ],
        },
        "by-company": {
            "defaultValue": 0,
            "rules": [{"key": "company-test", "hashAttribute": "company", "variations": [1, 2], "coverage": 1}],
        },
        "testers-only": {
            "defaultValue": False,
            "rules": [{"condition": {"id": {"$inGroup": "testers"}}, "force": True}],
        },
        "nothing": {"defaultValue": None},
    },
    "savedGroups": {"testers": ["7"]},
    "dateUpdated": "2026-11-23T12:00:00Z",
}

Flushed = list[Sequence[Allocation]]


@pytest.fixture
def flushed() -> Flushed:
    return []


def layout(client: ExperimentClient, user_id: str = "7") -> Any:
    return client.begin().allocate("digest-layout", user_id=user_id, default="?")


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        pause.wait(0.005)


def variation_of(user_id: str) -> str:
    """Compute by hand what GrowthBook's clients of all languages agree on (hash version 2).

    https://docs.growthbook.io/lib/build-your-own#hashing
    """
    share = fnv1a(str(fnv1a("digest-layout-2026" + user_id))) % 10_000 / 10_000
    return "plain" if share < 0.34 else "cards" if share < 0.67 else "magazine"


def fnv1a(text: str) -> int:
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class TestAllocating:
    def test_puts_a_user_into_the_same_variation_always_and_users_into_all_of_them(self, flushed: Flushed):
        one = GrowthBookExperiments(DEFINITIONS, sink=flushed.append)
        other = GrowthBookExperiments(DEFINITIONS, sink=flushed.append)

        values = {str(n): layout(one, str(n)) for n in range(300)}

        assert values == {user: layout(other, user) for user in values}
        assert values == {user: variation_of(user) for user in values}
        assert set(values.values()) == {"plain", "cards", "magazine"}

    def test_is_noted_and_flushed_once_for_each_experiment_and_user(self, flushed: Flushed):
        run = GrowthBookExperiments(DEFINITIONS, sink=flushed.append).begin()
        for user in ("7", "8", "7"):
            run.allocate("digest-layout", user_id=user, default="?")
            run.allocate("by-company", user_id=user, default=0, attributes={"company": "one for both"})
        assert flushed == []
        run.flush()
        run.flush()

        assert flushed == [
            (
                Allocation("digest-layout-2026", "cards", "7", "cards"),
                Allocation("company-test", "1", "7", 2),
                Allocation("digest-layout-2026", "control", "8", "plain"),
                Allocation("company-test", "1", "8", 2),
            )
        ]

    def test_without_an_experiment_is_not_noted(self, flushed: Flushed):
        run = GrowthBookExperiments(DEFINITIONS, sink=flushed.append).begin()

        values = [
            run.allocate("digest-layout", user_id="7", default="?", attributes={"plan": "staff"}),
            run.allocate("testers-only", user_id="7", default=None),
            run.allocate("testers-only", user_id="8", default=None),
            run.allocate("nothing", user_id="7", default="the default"),
        ]
        run.flush()

        assert values == ["staff", True, False, "the default"]
        assert flushed == []

    def test_of_an_unknown_feature_gives_the_default_and_logs_nothing(self, flushed: Flushed, caplog):
        run = GrowthBookExperiments(DEFINITIONS, sink=flushed.append).begin()

        assert run.allocate("no-such-feature", user_id="7", default="the default") == "the default"
        assert caplog.records == []

    def test_knows_what_all_users_have_and_who_the_user_is(self, flushed: Flushed):
        client = GrowthBookExperiments(DEFINITIONS, sink=flushed.append, attributes={"plan": "staff", "id": "1"})
        run = client.begin()

        assert run.allocate("digest-layout", user_id="7", default="?") == "staff"
        assert run.allocate("digest-layout", user_id="7", default="?", attributes={"plan": "free"}) == "cards"
        assert run.allocate("testers-only", user_id="8", default=None, attributes={"id": "7"}) is False

    def test_that_cannot_be_flushed_fails_the_run_and_the_next_run_notes_it_again(self, flushed: Flushed):
        failures = [ConnectionError("away")]

        def sink(allocations: Sequence[Allocation]) -> None:
            if failures:
                raise failures.pop()
            flushed.append(allocations)

        client = GrowthBookExperiments(DEFINITIONS, sink=sink)
        run = client.begin()
        run.allocate("digest-layout", user_id="7", default="?")
        with pytest.raises(ConnectionError, match="away"):
            run.flush()
        again = client.begin()
        again.allocate("digest-layout", user_id="7", default="?")
        again.flush()

        assert flushed == [(Allocation("digest-layout-2026", "cards", "7", "cards"),)]


class TestDefinitions:
    def test_come_from_a_file(self, tmp_path: Path, flushed: Flushed):
        file = tmp_path / "features.json"
        file.write_text(json.dumps(DEFINITIONS))

        assert [layout(GrowthBookExperiments(place, sink=flushed.append)) for place in (file, str(file))] == [
            "cards"
        ] * 2

    def test_that_are_encrypted_need_the_key(self, flushed: Flushed):
        key, encrypted = encrypt(DEFINITIONS["features"])
        # The service encrypts what it answers with AES-128-CBC.
        payload = {"encryptedFeatures": encrypted}

        assert layout(GrowthBookExperiments(payload, sink=flushed.append, decryption_key=key)) == "cards"
        with pytest.raises(WorldError, match="from the mapping: they are encrypted; give the decryption_key"):
            GrowthBookExperiments(payload, sink=flushed.append).begin()
        with pytest.raises(WorldError, match="from the mapping: the decryption_key does not fit"):
            GrowthBookExperiments(payload, sink=flushed.append, decryption_key=b64encode(bytes(16)).decode()).begin()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file or directory"),
            ("<html>", "this is no JSON"),
            ("[]", "this is no answer of a GrowthBook SDK endpoint: it has no features"),
            ('{"status": 404}', "this is no answer of a GrowthBook SDK endpoint: it has no features"),
            ('{"features": {"a": 1}}', r"a feature is malformed \(AttributeError\)"),
            ('{"features": []}', None),
        ],
    )
    def test_that_cannot_be_read_are_an_error_of_the_world(self, tmp_path: Path, flushed: Flushed, content, reason):
        file = tmp_path / "features.json"
        if content is not None:
            file.write_text(content)
        client = GrowthBookExperiments(file, sink=flushed.append)

        if reason is None:
            assert layout(client) == "?"
        else:
            with pytest.raises(WorldError, match=f"definitions cannot be read from .*features.json: {reason}$"):
                client.begin()

    def test_that_could_not_be_read_are_read_by_the_next_run(self, tmp_path: Path, flushed: Flushed):
        file = tmp_path / "features.json"
        client = GrowthBookExperiments(file, sink=flushed.append)
        with pytest.raises(WorldError):
            client.begin()
        file.write_text(json.dumps(DEFINITIONS))

        assert layout(client) == "cards"


def encrypt(features: dict[str, Any]) -> tuple[str, str]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key, start = bytes(range(16)), bytes(16)
    data = json.dumps(features).encode()
    fill = 16 - len(data) % 16
    writer = Cipher(algorithms.AES128(key), modes.CBC(start)).encryptor()
    encrypted = writer.update(data + bytes([fill]) * fill) + writer.finalize()
    return b64encode(key).decode(), f"{b64encode(start).decode()}.{b64encode(encrypted).decode()}"


class Endpoint:
    """A small server that answers as GrowthBook does; each answer is a status and a body."""

    def __init__(self) -> None:
        self.status = 200
        self.body = json.dumps(DEFINITIONS).encode()
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        endpoint = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.asked.append(self.path)
                endpoint.may_answer.wait(30)
                self.send_response(endpoint.status)
                self.send_header("Content-Length", str(len(endpoint.body)))
                self.end_headers()
                self.wfile.write(endpoint.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/features/sdk-1"

    def answer(self, features: dict[str, Any]) -> None:
        self.body = json.dumps({"features": features}).encode()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.may_answer.set()
    found.server.shutdown()
    found.server.server_close()
    thread.join()


class TestAnEndpoint:
    def test_is_asked_once_by_all_who_begin_at_once(self, endpoint: Endpoint, flushed: Flushed):
        client = GrowthBookExperiments(endpoint.url, sink=flushed.append)
        endpoint.may_answer.clear()
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(layout, client) for _ in range(8)]
            wait_until(lambda: endpoint.asked)
            endpoint.may_answer.set()

            assert [answer.result(20) for answer in answers] == ["cards"] * 8
        assert endpoint.asked == ["/api/features/sdk-1"]

    def test_is_asked_again_beside_the_runs_which_do_not_wait(self, endpoint: Endpoint, flushed: Flushed):
        client = GrowthBookExperiments(endpoint.url, sink=flushed.append, refresh=0.0)
        layout(client)
        endpoint.answer({"digest-layout": {"defaultValue": "new"}})
        endpoint.may_answer.clear()

        # However many runs begin while it does not answer: none waits, and it is asked once.
        assert [layout(client) for _ in range(20)] == ["cards"] * 20
        wait_until(lambda: len(endpoint.asked) == 2)
        assert [layout(client) for _ in range(20)] == ["cards"] * 20
        assert len(endpoint.asked) == 2
        endpoint.may_answer.set()
        wait_until(lambda: layout(client) == "new")

    def test_is_not_asked_again_before_it_is_time(self, endpoint: Endpoint, flushed: Flushed):
        client = GrowthBookExperiments(endpoint.url, sink=flushed.append, refresh=3600)

        assert [layout(client) for _ in range(20)] == ["cards"] * 20
        assert len(endpoint.asked) == 1

    def test_that_fails_leaves_the_last_good_definitions_and_is_logged_once(
        self, endpoint: Endpoint, flushed: Flushed, caplog
    ):
        client = GrowthBookExperiments(endpoint.url, sink=flushed.append, refresh=0.0)
        layout(client)
        with caplog.at_level(logging.WARNING, "cdc_reactor"):
            endpoint.status = 503
            asked = len(endpoint.asked)
            wait_until(lambda: layout(client) and len(endpoint.asked) > asked + 3)
            assert layout(client) == "cards"
        endpoint.status = 200
        endpoint.answer({"digest-layout": {"defaultValue": "back"}})
        wait_until(lambda: layout(client) == "back")

        assert [record.getMessage() for record in caplog.records if record.name == "cdc_reactor"] == [
            (
                "experiments go on with the definitions that they have: "
                f"the experiments' definitions cannot be read from {endpoint.url}: it answers 503"
            )
        ]

    def test_that_is_not_there_is_an_error_of_the_world(self, endpoint: Endpoint, flushed: Flushed):
        endpoint.status = 404
        with pytest.raises(
            WorldError, match=r"cannot be read from http://127.0.0.1:\d+/api/features/sdk-1: it answ.* 404"
        ):
            GrowthBookExperiments(endpoint.url, sink=flushed.append).begin()
        with pytest.raises(WorldError, match="nothing answers"):
            GrowthBookExperiments("http://127.0.0.1:1/api/features/sdk-1", sink=flushed.append).begin()


class TestThePackage:
    def test_is_imported_by_the_first_run_and_not_before(self):
        script = (
            "import sys; from cdc_reactor.experiments_growthbook import GrowthBookExperiments as G; "
            "client = G({'features': {}}, sink=print); before = 'growthbook' in sys.modules; "
            "client.begin(); print(before, 'growthbook' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

        assert done.stdout == "False True\n"

    def test_that_is_missing_is_named_with_the_cure(self, monkeypatch, flushed: Flushed):
        monkeypatch.setattr("cdc_reactor.experiments_growthbook.find_spec", lambda _: None)
        with pytest.raises(UsageError, match=r"pip install 'cdc-reactor\[experiments\]'"):
            GrowthBookExperiments({}, sink=flushed.append)


class TestPublishingAllocations:
    def test_publishes_an_event_for_each_one_after_the_other(self):
        class Publisher:
            published: list[bytes]

            def publish(self, event: ExperimentAllocated) -> str:
                self.published.append(encode(event))
                return "m1"

        publisher = Publisher()
        publisher.published = []
        run = GrowthBookExperiments(DEFINITIONS, sink=publish_allocations(publisher)).begin()
        run.allocate("digest-layout", user_id="7", default="?")
        run.allocate("digest-layout", user_id="8", default="?")
        run.flush()

        assert [ExperimentAllocated.model_validate_json(data) for data in publisher.published] == [
            ExperimentAllocated(experiment="digest-layout-2026", variation="cards", user_id="7", value="cards"),
            ExperimentAllocated(experiment="digest-layout-2026", variation="control", user_id="8", value="plain"),
        ]

    def test_raises_what_the_publisher_raises(self):
        class Away:
            def publish(self, _event: ExperimentAllocated) -> None:
                raise WorldError("the broker is away")

        run = GrowthBookExperiments(DEFINITIONS, sink=publish_allocations(Away())).begin()
        run.allocate("digest-layout", user_id="7", default="?")
        with pytest.raises(WorldError, match="the broker is away"):
            run.flush()


class TestInMemory:
    def test_values_are_as_given_and_each_experiment_and_user_is_flushed_once(self):
        client = ExperimentsInMemory({"layout": "cards"})
        run = client.begin()
        values = [run.allocate(feature, user_id="7", default="?") for feature in ("layout", "other", "layout")]
        run.flush()

        assert values == ["cards", "?", "cards"]
        assert client.flushed == [Allocation("layout", "cards", "7", "cards")]

    def test_a_flush_can_be_made_to_fail_once(self):
        client = ExperimentsInMemory(choose=lambda feature, user: f"{feature}/{user}")
        client.fail_next_flush = ConnectionError("away")
        run = client.begin()
        assert run.allocate("layout", user_id="7", default="?") == "layout/7"
        with pytest.raises(ConnectionError, match="away"):
            run.flush()
        run.flush()

        assert client.flushed == [Allocation("layout", "layout/7", "7", "layout/7")]


class TestTheHowTo:
    def test_shows_a_worker_that_allocates_and_a_client_for_tests(self, tmp_path: Path):
        page = how_to.load("run-experiments.md", tmp_path)
        executor = Executor(None, experiments=page.experiments)

        outcome = how_to.run(executor, page.send_digest, page.DigestDue(user_id=7), "m1")

        assert how_to.published(outcome) == [
            Notification(type="digest", recipients=("7",), context={"layout": "cards"})
        ]
        assert page.experiments.flushed == [Allocation("digest-layout", "cards", "7", "cards")]

    def test_shows_a_worker_that_works_with_growthbook(self, tmp_path: Path, flushed: Flushed):
        page = how_to.load("run-experiments.md", tmp_path)
        client = GrowthBookExperiments(DEFINITIONS, sink=flushed.append)

        outcome = how_to.run(Executor(None, experiments=client), page.send_digest, page.DigestDue(user_id=7), "m1")

        assert list(outcome.verdicts) == [Verdict.ACK]
        assert flushed == [(Allocation("digest-layout-2026", "cards", "7", "cards"),)]

    def test_shows_a_client_that_needs_nothing_until_it_is_used(self, tmp_path: Path, monkeypatch):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
        monkeypatch.setenv("PUBSUB_PROJECT_ID", "local")
        pytest.importorskip("cdc_reactor.event_publisher", reason="EventPublisher is still to come")
        page = how_to.load("run-experiments.md", tmp_path)

        assert isinstance(page.client(), GrowthBookExperiments)

    def test_a_flush_that_fails_is_a_failed_run(self, tmp_path: Path):
        page = how_to.load("run-experiments.md", tmp_path)
        page.experiments.fail_next_flush = ValueError("away")
        executor = Executor(None, experiments=page.experiments)

        outcomes = [how_to.run(executor, page.send_digest, page.DigestDue(user_id=7), "m1") for _ in range(2)]

        assert [list(outcome.verdicts) for outcome in outcomes] == [[Verdict.NACK], [Verdict.ACK]]
        assert [len(outcome.events) for outcome in outcomes] == [0, 1]
        assert len(page.experiments.flushed) == 1
