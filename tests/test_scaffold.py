"""Generated handlers: what they are called, what stands in them, and that every tool is content with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cdc_reactor.envelope import TableId
from cdc_reactor.scaffold import Column, Sources, Table, field_names, model_name, module_name, write_sources
from cdc_reactor.table_columns import CaptureOptions, read_captured_table

ROOT = Path(__file__).parents[1]
CAPTURES = ROOT / "tests" / "captures"
FORUM_TABLES = ("comments", "posts", "users", "visits", "votes")
FORUM_CAPTURES = sorted(path for path in CAPTURES.iterdir() if path.suffix in {".ndjson", ".b64"})

# All that a column may be called, and every annotation that there is; but for maps, which a Harness writes as JSON text.
ODD_NAMES = (
    "id", "class", "schema", "copy", "model_x", "op-code", "firstName", "größe", "2nd", "_hidden", "table_id", "date",
    "date_", "list", "self", "row", "None", "match", "type", "key", "ID", "with space", "数", "op_code", "a'b", 'a"b',
    "back\\slash", "identity", "json", "Field", "int", "before",
)  # fmt: skip
ANNOTATIONS = (
    "Annotated[Decimal, DecimalBytes(2)]", "Annotated[Decimal, DecimalBytes(2046)]", "Base64Bytes", "DecimalString",
    "EpochDays", "EpochDays | Infinity | IsoText", "Geometry", "Interval", "IsoDate", "IsoTime", "IsoTimestamp",
    "Json[Any]", "MicroDuration", "MicroTime", "MicroTimestamp | Infinity", "MilliTime", "MilliTimestamp", "NanoTime",
    "NanoTimestamp", "Point", "UUID", "VariableDecimal", "bool", "datetime", "float", "int", "int | Base64Bytes", "list[Annotated[Decimal, DecimalBytes(1)] | None]", "list[EpochDays | None]",
    "list[datetime | None]", "list[float]", "list[str | None]", "str", "time",
)  # fmt: skip


def odd_table() -> Table:
    named = [Column(name, "int" if name == "id" else "str", is_nullable=name != "id") for name in ODD_NAMES]
    typed = [Column(f"a_{n}", annotation, is_nullable=bool(n % 2)) for n, annotation in enumerate(ANNOTATIONS)]
    plain = [Column("when", "date"), Column("every", "list[date | None]"), Column("nothing", "Any")]
    noted = Column("noted", "str", comment="a word " * 30)
    return Table(
        TableId("odd Schema", "Odd-Table with a % in it"),
        (*named, *typed, *plain, noted),
        key=("id", "op-code"),
        identity="full",
        notes=("Read this. " * 20, "And\nthat."),
    )


def long_table() -> Table:
    name = "a_rather_long_name_as_postgresql_allows_up_to_63_characters_now"
    columns = tuple(Column(f"{name[:-2]}{n:02}", "MicroTimestamp", is_nullable=True) for n in range(3))
    return Table(TableId(name, name), columns, key=tuple(column.name for column in columns))


def keyless_table() -> Table:
    return Table(TableId("public", "points"), (Column("id", "Point"),), key=())


def only_a_key() -> Table:
    return Table(TableId("public", "tags"), (Column("id", "int"),), key=("id",))


def put(folder: Path, sources: Sources) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text('"""Handlers."""\n')
    (folder / f"{sources.module}.py").write_text(sources.handler)
    (folder / f"test_{sources.module}.py").write_text(sources.test)


def run_tool(folder: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the handlers of every table of every capture, and of the odd tables above."""
    folder = tmp_path_factory.mktemp("generated")
    for capture in FORUM_CAPTURES:
        package = "made_" + capture.name.removeprefix("forum_").replace(".", "_")
        for table in FORUM_TABLES:
            options = CaptureOptions(schemas=str(CAPTURES / "forum_avro.registry.json") if "avro" in package else None)
            put(folder / package, write_sources(read_captured_table(str(capture), table, options), package))
    for odd in (odd_table(), long_table(), keyless_table(), only_a_key()):
        put(folder / "made_odd", write_sources(odd, "made_odd"))
    return folder


