"""Turns: places go round."""

from __future__ import annotations

from cdc_reactor.turns import Turns


class Places:
    """A runner with so many places, and those who take them; nobody gives one back by itself."""

    def __init__(self, room: int) -> None:
        self.room = room


class Somebody:
    """Wants so many places, one at a time, and waits where there is none."""

    def __init__(self, name: str, wants: int, places: Places, turns: Turns, taken: list[str]) -> None:
        self.name, self.wants, self.places, self.turns, self.taken = name, wants, places, turns, taken

    def advance(self) -> None:
        while self.wants and self.places.room:
            self.wants -= 1
            self.places.room -= 1
            self.taken.append(self.name)
        if self.wants:
            self.turns.wait(self)


def stage(room: int, **wants: int) -> tuple[Places, Turns, dict[str, Somebody], list[str]]:
    places = Places(room)
    taken: list[str] = []
    turns = Turns(places)
    everybody = {name: Somebody(name, count, places, turns, taken) for name, count in wants.items()}
    for one in everybody.values():
        one.advance()
    return places, turns, everybody, taken


def test_each_place_that_becomes_free_goes_to_who_has_waited_longest():
    places, turns, everybody, taken = stage(1, a=4, b=2, c=2)

    for _ in range(7):
        places.room += 1
        turns.came_back(everybody[taken[-1]])

    assert taken == ["a", "a", "b", "c", "a", "b", "c", "a"]


def test_who_wants_nothing_more_hands_the_place_on():
    places, turns, everybody, taken = stage(1, a=1, b=1)

    places.room += 1
    turns.came_back(everybody["a"])

    assert taken == ["a", "b"]


def test_as_many_are_served_as_there_is_room():
    places, turns, everybody, taken = stage(1, a=1, b=1, c=1, d=1)

    places.room += 2
    turns.came_back(everybody["a"])

    assert (taken, places.room) == (["a", "b", "c"], 0)
