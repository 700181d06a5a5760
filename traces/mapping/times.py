"""In which unit a log tells its times: by the column's name, by dates that only one unit makes sense of, by the gaps.

Where a unit is taken from the gaps alone it is a guess, and said to be one.
"""

from __future__ import annotations

from dataclasses import dataclass

from traces.fields import number_of, real
from traces.mapping.names import unit_of
from traces.mapping.survey import LogColumn

ISO = "iso"
UNITS = ("s", "ms", "us", "ns", ISO)
EPOCHS = {"s": 1e9, "ms": 1e12, "us": 1e15, "ns": 1e18}
"""What a time since 1970 has at least, of a day between 2001 and 2103."""
_TICKS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
SPARSE_S = 20.0
"""Where seconds give a greater mean gap, they may be another unit: real traces have 0.1 to 200 s between requests."""


@dataclass(frozen=True, slots=True)
class ClockUnit:
    """A unit and how it is known.

    `known_by` is written (dates as text), named (by the column's name), dated (values are dates in one unit alone),
    plain (seconds: nothing speaks against), or a guess: by the gaps, or against the name.
    """

    unit: str
    known_by: str

    @property
    def why(self) -> str:
        return {
            "written": "dates as text",
            "named": "its name says the unit",
            "dated": "dates between 2001 and 2103 in this unit alone",
            "gaps": f"a guess: in seconds requests would come more than {SPARSE_S:.0f} s apart",
            "against": "a guess: its name says another unit, in which these are no dates",
            "plain": "nothing says a unit; seconds fit",
        }[self.known_by]

    @property
    def guessed(self) -> bool:
        return self.known_by in ("gaps", "against")


def moments(column: LogColumn) -> ClockUnit:
    """The unit of a column of times."""
    if column.kind == "stamp":
        return ClockUnit(ISO, "written")
    named = unit_of(column.path)
    values = numbers(column)
    least, most = min(values, default=0.0), max(values, default=0.0)
    dated = next((unit for unit, low in EPOCHS.items() if low <= least and most < 4.2 * low), "")
    if dated:
        return ClockUnit(dated, "dated" if named in ("", dated) else "against")
    if named:
        return ClockUnit(named, "named")
    gap = (most - least) / (len(values) - 1) if len(values) > 1 else 0.0
    if gap <= SPARSE_S:
        return ClockUnit("s", "plain")
    nearest = min(_TICKS_PER_S, key=lambda unit: _distance(gap / _TICKS_PER_S[unit]))
    return ClockUnit(nearest, "gaps")


def lengths(column: LogColumn) -> ClockUnit:
    """The unit of a column of lengths of time: what its name says, else seconds."""
    named = unit_of(column.path)
    return ClockUnit(named, "named") if named else ClockUnit("s", "plain")


def numbers(column: LogColumn) -> list[float]:
    """The sample's values as numbers, what is none left out."""
    found = (real(number_of(value)) if isinstance(value, str) else real(value) for value in column.values)
    return [float(value) for value in found if value is not None]


def _distance(gap_s: float) -> float:
    """How many times a gap differs from a second, whichever way."""
    return max(gap_s, 1.0 / gap_s) if gap_s > 0 else float("inf")


def is_time(column: LogColumn) -> bool:
    """Whether values are times beyond doubt: dates, or numbers that are dates in some unit."""
    return column.kind == "stamp" or (column.kind in ("whole", "number") and moments(column).known_by == "dated")
