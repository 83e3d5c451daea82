"""The text of a new handler: its Row model, a small working handler, and a test that runs it.

Pure: a `Table` goes in, `Sources` come out; nothing is read or written here. `table_columns` makes the Table from a
capture or a database, `cli` writes the files. What is generated passes ruff, mypy strict and its own test as it stands,
so every rule of naming and line length that they have is known here.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cdc_reactor.changes import Row
from cdc_reactor.envelope import TableId
from cdc_reactor.source_text import (
    LINE_LENGTH,
    call,
    chain,
    comment,
    docstring,
    identifiers,
    join,
    numbered,
    one_line,
    percent,
    quote,
    without_comment,
    words,
    write_imports,
    write_tuple,
)

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
            handler=f"count_{words(table.table_id.table)[:40].strip('_') or 'changes'}",
            fields=field_names(table.columns),
        )


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def module_name(table_id: TableId) -> str:
    """Name the module of a table; other schemas than `public` are part of the name."""
    table = words(table_id.table) or "table"
    schema = words(table_id.schema)
    name = table if schema in ("", "public") else f"{schema}_{table}"[:_MAX_NAME].strip("_")
    return f"table_{name}" if name[0].isdigit() or keyword.iskeyword(name) or name.startswith("test_") else name


def model_name(table: str) -> str:
    """Name the model of a table's rows: `users` → `User`."""
    *first, last = words(table).split("_")
    name = "".join(part.capitalize() for part in [*first, _singular(last)])
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
    used_as_types = {name for column in columns for name in identifiers(column.annotation)} | {"Field", "None"}
    names: dict[str, str] = {}
    # Columns that keep their names first, so that no other takes one away.
    for column in sorted(columns, key=lambda c: _field_name(c.name, used_as_types) != c.name):
        wanted = _field_name(column.name, used_as_types)
        names[column.name] = next(n for n in numbered(wanted) if n not in names.values())
    return {column.name: names[column.name] for column in columns}


def _field_name(column: str, used_as_types: set[str]) -> str:
    name = words(column) or "column"
    name = column if name == column.strip("_") and not column.startswith("_") else name
    if name[0].isdigit():
        name = f"column_{name}"
    is_taken = keyword.iskeyword(name) or name in used_as_types or hasattr(Row, name) or name in Row.__annotations__
    return f"{name}_" if is_taken or name.startswith("model_") else name


# ── the module ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_handler(table: Table, names: _Names, *, is_our_project: bool) -> str:
    model = _write_model(table, names)
    handler = _write_function(table, names)
    used = {name for line in model for name in identifiers(without_comment(line))} | {"Counter"}
    used |= {"Batch", "Context", "Row", "handles"}
    homes = {name: _HOME_OF[name] for name in used & set(_HOME_OF)}
    return join(
        docstring(f"Changes of {table.table_id}: read them and count them by kind, for a start."),
        "",
        *write_imports(homes, first_party=_first_party(is_our_project=is_our_project)),
        "",
        "",
        *model,
        "",
        "",
        *handler,
    )


def _write_model(table: Table, names: _Names) -> list[str]:
    options = [f"table={quote(str(table.table_id))}"]
    default_key = ("id",) if any(column.name == "id" for column in table.columns) else ()
    key = f"key={write_tuple(table.key)}"
    if table.key != default_key:
        options.append(key)
    if table.identity is not None:
        options.append(f"identity={quote(table.identity)}")
    broken = {key: ["key=(", *(f"    {quote(name)}," for name in table.key), ")"]}
    lines = call(f"class {names.model}", ["Row", *options], ":", 0, broken)
    lines += [docstring(f"The columns of {table.table_id}; leave out what you do not need.", 4), ""]
    notes = [line for note in table.notes for line in comment(note, 4)]
    lines += [*notes, ""] if notes else []
    for column in table.columns:
        lines += _write_field(column, names.fields[column.name])
    return lines


def _write_field(column: Column, field: str) -> list[str]:
    is_any = column.annotation == "Any"
    annotation = f"{column.annotation} | None" if column.is_nullable and not is_any else column.annotation
    alias = f" = Field(alias={quote(column.name)})" if field != column.name else ""
    line = f"    {field}: {annotation}{alias}"
    commented = f"{line}  # {one_line(column.comment)}"
    if not column.comment:
        return [line]
    return [commented] if len(commented) <= LINE_LENGTH else [*comment(column.comment, 4), line]


def _write_function(table: Table, names: _Names) -> list[str]:
    name = str(table.table_id) if len(str(table.table_id)) <= _MAX_NAME else table.table_id.table
    text = quote(f"{percent(name)}: %s, %d rows read")
    log = call("    ctx.log.info", [text, "dict(kinds)", "len(rows)"], "", 4)
    return [
        f"@handles({names.model}, max_size=100, max_wait=0.5)",
        *call(f"def {names.handler}", [f"batch: Batch[{names.model}]", "ctx: Context"], " -> None:", 0),
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
        *(f"        {quote(c.name)}: {_samples(c.annotation)[0]}," for c in table.columns),
        "    }",
        "",
        *chain("    run = ", f"Harness({names.handler})", _calls(changed)),
        "",
        "    assert run.expect_acked().events == []",
    ]
    homes = {name: _HOME_OF[name] for line in body for name in identifiers(line) if name in _HOME_OF}
    first_party = {module.partition(".")[0], *_first_party(is_our_project=is_our_project)}
    return join(
        docstring(f"The handler of {table.table_id}, run without any broker or database of its own."),
        "",
        *write_imports({**homes, names.handler: module}, first_party=first_party),
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
    return f"{column.name}={value}" if is_name else f"**{{{quote(column.name)}: {value}}}"


def _samples(annotation: str) -> tuple[str, str]:
    """Write two values of a type."""
    inner = annotation.removesuffix(" | None")
    if inner.startswith("list["):
        one, other = _samples(inner.removeprefix("list[").removesuffix("]"))
        return f"[{one}]", f"[{one}, {other}]"
    if inner.startswith("Annotated[Decimal"):
        return "Decimal(1)", "Decimal(2)"
    return _SAMPLES[inner] if inner in _SAMPLES else _samples(inner.partition(" | ")[0])


def _first_party(*, is_our_project: bool) -> set[str]:
    return {"cdc_reactor"} if is_our_project else set()
