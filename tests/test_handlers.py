"""Declarations: whatever is wrong is told at import, with the handler's place and the cure."""

from __future__ import annotations

import asyncio
import functools
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_reactor import Batch, Context, Create, DefinitionError, Delete, Event, Handler, Row, Truncate, Update, handles
from cdc_reactor.envelope import Operation, TableId
from cdc_reactor.events import Publication


class User(Row, table="public.users"):
    id: int
    username: str | None = None


class Post(Row, table="public.posts"):
    id: int


class Homeless(Row):
    id: int


class Greeted(Event, topic="user.greeted.v1"):
    user_id: int


def function(batch: Batch[User], ctx: Context) -> None:
    """Does nothing."""


def context(log: logging.Logger | None = None) -> Context:
    def no_session() -> Any:
        raise AssertionError("nobody asked for a session")

    return Context(handler="greet", log=log or logging.getLogger(), now=datetime.now(UTC), open_session=no_session)


class TestADeclaration:
    def test_is_a_value_that_can_still_be_called(self):
        called = []

        @handles(User)
        def greet(batch: Batch[User], ctx: Context) -> None:
            called.append((batch, ctx))

        batch, ctx = Batch[User](()), context()
        greet(batch, ctx)

        assert isinstance(greet, Handler)
        assert called == [(batch, ctx)]

    def test_has_defaults_for_everything(self):
        greet = handles(User)(function)

        assert (greet.name, greet.row, greet.table_id) == ("function", User, TableId("public", "users"))
        assert (greet.max_size, greet.max_wait, greet.max_attempts, greet.timeout) == (100, 0.5, 5, None)
        assert (greet.when_changed, greet.snapshot, greet.on_poison, greet.owner) == ((), False, "skip", "")
        assert greet.operations == {Operation.CREATE, Operation.UPDATE, Operation.DELETE, Operation.TRUNCATE}
        assert greet.place == f"{__file__}:{function.__code__.co_firstlineno}"

    @pytest.mark.parametrize(
        ("ops", "operations"),
        [
            ((Create, Delete), {Operation.CREATE, Operation.DELETE}),
            ([Truncate], {Operation.TRUNCATE}),
            ({Operation.UPDATE}, {Operation.UPDATE}),
            (Update, {Operation.UPDATE}),
        ],
    )
    def test_takes_kinds_of_change(self, ops, operations):
        assert handles(User, ops=ops)(function).operations == operations

    def test_takes_columns_by_their_own_or_their_field_names(self):
        class Aliased(Row, table="public.aliased"):
            id: int
            schema_: str

            model_config = {"alias_generator": lambda name: name.rstrip("_")}  # noqa: RUF012 - pydantic's own way

        for name in ("schema", "schema_"):
            assert handles(Aliased, when_changed=[name])(lambda batch, ctx: None).when_changed == (name,)

    def test_tells_async_functions(self):
        async def greet(batch: Batch[User], ctx: Context) -> None:
            await asyncio.sleep(0)

        assert handles(User)(greet).is_async
        assert not handles(User)(function).is_async

    def test_may_decorate_a_decorated_function(self):
        @functools.wraps(function)
        def wrapped(*args: Any) -> None:
            function(*args)

        assert handles(User)(wrapped).name == "function"

    @pytest.mark.parametrize("annotation", [Batch, Batch[Any], Batch[Row], Batch[User], "Batch[User]", list[int]])
    def test_takes_a_batch_of_its_row_or_of_any(self, annotation):
        def greet(batch, ctx): ...

        greet.__annotations__["batch"] = annotation

        assert handles(User)(greet).name == "greet"

    def test_does_not_mind_annotations_for_type_checkers_only(self):
        def greet(batch: Nowhere[User], ctx: Context) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point

        assert handles(User)(greet).name == "greet"


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_size": 0}, "max_size=0 must be a whole number of at least 1"),
    ({"max_size": 2.5}, "max_size=2.5 must be a whole number of at least 1"),
    ({"max_size": True}, "max_size=True must be a whole number of at least 1"),
    ({"max_attempts": 0}, "max_attempts=0 must be a whole number of at least 1"),
    ({"max_wait": -1}, "max_wait=-1 must be seconds, zero or more"),
    ({"max_wait": "1s"}, "max_wait='1s' must be seconds, zero or more"),
    ({"max_wait": float("nan")}, "max_wait=nan must be seconds, zero or more"),
    ({"max_wait": float("inf")}, "max_wait=inf must be seconds, zero or more"),
    ({"max_wait": None}, "max_wait=None must be seconds, zero or more"),
    ({"timeout": 0}, "timeout=0 must be seconds above zero, or None"),
    ({"timeout": "1s"}, "timeout='1s' must be seconds above zero, or None"),
    ({"timeout": float("inf")}, "timeout=inf must be seconds above zero, or None"),
    ({"on_poison": "ignore"}, """on_poison='ignore' must be "skip", "park" or "halt\""""),
    ({"ops": ("insert",)}, "ops holds 'insert'; it takes Create, Update, Delete and Truncate"),
    ({"ops": (Operation.READ,)}, "ops holds <Operation.READ: 'r'>; it takes Create, Update, Delete and Truncate"),
    ({"ops": ([Create],)}, "ops holds [<class 'cdc_reactor.changes.Create'>]; it takes Create, Update, Delete and"),
    ({"when_changed": "username"}, """when_changed='username' must be a tuple of columns, as ("username",)"""),
    (
        {"when_changed": ("usernme",)},
        "when_changed names 'usernme', which is no field of User; did you mean 'username'?",
    ),
    ({"when_changed": ("zip",)}, "when_changed names 'zip', which is no field of User; it has id, username"),
    ({"when_changed": (3,)}, "when_changed names 3, which is no field of User; it has id, username"),
]


