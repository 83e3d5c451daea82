"""Finds handlers, workers and events: imports what was named and collects the values that stand at module level.

Importing goes on after a failure, so that all of them are told at once, each with the file and line of the team's code.
Test modules are left alone. Nothing is registered anywhere: what `discover` returns is all that there is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from cdc_reactor.errors import DefinitionError, UsageError
from cdc_reactor.events import Encoding, Event, EventType, ProtobufEvent, event_type
from cdc_reactor.handlers import Handler
from cdc_reactor.workers import Worker

#: Where handlers, workers and events are, unless somebody says otherwise; not all of them need be there.
DEFAULT_TARGETS = ("table_handlers", "workers", "events")

#: Where installed packages announce modules of handlers; the value of such an entry point is a module or package.
ENTRY_POINTS = "cdc_reactor.handlers"

# A file's name, `users.py`, is written as a module `py` in a package `users` would be; nobody means that.
_NAME = re.compile(r"(?!.*\.py$)[^\W\d]\w*(\.[^\W\d]\w*)*")
_NOT_IMPORTED = re.compile(r"test_.*|.*_test|tests|conftest|__.*__")
_MAX_MESSAGE = 400


@dataclass(frozen=True, slots=True)
class ImportFailure:
    """A module that could not be imported; `file` and `line` say where in the team's code, `message` is one line."""

    module: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found: handlers by table and name, workers by subscription, event types by topic.

    Failures come in the order of import; `empty` are the targets that hold no handler and no worker.
    """

    handlers: tuple[Handler[Any], ...] = ()
    workers: tuple[Worker[Any], ...] = ()
    events: tuple[EventType[Any], ...] = ()
    failures: tuple[ImportFailure, ...] = ()
    empty: tuple[str, ...] = ()


def discover(targets: Sequence[str], *, entry_points: bool = True) -> Discovery:
    """Import packages, modules, folders and `.py` files, and collect their handlers.

    A target is a name ("table_handlers", "acme.handlers.users"), looked up in the current directory first, or a path.
    Packages and folders are searched to their depths. With `entry_points`, what installed packages announce is added.
    Without any target there is nothing to be found. What was imported before is not imported again.

    Raises:
        UsageError: a target does not exist.
    """
    search = _Search()
    for target in present(targets):
        search.look_into(target)
    if targets and entry_points:
        search.look_into_installed()
    return Discovery(
        tuple(sorted(search.handlers.values(), key=lambda handler: (handler.table_id, handler.name))),
        tuple(sorted(search.workers.values(), key=lambda worker: (worker.subscription, worker.name))),
        tuple(_one_a_topic(search.events)),
        tuple(search.failures),
        tuple(search.empty),
    )


def present(targets: Sequence[str]) -> list[str]:
    """Of the defaults, return those that are here, else those that are installed; all else is as it was given.

    Raises:
        UsageError: none of the defaults is anywhere.
    """
    if tuple(targets) != DEFAULT_TARGETS:
        return list(targets)
    here = [name for name in targets if Path(name).is_dir() or Path(f"{name}.py").is_file()]
    # Anybody's package may be called events.
    found = here or [name for name in targets if name != "events" and importlib.util.find_spec(name) is not None]
    if not found:
        raise UsageError(
            f"there is neither table_handlers nor workers, neither in {Path.cwd()} nor installed. Begin one: "
            "cdc-reactor new table-handler, or cdc-reactor new worker; or name yours: --handlers NAME"
        )
    return found


def load_handlers(targets: Sequence[str]) -> Discovery:
    """Find the handlers; UsageError with a line for each module that fails to import."""
    found = discover([] if list(targets) == ["none"] else targets)
    if found.failures:
        lines = "\n  ".join(str(failure) for failure in found.failures)
        raise UsageError(f"{len(found.failures)} module(s) cannot be imported; mend them or leave them out:\n  {lines}")
    _check_names([*found.handlers, *found.workers])
    _check_subscriptions(found.workers)
    _check_topics(found.events)
    return found


def _check_names(declared: Sequence[Handler[Any] | Worker[Any]]) -> None:
    names: dict[str, Handler[Any] | Worker[Any]] = {}
    for each in declared:
        namesake = names.setdefault(each.name, each)
        if namesake is not each:
            are_workers = isinstance(each, Worker) and isinstance(namesake, Worker)
            kind, decorator = ("workers", "@subscribes") if are_workers else ("handlers", "@handles")
            raise UsageError(
                f"two {kind} are named {each.name!r}: {namesake.place} and {each.place}; a report tells them "
                f'apart by name alone. Rename one, or name it: {decorator}(…, name="…")'
            )


def _check_subscriptions(workers: Sequence[Worker[Any]]) -> None:
    owners: dict[str, Worker[Any]] = {}
    for worker in workers:
        owner = owners.setdefault(worker.subscription, worker)
        if owner is not worker:
            raise UsageError(
                f"two workers have the subscription {worker.subscription}: {owner.place} and {worker.place}; each "
                "would get a part of its messages. Give each a subscription of its own"
            )


def _check_topics(events: Sequence[EventType[Any]]) -> None:
    """Refuse a topic that means two things; a custom parser reads what others publish, in its own way."""
    meant: dict[str, EventType[Any]] = {}
    for event in events:
        if _is_own_reading(event):
            continue
        other = meant.setdefault(event.topic, event)
        if other.model is not event.model:
            raise UsageError(
                f"the topic {event.topic} carries {other.name} ({other.model.__module__}) and {event.name} "
                f"({event.model.__module__}); a topic has one type. Share the class, or name another version: .v2"
            )


class _Search:
    """What has been found so far."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler[Any]] = {}
        self.workers: dict[int, Worker[Any]] = {}
        self.events: set[EventType[Any]] = set()
        self.failures: list[ImportFailure] = []
        self.empty: list[str] = []
        _make_importable(Path.cwd())
        importlib.invalidate_caches()

    def look_into(self, target: str) -> None:
        """Import a target and all that is in it."""
        names = [target] if _NAME.fullmatch(target) else _names_in(Path(target))
        modules = [module for name in names for module in self._import_tree(name, target)]
        values = [value for module in modules if module is not None for value in vars(module).values()]
        handlers = [value for value in values if isinstance(value, Handler)]
        workers = [value for value in values if isinstance(value, Worker)]
        self.handlers.update((id(handler), handler) for handler in handlers)
        self.workers.update((id(worker), worker) for worker in workers)
        self.events.update(worker.event_type for worker in workers)
        self.events.update(event_type(value) for value in values if _is_event(value))
        has_events = any(map(_is_event, values))
        if not (handlers or workers or has_events) and None not in modules:
            self.empty.append(target)

    def look_into_installed(self) -> None:
        """Import what the entry points of installed packages name."""
        for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: (p.module, p.name)):
            try:
                self.look_into(point.module)
            except UsageError:
                self.failures.append(
                    ImportFailure(point.module, f"entry point {point.name}", 0, f"there is no module {point.module}")
                )

    def _import_tree(self, name: str, target: str = "") -> Iterator[ModuleType | None]:
        """Import a module and those below it; None for each that fails."""
        module = self._import(name, target)
        yield module
        if module is not None:
            for child in _children(module):
                yield from self._import_tree(f"{name}.{child}")

    def _import(self, name: str, target: str) -> ModuleType | None:
        try:
            module = importlib.import_module(name)
            _check_place(module, target)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a team's module may raise anything
            if target and isinstance(error, ModuleNotFoundError) and _is_missing(name, error):
                raise UsageError(_no_such_module(name)) from None
            failure = _failure(name, error)
            # A broken module that others import fails in each of them.
            if all(str(failure) != str(other) for other in self.failures):
                self.failures.append(failure)
            return None
        return module


