"""memory: the most that a replay ever holds, for a file and for one ten times as large; it must be the same.

Each replay runs in a process of its own (`python -m benchmarks.memory PATH`), which tells its own peak at the end.
"""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.corpus import FORMS, endless
from benchmarks.harness import Case, Corpus, Figure, Result, say
from benchmarks.replay import replay, write

NAME = "memory"
MESSAGES = 10_000
TIMES_LARGER = 10
MAX_ROUNDS = 3

_TARGET = 1.1


def run(rounds: int) -> Result:
    """Measure plain files and packed ones; a few rounds are enough, for memory hardly varies."""
    result = Result(NAME)
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            for suffix, make in (("ndjson", write), ("ndjson.gz", _write_packed)):
                result.cases.append(_measure(f"{form} {suffix}", Path(folder, suffix), form, make, rounds))
    return result


def _measure(name: str, path: Path, form: str, make: Callable[[Path, str, int], Corpus], rounds: int) -> Case:
    small, large = path.with_stem("small"), path.with_stem("large")
    make(small, form, MESSAGES)
    corpus = make(large, form, MESSAGES * TIMES_LARGER)
    peaks: list[tuple[int, int]] = []
    for number in range(min(rounds, MAX_ROUNDS)):
        say(f"{NAME} {name}: round {number + 1} of {min(rounds, MAX_ROUNDS)}")
        peaks.append((_peak_of(small), _peak_of(large)))
    small.unlink()
    large.unlink()
    growth = Figure.of([many / few for few, many in peaks])
    return Case(
        benchmark=NAME,
        case=name,
        against=f"a file of 1/{TIMES_LARGER}",
        unit="times the peak memory",
        peak_mb=median(many for _, many in peaks) / 1e6,
        growth=growth.median,
        spread=(growth.q1, growth.q3),
        target=_TARGET,
        target_is_limit=True,
        messages=corpus.messages,
        bytes=corpus.size_bytes,
        rounds=len(peaks),
    )


def _write_packed(path: Path, form: str, count: int) -> Corpus:
    size_bytes = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        for data in islice(endless(form), count):
            size_bytes += file.write(data + b"\n")
    return Corpus(messages=count, size_bytes=size_bytes)


def _peak_of(path: Path) -> int:
    done = subprocess.run(  # noqa: S603 - this module, and a path that we made
        [sys.executable, "-m", "benchmarks.memory", str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def _own_peak() -> int:
    """Return the most bytes that this process ever had resident."""
    # Linux hands ru_maxrss down through exec: a child of a large parent starts with the parent's peak. VmHWM does not
    # outlive exec; it is the same figure, without the parent.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    replay(Path(sys.argv[1]))
    print(_own_peak())
