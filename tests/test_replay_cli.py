"""The command `replay`, run as a person runs it: in a process of its own, on files."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

CAPTURES = Path(__file__).parent / "captures"
MANIFEST: dict[str, Any] = json.loads((CAPTURES / "manifest.json").read_text())["files"]
OPS = {"create": "c", "update": "u", "delete": "d", "truncate": "t"}

HANDLERS = '''
"""Handlers that write down what they see."""
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert

from cdc_reactor import Batch, Context, Event, Row, handles

metadata = MetaData()
seen = Table("seen", metadata, Column("n", Integer, primary_key=True), Column("op", Text), Column("user", Integer))


class User(Row, table="public.users"):
    id: int
    handle: str


class UserSeen(Event, topic="user.seen.v1"):
    user_id: int


@handles(User, max_size=OPTIONS_SIZE, max_attempts=2)
def note(batch: Batch[User], ctx: Context) -> None:
    for change in batch:
        ctx.session.execute(insert(seen).values(op=change.op.value, user=change.key["id"]))
        if change.after is not None and change.after.handle == "POISON":
            raise RuntimeError("cannot stand this one")
        ctx.publish(UserSeen(user_id=change.key["id"]))
'''


def run(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: bytes | None = None) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "cdc_reactor.cli", *arguments],
        cwd=cwd, env={**os.environ, **(env or {})}, input=stdin, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return Result(done)


class Result:
    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.out)
        return report


def write_handlers(folder: Path, size: int = 2) -> None:
    package = folder / "team_handlers"
    package.mkdir()
    (package / "__init__.py").write_text("from team_handlers.users import metadata as metadata\n")
    (package / "users.py").write_text(HANDLERS.replace("OPTIONS_SIZE", str(size)))


def user_change(n: int, handle: str = "ada", op: str = "c") -> dict[str, Any]:
    row = {"id": n, "handle": handle}
    source = {"connector": "postgresql", "name": "forum", "ts_ms": 1_795_443_309_471 + n, "db": "forum",
              "schema": "public", "table": "users", "txId": n, "lsn": 1000 + n, "snapshot": "false"}  # fmt: skip
    return {"before": None, "after": row, "source": source, "op": op, "ts_ms": 1, "transaction": None}


def write_capture(path: Path, changes: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(change) + "\n" for change in changes))
    return path


def seen_users(folder: Path) -> list[tuple[str, int]]:
    import sqlite3

    with sqlite3.connect(folder / ".cdc-reactor" / "replay.db") as connection:
        rows = connection.execute('SELECT op, "user" FROM seen ORDER BY n').fetchall()
    connection.close()
    return rows


def expected(name: str) -> dict[str, Any]:
    """What the manifest says of a capture, in the words of the report."""
    told = MANIFEST[name]
    counts, decoded = told["counts"], told.get("decoded")
    by_table = decoded["by_table_op"] if decoded else counts["by_table_op"]
    markers = (
        decoded["transaction_BEGIN"] + decoded["transaction_END"]
        if decoded
        else sum(counts["transaction_metadata"].values())
    )
    return {
        "messages": counts["records"],
        "dropped": {
            "heartbeat": counts["heartbeats"],
            "snapshot_read": sum(ops.get("r", 0) for ops in by_table.values()),
            "tombstone": counts["tombstones"],
            "transaction": markers,
            "logical_message": decoded["messages"] if decoded else counts["messages"],
            "schema_change": 0,
            "filtered": 0,
        },
        "changes": {
            table: {name: ops.get(op, 0) for name, op in OPS.items()}
            for table, ops in by_table.items()
            if set(ops) - {"r"}
        },
        "snapshot_reads": {table: ops["r"] for table, ops in by_table.items() if "r" in ops},
        "undecodable": 0,
        "dead_letters": 0,
    }


def test_the_census_of_every_capture_is_what_its_manifest_says(tmp_path):
    result = run("replay", str(CAPTURES), "--handlers", "none", "--report", "json", cwd=tmp_path)

    told = {
        Path(name).name: {k: v for k, v in counts.items() if k in expected(Path(name).name)}
        for name, counts in result.report["files"].items()
    }
    assert told == {name: expected(name) for name in MANIFEST}
    assert result.status == 0


def test_counts_are_the_same_through_the_shipped_handlers(tmp_path):
    result = run(
        "replay", str(CAPTURES), "--report", "json", "--database-url", f"sqlite:///{tmp_path}/db", "--create-tables",
        cwd=CAPTURES.parent.parent,
    )  # fmt: skip

    told = {
        Path(name).name: {k: v for k, v in counts.items() if k in expected(Path(name).name)}
        for name, counts in result.report["files"].items()
    }
    # One of them wants the snapshots of posts: those are not dropped, but all that was read is counted.
    for name, counts in result.report["files"].items():
        told[Path(name).name]["dropped"]["snapshot_read"] = sum(counts["snapshot_reads"].values())
    assert told == {name: expected(name) for name in MANIFEST}
    assert result.report["dead_letters"] == 0
    assert result.report["unhandled"] == {}
    assert result.status == 0


def test_a_replay_says_what_happened_in_a_table(tmp_path):
    write_handlers(tmp_path)
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(5)])

    result = run("replay", str(capture), "--handlers", "team_handlers", cwd=tmp_path)

    assert result.status == 0
    assert "public.users" in result.out
    assert "note" in result.out
    assert "5 messages" in result.out
    assert seen_users(tmp_path) == [("c", n) for n in range(5)]


@pytest.mark.postgres
def test_shipped_handlers_write_to_postgresql_and_a_second_replay_changes_nothing(postgres_url):
    root = Path(__file__).parent.parent
    url = f"{postgres_url.rpartition('/')[0]}/replayed"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE replayed")

    def state() -> dict[str, list[tuple[Any, ...]]]:
        with psycopg.connect(url) as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            return {
                name: sorted(connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))), key=str)
                for (name,) in names
            }

    def replay() -> Result:
        return run(
            "replay", "tests/captures/forum_schemas_on.records.ndjson", "--database-url", url, "--create-tables",
            "--report", "json", cwd=root,
        )  # fmt: skip

    first, after_first = replay(), state()
    second, after_second = replay(), state()

    assert [(r.status, r.report["dead_letters"]) for r in (first, second)] == [(0, 0), (0, 0)]
    assert sum(map(len, after_first.values())) > 0
    assert after_second == after_first


def test_workers_apply_the_same_changes_in_the_order_of_each_row(tmp_path):
    write_handlers(tmp_path)
    changes = [user_change(n % 7, handle=f"h{n}", op="u") for n in range(70)]
    capture = write_capture(tmp_path / "a.ndjson", changes)

    result = run(
        "replay", str(capture), "--handlers", "team_handlers", "--workers", "2", "--report", "json",
        "--events", "events.ndjson", cwd=tmp_path,
    )  # fmt: skip

    assert result.report["handlers"]["note"] | {"batches": 0} == {
        "batches": 0, "changes": 70, "events": 70, "retries": 0, "dead_letters": 0
    }  # fmt: skip
    assert sorted(seen_users(tmp_path)) == sorted(("u", n % 7) for n in range(70))
    assert len((tmp_path / "events.ndjson").read_text().splitlines()) == 70


def test_a_dry_run_shows_events_and_leaves_the_database_as_it_was(tmp_path):
    write_handlers(tmp_path)
    capture = write_capture(tmp_path / "a.ndjson", [user_change(1)])

    result = run("replay", str(capture), "--handlers", "team_handlers", "--dry-run", cwd=tmp_path)

    assert result.status == 0
    assert json.loads(result.err.removeprefix("event ")) == {
        "topic": "user.seen.v1",
        "key": "",
        "event": {"user_id": 1},
    }
    assert seen_users(tmp_path) == []


def test_a_poisoned_change_costs_itself_only_and_can_be_replayed_from_the_dead_letters(tmp_path):
    write_handlers(tmp_path, size=10)
    changes = [user_change(n, handle="POISON" if n == 3 else "ada") for n in range(10)]
    capture = write_capture(tmp_path / "a.ndjson", changes)

    first = run(
        "replay", str(capture), "--handlers", "team_handlers", "--on-error", "dead.ndjson", "--report", "json",
        cwd=tmp_path,
    )  # fmt: skip
    package = tmp_path / "team_handlers" / "users.py"
    package.write_text(package.read_text().replace('== "POISON"', '== "other"'))
    again = run("replay", "dead.ndjson", "--handlers", "team_handlers", "--report", "json", cwd=tmp_path)

    assert (first.status, first.report["dead_letters"], again.status) == (1, 1, 0)
    assert "a.ndjson:4: note: RuntimeError at users.py:25: cannot stand this one" in first.err
    assert sorted(user for _, user in seen_users(tmp_path)) == list(range(10))
    assert again.report["changes"] == {"public.users": {"create": 1, "update": 0, "delete": 0, "truncate": 0}}


def test_filters_leave_out_and_count_what_they_leave_out(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(10)])

    def counted(*options: str) -> tuple[int, int]:
        report = run("replay", str(capture), "--handlers", "none", "--report", "json", *options, cwd=tmp_path).report
        return sum(report["changes"].get("public.users", {}).values()), report["dropped"]["filtered"]

    assert counted("--table", "public.*") == (10, 0)
    assert counted("--table", "public.posts") == (0, 10)
    assert counted("--op", "update,delete") == (0, 10)
    assert counted("--from-lsn", "1004", "--to-lsn", "0/3EE") == (3, 7)
    assert counted("--since", "1795443309479") == (2, 8)
    assert counted("--key", "4") == (1, 9)
    assert counted("--key", '{"handle": "ada", "id": 5}') == (1, 9)
    assert counted("--limit", "4") == (4, 0)
    assert counted("--skip", "7") == (3, 0)
    assert counted("--skip", "7", "--limit", "2") == (2, 0)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def no_traceback(result: Result) -> None:
    assert "Traceback" not in result.err + result.out


def test_a_handler_with_a_syntax_error_is_named_with_file_and_line(tmp_path):
    write_handlers(tmp_path)
    (tmp_path / "team_handlers" / "broken.py").write_text("x = 1\ndef broken(:\n    pass\n")
    capture = write_capture(tmp_path / "a.ndjson", [user_change(1)])

    result = run("replay", str(capture), "--handlers", "team_handlers", cwd=tmp_path)

    no_traceback(result)
    assert result.status == 2
    assert "broken.py:2" in result.err


def test_a_row_with_a_misspelt_column_dead_letters_its_changes_and_names_the_column(tmp_path):
    write_handlers(tmp_path)
    package = tmp_path / "team_handlers" / "users.py"
    package.write_text(
        package.read_text()
        .replace("handle", "handel")
        .replace("@handels", "@handles")
        .replace("import Batch, Context, Event, Row, handels", "import Batch, Context, Event, Row, handles")
    )
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(3)])

    result = run("replay", str(capture), "--handlers", "team_handlers", "--report", "json", cwd=tmp_path)

    no_traceback(result)
    assert (result.status, result.report["dead_letters"]) == (1, 3)
    assert "handel: the row has no such column; did you mean handle?" in result.err
    assert "ada" not in result.err


@pytest.mark.parametrize(
    ("name", "content", "status", "told"),
    [
        ("cut.ndjson.gz", gzip.compress(b"".join(json.dumps(user_change(n)).encode() + b"\n" for n in range(2000)))[:-400], 1, "cut or damaged"),
        ("picture.ndjson", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), 2, "picture.ndjson"),
        ("empty.ndjson", b"", 0, "empty.ndjson is empty"),
        ("missing.ndjson", None, 2, "missing.ndjson: there is no such file"),
        ("half.ndjson", json.dumps(user_change(1)).encode()[:80] + b"\n", 1, "half.ndjson:1"),
    ],
)  # fmt: skip
def test_a_bad_file_ends_in_one_clear_message(tmp_path, name, content, status, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    result = run("replay", name, "--handlers", "none", cwd=tmp_path)

    no_traceback(result)
    assert told in result.err
    assert result.status == status


def test_a_foreign_file_in_a_folder_is_told_before_anything_is_applied(tmp_path):
    write_handlers(tmp_path)
    (tmp_path / "mix").mkdir()
    write_capture(tmp_path / "mix" / "a.ndjson", [user_change(1)])
    (tmp_path / "mix" / "b.txt").write_text("hello\n")

    result = run("replay", "mix", "--handlers", "team_handlers", "--events", "e", cwd=tmp_path)

    no_traceback(result)
    assert (result.status, (tmp_path / "e").exists()) == (2, False)
    assert "b.txt" in result.err


def test_filters_that_match_nothing_say_so(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(1)])

    nothing = run("replay", str(capture), "--handlers", "none", "--table", "public.user", cwd=tmp_path)
    by_bare_name = run("replay", str(capture), "--handlers", "none", "--table", "users", cwd=tmp_path)

    assert (nothing.status, nothing.err) == (0, "note: the filters let nothing through\n")
    assert (by_bare_name.status, by_bare_name.err) == (0, "")


def test_a_folder_without_captures_is_named(tmp_path):
    (tmp_path / "folder").mkdir()

    result = run("replay", "folder", "--handlers", "none", cwd=tmp_path)

    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "folder: there is no capture in this folder" in result.err


def test_a_bad_line_is_counted_kept_and_does_not_stop_the_rest(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(3)])
    with capture.open("ab") as file:
        file.write(b'{"before": oops}\n')
        file.write(json.dumps(user_change(9)).encode() + b"\n")

    result = run(
        "replay", "a.ndjson", "--handlers", "none", "--report", "json", "--on-error", "dead.ndjson", cwd=tmp_path
    )

    assert (result.status, result.report["undecodable"], result.report["messages"]) == (1, 1, 5)
    assert "a.ndjson:4" in result.err
    assert json.loads((tmp_path / "dead.ndjson").read_text())["dead_letter"]["place"] == "a.ndjson:4"


def test_on_error_stop_stops_at_the_first_bad_message(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(3)])
    with capture.open("ab") as file:
        file.write(b"{oops}\n")
        file.write(json.dumps(user_change(9)).encode() + b"\n")

    result = run("replay", "a.ndjson", "--handlers", "none", "--report", "json", "--on-error", "stop", cwd=tmp_path)

    assert result.status == 1
    assert "stopped: a.ndjson:4" in result.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_under_the_dead_letters_stops_with_status_3_and_settles_nothing(tmp_path):
    write_handlers(tmp_path)
    write_capture(tmp_path / "a.ndjson", [user_change(n, handle="POISON") for n in range(3)])

    result = run(
        "replay", "a.ndjson", "--handlers", "team_handlers", "--on-error", "/dev/full", "--checkpoint", "c.json",
        cwd=tmp_path,
    )  # fmt: skip

    no_traceback(result)
    assert result.status == 3
    assert "/dev/full" in result.err
    assert "No space left" in result.err
    files = json.loads((tmp_path / "c.json").read_text())["files"] if (tmp_path / "c.json").exists() else {}
    assert all(entry["settled"] == 0 for entry in files.values())


def test_a_database_that_does_not_answer_is_status_3_without_its_password(tmp_path):
    write_handlers(tmp_path)
    write_capture(tmp_path / "a.ndjson", [user_change(1)])

    result = run(
        "replay", "a.ndjson", "--handlers", "team_handlers",
        "--database-url", "postgresql://me:hunter2@127.0.0.1:9/db", cwd=tmp_path,
    )  # fmt: skip

    no_traceback(result)
    assert result.status == 3
    assert "does not answer" in result.err
    assert "hunter2" not in result.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--report", "xml"], "--report xml"),
        (["--unknown-table", "explode"], "--unknown-table explode"),
        (["--format", "nonsense"], "--format nonsense"),
        (["--since", "yesterday"], "--since yesterday"),
        (["--from-lsn", "high"], "--from-lsn high"),
        (["--op", "merge"], "--op merge"),
        (["--handlers", "no_such_package"], "no_such_package"),
        (["--database-url", "nonsense"], "--database-url"),
        (["--schemas", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, options, told):
    write_handlers(tmp_path)
    write_capture(tmp_path / "a.ndjson", [user_change(1)])
    options = options if "--handlers" in options else [*options, "--handlers", "team_handlers"]

    result = run("replay", "a.ndjson", *options, cwd=tmp_path)

    no_traceback(result)
    assert told in result.err
    assert result.status == 2


def test_what_was_read_before_a_capture_breaks_off_is_applied(tmp_path):
    write_handlers(tmp_path)
    lines = "".join(json.dumps(user_change(n)) + "\n" for n in range(3000)).encode()
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(lines)[:-2000])

    result = run("replay", "a.ndjson.gz", "--handlers", "team_handlers", "--report", "json", cwd=tmp_path)

    told = int(re.findall(r"after ([0-9,]+) lines", result.err)[0].replace(",", ""))
    assert told > 0
    assert (result.report["messages"], len(seen_users(tmp_path))) == (told, told)


def test_on_error_stop_leaves_the_rest_of_a_capture_alone(tmp_path):
    write_handlers(tmp_path, size=1)
    changes = [user_change(n, handle="POISON" if n in (2, 3) else "ada") for n in range(2000)]
    write_capture(tmp_path / "a.ndjson", changes)

    result = run("replay", "a.ndjson", "--handlers", "team_handlers", "--on-error", "stop", cwd=tmp_path)

    # Others go on while the poison waits to be tried again; when it is given up, all stops.
    assert result.status == 1
    assert "stopped: " in result.err
    assert len(seen_users(tmp_path)) < 2000


def test_a_dry_run_does_not_count_as_done(tmp_path):
    write_handlers(tmp_path)
    write_capture(tmp_path / "a.ndjson", [user_change(1)])
    arguments = ["replay", "a.ndjson", "--handlers", "team_handlers", "--checkpoint", "c.json"]

    dry = run(*arguments, "--dry-run", cwd=tmp_path)
    real = run(*arguments, cwd=tmp_path)

    assert (dry.status, real.status) == (0, 2)
    assert "another dry_run" in real.err


@pytest.mark.parametrize(
    "options",
    [
        ["--events", "a.ndjson"],
        ["--on-error", "./a.ndjson"],
        ["--checkpoint", "a.ndjson"],
        ["--events", "o", "--on-error", "o"],
        ["--events", "o", "--checkpoint", "o"],
    ],
)
def test_nothing_is_written_where_something_is_read_or_written_already(tmp_path, options):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(1)])
    before = capture.read_bytes()

    result = run("replay", "a.ndjson", "--handlers", "none", *options, cwd=tmp_path)

    no_traceback(result)
    assert (result.status, capture.read_bytes()) == (2, before)
    assert "name another file" in result.err


def test_a_limited_rate_is_kept_from_the_start(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(10)])

    report = run(
        "replay", str(capture), "--handlers", "none", "--max-rate", "20", "--report", "json", cwd=tmp_path
    ).report

    assert report["messages"] == 10
    assert report["seconds"] >= 0.4


def test_a_reader_that_leaves_early_is_no_failure(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(10)])

    command = f"{sys.executable} -m cdc_reactor.cli replay {capture} --handlers none | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_in_publishing_costs_its_own_change(tmp_path):
    write_handlers(tmp_path, size=4)
    package = tmp_path / "team_handlers" / "users.py"
    package.write_text(
        package.read_text().replace(
            'ctx.publish(UserSeen(user_id=change.key["id"]))',
            'ctx.publish(UserSeen(user_id=change.key["id"]), key=b"x" if change.key["id"] == 2 else "x")',
        )
    )
    write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(4)])

    result = run("replay", "a.ndjson", "--handlers", "team_handlers", "--events", "e", "--report", "json", cwd=tmp_path)

    no_traceback(result)
    assert (result.status, result.report["dead_letters"]) == (1, 1)
    assert sorted(user for _, user in seen_users(tmp_path)) == [0, 1, 3]
    assert len((tmp_path / "e").read_text().splitlines()) == 3


def test_worker_processes_end_with_their_parent(tmp_path):
    write_handlers(tmp_path)
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(3000)])

    process = start(
        "replay", str(capture), "--handlers", "team_handlers", "--workers", "2", "--events", "e", "--max-rate", "300",
        cwd=tmp_path,
    )  # fmt: skip
    wait_for_line(tmp_path / "e", process)
    process.kill()

    # Both ends of the pipes are closed only when the last of them is gone.
    process.communicate(timeout=30)


def test_unknown_tables_can_stop_a_replay(tmp_path):
    write_handlers(tmp_path)
    other = user_change(1)
    other["source"]["table"] = "posts"
    write_capture(tmp_path / "a.ndjson", [user_change(1), other])

    result = run("replay", "a.ndjson", "--handlers", "team_handlers", "--unknown-table", "stop", cwd=tmp_path)

    assert result.status == 1
    assert "a.ndjson:2: public.posts has no handler" in result.err


def test_workers_may_publish_an_event_whose_class_exists_only_there(tmp_path):
    write_handlers(tmp_path)
    package = tmp_path / "team_handlers" / "users.py"
    text = package.read_text()
    local = "def make():\n    class UserSeen(Event, topic='user.seen.v1'):\n        user_id: int\n    return UserSeen\n\n\nUserSeen = make()\n"
    package.write_text(re.sub(r"class UserSeen.*?user_id: int\n", lambda _: local, text, flags=re.DOTALL))
    write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(5)])

    result = run("replay", "a.ndjson", "--handlers", "team_handlers", "--workers", "2", "--events", "e", cwd=tmp_path)

    no_traceback(result)
    assert result.status == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "e").read_text().splitlines()]
    assert sorted(event["user_id"] for event in events) == [0, 1, 2, 3, 4]


def test_a_worker_process_that_dies_is_status_3_and_loses_nothing(tmp_path):
    write_handlers(tmp_path)
    package = tmp_path / "team_handlers" / "users.py"
    healthy = package.read_text()
    package.write_text(healthy.replace('raise RuntimeError("cannot stand this one")', "import os; os._exit(9)"))
    write_capture(tmp_path / "a.ndjson", [user_change(n, handle="POISON" if n == 5 else "ada") for n in range(20)])
    arguments = ["replay", "a.ndjson", "--handlers", "team_handlers", "--workers", "2", "--checkpoint", "c.json"]

    died = run(*arguments, cwd=tmp_path)
    package.write_text(healthy.replace("POISON", "nobody"))
    again = run(*arguments, cwd=tmp_path)

    no_traceback(died)
    assert (died.status, again.status, again.err) == (3, 0, "")
    assert "a worker process died" in died.err
    assert {user for _, user in seen_users(tmp_path)} == set(range(20))


# ── interrupted and resumed ──────────────────────────────────────────────────────────────────────────────────────────


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cdc_reactor.cli", *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_line(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file that the process writes has something in it."""
    while process.poll() is None:
        if path.exists() and path.stat().st_size > 0:
            return
        os.sched_yield()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_replay_that_is_ended_goes_on_and_loses_nothing(tmp_path, how):
    write_handlers(tmp_path)
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(3000)])
    arguments = [
        "replay", str(capture), "--handlers", "team_handlers", "--checkpoint", "c.json", "--report", "json",
        "--events", "events.ndjson",
    ]  # fmt: skip

    process = start(*arguments, "--max-rate", "1500", cwd=tmp_path)
    wait_for_line(tmp_path / "events.ndjson", process)
    process.send_signal(how)
    process.communicate(timeout=60)
    again = run(*arguments, cwd=tmp_path)

    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert again.status == 0
    users = [user for _, user in seen_users(tmp_path)]
    assert sorted(set(users)) == list(range(3000))
    published = [json.loads(line)["event"]["user_id"] for line in (tmp_path / "events.ndjson").read_text().splitlines()]
    assert sorted(set(published)) == list(range(3000))
    if how is not signal.SIGKILL:
        # Ended in good order: what was done is not done again.
        assert len(users) == 3000
        assert 0 < again.report["messages"] < 3000


