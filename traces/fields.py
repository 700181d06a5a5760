"""Kinds of values in a trace file: what a count, a time, a stamp, a text or a list of ids must look like.

One kind reads a JSON value, a CSV cell and a whole CSV column, so that the three cannot disagree. Units
belong to the format and are given to the kind; a magnitude only ever leads to a refusal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from traces.choices import UNITS
from traces.late import pd
from traces.schema import MAX_TIME_S, MAX_TOKENS

MAX_TEXT = 1_000
Record = Mapping[str, Any]
Column: TypeAlias = "npt.NDArray[Any] | pd.Series"
C = TypeVar("C", "npt.NDArray[Any]", "pd.Series")


class BadRow(Exception):  # noqa: N818 - a row is bad; the error that the user sees is InputError
    """Why a row cannot be used, without file and line; `rule` is the same without the row's own values."""

    def __init__(self, reason: str, rule: str = "") -> None:
        super().__init__(reason)
        self.rule = rule or reason


class Kind(Protocol):
    """How one field is read. `optional` fields may be absent or empty, and are then `parse(None)`."""

    @property
    def optional(self) -> bool: ...
    @property
    def arrow(self) -> tuple[str, ...]:
        """Names of the Arrow types to try on a whole CSV column (`traces.tables`)."""

    def parse(self, value: object) -> Any:
        """The value of a JSON field; raises BadRow with the rule it breaks."""

    def cell(self, text: str) -> Any:
        """The value of a CSV cell; raises BadRow with the rule it breaks."""

    def column(self, values: Any) -> Column | None:
        """The values of a whole column, or None where at least one needs a closer look by `cell`."""


def get(record: Record, key: str, kind: Kind) -> Any:
    """The field's value. Raises BadRow naming key, value and rule."""
    if key not in record or (record[key] is None and kind.optional):
        if kind.optional:
            return kind.parse(None)
        raise BadRow(f"{key} is missing")
    try:
        return kind.parse(record[key])
    except BadRow as rule:
        raise broken(key, record[key], rule) from None


def broken(key: str, value: object, rule: object) -> BadRow:
    return BadRow(f"{key} is {shown(value)}; {rule}", f"{key}: {rule}")


def shown(value: object) -> str:
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.ASCII | re.I)


def number_of(text: str) -> float | int | str:
    text = text.strip()
    if len(text) > 100 or not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def real(value: object) -> float | int | None:
    """The value where it is a finite JSON number (not true, not text); whole ones beyond 1e30 become 1e30."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if abs(value) < 10**30 else (1e30 if value > 0 else -1e30)


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number from `least` to MAX_TOKENS; 12.0 counts as whole. With a default it may be absent."""

    least: int = 1
    default: int | None = None
    arrow: ClassVar[tuple[str, ...]] = ("int64",)

    @property
    def optional(self) -> bool:
        return self.default is not None

    def parse(self, value: object) -> int:
        if value is None and self.default is not None:
            return self.default
        found = real(value)
        if found is None or found != int(found) or found < self.least:
            raise BadRow(f"it must be a whole number of at least {self.least}")
        if found > MAX_TOKENS:
            raise BadRow(f"more than {MAX_TOKENS:,} is taken for a mistake")
        return int(found)

    def cell(self, text: str) -> int:
        return self.parse(None if self.optional and not text else number_of(text))

    def column(self, values: C) -> C | None:
        clean = values.dtype == np.int64 and values.min() >= self.least and values.max() <= MAX_TOKENS
        return values if clean else None


@dataclass(frozen=True, slots=True)
class Time:
    """A time or length of time in the format's unit, 0 or more; its value is in seconds, NaN where absent."""

    unit: str
    optional: bool = False
    whole: bool = False
    arrow: ClassVar[tuple[str, ...]] = ("float64",)

    def parse(self, value: object) -> float:
        if value is None and self.optional:
            return math.nan
        name, per_second = UNITS[self.unit]
        found = real(value)
        if found is None or found < 0 or (self.whole and found != int(found)):
            raise BadRow(f"it must be a {'whole ' if self.whole else ''}number of {name}, 0 or more")
        if found / per_second > MAX_TIME_S:
            raise BadRow(f"as {name} that is more than 100 years{looks_like(float(found), name)}")
        return found / per_second

    def cell(self, text: str) -> float:
        return self.parse(None if self.optional and text.strip().lower() in ("", "nan") else number_of(text))

    def column(self, values: Column) -> npt.NDArray[np.float64] | None:
        raw = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore"):
            fits = (raw >= 0) & (raw <= MAX_TIME_S * UNITS[self.unit][1])
        if self.whole:
            fits &= raw == np.floor(raw)
        if self.optional:
            fits |= np.isnan(raw)
        return raw / UNITS[self.unit][1] if fits.all() else None


