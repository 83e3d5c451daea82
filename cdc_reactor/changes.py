"""Rows and changes: what a handler sees.

A team states the columns that it needs in a `Row` model; a `Change` is the typed create, update, delete or truncate of
one such row. Rows are read on first access, so that a handler that looks at ten of a thousand changes pays for ten.
Nothing here guesses: what Debezium did not send raises `ImageUnavailable`, what cannot be read raises `DecodeError`;
both name the table, the position and the cure, and no values, for logs are read by more people than rows.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
)
from uuid import UUID

import msgspec
from msgspec import Raw
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema
from typing_extensions import TypeVar, Unpack

from cdc_reactor.columns import DecimalBytes, Infinity, IsoText, Placeholder, guard
from cdc_reactor.envelope import (
    BAD_BYTES,
    AnySource,
    Envelope,
    LazySource,
    Lsn,
    Operation,
    RowImage,
    RowSchema,
    TableId,
    is_null,
    parse_row,
    read_image,
)
from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable
from cdc_reactor.scalars import show
from cdc_reactor.wire_types import Wire

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# How Debezium's JSON shows "nothing" in a NOT NULL column of a key-only before image: the value converters' fallbacks
# (JdbcValueConverters, PostgresValueConverter: convertValue), or the column's default (`replace.null.with.default`).
_NOTHING = re.compile(
    r"|0(\.0+)?|AA==|\{\}|P0Y0M0DT0H0M0S|00000000-0000-0000-0000-000000000000"
    r"|1970-01-01(T00:00:00(\.0+)?)?Z?|00:00:00(\.0+)?Z?",
    re.ASCII,
)

# What `parse_row` raises for an image that is not raw, or not plain JSON: `read_image` knows what it is.
_NOT_RAW = (TypeError, *BAD_BYTES)

# More tables than this, or more versions of one, and their plans are made again.
_MAX_PLANS = 1024


class Row(BaseModel):
    """The columns of one table that a team needs: `class User(Row, table="public.users", key=("id",)): …`.

    Columns that the model does not name are never looked at. `key` names the columns that identify a row (a field `id`
    by default); changes of one key reach a handler in order, and a table without any is one single lane.
    `identity="full"` states that the table has REPLICA IDENTITY FULL, `"default"` that it has not; without it a delete
    whose columns beside the key are all empty counts as one that carries its key only.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        protected_namespaces=(),
        defer_build=False,
        ser_json_bytes="base64",
    )

    table_id: ClassVar[TableId]
    key_columns: ClassVar[tuple[str, ...]]
    replica_identity: ClassVar[str | None]

    def __init_subclass__(
        cls,
        *,
        table: str | None = None,
        key: Sequence[str] | None = None,
        identity: str | None = None,
        **kwargs: Unpack[ConfigDict],
    ) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls, *, table: str | None = None, key: Sequence[str] | None = None, identity: str | None = None, **kwargs: Any
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if table is None:
            return
        schema, dot, name = table.rpartition(".")
        if not (schema and dot and name):
            raise DefinitionError(f'{cls.__name__}: table={table!r} must name schema and table, as "public.users"')
        if identity not in (None, "full", "default"):
            raise DefinitionError(f'{cls.__name__}: identity={identity!r} must be "full" or "default"')
        if isinstance(key, str):
            raise DefinitionError(f'{cls.__name__}: key={key!r} must be a tuple of columns, as ("{key}",)')
        _check_fields(cls)
        columns = columns_of(cls)
        unknown = [column for column in key or () if column not in columns and column not in cls.model_fields]
        if unknown:
            raise DefinitionError(
                f"{cls.__name__}: key names {', '.join(map(repr, unknown))}, which are no fields; "
                f"it has {', '.join(columns)}"
            )
        cls.table_id = TableId(schema, name)
        default = ("id",) if "id" in columns else ()
        cls.key_columns = default if key is None else tuple(column_of(cls, name) for name in key)
        cls.replica_identity = identity

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler, /) -> CoreSchema:
        return guard(handler(source))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            model = type(self)
            if name in model.model_fields:
                raise ImageUnavailable(_not_sent(model, name))
            return super().__getattr__(name)


