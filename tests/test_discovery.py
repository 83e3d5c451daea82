"""Handlers are found where they are named; what cannot be imported is told with the team's own file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import cdc_reactor
from cdc_reactor.discovery import DEFAULT_TARGETS, Discovery, ImportFailure, discover, load_handlers, present
from cdc_reactor.errors import UsageError

USERS = """
from cdc_reactor import Batch, Context, Row, handles

class User(Row, table="public.users"):
    id: int

@handles(User)
def announce(batch: Batch[User], ctx: Context) -> None: ...

@handles(User)
def count(batch: Batch[User], ctx: Context) -> None: ...
"""
POSTS = """
from cdc_reactor import Batch, Context, Row, handles

class Post(Row, table="public.posts"):
    id: int

@handles(Post)
def publish(batch: Batch[Post], ctx: Context) -> None: ...
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[Path]:
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__slash__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))


def names(found: Discovery) -> list[str]:
    return [f"{handler.table_id} {handler.name}" for handler in found.handlers]


ALL = ["public.posts publish", "public.users announce", "public.users count"]


class TestWhatIsFound:
    def test_a_package_is_searched_to_its_depths_and_sorted_by_table_and_name(self, here):
        write(here / "acme1", __init__="", users=USERS)
        write(here / "acme1" / "blog", __init__="", posts=POSTS)

        assert names(discover(["acme1"])) == ALL

    def test_folders_need_no_init_file(self, here):
        write(here / "acme2", users=USERS)
        write(here / "acme2" / "blog", posts=POSTS)

        assert names(discover(["acme2"])) == ALL

    def test_a_handler_that_is_imported_elsewhere_counts_once(self, here):
        write(
            here / "acme3",
            __init__="from acme3.users import announce, count",
            users=USERS,
            again="from acme3 import announce",
        )

        assert names(discover(["acme3", "acme3.users"])) == ALL[1:]

    @pytest.mark.parametrize("target", ["acme4", "acme4/", "./acme4", "{here}/acme4"])
    def test_a_package_can_be_named_or_pointed_at(self, here, target):
        write(here / "acme4", __init__="", users=USERS)

        found = discover([target.format(here=here)])

        assert names(found) == ALL[1:]
        assert {handler.function.__module__ for handler in found.handlers} == {"acme4.users"}

    def test_a_file_in_the_current_folder_may_be_named_as_it_is(self, here):
        write(here, users9=USERS)

        assert names(discover(["users9.py"])) == ALL[1:]

    def test_a_file_inside_of_a_package_keeps_its_full_name(self, here):
        write(here / "deep" / "acme5", __init__="", users=USERS, posts=POSTS)

        found = discover(["deep/acme5/users.py"])

        assert names(found) == ALL[1:]
        assert {handler.function.__module__ for handler in found.handlers} == {"acme5.users"}

    def test_a_lone_file_may_import_its_neighbours(self, here):
        write(here / "elsewhere", rows6="NAME = 'public.users'", users6="from rows6 import NAME\n" + USERS)

        assert names(discover(["elsewhere/users6.py"])) == ALL[1:]

    def test_a_folder_whose_name_is_no_identifier_is_searched_too(self, here):
        write(here / "my-handlers", users7=USERS)

        assert names(discover(["my-handlers"])) == ALL[1:]

    def test_test_modules_and_main_are_left_alone(self, here):
        never = "raise RuntimeError('imported')"
        write(
            here / "acme8", __init__="", users=USERS, test_users=never, users_test=never, conftest=never, __main__=never
        )
        write(here / "acme8" / "tests", helpers=never)

        assert discover(["acme8"]) == Discovery(discover(["acme8.users"]).handlers)

    def test_without_a_target_nothing_is_found(self):
        assert discover([]) == Discovery()

    def test_a_target_without_a_handler_is_flagged(self, here):
        write(here / "acme9", __init__="", users="from cdc_reactor import Row")
        (here / "empty9").mkdir()

        assert discover(["acme9", "empty9"]).empty == ("acme9", "empty9")

    def test_installed_packages_announce_theirs_by_entry_points(self, here):
        write(here / "installed10", __init__="", posts=POSTS)
        write(here / "acme10", users=USERS)
        told = here / "installed10-1.dist-info"
        told.mkdir()
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: installed10\nVersion: 1\n")
        (told / "entry_points.txt").write_text("[cdc_reactor.handlers]\nblog = installed10\nlost = gone10\n")

        found = discover(["acme10"])

        assert names(found) == ALL
        assert [str(failure) for failure in found.failures] == ["entry point lost:0: there is no module gone10"]
        assert names(discover(["acme10"], entry_points=False)) == ALL[1:]


