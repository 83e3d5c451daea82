"""Rows and changes: what a handler sees, what it may not see, and what the errors say and leave out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import msgspec
import pytest
from msgspec import Raw
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from cdc_reactor import changes as changes_module
from cdc_reactor.changes import (
    CHANGE_OF,
    Batch,
    Change,
    Create,
    Delete,
    Row,
    RowReader,
    Truncate,
    Update,
    column_of,
    columns_of,
)
from cdc_reactor.columns import (
    Base64Bytes,
    DecimalBytes,
    DecimalString,
    EpochDays,
    IsoTimestamp,
    MicroTimestamp,
    Placeholder,
)
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope, Lsn, Operation, RowSchema, Source, TableId
from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable
from cdc_reactor.messages import Message
from cdc_reactor.schemas import read_schemas

CAPTURES = Path(__file__).parent / "captures"
UNSENT = "__debezium_unavailable_value"
Make: TypeAlias = Callable[..., Any]


class User(Row, table="public.users"):
    id: int
    name: str | None
    bio: str | None = None
    karma: int = 0


USERS = RowReader(User, Placeholder())
SOURCE = {"name": "forum", "ts_ms": 1795443309471, "schema": "public", "table": "users", "lsn": 25757392}


def change(
    op: str = "c",
    *,
    before: Any = None,
    after: Any = None,
    model: type[Row] = User,
    source: dict[str, Any] | None = None,
    schema: dict[str, Any] | None = None,
) -> Any:
    value: dict[str, Any] = {"before": before, "after": after, "source": SOURCE | (source or {}), "op": op}
    if schema is not None:
        value = {"schema": schema, "payload": value}
    decoded = Decoder().decode(Message(json.dumps(value).encode()))
    assert isinstance(decoded, Envelope)
    return CHANGE_OF[decoded.op](decoded, RowReader(model, Placeholder()))


def raw(op: str = "c", *, before: bytes = b"null", after: bytes = b"null", model: type[Row] = User) -> Any:
    source = msgspec.json.encode(SOURCE)
    data = b'{"before":' + before + b',"after":' + after + b',"source":' + source + b',"op":"' + op.encode() + b'"}'
    decoded = Decoder().decode(Message(data))
    assert isinstance(decoded, Envelope)
    return CHANGE_OF[decoded.op](decoded, RowReader(model, Placeholder()))


def block(*columns: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "struct", "fields": list(columns), "optional": True, "name": "forum.public.users.Value"}
    return {"type": "struct", "fields": [{**row, "field": "before"}, {**row, "field": "after"}], "name": "x.Envelope"}


def captured(name: str, table: str, op: str) -> list[Envelope]:
    decoder = Decoder(schemas=read_schemas(CAPTURES / "forum_avro.registry.json"))
    from cdc_reactor.captures import find_captures

    (capture,) = find_captures([str(CAPTURES / name)])
    decoded = [decoder.decode(m) for m in capture.messages() if isinstance(m, Message)]
    return [d for d in decoded if isinstance(d, Envelope) and (d.source.table, d.op) == (table, op)]


FORMS = [
    "forum_schemas_off.values.ndjson",
    "forum_schemas_on.values.ndjson",
    "forum_one_topic.values.ndjson",
    "forum_avro.values.b64",
]


class TestDefiningARow:
    def test_a_row_knows_its_table_and_its_key(self):
        class Vote(Row, table="forum.votes", key=("post", "voter")):
            post: int
            voter: int

        assert (Vote.table_id, Vote.key_columns, Vote.replica_identity) == (
            TableId("forum", "votes"),
            ("post", "voter"),
            None,
        )
        assert (User.table_id, User.key_columns) == (TableId("public", "users"), ("id",))

    def test_a_row_without_id_and_key_has_none(self):
        class Visit(Row, table="public.visits"):
            page: str

        assert Visit.key_columns == ()

    def test_the_last_dot_parts_schema_and_table(self):
        class Odd(Row, table="a.b.c"):
            id: int

        assert Odd.table_id == TableId("a.b", "c")

    @pytest.mark.parametrize("table", ["users", "", ".", "public.", ".users"])
    def test_a_table_without_schema_is_a_definition_error(self, table):
        with pytest.raises(DefinitionError, match=r'Bad: table=.* must name schema and table, as "public\.users"'):

            class Bad(Row, table=table):
                id: int

    def test_a_key_that_is_one_text_is_a_definition_error(self):
        with pytest.raises(DefinitionError, match=r"must be a tuple of columns, as \(\"id\",\)"):

            class Bad(Row, table="a.b", key="id"):
                id: int

    def test_a_key_that_is_no_field_is_a_definition_error(self):
        with pytest.raises(DefinitionError, match="Bad: key names 'uid', which are no fields; it has id, name"):

            class Bad(Row, table="a.b", key=("id", "uid")):
                id: int
                name: str

    def test_an_identity_that_is_none_is_a_definition_error(self):
        with pytest.raises(DefinitionError, match='identity=\'index\' must be "full" or "default"'):

            class Bad(Row, table="a.b", identity="index"):
                id: int

    @pytest.mark.parametrize("alias", [AliasChoices("a", "b"), AliasPath("a", 0)])
    def test_an_alias_of_many_columns_is_a_definition_error(self, alias):
        with pytest.raises(DefinitionError, match=r'the alias of name must name one column, as Field\(alias="name"\)'):

            class Bad(Row, table="a.b"):
                id: int
                name: str = Field(validation_alias=alias)

    def test_two_fields_of_one_column_are_a_definition_error(self):
        with pytest.raises(DefinitionError, match="two fields have one column"):

            class Bad(Row, table="a.b"):
                id: int
                uid: int = Field(alias="id")

    @pytest.mark.parametrize("name", ["table_id", "key_columns", "replica_identity"])
    def test_a_field_that_hides_the_rows_own_is_a_definition_error(self, name):
        with pytest.raises(
            DefinitionError, match=f'the field {name} hides the Row\'s own; .*Field\\(alias="{name}"\\)'
        ):
            type("Bad", (Row,), {"__annotations__": {name: int}}, table="a.b")

    def test_a_column_of_such_a_name_is_read_by_an_alias(self):
        class Booking(Row, table="public.bookings"):
            id: int
            seat: int = Field(alias="table_id")

        assert change(after={"id": 1, "table_id": 7}, model=Booking).after == Booking(id=1, seat=7)

    def test_a_base_may_be_without_table_and_its_fields_are_inherited(self):
        class Base(Row):
            id: int

        class Child(Base, table="public.child"):
            name: str

        assert columns_of(Child) == {"id": "id", "name": "name"}
        assert Child.key_columns == ("id",)

    def test_columns_are_named_by_alias(self):
        class Person(Row, table="public.people", key=("uid", "born")):
            uid: int = Field(alias="userId")
            born: int = Field(validation_alias="birthYear")
            name: str

        assert columns_of(Person) == {"userId": "uid", "birthYear": "born", "name": "name"}
        assert [column_of(Person, name) for name in ("uid", "userId", "born", "name", "other")] == [
            "userId", "userId", "birthYear", "name", "other",
        ]  # fmt: skip
        assert Person.key_columns == ("userId", "birthYear")

    def test_an_alias_generator_names_columns_too(self):
        class Person(Row, table="public.people", key=("user_id",)):
            model_config = ConfigDict(alias_generator=to_camel)
            user_id: int

        assert columns_of(Person) == {"userId": "user_id"}
        assert change(after={"userId": 5}, model=Person).after == Person(user_id=5)

    def test_tests_may_make_rows_by_field_name_and_rows_are_values(self):
        ada = User(id=1, name="Ada")

        assert ada == change(after={"id": 1, "name": "Ada"}).after
        assert hash(ada) == hash(User(id=1, name="Ada"))
        with pytest.raises(ValueError, match="frozen"):
            ada.karma = 5  # type: ignore[misc]


class TestReadingRows:
    def test_a_create_has_an_after_alone(self):
        created = change("c", after={"id": 1, "name": "Ada", "other": [1]})

        assert isinstance(created, Create)
        assert (created.before, created.after, created.is_snapshot) == (None, User(id=1, name="Ada"), False)

    def test_a_row_of_a_snapshot_is_a_create_that_says_so(self):
        created = change("r", after={"id": 1, "name": "Ada"})

        assert isinstance(created, Create)
        assert created.is_snapshot

    def test_an_update_has_both_where_both_were_sent(self):
        updated = change("u", before={"id": 1, "name": None}, after={"id": 1, "name": "Ada"})

        assert isinstance(updated, Update)
        assert (updated.before, updated.after) == (User(id=1, name=None), User(id=1, name="Ada"))

    def test_an_update_without_before_says_none(self):
        assert change("u", after={"id": 1, "name": "Ada"}).before is None

    def test_a_delete_has_a_before_alone(self):
        deleted = change("d", before={"id": 1, "name": "Ada"})

        assert isinstance(deleted, Delete)
        assert (deleted.before, deleted.after) == (User(id=1, name="Ada"), None)

    def test_a_delete_without_row_names_the_cure(self):
        with pytest.raises(
            ImageUnavailable,
            match=r"^public\.users: this delete carries no row \(lsn 0/18906D0\)\. Cure: ALTER TABLE public\.users REPLICA",
        ):
            _ = change("d").before

    def test_a_truncate_has_neither(self):
        truncated = change("t")

        assert isinstance(truncated, Truncate)
        assert (truncated.before, truncated.after, truncated.key) == (None, None, {})

    def test_rows_are_read_on_first_access_and_once(self):
        broken = raw("u", before=b'{"id":1,"name":"Ada"}', after=b'{"id":"no number"}')

        assert broken.before == User(id=1, name="Ada")
        assert broken.before is broken.before
        with pytest.raises(DecodeError):
            _ = broken.after

    def test_a_create_without_row_is_a_decode_error(self):
        with pytest.raises(DecodeError, match=r"^public\.users: there is no row in this image \(lsn 0/18906D0\)$"):
            _ = change("c").after

    def test_a_column_that_is_missing_takes_its_default_or_is_a_decode_error(self):
        assert change(after={"id": 1, "name": None}).after.karma == 0
        with pytest.raises(
            DecodeError,
            match=r"^public\.users does not fit User: name: the row has no such column; it has id \(lsn 0/18906D0\)$",
        ):
            _ = change(after={"id": 1}).after

    def test_the_field_name_is_no_column_where_there_is_an_alias(self):
        class Person(Row, table="public.users"):
            id: int = Field(alias="user_id")

        assert change(after={"user_id": 1, "id": 2}, model=Person).after.id == 1

    @pytest.mark.parametrize("digits", [19, 31, 5000])
    def test_integers_are_exact(self, digits):
        number = 10**digits - 1

        assert raw(after=b'{"id":' + b"9" * digits + b',"name":null}').after.id == number

    @pytest.mark.parametrize("value", [b'"\xff"', b'"\\ud800"', b"[" * 3000 + b"]" * 3000, b'{"a":"\xc3\x28"}'])
    def test_a_broken_row_is_the_decode_error_of_its_change(self, value):
        if value[:1] == b"[" or b"\\u" in value:
            with pytest.raises(DecodeError):
                raw(after=b'{"id":1,"other":' + value + b"}")
            return
        broken = raw("u", before=b'{"id":1,"name":"Ada"}', after=b'{"id":1,"name":null,"other":' + value + b"}")

        for read in (lambda: broken.after, lambda: broken.columns, lambda: broken.changed_columns, lambda: broken.key):
            with pytest.raises(DecodeError, match=r"^public\.users: not JSON: .* \(lsn 0/18906D0\)$") as refused:
                read()
            assert refused.value.change is broken

    def test_what_nests_too_deeply_is_a_decode_error(self):
        class Deep(Row, table="public.users"):
            id: int
            x: Any

        for depth in (700, 900, 950, 1000, 1100):
            deep = b'{"id":1,"x":' + b"[" * depth + b"1" + b"]" * depth + b"}"
            other = b'{"id":1,"x":' + b"[" * depth + b"2" + b"]" * depth + b"}"
            try:
                update = raw("u", before=deep, after=other, model=Deep)
            except DecodeError:
                continue
            for read in (lambda c: c.after, lambda c: c.changed_columns, lambda c: c.columns):
                try:
                    read(update)
                except DecodeError as error:
                    assert error.change is update  # noqa: PT017 - whether it is too deep depends on the stack

    def test_plans_are_made_once_for_each_schema_and_bounded(self, monkeypatch):
        monkeypatch.setattr(changes_module, "_MAX_PLANS", 3)
        reader = RowReader(User, Placeholder())
        schemas = [RowSchema({}, {}) for _ in range(5)]

        for schema in [*schemas, *schemas]:
            reader.read(Raw(b'{"id":1,"name":"a"}'), schema)

        assert len(reader._plans) <= 3


class TestMatching:
    """The patterns of DESIGN §5."""

    @staticmethod
    def tell(it: Change[User]) -> str:
        match it:
            case Update(before=User() as old, after=new) if it.is_changed("name"):
                told = f"{old.name} is {new.name} now"
            case Update(before=None, after=User(name=name)):
                told = f"{name} had no before"
            case Update():
                told = "the same"
            case Delete(before=gone):
                told = f"{gone.id} is gone"
            case Create(is_snapshot=True):
                told = "was there"
            case Create(after=User(id=1, name=str(name))):
                told = f"{name} came"
            case Create(before=None, after=_):
                told = "somebody came"
            case Truncate(before=None, after=None):
                told = "all are gone"
        return told

    @pytest.mark.parametrize(
        ("it", "told"),
        [
            (change("u", before={"id": 1, "name": "Ada"}, after={"id": 1, "name": "Countess"}), "Ada is Countess now"),
            (change("u", before={"id": 1, "name": "Ada"}, after={"id": 1, "name": "Ada"}), "the same"),
            (change("u", after={"id": 1, "name": "Ada"}), "Ada had no before"),
            (change("d", before={"id": 1, "name": "Ada"}), "1 is gone"),
            (change("r", after={"id": 1, "name": "Ada"}), "was there"),
            (change("c", after={"id": 1, "name": "Ada"}), "Ada came"),
            (change("c", after={"id": 2, "name": "Ada"}), "somebody came"),
            (change("t"), "all are gone"),
        ],
    )
    def test_changes_match(self, it, told):
        assert self.tell(it) == told

    def test_matching_a_column_that_was_not_sent_raises(self):
        update = change("u", before={"id": 1, "name": "Ada"}, after={"id": 1, "name": "Ada", "bio": UNSENT})

        def is_without_bio() -> bool:
            match update:
                case Update(after=User(bio=None)):
                    return True
            return False

        with pytest.raises(ImageUnavailable, match=r"public\.users: column bio was not sent"):
            is_without_bio()

    def test_every_operation_but_messages_makes_a_change(self):
        assert set(CHANGE_OF) == set(Operation) - {Operation.MESSAGE}


class TestWhatChanged:
    def test_columns_that_differ_are_changed_whether_the_row_names_them_or_not(self):
        update = change(
            "u", before={"id": 1, "name": "Ada", "a": [1], "b": 1}, after={"id": 1, "name": None, "a": [1, 2], "b": 1}
        )

        assert update.changed_columns == {"name", "a"}
        assert [update.is_changed(*c) for c in (["name"], ["a"], ["b"], ["b", "a"], ["id"], [])] == [
            True, True, False, True, False, False,
        ]  # fmt: skip

    def test_columns_that_come_and_go_are_changed(self):
        update = change("u", before={"id": 1, "old": 1, "null": None}, after={"id": 1, "new": 1, "nil": None})

        assert update.changed_columns == {"old", "null", "new"}

    @pytest.mark.parametrize("op", ["c", "r", "d"])
    def test_of_a_created_or_deleted_row_all_are_changed(self, op):
        row = {"id": 1, "name": "Ada"}
        it = change(op, before=row) if op == "d" else change(op, after=row)

        assert it.changed_columns == {"id", "name"}
        assert it.is_changed("name")

    def test_a_field_is_known_by_its_name_and_by_its_column(self):
        class Person(Row, table="public.users"):
            id: int
            name: str = Field(alias="fullName")

        update = change("u", before={"id": 1, "fullName": "a"}, after={"id": 1, "fullName": "b"}, model=Person)

        assert update.is_changed("name")
        assert update.is_changed("fullName")
        assert update.changed_columns == {"fullName"}

    def test_without_a_before_nothing_is_guessed_and_the_error_names_the_cure(self):
        update = change("u", after={"id": 1, "name": "Ada"})

        for ask in (lambda: update.is_changed("name"), lambda: update.changed_columns):
            with pytest.raises(
                ImageUnavailable,
                match=r"^public\.users: this update carries no row as it was before \(lsn 0/18906D0\), so what changed is not "
                r"known\. Cure: ALTER TABLE public\.users REPLICA IDENTITY FULL$",
            ):
                ask()

    def test_an_unknown_column_is_a_definition_error_whatever_was_sent(self):
        for it in (
            change("u", after={"id": 1, "name": "Ada"}),
            change("u", before={"id": 1, "name": "a"}, after={"id": 1, "name": "Ada"}),
            change("c", after={"id": 1, "name": "Ada"}),
            change("d", before={"id": 1, "name": "Ada"}),
        ):
            with pytest.raises(DefinitionError, match=r"public\.users has no column 'nam' .*; it has id, name$"):
                it.is_changed("id", "nam")

    def test_a_large_column_that_was_not_sent_counts_as_not_changed(self):
        before = {"id": 1, "name": "Ada", "bio": "long"}

        assert change("u", before=before, after=before | {"bio": UNSENT}).changed_columns == frozenset()
        assert change("u", before=before, after=before | {"bio": UNSENT, "name": "x"}).changed_columns == {"name"}
        assert not change("u", before=before, after=before | {"bio": UNSENT}).is_changed("bio")

    def test_times_that_come_again_are_equal_and_nan_equals_nan(self):
        envelope = Envelope(
            before={"id": 1, "x": float("nan")},
            after={"id": 1, "x": float("nan")},
            source=Source(schema="public", table="users"),
            op=Operation.UPDATE,
        )

        assert Update(envelope, USERS).changed_columns == frozenset()


class TestColumnsThatWereNotSent:
    def test_reading_one_raises_and_names_table_column_and_cure(self):
        after = change("u", after={"id": 1, "name": UNSENT, "bio": "b"}).after

        with pytest.raises(
            ImageUnavailable,
            match=r"^public\.users: column name was not sent\. Either its large value did not change \(TOAST\), .*"
            r'Cure: ALTER TABLE public\.users REPLICA IDENTITY FULL; .* declare identity="full" on User$',
        ):
            _ = after.name
        assert (after.id, after.bio, after.karma) == (1, "b", 0)

    def test_a_default_does_not_stand_for_it(self):
        with pytest.raises(ImageUnavailable):
            _ = change("u", after={"id": 1, "name": "Ada", "bio": UNSENT}).after.bio

    def test_it_is_left_out_when_the_row_is_dumped_or_shown(self):
        after = change("u", after={"id": 1, "name": "Ada", "bio": UNSENT}).after

        assert after.model_dump() == {"id": 1, "name": "Ada", "karma": 0}
        assert repr(after) == "User(id=1, name='Ada', karma=0)"
        assert type(after) is User

    def test_its_validators_do_not_run(self):
        class Strict(Row, table="public.users"):
            id: int
            name: str

            @field_validator("name")
            @classmethod
            def is_short(cls, value: str) -> str:
                assert len(value) < 5
                return value

        assert change("u", after={"id": 1, "name": UNSENT}, model=Strict).after.id == 1

    @pytest.mark.parametrize(
        "annotation",
        [
            str,
            Any,
            Json,
            SecretStr,
            str | None,
            Annotated[str, AfterValidator(str.upper)],
            Annotated[str, AfterValidator(str.upper)] | None,
            Annotated[str, StringConstraints(to_upper=True)],
            Annotated[int, BeforeValidator(len)],
            Annotated[int, BeforeValidator({"a": 1}.__getitem__)],
            Annotated[datetime, BeforeValidator(lambda _: datetime(2026, 1, 1, tzinfo=UTC))],
            list[str],
            list[Annotated[str, AfterValidator(str.upper)]],
            list[Annotated[str, Field(examples=["unhashable"])]],
            dict[str, Annotated[str, Field(examples=["unhashable"])]] | str,
            Literal["__debezium_unavailable_value"],
            Base64Bytes,
            UUID,
            int,
            date,
        ],
    )
    def test_whatever_the_annotation_makes_of_text_it_makes_nothing_of_what_was_not_sent(self, annotation):
        model = type("Model", (Row,), {"__annotations__": {"id": int, "x": annotation}}, table="public.users")
        value = [UNSENT] if str(annotation).startswith("list") else UNSENT

        row = change("u", after={"id": 1, "x": value}, model=model).after

        assert row.id == 1
        with pytest.raises(ImageUnavailable):
            _ = row.x

    def test_a_row_that_folds_its_texts_makes_nothing_of_it_either(self):
        class Loud(Row, table="public.users"):
            model_config = ConfigDict(str_to_upper=True)
            id: int
            name: str

        class Checked(Row, table="public.users"):
            id: int
            name: str

            @model_validator(mode="before")
            @classmethod
            def shout(cls, columns: Any) -> Any:
                return {name: value.upper() if isinstance(value, str) else value for name, value in columns.items()}

        for model in (Loud, Checked):
            assert change("u", after={"id": 1, "name": UNSENT}, model=model).after.model_dump() == {"id": 1}
            assert change("u", after={"id": 1, "name": "ada"}, model=model).after.model_dump() == {
                "id": 1,
                "name": "ADA",
            }

    def test_in_a_column_that_the_row_does_not_name_it_does_not_matter(self):
        assert change("u", after={"id": 1, "name": "Ada", "huge": UNSENT}).after == User(id=1, name="Ada")

    def test_the_field_is_named_by_its_column(self):
        class Person(Row, table="public.users"):
            id: int
            name: str = Field(alias="fullName")

        with pytest.raises(ImageUnavailable, match="column fullName was not sent"):
            _ = change("u", after={"id": 1, "fullName": UNSENT}, model=Person).after.name

    def test_what_is_no_field_at_all_is_an_attribute_error(self):
        with pytest.raises(AttributeError):
            _ = change(after={"id": 1, "name": "Ada"}).after.nickname

    @pytest.mark.parametrize("form", FORMS)
    def test_the_captured_post_is_read_without_its_body(self, form):
        class Post(Row, table="public.posts"):
            id: int
            title: str | None
            body: str | None

        (envelope,) = captured(form, "posts", "u")
        update = Update(envelope, RowReader(Post, Placeholder()))

        assert update.after.model_dump() == {"id": 3, "title": "Long one"}
        with pytest.raises(ImageUnavailable):
            _ = update.after.body


class TestDeletesThatCarryTheirKey:
    """REPLICA IDENTITY DEFAULT: the key, and for the rest null, or what JsonConverter puts for null."""

    @pytest.mark.parametrize("form", FORMS)
    def test_of_the_captured_users_nothing_but_the_key_can_be_read(self, form):
        class Captured(Row, table="public.users"):
            id: int
            handle: str
            email: str | None
            karma: int
            joined: datetime

        deletes = [Delete(e, RowReader(Captured, Placeholder())) for e in captured(form, "users", "d")]

        assert [d.before.model_dump() for d in deletes] == [{"id": 6}, {"id": 5}]
        assert [d.key for d in deletes] == [{"id": 6}, {"id": 5}]
        for name in ("handle", "email", "karma", "joined"):
            with pytest.raises(
                ImageUnavailable, match=rf"public\.users: column {name} was not sent.*REPLICA IDENTITY FULL"
            ):
                getattr(deletes[0].before, name)

    @pytest.mark.parametrize("form", FORMS)
    def test_of_a_composite_key_all_columns_can_be_read(self, form):
        class Vote(Row, table="public.votes", key=("post", "voter")):
            post: int
            voter: int
            value: int | None

        (envelope,) = captured(form, "votes", "d")

        assert Delete(envelope, RowReader(Vote, Placeholder())).before.model_dump() == {"post": 2, "voter": 1}

    @pytest.mark.parametrize("form", FORMS)
    def test_of_a_table_with_identity_full_the_whole_row_can_be_read(self, form):
        class Comment(Row, table="public.comments"):
            id: int
            post: int
            author: int
            text: str

        deletes = [Delete(e, RowReader(Comment, Placeholder())) for e in captured(form, "comments", "d")]

        assert [d.before for d in deletes] == [
            Comment(id=7, post=2, author=3, text="comment 7"),
            Comment(id=8, post=3, author=4, text="comment 8"),
        ]

    @pytest.mark.parametrize(
        "nothing",
        [
            None, "", 0, 0.0, False, [], {}, "AA==", "0", "0.00", "{}", "P0Y0M0DT0H0M0S",
            "1970-01-01", "1970-01-01Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000Z",
            "00:00:00Z", "00:00:00", "00:00:00.000000Z", "00000000-0000-0000-0000-000000000000",
            {"scale": 0, "value": "AA=="}, {"x": 0.0, "y": 0.0, "srid": None},
        ],
    )  # fmt: skip
    def test_what_the_connector_puts_for_null_is_nothing(self, nothing):
        # JdbcValueConverters and PostgresValueConverter: the fallback of each convertValue
        before = change("d", before={"id": 1, "name": "", "other": nothing}).before

        assert before.model_dump() == {"id": 1, "karma": 0} | {"bio": None}

    @pytest.mark.parametrize(
        "something", ["x", "0x", 1, -1, True, 0.5, [0], {"a": 1}, "AQ==", "1970-01-02", " ", "00:00:01Z"]
    )
    def test_one_value_makes_a_whole_row_of_it(self, something):
        assert change("d", before={"id": 1, "name": "", "other": something}).before == User(id=1, name="")

    def test_a_row_that_is_nothing_but_key_is_whole(self):
        class Tag(Row, table="public.users", key=("post", "tag")):
            post: int
            tag: str

        assert change("d", before={"post": 1, "tag": ""}, model=Tag).before == Tag(post=1, tag="")

    def test_with_schemas_the_columns_own_defaults_are_nothing_too(self):
        schema = block({"type": "int64", "field": "id"}, {"type": "string", "default": "new", "field": "name"})

        before = change("d", before={"id": 1, "name": "new"}, schema=schema).before

        with pytest.raises(ImageUnavailable):
            _ = before.name
        assert change("d", before={"id": 1, "name": "old"}, schema=schema).before == User(id=1, name="old")

    def test_identity_full_takes_every_value_as_it_stands(self):
        class Full(Row, table="public.users", identity="full"):
            id: int
            name: str | None

        assert change("d", before={"id": 1, "name": None}, model=Full).before == Full(id=1, name=None)

    def test_identity_default_reads_the_key_alone_whatever_stands_beside_it(self):
        class Default(Row, table="public.users", identity="default"):
            id: int
            name: str | None

        assert change("d", before={"id": 1, "name": "a default"}, model=Default).before.model_dump() == {"id": 1}

    def test_a_table_without_key_is_never_one_that_carries_its_key(self):
        class Visit(Row, table="public.users"):
            page: str | None

        assert change("d", before={"page": None}, model=Visit).before == Visit(page=None)

    def test_updates_and_creates_are_taken_as_they_stand(self):
        assert change("u", before={"id": 1, "name": None}, after={"id": 1, "name": ""}).before == User(id=1, name=None)
        assert change("c", after={"id": 1, "name": None, "karma": 0}).after == User(id=1, name=None)

    def test_avro_defaults_of_bytes_are_compared_as_bytes(self):
        from cdc_reactor.envelope import compile_avro_row_schema

        record = {"type": "record", "name": "Value", "fields": [
            {"name": "id", "type": "long"},
            {"name": "price", "type": {"type": "bytes", "connect.name": "org.apache.kafka.connect.data.Decimal",
                                       "connect.parameters": {"scale": "2"}}, "default": "\u0001\u00f4"},
            {"name": "size", "type": [{"type": "bytes"}, "null"], "default": "\u00ff"},
            {"name": "name", "type": "string", "default": "new"},
        ]}  # fmt: skip

        schema = compile_avro_row_schema(record, Placeholder())

        assert schema.defaults == {"price": b"\x01\xf4", "size": b"\xff", "name": "new"}
        image = {"id": 1, "price": b"\x01\xf4", "size": b"\x00", "name": "new"}
        assert USERS.read(image, schema, deleted=True).model_dump() == {"id": 1, "bio": None, "karma": 0}


class TestWithAndWithoutSchema:
    def test_a_row_reads_both_alike(self):
        class Everything(Row, table="public.users"):
            id: int
            price: Annotated[Decimal, DecimalBytes(2)]
            text: DecimalString
            day: EpochDays
            at: MicroTimestamp
            iso: IsoTimestamp
            zoned: datetime
            data: Base64Bytes
            uuid: UUID
            ratio: float

        row = {
            "id": 1, "price": "AV4=", "text": "3.50", "day": 20148, "at": 1_000_000, "iso": "2026-11-23T14:15:07Z",
            "zoned": "2026-11-23T14:15:07.052913Z", "data": "AP8=", "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "ratio": "-Infinity",
        }  # fmt: skip
        schema = block(
            {"type": "int64", "field": "id"},
            {
                "type": "bytes",
                "name": "org.apache.kafka.connect.data.Decimal",
                "parameters": {"scale": "2"},
                "field": "price",
            },
            {"type": "string", "field": "text"},
            {"type": "int32", "name": "io.debezium.time.Date", "field": "day"},
            {"type": "int64", "name": "io.debezium.time.MicroTimestamp", "field": "at"},
            {"type": "string", "name": "io.debezium.time.IsoTimestamp", "field": "iso"},
            {"type": "string", "name": "io.debezium.time.ZonedTimestamp", "field": "zoned"},
            {"type": "bytes", "field": "data"},
            {"type": "string", "name": "io.debezium.data.Uuid", "field": "uuid"},
            {"type": "double", "field": "ratio"},
        )

        with_schema = change(after=row, model=Everything, schema=schema).after.model_dump()
        without = change(after=row, model=Everything).after.model_dump()

        assert with_schema == without == {
            "id": 1, "price": Decimal("3.50"), "text": Decimal("3.50"), "day": date(2025, 3, 1),
            "at": datetime(1970, 1, 1, 0, 0, 1), "iso": datetime(2026, 11, 23, 14, 15, 7),  # noqa: DTZ001 - no time zone
            "zoned": datetime(2026, 11, 23, 14, 15, 7, 52913, tzinfo=UTC), "data": b"\x00\xff",
            "uuid": UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "ratio": float("-inf"),
        }  # fmt: skip

    @pytest.mark.parametrize("form", FORMS)
    def test_every_captured_form_gives_the_same_rows(self, form):
        class Post(Row, table="public.posts"):
            id: int
            title: str | None
            tags: list[str] | None
            score: Annotated[Decimal, DecimalBytes(2)] | None
            published: date | None

        reads = [Create(e, RowReader(Post, Placeholder())) for e in captured(form, "posts", "r")]

        assert [r.after for r in reads] == [
            Post(id=1, title="Hello", tags=["intro", "hello"], score=Decimal("3.50"), published=date(2025, 3, 1)),
            Post(id=2, title="Héllo wörld ☕", tags=None, score=None, published=None),
        ]

    def test_values_that_are_ambiguous_without_schema_are_refused(self):
        class When(Row, table="public.users"):
            id: int
            at: datetime

        with pytest.raises(DecodeError, match="annotate MilliTimestamp, MicroTimestamp or NanoTimestamp"):
            _ = change(after={"id": 1, "at": 1_700_000_000_000}, model=When).after
        schema = block({"type": "int64", "name": "io.debezium.time.Timestamp", "field": "at"})
        assert change(after={"id": 1, "at": 0}, model=When, schema=schema).after.at == datetime(1970, 1, 1)  # noqa: DTZ001 - no time zone


class TestWhereItHappened:
    def test_a_change_says_its_table_position_and_time(self):
        it = change("c", after={"id": 1, "name": "Ada"})

        assert it.table_id == TableId("public", "users")
        assert (it.lsn, str(it.lsn)) == (Lsn(25757392), "0/18906D0")
        assert it.committed_at == datetime(2026, 11, 23, 14, 15, 9, 471000, tzinfo=UTC)
        assert it.source.name == "forum"
        assert it.op is Operation.CREATE

    def test_what_was_not_sent_is_none(self):
        it = change("r", after={"id": 1, "name": "Ada"}, source={"lsn": None, "ts_ms": None})

        assert (it.lsn, it.committed_at) == (None, None)

    @pytest.mark.parametrize("ts_ms", [10**30, -(10**30), 10**17])
    def test_a_time_beyond_python_is_a_decode_error(self, ts_ms):
        it = change("c", after={"id": 1, "name": "Ada"}, source={"ts_ms": ts_ms})

        with pytest.raises(DecodeError, match=r"public\.users: source\.ts_ms is no time that Python can hold"):
            _ = it.committed_at

    def test_the_key_is_what_stands_on_the_wire(self):
        class Vote(Row, table="public.users", key=("post", "voter")):
            post: int
            voter: int

        row = {"voter": 2, "post": 1, "value": 5}

        assert change("c", after=row, model=Vote).key == {"post": 1, "voter": 2}
        assert change("d", before=row, model=Vote).key == {"post": 1, "voter": 2}
        assert change("u", before=row | {"post": 9}, after=row, model=Vote).key == {"post": 1, "voter": 2}
        assert change("c", after={"post": 1}, model=Vote).key == {"post": 1, "voter": None}

    def test_all_columns_can_be_had_as_they_stand_on_the_wire(self):
        update = change("u", before={"id": 1, "score": "AV4="}, after={"id": 1, "score": "fQ=="})

        assert update.columns == ({"id": 1, "score": "AV4="}, {"id": 1, "score": "fQ=="})
        assert update.columns is update.columns

    def test_a_batch_is_a_tuple_of_one_table(self):
        one, two = change("c", after={"id": 1, "name": "a"}), change("t")

        batch: Batch[User] = Batch((one, two))

        assert (list(batch), len(batch), batch[0], batch.table_id) == ([one, two], 2, one, TableId("public", "users"))

    def test_changes_are_told_apart_by_identity(self):
        one, two = change("c", after={"id": 1, "name": "a"}), change("c", after={"id": 1, "name": "a"})

        assert one != two
        assert len({one, two}) == 2


class Colour(StrEnum):
    RED = "red"


SECRET = "ada@lovelace.example"
_COLUMNS: list[tuple[Any, Any, dict[str, Any] | None]] = [
    (int, SECRET, None),
    (int, [SECRET], None),
    (str, {"secret": SECRET}, None),
    (datetime, SECRET, None),
    (date, SECRET, None),
    (Decimal, SECRET, None),
    (bytes, SECRET, None),
    (float, SECRET, None),
    (bool, SECRET, None),
    (UUID, SECRET, None),
    (MicroTimestamp, SECRET, None),
    (IsoTimestamp, SECRET, None),
    (EpochDays, SECRET, None),
    (Base64Bytes, SECRET, None),
    (DecimalString, SECRET, None),
    (Annotated[Decimal, DecimalBytes(2)], SECRET, None),
    (Literal["a"], SECRET, None),
    (Colour, SECRET, None),
    (list[int], [1, 12, SECRET], None),
    (dict[str, int], {SECRET: SECRET}, None),
    (Annotated[str, Field(max_length=3)], SECRET, None),
    (Annotated[str, Field(pattern="^x$")], SECRET, None),
    (str, SECRET, {"type": "bytes"}),
    (str, SECRET, {"type": "string", "name": "io.debezium.time.ZonedTimestamp"}),
    (str, SECRET, {"type": "string", "name": "io.debezium.data.Uuid"}),
    (str, SECRET, {"type": "int64", "name": "io.debezium.time.MicroTimestamp"}),
    (str, [SECRET], {"type": "array", "items": {"type": "bytes"}}),
    (str, {"wkb": SECRET, "srid": 1}, {"type": "struct", "name": "io.debezium.data.geometry.Geometry"}),
    (str, {"scale": SECRET, "value": "AA=="}, {"type": "struct", "name": "io.debezium.data.VariableScaleDecimal"}),
    (int, "4711471147114711", None),
    (MicroTimestamp, 253402300800000000, None),
]


class TestWhatIsLeftOut:
    """Logs and dead letters are read by more people than rows: no error and no repr shows a row's values."""

    @pytest.mark.parametrize(("annotation", "value", "schema"), _COLUMNS)
    def test_errors_name_the_column_and_never_its_value(self, annotation, value, schema):
        model = type("Model", (Row,), {"__annotations__": {"id": int, "x": annotation}}, table="public.users")
        fields = None if schema is None else block({"type": "int64", "field": "id"}, {**schema, "field": "x"})
        it = change(after={"id": 4711, "x": value, "other": SECRET}, model=model, schema=fields)

        with pytest.raises(DecodeError, match=r"public\.users.* x: ") as refused:
            _ = it.after

        text = str(refused.value)
        assert not re.search("ada|lovelace|example|4711|12026|253402|10000-01", text)
        assert "(lsn 0/18906D0)" in text
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__

    def test_errors_still_say_what_is_wrong(self):
        class Model(Row, table="public.users"):
            id: int
            at: MicroTimestamp
            data: Base64Bytes
            many: list[int]

        with pytest.raises(DecodeError) as refused:
            _ = change(after={"id": "x", "at": "secret", "data": "!", "many": [1, "12"]}, model=Model).after

        assert str(refused.value) == (
            "public.users does not fit Model: id: Input should be a valid integer; "
            "at: expected microseconds since 1970, got str; data: expected base64 text, got str; "
            "many: Input should be a valid integer (lsn 0/18906D0)"
        )

    def test_a_validators_own_words_lose_the_value_too(self):
        class Model(Row, table="public.users"):
            id: int
            name: str

            @field_validator("name")
            @classmethod
            def is_known(cls, value: str) -> str:
                raise ValueError(f"nobody knows {value!r}")

        with pytest.raises(DecodeError, match=r"name: nobody knows … \(lsn"):
            _ = change(after={"id": 1, "name": SECRET}, model=Model).after

    @pytest.mark.parametrize("op", ["c", "u", "d", "r"])
    def test_a_change_shows_no_row(self, op):
        row = {"id": 4711, "name": SECRET}
        it = change(op, before=row if op in "ud" else None, after=None if op == "d" else row)
        _ = it.before, it.after, it.columns

        assert repr(it) == str(it) == f"<{type(it).__name__} public.users lsn=0/18906D0>"
        assert SECRET not in repr(Batch((it,)))
