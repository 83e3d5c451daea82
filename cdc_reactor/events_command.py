"""The command `events check`: compares what topics carry now with what they carried in a file or a git revision.

A revision's tree is unpacked in a temporary folder, and its modules are imported in a process of their own: two
versions of one module cannot be in this one. `event_changes` finds the differences; here is where both sides come from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from cdc_reactor.discovery import discover, load_handlers, present
from cdc_reactor.errors import UsageError
from cdc_reactor.event_changes import Finding, check_export, compare
from cdc_reactor.event_schemas import export

BREAKING = 1


def check(against: str, targets: Sequence[str], *, as_json: bool) -> int:
    """Compare with a file or a revision and print a line for each finding; return 0, or 1 where something breaks.

    Raises:
        UsageError: there is no such file or revision, or what is there now or was there then cannot be imported.
        DefinitionError: a field of an event has no JSON Schema.
    """
    names = present(targets)
    before = _read_file(Path(against)) if Path(against).is_file() else _read_revision(against, names)
    # As it would come from a file: numbers of fields become text.
    now = json.loads(json.dumps(export(load_handlers(names).events)))
    findings = compare(before, now)
    _print(findings, against, before, as_json=as_json)
    return BREAKING if findings else 0


def _print(findings: Sequence[Finding], against: str, before: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        told = {"against": against, "topics": len(before["events"]), "breaking": [asdict(each) for each in findings]}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for finding in findings:
        typer.echo(finding)
    topics = len(before["events"])
    count = f"{topics} topic{'' if topics == 1 else 's'} of {against}"
    typer.echo(f"{len(findings)} breaking, {count}" if findings else f"nothing breaking, {count}", err=True)


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--against {path}: cannot be read: {error.strerror}") from error
    except ValueError:
        value = None
    return check_export(value, str(path))


# ── a revision ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_revision(revision: str, targets: Sequence[str]) -> Mapping[str, Any]:
    top = _git(["rev-parse", "--show-toplevel"])
    if top is None:
        raise UsageError(f"--against {revision}: there is no such file, and this folder is in no git repository")
    commit = _git(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"])
    if commit is None:
        raise UsageError(
            f"--against {revision}: neither a file nor a revision that this repository has; a shallow clone lacks "
            "most of them: git fetch --unshallow"
        )
    repository = Path(top)
    with tempfile.TemporaryDirectory(prefix="cdc-reactor-revision-") as folder:
        tree = Path(folder).resolve() / "tree"
        _unpack(commit, repository, tree)
        here = tree / Path.cwd().resolve().relative_to(repository.resolve())
        if not here.is_dir():
            raise UsageError(f"--against {revision}: this folder was not there yet; compare from one that was")
        return _export_of(tree, here, repository, targets, revision)


def _git(arguments: Sequence[str], cwd: Path | None = None) -> str | None:
    """Return what git says; None where it refuses."""
    try:
        run = _run(["git", *arguments], cwd)
    except FileNotFoundError:
        raise UsageError("git is not installed; compare with a file: cdc-reactor events --json > events.json") from None
    return None if run.returncode else os.fsdecode(run.stdout).rstrip("\n")


def _run(command: Sequence[str], cwd: Path | None, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=given, capture_output=True, check=False, cwd=cwd)  # noqa: S603 - git, and Python


def _unpack(commit: str, repository: Path, tree: Path) -> None:
    archive = tree.with_suffix(".tar")
    if _git(["archive", "--format=tar", f"--output={archive}", commit], repository) is None:
        raise UsageError(f"git archive {commit}: git could not write the tree of this revision to {archive.parent}")
    with tarfile.open(archive) as tar:
        for member in tar:
            tar.extract(member, tree, filter=_inside_only)


def _inside_only(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Leave out links that lead out of the tree; no module of it is behind one."""
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


# The current folder must not come first: a revision of cdc_reactor itself may stand there.
_LAUNCH = "import sys; sys.path.insert(0, sys.argv[1]); from cdc_reactor.events_command import answer; answer()"


def _export_of(tree: Path, here: Path, repository: Path, targets: Sequence[str], revision: str) -> Mapping[str, Any]:
    """Import the modules of an unpacked tree in a process of their own, with this very cdc_reactor."""
    question = {"tree": str(tree), "repository": str(repository), "targets": list(targets)}
    answer = tree.with_name("answer.json")
    command = [sys.executable, "-P", "-c", _LAUNCH, str(Path(__file__).parents[1]), str(answer)]
    run = _run(command, here, json.dumps(question).encode())
    if run.returncode or not answer.exists():
        lines = run.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        raise UsageError(f"--against {revision}: its modules ended the interpreter: {lines[-1]}")
    told = json.loads(answer.read_bytes())
    if told["failures"]:
        failures = "\n  ".join(told["failures"])
        raise UsageError(
            f"--against {revision}: modules of that revision cannot be imported here; compare with a file that was "
            f"written then (cdc-reactor events --json), or install what they need:\n  {failures}"
        )
    for target in told["missing"]:
        typer.echo(f"note: there was no {target} in {revision}", err=True)
    return check_export(told["export"], revision)


def answer() -> None:
    """Write the export of a tree to the file that is named; what a process does that `_export_of` starts."""
    question = json.load(sys.stdin.buffer)
    repository, tree = Path(question["repository"]).resolve(), Path(question["tree"])
    sys.path[:] = [_then(entry, repository, tree) for entry in sys.path]
    targets = [_then(target, repository, tree) for target in question["targets"]]
    there = [target for target in targets if _is_there(target)]
    found = discover(there)
    told = {
        "failures": [str(failure) for failure in found.failures],
        "missing": [target for target in targets if target not in there],
        "export": None if found.failures else export(found.events),
    }
    Path(sys.argv[2]).write_text(json.dumps(told))


def _then(entry: str, repository: Path, tree: Path) -> str:
    """Turn a path of the working tree into that of the revision's; an editable install puts such a one on sys.path."""
    if not Path(entry).is_absolute():
        return entry
    path = Path(entry).resolve()
    # An environment often stands in the working tree and belongs to no revision.
    is_installed = any(path.is_relative_to(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    return str(tree / path.relative_to(repository)) if path.is_relative_to(repository) and not is_installed else entry


def _is_there(target: str) -> bool:
    try:
        discover([target], entry_points=False)
    except UsageError:
        return False
    return True
