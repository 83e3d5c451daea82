"""The text of a new handler: its Row model, a small working handler, and a test that runs it.

Pure: a `Table` goes in, `Sources` come out; nothing is read or written here. `table_columns` makes the Table from a
capture or a database, `cli` writes the files. What is generated passes ruff, mypy strict and its own test as it stands,
so every rule of naming and line length that they have is known here.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from cdc_reactor.changes import Row
from cdc_reactor.envelope import TableId

_LINE_LENGTH = 120
_MAX_NAME = 63  # of a name in PostgreSQL

# Where each name comes from that generated code may use.
_HOMES = {
    "collections": ("Counter",),
    "datetime": ("UTC", "date", "datetime", "time", "timedelta"),
    "decimal": ("Decimal",),
    "typing": ("Annotated", "Any"),
    "uuid": ("UUID",),
    "pydantic": ("Field", "Json"),
    "cdc_reactor": (
        "Base64Bytes", "Base64UrlBytes", "Batch", "Context", "DecimalBytes", "DecimalString", "EpochDays", "Geometry",
        "HexBytes", "Infinity", "Interval", "IsoDate", "IsoText", "IsoTime", "IsoTimestamp", "MicroDuration",
        "MicroTime", "MicroTimestamp", "MilliTime", "MilliTimestamp", "NanoTime", "NanoTimestamp", "Point", "Row",
        "VariableDecimal", "handles",
    ),
    "cdc_reactor.testing": ("Harness",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_THIRD_PARTY = ("pydantic",)
_OURS = ("cdc_reactor", "cdc_reactor.testing")
_BUILT_IN = frozenset(("bool", "bytes", "dict", "float", "frozenset", "int", "list", "str"))

# Two values of each type, as they are written in a test.
_SAMPLES = {
    "Any": ('"a"', '"b"'),
    "Base64Bytes": ('b"a"', 'b"b"'),
    "Base64UrlBytes": ('b"a"', 'b"b"'),
    "DecimalString": ("Decimal(1)", "Decimal(2)"),
    "EpochDays": ("date(2026, 11, 23)", "date(2026, 11, 24)"),
    "Geometry": ('Geometry(b"a")', 'Geometry(b"b")'),
    "HexBytes": ('b"a"', 'b"b"'),
    "Interval": ("Interval(months=1)", "Interval(days=2)"),
    "IsoDate": ("date(2026, 11, 23)", "date(2026, 11, 24)"),
    "IsoTime": ("time(14, 15)", "time(14, 16)"),
    "Json[Any]": ("'{\"a\": 1}'", "'{\"a\": 2}'"),
    "MicroDuration": ("timedelta(minutes=1)", "timedelta(minutes=2)"),
    "Point": ("Point(1.0, 2.0)", "Point(3.0, 4.0)"),
    "UUID": ("UUID(int=1)", "UUID(int=2)"),
    "VariableDecimal": ("Decimal(1)", "Decimal(2)"),
    "bool": ("False", "True"),
    "date": ("date(2026, 11, 23)", "date(2026, 11, 24)"),
    "datetime": ("datetime(2026, 11, 23, tzinfo=UTC)", "datetime(2026, 11, 24, tzinfo=UTC)"),
    "dict[str, Any]": ('{"a": 1}', '{"a": 2}'),
    "dict[str, str | None]": ('{"a": "b"}', '{"a": "c"}'),
    "float": ("1.5", "2.5"),
    "frozenset[str]": ('frozenset({"a"})', 'frozenset({"b"})'),
    "int": ("1", "2"),
    "str": ('"a"', '"b"'),
    "time": ("time(14, 15, tzinfo=UTC)", "time(14, 16, tzinfo=UTC)"),
    "timedelta": ("timedelta(minutes=1)", "timedelta(minutes=2)"),
    **dict.fromkeys(("MicroTime", "MilliTime", "NanoTime"), ("time(14, 15)", "time(14, 16)")),
    # Not by its constructor, for which linters demand a time zone that these columns do not have.
    **dict.fromkeys(
        ("IsoTimestamp", "MicroTimestamp", "MilliTimestamp", "NanoTimestamp"),
        ('datetime.fromisoformat("2026-11-23")', 'datetime.fromisoformat("2026-11-24")'),
    ),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name in the database, its annotation (without `| None`), and what a person should know of it."""

    name: str
    annotation: str
    is_nullable: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to write a handler for.

    `key` names the columns that identify a row, `identity` is what a Row calls so, `notes` are sentences for the top of
    the model.
    """

    table_id: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    identity: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """What was written: the module's name, and the text of the module and of its test."""

    module: str
    handler: str
    test: str


