from __future__ import annotations

import random

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


def test_a_checkpoint_gives_back_what_was_reached(tmp_path):
    capture = tmp_path / "a.ndjson"
    capture.write_text("{}\n" * 10)
    first = Checkpoint(tmp_path / "c.json", {"skip": 0})
    assert first.start(str(capture)) == (0, False)
    first.reached(str(capture), 7)
    first.save()

    second = Checkpoint(tmp_path / "c.json", {"skip": 0})
    assert (second.is_resumed, second.start(str(capture))) == (True, (7, False))
    second.reached(str(capture), 10, is_done=True)
    second.save()

    assert Checkpoint(tmp_path / "c.json", {"skip": 0}).start(str(capture)) == (10, True)


def test_a_capture_that_grew_has_more_to_give_and_one_that_shrank_is_another(tmp_path):
    capture = tmp_path / "a.ndjson"
    capture.write_text("{}\n" * 10)
    checkpoint = Checkpoint(tmp_path / "c.json", {})
    checkpoint.start(str(capture))
    checkpoint.reached(str(capture), 10, is_done=True)

    with capture.open("a") as file:
        file.write("{}\n")
    assert checkpoint.start(str(capture)) == (10, False)

    capture.write_text("{}\n")
    with pytest.raises(UsageError, match="is not the file"):
        checkpoint.start(str(capture))


def test_a_checkpoint_that_cannot_be_written_is_the_worlds_fault(tmp_path):
    checkpoint = Checkpoint(tmp_path / "no such folder" / "c.json", {})

    with pytest.raises(WorldError, match="cannot be written"):
        checkpoint.save()
