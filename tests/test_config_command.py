"""The command `config`: what it prints, and that its example, schema and reference page are true."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cdc_reactor.config_command import as_table, editor_schema, example_file, reference, show
from cdc_reactor.errors import UsageError
from cdc_reactor.settings import KEYS, Flag, Settings, load

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUBSUB_EMULATOR_HOST", "PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def set_some(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "cdc-reactor.toml").write_text('[pubsub]\nmax_bytes = "1 GiB"\n')
    monkeypatch.setenv("CDC_DATABASE_URL", "postgresql://ada:hunter2@db/forum")
    monkeypatch.setenv("CDC_SCHEMAS", "https://ada:hunter2@registry")
    return {"health.port": Flag("--health-port", "off")}


def test_the_table_shows_value_and_origin_of_every_setting_aligned(folder, monkeypatch, capsys):
    assert show(set_some(folder, monkeypatch)) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["key", *KEYS]
    assert len({line.rindex("  ") for line in lines}) == 1
    assert [re.split(r" {2,}", line) for line in lines if not line.endswith("default")] == [
        ["key", "value", "origin"],
        ["database_url", "postgresql://ada:***@db/forum", "environment CDC_DATABASE_URL"],
        ["schemas", "https://ada:***@registry", "environment CDC_SCHEMAS"],
        ["pubsub.max_bytes", "1 GiB", "cdc-reactor.toml:2"],
        ["health.port", "off", "flag --health-port"],
    ]


def test_json_has_numbers_for_programs_and_no_password(folder, monkeypatch, capsys):
    show(set_some(folder, monkeypatch), as_json=True)

    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(KEYS)
    assert {key: told for key, told in shown.items() if told["origin"] != "default"} == {
        "database_url": {"value": "postgresql://ada:***@db/forum", "origin": "environment CDC_DATABASE_URL"},
        "schemas": {"value": "https://ada:***@registry", "origin": "environment CDC_SCHEMAS"},
        "pubsub.max_bytes": {"value": 2**30, "origin": "cdc-reactor.toml:2"},
        "health.port": {"value": None, "origin": "flag --health-port"},
    }
    assert shown["subscriptions"] == {"value": ["cdc"], "origin": "default"}
    assert shown["pubsub.max_lease"] == {"value": 600.0, "origin": "default"}


def test_every_value_of_the_table_can_be_typed_back(folder):
    typed = {re.split(r" {2,}", line)[0]: re.split(r" {2,}", line)[1] for line in as_table(Settings()).splitlines()[1:]}

    assert load(typed, environ={}, folder=folder) == _told_by_flags(typed)


def _told_by_flags(typed: dict[str, str]) -> Settings:
    settings = Settings()
    settings.remember({key: f"flag --{re.sub('[._]', '-', key)}" for key in typed})
    return settings


def test_a_wrong_setting_is_told_and_nothing_printed(folder, capsys):
    with pytest.raises(UsageError, match=r"^flag --run-threads: run\.threads is 0, but must be a whole number"):
        show({"run.threads": 0})
    assert capsys.readouterr().out == ""


def test_only_one_form_is_printed_at_a_time():
    with pytest.raises(UsageError, match="--json, --schema and --example are different outputs; name one of them"):
        show({}, as_json=True, schema=True)


def test_the_example_sets_nothing_and_its_defaults_are_the_defaults(folder, capsys):
    show({}, example=True)
    example = capsys.readouterr().out
    (folder / "cdc-reactor.toml").write_text(example)
    assert load({}, environ={}) == Settings()

    uncommented = re.sub(r"(?m)^#(\w+ = )", r"\1", example)
    (folder / "cdc-reactor.toml").write_text(uncommented)
    settings = load({}, environ={})

    differing = {key for key in KEYS if settings.value(key) != Settings().value(key)}
    assert differing == {
        "database_url",
        "experiments",
        "notifications.sink",
        "pubsub.emulator_host",
        "pubsub.endpoint",
        "pubsub.project",
        "run.groups",
        "schemas",
    }
    lines = uncommented.splitlines()
    for key in KEYS:
        name, _, line = settings.origin(key).partition(":")
        assert name == "cdc-reactor.toml"
        assert lines[int(line) - 1].startswith(f"{key.rpartition('.')[2]} = ")
    assert max(map(len, lines)) <= 160


def test_the_schema_knows_every_key_and_no_other(capsys):
    show({}, schema=True)
    schema = json.loads(capsys.readouterr().out)

    assert schema == editor_schema()
    keys = []
    for name, told in schema["properties"].items():
        if "$ref" in told:
            section = schema["$defs"][told["$ref"].rpartition("/")[2]]
            assert section["additionalProperties"] is False
            keys += [f"{name}.{key}" for key in section["properties"]]
        else:
            keys.append(name)
    assert sorted(keys) == sorted(KEYS)
    assert schema["additionalProperties"] is False


def _told(key: str) -> dict[str, Any]:
    schema = editor_schema()
    section, _, name = key.rpartition(".")
    if section:
        schema = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
    told: dict[str, Any] = schema["properties"][name]
    return told


def test_the_schema_says_what_is_allowed_and_what_is_the_default():
    assert _told("health.port") == {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"const": "off"}],
        "default": 8080,
        "description": 'The port that the server listens on; 0 for any free one, "off" for no server.',
    }
    assert _told("database_url") == {
        "anyOf": [{"type": "string"}, {"const": "none"}],
        "description": KEYS["database_url"].description,
        "examples": ["postgresql://USER:PASSWORD@HOST/DATABASE"],
    }
    assert _told("unknown_table")["enum"] == ["ack", "dead-letter", "stop"]


@pytest.mark.parametrize("key", KEYS)
def test_the_schema_allows_what_the_example_writes(key):
    example = tomllib.loads(re.sub(r"(?m)^#(\w+ = )", r"\1", example_file()))
    section, _, name = key.rpartition(".")
    value = (example[section] if section else example)[name]

    assert _allows(_told(key), value)


def _allows(schema: dict[str, Any], value: Any) -> bool:
    """The few words of JSON Schema that ours is made of."""
    if "anyOf" in schema:
        return any(_allows(choice, value) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    types: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "array": list}
    return (
        isinstance(value, types[schema["type"]])
        and (not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None)
        and not (isinstance(value, int | float) and value < schema.get("minimum", value))
    )


def test_the_reference_page_is_what_the_settings_say():
    page = REFERENCE.read_text()

    assert page == reference(), (
        "write docs/reference/settings.md anew: "
        "python -c 'from cdc_reactor.config_command import reference; print(reference(), end=\"\")'"
    )