def _check_fields(model: type[Row]) -> None:
    for name, field in model.model_fields.items():
        if name in ("table_id", "key_columns", "replica_identity"):
            raise DefinitionError(
                f"{model.__name__}: the field {name} hides the Row's own; give it another name "
                f'and Field(alias="{name}")'
            )
        if not isinstance(field.validation_alias, str | None):
            raise DefinitionError(
                f'{model.__name__}: the alias of {name} must name one column, as Field(alias="{name}")'
            )
    if len(columns_of(model)) < len(model.model_fields):
        raise DefinitionError(f"{model.__name__}: two fields have one column for their alias")


def columns_of(model: type[Row]) -> dict[str, str]:
    """Map the column names that a Row reads to its field names."""
    return {
        (f.validation_alias if isinstance(f.validation_alias, str) else name): name
        for name, f in model.model_fields.items()
    }


def column_of(model: type[Row], name: str) -> str:
    """Return the column behind a field name (or the name itself, where it is a column)."""
    field = model.model_fields.get(name)
    return field.validation_alias if field is not None and isinstance(field.validation_alias, str) else name


def _not_sent(model: type[Row], name: str) -> str:
    return (
        f"{model.table_id}: column {column_of(model, name)} was not sent. Either its large value did not change "
        f"(TOAST), or the table's REPLICA IDENTITY is not FULL and a delete carries only its key. Cure: ALTER TABLE "
        f'{model.table_id} REPLICA IDENTITY FULL; where that is so already, declare identity="full" on {model.__name__}'
    )


# A default, so that a bare `Batch` or `Create` in an annotation means any row.
R = TypeVar("R", bound=Row, default=Row)


# What the placeholder is never read as, whichever way it is spelt. A Decimal is: its base64 is that of a number, too.
_NEVER_UNSENT = frozenset((int, float, bool, type(None), datetime, date, time, timedelta))


_PLAIN = (str, int, float, bool, type(None), datetime, date, time, timedelta, Decimal, bytes, UUID, Infinity, IsoText)


def _is_plain(model: type[Row]) -> bool:
    """Tell whether a Row leaves texts as they are on the wire, so that what was not sent is still seen once it is read.

    A team's own validators, or a type that folds or strips text, would make data of the placeholder.
    """
    decorators = model.__pydantic_decorators__
    validators = (decorators.field_validators, decorators.model_validators, decorators.validators)
    folds = ("str_to_lower", "str_to_upper", "str_strip_whitespace")
    return (
        not any(validators)
        and not any(model.model_config.get(option) for option in folds)
        and all(_is_plain_type(f.annotation) and not _others(f.metadata) for f in model.model_fields.values())
    )