class TestWhatFails:
    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("x = 1\ndef broken(:\n    pass\n", 2, "SyntaxError: invalid syntax"),
            ("\nimport nowhere_at_all\n", 2, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
            ("x = 1\n\ny = x + z\n", 3, "NameError: name 'z' is not defined"),
            ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
            ("raise ValueError('one\\n  two')\n", 1, "ValueError: one two"),
            ("raise ValueError\n", 1, "ValueError"),
            ("import json\njson.loads('{')\n", 2, "JSONDecodeError: Expecting property name enclosed in double quotes: "),
            (USERS + "\n@handles(User, max_size=0)\ndef f(batch, ctx): ...", 13, "DefinitionError: f: max_size=0 must be"),
            (USERS + "\n@handles(User)\ndef f(batch): ...", 13, "DefinitionError: f: a handler takes (batch: Batch[User], ctx"),
            (USERS + "\n@handles\ndef f(batch, ctx): ...", 13, "DefinitionError: @handles takes a Row class, not <function f"),
            ("from cdc_reactor import Row\nclass A(Row, table='users'):\n    id: int", 2, "DefinitionError: A: table='users' must"),
            ("from cdc_reactor import Row\nclass A(Row, table='a.b'):\n    x: object()", 2, "PydanticSchemaGenerationError: "),
            ("from cdc_reactor import handels", 1, "ImportError: cannot import name 'handels' from 'cdc_reactor'"),
        ],
    )  # fmt: skip
    def test_a_failure_names_the_file_and_line_of_the_team_in_one_line(self, here, text, line, message):
        write(here / "broken1", __init__="", module=text, fine=POSTS)

        found = discover(["broken1"])

        (failure,) = found.failures
        assert (failure.module, failure.file, failure.line) == ("broken1.module", "broken1/module.py", line)
        assert failure.message.startswith(message)
        assert "\n" not in str(failure)
        assert str(failure).startswith(f"broken1/module.py:{line}: ")
        assert names(found) == ALL[:1]

    def test_all_failures_are_told_and_the_rest_is_found(self, here):
        write(here / "broken2", __init__="", a="import nowhere_a", b="1/0", c="from broken2 import a", users=USERS)

        found = discover(["broken2"])

        assert found.failures == (
            ImportFailure("broken2.a", "broken2/a.py", 1, "ModuleNotFoundError: No module named 'nowhere_a'"),
            ImportFailure("broken2.b", "broken2/b.py", 1, "ZeroDivisionError: division by zero"),
        )
        assert names(found) == ALL[1:]
        assert found.empty == ()

    def test_a_broken_package_is_told_once(self, here):
        write(here / "broken3", __init__="from broken3 import users", users="import nowhere_b", posts=POSTS)

        found = discover(["broken3", "broken3.posts"])

        assert [str(f) for f in found.failures] == [
            "broken3/users.py:1: ModuleNotFoundError: No module named 'nowhere_b'"
        ]

    def test_a_name_that_is_taken_is_no_silence(self, here):
        write(here / "other", email=USERS)

        (failure,) = discover(["other/email.py"]).failures

        assert failure.message.startswith("ImportError: the name email is taken by ")
        assert failure.message.endswith("; rename other/email.py")

    def test_a_package_that_does_not_exist_says_what_to_do(self, here):
        write(here / "table_handlers4", __init__="")

        with pytest.raises(UsageError) as told:
            discover(["table_handler4"])

        assert str(told.value) == (
            f"there is no package or module table_handler4, neither in {here} nor installed; did you mean table_handlers4? "
            "Name yours: --handlers NAME, or begin one: cdc-reactor new table-handler"
        )

    @pytest.mark.parametrize("target", ["no/such/folder", "no_such.py", "readme.md", "gone.away"])
    def test_a_path_that_is_no_module_is_a_mistake_in_usage(self, here, target):
        (here / "readme.md").write_text("hello")

        with pytest.raises(UsageError, match=r"no such file|no Python file|no package or module"):
            discover([target])

    def test_a_module_that_imports_what_is_missing_is_no_missing_module(self, here):
        write(here, lone5="import lone5.below")

        assert "'lone5' is not a package" in discover(["lone5"]).failures[0].message


