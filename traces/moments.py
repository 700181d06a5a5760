"""Times of a file whose unit varies: numbers in a unit, or dates. Only a date or a word of the user's tells a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from traces.choices import UNITS
from traces.fields import BadRow, Stamp, Time, looks_like, number_of
from traces.late import pd
from traces.rows import Mask, keep_rows
from traces.source import Source

FASTEST_PER_S = 100.0
"""Requests per second beyond which stamps with fractions are not taken for milliseconds unasked."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A number in the unit, or a date and time as text; its value is in seconds, of a date since 1970."""

    unit: str
    optional: ClassVar[bool] = False
    arrow: ClassVar[tuple[str, ...]] = ("string",)

    def cell(self, text: str) -> float:
        return self.parse(number_of(text))

    def column(self, values: pd.Series) -> pd.Series | None:
        return None

    def parse(self, value: object) -> float:
        name = UNITS[self.unit][0]
        try:
            return Stamp().parse(value) / 1e9 if isinstance(value, str) else Time(self.unit).parse(value)
        except BadRow as why:
            rule = str(why)
            if "such as" in rule:
                rule += f", or a number of {name}"
            elif other := _unit_of(rule):
                rule += f": give --time-unit {other}"
            raise BadRow(rule) from None


def stamped(source: Source, table: pd.DataFrame, key: str, given: Mask) -> pd.DataFrame:
    """The rows whose `arrival_s` is known, at 0 where no row is `given` one; the others are rejected.

    Args:
        key: the field of the file that holds the time, for messages.
        given: rows for which the file itself tells a time.
    """
    source.has_arrivals = bool(given.any())
    if not source.has_arrivals:
        return table.assign(arrival_s=0.0)
    known = table["arrival_s"].notna().to_numpy()
    if known.all():
        return table
    lines = table["source_row"][given].unique()
    others = "another row has one" if len(lines) == 1 else f"{len(lines):,} other rows have one"
    why = f"{key} is missing; {others}, the first in {source.where} {lines[0]} (--skip-bad leaves out those without)"
    for line in table["source_row"][~known].unique().tolist():
        source.reject(line, BadRow(why, f"{key} is missing"))
    return keep_rows(table, known)


def other_unit(times_s: Sequence[float], unit: str) -> str:
    """Why times without a stated unit may well be in another than the format's milliseconds; "" where they are not.

    Only for a sentence that asks: nothing is read in another unit for what is said here.
    """
    stamped = [time for time in times_s if not math.isnan(time)]
    name, per_second = UNITS[unit]
    if unit != "ms" or not stamped:
        return ""
    first = min(stamped) * per_second
    if hint := looks_like(first, name):
        other = _unit_of(hint)
        why = f"has no timestamp below {first:.0f}; the format counts {name} from the start{hint}"
        return f"{why}: give --time-unit {other}"
    span = max(stamped) - min(stamped)
    fractions = any(abs(time * per_second - round(time * per_second)) > 1e-6 for time in stamped)
    if fractions and (len(stamped) - 1) / FASTEST_PER_S > span:
        return (
            f"has {len(stamped):,} requests within {span * per_second:.6g} ms if its timestamps count milliseconds, "
            "and they have fractions: say what they count with --time-unit s or --time-unit ms"
        )
    return ""


def _unit_of(hint: str) -> str:
    """The unit that `looks_like` names at the end of a sentence; "" where there is none."""
    return next((key for key, (name, _) in UNITS.items() if hint.endswith(f" {name} since 1970")), "")
