"""What a reader makes of a result file: a row for each request, or why it has none; runs; statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from traces.fields import BadRow, Count, Kind, Time, get, real, shown
from traces.schema import MAX_TIME_S

ANY_COUNT = Count(least=0)
SECONDS = Time("s")
ROUNDING_S = 2e-6
"""A difference of two stamps since 1970 is no more exact, which are floats of a quarter of a microsecond each."""
MOST_LETTERS = 240
Key = tuple[str, str]
"""A measure and one of its statistics, as ("ttft_s", "p99")."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request as the server's clock had it, in seconds; NaN for what the file does not tell.

    `where` names the request in the file. `gaps_s` are those between the pieces that came, which are tokens only where
    there is one piece for each; None where the file tells none.
    """

    where: str
    start_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    queue_s: float = math.nan
    gaps_s: Sequence[float] | None = None


Why = Literal["failed", "empty", "phase", "bad"]


@dataclass(frozen=True, slots=True)
class Omitted:
    """A request that is compared on neither side: it was not answered, or with no tokens, is of another phase than the
    measured one, or its record cannot be used. `reason` goes on after `where` and a colon."""

    where: str
    why: Why
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {one_line(self.reason)}"


@dataclass(frozen=True, slots=True)
class StatedValue:
    """A statistic that a file states; it lies between `low` and `high`, which are `value` where it is exact."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> StatedValue:
        return cls(value, value, value)


@dataclass(frozen=True, slots=True)
class SentLoad:
    """How a tool sent requests whose times it did not write down; 0 for what the file does not tell.

    Args:
        rate: per second, infinity for all at once.
        cv: of the gaps between them: 1 is Poisson, 0 evenly spaced.
        concurrency: how many may be under way.
    """

    rate: float = 0.0
    cv: float = 1.0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class RandomLengths:
    """Whole numbers drawn evenly from `least` to `most`, both included, for prompts and answers."""

    prompt: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ToolRun:
    """One benchmark of a result file.

    Args:
        label: names it among the others of its file.
        rows: its requests, as many as the file holds.
        load: None where the rows tell when each request came.
        stated: statistics that the file has of all requests, in seconds and per second.
        answered: how many requests these are of; 0 where that is not told.
        sampled: the rows are some of these requests only.
        mean_tokens: (prompt, output) of these requests; NaN for what is not told.
        lengths: what they were drawn from, where the file names it.
        more: what to ask the tool for so that it writes down each request; "" where it did.
    """

    label: str
    rows: Sequence[Row | Omitted] = ()
    load: SentLoad | None = None
    stated: Mapping[Key, StatedValue] = field(default_factory=dict)
    answered: int = 0
    sampled: bool = False
    mean_tokens: tuple[float, float] = (math.nan, math.nan)
    lengths: RandomLengths | None = None
    more: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotJson:
    """A line that is no JSON, in the place of its value."""

    reason: str


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result file, parsed: `records` are the values of its lines, or of the list that it is, each with its place.

    `value` is the one JSON value that the file is, None where it has a value on each line or is no JSON. `count` counts
    the tokens of a text; None where no tokenizer was named.
    """

    text: str
    value: Any
    records: Sequence[tuple[str, Any]]
    count: Callable[[str], int] | None = None

    def sample(self) -> Iterator[dict[str, Any]]:
        """The first records that are objects, by which a reader knows its own."""
        return (record for _, record in self.records[:100] if isinstance(record, dict))


MeasuredAt = Literal["client", "engine"]
"""Whose clock and whose latencies a file has: those of a client behind the front end, or those of the engine itself."""


class Reader(Protocol):
    """A module of this package. `runs` raises BadRow for what makes no run of the file."""

    ABOUT: str
    MEASURED_AT: MeasuredAt

    def detect(self, file: ResultFile) -> bool: ...

    def runs(self, file: ResultFile) -> list[ToolRun]: ...


def each(records: Iterable[tuple[str, Any]], read: Callable[[str, Any], Row | Omitted]) -> list[Row | Omitted]:
    """What `read` makes of each record; one that raises BadRow is left out, with its reason."""
    rows: list[Row | Omitted] = []
    for where, record in records:
        try:
            rows.append(checked(read(where, an_object(record))))
        except BadRow as error:
            rows.append(Omitted(where, "bad", str(error)))
    return rows


def checked(row: Row | Omitted) -> Row | Omitted:
    """The row, or an Omitted where it has no tokens; raises BadRow for one that cannot be."""
    if isinstance(row, Omitted):
        return row
    if not row.output_tokens:
        return Omitted(row.where, "empty", "no tokens")
    if not row.prompt_tokens:
        raise BadRow("its prompt has no tokens")
    if row.e2e_s < row.ttft_s <= row.e2e_s + ROUNDING_S:
        row = replace(row, e2e_s=row.ttft_s)
    if row.ttft_s < 0 or row.e2e_s < 0 or row.e2e_s < row.ttft_s or row.queue_s < 0:
        span = f"first token after {row.ttft_s:.6f} s, last after {row.e2e_s:.6f} s"
        raise BadRow(f"its clock runs backwards: {span}")
    if row.e2e_s > MAX_TIME_S:
        raise BadRow(f"it took {row.e2e_s:.3g} s, more than 100 years")
    return row


def one_line(text: object) -> str:
    """A text of a file's as a sentence holds it: on one line, without what cannot be printed, and not too long."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return words if len(words) <= MOST_LETTERS else f"{words[: MOST_LETTERS - 3]}..."


def an_object(value: object, name: str = "") -> dict[str, Any]:
    """The value where it is a JSON object; raises BadRow, with `name` for what should be one."""
    if isinstance(value, NotJson):
        raise BadRow(f"it is not JSON ({value.reason})")
    if not isinstance(value, dict):
        raise BadRow(f"{name or 'it'} is {shown(value)}; it must be an object of keys and values")
    return value


def inner(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; raises BadRow."""
    if record.get(key) is None:
        raise BadRow(f"{key} is missing")
    return an_object(record[key], key)


def within(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; an empty one where there is none."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def either(record: Mapping[str, Any], kind: Kind, *keys: str) -> Any:
    """The value of the first of the keys that is there; raises BadRow."""
    for key in keys:
        if record.get(key) is not None:
            return get(record, key, kind)
    raise BadRow(f"{' or '.join(keys)} is missing")


def maybe(record: Mapping[str, Any], key: str) -> float:
    """A finite number, NaN where the key is absent or holds none."""
    found = real(record.get(key))
    return math.nan if found is None else float(found)


def seconds_list(record: Mapping[str, Any], key: str, unit_s: float = 1.0) -> list[float]:
    """A list of lengths of time in units of `unit_s`; raises BadRow."""
    if (values := record.get(key)) is None:
        raise BadRow(f"{key} is missing")
    if not isinstance(values, list):
        raise BadRow(f"{key} is {shown(values)}; it must be a list of numbers")
    times = [real(value) for value in values]
    for value, time in zip(values, times, strict=True):
        if time is None or time < 0 or time * unit_s > MAX_TIME_S:
            raise BadRow(f"{key} holds {shown(value)}; it must hold times, 0 or more and below 100 years")
    return [time * unit_s for time in times if time is not None]
