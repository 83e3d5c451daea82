"""Where a peer's Python is: in this environment where it is installed here, else in one of its own under .cache/bench.

An environment is made when it is first needed, with the versions of google-cloud-pubsub, grpcio, protobuf and orjson
that are installed here, so that only the peers differ. It needs a package index then; without one, or without a Python
that the peer supports, `python_of` says so and the peer is missing from the result.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import say

_ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".cache" / "bench"

#: What every consumer has in the same version.
SHARED = ("google-cloud-pubsub", "grpcio", "protobuf", "orjson")
_INSTALL_SECONDS = 300

# Where pyenv and uv keep the Pythons that they installed, which need not be on the path.
_KEPT = (".pyenv/versions/3.*/bin/python", ".local/share/uv/python/*/bin/python3")


class Unavailable(Exception):
    """Raised when a peer cannot be run here; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What a peer is installed from; `python` is the oldest version that it supports."""

    name: str
    version: str
    python: tuple[int, int] = (3, 11)


def python_of(package: Package) -> str:
    """Return the interpreter that can import a peer, which may have to be installed first.

    Raises: Unavailable.
    """
    if find_spec(package.name) is not None:
        return sys.executable
    interpreter = _interpreter(package)
    folder = _ENVIRONMENTS / f"{package.name}-{package.version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"installing {package.name} {package.version} under {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([interpreter, "-m", "venv", str(folder)], package)
        wanted = [f"{package.name}=={package.version}", *(f"{name}=={version(name)}" for name in SHARED)]
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], package)
        (folder / "complete").touch()
    return str(python)


def python_version_of(python: str) -> str:
    """Say which Python an interpreter is; empty where it does not run."""
    asked = "import platform; print(platform.python_version())"
    try:
        found = subprocess.run([python, "-c", asked], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - our own interpreters
    except OSError:
        return ""
    return found.stdout.strip()


def _interpreter(package: Package) -> str:
    """Find a Python that is new enough; this one where it is."""
    for candidate in _interpreters():
        found = python_version_of(candidate)
        if found and tuple(map(int, found.split(".")[:2])) >= package.python:
            return candidate
    oldest = ".".join(map(str, package.python))
    raise Unavailable(f"{package.name} needs Python {oldest}, and none was found")


def _interpreters() -> Iterator[str]:
    yield sys.executable
    for minor in (12, 13, 14):
        if (found := shutil.which(f"python3.{minor}")) is not None:
            yield found
    for pattern in _KEPT:
        yield from map(str, sorted(Path.home().glob(pattern)))


def _run(command: list[str], package: Package) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)  # noqa: S603 - made above
    except subprocess.CalledProcessError as error:
        told = str(error.stderr).strip().splitlines()
        raise Unavailable(f"{package.name} could not be installed: {told[-1] if told else error}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{package.name} could not be installed: {error}") from None
