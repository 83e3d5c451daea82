"""MODULE:NAME in settings."""

from __future__ import annotations

import sys

import pytest

from cdc_reactor.errors import UsageError
from cdc_reactor.imports import load_object


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "named_by_settings.py").write_text("def send(notifications): ...\n")
    (tmp_path / "broken_by_settings.py").write_text("1 / 0\n")
    yield
    for name in ("named_by_settings", "broken_by_settings"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("module")
def test_an_object_is_found_in_the_current_directory():
    assert load_object("notifications.sink", "named_by_settings:send").__name__ == "send"


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_to_be_found:send", "nowhere_to_be_found cannot be imported: ModuleNotFoundError"),
        ("named_by_settings:sned", "the module named_by_settings has no sned"),
        ("broken_by_settings:send", "broken_by_settings cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_setting(name, says):
    with pytest.raises(UsageError, match=f"^notifications.sink = {name}: {says}"):
        load_object("notifications.sink", name)