def write_sources(table: Table, package: str, *, is_our_project: bool = False) -> Sources:
    """Write the module of a table and its test; `package` is where both will stand, as it is imported.

    `is_our_project` says that cdc_reactor itself is developed there, which decides how linters sort its imports.
    """
    names = _Names.of(table)
    module = module_name(table.table_id)
    return Sources(
        module=module,
        handler=_write_handler(table, names, is_our_project=is_our_project),
        test=_write_test(table, names, f"{package}.{module}", is_our_project=is_our_project),
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """What things are called: the model, the handler, and the field of each column."""

    model: str
    handler: str
    fields: dict[str, str]

    @classmethod
    def of(cls, table: Table) -> _Names:
        return cls(
            model=model_name(table.table_id.table),
            handler=f"count_{_words(table.table_id.table)[:40].strip('_') or 'changes'}",
            fields=field_names(table.columns),
        )


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _words(text: str) -> str:
    """Write any name in lower case ASCII with underscores; empty where nothing of it is left."""
    ascii_text = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode()
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", ascii_text)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def module_name(table_id: TableId) -> str:
    """Name the module of a table; other schemas than `public` are part of the name."""
    table = _words(table_id.table) or "table"
    schema = _words(table_id.schema)
    name = table if schema in ("", "public") else f"{schema}_{table}"[:_MAX_NAME].strip("_")
    return f"table_{name}" if name[0].isdigit() or keyword.iskeyword(name) or name.startswith("test_") else name


def model_name(table: str) -> str:
    """Name the model of a table's rows: `users` → `User`."""
    words = _words(table).split("_")
    name = "".join(part.capitalize() for part in [*words[:-1], _singular(words[-1])])
    if not name or name[0].isdigit():
        name = f"Table{name}"
    return f"{name}Row" if name in _HOME_OF or keyword.iskeyword(name) or name.startswith("Test") else name


def _singular(word: str) -> str:
    if re.search(r"[sui]s$|news$|series$", word):
        return word
    if re.search(r"(movi|cooki|zombi)es$", word):
        return word[:-1]
    for ending, singular in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + singular
    return word


def field_names(columns: Sequence[Column]) -> dict[str, str]:
    """Name a field for each column: the column itself where Python, pydantic, Row and linters let it be one."""
    used_as_types = {name for column in columns for name in _identifiers(column.annotation)} | {"Field", "None"}
    names: dict[str, str] = {}
    # Columns that keep their names first, so that no other takes one away.
    for column in sorted(columns, key=lambda c: _field_name(c.name, used_as_types) != c.name):
        wanted = _field_name(column.name, used_as_types)
        names[column.name] = next(n for n in _numbered(wanted) if n not in names.values())
    return {column.name: names[column.name] for column in columns}


def _field_name(column: str, used_as_types: set[str]) -> str:
    name = _words(column) or "column"
    name = column if name == column.strip("_") and not column.startswith("_") else name
    if name[0].isdigit():
        name = f"column_{name}"
    is_taken = keyword.iskeyword(name) or name in used_as_types or hasattr(Row, name) or name in Row.__annotations__
    return f"{name}_" if is_taken or name.startswith("model_") else name


def _numbered(name: str) -> Iterable[str]:
    yield name
    yield from (f"{name}_{n}" for n in count(2))


def _identifiers(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]\w*", re.sub(r'"[^"]*"', "", text))


# ── the module ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_handler(table: Table, names: _Names, *, is_our_project: bool) -> str:
    model = _write_model(table, names)
    handler = _write_function(table, names)
    used = {name for line in model for name in _identifiers(_without_comment(line))} | {"Counter"}
    used |= {"Batch", "Context", "Row", "handles"}
    return _join(
        _docstring(f"Changes of {table.table_id}: read them and count them by kind, for a start."),
        "",
        *_imports(used, is_our_project=is_our_project),
        "",
        "",
        *model,
        "",
        "",
        *handler,
    )


def _write_model(table: Table, names: _Names) -> list[str]:
    options = [f"table={_quote(str(table.table_id))}"]
    default_key = ("id",) if any(column.name == "id" for column in table.columns) else ()
    key = f"key={_tuple(table.key)}"
    if table.key != default_key:
        options.append(key)
    if table.identity is not None:
        options.append(f"identity={_quote(table.identity)}")
    broken = {key: ["key=(", *(f"    {_quote(name)}," for name in table.key), ")"]}
    lines = _call(f"class {names.model}", ["Row", *options], ":", 0, broken)
    lines += [_docstring(f"The columns of {table.table_id}; leave out what you do not need.", 4), ""]
    notes = [line for note in table.notes for line in _comment(note, 4)]
    lines += [*notes, ""] if notes else []
    for column in table.columns:
        lines += _write_field(column, names.fields[column.name])
    return lines


def _write_field(column: Column, field: str) -> list[str]:
    is_any = column.annotation == "Any"
    annotation = f"{column.annotation} | None" if column.is_nullable and not is_any else column.annotation
    alias = f" = Field(alias={_quote(column.name)})" if field != column.name else ""
    line = f"    {field}: {annotation}{alias}"
    commented = f"{line}  # {_one_line(column.comment)}"
    if not column.comment:
        return [line]
    return [commented] if len(commented) <= _LINE_LENGTH else [*_comment(column.comment, 4), line]


def _write_function(table: Table, names: _Names) -> list[str]:
    name = str(table.table_id) if len(str(table.table_id)) <= _MAX_NAME else table.table_id.table
    text = _quote(f"{_percent(name)}: %s, %d rows read")
    log = _call("    ctx.log.info", [text, "dict(kinds)", "len(rows)"], "", 4)
    return [
        f"@handles({names.model}, max_size=100, max_wait=0.5)",
        *_call(f"def {names.handler}", [f"batch: Batch[{names.model}]", "ctx: Context"], " -> None:", 0),
        '    """Say how many rows were created, updated and deleted."""',
        "    kinds = Counter(type(change).__name__ for change in batch)",
        "    rows = [change.after for change in batch if change.after is not None]",
        *log,
    ]


# ── its test ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_test(table: Table, names: _Names, module: str, *, is_our_project: bool) -> str:
    changed = next((c for c in table.columns if c.name not in table.key), None)
    body = [
        "    row: dict[str, Any] = {",
        *(f"        {_quote(c.name)}: {_samples(c.annotation)[0]}," for c in table.columns),
        "    }",
        "",
        *_chain("    run = ", f"Harness({names.handler})", _calls(changed)),
        "",
        "    assert run.expect_acked().events == []",
    ]
    used = {name for line in body for name in _identifiers(line)} & set(_HOME_OF)
    return _join(
        _docstring(f"The handler of {table.table_id}, run without any broker or database of its own."),
        "",
        *_imports(used, is_our_project=is_our_project, module=module, from_module=(names.handler,)),
        "",
        "",
        f"def test_{names.handler}_takes_an_insert_an_update_and_a_delete() -> None:",
        '    """It reads what was inserted, updated and deleted, and publishes nothing."""',
        *body,
    )


def _calls(changed: Column | None) -> list[str]:
    return [".insert(**row)", f".update(row, {_change(changed)})", ".delete(**row)", ".run()"]


def _change(column: Column | None) -> str:
    if column is None:
        return "**row"
    value = _samples(column.annotation)[1]
    is_name = column.name.isidentifier() and column.name.isascii() and not keyword.iskeyword(column.name)
    return f"{column.name}={value}" if is_name else f"**{{{_quote(column.name)}: {value}}}"


def _samples(annotation: str) -> tuple[str, str]:
    """Write two values of a type."""
    inner = annotation.removesuffix(" | None")
    if inner.startswith("list["):
        one, other = _samples(inner.removeprefix("list[").removesuffix("]"))
        return f"[{one}]", f"[{one}, {other}]"
    if inner.startswith("Annotated[Decimal"):
        return "Decimal(1)", "Decimal(2)"
    return _SAMPLES[inner] if inner in _SAMPLES else _samples(inner.partition(" | ")[0])


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _join(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _imports(
    used: Iterable[str], *, is_our_project: bool, module: str = "", from_module: Sequence[str] = ()
) -> list[str]:
    by_home: dict[str, list[str]] = {}
    for name in set(used):
        if name in _HOME_OF:
            by_home.setdefault(_HOME_OF[name], []).append(name)
    third = {home: by_home.pop(home) for home in _THIRD_PARTY if home in by_home}
    first = {home: by_home.pop(home) for home in _OURS if home in by_home}
    local = {module: list(from_module)} if module else {}
    sections = [by_home, third, first | local] if is_our_project else [by_home, third | first, local]
    written = [
        "\n".join(line for home in sorted(section) for line in _import(home, section[home]))
        for section in sections
        if section
    ]
    return "\n\n".join(written).split("\n")


def _import(home: str, names: Sequence[str]) -> list[str]:
    ordered = sorted(names, key=lambda n: (not n.isupper() or len(n) == 1, not n[0].isupper(), n))
    line = f"from {home} import {', '.join(ordered)}"
    if len(line) <= _LINE_LENGTH:
        return [line]
    return [f"from {home} import (", *(f"    {name}," for name in ordered), ")"]


def _call(
    start: str, arguments: Sequence[str], end: str, indent: int, broken: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Break a line where the formatter would; `broken` has the lines of arguments that are too long for one."""
    line = f"{start}({', '.join(arguments)}){end}"
    if len(line) <= _LINE_LENGTH:
        return [line]
    margin = " " * indent
    inner = f"{margin}    {', '.join(arguments)}"
    if len(inner) <= _LINE_LENGTH:
        return [f"{start}(", inner, f"{margin}){end}"]
    lines = []
    for argument in arguments:
        fits = len(f"{margin}    {argument},") <= _LINE_LENGTH
        *parts, last = [argument] if fits else (broken or {}).get(argument, [argument])
        lines += [f"{margin}    {part}" for part in (*parts, f"{last},")]
    return [f"{start}(", *lines, f"{margin}){end}"]


def _chain(start: str, first: str, calls: Sequence[str]) -> list[str]:
    """Break a chain of calls where the formatter would."""
    line = f"{start}{first}{''.join(calls)}"
    if len(line) <= _LINE_LENGTH:
        return [line]
    return [f"{start}(", *(f"        {part}" for part in (first, *calls)), "    )"]


def _comment(text: str, indent: int) -> list[str]:
    """Wrap a comment."""
    lines, margin = [""], " " * indent + "# "
    for word in _one_line(text).split():
        if lines[-1] and len(margin) + len(lines[-1]) + 1 + len(word) > _LINE_LENGTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [margin + line for line in lines]


def _without_comment(line: str) -> str:
    return "" if line.lstrip().startswith("#") else re.sub(r"  # .*", "", line)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _docstring(text: str, indent: int = 0) -> str:
    """Write a docstring of one line; a name too long for it loses its end."""
    body = _one_line(text).replace("\\", "/").replace('"', "'")
    room = _LINE_LENGTH - indent - len('""""""')
    return f'{" " * indent}"""{body if len(body) <= room else body[: room - 2] + "…."}"""'


def _quote(text: str) -> str:
    """Write a string literal with the quotes that the formatter would choose."""
    mark = "'" if '"' in text and "'" not in text else '"'
    return f"{mark}{''.join(_escape(c, mark) for c in text)}{mark}"


def _escape(character: str, mark: str) -> str:
    if character in ("\\", mark):
        return f"\\{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(map(_quote, names))}{',' if len(names) == 1 else ''})"
