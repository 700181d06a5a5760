"""Names that a command's option lists, separated by commas."""

from __future__ import annotations

from collections.abc import Sequence

from traces.schema import InputError


def names_of(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The names in `text`, in its order; all that are `known` where it is empty. Raises InputError."""
    if not text:
        return list(known)
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [repr(name) for name in wanted if name not in known]
    if unknown or not wanted:
        raise InputError(f"{option} names {unknown[0] if unknown else 'none'}; known are {', '.join(known)}")
    return wanted