def test_a_finished_checkpoint_has_nothing_left_to_do(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(10)])
    arguments = ["replay", str(capture), "--handlers", "none", "--checkpoint", "c.json", "--report", "json"]

    first = run(*arguments, cwd=tmp_path)
    second = run(*arguments, cwd=tmp_path)
    with capture.open("ab") as file:
        file.write(json.dumps(user_change(11)).encode() + b"\n")
    grown = run(*arguments, cwd=tmp_path)

    assert [r.report["messages"] for r in (first, second, grown)] == [10, 0, 1]


def test_a_checkpoint_of_another_file_or_command_is_refused(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(10)])
    run("replay", "a.ndjson", "--handlers", "none", "--checkpoint", "c.json", cwd=tmp_path)

    other_filter = run("replay", "a.ndjson", "--handlers", "none", "--checkpoint", "c.json", "--op", "c", cwd=tmp_path)
    write_capture(capture, [user_change(n + 50) for n in range(10)])
    other_file = run("replay", "a.ndjson", "--handlers", "none", "--checkpoint", "c.json", cwd=tmp_path)
    (tmp_path / "c.json").write_text("{}")
    no_checkpoint = run("replay", "a.ndjson", "--handlers", "none", "--checkpoint", "c.json", cwd=tmp_path)

    assert [r.status for r in (other_filter, other_file, no_checkpoint)] == [2, 2, 2]
    assert "another operations" in other_filter.err
    assert "is not the file" in other_file.err
    assert "no checkpoint" in no_checkpoint.err