def _make_importable(folder: Path) -> None:
    """Put a folder first on the path, as `python -m` does; a console script starts without the current directory."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _is_event(value: object) -> bool:
    if isinstance(value, ProtobufEvent):
        return True
    # A class that inherits its topic is a variant of the one that has it.
    return isinstance(value, type) and issubclass(value, Event) and bool(vars(value).get("topic"))


def _one_a_topic(events: Iterable[EventType[Any]]) -> list[EventType[Any]]:
    """Leave out what only says how one worker reads a topic whose type is declared."""
    found = sorted(events, key=lambda event: (event.topic, _is_own_reading(event), event.name))
    declared = {event.topic for event in found if not _is_own_reading(event)}
    return [event for event in found if not (_is_own_reading(event) and event.topic in declared)]


def _is_own_reading(event: EventType[Any]) -> bool:
    return event.encoding in (Encoding.RAW, Encoding.CUSTOM) or event.parse is not None


def _names_in(path: Path) -> list[str]:
    """Name the modules behind a path, after making them importable."""
    path = path.absolute()
    if not path.exists():
        raise UsageError(f"--handlers {path}: there is no such file or folder")
    if path.is_file():
        if path.suffix != ".py":
            raise UsageError(f"--handlers {path}: it is no Python file; give a package, a folder or a .py file")
        parts = [path.stem]
        path = path.parent
    elif path.name.isidentifier():
        parts = [path.name]
        path = path.parent
    else:
        _make_importable(path)
        return _below(str(path))
    while (path / "__init__.py").exists():
        parts.insert(0, path.name)
        path = path.parent
    _make_importable(path)
    return [".".join(parts)]


def _check_place(module: ModuleType, target: str) -> None:
    """Refuse a module that only has the name of the path that was meant: it was imported before, from elsewhere."""
    if not target or _NAME.fullmatch(target):
        return
    meant = Path(target).resolve()
    places = [Path(place).resolve() for place in (*getattr(module, "__path__", ()), module.__file__) if place]
    if not any(meant == place or meant in place.parents for place in places):
        owner = places[0] if places else "Python itself"
        raise ImportError(f"the name {module.__name__} is taken by {owner}; rename {target}")


def _children(module: ModuleType) -> list[str]:
    """Name what is to be imported below a package, folders without `__init__.py` included."""
    return sorted({name for folder in getattr(module, "__path__", ()) for name in _below(folder)})


def _below(folder: str) -> list[str]:
    names = {info.name for info in pkgutil.iter_modules([folder])}
    if Path(folder).is_dir():
        names.update(
            each.name for each in Path(folder).iterdir() if each.name.isidentifier() and any(each.glob("**/*.py"))
        )
    return sorted(name for name in names if not _NOT_IMPORTED.fullmatch(name))


# ── what went wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def _is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Tell whether the named module itself is what is not there, and not one that it imports."""
    is_part = error.name is not None and (name == error.name or name.startswith(f"{error.name}."))
    return is_part and not _team_lines(name, error)


