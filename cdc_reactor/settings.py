"""The daemon's settings: a model of them all, and `load`, which reads them from a file, the environment and flags.

Later wins: defaults, the TOML file, the environment, flags. Every value knows its origin, so that a mistake is told
with its file and line, its variable or its flag, and `config_command` can say what is in force and why. That is also
why pydantic-settings is not used: it merges the same three, but forgets where a value came from and passes over
variables that it does not know.

For the daemon this is the only reader of the environment. It connects to nothing, and no secret enters a message. How
people write a value (sizes, durations, lists) is told in `setting_kinds`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from cdc_reactor.errors import UsageError
from cdc_reactor.setting_kinds import (
    Choice,
    Kind,
    Maybe,
    Seconds,
    Secret,
    Share,
    Size,
    Text,
    Texts,
    Truth,
    Whole,
    WholeSeconds,
    masked,
    written,
)

DEFAULT_FILE: Final = "cdc-reactor.toml"
FILE_VARIABLE: Final = "CDC_CONFIG"
DEFAULT: Final = "default"

# ─────────── the model ───────────

# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_SHORT_NAME = r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}"


def _resource(collection: str) -> Text:
    return Text(
        f"NAME or projects/PROJECT/{collection}/NAME; "
        "a NAME is 3 to 255 of A-Z a-z 0-9 -_.~+%, first a letter, not goog",
        rf"(projects/[^/\s]+/{collection}/)?{_SHORT_NAME}",
    )


_HOST_AND_PORT = Text("HOST:PORT without http://, such as 127.0.0.1:8085", r"(\[[0-9A-Fa-f:.]+\]|[\w.\-]+):\d{1,5}")
_ENDPOINT = Text(
    "HOST or HOST:PORT without https://, such as europe-west1-pubsub.googleapis.com:443", r"[\w.\-]+(:\d{1,5})?"
)
_IMPORT = Text("MODULE:NAME, such as acme.parts:name", r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DATABASE = Secret("sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE", r"[A-Za-z][\w+.\-]*://\S*")

UnknownTable = Literal["ack", "dead-letter", "stop"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PubSubSettings(_Section):
    """How messages are received and published."""

    project: Annotated[str | None, Maybe(Text("a project's id", r"[^/\s]+"))] = Field(
        None,
        description="The project of names that name none; unset, that of the credentials.",
        examples=["my-project"],
    )
    emulator_host: Annotated[str | None, Maybe(_HOST_AND_PORT)] = Field(
        None,
        description="A local broker or emulator, which is then used in place of the cloud, without credentials.",
        examples=["127.0.0.1:8085"],
    )
    endpoint: Annotated[str | None, Maybe(_ENDPOINT)] = Field(
        None,
        description="A regional endpoint of the cloud; an emulator_host comes before it.",
        examples=["europe-west1-pubsub.googleapis.com:443"],
    )
    max_messages: Annotated[int, Whole(0)] = Field(
        10_000, description="Flow control: messages held at a time, of each subscription; 0 for no limit."
    )
    max_bytes: Annotated[int, Size(0)] = Field(
        100 * 2**20, description="Flow control: bytes held at a time, of each subscription; 0 for no limit."
    )
    ack_deadline: Annotated[int, WholeSeconds(10, 600)] = Field(
        60, description="Seconds of one lease; leases are extended while a message is held."
    )
    max_lease: Annotated[float, Seconds(10)] = Field(
        600.0, description="Seconds after which a message that is still held goes back to Pub/Sub."
    )
    publish_timeout: Annotated[float, Seconds(above=0)] = Field(
        60.0, description="Seconds in which Pub/Sub must have confirmed what is published."
    )

    @model_validator(mode="after")
    def _lease_holds_a_deadline(self) -> PubSubSettings:
        if self.max_lease < self.ack_deadline:
            raise _crossed(
                f"pubsub.max_lease ({written(self.max_lease)} s) is shorter than pubsub.ack_deadline "
                f"({self.ack_deadline} s): a message would go back before its first lease ends",
                "pubsub.max_lease",
                "pubsub.ack_deadline",
            )
        return self


class RunSettings(_Section):
    """How handlers are run."""

    groups: Annotated[list[str] | None, Maybe(Texts(Text("a group's name", r"[a-z0-9][a-z0-9\-]{0,62}")))] = Field(
        None,
        description="Run the workers of these groups and nothing else; unset, table handlers and all workers that are "
        "not dedicated.",
        examples=[["personalized-digest"]],
    )
    threads: Annotated[int, Whole(1, 1000)] = Field(8, description="Threads in which `def` handlers run.")
    worker_threads: Annotated[int, Whole(1, 1000)] = Field(
        24, description="Threads in which `def` workers run, apart from those of handlers."
    )
    processes: Annotated[int, Whole(0, 1000)] = Field(
        0, description="Processes in which handlers run; 0 for the threads of this one."
    )
    grace: Annotated[float, Seconds(above=0)] = Field(
        25.0, description="Seconds in which running handlers may finish after SIGTERM or Ctrl-C."
    )
    reload: Annotated[bool, Truth()] = Field(
        default=False, description="Restart when a handler's file changes; for development."
    )


class RetrySettings(_Section):
    """How failed changes are tried again."""

    first: Annotated[float, Seconds(above=0)] = Field(
        0.1, description="Seconds before the second attempt; doubled for each one after it."
    )
    limit: Annotated[float, Seconds(above=0)] = Field(
        60.0, description="The longest wait between attempts, in seconds."
    )

    @model_validator(mode="after")
    def _waits_grow(self) -> RetrySettings:
        if self.limit < self.first:
            raise _crossed(
                f"retry.limit ({written(self.limit)} s) is below retry.first ({written(self.first)} s): "
                "waits grow from the first to the limit",
                "retry.limit",
                "retry.first",
            )
        return self


class BreakerSettings(_Section):
    """When a handler that gives up too much rests."""

    share: Annotated[float, Share(above=0, highest=1)] = Field(
        0.05, description="The share of a handler's last changes that it may give up; with more it rests."
    )
    consecutive: Annotated[int, Whole(1)] = Field(
        1000, description="Changes given up in a row after which a handler rests."
    )
    window: Annotated[int, Whole(1)] = Field(
        10_000, description="How many of a handler's last changes the share is of."
    )
    pause: Annotated[float, Seconds(above=0)] = Field(
        30.0, description="Seconds that a handler rests before it is tried again."
    )


class NotificationSettings(_Section):
    """Where notifications go that workers return."""

    topic: Annotated[str, _resource("topics")] = Field(
        "notification.requested.v1", description="The topic that they are published to, where no sink is set."
    )
    sink: Annotated[str | None, Maybe(_IMPORT)] = Field(
        None,
        description="A function that sends them instead, given a list of them; what it raises fails the run.",
        examples=["acme.push:send"],
    )
    window: Annotated[float, Seconds(above=0)] = Field(
        86_400.0, description="Seconds within which notifications with one dedupe key are sent once."
    )


class HealthSettings(_Section):
    """The server of /livez, /readyz and /metrics."""

    host: Annotated[str, Text("a host's name or address", r"[\w.:\-]+")] = Field(
        "127.0.0.1", description="The address that the server listens on; 0.0.0.0 for all, as a container needs."
    )
    port: Annotated[int | None, Maybe(Whole(0, 65535), "off")] = Field(
        8080, description='The port that the server listens on; 0 for any free one, "off" for no server.'
    )
    stuck_after: Annotated[float, Seconds(above=0)] = Field(
        300.0, description="Seconds without progress after which /readyz fails while messages are held."
    )
    expect_heartbeats: Annotated[bool, Truth()] = Field(
        default=False, description="Let /readyz fail when no Debezium heartbeat came for stuck_after seconds."
    )


class LogSettings(_Section):
    """What is logged, and how."""

    level: Annotated[LogLevel, Choice(get_args(LogLevel))] = Field(
        "info", description="The least level that is logged."
    )
    format: Annotated[LogFormat, Choice(get_args(LogFormat))] = Field(
        "auto", description="Lines of text or of JSON; auto is text on a terminal and JSON elsewhere."
    )


class Settings(_Section):
    """Everything that can be set. `Settings()` is the defaults and reads nothing; `load` reads what is set."""

    handlers: Annotated[list[str], Texts(Text("a package, a file or none"))] = Field(
        ["table_handlers", "workers", "events"],
        description='Packages and files with handlers, workers and events; "none" for none. '
        "Of the default, some may be missing.",
    )
    database_url: Annotated[SecretStr | None, Maybe(_DATABASE)] = Field(
        None,
        description="What `ctx.session` connects to; unset, a SQLite file beside an emulator_host, else nothing.",
        examples=["postgresql://USER:PASSWORD@HOST/DATABASE"],
    )
    create_tables: Annotated[bool, Truth()] = Field(
        default=False, description="Create the tables of the handlers' `metadata` in that database."
    )
    unknown_table: Annotated[UnknownTable, Choice(get_args(UnknownTable))] = Field(
        "ack", description="What becomes of a change whose table has no handler."
    )
    schemas: Annotated[str | None, Maybe(Text())] = Field(
        None,
        description="Avro writer schemas: a file, a folder, a registry's URL, or `pubsub:`.",
        examples=["http://127.0.0.1:8081"],
    )
    unavailable_value_placeholder: Annotated[str, Text()] = Field(
        "__debezium_unavailable_value", description="The connector's `unavailable.value.placeholder`."
    )
    unwrapped_prefix: Annotated[str, Text("text", r"(?s:.*)")] = Field(
        "__", description="The `add.fields.prefix` of the connector's unwrap transform."
    )
    max_message_bytes: Annotated[int, Size(1)] = Field(64 * 2**20, description="Larger messages are refused unread.")
    subscriptions: Annotated[list[str], Texts(_resource("subscriptions"))] = Field(
        ["cdc"], description="The subscriptions to receive from, short names or full ones."
    )
    topic: Annotated[str, _resource("topics")] = Field(
        "cdc", description="The topic of a subscription that is created because it is missing; not used otherwise."
    )
    dead_letter_topic: Annotated[str, _resource("topics")] = Field(
        "cdc-dead-letters", description="The topic that messages go to when they are given up."
    )
    create_missing: Annotated[bool | None, Maybe(Truth(), "auto")] = Field(
        None, description="Create topics and subscriptions that are missing; auto does so on an emulator_host only."
    )
    experiments: Annotated[str | None, Maybe(_IMPORT)] = Field(
        None,
        description="The client behind `ctx.experiments`: an ExperimentClient, or a function that makes one.",
        examples=["acme.experiments:client"],
    )
    pubsub: PubSubSettings = PubSubSettings()
    run: RunSettings = RunSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    notifications: NotificationSettings = NotificationSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, key: str) -> str:
        """Say where a value came from: `default`, `FILE:LINE`, `environment VARIABLE` or `flag --NAME`."""
        return self._origins.get(key, DEFAULT)

    def remember(self, origins: Mapping[str, str]) -> None:
        """Keep the origin of every key that is not at its default."""
        self._origins = dict(origins)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key."""
        found: Any = self
        for name in key.split("."):
            found = getattr(found, name)
        return found


