"""Settings: which source wins, where each value came from, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from cdc_reactor.errors import UsageError
from cdc_reactor.setting_kinds import masked
from cdc_reactor.settings import (
    KEYS,
    SECTIONS,
    BreakerSettings,
    Flag,
    HealthSettings,
    LogSettings,
    NotificationSettings,
    PubSubSettings,
    RetrySettings,
    RunSettings,
    Settings,
    kind_of,
    load,
    variable_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, text: str, name: str = "cdc-reactor.toml") -> None:
    (folder / name).write_text(text)


def read(folder: Path, flags: dict[str, Any] | None = None, **environ: str) -> Settings:
    return load(flags or {}, environ=environ, folder=folder)


def refusal(folder: Path, flags: dict[str, Any] | None = None, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, flags, **environ)
    return str(caught.value)


def origins(settings: Settings) -> dict[str, str]:
    return {key: settings.origin(key) for key in KEYS if settings.origin(key) != "default"}


# ── sources ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_source_every_setting_is_its_default(folder):
    assert read(folder) == Settings()
    assert Settings() == Settings(
        handlers=["table_handlers", "workers", "events"],
        database_url=None,
        create_tables=False,
        unknown_table="ack",
        schemas=None,
        unavailable_value_placeholder="__debezium_unavailable_value",
        unwrapped_prefix="__",
        max_message_bytes=67_108_864,
        subscriptions=["cdc"],
        topic="cdc",
        dead_letter_topic="cdc-dead-letters",
        create_missing=None,
        pubsub=PubSubSettings(
            project=None,
            emulator_host=None,
            endpoint=None,
            max_messages=10_000,
            max_bytes=104_857_600,
            ack_deadline=60,
            max_lease=600,
            publish_timeout=60,
        ),
        run=RunSettings(groups=None, threads=8, worker_threads=24, processes=0, grace=25, reload=False),
        retry=RetrySettings(first=0.1, limit=60),
        breaker=BreakerSettings(share=0.05, consecutive=1000, window=10_000, pause=30),
        experiments=None,
        notifications=NotificationSettings(topic="notification.requested.v1", sink=None, window=86_400),
        health=HealthSettings(host="127.0.0.1", port=8080, stuck_after=300, expect_heartbeats=False),
        log=LogSettings(level="info", format="auto"),
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_default_is_what_its_own_kind_reads_and_writes(key):
    kind, default = kind_of(key), Settings().value(key)

    assert kind.parse(default) == default
    assert kind.parse(kind.show(default)) == default
    assert KEYS[key].description


def test_flags_win_over_the_environment_which_wins_over_the_file(folder):
    write(folder, 'topic = "file"\nunwrapped_prefix = "file"\n[run]\nthreads = 2\nprocesses = 2\ngrace = 2\n')

    settings = read(
        folder,
        {"run.grace": Flag("--grace", "4s"), "topic": None},
        CDC_RUN__PROCESSES="3",
        CDC_RUN__GRACE="3",
        CDC_UNWRAPPED_PREFIX="env",
    )

    assert (settings.topic, settings.unwrapped_prefix) == ("file", "env")
    assert settings.run == RunSettings(threads=2, processes=3, grace=4)
    assert origins(settings) == {
        "topic": "cdc-reactor.toml:1",
        "unwrapped_prefix": "environment CDC_UNWRAPPED_PREFIX",
        "run.threads": "cdc-reactor.toml:4",
        "run.processes": "environment CDC_RUN__PROCESSES",
        "run.grace": "flag --grace",
    }


def test_a_bare_flag_is_named_after_its_key(folder):
    assert origins(read(folder, {"pubsub.max_bytes": 1})) == {"pubsub.max_bytes": "flag --pubsub-max-bytes"}


def test_the_ecosystems_own_variables_count_where_ours_are_not_set(folder):
    settings = read(folder, PUBSUB_EMULATOR_HOST="localhost:8085", GOOGLE_CLOUD_PROJECT="google")

    assert settings.pubsub == PubSubSettings(emulator_host="localhost:8085", project="google")
    assert origins(settings) == {
        "pubsub.emulator_host": "environment PUBSUB_EMULATOR_HOST",
        "pubsub.project": "environment GOOGLE_CLOUD_PROJECT",
    }
    assert read(folder, GOOGLE_CLOUD_PROJECT="google", PUBSUB_PROJECT_ID="pubsub").pubsub.project == "pubsub"
    assert read(folder, PUBSUB_PROJECT_ID="pubsub", CDC_PUBSUB__PROJECT="ours").pubsub.project == "ours"


def test_none_overrules_what_a_source_before_it_says(folder):
    write(folder, '[pubsub]\nemulator_host = "localhost:8085"\n[health]\nport = 9000\n')

    settings = read(folder, CDC_PUBSUB__EMULATOR_HOST="none", PUBSUB_EMULATOR_HOST="other:1", CDC_HEALTH__PORT="off")

    assert (settings.pubsub.emulator_host, settings.health.port) == (None, None)


def test_a_variable_that_is_set_to_nothing_is_not_set(folder):
    write(folder, 'topic = "file"\n')

    assert read(folder, CDC_TOPIC="", CDC_CONFIG="", PUBSUB_EMULATOR_HOST="").topic == "file"


def test_the_process_environment_and_the_current_folder_are_read_unless_others_are_given(folder, monkeypatch):
    write(folder, 'topic = "file"\n')
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CDC_UNWRAPPED_PREFIX", "env")

    settings = load({})

    assert (settings.topic, settings.unwrapped_prefix) == ("file", "env")


def test_a_variable_holds_a_list_with_commas(folder):
    assert read(folder, CDC_SUBSCRIPTIONS="cdc, projects/p/subscriptions/other").subscriptions == [
        "cdc",
        "projects/p/subscriptions/other",
    ]


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flag_names_the_file_before_the_variable_does(folder):
    write(folder, 'topic = "flag"\n', "flag.toml")
    write(folder, 'topic = "variable"\n', "variable.toml")
    write(folder, 'topic = "default"\n')

    assert read(folder, {"config": "flag.toml"}, CDC_CONFIG="variable.toml").topic == "flag"
    assert read(folder, {"config": None}, CDC_CONFIG="variable.toml").topic == "variable"


def test_a_file_that_is_named_must_be_there(folder):
    assert refusal(folder, {"config": Flag("--config", "x.toml")}) == "flag --config: there is no file x.toml"
    assert refusal(folder, CDC_CONFIG="y.toml") == "environment CDC_CONFIG: there is no file y.toml"


def test_a_file_that_cannot_be_read_is_told(folder):
    (folder / "latin.toml").write_bytes(b'topic = "\xe9"\n')

    assert refusal(folder, {"config": "latin.toml"}) == "latin.toml is not UTF-8, which TOML has to be"
    assert refusal(folder, {"config": "."}) == ". cannot be read: Is a directory"


def test_each_key_has_the_line_on_which_it_begins(folder):
    text = """\
