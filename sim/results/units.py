"""Numbers as people read them: milliseconds, durations, percent. The one place where seconds become ms."""

from __future__ import annotations

import math
from typing import NamedTuple

NONE = "-"


def number(value: float | None, digits: int = 3) -> str:
    """`value` to about `digits` significant digits, never cutting whole ones: 1,234 12.3 0.0123."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def signed(value: float) -> str:
    """A number with its sign; 0 has none."""
    return f"+{number(value)}" if value > 0 else number(value)


def count(value: int | None) -> str:
    return NONE if value is None else f"{value:,d}"


def count_of(value: int, noun: str) -> str:
    """So many of them: 1 replica, 2,048 tokens."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def mean_count_of(value: float, noun: str) -> str:
    """So many of them, or a mean of what changes: 1 GPU, 3.25 GPUs on average."""
    return count_of(value, noun) if isinstance(value, int) else f"{number(value)} {noun}s on average"


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal; never 100.0 % or 0.0 % for what is not all or nothing."""
    if fraction is None:
        return NONE
    shown = f"{100 * fraction:.1f}"
    if shown == "100.0":
        return "100 %" if fraction >= 1 else "99.9+ %"
    if shown == "0.0":
        return "0 %" if fraction == 0 else "<0.1 %"
    return f"{shown} %"


def seconds(value: float | None) -> str:
    """A time with the unit that fits: 850 us, 12.3 ms, 4.56 s, 58 min 22 s, 3 h 05 min."""
    if value is None or value == 0:
        return NONE if value is None else "0 s"
    for below, factor, unit in ((0.001, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if value < below:
            return f"{number(value * factor)} {unit}"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{count(whole // 3600)} h {whole % 3600 // 60:02d} min"


def size_of(value_bytes: float) -> str:
    """A number of bytes with the binary unit that fits: 12 B, 3.50 KiB, 1.25 GiB."""
    power = min(4, max(0, math.frexp(max(value_bytes, 1))[1] - 1) // 10)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count(int(value_bytes)) if power == 0 else number(value_bytes / 1024**power)} {unit}"


def dollars(value: float | None) -> str:
    """An amount of money: $0.0123, $7.94, $1,234."""
    return NONE if value is None else f"${number(value)}"


def energy(value_j: float | None) -> str:
    """An energy with the unit that fits: 850 J, 142 kJ, 2.91 MJ, 1.20 GJ."""
    if value_j is None:
        return NONE
    power = min(3, max(0, math.floor(math.log10(value_j) / 3))) if value_j > 0 else 0
    return f"{number(value_j / 1000**power)} {('J', 'kJ', 'MJ', 'GJ')[power]}"


def limit(value_s: float) -> str:
    """A limit as the user gave it, without padding digits: 50 ms, 2.5 s."""
    return f"{value_s * 1e3:g} ms" if value_s < 1 else f"{value_s:g} s"


def row_unit(values: list[float | None]) -> tuple[str, float]:
    """(unit, factor) in which a row of seconds is easy to read: ms while all are below 10 s."""
    largest = max((value for value in values if value is not None), default=0.0)
    return ("ms", 1e3) if largest < 10 else ("s", 1.0)


class TimeUnit(NamedTuple):
    """The unit in which a page writes one quantity of time, whatever the size of the single value."""

    name: str
    factor: float
    """Of it in a second."""

    def words(self, value_s: float | None) -> str:
        """A value with the unit, to three digits: `0.932 s`; a dash for none."""
        if value_s is None or math.isnan(value_s):
            return NONE
        return f"{number(value_s * self.factor)} {self.name}"

    def limit(self, value_s: float) -> str:
        """A limit as the user gave it, without padding digits: `0.5 s`."""
        return f"{value_s * self.factor:,.6f}".rstrip("0").rstrip(".") + f" {self.name}"


def time_unit(typical_s: float | None) -> TimeUnit:
    """The unit that `seconds` would write `typical_s` in, up to seconds; ms where nothing is known."""
    if not typical_s or math.isnan(typical_s):
        return TimeUnit("ms", 1e3)
    for below, factor, name in ((0.001, 1e6, "us"), (1.0, 1e3, "ms")):
        if typical_s < below:
            return TimeUnit(name, factor)
    return TimeUnit("s", 1.0)
