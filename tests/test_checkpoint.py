from __future__ import annotations

import random
from pathlib import Path

import pytest

from cdc_reactor.checkpoint import Checkpoint, Watermark
from cdc_reactor.errors import UsageError, WorldError


@pytest.mark.parametrize("seed", range(20))
def test_the_watermark_is_the_number_settled_without_a_gap_in_whatever_order(seed):
    positions = list(range(200))
    random.Random(seed).shuffle(positions)
    mark, settled = Watermark(), set()

    for position in positions:
        mark.settle([position])
        settled.add(position)
        assert mark.settled == next(n for n in range(201) if n not in settled)


def started(checkpoint: Checkpoint, capture: Path) -> tuple[int, list[tuple[int, int]], bool]:
    mark, is_done = checkpoint.start(str(capture))
    return mark.settled, mark.ahead, is_done


def test_a_checkpoint_gives_back_what_was_reached(tmp_path):
    capture = tmp_path / "a.ndjson"
    capture.write_text("{}\n" * 10)
    first = Checkpoint(tmp_path / "c.json", {"skip": 0})
    assert started(first, capture) == (0, [], False)
    mark = Watermark()
    mark.settle([0, 1, 2, 5, 6, 8])
    first.reached(str(capture), mark)
    first.save()

    second = Checkpoint(tmp_path / "c.json", {"skip": 0})
    assert (second.is_resumed, started(second, capture)) == (True, (3, [(5, 6), (8, 8)], False))
    mark, _ = second.start(str(capture))
    assert [n for n in range(10) if mark.is_settled(n)] == [0, 1, 2, 5, 6, 8]
    mark.settle([3, 4, 7, 9])
    second.reached(str(capture), mark, is_done=True)
    second.save()

    assert started(Checkpoint(tmp_path / "c.json", {"skip": 0}), capture) == (10, [], True)


def test_a_capture_that_grew_has_more_to_give_and_one_that_shrank_is_another(tmp_path):
    capture = tmp_path / "a.ndjson"
    capture.write_text("{}\n" * 10)
    checkpoint = Checkpoint(tmp_path / "c.json", {})
    checkpoint.start(str(capture))
    checkpoint.reached(str(capture), Watermark(10), is_done=True)

    with capture.open("a") as file:
        file.write("{}\n")
    assert started(checkpoint, capture) == (10, [], False)

    capture.write_text("{}\n")
    with pytest.raises(UsageError, match="is not the file"):
        checkpoint.start(str(capture))


def test_a_checkpoint_that_cannot_be_written_is_the_worlds_fault(tmp_path):
    (tmp_path / "c").mkdir()
    checkpoint = Checkpoint(tmp_path / "c" / "c.json", {})
    (tmp_path / "c").rmdir()

    with pytest.raises(WorldError, match="cannot be written"):
        checkpoint.save()


@pytest.mark.parametrize("where", ["no such folder/c.json", "."])
def test_a_checkpoint_in_an_impossible_place_is_refused_before_anything_runs(tmp_path, where):
    with pytest.raises(UsageError, match="--checkpoint"):
        Checkpoint(tmp_path / where, {})


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "x", '{"version":1,"conditions":[],"files":{}}', '{"version":1,"conditions":{},"files":{"a":{}}}'],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "c.json").write_text(content)

    with pytest.raises(UsageError, match="this is no checkpoint"):
        Checkpoint(tmp_path / "c.json", {})