# a comment

subscriptions = [
    "one",   # a comment

    # log.level = "warning"
    "two",
]
handlers = [
  "a"]
unwrapped_prefix = '''
topic = "no"
# [log]
'''

[run]   # a section
threads = 2

processes = 3
[log]
"level" = "warning"
[breaker]
pause = 1
[retry]
# first = 1
"""
    write(folder, text)

    assert origins(read(folder)) == {
        "subscriptions": "cdc-reactor.toml:3",
        "handlers": "cdc-reactor.toml:9",
        "unwrapped_prefix": "cdc-reactor.toml:11",
        "run.threads": "cdc-reactor.toml:17",
        "run.processes": "cdc-reactor.toml:19",
        "log.level": "cdc-reactor.toml:21",
        "breaker.pause": "cdc-reactor.toml:23",
    }


def test_inline_tables_dotted_keys_and_windows_lines_are_toml(folder):
    (folder / "cdc-reactor.toml").write_bytes(
        b'\xef\xbb\xbfrun = { threads = 2, grace = 3 }\r\nlog.level = "debug"\r\n[retry]\r\nlimit = 70.5'
    )

    settings = read(folder)

    assert origins(settings) == {
        "run.threads": "cdc-reactor.toml:1",
        "run.grace": "cdc-reactor.toml:1",
        "log.level": "cdc-reactor.toml:2",
        "retry.limit": "cdc-reactor.toml:4",
    }
    assert settings.retry.limit == 70.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[run]\nthreads == 2\n",
            "cdc-reactor.toml:2: this is no TOML: Invalid value, at column 10; text needs quotes, lists brackets",
        ),
        (
            "topic = cdc\n",
            "cdc-reactor.toml:1: this is no TOML: Invalid value, at column 9; text needs quotes, lists brackets",
        ),
        (
            'topic = "a"\ntopic = "b"\n',
            "cdc-reactor.toml:2: this is no TOML: Cannot overwrite a value, at column 12; text needs quotes, lists brackets",
        ),
        ('topic = """a', "cdc-reactor.toml is no TOML: Unterminated string (at end of document)"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(folder, text, told):
    write(folder, text)

    assert refusal(folder) == told


