"""Request traces: read public formats, make synthetic ones, edit and write them. Knows nothing of serving."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from traces.schema import InputError, Trace

if TYPE_CHECKING:
    from traces.reader import bundled, read
    from traces.rows import from_frame, validate

__all__ = ["InputError", "Trace", "bundled", "from_frame", "read", "validate"]

_HOMES = {"bundled": "traces.reader", "read": "traces.reader", "from_frame": "traces.rows", "validate": "traces.rows"}
"""Where stands what needs pandas, which costs half a second: it is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
