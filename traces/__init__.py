"""Request traces: read public formats, make synthetic ones, edit and write them. Knows nothing of serving."""

from traces.reader import bundled, read
from traces.schema import InputError, Trace, from_frame, validate

__all__ = ["InputError", "Trace", "bundled", "from_frame", "read", "validate"]