def test_a_number_too_long_for_python_is_no_traceback(folder):
    write(folder, f"run.grace = {'9' * 5000}")

    assert refusal(folder).startswith("cdc-reactor.toml is no TOML: Exceeds the limit")


def test_an_empty_section_sets_nothing(folder):
    write(folder, "[pubsub]\n[run]\n")

    assert read(folder) == Settings()


# ── unknown names ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[pubsub]\n\nmax_byte = 1\n", "3: there is no setting pubsub.max_byte; did you mean pubsub.max_bytes?"),
        ("max_bytes = 1\n", "1: there is no setting max_bytes; did you mean pubsub.max_bytes?"),
        ("[pubsbu]\nproject = 'p'\n", "2: there is no setting pubsbu.project; did you mean pubsub.project?"),
        ("[server]\nport = 1\n", "2: there is no setting server.port; did you mean health.port?"),
        ("[frobnicate]\n", "1: there is no setting frobnicate; `cdc-reactor config` lists them all"),
        ("pubsub = 3\n", "1: pubsub is a section; write [pubsub], and its keys below"),
        ("[[run]]\nthreads = 1\n", "1: run is a section; write [run], and its keys below"),
    ],
)
def test_an_unknown_key_is_told_with_its_line_and_the_nearest_name(folder, text, told):
    write(folder, text)

    assert refusal(folder) == f"cdc-reactor.toml:{told}"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CDC_PUBSUB_MAX_BYTES", "CDC_PUBSUB__MAX_BYTES"),
        ("CDC_DATABASE_URI", "CDC_DATABASE_URL"),
        ("CDC_HEALTH_PORT", "CDC_HEALTH__PORT"),
    ],
)
def test_an_unknown_variable_is_told_without_its_value(folder, name, near):
    told = refusal(folder, None, **{name: "postgresql://ada:hunter2@db/forum"})

    assert told == f"environment {name}: there is no such setting; did you mean {near}?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CDC_CONFIG", ""),
        ("CDC_REACTOR_TEST_DATABASE_URL", "sqlite://"),
        ("CDC_REACTOR_GCP_PROJECT", "p"),
        ("CDC_SERVICE_HOST", "10.0.0.1"),
        ("CDC_SERVICE_PORT_HTTP", "80"),
        ("CDC_PORT", "tcp://10.0.0.1:80"),
        ("CDC_HEALTH_PORT", "tcp://10.0.0.1:80"),
        ("CDC_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("cdc_topics", "x"),
        ("PATH", "/bin"),
    ],
)
def test_variables_of_tests_of_kubernetes_and_of_others_are_left_alone(folder, name, value):
    assert read(folder, **{name: value}) == Settings()


def test_a_flag_without_a_setting_is_told(folder):
    assert refusal(folder, {"run.thread": Flag("--thread", 1)}) == (
        "flag --thread: there is no setting run.thread; did you mean run.threads?"
    )


# ── wrong values ────────────────────────────────────────────────────────────────────────────────────────────────────