def test_generated_code_is_linted_and_formatted(generated):
    run_tool(generated, "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".")
    run_tool(generated, "ruff", "format", "--no-cache", "--check", "--config", str(ROOT / "pyproject.toml"), ".")


def test_generated_code_is_typed(generated):
    packages = [f"--package={path.name}" for path in sorted(generated.iterdir()) if path.name.startswith("made_")]
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"
    run_tool(generated, "mypy", "--config-file", str(ROOT / "pyproject.toml"), cache, *packages)


def test_generated_tests_pass(generated):
    run_tool(
        generated,
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=error",
        "--import-mode=importlib",
        ".",
    )


def test_generated_rows_read_the_capture_that_they_were_made_from(generated):
    checks = generated / "test_captures_are_read.py"
    checks.write_text(
        "import importlib, pytest\n"
        "from cdc_reactor.handlers import Handler\n"
        "from cdc_reactor.testing import Harness\n"
        f"CASES = {[(str(path), 'made_' + path.name.removeprefix('forum_').replace('.', '_'), table) for path in FORUM_CAPTURES for table in FORUM_TABLES]!r}\n"
        "@pytest.mark.parametrize(('capture', 'package', 'table'), CASES)\n"
        "def test_reads(capture, package, table):\n"
        "    handler = getattr(importlib.import_module(f'{package}.{table}'), f'count_{table}')\n"
        f"    run = Harness(handler, registry={str(CAPTURES / 'forum_avro.registry.json')!r}).replay_file(capture).run()\n"
        "    assert run.expect_acked().runs > 0\n"
    )
    run_tool(generated, "pytest", "-q", "-p", "no:cacheprovider", str(checks))


def test_a_model_states_what_is_not_the_default():
    columns = (Column("id", "int"), Column("name", "str", is_nullable=True, comment="a guess"))

    plain = write_sources(Table(TableId("public", "users"), columns, key=("id",)), "handlers_here")
    special = write_sources(Table(TableId("crm", "users"), columns, key=(), identity="full"), "handlers_here")

    assert 'class User(Row, table="public.users"):' in plain.handler
    assert "    name: str | None  # a guess\n" in plain.handler
    assert 'class User(Row, table="crm.users", key=(), identity="full"):' in special.handler
    assert (plain.module, special.module) == ("users", "crm_users")
    assert "from handlers_here.crm_users import count_users" in special.test


def test_imports_are_sorted_for_the_place_where_they_stand():
    table = Table(TableId("public", "users"), (Column("id", "Json[Any]"),), key=("id",))

    ours, theirs = (write_sources(table, "handlers_here", is_our_project=is_ours) for is_ours in (True, False))

    assert "from pydantic import Json\n\nfrom cdc_reactor import" in ours.handler
    assert "from cdc_reactor import Batch, Context, Row, handles\nfrom pydantic import Json\n" in theirs.handler
    assert "Harness\nfrom handlers_here.users import" in ours.test
    assert "Harness\n\nfrom handlers_here.users import" in theirs.test


@pytest.mark.parametrize(
    ("table", "model"),
    [
        ("users", "User"), ("categories", "Category"), ("movies", "Movie"), ("addresses", "Address"), ("boxes", "Box"),
        ("status", "Status"), ("news", "News"), ("series", "Series"), ("order_lines", "OrderLine"), ("OrderLine", "OrderLine"),
        ("batches", "BatchRow"), ("points", "PointRow"), ("2fa", "Table2fa"), ("数", "Table"), ("s", "S"), ("tests", "TestRow"),
        ("analysis", "Analysis"), ("branches", "Branch"), ("None", "NoneRow"),
    ],
)  # fmt: skip
def test_models_are_named_for_one_row(table, model):
    assert model_name(table) == model


@pytest.mark.parametrize(
    ("schema", "table", "module"),
    [
        ("public", "users", "users"), ("", "users", "users"), ("crm", "users", "crm_users"), ("public", "Order-Line", "order_line"),
        ("public", "2fa", "table_2fa"), ("public", "class", "table_class"), ("public", "test_runs", "table_test_runs"),
        ("public", "数", "table"),
    ],
)  # fmt: skip
def test_modules_are_named_for_their_table(schema, table, module):
    assert module_name(TableId(schema, table)) == module


def test_fields_are_named_as_their_columns_where_that_is_possible():
    columns = [Column(name, "str") for name in ODD_NAMES]
    columns += [Column("time", "time"), Column("datetime", "str"), Column("model_fields", "str")]

    assert field_names(columns) == {
        "id": "id", "class": "class_", "schema": "schema_", "copy": "copy_", "model_x": "model_x_", "op-code": "op_code_2",
        "firstName": "first_name", "größe": "grosse", "2nd": "column_2nd", "_hidden": "hidden", "table_id": "table_id_",
        "date": "date", "date_": "date_", "list": "list", "self": "self", "row": "row", "None": "none", "match": "match",
        "type": "type", "key": "key", "ID": "id_2", "with space": "with_space", "数": "column", "op_code": "op_code",
        "a'b": "a_b", 'a"b': "a_b_2", "back\\slash": "back_slash", "identity": "identity", "json": "json_", "Field": "field",
        "int": "int", "before": "before", "time": "time_", "datetime": "datetime", "model_fields": "model_fields_",
    }  # fmt: skip
