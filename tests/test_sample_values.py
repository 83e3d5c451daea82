"""Values of types, and how Python writes them: the text makes the value, with nothing but the imports that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from importlib import import_module
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AwareDatetime, BaseModel, Field

from cdc_reactor.sample_values import NoSample, sample, sample_model


class Colour(Enum):
    RED = 1
    GREEN = 2


class Place(BaseModel):
    city: str
    street: str | None = None


class Odd(BaseModel):
    class_: int = Field(alias="class")
    place: Place
    places: list[Place]
    colour: Colour


class Strict(BaseModel):
    code: str = Field(pattern="^[A-Z]{12}$")


class Callback(BaseModel):
    thing: AbstractSet[object] | type


TYPES = (
    int, str, float, bool, bytes, UUID, Decimal, date, time, timedelta, datetime, AwareDatetime, dict, list, type(None),
    list[int], list[UUID], Sequence[str], set[int], frozenset[str], AbstractSet[int], tuple[int, ...], tuple[int, str],
    dict[str, list[int]], Mapping[str, UUID], int | None, None | str, Literal["a'b\"c"], Literal[3], Annotated[int, "note"], Any,
)  # fmt: skip


@pytest.mark.parametrize("annotation", TYPES, ids=str)
def test_the_text_of_a_value_makes_the_value(annotation):
    made = sample(annotation)

    names = {name: getattr(import_module(home), name) for name, home in made.homes.items()}
    assert eval(made.text, names) == made.value


def test_a_choice_with_nothing_in_it_is_something():
    assert sample(int | None).text == "1"
    assert sample(type(None)).text == "None"


def test_a_model_is_made_of_its_required_fields():
    made = sample_model(Odd)

    assert made.text == 'Odd(place=Place(city="a"), places=[Place(city="a")], colour=Colour.RED, **{"class": 1})'
    assert made.value == Odd(place=Place(city="a"), places=[Place(city="a")], colour=Colour.RED, **{"class": 1})
    assert set(made.homes) == {"Odd", "Place", "Colour"}


def test_what_nobody_can_guess_is_said_to_be_so():
    class Hidden(BaseModel):
        pass

    for annotation in (Strict, complex, list[complex], Literal[b"a"], complex | bytearray, Hidden, type[int]):
        with pytest.raises(NoSample):
            sample(annotation)
