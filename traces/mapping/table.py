"""The requests of a log by a mapping: columns of the trace contract from columns of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.fields import BadRow, Count, Kind, Text, broken
from traces.late import pd
from traces.mapping.assign import Assignment
from traces.mapping.kinds import ABSENT, Answered, Length, LoggedTime
from traces.mapping.rows import MISSING, at, parquet_rows, record_rows
from traces.mapping.times import EPOCHS, ISO
from traces.rows import keep_rows
from traces.schema import MAX_TOKENS
from traces.sessions import ASSUMED_THINK_S, THINK_NOTE, linked
from traces.source import Source

LENGTHS = ("prompt", "output")


def mapped(source: Source, assignments: Sequence[Assignment], inside: str = "") -> pd.DataFrame:
    """The requests that the assignments tell; `inside` as of `record_rows`.

    Raises InputError naming file, line, column and rule.
    """
    told = {one.target: one for one in assignments}
    kinds = {one.target: _kind(one, source, failures="status" in told) for one in assignments}
    raw = _csv(source, told, kinds) if source.head.shape == "csv" else _records(source, told, kinds, inside)
    raw = _answered(source, raw, told)
    if raw.empty:
        source.nothing()
    source.has_arrivals = "arrival" in told
    table = pd.DataFrame(
        {
            "arrival_s": arrivals_s(source, raw["arrival"], told["arrival"]) if "arrival" in told else 0.0,
            "prompt_tokens": raw["prompt"],
            "output_tokens": raw["output"],
            "source_row": raw["source_row"],
        }
    )
    for target in ("model", "adapter", "samples", "priority"):
        if target in raw:
            table[target] = raw[target]
    if "session" in raw:
        table["session"] = raw["session"].fillna("")
        table = _linked(source, table, raw, told)
    return table


def _kind(one: Assignment, source: Source, failures: bool) -> Kind:
    makers: Mapping[str, Callable[[], Kind]] = {
        "arrival": lambda: LoggedTime(one.unit),
        "end": lambda: LoggedTime(one.unit, optional=True),
        "duration": lambda: LoggedTime(one.unit, optional=True),
        "think": lambda: LoggedTime(one.unit, optional=True),
        "prompt": lambda: Length(one.kind, source.tokens, failures),
        "output": lambda: Length(one.kind, source.tokens, failures),
        "samples": lambda: Count(default=1),
        "priority": lambda: Count(-MAX_TOKENS, default=0),
        "status": Answered,
    }
    return makers.get(one.target, lambda: Text(optional=True))()


def _csv(source: Source, told: Mapping[str, Assignment], kinds: Mapping[str, Kind]) -> pd.DataFrame:
    table = source.table({told[target].column.path: kind for target, kind in kinds.items()})
    return table.rename(columns={one.column.path: target for target, one in told.items()})


def _records(source: Source, told: Mapping[str, Assignment], kinds: Mapping[str, Kind], inside: str) -> pd.DataFrame:
    if source.head.shape == "parquet":
        source.where = "row"
        rows: Iterator[tuple[int, dict[str, Any]]] = parquet_rows(source.path)
    else:
        rows = record_rows(source, inside)
    out: dict[str, list[Any]] = {target: [] for target in ("source_row", *told)}
    for number, record in rows:
        source.synthetic |= record.get("synthetic") is True
        try:
            values = {target: _value(record, told[target].column.path, kind) for target, kind in kinds.items()}
        except BadRow as why:
            source.reject(number, why)
            continue
        out["source_row"].append(number)
        for target, value in values.items():
            out[target].append(value)
    return pd.DataFrame(out)


def _value(record: Mapping[str, Any], path: str, kind: Kind) -> Any:
    value = at(record, path)
    if value is MISSING or value is None:
        if kind.optional:
            return kind.parse(None)
        if value is MISSING:
            raise BadRow(f"{path} is missing")
    try:
        return kind.parse(value)
    except BadRow as rule:
        raise broken(path, value, rule) from None


def _answered(source: Source, raw: pd.DataFrame, told: Mapping[str, Assignment]) -> pd.DataFrame:
    """Without the requests that failed; one that was answered has both lengths."""
    if "status" not in raw:
        return raw
    answered = raw["status"].to_numpy(dtype=bool)
    if failed := int((~answered).sum()):
        source.dropped[f"requests that failed by their {told['status'].column.path}"] += failed
    empty = answered & ((raw["prompt"] == 0) | (raw["output"] == 0)).to_numpy()
    for place in np.flatnonzero(empty):
        target = next(name for name in LENGTHS if raw[name].iloc[place] == 0)
        why = f"{told[target].column.path} is 0 or absent; a request that was answered has at least 1 token"
        source.reject(int(raw["source_row"].iloc[place]), BadRow(why, why))
    return keep_rows(raw, answered & ~empty)


def _linked(source: Source, table: pd.DataFrame, raw: pd.DataFrame, told: Mapping[str, Assignment]) -> pd.DataFrame:
    """Requests of a session follow one another in order of arrival (of the file, where no arrival is told)."""
    path = told["session"].column.path
    order = np.argsort(table["arrival_s"].to_numpy(), kind="stable")
    table, raw = (frame.iloc[order].reset_index(drop=True) for frame in (table, raw))
    elapsed_s = _elapsed_s(raw)
    out = linked(table, elapsed_s)
    later = out["after"] >= 0
    if "think" in told:
        out["think_s"] = np.where(later, np.nan_to_num(_seconds(raw["think"])), 0.0)
        how = f"think time is {told['think'].column.path}"
    elif "arrival" not in told:
        out["think_s"] = np.where(later, ASSUMED_THINK_S, 0.0)
        source.notes.append(THINK_NOTE)
        how = "in the file's order"
    elif elapsed_s is None:
        how = "think time is the gap between arrivals, which holds the service time of the turn before"
    else:
        how = "think time runs from the end of the answer before"
    source.notes.append(f"Requests of one {path} follow one another; {how}.")
    return out


def _elapsed_s(raw: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """Seconds from arrival to last token, NaN where a row does not tell them; None where no column does."""
    if "arrival" not in raw or not {"duration", "end"} & set(raw):
        return None
    if "duration" in raw:
        return _seconds(raw["duration"])
    took = raw["end"] - raw["arrival"]
    return _seconds(took.where((raw["end"] != ABSENT) & (took >= 0), ABSENT))


def arrivals_s(source: Source, ticks: pd.Series, arrival: Assignment) -> pd.Series:
    """Seconds since the first arrival, which a note tells."""
    first = int(ticks.min())
    unit = "dates and times, UTC where they name no zone" if arrival.unit == ISO else f"in {arrival.unit}"
    since = f"{pd.Timestamp(first)} UTC" if first >= EPOCHS["ns"] else f"{first / 1e9:.9g} s"
    how = arrival.why.partition("; ")[2] or arrival.why
    source.notes.append(f"Arrivals are {arrival.column.path}, {unit} ({how}), counted from {since}.")
    return (ticks - first) / 1e9


def _seconds(ticks: pd.Series) -> npt.NDArray[np.float64]:
    """Lengths of time in seconds, NaN where they are not told."""
    return np.where(ticks == ABSENT, np.nan, ticks / 1e9)
