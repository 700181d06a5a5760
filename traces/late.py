"""Libraries of tables, imported where they are first used: a small run, which uses none, starts in half the time.

`from traces.late import pd` stands where `import pandas as pd` would.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["arrow_csv", "import_numpy", "pa", "pd"]

THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""What OpenBLAS reads while it is loaded, the first that is set."""


def import_numpy() -> None:
    """Import numpy with a single thread for its linear algebra, unless the environment says how many.

    Others spin for a twentieth of a second each before they first sleep, and no simulation has work for them. The
    environment is afterwards as it was, for what is imported or started then.
    """
    if any(name in os.environ for name in THREADS):
        return
    os.environ[THREADS[0]] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[THREADS[0]]


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
