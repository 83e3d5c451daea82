"""Captured files as messages: found, unpacked, recognised, read to the last message, and said where."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import json
import lzma
import os
import random
import subprocess
import sys
import threading
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from xml.sax.saxutils import escape

import fastavro
import pytest
import zstandard

from cdc_reactor.capture_recognition import recognise
from cdc_reactor.captures import (
    FORMATS,
    Capture,
    CaptureError,
    Element,
    Unreadable,
    dead_letter_line,
    find_captures,
)
from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.messages import Message
from cdc_reactor.schemas import FIRST_OWN_ID, KeptSchemas

CAPTURES = Path(__file__).parent / "captures"
MANIFEST = json.loads((CAPTURES / "manifest.json").read_bytes())["files"]
VALUES = CAPTURES / "forum_schemas_off.values.ndjson"
BODIES = VALUES.read_bytes().splitlines()
ENVELOPE = b'{"before":null,"after":{"id":1},"source":{},"op":"c"}'
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def capture_of(path: Path | str) -> Capture:
    (capture,) = find_captures([str(path)])
    return capture


def read(path: Path, data: bytes, form: str | None = None) -> list[Element]:
    path.write_bytes(data)
    return list(capture_of(path).messages(form))


def read_until_broken(capture: Capture) -> tuple[list[Element], str]:
    got: list[Element] = []
    with pytest.raises(CaptureError) as broken:
        got.extend(capture.messages())
    return got, str(broken.value)


def long_capture() -> bytes:
    chance = random.Random(1)
    return b"".join(
        b'{"op":"c","n":%d,"noise":"%s"}\n' % (n, chance.randbytes(40).hex().encode()) for n in range(20_000)
    )


class TestTheForum:
    @pytest.mark.parametrize("name", MANIFEST)
    def test_every_capture_gives_the_number_of_messages_in_the_manifest(self, name):
        counts, is_records = MANIFEST[name]["counts"], MANIFEST[name]["form"] == "records"

        messages = list(capture_of(CAPTURES / name).messages())

        assert {type(message) for message in messages} == {Message}
        assert len(messages) == MANIFEST[name]["lines"]
        assert sum(message.data == b"" for message in messages) == (counts["tombstones"] if is_records else 0)

    @pytest.mark.parametrize("name", ["forum_schemas_on", "forum_schemas_off", "forum_one_topic"])
    def test_records_hold_exactly_the_bytes_of_the_values(self, name):
        records = capture_of(CAPTURES / f"{name}.records.ndjson").messages()
        values = capture_of(CAPTURES / f"{name}.values.ndjson").messages()

        assert [m.data for m in records if m.data] == [m.data for m in values]

    def test_avro_records_hold_exactly_the_bytes_of_the_avro_values(self):
        records = capture_of(CAPTURES / "forum_avro.records.ndjson").messages()
        values = capture_of(CAPTURES / "forum_avro.values.b64").messages()

        assert [m.data for m in records if m.data] == [m.data for m in values]

    def test_a_folder_gives_its_captures_and_leaves_out_manifests_and_registries(self):
        assert [Path(capture.name).name for capture in find_captures([str(CAPTURES)])] == sorted(MANIFEST)


class TestFinding:
    def test_a_folder_is_searched_to_its_depths_in_natural_order(self, tmp_path):
        names = ["part-10.ndjson", "part-2.ndjson.gz", "part-1.txt", "sub/a.jsonl.zst", "B.JSON"]
        for name in [*names, "notes.md", ".hidden.ndjson", ".git/x.ndjson", "manifest.json", "a.registry.json"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(ENVELOPE)

        found = [capture.name.removeprefix(f"{tmp_path}/") for capture in find_captures([str(tmp_path)])]

        assert found == ["B.JSON", "part-1.txt", "part-2.ndjson.gz", "part-10.ndjson", "sub/a.jsonl.zst"]

    def test_json_documents_in_a_folder_are_no_captures(self, tmp_path):
        (tmp_path / "1.json").write_bytes(ENVELOPE + b"\n" + ENVELOPE)
        (tmp_path / "2.json").write_bytes(json.dumps({"settings": {"a": [1]}}, indent=2).encode())
        (tmp_path / "3.json").write_bytes(b'{"type":"record","name":"A","fields":[]}')
        (tmp_path / "4.json").write_bytes(b"[1, 2]")
        (tmp_path / "5.json.gz").write_bytes(gzip.compress(b'{\n "a": 1\n}'))
        (tmp_path / "6.json").write_bytes(b'[{"ackId": "a", "message": {}}]')

        assert [Path(capture.name).name for capture in find_captures([str(tmp_path)])] == ["1.json", "6.json"]

    def test_a_folder_without_captures_is_a_usage_error_that_says_what_was_looked_for(self, tmp_path):
        (tmp_path / "manifest.json").write_bytes(b"{}")

        with pytest.raises(UsageError) as error:
            find_captures([str(tmp_path)])

        assert str(error.value) == (
            f"{tmp_path}: there is no capture in this folder; looked for *.ndjson, *.jsonl, *.json, *.b64, *.avro, "
            "*.txt, packed or not (.gz .zst .bz2 .xz)"
        )

    def test_a_glob_that_the_shell_left_alone_is_expanded_and_no_path_is_read_twice(self, tmp_path):
        for name in ("10.ndjson", "9.ndjson", "other.txt"):
            (tmp_path / name).write_bytes(ENVELOPE)
        typed = [f"{tmp_path}/10.ndjson", f"{tmp_path}/*.ndjson", f"{tmp_path}/sub/../9.ndjson", f"{tmp_path}/9.ndjson"]
        (tmp_path / "sub").mkdir()

        assert [capture.name for capture in find_captures(typed)] == [f"{tmp_path}/10.ndjson", f"{tmp_path}/9.ndjson"]

    def test_a_file_whose_name_looks_like_a_glob_is_that_file(self, tmp_path):
        (tmp_path / "a[1].ndjson").write_bytes(ENVELOPE)

        assert [capture.name for capture in find_captures([f"{tmp_path}/a[1].ndjson"])] == [f"{tmp_path}/a[1].ndjson"]

    @pytest.mark.parametrize(
        ("typed", "reason"),
        [("gone.ndjson", "there is no such file or folder"), ("*.ndjson", "no file matches")],
    )
    def test_a_path_that_names_nothing_is_a_usage_error(self, tmp_path, typed, reason):
        with pytest.raises(UsageError) as error:
            find_captures([f"{tmp_path}/{typed}"])

        assert str(error.value) == f"{tmp_path}/{typed}: {reason}"

    def test_standard_input_is_recognised_unpacked_and_read_without_knowing_its_size(self):
        code = (
            "from cdc_reactor.captures import find_captures\n"
            "capture, = find_captures(['-', '-'])\n"
            "print(capture.size_bytes, len(list(capture.messages())), capture.format, capture.consumed_bytes)\n"
        )
        packed = gzip.compress((CAPTURES / "forum_avro.values.b64").read_bytes())

        done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, check=True)

        assert done.stdout.decode() == f"None 90 avro-base64 {len(packed)}\n"

    def test_a_message_of_standard_input_is_handed_out_before_the_next_is_written(self, monkeypatch):
        reading_end, writing_end = os.pipe()
        with os.fdopen(reading_end, "rb") as stdin, os.fdopen(writing_end, "wb", buffering=0) as writer:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
            messages = capture_of("-").messages()

            writer.write(ENVELOPE + b"\n")
            first = next(messages)
            writer.write(b'{"ts_ms":1}\n')
            second = next(messages)

            assert [first, second] == [Message(ENVELOPE), Message(b'{"ts_ms":1}')]
            del messages


PACKINGS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip of two members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "gzip padded with zeros": lambda data: gzip.compress(data) + bytes(1024),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),  # as the command does
    "zstd of two frames": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    "bzip2": bz2.compress,
    "bzip2 of two streams": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
    "xz": lzma.compress,
    "xz of two streams": lambda data: lzma.compress(data[:1000]) + lzma.compress(data[1000:]),
}


class TestBytes:
    @pytest.mark.parametrize("packing", PACKINGS)
    def test_packed_captures_give_the_same_messages_whatever_their_name(self, tmp_path, packing):
        path = tmp_path / "capture.ndjson"
        path.write_bytes(PACKINGS[packing](VALUES.read_bytes()))
        capture = capture_of(path)

        assert list(capture.messages()) == [Message(body) for body in BODIES]
        assert (capture.consumed_bytes, capture.size_bytes) == (path.stat().st_size, path.stat().st_size)

    @pytest.mark.parametrize("packing", ["gzip", "zstd", "bzip2", "xz"])
    def test_a_cut_stream_gives_every_whole_line_before_the_cut_and_then_says_so(self, tmp_path, packing):
        body = long_capture()
        packed = PACKINGS[packing](body)
        (tmp_path / "cut").write_bytes(packed[: len(packed) * 3 // 4])
        capture = capture_of(tmp_path / "cut")

        got, error = read_until_broken(capture)

        assert got == [Message(line) for line in islice(body.splitlines(), len(got))]
        assert len(got) > 5_000
        assert error == (
            f"{tmp_path}/cut: the {packing} stream ends early after {len(got):,} lines, at byte "
            f"{capture.consumed_bytes:,} or shortly before; the file is cut or damaged: copy it again"
        )

    @pytest.mark.parametrize("packing", ["gzip", "zstd", "bzip2", "xz"])
    def test_a_stream_damaged_in_the_middle_gives_what_comes_before(self, tmp_path, packing):
        body = long_capture()
        packed = bytearray(PACKINGS[packing](body))
        packed[len(packed) // 2 : len(packed) // 2 + 64] = b"\xff" * 64
        (tmp_path / "damaged").write_bytes(packed)

        got, error = read_until_broken(capture_of(tmp_path / "damaged"))

        # What a checksum finds too late is damaged text; all before it is whole.
        assert got[:5_000] == [Message(line) for line in body.splitlines()[:5_000]]
        assert f"the {packing} stream is damaged (" in error

    def test_bytes_behind_the_end_of_a_packed_stream_are_not_passed_over(self, tmp_path):
        (tmp_path / "tail.gz").write_bytes(gzip.compress(ENVELOPE + b"\n") + b"and more")

        got, error = read_until_broken(capture_of(tmp_path / "tail.gz"))

        assert got == [Message(ENVELOPE)]
        assert "the gzip stream ends, and bytes that are no gzip follow after 1 lines" in error

    def test_a_byte_order_mark_is_dropped(self, tmp_path):
        assert read(tmp_path / "bom", b"\xef\xbb\xbf" + ENVELOPE) == [Message(ENVELOPE)]

    @pytest.mark.parametrize("data", [b"", b"\n \r\n", gzip.compress(b"", mtime=0)])
    def test_an_empty_capture_holds_no_messages_and_says_that_it_is_empty(self, tmp_path, data):
        (tmp_path / "empty").write_bytes(data)
        capture = capture_of(tmp_path / "empty")

        assert (list(capture.messages()), capture.is_empty, capture.format) == ([], True, None)
        assert (list(capture.messages("values")), capture.is_empty, capture.format) == ([], True, "values")
        assert (list(capture.messages("records")), capture.is_empty) == ([], True)

    def test_a_capture_with_messages_is_not_empty(self, tmp_path):
        (tmp_path / "one").write_bytes(b"\n" + ENVELOPE)
        capture = capture_of(tmp_path / "one")

        assert (list(capture.messages()), capture.is_empty) == ([Message(ENVELOPE)], False)


class TestPlaces:
    def test_lines_are_counted_with_the_blank_ones_and_messages_without(self, tmp_path):
        (tmp_path / "gaps").write_bytes(b"\n" + ENVELOPE + b"\r\n\n \t\n" + ENVELOPE + b"\n" + ENVELOPE + b"\n\n")

        for form in ("values", "records"):
            capture = capture_of(tmp_path / "gaps")
            assert len(list(capture.messages(form))) == 3
            assert [capture.place(n) for n in (1, 2, 3)] == [f"{tmp_path}/gaps:{line}" for line in (2, 5, 6)]

    def test_a_place_is_known_as_soon_as_its_message_is_handed_out(self, tmp_path):
        (tmp_path / "gaps").write_bytes(b"\n\n" + ENVELOPE + b"\n\n" + ENVELOPE)
        capture = capture_of(tmp_path / "gaps")

        assert [capture.place(n) for n, _ in enumerate(capture.messages(), 1)] == [
            f"{tmp_path}/gaps:3",
            f"{tmp_path}/gaps:5",
        ]

    def test_what_is_skipped_is_still_counted(self):
        capture = capture_of(VALUES)

        assert [message.data for message in capture.messages(skip=88)] == BODIES[88:]
        assert capture.place(89) == f"{VALUES}:89"

    def test_reading_again_begins_again(self):
        capture = capture_of(VALUES)

        next(capture.messages())

        assert list(capture.messages()) == [Message(body) for body in BODIES]


class TestValues:
    def test_a_message_is_its_line_without_the_line_end(self, tmp_path):
        data = b'{"op":"c"} \n{"op":"\xff"}\r\n"text"\nnull'

        assert read(tmp_path / "values", data) == [
            Message(b'{"op":"c"} '),
            Message(b'{"op":"\xff"}'),
            Message(b'"text"'),
            Message(b"null"),
        ]

    def test_lines_that_are_no_json_are_left_to_the_decoder(self, tmp_path):
        assert read(tmp_path / "values", ENVELOPE + b"\nnot JSON\n!\n", "gcs-text") == [
            Message(ENVELOPE),
            Message(b"not JSON"),
            Message(b"!"),
        ]


def record(**fields: object) -> bytes:
    return json.dumps(fields).encode()


class TestRecords:
    def test_a_record_becomes_the_message_that_debezium_would_publish(self, tmp_path):
        line = (
            b'{"topic":"shop.items","partition":3,"offset":77,"timestamp":1795435200000,'
            b'"key":{"id": 1},"headers":[["op","\\"c\\""],["n",5]],"value":{"op":"c",  "after":{"n":18446744073709551617}}}'
        )

        assert read(tmp_path / "r", line) == [
            Message(
                b'{"op":"c",  "after":{"n":18446744073709551617}}',
                {"op": '"c"', "n": "5", "destination": "shop.items"},
                '{"id": 1}',
                "shop.items/3/77",
                NOON,
            )
        ]

    def test_kcat_writes_payload_for_the_value_and_flat_headers(self, tmp_path):
        live = record(
            topic="t", partition=0, offset=5, tstype="create", ts=1795435200000, broker=1,
            headers=["a", "1", "b", None], key='{"id":1}', payload='{"op":"c"}',
        )  # fmt: skip
        tombstone = record(topic="t", partition=0, offset=6, ts=-1, key='{"id":1}', payload=None)

        assert read(tmp_path / "kcat", live + b"\n" + tombstone) == [
            Message(b'{"op":"c"}', {"a": "1", "b": "null", "destination": "t"}, '{"id":1}', "t/0/5", NOON),
            Message(b"", {"destination": "t"}, '{"id":1}', "t/0/6"),
        ]

    @pytest.mark.parametrize(
        "headers",
        [
            [["a", "x"], ["b", {"n": 1}]],
            [{"key": "a", "value": "x"}, {"key": "b", "value": {"n": 1}}],
            {"a": "x", "b": {"n": 1}},
        ],
    )
    def test_headers_may_be_pairs_objects_or_one_object(self, tmp_path, headers):
        assert read(tmp_path / "r", record(key=None, value={"op": "c"}, headers=headers)) == [
            Message(b'{"op": "c"}', {"a": "x", "b": '{"n":1}'})
        ]

    @pytest.mark.parametrize(
        ("value", "data"),
        [
            (None, b""),
            ("", b""),
            ('{"op":"c"}', b'{"op":"c"}'),
            ('"a string"', b'"a string"'),
            (b64encode(b"\0\0\0\0\1\2").decode(), b"\0\0\0\0\1\2"),
            (b64encode(b'{"op":"d"}').decode(), b'{"op":"d"}'),
            (5, b"5"),
        ],
    )
    def test_a_value_may_be_json_text_or_base64(self, tmp_path, value, data):
        assert read(tmp_path / "r", record(key="AAAAAAEC", value=value)) == [Message(data, {}, "AAAAAAEC")]

    def test_a_header_named_destination_is_not_replaced(self, tmp_path):
        line = record(destination="t", value={}, headers={"destination": "mine"})

        assert read(tmp_path / "r", line) == [Message(b"{}", {"destination": "mine"})]

    def test_bad_lines_are_handed_out_as_unreadable_and_reading_goes_on(self, tmp_path):
        bad = [
            b'{"key": 1, "value": ',
            b"no JSON",
            b"[]",
            b'{"topic": "t"}',
            record(topic="t", value="no base64!"),
            record(topic="t", value=b64encode(b"neither").decode()),
            record(topic="t", value={}, headers=7),
            record(topic="t", value={}, headers=[[1]]),
            b'{"key": "\xff", "value": {}}',
            b'{"key": {"\xff": 1}, "value": {}}',
        ]
        good = record(topic="t", value={})

        got = read(tmp_path / "r", b"\n".join([good, *bad, good]) + b"\n")

        assert [element.data for element in got if isinstance(element, Unreadable)] == bad
        assert [str(element.error).partition(": ")[0] for element in got if isinstance(element, Unreadable)] == [
            f"{tmp_path}/r:{line}" for line in range(2, 12)
        ]
        assert [got[0], got[-1]] == [Message(b"{}", {"destination": "t"})] * 2
        assert str(got[4].error) == f"{tmp_path}/r:5: a record without `value`"  # type: ignore[union-attr]


class TestAvroLines:
    def test_base64_without_a_zero_byte_is_unreadable(self, tmp_path):
        good, bad = b64encode(b"\0\0\0\0\1x"), b64encode(b"\1\0\0\0\1x")

        first, second, third = read(tmp_path / "a", b"\n".join([good, bad, b"??"]))

        assert first == Message(b"\0\0\0\0\1x")
        assert [second.data, third.data] == [bad, b"??"]
        assert isinstance(second, Unreadable)
        assert isinstance(third, Unreadable)


PULLED = [
    {
        "ackId": "a1",
        "deliveryAttempt": 1,
        "message": {
            "attributes": {"x": "y"},
            "data": b64encode(b'{"op":"?>"}').decode(),
            "messageId": "11",
            "orderingKey": '{"id":1}',
            "publishTime": "2026-11-23T12:00:00.123456789Z",
        },
    },
    {"ackId": "a2", "message": {"messageId": "12", "publishTime": "2026-11-23T12:00:00Z"}},
]
PULLED_MESSAGES = [
    Message(b'{"op":"?>"}', {"x": "y"}, '{"id":1}', "11", NOON.replace(microsecond=123456)),
    Message(b"", {}, "", "12", NOON),
]


class TestGcloud:
    @pytest.mark.parametrize(
        "text",
        [
            json.dumps(PULLED, indent=2),
            json.dumps(PULLED),
            "\n".join(map(json.dumps, PULLED)),
            "\n".join(json.dumps([item], indent=2) for item in PULLED),
            "\n".join(json.dumps(item, indent=2) for item in PULLED),
        ],
        ids=["pretty array", "array", "one a line", "two arrays", "pretty objects"],
    )
    def test_what_gcloud_pulled_is_read_in_each_of_its_shapes(self, tmp_path, text):
        assert read(tmp_path / "pulled.json", text.encode()) == PULLED_MESSAGES

    def test_url_safe_base64_is_read_too(self, tmp_path):
        line = record(ackId="a", message={"data": b64encode(b'{"op":"?>"}', altchars=b"-_").decode()})

        assert read(tmp_path / "p", line) == [Message(b'{"op":"?>"}')]

    def test_nothing_pulled_is_an_empty_capture(self, tmp_path):
        (tmp_path / "p").write_bytes(b"[]\n")
        capture = capture_of(tmp_path / "p")

        assert (list(capture.messages()), capture.is_empty) == ([], True)

    @pytest.mark.parametrize("cut", [-3, -20])
    def test_a_cut_document_gives_the_messages_before_the_cut(self, tmp_path, cut):
        (tmp_path / "p").write_bytes(json.dumps([*PULLED, {"ackId": "a3", "message": {}}]).encode()[:cut])

        got, error = read_until_broken(capture_of(tmp_path / "p"))

        assert got[:2] == PULLED_MESSAGES
        assert f"{tmp_path}/p: the JSON document " in error

    def test_a_bad_message_is_unreadable_and_its_place_is_its_number(self, tmp_path):
        (tmp_path / "p").write_bytes(json.dumps([PULLED[1], {"message": 5}, PULLED[1]]).encode())
        capture = capture_of(tmp_path / "p")

        first, bad, last = capture.messages()

        assert [first, last] == [PULLED_MESSAGES[1]] * 2
        assert bad.data == b'{"message": 5}'
        assert str(bad.error).startswith(f"{capture.place(2)}: Expected `object`, got `int`")  # type: ignore[union-attr]


class TestDeadLetters:
    @pytest.mark.parametrize(
        "message",
        [
            Message(b'{"op":"c"}', {"a": "b"}, '{"id":1}', "7", NOON.replace(microsecond=1)),
            Message(bytes(range(256))),
            Message(b""),
        ],
    )
    def test_a_dead_letter_is_read_back_as_the_same_message(self, tmp_path, message):
        line = dead_letter_line(
            message, error="why", error_class="ValueError", handler="h", table="public.t", place="f:1", attempts=3
        )

        assert read(tmp_path / "dead", line + line) == [message, message]

    def test_a_dead_letter_says_why_it_lies_there(self):
        line = dead_letter_line(
            Message(b"{}"), error="é", error_class="E", handler="h", table="t", place="\udcff:1", attempts=2
        )

        assert json.loads(line) == {
            "dead_letter": {
                "reason": "é", "error_class": "E", "handler": "h", "table": "t", "place": "\\udcff:1", "attempts": 2,
            },
            "message": {"data": "e30=", "attributes": {}, "orderingKey": "", "messageId": ""},
        }  # fmt: skip
        assert line.endswith(b"}\n")


PUBSUB = {
    "type": "record",
    "name": "PubsubMessage",
    "fields": [
        {"name": "subscription_name", "type": "string"},
        {"name": "message_id", "type": "string"},
        {"name": "publish_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "attributes", "type": {"type": "map", "values": "string"}},
        {"name": "data", "type": "bytes"},
    ],
}
ROW = {"type": "record", "name": "Row", "fields": [{"name": "n", "type": ["null", "long", "string"]}]}
ENVELOPE_SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW]},
        {"name": "after", "type": ["null", "Row"]},
        {"name": "source", "type": "string"},
        {"name": "op", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}


def container(schema: Any, records: list[Any], codec: str = "null", interval: int = 16000) -> bytes:
    file = io.BytesIO()
    fastavro.writer(file, schema, records, codec=codec, sync_interval=interval)
    return file.getvalue()


def container_by_hand(codec: str, block: bytes, count: int) -> bytes:
    """Build what fastavro needs further packages for."""
    metadata = {"avro.schema": b'"bytes"', "avro.codec": codec.encode()}
    file = io.BytesIO()
    file.write(b"Obj\x01")
    fastavro.schemaless_writer(file, {"type": "map", "values": "bytes"}, metadata)
    file.write(b"S" * 16)
    fastavro.schemaless_writer(file, "long", count)
    fastavro.schemaless_writer(file, "long", len(block))
    return file.getvalue() + block + b"S" * 16


class TestAvroContainers:
    def test_a_pubsub_export_with_metadata_gives_the_messages_as_published(self, tmp_path):
        exported = {
            "subscription_name": "s", "message_id": "9", "publish_time": NOON,
            "attributes": {"a": "b", "ordering_key": '{"id":1}'}, "data": ENVELOPE,
        }  # fmt: skip

        assert (
            read(tmp_path / "x.avro", container(PUBSUB, [exported] * 2))
            == [Message(ENVELOPE, {"a": "b"}, '{"id":1}', "9", NOON)] * 2
        )

    @pytest.mark.parametrize(
        ("schema", "records"),
        [
            ({"type": "record", "name": "M", "fields": [{"name": "data", "type": "bytes"}]}, [{"data": ENVELOPE}]),
            ({"type": "record", "name": "M", "fields": [{"name": "data", "type": ["null", "string"]}]}, [{"data": ENVELOPE.decode()}]),
            ("bytes", [ENVELOPE]),
        ],
    )  # fmt: skip
    def test_an_export_without_metadata_gives_the_bodies(self, tmp_path, schema, records):
        assert read(tmp_path / "x.avro", container(schema, records)) == [Message(ENVELOPE)]

    @pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
    def test_envelopes_in_a_container_become_wire_format_under_an_id_of_our_own(self, tmp_path, codec):
        records = [{"before": None, "after": {"n": n}, "source": "s", "op": "c", "ts": NOON} for n in (None, 5, "5")]
        (tmp_path / "x.avro").write_bytes(container(ENVELOPE_SCHEMA, records, codec))
        schemas = KeptSchemas()
        capture = capture_of(tmp_path / "x.avro")

        messages = [m for m in capture.messages(schemas=schemas) if isinstance(m, Message)]

        assert [message.data[:5] for message in messages] == [b"\0" + FIRST_OWN_ID.to_bytes(4, "big")] * 3
        assert [
            fastavro.schemaless_reader(io.BytesIO(m.data[5:]), schemas.schema(FIRST_OWN_ID), None) for m in messages
        ] == records
        assert capture.place(2) == f"{tmp_path}/x.avro: message 2"

    def test_a_time_that_python_cannot_hold_does_not_end_the_reading(self, tmp_path):
        infinity = {"before": None, "after": None, "source": "", "op": "c", "ts": 2**62}
        (tmp_path / "x.avro").write_bytes(container(ENVELOPE_SCHEMA, [infinity]))

        (message,) = capture_of(tmp_path / "x.avro").messages(schemas=KeptSchemas())

        assert message.data[:5] == b"\0" + FIRST_OWN_ID.to_bytes(4, "big")

    def test_two_containers_of_one_schema_share_its_id(self, tmp_path):
        row = {"before": None, "after": None, "source": "s", "op": "c", "ts": NOON}
        schemas = KeptSchemas()
        for name in ("1.avro", "2.avro"):
            (tmp_path / name).write_bytes(container(ENVELOPE_SCHEMA, [row]))

        first, second = (list(capture.messages(schemas=schemas)) for capture in find_captures([str(tmp_path)]))

        assert first == second

    def test_envelopes_need_a_schema_store(self, tmp_path):
        (tmp_path / "x.avro").write_bytes(container(ENVELOPE_SCHEMA, []))

        with pytest.raises(UsageError, match="reading it needs a schema store"):
            list(capture_of(tmp_path / "x.avro").messages())

    def test_zstandard_is_unpacked_by_the_library_that_we_have(self, tmp_path):
        block = zstandard.compress(b"\x04{}\x04[]")

        assert read(tmp_path / "z.avro", container_by_hand("zstandard", block, 2)) == [Message(b"{}"), Message(b"[]")]

    @pytest.mark.parametrize(
        ("codec", "reason"), [("snappy", "pip install cramjam"), ("lzo", "is packed with lzo; we can unpack null, ")]
    )
    def test_a_codec_that_we_cannot_unpack_is_a_usage_error(self, tmp_path, monkeypatch, codec, reason):
        monkeypatch.setitem(sys.modules, "cramjam", None)

        with pytest.raises(UsageError, match=reason):
            read(tmp_path / "s.avro", container_by_hand(codec, b"", 1))

    @pytest.mark.parametrize("codec", ["null", "deflate"])
    def test_a_container_cut_anywhere_gives_the_messages_before_the_cut(self, tmp_path, codec):
        bodies = [b"%d" % n * 20 for n in range(60)]
        data = container("bytes", list(bodies), codec, interval=300)
        header = len(container("bytes", [], codec))
        ended_well = 0
        for cut in range(5, len(data)):
            (tmp_path / "cut.avro").write_bytes(data[:cut])
            got: list[Element] = []
            try:
                got.extend(capture_of(tmp_path / "cut.avro").messages())
            except CaptureError:
                pass
            else:
                ended_well += 1
            assert got == [Message(body) for body in bodies[: len(got)]]
            # A body may lie in the file, at most, for one block without being handed out.
            if codec == "null" and cut > header + 400:
                assert sum(len(message.data) for message in got) > cut - header - 400

        # A cut between two blocks cannot be seen: the container does not say how many there are.
        assert ended_well < 20

    def test_damage_in_a_container_is_a_capture_error_or_another_message_and_never_anything_else(self, tmp_path):
        rows = [{"before": None, "after": {"n": n}, "source": "s", "op": "c", "ts": NOON} for n in range(50)]
        data = container(ENVELOPE_SCHEMA, list(rows), "null", interval=100)
        chance = random.Random(7)
        for _ in range(400):
            damaged = bytearray(data)
            damaged[chance.randrange(4, len(data))] ^= 1 << chance.randrange(8)
            (tmp_path / "d.avro").write_bytes(damaged)
            with suppress(CaptureError, UsageError):
                list(capture_of(tmp_path / "d.avro").messages(schemas=KeptSchemas()))

    def test_a_file_that_is_no_container_says_so(self, tmp_path):
        with pytest.raises(UsageError, match="it is no Avro container"):
            read(tmp_path / "x", ENVELOPE, "avro")


class TestRecognition:
    @pytest.mark.parametrize(
        ("head", "form"),
        [
            (ENVELOPE, "values"),
            (b'\n\n{"schema":{},"payload":{}}\n', "values"),
            (b'{"ts_ms":1}\n', "values"),
            (b'{"op":"m","message":{"prefix":"p","content":""}}', "values"),
            (b'{"id":1,"__deleted":"false"}', "values"),
            (b'{"broken\n{"key":1,"value":null}\n', "records"),
            (b'{"op":"c","after"', "values"),
            (b'{"key":1,"value":null}', "records"),
            (b'{"destination":"t","value":null}', "records"),
            (b'{"topic":"t","payload":null}', "records"),
            (b"AAAAAAEC\n", "avro-base64"),
            (b"[", "gcloud"),
            (b'{"message":{"data":""}}', "gcloud"),
            (b'{"dead_letter":{},"message":{"data":""}}', "dead-letters"),
            (b"Obj\x01", "avro"),
            (b"\x89PNG\r\n", None),
            (b"Dear diary\n", None),
            (b'{\n  "a": 1\n}\n', None),
            (b"", None),
        ],
    )
    def test_the_first_lines_tell_the_format(self, head, form):
        assert recognise(head) == form

    def test_a_first_line_longer_than_what_is_read_at_once_is_still_recognised(self, tmp_path):
        value = b'{"op":"c","after":{"text":"%s"}}' % (b"x" * 1_000_000)

        assert read(tmp_path / "long", b"\n" * 300_000 + b'{"key":1,"value":%s}\n' % value) == [Message(value, {}, "1")]

    def test_what_is_no_capture_is_named_with_its_first_bytes_and_the_formats(self, tmp_path):
        with pytest.raises(UsageError) as error:
            read(tmp_path / "cat.png", b"\x89PNG\r\n\x1a\n\0")

        assert str(error.value) == (
            f"{tmp_path}/cat.png: it is no capture of a format that we know: it starts with b'\\x89PNG\\r\\n\\x1a\\n\\x00'; "
            "if it is one, name its format: --format values|records|avro-base64|gcloud|gcs-text|dead-letters|avro"
        )

    def test_a_json_document_named_by_hand_is_told_how_to_become_lines(self):
        with pytest.raises(UsageError, match=r"one JSON document, and no capture: .* \(`jq -c \.`"):
            list(capture_of(CAPTURES / "manifest.json").messages())

    def test_a_wrong_format_is_refused_before_anything_is_read(self):
        with pytest.raises(UsageError) as error:
            capture_of(VALUES).messages("parquet")

        assert str(error.value) == f"--format parquet: no such format; there are {', '.join(FORMATS)}"

    @pytest.mark.parametrize("form", FORMATS)
    def test_noise_of_any_kind_is_a_message_unreadable_or_an_error_of_ours(self, tmp_path, form):
        chance = random.Random(form)
        for _ in range(60):
            noise = b"".join(
                chance.choice([b"[", b"{", b'"', b"\n", b":", b"null", b"Obj\x01", b"AAAA", b"\xff", b"1"])
                for _ in range(30)
            )
            (tmp_path / "noise").write_bytes(noise)
            for named in (form, None):
                try:
                    kinds = {type(element) for element in capture_of(tmp_path / "noise").messages(named)}
                except (CaptureError, UsageError):
                    continue
                assert kinds <= {Message, Unreadable}

    def test_a_file_that_may_not_be_read_is_a_usage_error(self, tmp_path):
        (tmp_path / "gone.ndjson").write_bytes(ENVELOPE)
        capture = capture_of(tmp_path / "gone.ndjson")
        (tmp_path / "gone.ndjson").unlink()

        with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
            list(capture.messages())


class Bucket(http.server.BaseHTTPRequestHandler):
    """What S3 and Cloud Storage agree on: list, HEAD and ranged GET of objects."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        key = urllib.parse.unquote(url.path).removeprefix("/bucket/")
        if "list-type" in query:
            self.list(query.get("prefix", ""))
        elif url.path.startswith("/closed"):
            self.answer(403, b"")
        elif key not in self.objects:
            self.answer(404, b"")
        elif "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            data, size = self.objects[key], len(self.objects[key])
            self.answer(206, data[first : last + 1], f"bytes {first}-{min(last + 1, size) - 1}/{size}")
        else:
            self.answer(200, self.objects[key])

    def list(self, prefix: str) -> None:
        listed = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"e"</ETag><Size>{len(data)}</Size></Contents>'
            for key, data in self.objects.items()
            if key.startswith(prefix)
        )
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())

    def answer(self, status: int, data: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"e"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes]) -> Iterator[None]:
    handler = type("OneBucket", (Bucket,), {"objects": objects})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true",
            "GOOGLE_BASE_URL": endpoint, "GOOGLE_SKIP_SIGNATURE": "true", "NO_PROXY": "127.0.0.1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
