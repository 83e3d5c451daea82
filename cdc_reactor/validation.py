"""What is told of data that a pydantic model refuses: which field, and why, and nothing of what stood there.

Logs and dead letters carry it, so it must never hold a value: not as the key of a mapping, not as a tag, not in a text
that a team's own validator wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core.core_schema import ErrorType

_MOST = 4
# These texts are a validator's own, or quote what was sent.
_QUOTING = frozenset({"assertion_error", "value_error", "union_tag_invalid"})
_KNOWN = frozenset(get_args(ErrorType)) - _QUOTING


def told(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Tell of the first problems each field's path and what is wrong; without a model no more than its own fields."""
    names = set(_names(model, set())) if model is not None else None
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{_path(problem['loc'], names)}: {_reason(problem)}" for problem in problems[:_MOST]]
    return "; ".join([*lines, *([f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else [])])


def _path(location: tuple[int | str, ...], names: set[str] | None) -> str:
    parts = [
        str(part) if isinstance(part, int) or (part in names if names is not None else number == 0) else "…"
        for number, part in enumerate(location)
    ]
    return ".".join(parts) or "the message"


def _reason(problem: Any) -> str:
    return str(problem["msg"]) if problem["type"] in _KNOWN else f"not valid ({problem['type']})"


def _names(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Name the fields and aliases of a model, and of those in it."""
    seen.add(model)
    for name, field in model.model_fields.items():
        yield name
        yield from (alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str))
        for inner in _models_in(field.annotation):
            if inner not in seen:
                yield inner.__name__
                yield from _names(inner, seen)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