class TestAWrongDeclaration:
    @pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=[message for _, message in WRONG_OPTIONS])
    def test_option_is_told_with_the_place_of_the_handler(self, options, message):
        with pytest.raises(DefinitionError) as told:
            handles(User, **options)(function)

        assert str(told.value).startswith(f"{__file__}:{function.__code__.co_firstlineno} function: {message}")

    @pytest.mark.parametrize("row", [function, "public.users", None, int, User(id=1)])
    def test_row_is_told_at_once(self, row):
        with pytest.raises(DefinitionError, match=r"@handles takes a Row class, not .*: write @handles\(User\)"):
            handles(row)

    def test_row_without_a_table_is_told(self):
        with pytest.raises(DefinitionError, match=r"function: Homeless names no table: class Homeless\(Row, table="):
            handles(Homeless)(function)  # type: ignore[arg-type]  # the point

    @pytest.mark.parametrize("thing", [print, functools.partial(function), handles(User)(function), type, 3])
    def test_of_something_else_than_a_function_is_told(self, thing):
        with pytest.raises(DefinitionError, match=r"@handles decorates a function \(def or async def\), not "):
            handles(User)(thing)

    @pytest.mark.parametrize(
        "wrong", [lambda: None, lambda batch: None, lambda batch, ctx, more: None, lambda *, batch, ctx: None]
    )
    def test_parameters_are_told(self, wrong):
        with pytest.raises(DefinitionError, match=r"a handler takes \(batch: Batch\[User\], ctx: Context\): "):
            handles(User)(wrong)

    def test_batch_of_another_row_is_told(self):
        def wrong(batch: Batch[Post], ctx: Context) -> None: ...

        with pytest.raises(DefinitionError, match=r"wrong: it handles User but its batch is annotated Batch\[Post\]"):
            handles(User)(wrong)  # type: ignore[arg-type]  # the point

    def test_generator_would_never_run(self):
        def generator(batch: Batch[User], ctx: Context) -> Any:
            yield Greeted(user_id=1)

        async def async_generator(batch: Batch[User], ctx: Context) -> Any:
            yield Greeted(user_id=1)

        for wrong in (generator, async_generator):
            with pytest.raises(DefinitionError, match="a function with `yield` in it would never run; publish by ctx"):
                handles(User)(wrong)


class TestAContext:
    def test_collects_publications_in_order(self):
        ctx = context()

        ctx.publish(Greeted(user_id=1), key="1")
        ctx.publish(Greeted(user_id=2))

        assert ctx.publications == [Publication(Greeted(user_id=1), "1"), Publication(Greeted(user_id=2))]

    def test_refuses_what_is_no_event(self):
        with pytest.raises(TypeError, match="greet publishes a dict; declare it as a class of Event"):
            context().publish({"user_id": 1})  # type: ignore[arg-type]  # the point

    def test_refuses_an_event_without_a_topic(self):
        class Lost(Event):
            pass

        with pytest.raises(TypeError, match=r'Lost has no topic: class Lost\(Event, topic="…"\)'):
            context().publish(Lost())

    def test_refuses_at_once_what_could_not_be_written_after_the_commit(self):
        class Odd(Event, topic="odd.v1"):
            thing: Any

        with pytest.raises(TypeError, match="Odd cannot be written as JSON: Unable to serialize unknown type"):
            context().publish(Odd(thing=object()))


def test_an_event_that_no_topic_would_take_fails_in_the_handler_and_not_after_its_commit():
    class Report(Event, topic="report.written.v1"):
        text: str

    ctx = context()

    with pytest.raises(ValueError, match=r"Report has 10,000,011 bytes and a key of 0; topic report.written.v1 takes"):
        ctx.publish(Report(text="x" * 10_000_000))
    with pytest.raises(ValueError, match="a key of 1,025"):
        ctx.publish(Report(text="x"), key="k" * 1_025)
    assert ctx.publications == []