_SECONDS = ', such as 30, "30s" or "5m"'
_BYTES = ', such as 1048576, "100 MiB" or "1 GB"'
_NAME = "; a NAME is 3 to 255 of A-Z a-z 0-9 -_.~+%, first a letter, not goog"
_TOPIC = f"NAME or projects/PROJECT/topics/NAME{_NAME}"
_HOST = 'HOST:PORT without http://, such as 127.0.0.1:8085; or "none"'


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("pubsub.ack_deadline", "9", f"whole seconds from 10 to 600{_SECONDS}"),
        ("pubsub.ack_deadline", "601s", f"whole seconds from 10 to 600{_SECONDS}"),
        ("pubsub.ack_deadline", "10.5", f"whole seconds from 10 to 600{_SECONDS}"),
        ("pubsub.max_lease", "9", f"seconds from 10 on{_SECONDS}"),
        ("pubsub.max_bytes", "100 mb", f"a size in bytes from 0 on{_BYTES}"),
        ("pubsub.max_bytes", "0.3 B", f"a size in bytes from 0 on{_BYTES}"),
        ("pubsub.max_messages", "many", "a whole number from 0 on"),
        ("pubsub.max_messages", "-1", "a whole number from 0 on"),
        ("pubsub.emulator_host", "http://localhost:8085", _HOST),
        ("pubsub.emulator_host", "localhost", _HOST),
        (
            "pubsub.endpoint",
            "https://pubsub.googleapis.com",
            'HOST or HOST:PORT without https://, such as europe-west1-pubsub.googleapis.com:443; or "none"',
        ),
        ("run.threads", "0", "a whole number from 1 to 1000"),
        ("run.grace", "0", f"seconds above 0{_SECONDS}"),
        ("run.grace", "soon", f"seconds above 0{_SECONDS}"),
        ("run.grace", "_", f"seconds above 0{_SECONDS}"),
        ("run.reload", "perhaps", "true or false"),
        ("breaker.share", "2", 'a share above 0 up to 1, such as 0.01 or "1%"'),
        ("health.port", "65536", 'a whole number from 0 to 65535; or "off"'),
        ("unknown_table", "drop", "one of ack, dead-letter, stop"),
        ("log.level", "loud", "one of debug, info, warning, error"),
        ("topic", "goog-cdc", _TOPIC),
        ("topic", "projects/p/subscriptions/cdc", _TOPIC),
        (
            "subscriptions",
            "cdc,,other",
            f"a list, none of it twice, each NAME or projects/PROJECT/subscriptions/NAME{_NAME}",
        ),
        (
            "subscriptions",
            "cdc,cdc",
            f"a list, none of it twice, each NAME or projects/PROJECT/subscriptions/NAME{_NAME}",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_its_source_and_what_is(folder, key, value, allowed):
    said = f"{key} is {value!r}, but must be {allowed}"
    environ = {variable_of(key): value}

    assert refusal(folder, None, **environ) == f"environment {variable_of(key)}: {said}"
    assert refusal(folder, {key: Flag("--its-flag", value)}) == f"flag --its-flag: {said}"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("topic = 3", f"topic is 3, but must be {_TOPIC}"),
        ("create_tables = 1", "create_tables is 1, but must be true or false"),
        ("run.threads = true", "run.threads is True, but must be a whole number from 1 to 1000"),
        ("run.threads = 2026-11-23", "run.threads is datetime.date(2026, 11, 23), but must be a whole number from 1 to 1000"),
        ("run.grace = inf", f"run.grace is inf, but must be seconds above 0{_SECONDS}"),
        ("run.grace = nan", f"run.grace is nan, but must be seconds above 0{_SECONDS}"),
        (f"run.grace = 1{'0' * 400}", f"run.grace is 1{'0' * 79}…, but must be seconds above 0{_SECONDS}"),
        ("handlers = []", "handlers is [], but must be a list, none of it twice, each a package, a file or none"),
        ("handlers = [1]", "handlers is [1], but must be a list, none of it twice, each a package, a file or none"),
        ("topic = {a = 1}", f"topic is {{'a': 1}}, but must be {_TOPIC}"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_in_the_file_is_told_with_its_line(folder, entry, told):
    write(folder, f"# first\n{entry}\n")

    assert refusal(folder) == f"cdc-reactor.toml:2: {told}"


def test_all_mistakes_are_told_at_once(folder):
    write(folder, "[run]\nthreads = 0\n")

    told = refusal(folder, {"log.level": "loud"}, CDC_RUN__PROCESSES="x", CDC_TOPICS="y")

    assert told == (
        "4 settings are wrong:\n"
        "  environment CDC_TOPICS: there is no such setting; did you mean CDC_TOPIC?\n"
        "  cdc-reactor.toml:2: run.threads is 0, but must be a whole number from 1 to 1000\n"
        "  environment CDC_RUN__PROCESSES: run.processes is 'x', but must be a whole number from 0 to 1000\n"
        "  flag --log-level: log.level is 'loud', but must be one of debug, info, warning, error"
    )


def test_a_lease_that_is_shorter_than_its_deadline_names_both_sources(folder):
    write(folder, "[pubsub]\nack_deadline = 120\n")

    assert refusal(folder, CDC_PUBSUB__MAX_LEASE="90") == (
        "environment CDC_PUBSUB__MAX_LEASE, cdc-reactor.toml:2: pubsub.max_lease (90 s) is shorter than "
        "pubsub.ack_deadline (120 s): a message would go back before its first lease ends"
    )


def test_a_retry_limit_below_the_first_wait_is_told(folder):
    assert refusal(folder, CDC_RETRY__FIRST="2m") == (
        "environment CDC_RETRY__FIRST: retry.limit (60 s) is below retry.first (120 s): "
        "waits grow from the first to the limit"
    )


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().topic = "other"  # type: ignore[misc]  # the mistake is the point


# ── writings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("pubsub.max_bytes", "100 MiB", 104_857_600),
        ("pubsub.max_bytes", "1.5GB", 1_500_000_000),
        ("pubsub.max_bytes", "10kB", 10_000),
        ("pubsub.max_bytes", "1_000", 1000),
        ("pubsub.ack_deadline", "5m", 300),
        ("pubsub.max_lease", "1h", 3600.0),
        ("retry.first", "50ms", 0.05),
        ("retry.first", " 0.5 s ", 0.5),
        ("breaker.share", "2%", 0.02),
        ("run.reload", "Yes", True),
        ("run.reload", "0", False),
        ("create_missing", "auto", None),
        ("create_missing", "off", False),
        ("log.level", "DEBUG", "debug"),
        ("pubsub.emulator_host", "[::1]:8085", "[::1]:8085"),
    ],
)
def test_values_may_be_written_for_people(folder, key, text, value):
    assert read(folder, {key: text}).value(key) == value