class TestTheCloud:
    def test_an_object_is_read_by_its_endpoint(self, monkeypatch, scheme):
        packed = gzip.compress(VALUES.read_bytes())
        with bucket(monkeypatch, {"day 1/x.ndjson.gz": packed}):
            capture = capture_of(f"{scheme}://bucket/day 1/x.ndjson.gz")

            assert list(capture.messages()) == [Message(body) for body in BODIES]
            assert (capture.size_bytes, capture.consumed_bytes) == (len(packed), len(packed))
            assert capture.place(3) == f"{scheme}://bucket/day 1/x.ndjson.gz:3"

    def test_a_prefix_gives_its_objects_in_natural_order_once(self, monkeypatch, scheme):
        names = [
            "c/10.ndjson",
            "c/2.avro",
            "c/2026-11-23T12:00:00+00:00_a1b2",
            "c/readme.md",
            "c/manifest.json",
            "d/1.txt",
        ]
        with bucket(monkeypatch, dict.fromkeys(names, ENVELOPE)):
            found = find_captures([f"{scheme}://bucket/c/", f"{scheme}://bucket/c/2.avro"])

        assert [capture.name for capture in found] == [
            f"{scheme}://bucket/c/{name}" for name in ("2.avro", "10.ndjson", "2026-11-23T12:00:00+00:00_a1b2")
        ]

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("bucket/gone", "there is no such object (a folder's address ends in /)"),
            ("bucket/none/", "there is no capture under this address"),
            ("closed/x.ndjson", "access is refused"),
            ("", "names no bucket"),
        ],
    )
    def test_an_address_of_nothing_is_a_usage_error(self, monkeypatch, scheme, path, reason):
        with bucket(monkeypatch, {}), pytest.raises(UsageError) as error:
            find_captures([f"{scheme}://{path}"])

        assert str(error.value).startswith(f"{scheme}://{path}: {reason}")

    def test_a_cloud_that_does_not_answer_is_no_fault_of_the_data(self, monkeypatch, scheme):
        with bucket(monkeypatch, {}):
            pass  # and now it is closed

        with pytest.raises(WorldError, match=f"{scheme}://bucket/x: "):
            find_captures([f"{scheme}://bucket/x"])

    def test_without_obstore_the_extra_is_named(self, monkeypatch, scheme):
        monkeypatch.delitem(sys.modules, "cdc_reactor.capture_cloud", raising=False)
        monkeypatch.setitem(sys.modules, "obstore", None)

        with pytest.raises(UsageError) as error:
            find_captures([f"{scheme}://bucket/x"])

        assert str(error.value) == (
            f"{scheme}://bucket/x: reading from the cloud needs obstore: pip install 'cdc-reactor[cloud]'"
        )
