"""Which of several runs may win, and where none may, which comes nearest; whether they compare. It knows no measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sim.results.band import apart
from sim.results.units import percent

_MOST_NAMED = 3
BEHIND = (
    "behind a front end, whose time is in TTFT, TPOT and E2E; the others' are the engine's. Compare engine_ttft_s and "
    "so on, or give all of them one (--front-end off)."
)


def holds(summary: Mapping[str, Any]) -> bool:
    """Whether a run may win: its queue did not grow, and it meets the SLO, if one was asked."""
    told = summary.get("verdict") or {}
    return told.get("stable") is not False and told.get("slo") != "missed"


def turned_words(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Whose difference in TPOT from the first run the errors of step times may turn; nothing where nobody's."""
    first, *others = summaries
    base = summaries[first]
    near = []
    for name in others:
        before_s, after_s = (each["tpot_s"]["p50"] for each in (base, summaries[name]))
        width = apart(base, summaries[name])
        if width and before_s and after_s and before_s != after_s and abs(math.log(after_s / before_s)) <= width:
            near.append(f"{name} ({percent(abs(after_s / before_s - 1))} of up to {percent(math.expm1(width))})")
    if not near:
        return ""
    return f"The errors of step times may turn the difference in median TPOT between {first} and {', '.join(near)}."


def unlike_clients(behind: Mapping[str, bool]) -> str:
    """That the latencies of runs are not of one kind, by whether each is behind a front end; nothing where they are."""
    if len(set(behind.values())) < 2:
        return ""
    names = [name for name, one in behind.items() if one]
    shown = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED:,} more" if names[_MOST_NAMED:] else "")
    return f"Only {shown} {'is' if len(names) == 1 else 'are'} {BEHIND}"


def nearest_words(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Where no run may win, which comes nearest and what it misses by how much; nothing where one may."""
    if any(holds(summary) for summary in summaries.values()):
        return ""
    stable = {name: one for name, one in summaries.items() if (one.get("verdict") or {}).get("stable") is not False}
    if not stable:
        return "Every queue grows, so none of them wins: latencies and goodput depend on how long one looks."
    name, clause = min(
        (
            (name, max(one["verdict"]["clauses"], key=lambda clause: clause["of_limit"] or 0.0))
            for name, one in stable.items()
        ),
        key=lambda pair: pair[1]["of_limit"] or 0.0,
    )
    by = percent((clause["of_limit"] or 1.0) - 1)
    return f"None is stable and meets the SLO; nearest: {name} misses {clause['name']} by {by}."
