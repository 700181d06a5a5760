"""Arrivals of a format that does not say where its times stand: found by name, their unit by what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from traces.fields import BadRow, broken
from traces.late import pd
from traces.mapping.assign import Assignment
from traces.mapping.guess import guess
from traces.mapping.kinds import LoggedTime
from traces.mapping.rows import MISSING, at
from traces.mapping.survey import survey
from traces.mapping.table import arrivals_s
from traces.source import Source


@dataclass(frozen=True, slots=True)
class ArrivalColumn:
    """The column of a file that tells when requests came; None where there is none."""

    source: Source
    arrival: Assignment | None

    @classmethod
    def of(cls, source: Source) -> ArrivalColumn:
        """Raises InputError where the unit is a guess."""
        found = guess(survey(source.path, source.skip_bad), {})
        arrival = next((one for one in found if one.target == "arrival"), None)
        if arrival is not None and arrival.doubtful:
            source.fail(f"does not say for certain the unit of {arrival.column.path}, such as {arrival.column.example}")
        return cls(source, arrival)

    def ticks(self, record: Mapping[str, Any]) -> int:
        """Nanoseconds, 0 where the file tells no times; raises BadRow."""
        if self.arrival is None:
            return 0
        path = self.arrival.column.path
        if (value := at(record, path)) is MISSING:
            raise BadRow(f"{path} is missing")
        try:
            return LoggedTime(self.arrival.unit).parse(value)
        except BadRow as rule:
            raise broken(path, value, rule) from None

    def laid(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with `arrival_s`, until now nanoseconds, in seconds since the first."""
        self.source.has_arrivals = self.arrival is not None
        if self.arrival is None:
            return table.assign(arrival_s=0.0)
        return table.assign(arrival_s=arrivals_s(self.source, table["arrival_s"], self.arrival))
