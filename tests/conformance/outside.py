"""Google's own system tests of google-cloud-pubsub against our broker: `python tests/conformance/outside.py`.

The package's source distribution carries `tests/system.py`. It runs in an environment of its own, against a broker in
this process, with a throw-away service account: the suite wants credentials, and with PUBSUB_EMULATOR_HOST no client
shows them to anybody. Left out are the tests over REST, which no emulator serves; those of roles skip themselves without
real accounts. Any other failure, and a run that tested less than expected, ends with status 1.

What it downloads and installs stays in the cache folder, so the second run starts at once. Words after `--` go to pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import venv
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cdc_reactor.local.broker_server import LocalBroker

PACKAGE = "google-cloud-pubsub"
PROJECT = "outside-suite"
#: What tests/system.py of 2.44 imports beside the package itself.
NEEDS = ["cryptography", "flaky", "google-cloud-testutils", "mock", "psutil", "pytest", "pytest-timeout"]
#: The gRPC tests of 2.44 that need no roles; fewer means that the suite was not found or not run.
LEAST = 16


def main() -> int:
    arguments = _arguments()
    cache: Path = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    python, suite = _environment(cache), _suite(cache)
    report = cache / "report.xml"
    report.unlink(missing_ok=True)
    with LocalBroker.start() as broker:
        _say(f"{suite.parent.parent.name}: tests/system.py against our broker on {broker.address}")
        command = [
            str(python),
            "-m",
            "pytest",
            str(suite),
            "-q",
            "-k",
            "not rest",
            f"--junit-xml={report}",
            "--timeout=120",
        ]
        command += ["-p", "no:cacheprovider", *arguments.pytest]
        # From its own folder: it must not find our settings.
        status = subprocess.run(command, check=False, cwd=suite.parent, env=_settings(cache, broker.address)).returncode
    return _judge(report, status, is_whole=not arguments.pytest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run Google's system tests of google-cloud-pubsub against our broker.")
    parser.add_argument("--cache", type=Path, default=Path(".cache/conformance"), help="default: %(default)s")
    parser.add_argument("pytest", nargs="*", help="after --: more arguments for pytest")
    return parser.parse_args()


def _environment(cache: Path) -> Path:
    """Return the Python of an environment with the suite's packages, made when it is missing."""
    wanted = [f"{PACKAGE}=={version(PACKAGE)}", *NEEDS]
    folder, stamp = cache / "venv", cache / "venv" / "installed.json"
    python = folder / "bin" / "python"
    if not stamp.exists() or json.loads(stamp.read_text()) != wanted:
        _say(f"Installing the suite's packages into {folder} …")
        venv.create(folder, with_pip=True, clear=True)
        _pip(python, "install", *wanted)
        stamp.write_text(json.dumps(wanted))
    return python


def _suite(cache: Path) -> Path:
    """Return tests/system.py of the installed version, downloaded when it is missing."""
    name = f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}"
    suite = cache / name / "tests" / "system.py"
    if not suite.exists():
        _say(f"Downloading the source of {name} …")
        wanted = f"{PACKAGE}=={version(PACKAGE)}"
        _pip(Path(sys.executable), "download", "--no-deps", "--no-binary", PACKAGE, "--dest", str(cache), wanted)
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return suite


def _pip(python: Path, *arguments: str) -> None:
    try:
        subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)
    except subprocess.CalledProcessError:
        sys.exit(f"pip {arguments[0]} failed, see above; the outside suite needs a package index")


def _settings(cache: Path, address: str) -> dict[str, str]:
    """Return the environment: the broker, and credentials that nothing would accept."""
    key = cache / "throw-away-service-account.json"
    key.touch(mode=0o600)
    key.write_text(json.dumps(_service_account()))
    # As a user's would, our own settings of pytest and Python stay out.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "KOKORO"))}
    return {**kept, "PUBSUB_EMULATOR_HOST": address, "GOOGLE_APPLICATION_CREDENTIALS": str(key)}


def _service_account() -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "throw-away",
        "private_key": encoded.decode(),
        "client_email": f"nobody@{PROJECT}.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": "https://127.0.0.1/never-asked",
    }


def _judge(report: Path, status: int, *, is_whole: bool) -> int:
    """Print the counts; return the status to end with."""
    if not report.exists():
        _say(f"pytest wrote no report (status {status})")
        return 1
    (suite,) = ET.parse(report).getroot().iter("testsuite")
    total, failed, skipped = (int(suite.get(name, "0")) for name in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors", "0"))
    passed = total - failed - skipped
    _say(f"outside suite: {passed} passed, {failed} failed, {skipped} skipped in {float(suite.get('time', '0')):.0f} s")
    if is_whole and passed + failed < LEAST:
        _say(f"only {passed + failed} tests ran and {LEAST} were expected: has the suite changed?")
        return 1
    return 1 if failed or status else 0


def _say(line: str) -> None:
    # At once: pytest and pip write to the same terminal.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