def test_a_capture_that_grows_in_the_middle_of_a_line_loses_nothing(tmp_path):
    write_handlers(tmp_path)
    whole = "".join(json.dumps(user_change(n)) + "\n" for n in range(4))
    cut = whole.index("\n", whole.index("\n") + 1) + 60
    arguments = ["replay", "a.ndjson", "--handlers", "team_handlers", "--checkpoint", "c.json"]

    statuses = []
    for content in (whole[:cut], whole[:cut], whole):
        (tmp_path / "a.ndjson").write_text(content)
        statuses.append(run(*arguments, cwd=tmp_path).status)

    assert statuses == [1, 1, 0]
    assert [user for _, user in seen_users(tmp_path)] == [0, 1, 2, 3]


def test_standard_input_is_replayed_and_cannot_be_checkpointed(tmp_path):
    line = json.dumps(user_change(1)).encode() + b"\n"

    piped = run("replay", "-", "--handlers", "none", "--report", "json", cwd=tmp_path, stdin=line)
    refused = run("replay", "-", "--handlers", "none", "--checkpoint", "c.json", cwd=tmp_path, stdin=line)

    assert (piped.status, piped.report["messages"]) == (0, 1)
    assert (refused.status, "--checkpoint needs files" in refused.err) == (2, True)


def test_a_terminal_shows_how_far_it_is(tmp_path):
    capture = write_capture(tmp_path / "a.ndjson", [user_change(n) for n in range(200)])
    screen, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cdc_reactor.cli", "replay", str(capture), "--handlers", "none", "--max-rate", "200"],
            stdout=subprocess.DEVNULL, stderr=terminal, timeout=60, check=False,
        )  # fmt: skip
        shown = os.read(screen, 1_000_000).decode()
    finally:
        os.close(screen)
        os.close(terminal)

    assert done.returncode == 0
    assert "messages" in shown
    assert "%" in shown
