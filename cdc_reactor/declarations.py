"""What every declaration of a team's function is checked for: `handlers` and `workers` share it.

Everything wrong raises DefinitionError at import, naming file, line and function, and the cure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from typing import Any

from cdc_reactor.errors import DefinitionError


def label_of(function: Any, decorator: str) -> str:
    """Name a function by file, line and name; refuse what is none, or would never run."""
    if not inspect.isfunction(function):
        raise DefinitionError(f"{decorator} decorates a function (def or async def), not {function!r}")
    label = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno} {function.__name__}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"{label}: a function with `yield` in it would never run; publish by ctx.publish")
    return label


def place_of(function: Any) -> str:
    """Return file and line of a function."""
    assert inspect.isfunction(function), "decorators take plain functions only"
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


#: More is a mistake, and some of it would not even fit where such numbers go.
MOST = 100_000
LONGEST_TIMEOUT = 7 * 86_400.0


def check_whole(label: str, option: str, value: object, lowest: int = 1) -> None:
    """Refuse what is no whole number of at least `lowest`, or far too large a one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise DefinitionError(f"{label}: {option}={value!r} must be a whole number of at least {lowest}")
    if value > MOST:
        raise DefinitionError(f"{label}: {option}={value!r} must be {MOST:,} at most")


def check_wait(label: str, option: str, value: object) -> None:
    """Refuse what is no number of seconds, zero included."""
    if not _is_seconds(value):
        raise DefinitionError(f"{label}: {option}={value!r} must be seconds, zero or more")


def check_timeout(label: str, value: object) -> None:
    """Refuse what is no limit in seconds, and not None."""
    if value is not None and (not _is_seconds(value) or value == 0):
        raise DefinitionError(f"{label}: timeout={value!r} must be seconds above zero, or None")
    if isinstance(value, int | float) and value > LONGEST_TIMEOUT:
        raise DefinitionError(f"{label}: timeout={value!r} must be {LONGEST_TIMEOUT:g} s, a week, at most")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf


def check_choice(label: str, option: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse what is none of these words."""
    words = list(allowed)
    if value not in words:
        quoted = [f'"{word}"' for word in words]
        raise DefinitionError(f"{label}: {option}={value!r} must be {', '.join(quoted[:-1])} or {quoted[-1]}")


def check_options(label: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that does not exist, and suggest the nearest that does."""
    names = sorted(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
            raise DefinitionError(f"{label}: there is no option {name!r}{hint}")


def check_text(label: str, option: str, value: object) -> None:
    """Refuse what is no text."""
    if not isinstance(value, str):
        raise DefinitionError(f"{label}: {option}={value!r} must be text")


def check_truth(label: str, option: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise DefinitionError(f"{label}: {option}={value!r} must be True or False")


def check_two_parameters(label: str, function: Callable[..., Any], wanted: str) -> None:
    """Refuse a function that cannot be called with two arguments; `wanted` shows how it should look."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise DefinitionError(f"{label}: {wanted}: {error}") from None


def first_annotation(function: Callable[..., Any]) -> Any:
    """Return what the first parameter is annotated with; None where that is known to type checkers only."""
    annotation = next(iter(inspect.signature(function).parameters.values())).annotation
    return _resolve(annotation, function) if isinstance(annotation, str) else annotation


def _resolve(annotation: str, function: Callable[..., Any]) -> Any:
    try:
        return eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307 - the module's own annotation
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only; they check it
        return None
