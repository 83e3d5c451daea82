"""Writer schemas by id and by name: from files, folders, a registry over HTTP, and Pub/Sub's schema service."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fastavro
import grpc
import pytest
from google.pubsub_v1 import GetSchemaRequest, Schema, SchemaServiceClient
from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport

from cdc_reactor.errors import DecodeError, UsageError, WorldError
from cdc_reactor.pubsub_schemas import PubsubSchemas
from cdc_reactor.schemas import FIRST_OWN_ID, KeptSchemas, RegistrySchemas, open_schemas

REGISTRY_FILE = Path(__file__).parent / "captures" / "forum_avro.registry.json"
FORUM = json.loads(REGISTRY_FILE.read_bytes())["schemas_by_id"]
ROW = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "long"}]}
OTHER = {"type": "record", "name": "Other", "fields": []}
CURE = "say where the schemas are: --schemas PATH|URL"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class TestNoSchemas:
    def test_an_unknown_id_names_itself_and_the_cure(self):
        with pytest.raises(DecodeError) as error:
            open_schemas(None).schema(7)

        assert str(error.value) == f"Avro with schema id 7, and no schemas were given; {CURE}"

    def test_an_unknown_name_names_itself_and_the_cure(self):
        with pytest.raises(DecodeError) as error:
            open_schemas(None).named("projects/p/schemas/s", "r")

        assert str(error.value) == f"Avro with schema projects/p/schemas/s@r, and no schemas were given; {CURE}"

    def test_schemas_without_an_id_get_one_of_ours_the_same_for_the_same_schema(self):
        schemas = open_schemas(None)

        assert [schemas.add(ROW), schemas.add(OTHER), schemas.add(dict(reversed(ROW.items())))] == [
            FIRST_OWN_ID,
            FIRST_OWN_ID + 1,
            FIRST_OWN_ID,
        ]
        assert [schemas.schema(FIRST_OWN_ID), schemas.schema(FIRST_OWN_ID + 1)] == [ROW, OTHER]


class TestFiles:
    def test_a_registry_file_gives_every_schema_by_its_id(self):
        schemas = open_schemas(str(REGISTRY_FILE))

        assert {number: schemas.schema(int(number)) for number in FORUM} == FORUM

    def test_an_unknown_id_names_the_file(self):
        with pytest.raises(DecodeError) as error:
            open_schemas(str(REGISTRY_FILE)).schema(999)

        assert str(error.value) == f"Avro with schema id 999, which is not in {REGISTRY_FILE}; {CURE}"

    def test_a_file_may_be_nothing_but_schemas_by_id_as_objects_texts_or_answers(self, tmp_path):
        path = tmp_path / "schemas.json"
        path.write_text(
            json.dumps({"1": ROW, "2": json.dumps(ROW), "3": {"schema": json.dumps(ROW)}, "4": "string", "5": '"long"'})
        )

        schemas = open_schemas(str(path))

        assert [schemas.schema(n) for n in range(1, 6)] == [ROW, ROW, ROW, {"type": "string"}, {"type": "long"}]

    def test_a_folder_gives_schemas_by_id_by_subject_by_revision_and_of_registry_files(self, tmp_path):
        for name, content in {
            "1.avsc": ROW,
            "2.json": OTHER,
            "forum.users-value-3.avsc": ROW,
            "users@a1.avsc": ROW,
            "users.avsc": OTHER,
            "some.registry.json": {"schemas_by_id": {"9": ["null", ROW]}},
            "manifest.json": {"files": []},
        }.items():
            (tmp_path / name).write_text(json.dumps(content))
        (tmp_path / "notes.txt").write_text("no JSON")

        schemas = open_schemas(str(tmp_path))

        assert [schemas.schema(n) for n in (1, 2, 3, 9)] == [ROW, OTHER, ROW, ["null", ROW]]
        assert [schemas.named("projects/p/schemas/users", revision) for revision in ("a1", "b2", "")] == [
            ROW,
            OTHER,
            OTHER,
        ]

    def test_a_place_without_schemas_is_a_usage_error(self, tmp_path):
        (tmp_path / "bad.avsc").write_text("{")
        (tmp_path / "empty").mkdir()

        errors = []
        for name in ("gone", "bad.avsc", "empty"):
            with pytest.raises(UsageError) as error:
                open_schemas(str(tmp_path / name))
            errors.append(str(error.value).removeprefix(f"--schemas {tmp_path}/"))

        assert errors == [
            "gone: there is no such file or folder",
            "bad.avsc: cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            "empty: there is no schema; looked for ID.avsc, NAME-ID.avsc and registry files",
        ]


class Registry(http.server.BaseHTTPRequestHandler):
    """Confluent's REST interface, as far as readers need it."""

    answers: ClassVar[dict[str, list[tuple[int, Any]]]]
    asked: ClassVar[list[tuple[str, str | None]]]

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self):
        self.asked.append((self.path, self.headers["Authorization"]))
        waiting = self.answers.get(self.path, [(404, {"error_code": 40403})])
        status, content = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def registry(answers: dict[str, list[tuple[int, Any]]]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Start a registry; give its `HOST:PORT` and the list of what it will have been asked."""
    asked: list[tuple[str, str | None]] = []
    handler = type("OneRegistry", (Registry,), {"answers": answers, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def schema_answer(schema: Any, **more: Any) -> list[tuple[int, Any]]:
    return [(200, {"schema": json.dumps(schema), **more})]


class TestRegistry:
    def test_a_schema_is_fetched_once_and_kept(self):
        with registry({"/base/schemas/ids/7": schema_answer(ROW)}) as (host, asked):
            schemas = open_schemas(f"http://{host}/base/")

            assert [schemas.schema(7), schemas.schema(7)] == [ROW, ROW]
            assert asked == [("/base/schemas/ids/7", None)]

    def test_every_schema_of_the_forum_is_had_from_a_registry(self):
        answers = {f"/schemas/ids/{number}": schema_answer(schema) for number, schema in FORUM.items()}
        with registry(answers) as (host, _):
            schemas = open_schemas(f"http://{host}")

            assert {number: schemas.schema(int(number)) for number in FORUM} == FORUM

    def test_the_login_of_the_address_is_sent_and_its_password_is_in_no_message(self):
        with registry({"/schemas/ids/1": schema_answer(ROW)}) as (host, asked):
            schemas = open_schemas(f"http://ada:s%40cret@{host}")
            schemas.schema(1)
            with pytest.raises(DecodeError) as error:
                schemas.schema(2)

        assert asked[0] == ("/schemas/ids/1", f"Basic {base64.b64encode(b'ada:s@cret').decode()}")
        assert str(error.value) == f"Avro with schema id 2, which is not in the registry http://{host}; {CURE}"

    def test_the_login_does_not_follow_a_redirect(self):
        with registry({"/schemas/ids/1": schema_answer(ROW)}) as (other, asked_there):
            moved: list[tuple[int, Any]] = [(302, f"http://{other}/schemas/ids/1")]
            with registry({"/schemas/ids/1": moved}) as (host, asked_here):
                assert open_schemas(f"http://ada:secret@{host}").schema(1) == ROW

        assert [login is None for _, login in asked_here + asked_there] == [False, True]

    def test_what_a_schema_refers_to_is_put_where_it_is_first_named(self):
        money = {"type": "record", "name": "Money", "namespace": "shop", "fields": [{"name": "in", "type": "Currency"}]}
        currency = {"type": "enum", "name": "shop.Currency", "symbols": ["EUR", "SEK"]}
        order = {
            "type": "record",
            "name": "Order",
            "namespace": "shop",
            "fields": [
                {"name": "total", "type": ["null", "Money"]},
                {"name": "parts", "type": {"type": "array", "items": "shop.Money"}},
            ],
        }
        answers = {
            "/schemas/ids/5": schema_answer(
                order, references=[{"name": "shop.Money", "subject": "money/x", "version": 2}]
            ),
            "/subjects/money%2Fx/versions/2": schema_answer(
                money, references=[{"name": "shop.Currency", "subject": "currency", "version": 1}]
            ),
            "/subjects/currency/versions/1": schema_answer(currency),
        }
        with registry(answers) as (host, _):
            schema = open_schemas(f"http://{host}").schema(5)

        value = {"total": {"in": "SEK"}, "parts": [{"in": "EUR"}]}
        fastavro.schemaless_writer(body := io.BytesIO(), schema, value)
        body.seek(0)
        assert fastavro.schemaless_reader(body, schema, None) == value

    def test_a_failure_that_passes_is_asked_again(self):
        with registry({"/schemas/ids/1": [(503, {}), (429, {}), *schema_answer(ROW)]}) as (host, asked):
            assert RegistrySchemas(f"http://{host}", first_wait=0).schema(1) == ROW
            assert len(asked) == 3

    def test_a_failure_that_stays_is_the_worlds(self):
        with registry({"/schemas/ids/1": [(500, {})]}) as (host, asked):
            with pytest.raises(WorldError) as error:
                RegistrySchemas(f"http://u:secret@{host}", first_wait=0).schema(1)

            assert str(error.value) == f"the registry http://{host} answered HTTP 500 for schema id 1"
            assert len(asked) == 3

    def test_a_registry_that_is_not_there_is_the_worlds_failure(self):
        with registry({}) as (host, _):
            pass  # and now it is closed

        with pytest.raises(WorldError) as error:
            RegistrySchemas(f"http://u:secret@{host}", first_wait=0).schema(1)

        assert str(error.value) == (
            f"the registry http://{host} does not answer: <urlopen error [Errno 111] Connection refused>"
        )

    @pytest.mark.parametrize(
        ("answer", "kind", "reason"),
        [
            ((404, {}), DecodeError, "Avro with schema id 1, which is not in the registry"),
            ((401, {}), UsageError, "refuses us (HTTP 401)"),
            ((200, {"schema": "message M {}", "schemaType": "PROTOBUF"}), DecodeError, "a schema of type PROTOBUF"),
            ((200, {"schema": "{"}), DecodeError, "has a schema id 1 that makes no sense: JSONDecodeError("),
            ((200, b"<html>Log in</html>"), WorldError, "answered b'<html>Log in</html>' for schema id 1: that is no"),
            ((200, b'{"schema":"' + b"x" * 10_000_000 + b'"}'), WorldError, "that is no schema"),
        ],
    )
    def test_an_answer_that_is_no_avro_schema_says_whose_fault_it_is(self, answer, kind, reason):
        with registry({"/schemas/ids/1": [answer]}) as (host, _), pytest.raises(kind) as error:
            RegistrySchemas(f"http://{host}", first_wait=0).schema(1)

        assert reason in str(error.value)

    def test_ids_of_our_own_are_not_asked_for(self):
        with registry({}) as (host, asked):
            schemas = open_schemas(f"http://{host}")

            assert schemas.schema(schemas.add(ROW)) == ROW
            assert asked == []

    def test_an_address_without_a_host_is_a_usage_error(self):
        with pytest.raises(UsageError, match="has no host"):
            open_schemas("http:///x")


@contextmanager
def schema_service(schemas: dict[str, Schema]) -> Iterator[SchemaServiceClient]:
    """Serve Pub/Sub's schema service over gRPC; a name that is missing is NOT_FOUND, `denied` is refused."""

    def get_schema(request: GetSchemaRequest, context: grpc.ServicerContext) -> Schema:
        if request.name == "denied":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        if request.name == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "oh")
        if request.name not in schemas:
            context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return schemas.pop(request.name)

    method = grpc.unary_unary_rpc_method_handler(
        get_schema, request_deserializer=GetSchemaRequest.deserialize, response_serializer=Schema.serialize
    )
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.pubsub.v1.SchemaService", {"GetSchema": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SchemaServiceClient(transport=SchemaServiceGrpcTransport(channel=channel))
    server.stop(None).wait()


