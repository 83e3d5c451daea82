"""What is told of refused data names fields and reasons, and never a value."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from cdc_reactor.validation import told


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Author(BaseModel):
    email: str = Field(alias="eMail")

    @field_validator("email")
    @classmethod
    def _has_an_at(cls, value: str) -> str:
        if "@" not in value:
            raise ValueError(f"{value!r} is no address")
        return value


class Post(BaseModel):
    id: int = 0
    scores: dict[str, int] = {}
    author: Author | None = None
    others: list[Author] = []
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


def problem(**fields: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Post.model_validate(fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": "ada"}, "id: Input should be a valid integer, unable to parse string as an integer"),
        (
            {"scores": {"ada@forum.example": "x"}},
            "scores.…: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({"author": {"eMail": "ada lovelace"}}, "author.eMail: not valid (value_error)"),
        ({"others": [{"eMail": "a@b"}, {}]}, "others.1.eMail: Field required"),
        ({"pet": {"kind": "ada@forum.example"}}, "pet: not valid (union_tag_invalid)"),
    ],
)
def test_fields_are_named_and_values_are_not(fields, says):
    assert told(problem(**fields), Post) == says


def test_of_an_unknown_model_only_its_own_fields_are_named():
    assert told(problem(author={"eMail": 7})) == "author.…: Input should be a valid string"


def test_of_many_problems_the_first_are_told():
    error = problem(scores=dict.fromkeys("abcdef", "x"))

    assert told(error, Post).endswith("; and 2 more")
    assert told(error, Post).count("scores.…") == 4
