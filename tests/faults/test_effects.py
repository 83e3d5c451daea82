"""The effect log is read as far as it is written, and what a kill tore does not count."""

from __future__ import annotations

from tests.faults.checker import Effect
from tests.faults.effects import EffectLog


def test_effects_are_read_in_their_order_and_only_once(tmp_path):
    log = EffectLog(tmp_path / "log")
    append(log, b"\n1 0 c 7 0.5;\n2 0 c 7 0.5;")
    assert log.read() == [Effect(1, 0, "c", 7, 0.5), Effect(2, 0, "c", 7, 0.5)]

    append(log, b"\n1 1 u 8 1.5;")
    assert log.read() == [Effect(1, 0, "c", 7, 0.5), Effect(2, 0, "c", 7, 0.5), Effect(1, 1, "u", 8, 1.5)]
    assert len(log) == 3


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    log = EffectLog(tmp_path / "log")
    append(log, b"\n1 0 c 7 0.5;\n1 1 u 7 1")
    assert log.read() == [Effect(1, 0, "c", 7, 0.5)]

    append(log, b"2.5;")
    assert log.read() == [Effect(1, 0, "c", 7, 0.5), Effect(1, 1, "u", 7, 12.5)]


def test_a_line_that_a_kill_tore_does_not_count(tmp_path):
    log = EffectLog(tmp_path / "log")
    append(log, b"\n1 0 c 7 0.5;\n1 1 u 7 1\n1 1 u 8 2.5;")

    assert log.read() == [Effect(1, 0, "c", 7, 0.5), Effect(1, 1, "u", 8, 2.5)]


def append(log: EffectLog, data: bytes) -> None:
    with log.path.open("ab") as file:
        file.write(data)
