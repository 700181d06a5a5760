"""What a profile lacks: cases that were planned and not measured, and measurements that were left out, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibrate.cases import GRID, Case, alike, cases
from calibrate.header import Header
from calibrate.journal import MOVES, JournalEntry
from calibrate.order import VALUE, family
from calibrate.readings import WHY, Dropped

MOST_NAMED = 12
"""Rows of one table and reason that are named in one note; the others stand in further notes."""


def planned(header: Header, model: str) -> list[Case]:
    """The cases of one of its models that its settings ask for."""
    every = cases(header.limits, header.density, header.seed)
    return alike(every) if header.specs[model].is_latent else every


def lacks(header: Header, entries: Sequence[JournalEntry]) -> list[str]:
    """Sentences on what of the plan was not measured; none of a calibration that was finished."""
    passes = header.density.passes
    return [
        f"{model}: {sentence}"
        for model in header.specs
        for sentence in _lacks(planned(header, model), passes, [one for one in entries if one.model == model])
    ]


def _lacks(plan: Sequence[Case], passes: int, entries: Sequence[JournalEntry]) -> Iterator[str]:
    done = {(entry.case, entry.measured_in) for entry in entries}
    measured = {name for name, _ in done}
    if not measured:
        yield "not measured at all"
        return
    for kind in VALUE:
        wanted = [case for case in plan if case.role == GRID and family(case) == kind]
        there = [case for case in wanted if case.name in measured]
        if len(there) < len(wanted):
            yield f"{kind}: {len(there)} of {len(wanted)} steps of the grid were measured{_ends(wanted, there)}"
    held_out = [case for case in plan if case.role != GRID]
    there = [case for case in held_out if case.name in measured]
    if len(there) < len(held_out):
        yield f"errors are told from {len(there)} of {len(held_out)} held-out steps"
    if MOVES not in measured:
        yield "block copies and swaps were not measured"
    whole = sum(all((case.name, number) in done for case in plan) for number in range(passes))
    if whole < passes:
        again = len({name for name, number in done if number and name != MOVES})
        yield f"{whole} of {passes} passes are whole; {again} of {len(plan)} steps were measured more than once"


def _ends(wanted: Sequence[Case], there: Sequence[Case]) -> str:
    """Up to which sizes, where larger ones were planned."""
    if not there:
        return ""
    ends = []
    for what, size in (
        ("new tokens", lambda case: sum(new for new, _ in case.prefills)),
        ("past tokens", lambda case: max((past for _, past in case.prefills), default=0)),
        ("rows", lambda case: len(case.decodes)),
        ("tokens of context", lambda case: max(case.decodes, default=0)),
    ):
        most, planned_most = max(map(size, there)), max(map(size, wanted))
        if most < planned_most:
            ends.append(f"{most:,} of {planned_most:,} {what}")
    return f", up to {', '.join(ends)}" if ends else ""


def dropped_notes(dropped: Sequence[Dropped]) -> list[str]:
    """Every measurement that was left out, by reason and table."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in dropped:
        groups.setdefault((one.why, one.table), []).append(one.what)
    notes = []
    for (why, table), what in groups.items():
        for first in range(0, len(what), MOST_NAMED):
            named = "; ".join(what[first : first + MOST_NAMED])
            notes.append(f"left out of {table}, {WHY[why]}: {named}")
    return notes
