"""How often a draft is right, as a scenario says it: numbers, or what a run has found. It draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from traces import documents
from traces.schema import InputError

MOST_DRAFTS = 64


def acceptance_rates(given: float | str) -> tuple[float, ...]:
    """The rates by position; InputError where one is no probability, or a file says none."""
    values: Sequence[object]
    if isinstance(given, str) and given.endswith(".json"):
        values = _recorded_rates(given)
    else:
        values = given.split(",") if isinstance(given, str) else [given]
    try:
        rates = tuple(float(one) for one in values)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise InputError(f"speculation.acceptance is {given!r}; expected probabilities from 0 to 1, such as 0.8,0.7")
    return rates[:MOST_DRAFTS]


def _recorded_rates(path: str) -> Sequence[object]:
    """A list of rates, or those that a run's summary has; of a position that nobody reached, 0."""
    try:
        summary = documents.json_file(Path(path))
        if isinstance(summary, dict):
            summary = [0.0 if rate is None else rate for rate in summary["speculation"]["rate_by_position"]]
    except InputError as error:
        raise InputError(f"speculation.acceptance: {error}") from None
    except (KeyError, TypeError):
        raise InputError(
            f"speculation.acceptance: {path} is no list of rates and no summary of a run that drafted"
        ) from None
    return summary if isinstance(summary, list) else [summary]


def found_shares(given: float | str) -> tuple[float, ...]:
    """By position, how often a look-up found a draft in the run of this summary; () for anything else than one."""
    if not (isinstance(given, str) and given.endswith(".json")):
        return ()
    try:
        summary = documents.json_file(Path(given))
        shares = tuple(map(float, summary["speculation"]["found_by_position"])) if isinstance(summary, dict) else ()
    except InputError as error:
        raise InputError(f"speculation.acceptance: {error}") from None
    except (KeyError, TypeError, ValueError):
        return ()
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise InputError(f"speculation.acceptance: {given} has a found_by_position that is no share from 0 to 1")
    return shares