@given(st.integers(min_value=0, max_value=2**62))
def test_a_size_that_is_shown_can_be_typed_back(size):
    kind = kind_of("pubsub.max_bytes")

    assert kind.parse(kind.show(size)) == size


@given(st.floats(min_value=1e-6, max_value=1e9).map(lambda seconds: round(seconds, 6)))
def test_a_duration_that_is_shown_can_be_typed_back(seconds):
    kind = kind_of("retry.first")

    assert kind.parse(kind.show(seconds)) == seconds


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:hunter2@db:5432/forum", "postgresql://ada:***@db:5432/forum"),
        ("postgresql://ada:hun@ter/2@db/forum", "postgresql://ada:***@db/forum"),
        ("postgresql://db/forum?user=ada&password=hunter2&sslmode=require", "postgresql://db/forum?user=ada&password=***&sslmode=require"),
        ("https://key:hunter2@registry:8081/a?sslpassword=hunter2", "https://key:***@registry:8081/a?sslpassword=***"),
        ("postgresql://ada@db/forum", "postgresql://ada@db/forum"),
        ("sqlite:///forum.db", "sqlite:///forum.db"),
    ],
)  # fmt: skip
def test_passwords_in_urls_are_masked(url, shown):
    assert masked(url) == shown


@pytest.mark.parametrize(
    "url", ["hunter2", "host=db password=hunter2", "postgresql:/ada:hunter2@db", "p://ada:hunter2 @db"]
)
def test_a_database_url_that_is_none_is_told_without_its_text(folder, url):
    told = refusal(folder, CDC_DATABASE_URL=url)

    assert told == (
        "environment CDC_DATABASE_URL: database_url must be sqlite:///FILE or "
        'postgresql://USER:PASSWORD@HOST/DATABASE; or "none"'
    )


def test_a_password_is_nowhere_but_in_its_value(folder):
    settings = read(folder, CDC_DATABASE_URL="postgresql://ada:hunter2@db/forum")

    assert settings.database_url == SecretStr("postgresql://ada:hunter2@db/forum")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert kind_of("database_url").show(settings.database_url) == "postgresql://ada:***@db/forum"


def test_a_password_in_a_value_that_is_refused_is_masked(folder):
    told = refusal(folder, CDC_PUBSUB__EMULATOR_HOST="http://ada:hunter2@localhost:8085")

    assert (
        told
        == f"environment CDC_PUBSUB__EMULATOR_HOST: pubsub.emulator_host is 'http://ada:***@localhost:8085', but must be {_HOST}"
    )


def test_settings_built_in_code_are_checked_too():
    with pytest.raises(ValidationError, match="must be a whole number from 1 to 1000"):
        RunSettings(threads=0)
    with pytest.raises(ValidationError):
        Settings(database_url=SecretStr("hunter2"))


def test_every_section_and_key_has_its_words():
    assert list(SECTIONS) == ["pubsub", "run", "retry", "breaker", "notifications", "health", "log"]
    assert all(section.__doc__ for section in SECTIONS.values())
    assert all(kind_of(key).allowed for key in KEYS)