def _is_plain_type(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_plain_type(annotation.__origin__) and not _others(annotation.__metadata__)
    if origin in (Union, UnionType):
        return all(_is_plain_type(choice) for choice in get_args(annotation))
    return origin in (list, Literal) or (origin is None and annotation in _PLAIN)


def _others(metadata: Iterable[Any]) -> list[Any]:
    return [mark for mark in metadata if not isinstance(mark, (Wire, DecimalBytes))]


class RowReader(Generic[R]):
    """Reads row images into one Row model; one for each table."""

    def __init__(self, model: type[R], placeholder: Placeholder) -> None:
        self.model = model
        self.placeholder = placeholder
        self.columns = columns_of(model)
        self._validate_json = model.__pydantic_validator__.validate_json
        self._names = tuple(self.columns)
        self._is_plain = _is_plain(model)
        self._plans: dict[RowSchema, list[tuple[str, Any]]] = {}

    def read(self, image: RowImage, schema: RowSchema | None, *, deleted: bool = False) -> R:
        """Read an image; DecodeError where the Row cannot hold it.

        `deleted` says that it is a delete's before image, which may hold nothing but the key.
        """
        if schema is None and type(image) is Raw and not deleted:
            data = bytes(image)
            if self._is_plain or not self.placeholder.might_occur(data):
                try:
                    row = cast("R", self._validate_json(data))
                except ValidationError:
                    pass  # the long way finds the words
                else:
                    if not self._is_plain or not self._may_be_unsent(row.__dict__.values(), data):
                        return row
        try:
            return self._read_columns(image, schema, deleted=deleted)
        except RecursionError:
            raise DecodeError(f"{self.model.table_id}: a column nests too deeply") from None

    def _read_columns(self, image: RowImage, schema: RowSchema | None, *, deleted: bool) -> R:
        try:
            wire = read_image(image)
        except DecodeError as error:
            raise DecodeError(f"{self.model.table_id}: {error}") from None
        if wire is None:
            raise DecodeError(f"{self.model.table_id}: there is no row in this image")
        values, unsent = self._divide(wire)
        if deleted and self._is_key_only(wire, schema):
            unsent.extend(c for c in values if c not in self.model.key_columns)
            values = {c: v for c, v in values.items() if c in self.model.key_columns}
        if schema is not None:
            self._convert(values, schema)
        return self._validate(values, frozenset(unsent), wire)

    def _divide(self, wire: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Pick the columns that the Row names, those that were not sent apart."""
        texts, matches = self.placeholder.texts, self.placeholder.matches
        values, unsent = {}, []
        for column in self._names:
            if column in wire:
                value = values[column] = wire[column]
                kind = type(value)
                if kind not in _NEVER_UNSENT and (value in texts if kind is str else matches(value)):
                    del values[column]
                    unsent.append(column)
        return values, unsent

    def _may_be_unsent(self, values: Iterable[Any], data: bytes) -> bool:
        """Tell whether a value of a row that was read may stand for a column that was not sent."""
        texts = self.placeholder.texts
        for value in values:
            kind = type(value)
            if kind is str:
                if value in texts:
                    return True
            elif kind not in _NEVER_UNSENT:
                # Arrays, bytes, uuids and what a team's own type made of a text: only the wire tells.
                return self.placeholder.might_occur(data)
        return False

    def _is_key_only(self, wire: Mapping[str, Any], schema: RowSchema | None) -> bool:
        if self.model.replica_identity == "full" or not self.model.key_columns:
            return False
        if self.model.replica_identity == "default":
            return True
        defaults = schema.defaults if schema is not None else {}
        rest = [(c, v) for c, v in wire.items() if c not in self.model.key_columns]
        return bool(rest) and all(_is_nothing(v) or (c in defaults and v == defaults[c]) for c, v in rest)

    def _convert(self, values: dict[str, Any], schema: RowSchema) -> None:
        plan = self._plans.get(schema)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[schema] = [(c, f) for c, f in schema.converters.items() if c in self.columns]
        for column, converter in plan:
            value = values.get(column)
            if value is not None:
                try:
                    values[column] = converter(value)
                except DecodeError as error:
                    reason = _without_values(str(error), value)
                    raise DecodeError(f"{self.model.table_id}: column {column}: {reason}") from None

    def _validate(self, values: dict[str, Any], unsent: frozenset[str], wire: Mapping[str, Any]) -> R:
        model = _without(self.model, frozenset(self.columns[c] for c in unsent)) if unsent else self.model
        try:
            row = model.__pydantic_validator__.validate_python(values)
        except ValidationError as error:
            raise DecodeError(_explain(self.model, error, wire)) from None
        if unsent:
            for column in unsent:
                row.__dict__.pop(self.columns[column], None)
            object.__setattr__(row, "__class__", self.model)
        return cast("R", row)


def _is_nothing(value: Any) -> bool:
    match value:
        case str():
            return _NOTHING.fullmatch(value) is not None
        case bytes():
            return not value.strip(b"\0")
        case dict():  # a decimal of variable scale, an empty hstore
            return all(_is_nothing(member) for member in value.values())
    return not value


@lru_cache(maxsize=1024)
def _without(model: type[Row], fields: frozenset[str]) -> type[Row]:
    """Derive a model that does without some fields; its rows are turned into rows of `model` once validated."""
    absent: Any = dict.fromkeys(fields, (Any, None))
    return create_model(model.__name__, __base__=model, **absent)


def _explain(model: type[Row], error: ValidationError, wire: Mapping[str, Any]) -> str:
    """Say in one line which columns cannot be read and why, without their values."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        column = ".".join(str(part) for part in problem["loc"][:1]) or "row"
        if problem["type"] == "missing" and len(problem["loc"]) == 1:
            near = get_close_matches(column, wire, n=1)
            cure = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(wire)}" if wire else ""
            reason = f"{column}: the row has no such column{cure}"
        else:
            reason = f"{column}: {_without_values(problem['msg'].removeprefix('Value error, '), problem['input'])}"
        if reason not in found:
            found.append(reason)
    return f"{model.table_id} does not fit {model.__name__}: {'; '.join(found[:4])}"


def _without_values(text: str, value: Any) -> str:
    """Take a row's values out of an error's words and leave their types."""
    # The longest first: what shows 1 is a part of what shows 12.
    for part in sorted(islice(_parts(value), 1000), key=lambda part: -len(show(part))):
        text = text.replace(show(part), type(part).__name__)
        if isinstance(part, str) and len(part) > 2:
            text = text.replace(repr(part), "…")
    return re.sub(r"^[-+]?\d\S* is nothing", "it is nothing", text)


def _parts(value: Any) -> Iterator[Any]:
    waiting = deque([value])
    while waiting:
        part = waiting.popleft()
        yield part
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)