class TestPubsubSchemas:
    def test_a_revision_is_fetched_once_and_kept(self):
        avro = Schema(name="s", type_=Schema.Type.AVRO, definition=json.dumps(ROW))
        with schema_service({"projects/p/schemas/s@r1": avro}) as client:
            schemas = PubsubSchemas(client)

            assert [schemas.named("projects/p/schemas/s", "r1") for _ in range(2)] == [ROW, ROW]

    def test_what_is_in_the_folder_is_not_asked_for(self, tmp_path):
        (tmp_path / "s@r1.avsc").write_text(json.dumps(ROW))
        with schema_service({}) as client:
            schemas = PubsubSchemas(client, local=open_schemas(str(tmp_path)))

            assert schemas.named("projects/p/schemas/s", "r1") == ROW

    def test_ids_are_left_to_the_local_schemas(self):
        with schema_service({}) as client:
            schemas = PubsubSchemas(client, local=KeptSchemas({3: OTHER}))

            assert [schemas.schema(3), schemas.schema(schemas.add(ROW))] == [OTHER, ROW]

    @pytest.mark.parametrize(
        ("name", "kind", "reason"),
        [
            ("gone", DecodeError, "Avro with schema gone, which Pub/Sub does not know: gone"),
            ("proto", DecodeError, "schema proto is of type PROTOCOL_BUFFER where Avro is needed"),
            ("denied", UsageError, "Pub/Sub does not let us read schema denied (pubsub.schemas.get): 403 no"),
            ("broken", WorldError, "Pub/Sub's schema service does not answer for broken: 500 oh"),
        ],
    )
    def test_a_schema_that_is_not_to_be_had_says_whose_fault_it_is(self, name, kind, reason):
        proto = Schema(name="proto", type_=Schema.Type.PROTOCOL_BUFFER, definition="")
        with schema_service({"proto": proto}) as client, pytest.raises(kind) as error:
            PubsubSchemas(client).named(name, "")

        assert str(error.value) == reason

    def test_pubsub_is_a_location_and_needs_no_credentials_until_it_is_asked(self):
        assert isinstance(open_schemas("pubsub:"), PubsubSchemas)