def _crossed(text: str, *keys: str) -> PydanticCustomError:
    """Two values that do not go together; the keys tell `load` whose origins to name."""
    return PydanticCustomError("crossed", cast("Any", text), {"keys": keys})


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            yield from _fields(field.annotation, f"{name}.")
        else:
            yield prefix + name, field


#: Every key, dotted, in the order of the model.
KEYS: Final[Mapping[str, FieldInfo]] = MappingProxyType(dict(_fields(Settings)))
SECTIONS: Final[Mapping[str, type[_Section]]] = MappingProxyType(
    {
        name: cast("type[_Section]", field.annotation)
        for name, field in Settings.model_fields.items()
        if name not in KEYS
    }
)


def kind_of(key: str) -> Kind:
    """Return how values of a key are written."""
    return next(mark for mark in KEYS[key].metadata if isinstance(mark, Kind))


# ─────────── where values come from ───────────


def variable_of(key: str) -> str:
    """Return the environment variable of a key: CDC_PUBSUB__MAX_BYTES."""
    return f"CDC_{key.replace('.', '__').upper()}"


#: Variables of the ecosystem that count where ours is not set, the first before the next.
#: https://cloud.google.com/pubsub/docs/emulator#env, https://googleapis.dev/python/google-api-core/latest/auth.html
ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "pubsub.emulator_host": ("PUBSUB_EMULATOR_HOST",),
        "pubsub.project": ("PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"),
    }
)

