"""Python source text, written as the formatter would: names, imports, calls, comments, docstrings, literals.

Pure, and knows nothing of tables or events: `scaffold`, `event_scaffold` and `worker_scaffold` say what is written.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count

LINE_LENGTH = 120


def words(text: str) -> str:
    """Write any name in lower case ASCII with underscores; empty where nothing of it is left."""
    ascii_text = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode()
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", ascii_text)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def numbered(name: str) -> Iterable[str]:
    """Give a name, and others after it: `name`, `name_2`, `name_3`, … without end."""
    yield name
    yield from (f"{name}_{n}" for n in count(2))


def identifiers(text: str) -> list[str]:
    """Name what a line of code mentions, its strings left out."""
    return re.findall(r"[A-Za-z_]\w*", re.sub(r'"[^"]*"', "", text))


def join(*lines: str) -> str:
    """Make a file of lines."""
    return "\n".join(lines) + "\n"


def call(
    start: str, arguments: Sequence[str], end: str, indent: int, broken: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Break a line where the formatter would; `broken` has the lines of arguments that are too long for one."""
    line = f"{start}({', '.join(arguments)}){end}"
    if len(line) <= LINE_LENGTH:
        return [line]
    margin = " " * indent
    inner = f"{margin}    {', '.join(arguments)}"
    if len(inner) <= LINE_LENGTH:
        return [f"{start}(", inner, f"{margin}){end}"]
    lines = []
    for argument in arguments:
        fits = len(f"{margin}    {argument},") <= LINE_LENGTH
        *parts, last = [argument] if fits else (broken or {}).get(argument, [argument])
        lines += [f"{margin}    {part}" for part in (*parts, f"{last},")]
    return [f"{start}(", *lines, f"{margin}){end}"]


def chain(start: str, first: str, calls: Sequence[str]) -> list[str]:
    """Break a chain of calls where the formatter would."""
    line = f"{start}{first}{''.join(calls)}"
    if len(line) <= LINE_LENGTH:
        return [line]
    return [f"{start}(", *(f"        {part}" for part in (first, *calls)), "    )"]


def comment(text: str, indent: int) -> list[str]:
    """Wrap a comment."""
    lines, margin = [""], " " * indent + "# "
    for word in one_line(text).split():
        if lines[-1] and len(margin) + len(lines[-1]) + 1 + len(word) > LINE_LENGTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [margin + line for line in lines]


def without_comment(line: str) -> str:
    """Leave out the comment of a line."""
    return "" if line.lstrip().startswith("#") else re.sub(r"  # .*", "", line)


def one_line(text: str) -> str:
    """Write spaces for what cannot be printed, line ends among it."""
    return "".join(c if c.isprintable() else " " for c in text)


def docstring(text: str, indent: int = 0) -> str:
    """Write a docstring of one line; a name too long for it loses its end."""
    body = one_line(text).replace("\\", "/").replace('"', "'")
    room = LINE_LENGTH - indent - len('""""""')
    return f'{" " * indent}"""{body if len(body) <= room else body[: room - 2] + "…."}"""'


def quote(text: str) -> str:
    """Write a string literal with the quotes that the formatter would choose."""
    mark = "'" if '"' in text and "'" not in text else '"'
    return f"{mark}{''.join(_escape(c, mark) for c in text)}{mark}"


def _escape(character: str, mark: str) -> str:
    if character in ("\\", mark):
        return f"\\{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def percent(text: str) -> str:
    """Write text that is part of a logger's format."""
    return text.replace("%", "%%")


def write_tuple(names: Sequence[str]) -> str:
    """Write a tuple of strings."""
    return f"({', '.join(map(quote, names))}{',' if len(names) == 1 else ''})"


def write_imports(homes: Mapping[str, str], *, first_party: Collection[str]) -> list[str]:
    """Import names from their modules; `first_party` are the packages of the project, which linters put last."""
    sections: list[dict[str, list[str]]] = [{}, {}, {}]
    for name, home in homes.items():
        package = home.partition(".")[0]
        place = 0 if package in sys.stdlib_module_names else 2 if package in first_party else 1
        sections[place].setdefault(home, []).append(name)
    written = [[line for home in sorted(each, key=_natural) for line in _import(home, each[home])] for each in sections]
    return "\n\n".join("\n".join(lines) for lines in written if lines).split("\n")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort as linters do: `a2` before `a10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _import(home: str, names: Sequence[str]) -> list[str]:
    ordered = sorted(names, key=lambda n: (not n.isupper() or len(n) == 1, not n[0].isupper(), n))
    line = f"from {home} import {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH:
        return [line]
    return [f"from {home} import (", *(f"    {name}," for name in ordered), ")"]
