"""The command `events check`, as a person runs it: against a file, and against revisions of a git repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cdc_reactor
from cdc_reactor import events_command
from cdc_reactor.errors import UsageError

BEFORE = '''
"""Events."""
from cdc_reactor.events import Event


class Upvoted(Event, topic="post.upvoted.v1"):
    post_id: int
    voter: str
'''
AFTER = BEFORE.replace("    voter: str\n", "    by: str\n")
HARMLESS = BEFORE + "    why: str | None = None\n"
REMOVED = "post.upvoted.v1: voter: field removed; keep it, or publish it as post.upvoted.v2"
REQUIRED = (
    "post.upvoted.v1: by: new field is required, and what is published already lacks it; give it a default, or "
    "publish it as post.upvoted.v2"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # A repository around the temporary folder is none of ours.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    return tmp_path


@pytest.fixture
def repository(folder: Path) -> Path:
    git("init", "--quiet", "--initial-branch=main")
    commit("first", BEFORE)
    return folder


def git(*arguments: str) -> str:
    author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return subprocess.run(["git", *author, *arguments], check=True, capture_output=True, text=True).stdout


def commit(name: str, text: str, module: str = "facts/__init__.py") -> None:
    write(text, module)
    git("add", "--all")
    git("commit", "--quiet", "--message", name)
    git("tag", name)


def write(text: str, module: str = "facts/__init__.py") -> None:
    Path(module).parent.mkdir(parents=True, exist_ok=True)
    Path(module).write_text(text)


def check(against: str, *options: str, handlers: str = "facts", **environment: str) -> tuple[int, list[str], str]:
    """Run the command in a process of its own, because a module is imported once only; status, findings, the rest."""
    command = [sys.executable, "-m", "cdc_reactor.cli", "events", "check", "--handlers", handlers, "--against", against]
    ours = str(Path(cdc_reactor.__file__).parents[1])
    done = subprocess.run(
        [*command, *options],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ours, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def export() -> str:
    command = [sys.executable, "-m", "cdc_reactor.cli", "events", "--json", "--handlers", "facts"]
    ours = {**os.environ, "PYTHONPATH": str(Path(cdc_reactor.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ours).stdout


def test_against_a_file(folder):
    write(BEFORE)
    Path("before.json").write_text(export())
    same = check("before.json")
    write(AFTER)
    broken = check("before.json")
    write(HARMLESS)

    assert same == (0, [], "nothing breaking, 1 topic of before.json\n")
    assert broken == (1, [REMOVED, REQUIRED], "2 breaking, 1 topic of before.json\n")
    assert check("before.json") == (0, [], "nothing breaking, 1 topic of before.json\n")


def test_against_a_revision(repository):
    commit("second", AFTER)

    assert check("first") == (1, [REMOVED, REQUIRED], "2 breaking, 1 topic of first\n")
    assert check("HEAD") == (0, [], "nothing breaking, 1 topic of HEAD\n")
    assert git("status", "--porcelain") == ""


def test_what_is_not_committed_is_what_there_is_now(repository):
    write(AFTER)

    assert check("HEAD")[:2] == (1, [REMOVED, REQUIRED])


def test_from_a_folder_below_that_of_the_repository(repository, monkeypatch):
    commit("below", BEFORE, "service/parts/__init__.py")
    write(AFTER, "service/parts/__init__.py")
    monkeypatch.chdir("service")

    assert check("below", handlers="parts")[:2] == (1, [REMOVED, REQUIRED])
    assert check("first", handlers="parts") == (
        2,
        [],
        "cdc-reactor: --against first: this folder was not there yet; compare from one that was\n",
    )


def test_a_working_tree_on_the_path_is_not_taken_for_the_revision(repository):
    """As it is with an editable install."""
    commit("source", BEFORE, "src/parts/__init__.py")
    write(AFTER, "src/parts/__init__.py")
    path = os.pathsep.join([str(repository / "src"), str(Path(cdc_reactor.__file__).parents[1])])

    assert check("source", handlers="parts", PYTHONPATH=path)[:2] == (1, [REMOVED, REQUIRED])


def test_a_package_that_was_not_there_yet_is_told_and_breaks_nobody(repository):
    write(AFTER, "later/__init__.py")

    assert check("first", handlers="later") == (
        0,
        [],
        "note: there was no later in first\nnothing breaking, 0 topics of first\n",
    )


def test_as_json(repository):
    write(BEFORE.replace("post_id: int", "post_id: str"))
    status, lines, rest = check("first", "--json")

    assert (status, rest) == (1, "")
    assert json.loads("\n".join(lines)) == {
        "against": "first",
        "topics": 1,
        "breaking": [
            {
                "topic": "post.upvoted.v1",
                "path": "post_id",
                "what": "type changed from integer to text",
                "cure": "keep its type, or publish it as post.upvoted.v2",
            }
        ],
    }


def refused(against: str) -> str:
    """Why there is nothing to compare with; in this process, because nothing of now is imported then."""
    with pytest.raises(UsageError) as refusal:
        events_command.check(against, ["facts"], as_json=False)
    return str(refusal.value)


def test_what_is_no_revision_is_refused(repository):
    cure = "neither a file nor a revision that this repository has; a shallow clone lacks most of them: git fetch"

    assert refused("nowhere").startswith(f"--against nowhere: {cure}")
    assert refused("--all").startswith(f"--against --all: {cure}")


def test_a_revision_that_cannot_be_imported_is_told_with_file_and_line(repository):
    commit("broken", "import nowhere_at_all\n")
    commit("exits", "import os\nos._exit(0)\n")

    assert refused("broken") == (
        "--against broken: modules of that revision cannot be imported here; compare with a file that was written then "
        "(cdc-reactor events --json), or install what they need:\n"
        "  facts/__init__.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"
    )
    assert refused("exits") == "--against exits: its modules ended the interpreter: without a word"


def test_a_file_that_is_no_export_is_refused(folder):
    Path("list.json").write_text("[]")
    Path("text.json").write_text("nothing")

    for name in ("list.json", "text.json"):
        assert refused(name) == (
            f"{name}: it is no export of events; write one with `cdc-reactor events --json > {name}`"
        )


def test_outside_of_a_repository_only_a_file_will_do(folder):
    assert refused("main") == "--against main: there is no such file, and this folder is in no git repository"


def test_where_git_is_not_installed_a_file_is_advised(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))

    assert refused("first") == "git is not installed; compare with a file: cdc-reactor events --json > events.json"


def test_a_usage_error_is_told_in_one_sentence_with_its_status(repository):
    assert check("nowhere")[:2] == (2, [])
    assert check("nowhere")[2].startswith("cdc-reactor: --against nowhere: neither")


def test_links_that_lead_out_of_the_tree_do_no_harm(repository):
    Path("outside").symlink_to("/etc")
    commit("linked", BEFORE)
    write(AFTER)

    assert check("linked")[:2] == (1, [REMOVED, REQUIRED])
