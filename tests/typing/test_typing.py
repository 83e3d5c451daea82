"""What mypy and pyright say of right and wrong workers, and of right and wrong events.

A line of `snippets/` that ends with `# error: TEXT` is wrong on purpose: each checker must complain about that very
line, in words that contain TEXT, and about no other line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SNIPPETS = sorted((HERE / "snippets").glob("*.py"))
MARK = re.compile(r"  # error: (.+)$")

#: What was said of each line: (file, line) → all of it.
Complaints = Mapping[tuple[str, int], str]


def run(*command: str | Path) -> str:
    # Neither looks for newer versions of itself: there may be no network.
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    # 0: nothing is wrong, 1: something is, 2 and more: the checker itself failed.
    assert done.returncode <= 1, done.stdout + done.stderr
    return done.stdout


def by_mypy(cache: Path) -> Complaints:
    told = run("mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache), "--output", "json", *SNIPPETS)
    complaints: dict[tuple[str, int], str] = defaultdict(str)
    for line in told.splitlines():
        complaint = json.loads(line)
        if complaint["severity"] == "error":
            complaints[Path(complaint["file"]).name, complaint["line"]] += complaint["message"] + "\n"
    return complaints


def by_pyright(_: Path) -> Complaints:
    told = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, *SNIPPETS))
    complaints: dict[tuple[str, int], str] = defaultdict(str)
    for complaint in told["generalDiagnostics"]:
        # Lines count from 0 there.
        line = complaint["range"]["start"]["line"] + 1
        complaints[Path(complaint["file"]).name, line] += complaint["message"] + "\n"
    return complaints


def expected() -> dict[tuple[str, int], str]:
    return {
        (file.name, number): found[1]
        for file in SNIPPETS
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if (found := MARK.search(line))
    }


@pytest.mark.parametrize("check", [by_mypy, by_pyright], ids=["mypy", "pyright"])
def test_what_is_wrong_is_told_and_what_is_right_is_not(check: Callable[[Path], Complaints], tmp_path: Path):
    wrong, told = expected(), check(tmp_path)

    unexpected = {place: text for place, text in told.items() if place not in wrong}
    missed = {place: text for place, text in wrong.items() if text not in told.get(place, "")}
    assert (unexpected, missed) == ({}, {})


def test_the_snippets_show_what_is_right_and_what_is_wrong():
    marked = {file for file, _ in expected()}

    assert marked == {file.name for file in SNIPPETS if file.name.startswith("wrong_")} != set()
    assert {"declared.py", "right.py"} <= {file.name for file in SNIPPETS}
