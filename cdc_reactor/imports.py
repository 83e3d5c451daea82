"""Objects that settings name as MODULE:NAME: imported, and refused in one sentence where that fails."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from cdc_reactor.errors import UsageError


def load_object(key: str, name: str) -> Any:
    """Import what a setting names, looked for in the current directory first.

    Raises:
        UsageError: there is no such module or name, or importing it fails; `key` is the setting.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"{key} = {name}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise UsageError(f"{key} = {name}: the module {module_name} has no {attribute}")
    return getattr(module, attribute)
