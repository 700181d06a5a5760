"""The tables of a plan for terminal and page: each column a heading and how a row of the document reads in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sim.report.measures import LatencyUnits, Measure, latency
from sim.report.plan.sentences import binds_words, gpu_count, gpus_words
from sim.results.units import NONE, count, dollars, energy, number, percent

Row = Mapping[str, Any]
Rows = Iterable[Row]
MET = {True: "met", False: "missed", None: "open"}


class PlanColumn(NamedTuple):
    heading: str
    text: Callable[[Row], str]
    spare: int = 0
    """The higher, the sooner a narrow terminal leaves it out; 0 always stays."""
    prose: bool = False
    """Whether it is words, which stand to the left and may take several lines."""


Columns = Sequence[PlanColumn]


def rate_columns(units: LatencyUnits) -> Columns:
    """Of a rate that was simulated, for the terminal."""
    return [RATE, *_tails(units, "p99"), *COUNTS, MET_SLO]


def page_rate_columns(units: LatencyUnits) -> Columns:
    return [RATE, MET_SLO, *_tails(units, "p50", "p99"), *COUNTS]


def candidate_columns(document: Mapping[str, Any], units: LatencyUnits) -> Columns:
    """Of a candidate, for the terminal: its reason is told below the table."""
    return [NAME, CAPACITY, *FLEET, *_limited(document, units), PlanColumn("", _status)]


def page_candidate_columns(document: Mapping[str, Any], units: LatencyUnits) -> Columns:
    """Of a candidate, with the range of its GPUs and of its capacity, and what binds it."""
    return [
        NAME,
        PlanColumn("Status", _told, prose=True),
        PlanColumn("GPUs", gpus_words, prose=True),
        PlanColumn("Bound by", _binds, prose=True),
        PlanColumn("Replicas", lambda row: count(row["replicas"])),
        PlanColumn("Requests/s a replica", _capacity, prose=True),
        PlanColumn("at most", lambda row: number(row.get("bound_per_replica"))),
        PlanColumn("$/hour", _money, prose=True),
        *FLEET[-2:],
        *_limited(document, units),
        *_measured(latency("e2e_s", "p50"), units),
    ]


def _measured(measure: Measure, units: LatencyUnits) -> Columns:
    return [PlanColumn(measure.title, lambda row: units.words(measure, measure.value(row)))]


def _tails(units: LatencyUnits, *statistics: str) -> Columns:
    """TTFT and TPOT by these statistics, and the p99 of E2E."""
    shown = [latency(key, statistic) for key in ("ttft_s", "tpot_s") for statistic in statistics]
    return [column for measure in (*shown, latency("e2e_s", "p99")) for column in _measured(measure, units)]


def _limited(document: Mapping[str, Any], units: LatencyUnits) -> Columns:
    """One column for each metric of the SLO; "!" marks the one that is nearest to its limit."""

    def words(name: str) -> Callable[[Row], str]:
        unit = units.of_clause(name)

        def text(row: Row) -> str:
            value = (row.get("slo_values") or {}).get(name)
            return NONE if value is None else f"{unit.words(value)}{' !' if row.get('slo_nearest') == name else ''}"

        return text

    return [PlanColumn(name, words(name)) for name in document["slo"] if name != "attainment"]


def _status(row: Row) -> str:
    return f"{row['status']} *" if row.get("pareto") else str(row["status"])


def _told(row: Row) -> str:
    return ": ".join(filter(None, [_status(row), row["reason"]]))


def _binds(row: Row) -> str:
    """What binds it as simulated, or else what the bound of its costs says."""
    if row.get("binds"):
        return binds_words(row).removeprefix(", bound by ")
    return f"{row['bound_binds']}, by its costs" if row.get("bound_binds") else NONE


def _capacity(row: Row) -> str:
    text, span = number(row["capacity_per_replica"]), row.get("range_per_replica")
    return f"{text} ({number(span[0])} to {number(span[1])})" if span and None not in span else text


def _money(row: Row) -> str:
    text, span = dollars(row["usd_per_hour"]), row.get("usd_range")
    if not span or span["low"] is None or span["high"] is None:
        return text
    return f"{text} ({dollars(span['low'])} to {dollars(span['high'])})"


NAME = PlanColumn("Candidate", lambda row: str(row["name"]))
CAPACITY = PlanColumn("Req/s each", lambda row: number(row["capacity_per_replica"]), 1)
FLEET: Columns = [
    PlanColumn("Replicas", lambda row: count(row["replicas"]), 2),
    PlanColumn("GPUs", lambda row: count(gpu_count(row))),
    PlanColumn("$/hour", lambda row: dollars(row["usd_per_hour"])),
    PlanColumn("$/Mtok", lambda row: dollars(row["usd_per_million_tokens"]), 3),
    PlanColumn("Energy/Mtok", lambda row: energy(row["joules_per_million_tokens"]), 4),
]
RATE = PlanColumn("Requests/s", lambda row: number(row["requests_per_s"]))
MET_SLO = PlanColumn("SLO", lambda row: MET[row["met"]] if row["stable"] else "unstable")
COUNTS: Columns = [
    PlanColumn("Goodput", lambda row: percent(row["goodput"]["fraction"]), 1),
    PlanColumn("Replications", lambda row: count(row["replications"]), 2),
]


def cells(columns: Columns, rows: Rows) -> list[list[str]]:
    return [[column.text(row) for column in columns] for row in rows]
