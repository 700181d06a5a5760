"""Refusals of single numbers and names, in one sentence each. It knows nothing of what they mean."""

from __future__ import annotations

from traces.schema import InputError

# A typing error of a few digits is caught here rather than as an endless run; the largest model known is far below.
MAX_COUNT = 10**9


def check_count(where: str, key: str, value: int, least: int, most: int = MAX_COUNT) -> None:
    """Raise InputError unless `least <= value <= most`."""
    if not least <= value <= most:
        raise InputError(f"{where}: {key} = {value} must lie between {least} and {most}")


def check_amount(where: str, key: str, value: float, least: float, most: float, *, zero: bool = False) -> None:
    """Raise InputError unless `least <= value <= most`, or 0 where that is allowed; NaN and infinity never pass."""
    if not (least <= value <= most or (zero and value == 0)):
        also = "be 0 or " if zero else ""
        raise InputError(f"{where}: {key} = {value} must {also}lie between {least:g} and {most:g}")


def check_choice(where: str, key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{where}: {key} = {value!r} is none of {', '.join(choices)}")
