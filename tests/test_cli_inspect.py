"""The commands `explain`, `handlers` and `new table-handler`, as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from cdc_reactor.cli import app

CAPTURES = Path(__file__).parent / "captures"
OFF = str(CAPTURES / "forum_schemas_off.records.ndjson")
AVRO = str(CAPTURES / "forum_avro.records.ndjson")

GOOD = '''
"""Handlers."""
from cdc_reactor import Batch, Context, Create, Row, Update, handles


class User(Row, table="public.users"):
    id: int
    handle: int


@handles(User, ops=(Create, Update), when_changed=("handle",), snapshot=True, on_poison="park", owner="team-a")
def greet(batch: Batch[User], ctx: Context) -> None: ...


@handles(User, max_size=7, timeout=2.5)
async def load(batch: Batch[User], ctx: Context) -> None: ...
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; what is imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def succeeds(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return str(done.stdout)


def fails(status: int, *arguments: str | Path) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (status, ""), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return str(done.stderr)


# ── explain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_explain_shows_one_message(folder):
    text = succeeds("explain", f"{OFF}:11", "--handlers", "none")

    assert text.startswith(f"{OFF}:11: dropped: heartbeat: the connector's sign of life")


def test_explain_finds_the_schemas_beside_an_avro_capture(folder):
    told = json.loads(succeeds("explain", AVRO, "--handlers", "none", "--json"))

    assert (told["form"], told["table"]) == (
        "Avro with schema id 2, forum.public.posts.Envelope: an envelope",
        "public.posts",
    )


def test_explain_does_without_handlers_where_there_are_none(folder, monkeypatch):
    # In this project's own tree there is a package table_handlers; nothing of it is on the path here.
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not (Path(each) / "table_handlers").exists()])
    for name in [name for name in sys.modules if name.partition(".")[0] == "table_handlers"]:
        monkeypatch.delitem(sys.modules, name)
    assert json.loads(succeeds("explain", f"{OFF}:20", "--json"))["handlers"] == []


def test_explain_fails_where_a_handler_cannot_read_the_row(folder):
    Path("unreadable_users.py").write_text(GOOD)

    done = run("explain", f"{OFF}:20", "--handlers", "./unreadable_users.py", "--no-values")

    assert done.exit_code == 1
    assert "unreadable: greet, load will fail on the row after: public.users does not fit User: handle:" in done.stdout
    assert "newcomer" not in done.stdout


def test_explain_fails_where_a_message_cannot_be_decoded(folder):
    Path("bad.ndjson").write_bytes(b'{"op":"c","source":\x1b\n')

    done = run("explain", "bad.ndjson", "--format", "values", "--handlers", "none")

    assert done.exit_code == 1
    assert done.stdout.startswith("bad.ndjson:1: undecodable: not JSON")
    assert "7b 22 6f 70 22" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((f"{OFF}:999",), "there is no such message; the last is at"),
        ((f"{OFF}:0",), "counted from 1"),
        ((f"{OFF}:abc",), "'abc' is no number of a message; write"),
        (("nowhere.ndjson:3",), "nowhere.ndjson:3: there is no such file or folder"),
        ((str(CAPTURES),), "these are 8 captures; name one of them"),
        ((OFF, "--format", "tape"), "--format tape: no such format"),
        ((OFF, "--placeholder", ""), "unavailable.value.placeholder is empty"),
        ((OFF, "--schemas", "nowhere"), "--schemas nowhere: there is no such file or folder"),
    ],
)
def test_explain_says_what_is_wrong_with_its_arguments(folder, arguments, error):
    assert error in fails(2, "explain", *arguments, "--handlers", "none")


def test_explain_says_which_handlers_cannot_be_imported(folder):
    Path("broken_users.py").write_text("import nothing_of_this_name\n")

    assert "broken_users.py:1: ModuleNotFoundError" in fails(2, "explain", OFF, "--handlers", "./broken_users.py")


# ── handlers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_handlers_are_listed_with_what_is_not_as_usual(folder):
    Path("good_users.py").write_text(GOOD)

    lines = succeeds("handlers", "--handlers", "./good_users.py").splitlines()

    assert [line.split() for line in lines] == [
        ["TABLE", "HANDLER", "OPTIONS", "OWNER", "PLACE"],
        ["public.users", "greet", "max_size=100", "max_wait=0.5", "ops=create,update", "when_changed=handle",
         "snapshot=True", "on_poison=park", "team-a", "good_users.py:11"],
        ["public.users", "load", "max_size=7", "max_wait=0.5", "timeout=2.5", "is_async=True", "-", "good_users.py:15"],
    ]  # fmt: skip


def test_handlers_are_listed_beside_the_modules_that_fail(folder):
    package = folder / "mixed_handlers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text(GOOD)
    (package / "bad.py").write_text("\nraise RuntimeError('not today')\n")

    text, as_json = (run("handlers", "--handlers", "mixed_handlers", *more) for more in ((), ("--json",)))

    assert (text.exit_code, as_json.exit_code) == (2, 2)
    assert "greet" in text.stdout
    assert "bad.py:2: RuntimeError: not today" in text.stderr
    told = json.loads(as_json.stdout)
    assert [(each["handler"], each["ops"]) for each in told["handlers"]] == [
        ("greet", ["create", "update"]), ("load", ["create", "update", "delete", "truncate"])
    ]  # fmt: skip
    assert [(each["module"], each["line"], each["message"]) for each in told["failures"]] == [
        ("mixed_handlers.bad", 2, "RuntimeError: not today")
    ]


def test_handlers_that_contradict_each_other_are_named(folder):
    for name in ("one_user", "another_user"):
        Path(f"{name}.py").write_text(GOOD)

    done = run("handlers", "--handlers", "./one_user.py", "--handlers", "./another_user.py")

    assert done.exit_code == 2
    assert "public.users has two Row models" in done.stderr
    assert done.stdout.count("greet") == 2


def test_no_handlers_are_no_error(folder):
    assert succeeds("handlers", "--handlers", "none") == "no handlers\n"
    Path("empty_module.py").touch()
    empty = run("handlers", "--handlers", "./empty_module.py")
    assert (empty.exit_code, empty.stderr) == (0, "note: there is no handler in ./empty_module.py\n")
    assert "there is no such file or folder" in fails(2, "handlers", "--handlers", "nowhere/at_all")


# ── new table-handler ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_handler_can_be_tested_listed_and_explained_at_once(folder):
    """Everything in processes of its own, as after reading the tutorial."""

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    written = command("cdc_reactor.cli", "new", "table-handler", "public.users", "--from", OFF, "--folder", "fresh")
    tested = command("pytest", "-q", "-p", "no:cacheprovider", "fresh")
    listed = command("cdc_reactor.cli", "handlers", "--handlers", "fresh")
    explained = command("cdc_reactor.cli", "explain", f"{OFF}:20", "--handlers", "fresh")

    assert written.splitlines() == [
        "wrote fresh/users.py",
        "wrote fresh/test_users.py",
        "next: python -m pytest fresh, then cdc-reactor handlers --handlers fresh",
    ]
    assert "1 passed" in tested
    assert "count_users" in listed
    assert "handled: by count_users" in explained


def test_a_file_that_is_there_is_not_overwritten(folder):
    succeeds("new", "table-handler", "votes", "--from", AVRO)
    module = Path("table_handlers/votes.py")
    module.write_text("mine")

    error = fails(2, "new", "table-handler", "votes", "--from", AVRO)

    assert "table_handlers/votes.py and table_handlers/test_votes.py: already there; --force overwrites" in error
    assert module.read_text() == "mine"
    succeeds("new", "table-handler", "votes", "--from", AVRO, "--force")
    assert 'class Vote(Row, table="public.votes", key=("post", "voter"), identity="default"):' in module.read_text()


def test_a_package_keeps_its_docstring(folder):
    init = Path("kept/deeper/__init__.py")
    init.parent.mkdir(parents=True)
    init.write_text('"""Ours."""\n')

    succeeds("new", "table-handler", "votes", "--from", AVRO, "--folder", folder / "kept" / "deeper")

    assert init.read_text() == '"""Ours."""\n'
    assert "from kept.deeper.votes import count_votes" in Path("kept/deeper/test_votes.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("usrs", "--from", OFF), "usrs: there is no such table in"),
        (("users", "--from", "nowhere.ndjson"), "nowhere.ndjson: there is no such file or folder"),
        (("users", "--from", OFF, "--folder", "no-package"), "--folder no-package: handlers are imported from there"),
        (("users", "--from", OFF, "--folder", "."), "--folder .: handlers are imported from there"),
        (("users", "--from", OFF, "--folder", "occupied"), "cannot be written: "),
        (("users", "--from", OFF, "--format", "tape"), "--format tape: no such format"),
        (("users",), "Missing option '--from'"),
    ],
)
def test_new_says_what_is_wrong(folder, arguments, error):
    Path("occupied").write_text("a file where a folder should be")

    assert error in fails(2, "new", "table-handler", *arguments)


def test_a_database_that_does_not_answer_is_the_world_s_fault(folder):
    url = "postgresql://me:secret@127.0.0.1:1/nothing"

    error = fails(3, "new", "table-handler", "users", "--from", url)

    assert error.startswith("cdc-reactor: PostgreSQL: connection failed")
    assert "secret" not in error


@pytest.mark.postgres
def test_a_handler_can_be_made_from_a_database(folder, postgres_url):
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE inspected (id uuid PRIMARY KEY, price numeric(8, 2) NOT NULL)")
        connection.execute("ALTER TABLE inspected REPLICA IDENTITY FULL")
    try:
        succeeds("new", "table-handler", "inspected", "--from", postgres_url)
    finally:
        with psycopg.connect(postgres_url) as connection:
            connection.execute("DROP TABLE inspected")

    text = Path("table_handlers/inspected.py").read_text()
    assert 'class Inspected(Row, table="public.inspected", identity="full"):' in text
    assert "    id: UUID\n    price: Annotated[Decimal, DecimalBytes(2)]\n" in text
