"""Source text: names, lines that are broken where the formatter would, imports in the linters' order."""

from __future__ import annotations

from itertools import islice

import pytest

from cdc_reactor.source_text import call, comment, docstring, numbered, quote, words, write_imports, write_tuple


@pytest.mark.parametrize(
    ("text", "written"),
    [("firstName", "first_name"), ("HTTPCode", "http_code"), ("größe", "grosse"), ("a--b..c", "a_b_c"), ("数", "")],
)
def test_any_name_becomes_words(text, written):
    assert words(text) == written


def test_names_are_numbered_without_end():
    assert list(islice(numbered("a"), 3)) == ["a", "a_2", "a_3"]


def test_imports_stand_in_the_order_of_linters():
    homes = {
        "z2": "ours.m2", "Z": "ours.m2", "MAX": "ours.m2", "a10": "ours.m10", "Any": "typing", "Field": "pydantic", "UUID": "uuid",
        "Event": "cdc_reactor",
    }  # fmt: skip

    assert write_imports(homes, first_party={"ours"}) == [
        "from typing import Any",
        "from uuid import UUID",
        "",
        "from cdc_reactor import Event",
        "from pydantic import Field",
        "",
        "from ours.m2 import MAX, Z, z2",
        "from ours.m10 import a10",
    ]


def test_an_import_that_is_too_long_has_a_line_for_each_name():
    names = [f"a_name_{n:02}_{'x' * 20}" for n in range(5)]

    lines = write_imports(dict.fromkeys(names, "ours"), first_party={"ours"})

    assert lines == ["from ours import (", *(f"    {name}," for name in names), ")"]


def test_a_call_is_broken_only_as_far_as_it_must_be():
    one, two, three = ["a" * 50], ["a" * 50, "b" * 50], ["a" * 50, "b" * 50, "c" * 50]

    assert call("f", one, "", 0) == [f"f({'a' * 50})"]
    assert call("f" * 20, two, "", 0) == [f"{'f' * 20}(", f"    {two[0]}, {two[1]}", ")"]
    assert call("f", three, ":", 4) == ["f(", *(f"        {each}," for each in three), "    ):"]


def test_text_of_any_kind_becomes_a_literal_a_docstring_or_a_comment():
    assert [quote(text) for text in ("a", 'a"b', "a'b", "a\\b\n")] == ['"a"', "'a\"b'", '"a\'b"', '"a\\\\b\\n"']
    assert docstring('a "b"\nc\\') == '"""a \'b\' c/"""'
    assert len(docstring("a" * 200, 4)) == 120
    assert comment("word " * 40, 4) == ["    # " + " ".join(["word"] * 23), "    # " + " ".join(["word"] * 17)]
    assert (write_tuple(["a"]), write_tuple(["a", "b"])) == ('("a",)', '("a", "b")')
