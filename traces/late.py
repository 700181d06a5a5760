"""Libraries of tables, imported where they are first used: a small run, which uses none, starts in half the time.

`from traces.late import pd` stands where `import pandas as pd` would.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["arrow_csv", "pa", "pd"]


class _Late(ModuleType):
    """A module whose names are those of another, which is imported when the first of them is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what looks at modules looks at these, and uses nothing
            raise AttributeError(name)
        found = getattr(import_module(self.__name__), name)
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
else:
    pd, pa, arrow_csv = _Late("pandas"), _Late("pyarrow"), _Late("pyarrow.csv")