@dataclass(frozen=True, slots=True)
class Probability:
    """A number from 0 to 1, NaN where absent."""

    arrow: ClassVar[tuple[str, ...]] = ("float64",)
    optional: ClassVar[bool] = True

    def parse(self, value: object) -> float:
        if value is None:
            return math.nan
        found = real(value)
        if found is None or not 0 <= found <= 1:
            raise BadRow("it must be a probability from 0 to 1, or nothing")
        return float(found)

    def cell(self, text: str) -> float:
        return self.parse(None if text.strip().lower() in ("", "nan") else number_of(text))

    def column(self, values: Column) -> npt.NDArray[np.float64] | None:
        raw = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore"):
            fits = ((raw >= 0) & (raw <= 1)) | np.isnan(raw)
        return raw if fits.all() else None


SINCE_1970_S = 1e9
"""A time from which on it may be one since 1970, in any of the units."""


def looks_like(value: float, unit: str) -> str:
    """A hint for an error message: the unit in which the value would be a date between 2001 and 2103."""
    for name, least in (
        ("nanoseconds", 1e18),
        ("microseconds", 1e15),
        ("milliseconds", 1e12),
        ("seconds", SINCE_1970_S),
    ):
        if least <= value < 4.2 * least and name != unit:
            return f"; it looks like {name} since 1970"
    return ""


_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A date and time, with a zone or else taken as UTC; its value is in nanoseconds since 1970."""

    optional: bool = False
    arrow: ClassVar[tuple[str, ...]] = ("timestamp", "timestamp UTC")

    def parse(self, value: object) -> int:
        match = _STAMP.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise BadRow("it must be a date and time such as 2023-11-16 18:15:46.680590")
        day, clock, fraction, zone = match.groups()
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}{(zone or 'Z').replace('Z', '+00:00')}")
        except ValueError:
            raise BadRow("there is no such date and time") from None
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        if not 0 <= since.total_seconds() < 2 * MAX_TIME_S:
            raise BadRow("it must lie between 1970 and 2170")
        return (since.days * 86_400 + since.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))

    def cell(self, text: str) -> int:
        return self.parse(text.strip())

    def column(self, values: C) -> C | None:
        clean = values.dtype == np.int64 and values.min() >= 0 and values.max() < 2 * MAX_TIME_S * 1e9
        return values if clean else None


def date_words(since_1970_ns: int) -> str:
    """A date and time in UTC, with as many of a second's digits as it has: none, six or nine."""
    whole_s, ns = divmod(since_1970_ns, 10**9)
    digits = f".{ns:09d}" if ns % 1000 else f".{ns // 1000:06d}" if ns else ""
    return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%d %H:%M:%S}{digits}"


@dataclass(frozen=True, slots=True)
class Text:
    """A short text: a name or an id. Numbers are taken as their digits."""

    optional: bool = False
    arrow: ClassVar[tuple[str, ...]] = ("string",)

    def parse(self, value: object) -> str:
        if value is None and self.optional:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadRow("it must be a text")
        text = str(value)
        if not text and not self.optional:
            raise BadRow("it must not be empty")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadRow("it holds half of a character (a lone surrogate)")
        if len(text) > MAX_TEXT:
            raise BadRow(f"it is {len(text):,} characters long, more than {MAX_TEXT:,}")
        return text

    def cell(self, text: str) -> str:
        return self.parse(text)

    def column(self, values: pd.Series) -> pd.Series | None:
        length = values.str.len()
        clean = length.max() <= MAX_TEXT and (self.optional or length.min() > 0)
        return values if clean else None


@dataclass(frozen=True, slots=True)
class Ids:
    """A list of whole numbers, 0 or more; in a CSV cell they stand with blanks between them."""

    optional: bool = False
    arrow: ClassVar[tuple[str, ...]] = ("string",)

    def parse(self, value: object) -> npt.NDArray[np.int64]:
        if value is None and self.optional:
            return np.empty(0, dtype=np.int64)
        rule = "it must be a list of whole numbers, 0 or more"
        if not isinstance(value, list):
            raise BadRow(rule)
        if not value:
            return np.empty(0, dtype=np.int64)
        try:
            ids = np.asarray(value)
        except (ValueError, OverflowError):
            raise BadRow(rule) from None
        if ids.ndim != 1 or ids.dtype.kind != "i" or ids.min() < 0:
            raise BadRow(rule)
        return ids.astype(np.int64, copy=False)

    def cell(self, text: str) -> npt.NDArray[np.int64]:
        return self.parse([number_of(part) for part in text.split()])

    def column(self, values: pd.Series) -> pd.Series | None:
        try:
            rows = [np.array(text.split(), dtype=np.int64) for text in values]
        except (ValueError, OverflowError):
            return None
        return pd.Series(rows, dtype=object) if all(row.size == 0 or row.min() >= 0 for row in rows) else None
