"""The tables of a plan for terminal and page: each column a heading and how a row of the document reads in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sim.report.measures import Measure, latency
from sim.report.plan.sentences import gpu_count
from sim.report.units import NONE, count, dollars, energy, number, percent, seconds

Rows = Iterable[Mapping[str, Any]]
Columns = Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]]
MET = {True: "met", False: "missed", None: "open"}


def _measured(measure: Measure) -> Columns:
    return [(measure.title, lambda row: measure.words(measure.value(row)))]


def _tails(*statistics: str) -> Columns:
    """TTFT and TPOT by these statistics, and the p99 of E2E."""
    shown = [latency(key, statistic) for key in ("ttft_s", "tpot_s") for statistic in statistics]
    return [column for measure in (*shown, latency("e2e_s", "p99")) for column in _measured(measure)]


def _status(row: Mapping[str, Any]) -> str:
    return f"{row['status']} *" if row.get("pareto") else str(row["status"])


RATE: Columns = [("Requests/s", lambda row: number(row["requests_per_s"]))]
MET_SLO: Columns = [("SLO", lambda row: MET[row["met"]] if row["stable"] else "unstable")]
COUNTS: Columns = [
    ("Goodput", lambda row: percent(row["goodput"]["fraction"])),
    ("Replications", lambda row: count(row["replications"])),
]
RATES: Columns = [*RATE, *_tails("p99"), *COUNTS, *MET_SLO]
PAGE_RATES: Columns = [*RATE, *MET_SLO, *_tails("p50", "p99"), *COUNTS]

NAME: Columns = [("Candidate", lambda row: row["name"])]
FLEET: Columns = [
    ("Replicas", lambda row: count(row["replicas"])),
    ("GPUs", lambda row: count(gpu_count(row))),
    ("$/hour", lambda row: dollars(row["usd_per_hour"])),
    ("$/Mtok", lambda row: dollars(row["usd_per_million_tokens"])),
]
ENERGY: Columns = [("J/Mtok", lambda row: energy(row["joules_per_million_tokens"]))]
CANDIDATES: Columns = [*NAME, ("Req/s each", lambda row: number(row["capacity_per_replica"])), *FLEET]
STATUS: Columns = [("", _status)]
PAGE_CANDIDATES: Columns = [
    *NAME,
    ("", lambda row: " ".join(filter(None, [_status(row), row["reason"]]))),
    ("Requests/s a replica", lambda row: number(row["capacity_per_replica"])),
    ("at most", lambda row: number(row.get("bound_per_replica"))),
    *FLEET,
    *ENERGY,
]
PAGE_E2E: Columns = _measured(latency("e2e_s", "p50"))


def slo_columns(document: Mapping[str, Any]) -> Columns:
    """One for each metric of the SLO; "!" marks the one that is nearest to its limit."""
    return [(name, _limited(name)) for name in document["slo"] if name != "attainment"]


def _limited(name: str) -> Callable[[Mapping[str, Any]], str]:
    def words(row: Mapping[str, Any]) -> str:
        value = (row.get("slo_values") or {}).get(name)
        if value is None:
            return NONE
        return f"{seconds(value)}{' !' if row.get('slo_nearest') == name else ''}"

    return words


def cells(columns: Columns, rows: Rows) -> list[list[str]]:
    return [[text(row) for _, text in columns] for row in rows]
