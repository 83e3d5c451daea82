"""Many subscriptions in one process: `python -m benchmarks.many_workers [--workers N] [--rate N] [--seconds N]`.

A broker and a daemon run as processes of their own; this one publishes, at an even pace, to all topics. In the end it
tells what was lost or came twice, how long messages were on their way (from before their publication until their worker
had them), and the most threads and memory that the daemon had, as the kernel counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.many_workers_topics import NOTE, topic_of
from cdc_reactor.messages import Message
from cdc_reactor.pubsub_connection import Connection
from cdc_reactor.pubsub_publisher import Publisher

_START_SECONDS = 60.0
_END_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked for."""

    workers: int
    topics: int
    rate: float
    seconds: float

    @property
    def messages(self) -> int:
        """How many messages each worker is to get."""
        return round(self.rate * self.seconds)


def main() -> None:
    """Run it and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--topics", type=int, default=20, help="over which the workers are spread")
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second for each worker")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    load = Load(workers=given.workers, topics=min(given.topics, given.workers), rate=given.rate, seconds=given.seconds)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(_run(load, Path(folder)))
    sys.stdout.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() + "\n")


async def _run(load: Load, folder: Path) -> dict[str, Any]:
    notes = folder / "notes"
    broker = _start("broker", "--memory", "--port", "0", folder=folder)
    address = await _address(broker)
    environment = {
        "MANY_WORKERS": str(load.workers),
        "MANY_WORKERS_TOPICS": str(load.topics),
        "MANY_WORKERS_NOTES": str(notes),
    }
    handlers = str(Path(__file__).with_name("many_workers_handlers.py"))
    daemon = _start(
        "run", "--handlers", handlers, "--pubsub-host", address, "--health-port", "off", folder=folder, **environment
    )
    try:
        await _up(daemon)
        watch = asyncio.create_task(_watch(daemon.pid))
        await _publish(load, address)
        await _arrived(load, notes)
        watch.cancel()
        threads, resident_bytes, cpu_seconds = await watch
    finally:
        for process in (daemon, broker):
            process.terminate()
            process.wait(30)
    return {**_figures(load, notes), "threads": threads, "resident_mb": round(resident_bytes / 1e6, 1)} | {
        "cpu_share": round(cpu_seconds / load.seconds, 2)
    }


def _start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "cdc_reactor.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    )


async def _line(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None, "it was asked for"
    while line := await asyncio.to_thread(process.stdout.readline):
        if beginning in line:
            return line
    raise SystemExit(f"{process.args!r} ended before it was up")


async def _address(broker: subprocess.Popen[str]) -> str:
    line = await asyncio.wait_for(_line(broker, "listening on"), _START_SECONDS)
    return next(word.strip(",") for word in line.split() if word.startswith("127.0.0.1:"))


async def _up(daemon: subprocess.Popen[str]) -> None:
    # The table of workers is the last that it says.
    await asyncio.wait_for(_line(daemon, "└"), _START_SECONDS)
    # What it prints after that must not fill the pipe.
    asyncio.get_running_loop().run_in_executor(None, daemon.stdout.read)  # type: ignore[union-attr]


async def _publish(load: Load, address: str) -> None:
    connection = await Connection.open(project="local", emulator_host=address)
    publisher = Publisher(connection, delay=0.0)
    begun, total, sending = time.perf_counter(), load.messages * load.topics, set()
    for sent in range(total):
        number, topic = divmod(sent, load.topics)
        due = begun + sent / (load.rate * load.topics)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        data = orjson.dumps({"number": number, "sent": time.time()})
        task = asyncio.create_task(publisher.publish(topic_of(topic), [Message(data)]))
        sending.add(task)
        task.add_done_callback(sending.discard)
    await asyncio.gather(*sending)
    await publisher.close()
    await connection.close()


async def _arrived(load: Load, notes: Path) -> None:
    """Wait until all has come, or nothing more does."""
    wanted = NOTE.size * load.messages * load.workers
    for _ in range(round(10 * _END_SECONDS)):
        if _size(notes) >= wanted:
            break
        await asyncio.sleep(0.1)


def _size(notes: Path) -> int:
    return notes.stat().st_size if notes.exists() else 0


async def _watch(pid: int) -> tuple[int, int, float]:
    threads = resident_bytes = 0
    begun = _cpu_seconds(pid)
    try:
        while True:
            status = _status(pid)
            threads = max(threads, int(status["Threads"]))
            resident_bytes = max(resident_bytes, int(status["VmHWM"].split()[0]) * 1024)
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return threads, resident_bytes, _cpu_seconds(pid) - begun


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks: float = int(fields[11]) + int(fields[12])
    return ticks / int(os.sysconf("SC_CLK_TCK"))


def _figures(load: Load, notes: Path) -> dict[str, Any]:
    found = list(NOTE.iter_unpack(notes.read_bytes()))
    seen = Counter((worker, number) for worker, number, _ in found)
    expected = {(worker, number) for worker in range(load.workers) for number in range(load.messages)}
    delays = sorted(delay for _, _, delay in found)

    def at(share: float) -> float:
        delay: float = delays[min(len(delays) - 1, int(share * len(delays)))]
        return round(1000 * delay, 2)

    return {
        "workers": load.workers,
        "topics": load.topics,
        "messages": len(expected),
        "lost": len(expected - seen.keys()),
        "twice": sum(count - 1 for count in seen.values()),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "p999_ms": at(0.999),
        "longest_ms": round(1000 * delays[-1], 2),
    }


if __name__ == "__main__":
    main()
