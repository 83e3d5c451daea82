"""The list of the emulator's gaps names cases that there are, and says when the emulator takes no part."""

from __future__ import annotations


def test_every_gap_names_a_case(named_gaps, collected_cases):
    collected = {module for module, _ in collected_cases}
    named = {(module, case) for module, gaps in named_gaps.items() for case in gaps if module in collected}

    assert named - collected_cases == set()


def test_googles_emulator_takes_part(emulator):
    assert emulator.exists()
