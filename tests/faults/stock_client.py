"""The control: the stock client with a straightforward callback, run as a process of its own beside ours.

`python stock_client.py PROJECT SUBSCRIPTION` with PUBSUB_EMULATOR_HOST, and CDC_REACTOR_FAULTS_LOG and …_WORK as for
`reacting`. Poison is nacked, everything else appended to the effect log and acknowledged; with
CDC_REACTOR_FAULTS_DATABASE each change is first written to a table there, and nacked where that fails. Each failure
adds a dot to the file …_FAILURES. SIGTERM ends it as the client's own documentation does it: cancel, then result.
https://cloud.google.com/pubsub/docs/samples/pubsub-subscriber-async-pull
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import psycopg
from google.cloud import pubsub_v1

_LOG = os.open(os.environ["CDC_REACTOR_FAULTS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
_FAILURES = os.open(os.environ["CDC_REACTOR_FAULTS_FAILURES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
_WORK = float(os.environ.get("CDC_REACTOR_FAULTS_WORK", "0"))
_DATABASE = os.environ.get("CDC_REACTOR_FAULTS_DATABASE", "")
_never = threading.Event()


def apply(message: Any) -> None:
    """Apply one change, or raise."""
    envelope = json.loads(message.data)
    after = envelope["after"]
    if _WORK:
        _never.wait(_WORK)
    if after["handle"] == "poison":
        raise RuntimeError("this change is poison")
    if _DATABASE:
        with psycopg.connect(_DATABASE, connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    line = f"\n{after['id']} {after['karma']} {envelope['op']} {os.getpid()} {time.monotonic():.6f};"
    os.write(_LOG, line.encode())


def react(message: Any) -> None:
    """Acknowledge what was applied, nack what was not."""
    try:
        apply(message)
    except Exception:  # noqa: BLE001 - the callback of many a service looks so
        os.write(_FAILURES, b".")
        message.nack()
    else:
        message.ack()


def main(project: str, subscription: str) -> None:
    """Consume until SIGTERM."""
    client = pubsub_v1.SubscriberClient()
    future = client.subscribe(client.subscription_path(project, subscription), callback=react)
    signal.signal(signal.SIGTERM, lambda *_: future.cancel())
    print("ready", flush=True)  # noqa: T201 - whoever started this process waits for that line
    with client:
        future.result()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
