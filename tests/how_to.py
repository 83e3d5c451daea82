"""The Python of a how-to page as a module, and its workers run as a daemon would, for the tests of what pages say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from cdc_reactor.event_routing import EventRouter
from cdc_reactor.events import Publication, Publishable, encode
from cdc_reactor.execution import Executor
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.reactor import Held, Outcome, Work
from cdc_reactor.workers import Worker

PAGES = Path(__file__).parent.parent / "docs" / "how-to"


def load(page: str, folder: Path) -> ModuleType:
    """Import all Python of a page as one module."""
    blocks = blocks_of(page, "python")
    assert blocks, f"{page} has no Python"
    file = folder / f"{page.partition('.')[0].replace('-', '_')}.py"
    file.write_text("\n\n".join(blocks))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks_of(page: str, language: str) -> list[str]:
    """Return a page's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE)


def run(executor: Executor, worker: Worker[Any], event: Publishable, message_id: str) -> Outcome:
    """Run a worker once for a message of this event."""
    routed: list[Any] = []
    EventRouter(worker).route_all([Delivery(Message(encode(event), message_id=message_id), 0)], routed)
    (held,) = routed
    assert isinstance(held, Held)
    return executor.run(Work(worker, [held], None))


def published(outcome: Outcome) -> list[Publishable]:
    """Return the events of an outcome."""
    return [publication.event for publication in outcome.events if isinstance(publication, Publication)]