def _no_such_module(name: str) -> str:
    near = get_close_matches(name, _below(str(Path.cwd())), n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return (
        f"there is no package or module {name}, neither in {Path.cwd()} nor installed{hint} "
        "Name yours: --handlers NAME, or begin one: cdc-reactor new table-handler"
    )


def _failure(name: str, error: BaseException) -> ImportFailure:
    lines = _team_lines(name, error)
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).exists():
        file, line = error.filename, error.lineno or 1
    elif lines:
        file, line = lines[-1]
    else:
        file, line = _file_of(name), 1
    return ImportFailure(name, _shortened(file), line, _in_one_line(error))


def _team_lines(name: str, error: BaseException) -> list[tuple[str, int]]:
    """Return file and line of each frame that is the team's own code, the innermost last."""
    package = name.partition(".")[0]
    return [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == package or not _is_foreign(frame.f_code.co_filename)
    ]


_FOREIGN = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def _is_foreign(file: str) -> bool:
    return file.startswith("<") or file.startswith(_FOREIGN)


def _file_of(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    return name if spec is None or spec.origin is None else spec.origin


def _shortened(file: str) -> str:
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _in_one_line(error: BaseException) -> str:
    text = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, DefinitionError):
        text = re.sub(r"^\S+\.py:\d+ ", "", text)
    text = " ".join(text.partition("For further information")[0].split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
