"""How a recorded schedule and ours differ, step by step: in decisions, times, memory or bookkeeping only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Step = dict[str, Any]

GRADES: dict[str, tuple[str, ...]] = {
    "decisions": ("tokens", "sched", "new", "resumed", "preempted", "hit", "spec", "first", "finished"),
    "times": ("t_sched", "t0", "t1"),
    "memory": ("free", "blocks"),
    "bookkeeping": ("i", "arrived", "queues", "running", "waiting"),
}
"""The keys of a step by what it means that they differ, the gravest first; a key not listed here is bookkeeping."""

OPTIONAL = ("running", "waiting", "blocks")
"""Keys that not every record has."""

REACH = 8
"""So many steps that one side has and the other has not are looked over for the place where both agree again."""

_GRADE_OF = {key: grade for grade, keys in GRADES.items() for key in keys}


@dataclass(frozen=True, slots=True)
class Grade:
    """How many steps differ so, and the first difference: its step (row of the record), key, and both values."""

    steps: int = 0
    first_difference: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`grades` holds all of `GRADES`; `first_difference` is the first of any grade, in the order of the record."""

    grades: dict[str, Grade]
    first_difference: dict[str, Any] | None


def compare(recorded: Sequence[Step], ours: Sequence[Step]) -> Comparison:
    """Compare two schedules to their ends.

    Steps are paired in their order. Where the two part, they are paired again from the next step on that computes the
    same in both, if that is near; a step that only one of them has is one difference: a decision, or bookkeeping where
    it computes and preempts nothing.
    """
    counts = dict.fromkeys(GRADES, 0)
    firsts: dict[str, dict[str, Any]] = {}
    earliest: dict[str, Any] | None = None
    numbering = _Numbering()
    for row, theirs, mine in pairs(recorded, ours):
        if theirs is None or mine is None:
            differences = [(_grade_alone(theirs or mine or {}), "steps", len(recorded), len(ours))]
        else:
            differences = list(_differences(theirs, mine, numbering.differs(theirs, mine)))
        numbering.count(theirs, mine)
        for grade in {grade for grade, *_ in differences}:
            counts[grade] += 1
        for grade, key, recorded_value, our_value in differences:
            difference = {"step": row, "key": key, "recorded": recorded_value, "ours": our_value}
            earliest = earliest or difference
            firsts.setdefault(grade, difference)
    return Comparison({grade: Grade(counts[grade], firsts.get(grade)) for grade in GRADES}, earliest)


def pairs(recorded: Sequence[Step], ours: Sequence[Step]) -> Iterator[tuple[int, Step | None, Step | None]]:
    """(row of the record, its step, our step), in order; None where a side has no such step."""
    at = own = 0
    while at < len(recorded) and own < len(ours):
        ahead, own_ahead = _to_agreement(recorded, ours, at, own)
        for after in range(max(ahead, own_ahead)):
            theirs = recorded[at + after] if after < ahead else None
            yield at + min(after, ahead), theirs, ours[own + after] if after < own_ahead else None
        at, own = at + ahead, own + own_ahead
        if not ahead and not own_ahead:
            yield at, recorded[at], ours[own]
            at, own = at + 1, own + 1
    for row in range(at, len(recorded)):
        yield row, recorded[row], None
    for mine in ours[own:]:
        yield len(recorded), None, mine


def _to_agreement(recorded: Sequence[Step], ours: Sequence[Step], at: int, own: int) -> tuple[int, int]:
    """How many steps of each side lie before the next that both compute alike; (0, 0) also where none is near."""
    if _computed(recorded[at]) == _computed(ours[own]):
        return 0, 0
    for far in range(1, REACH + 1):
        for ahead in range(far + 1):
            here, there = at + ahead, own + far - ahead
            if here < len(recorded) and there < len(ours):
                computed = _computed(recorded[here])
                if computed and computed == _computed(ours[there]):
                    return ahead, far - ahead
    return 0, 0


def _computed(step: Step) -> Any:
    return step.get("sched")


def _grade_alone(step: Step) -> str:
    return "decisions" if step.get("sched") or step.get("preempted") else "bookkeeping"


def _differences(theirs: Step, mine: Step, renumbered: bool) -> Iterator[tuple[str, str, Any, Any]]:
    for key in {**theirs, **mine}:
        recorded, ours = theirs.get(key), mine.get(key)
        if recorded == ours or (key in OPTIONAL and key not in theirs) or (key == "i" and not renumbered):
            continue
        yield _GRADE_OF.get(key, "bookkeeping"), key, recorded, ours


class _Numbering:
    """Whether the numbers of paired steps differ by more than the steps that only one side had so far."""

    def __init__(self) -> None:
        self._ahead = 0

    def differs(self, theirs: Step, mine: Step) -> bool:
        recorded, ours = theirs.get("i"), mine.get("i")
        if type(recorded) is not int or type(ours) is not int:
            return bool(recorded != ours)
        # An idle engine jumps to the step of the next arrival, and then both count alike again.
        differs = recorded - ours not in (0, self._ahead)
        self._ahead = recorded - ours
        return differs

    def count(self, theirs: Step | None, mine: Step | None) -> None:
        self._ahead += (mine is None) - (theirs is None)