class TestThePublicNames:
    def test_every_name_is_there_and_dir_tells_them(self):
        assert {name: getattr(cdc_reactor, name) is not None for name in cdc_reactor.__all__} == dict.fromkeys(
            cdc_reactor.__all__, True
        )
        assert set(dir(cdc_reactor)) == {*cdc_reactor.__all__, "__version__"}
        with pytest.raises(AttributeError, match="no attribute 'handels'"):
            cdc_reactor.handels  # type: ignore[attr-defined]  # noqa: B018 - asking is the test

    def test_importing_them_imports_nothing_heavy(self):
        script = (
            "import sys, json, cdc_reactor\n"
            "light = sorted({m.partition('.')[0] for m in sys.modules})\n"
            # These talk to Pub/Sub, and only applications use them.
            "publishing = {'EventPublisher', 'publish', 'publish_async'}\n"
            "for name in set(cdc_reactor.__all__) - publishing: getattr(cdc_reactor, name)\n"
            "print(json.dumps([light, sorted({m.partition('.')[0] for m in sys.modules})]))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

        light, whole = map(set, json.loads(done.stdout))

        assert not light & {"pydantic", "msgspec", "sqlalchemy", "typer", "google", "pytest"}
        assert not whole & {
            "sqlalchemy",
            "typer",
            "rich",
            "google",
            "grpc",
            "fastavro",
            "tenacity",
            "asyncio",
            "pytest",
        }
        assert "pydantic" in whole

    def test_the_plugin_costs_pytest_nothing_until_a_fixture_is_used(self):
        script = (
            "import sys, cdc_reactor.pytest_plugin as p; print('pydantic' in sys.modules, 'sqlalchemy' in sys.modules)"
        )

        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

        assert done.stdout.split() == [b"False", b"False"]


# ── workers and events ──────────────────────────────────────────────────────────────────────────────────────────────

WORKERS = """
from cdc_reactor import Context, Event, Message, Notification, notifies, subscribes

class UserRenamed(Event, topic="user.renamed.v1"):
    user_id: int

class Elder(UserRenamed):
    "Has the topic by inheritance, and is no second type of it."

@subscribes(UserRenamed, subscription="renames")
def note(event: UserRenamed, ctx: Context) -> None: ...

@subscribes(UserRenamed, subscription="own-reading", parse=lambda message: UserRenamed(user_id=1))
def read(event: UserRenamed, ctx: Context) -> None: ...

@subscribes(Message, topic="anything.v1", subscription="anything")
def keep(message: Message, ctx: Context) -> None: ...
"""


def test_workers_and_the_types_of_topics_are_found(here):
    write(here, acme_workers=WORKERS)

    found = discover(["acme_workers"])

    assert [(worker.subscription, worker.name) for worker in found.workers] == [
        ("anything", "keep"),
        ("own-reading", "read"),
        ("renames", "note"),
    ]
    assert [(event.topic, event.name, event.encoding) for event in found.events] == [
        ("anything.v1", "Message", "raw"),
        ("notification.requested.v1", "Notification", "json"),
        ("user.renamed.v1", "UserRenamed", "json"),
    ]
    assert (found.handlers, found.empty) == ((), ())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"table_handlers": USERS}, ["table_handlers"]),
        ({"workers": WORKERS}, ["workers"]),
        ({"table_handlers": USERS, "workers": WORKERS}, ["table_handlers", "workers"]),
        ({"events": WORKERS}, ["events"]),
    ],
)
def test_of_the_default_one_may_be_missing(here, monkeypatch, files, expected):
    # This project's own are importable, too, and may be imported.
    for name in DEFAULT_TARGETS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p or ".") / "table_handlers").exists()])
    write(here, **files)

    assert present(DEFAULT_TARGETS) == expected
    assert present(["somewhere", "workers"]) == ["somewhere", "workers"]


def test_where_there_is_none_of_the_default_it_is_told_how_to_begin(here, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p or ".") / "table_handlers").exists()])
    for name in DEFAULT_TARGETS:
        monkeypatch.delitem(sys.modules, name, raising=False)

    with pytest.raises(UsageError, match=r"there is neither table_handlers nor workers, .* Begin one: cdc-reactor new"):
        load_handlers(DEFAULT_TARGETS)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (
            """
            from cdc_reactor import Context, Message, subscribes

            @subscribes(Message, topic="other.v1", subscription="renames")
            def again(message: Message, ctx: Context) -> None: ...
            """,
            "two workers have the subscription renames",
        ),
        (
            """
            from cdc_reactor import Event

            class Renamed(Event, topic="user.renamed.v1"):
                name: str
            """,
            r"the topic user.renamed.v1 carries .*Renamed \(.*\) and .*Renamed \(.*\); a topic has one type",
        ),
        (
            """
            from cdc_reactor import Context, Message, subscribes

            @subscribes(Message, topic="other.v1", subscription="other")
            def note(message: Message, ctx: Context) -> None: ...
            """,
            "two workers are named 'note'",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_sentence(here, second, says):
    write(here, acme_workers__slash__one=WORKERS, acme_workers__slash__two=second, acme_workers__slash____init__="")

    with pytest.raises(UsageError, match=says):
        load_handlers(["acme_workers"])
