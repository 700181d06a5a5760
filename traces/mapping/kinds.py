"""Kinds of values in a log of any shape: moments in any unit, and lengths as counts, texts, chats or ids.

As `traces.fields`, one kind reads a JSON value, a CSV cell and a CSV column; numbers may stand as texts too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from traces.chats import content_tokens
from traces.fields import BadRow, Count, Stamp, Time, number_of
from traces.late import pd
from traces.mapping.status import ANSWERED, FAILED, success
from traces.mapping.survey import is_messages, stamp_text, unpacked
from traces.mapping.times import ISO

ABSENT = -1
_NS_PER = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_STAMP = Stamp()


@dataclass(frozen=True, slots=True)
class LoggedTime:
    """A time or length of time, in whole nanoseconds (dates: since 1970); ABSENT where an optional one is not told.

    Nanoseconds, since seconds since 1970 leave a float no microsecond.
    """

    unit: str
    optional: bool = False

    @property
    def arrow(self) -> tuple[str, ...]:
        return Stamp.arrow if self.unit == ISO else ("int64", "float64")

    def parse(self, value: object) -> int:
        if isinstance(value, str):
            value = value.strip()
        if self.optional and value in (None, "", "nan", "NaN"):
            return ABSENT
        if self.unit == ISO:
            return _STAMP.parse(stamp_text(value))
        told = number_of(value) if isinstance(value, str) else value
        Time(self.unit).parse(told)
        return round(cast("float", told) * _NS_PER[self.unit])

    def cell(self, text: str) -> int:
        return self.parse(text)

    def column(self, values: pd.Series) -> pd.Series | None:
        if self.unit == ISO:
            return _STAMP.column(values)
        if Time(self.unit, optional=self.optional).column(values) is None:
            return None
        ticks = values * _NS_PER[self.unit]
        return ticks.round().fillna(ABSENT).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens: told (`kind` whole), or counted in a text, the messages of a chat or a list of ids.

    With `optional` nothing at all is 0: of a request that failed.
    """

    kind: str
    count: Callable[[str], int]
    optional: bool = False

    @property
    def arrow(self) -> tuple[str, ...]:
        return Count.arrow if self.kind == "whole" else ("string",)

    def parse(self, value: object) -> int:
        if self.optional and (value is None or value in ("", [])):
            return 0
        if self.kind == "whole":
            return self._count.cell(value) if isinstance(value, str) else self._count.parse(value)
        told = unpacked(value) if self.kind == "messages" else value
        if self.kind == "messages" and not is_messages(told):
            raise BadRow("it must be a list of messages")
        if self.kind != "messages" and isinstance(told, str) != (self.kind == "text"):
            raise BadRow("it must be a text" if self.kind == "text" else "it must be a list of whole numbers")
        total = content_tokens(told, self.count, "it")
        if total < 1 and not self.optional:
            raise BadRow("it holds no text")
        return total

    def cell(self, text: str) -> int:
        return self.parse(text)

    def column(self, values: pd.Series) -> pd.Series | None:
        if self.kind == "whole":
            return self._count.column(values)
        try:
            return pd.Series([self.parse(value) for value in values], dtype=np.int64)
        except BadRow:
            return None

    @property
    def _count(self) -> Count:
        return Count(least=0, default=0) if self.optional else Count()


@dataclass(frozen=True, slots=True)
class Answered:
    """Whether a request was answered, by `traces.mapping.status`."""

    optional: bool = True
    arrow: tuple[str, ...] = ("string",)

    def parse(self, value: object) -> bool:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
            raise BadRow("it must be a word or an HTTP code")
        if (found := success("" if value is None else str(value))) is None:
            raise BadRow(f"it must be an HTTP code or one of {', '.join(sorted(ANSWERED | FAILED))}")
        return found

    def cell(self, text: str) -> bool:
        return self.parse(text)

    def column(self, values: pd.Series) -> pd.Series | None:
        found = [success(value) for value in values]
        return None if None in found else pd.Series(found, dtype=bool)