class _Change(msgspec.Struct, Generic[R], eq=False, gc=False):
    """What the four kinds of change share; made by the router, never by hand."""

    envelope: Envelope
    reader: RowReader[R]
    #: The way that a router sends it, where that is all that is to be told of it; for the reactor only.
    route: Any = None
    #: The message's bytes, where the source has still to be read from them.
    _message: bytes | None = None
    _after: R | None = None
    _before: R | None = None
    _wire: tuple[dict[str, Any] | None, dict[str, Any] | None] | None = None

    @property
    def op(self) -> Operation:
        """The operation as Debezium names it; READ for a row of a snapshot."""
        return self.envelope.op

    @property
    def source(self) -> AnySource:
        """Where in the database it happened."""
        source = self.envelope.source
        if type(source) is LazySource and source.unread is None:
            assert self._message is not None, "whoever parsed the envelope kept the message"
            self.envelope.keep(self._message)
        return source

    @property
    def table_id(self) -> TableId:
        """The table as the message names it."""
        return self.envelope.source.table_id

    @property
    def lsn(self) -> Lsn | None:
        """The write-ahead log position, where the connector sends one."""
        lsn = self.source.lsn
        return Lsn(lsn) if isinstance(lsn, int) else None

    @property
    def committed_at(self) -> datetime | None:
        """When the database committed it (aware, UTC), from `source.ts_ms`."""
        ts_ms = self.source.ts_ms
        try:
            return None if ts_ms is None else _EPOCH + timedelta(milliseconds=ts_ms)
        except OverflowError:
            raise self._blame(f"{self.table_id}: source.ts_ms is no time that Python can hold") from None

    @property
    def key(self) -> dict[str, Any]:
        """The values of the row's key columns, as they stand on the wire; empty for a truncate."""
        before, after = self.columns
        image = after if after is not None else before
        return {c: image.get(c) for c in self.reader.model.key_columns} if image is not None else {}

    @property
    def columns(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """All columns before and after, as they stand on the wire, whether the Row names them or not."""
        wire = self._wire
        if wire is None:
            envelope = self.envelope
            try:
                wire = self._wire = parse_row(cast("Raw", envelope.before)), parse_row(cast("Raw", envelope.after))
            except _NOT_RAW:
                wire = self._wire = self._read_columns()
        return wire

    def _read_columns(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        try:
            return read_image(self.envelope.before), read_image(self.envelope.after)
        except DecodeError as error:
            raise self._blame(f"{self.table_id}: {error}") from None

    def is_changed(self, *columns: str) -> bool:
        """Tell whether any of these columns differs before and after; always so for a created or deleted row.

        Raises:
            ImageUnavailable: it is an update, and the table's REPLICA IDENTITY sends no row as it was before.
            DefinitionError: the table has no such column.
        """
        known = self._known_columns()
        for name in columns:
            if column_of(self.reader.model, name) not in known and name not in self.reader.model.model_fields:
                raise DefinitionError(
                    f"{self.table_id} has no column {name!r} (is_changed, when_changed); "
                    f"it has {', '.join(sorted(known))}"
                )
        changed = self.changed_columns
        return any(column_of(self.reader.model, name) in changed for name in columns)

    @property
    def changed_columns(self) -> frozenset[str]:
        """The names of all columns that differ before and after; all of them for a created or deleted row.

        A large column that Debezium did not send again counts as not changed. Raises as `is_changed` does.
        """
        if self.op is not Operation.UPDATE:
            return self._known_columns()
        before, after = self.columns
        if before is None or after is None:
            raise ImageUnavailable(
                f"{self.table_id}: this update carries no row as it was before (lsn {self.lsn}), so what changed is "
                f"not known. Cure: ALTER TABLE {self.table_id} REPLICA IDENTITY FULL"
            )
        unsent = self.reader.placeholder.matches
        try:
            changed = {c for c, v in after.items() if not _is_same(before.get(c), v) and not unsent(v)}
        except RecursionError:
            raise self._blame(f"{self.table_id}: a column nests too deeply") from None
        return frozenset(changed) | frozenset(before.keys() - after.keys())

    def _known_columns(self) -> frozenset[str]:
        before, after = self.columns
        return frozenset(before or ()) | frozenset(after or ())

    def _read_after(self) -> R:
        if self._after is None:
            self._after = self._read(self.envelope.after)
        return self._after

    def _read_before(self) -> R | None:
        if self._before is None and not is_null(self.envelope.before):
            self._before = self._read(self.envelope.before, deleted=self.op is Operation.DELETE)
        return self._before

    def _read(self, image: RowImage, *, deleted: bool = False) -> R:
        try:
            return self.reader.read(image, self.envelope.schema, deleted=deleted)
        except DecodeError as error:
            raise self._blame(str(error)) from None

    def _blame(self, reason: str) -> DecodeError:
        error = DecodeError(reason if self.lsn is None else f"{reason} (lsn {self.lsn})")
        error.change = self
        return error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.table_id} lsn={self.lsn}>"


def _is_same(old: Any, new: Any) -> bool:
    # NaN from Avro is the one value that differs from itself.
    return bool(old == new) or (old != old and new != new)  # noqa: PLR0124


class Create(_Change[R], eq=False, gc=False):
    """A row that was inserted, or, for handlers with `snapshot=True`, that was there already (`is_snapshot`)."""

    before: ClassVar[None] = None

    @property
    def is_snapshot(self) -> bool:
        """Whether the row was read by a snapshot and not just inserted."""
        return self.op is Operation.READ

    @property
    def after(self) -> R:
        """The new row."""
        return self._read_after()


class Update(_Change[R], eq=False, gc=False):
    """A row that was changed; `before` is None unless the table's REPLICA IDENTITY is FULL."""

    @property
    def before(self) -> R | None:
        """The row as it was, or None where it was not sent."""
        return self._read_before()

    @property
    def after(self) -> R:
        """The row as it is now."""
        return self._read_after()


class Delete(_Change[R], eq=False, gc=False):
    """A row that was deleted; only its key can be read unless the table's REPLICA IDENTITY is FULL."""

    after: ClassVar[None] = None

    @property
    def before(self) -> R:
        """The row as it was; columns that were not sent raise ImageUnavailable when read."""
        row = self._read_before()
        if row is None:
            raise ImageUnavailable(
                f"{self.table_id}: this delete carries no row (lsn {self.lsn}). "
                f"Cure: ALTER TABLE {self.table_id} REPLICA IDENTITY DEFAULT or FULL"
            )
        return row


class Truncate(_Change[R], eq=False, gc=False):
    """All rows of a table were removed at once; no row is known."""

    before: ClassVar[None] = None
    after: ClassVar[None] = None


Change: TypeAlias = Create[R] | Update[R] | Delete[R] | Truncate[R]

#: The kind of change that each operation makes; READ only for handlers that ask for snapshots.
CHANGE_OF: Mapping[Operation, type[_Change[Any]]] = {
    Operation.READ: Create,
    Operation.CREATE: Create,
    Operation.UPDATE: Update,
    Operation.DELETE: Delete,
    Operation.TRUNCATE: Truncate,
}


class Batch(tuple[Change[R], ...]):
    """Changes of one table, in publish order within each row; never empty."""

    __slots__ = ()

    @property
    def table_id(self) -> TableId:
        """The table that all of these changes belong to."""
        return self[0].table_id