# Kubernetes sets NAME_SERVICE_HOST, NAME_PORT_80_TCP and others for every Service of the namespace, and a Service may
# well be named cdc. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_OF_KUBERNETES = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from the command line, with the flag's name as it was to be typed; None where it was not."""

    name: str
    value: Any


class _Given:
    """What was set, by key, each with its origin; and what is wrong with it, in words."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value over any earlier one."""
        if key in KEYS:
            self.values[key], self.origins[key] = value, origin
        elif key in SECTIONS:
            self.problems.append(f"{origin}: {key} is a section; write [{key}], and its keys below")
        else:
            self.problems.append(f"{origin}: there is no setting {key}{_suggestion(key, _written_keys())}")

    def nested(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in self.values.items():
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
        return nested

    def refuse(self) -> None:
        """Raise UsageError where anything is wrong, with all of it."""
        if len(self.problems) == 1:
            raise UsageError(self.problems[0])
        if self.problems:
            raise UsageError("\n  ".join([f"{len(self.problems)} settings are wrong:", *self.problems]))


def _written_keys() -> dict[str, str]:
    """Return every key by what people might write: the key itself, and its last name alone."""
    return {key.rpartition(".")[2]: key for key in KEYS} | {key: key for key in KEYS}


def _suggestion(name: str, known: Mapping[str, str]) -> str:
    near = get_close_matches(name, known, n=1) or get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else "; `cdc-reactor config` lists them all"


def load(flags: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Read the settings that are in force.

    `flags` are values by dotted key, bare or as a Flag; None is a flag that was not given. The key `config` names the
    TOML file. `environ` is that of this process and `folder` the current one unless they are given.

    Raises:
        UsageError: with a line for each value that is wrong and each name that is not known.
    """
    environ = os.environ if environ is None else environ
    typed = {key: flag for key, flag in _flags(flags).items() if flag.value is not None}
    given = _Given()
    _read_file(given, typed.pop("config", None), environ, folder or Path.cwd())
    _read_environment(given, environ)
    for key, flag in typed.items():
        given.put(key, flag.value, f"flag {flag.name}")
    settings = _build(given)
    given.refuse()
    return settings


def _flags(flags: Mapping[str, Any]) -> dict[str, Flag]:
    return {
        key: value if isinstance(value, Flag) else Flag(f"--{re.sub(r'[._]', '-', key)}", value)
        for key, value in flags.items()
    }


def _build(given: _Given) -> Settings:
    """Make the settings; where values are wrong, add to what is told of them, and return the defaults."""
    try:
        settings = Settings(**given.nested())
    except ValidationError as error:
        given.problems += [_problem(given, problem) for problem in error.errors(include_url=False, include_input=False)]
        return Settings()
    settings.remember(given.origins)
    return settings


def _problem(given: _Given, problem: Any) -> str:
    if problem["type"] == "crossed":
        origins = [given.origins[key] for key in problem["ctx"]["keys"] if key in given.origins]
        return f"{', '.join(origins)}: {problem['msg']}"
    key = ".".join(str(part) for part in problem["loc"])
    kind, value = kind_of(key), given.values[key]
    # What is no URL cannot be masked: a password may stand anywhere in it.
    shown = "" if key == "database_url" else f" is {_shortened(masked(repr(value)))}, but"
    return f"{given.origins[key]}: {key}{shown} must be {kind.allowed}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


# ─────────── the environment ───────────


def _read_environment(given: _Given, environ: Mapping[str, str]) -> None:
    for key in KEYS:
        for name in (variable_of(key), *ELSEWHERE.get(key, ())):
            # Set to nothing is not set: compose files pass variables on that way.
            if environ.get(name):
                given.put(key, environ[name], f"environment {name}")
                break
    variables = {variable_of(key): variable_of(key) for key in KEYS}
    for name in sorted(environ):
        if name not in variables and _looks_like_ours(name, environ[name]):
            given.problems.append(f"environment {name}: there is no such setting{_suggestion(name, variables)}")


def _looks_like_ours(name: str, value: str) -> bool:
    """Tell whether a variable is meant to be a setting."""
    # CDC_REACTOR_… belongs to our tests, and to a Service that is named cdc-reactor.
    return (
        name.startswith("CDC_")
        and name != FILE_VARIABLE
        and not name.startswith("CDC_REACTOR_")
        and _OF_KUBERNETES.fullmatch(name) is None
        and not (name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://")))
    )


# ─────────── the file ───────────


def _read_file(given: _Given, flag: Flag | None, environ: Mapping[str, str], folder: Path) -> None:
    name, asked_by = DEFAULT_FILE, ""
    if flag is not None:
        name, asked_by = str(flag.value), f"flag {flag.name}"
    elif environ.get(FILE_VARIABLE):
        name, asked_by = environ[FILE_VARIABLE], f"environment {FILE_VARIABLE}"
    try:
        text = (folder / name).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if asked_by:
            raise UsageError(f"{asked_by}: there is no file {name}") from None
        return
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8, which TOML has to be") from None
    for key, value, line in _entries(name, text):
        given.put(key, value, f"{name}:{line}")


def _entries(name: str, text: str) -> Iterator[tuple[str, Any, int]]:
    """Give the keys of a TOML file with their values and lines (from 1)."""
    try:
        table = tomllib.loads(text)
    except ValueError as error:
        # A TOMLDecodeError, or what Python says of an integer with thousands of digits.
        raise UsageError(_syntax_problem(name, str(error))) from None
    lines = _lines(text)
    for key, value in _leaves(table):
        yield key, value, lines[key]


def _syntax_problem(name: str, text: str) -> str:
    # Python's tomllib ends its messages so, and says no place where the file ends too early.
    found = re.fullmatch(r"(?s)(.*) \(at line (\d+), column (\d+)\)", text)
    if found is None:
        return f"{name} is no TOML: {text}"
    return f"{name}:{found[2]}: this is no TOML: {found[1]}, at column {found[3]}; text needs quotes, lists brackets"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and key not in KEYS and (value or key in SECTIONS):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _lines(text: str) -> dict[str, int]:
    """Find the line on which each key begins.

    tomllib tells no places. But every beginning of the text that ends between two entries is TOML by itself, and the
    first that has a key ends with that key's entry; the entry begins after the one before it.
    """
    lines: dict[str, int] = {}
    beginning, complete = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        beginning += f"{line}\n"
        is_empty = not line.strip() or line.lstrip().startswith("#")
        if not (is_empty and complete == number - 1):
            keys = _keys_of(beginning)
            if keys is None:
                continue
            for key in keys:
                lines.setdefault(key, complete + 1)
        complete = number
    return lines


def _keys_of(text: str) -> list[str] | None:
    try:
        return [key for key, _ in _leaves(tomllib.loads(text))]
    except tomllib.TOMLDecodeError:
        return None  # it ends in the middle of an entry
