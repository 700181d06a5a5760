"""The measures that tables and pages show: one list, with names, units, formats and the direction that is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sim.results.percentiles import STATISTICS
from sim.results.units import NONE, TimeUnit, dollars, energy, number, percent, row_unit, seconds, size_of, time_unit

Summary = Mapping[str, Any]
Values = Iterable[float | None]
Unit = Literal["", "per s", "s", "%", "bytes", "usd", "J"]
LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E", "queue_s": "Queue"}
"""What a client sees, and the wait in the engine."""
OF_THE_ENGINE = {f"engine_{key}": f"Engine {name}" for key, name in LATENCIES.items() if key != "queue_s"}
"""What the engine does behind a front end; without one the same as a client sees, and then not shown."""


class Scale(NamedTuple):
    """How the values of a column or an axis are shown: in which unit, and what to multiply them by."""

    unit: str
    factor: float


class UnitFormat(NamedTuple):
    """How a quantity is written: `words` for one value, `scale` for many by the largest of them."""

    words: Callable[[float], str]
    scale: Callable[[float], tuple[str, float]]


FORMATS: dict[Unit, UnitFormat] = {
    "": UnitFormat(number, lambda _: ("", 1.0)),
    "per s": UnitFormat(lambda value: f"{number(value)}/s", lambda _: ("per s", 1.0)),
    "s": UnitFormat(seconds, lambda largest: row_unit([largest])),
    "%": UnitFormat(percent, lambda _: ("%", 100.0)),
    "bytes": UnitFormat(size_of, lambda _: ("B", 1.0)),
    "usd": UnitFormat(dollars, lambda _: ("$", 1.0)),
    "J": UnitFormat(energy, lambda largest: ("kJ", 1e-3) if largest < 1e7 else ("MJ", 1e-6)),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a run: `key` is its place in a summary and its column in a table of runs, as a dotted path.

    `better` says which way, 0 for neither. Tables of runs put it as `short` under the heading `group`.
    """

    key: str
    label: str
    unit: Unit
    better: Literal[-1, 0, 1]
    group: str = ""
    short: str = ""
    compared: Literal["always", "if any", "never"] = "never"
    """Whether runs side by side show it: always, or where any run has something of it."""

    @property
    def title(self) -> str:
        """Its name in one line of a table of runs, such as "TTFT p99" or "Requests/s"."""
        name = self.short if self.group in UNLIKE else f"{self.group} {self.short}"
        return f"{name}/s" if self.unit == "per s" else name

    @property
    def metric(self) -> str:
        """The latency that it is a statistic of, a key of `LATENCIES`; "" for other measures."""
        metric = self.key.partition(".")[0]
        return metric if metric in LATENCIES else ""

    def find(self, summary: Summary) -> Any:
        value: Any = summary
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def value(self, summary: Summary) -> float | None:
        return self.find(summary)  # type: ignore[no-any-return]

    def words(self, value: float | None) -> str:
        return NONE if value is None or math.isnan(value) else FORMATS[self.unit].words(value)

    def scale(self, values: Values) -> Scale:
        """The unit in which these values are easy to read together."""
        known = [value for value in values if value is not None and not math.isnan(value)]
        return Scale(*FORMATS[self.unit].scale(max(known, default=0.0)))

    def side_by_side(self, values: Values) -> Scale:
        """The same under `title`, which names the unit of rates, money and energy already."""
        return self.scale(values) if self.unit in ("s", "%") else Scale("", self.scale([]).factor)

    def texts(self, values: Sequence[float | None]) -> tuple[str, list[str]]:
        """(unit, the values as text) under `title`."""
        if self.unit == "bytes":
            return "", list(map(self.words, values))
        unit, factor = self.side_by_side(values)
        return unit, scaled(values, factor)


# Groups of measures that are told by their short names alone.
UNLIKE = ("Throughput", "Load", "KV moved", "Money", "Energy", "Costs")


def _latency(key: str, statistic: str) -> Measure:
    name = LATENCIES.get(key) or OF_THE_ENGINE[key]
    label = f"{name} {'median' if statistic == 'p50' else statistic}"
    compared: Literal["always", "never"] = "always" if key in LATENCIES and statistic in ("p50", "p99") else "never"
    return Measure(f"{key}.{statistic}", label, "s", -1, name, statistic, compared)


MEASURES = {
    measure.key: measure
    for measure in (
        Measure("throughput.requests_per_s", "Requests", "per s", 1, "Throughput", "Requests", "always"),
        Measure("throughput.output_tokens_per_s", "Output tokens", "per s", 1, "Throughput", "Output tokens", "always"),
        Measure("goodput.requests_per_s", "Goodput", "per s", 1, "Throughput", "Goodput", "if any"),
        Measure("goodput.fraction", "SLO met", "%", 1),
        Measure("load.offered_per_s", "Requests offered", "per s", 0, "Load", "Offered", "if any"),
        Measure("load.admitted_per_s", "Requests admitted", "per s", 0, "Load", "Admitted", "if any"),
        Measure("load.served_per_s", "Requests served while others came", "per s", 1, "Load", "Served", "if any"),
        *(_latency(key, statistic) for key in (*LATENCIES, *OF_THE_ENGINE) for statistic in STATISTICS),
        Measure("kv.mean_used", "KV used", "%", 0, "KV used", "mean", "always"),
        Measure("kv.peak_used", "KV used at the peak", "%", 0, "KV used", "peak", "always"),
        Measure("kv.useful", "Useful share of the KV held", "%", 1, "KV held", "useful", "always"),
        Measure("kv.shared.saving_mean", "KV saved by sharing", "%", 1, "Sharing", "saved", "if any"),
        Measure("kv.prefix_hit_rate", "Prefix hits", "%", 1, "Prefix", "hits", "if any"),
        Measure("kv.preemptions", "Preemptions", "", -1, "KV moved", "Preemptions", "if any"),
        Measure("kv.swapped_bytes", "KV swapped", "bytes", -1, "KV moved", "Swapped", "if any"),
        Measure("kv.copied_bytes", "KV copied", "bytes", 0, "KV moved", "Copied", "if any"),
        Measure("gpus", "GPUs", "", -1),
        Measure("bill.usd_per_million_tokens", "Cost per million tokens", "usd", -1, "Money", "$/Mtok", "if any"),
        Measure("bill.usd_per_million_output_tokens", "Cost per million output tokens", "usd", -1,
                "Money", "$/Mtok output", "if any"),
        Measure("gpu_hours_per_million_output_tokens", "GPU-hours per million output tokens", "", -1),
        Measure("output_tokens_per_s_per_gpu", "Output tokens per GPU", "per s", 1),
        Measure("output_tokens_per_s_per_user", "Output tokens per user", "per s", 1),
        Measure("output_tokens_per_s_per_megawatt", "Output tokens per MW", "per s", 1),
        Measure("bill.joules_per_million_tokens", "Energy per million tokens", "J", -1, "Energy", "kJ/Mtok", "if any"),
        Measure("bill.joules_per_million_output_tokens", "Energy per million output tokens", "J", -1,
                "Energy", "kJ/Mtok output", "if any"),
        Measure("cost_sources.roofline", "Share of roofline seconds", "%", 0, "Costs", "Roofline", "always"),
    )
}  # fmt: skip
"""By key; the order is that of the tables."""


def latency(key: str, statistic: str) -> Measure:
    """A statistic of a latency: one of the list, or another percentile that somebody else's results have."""
    return MEASURES.get(f"{key}.{statistic}") or _latency(key, statistic)


def listed() -> list[dict[str, str]]:
    """The rows of `sim list measures`: key, unit, which way is better, what it is."""
    ways = {1: "more", 0: "", -1: "less"}
    return [
        {"name": key, "unit": measure.unit, "better": ways[measure.better], "about": measure.label}
        for key, measure in MEASURES.items()
    ]


def compared(summaries: Iterable[Summary]) -> list[Measure]:
    """The measures of runs side by side: those always shown, and those of which any run has something."""
    runs = list(summaries)
    return [
        measure
        for measure in MEASURES.values()
        if measure.compared == "always" or (measure.compared == "if any" and any(map(measure.value, runs)))
    ]


@dataclass(frozen=True, slots=True)
class LatencyUnits:
    """The one unit of each latency in a report: that in which its p99, the largest of several runs', is easy to read.

    So sentences, cards, tables, axes and limits agree, with one another and with the verdict, which tells the p99.
    """

    by: Mapping[str, TimeUnit]

    @classmethod
    def of(cls, runs: Iterable[Summary]) -> LatencyUnits:
        """Of summaries, or of any documents that have p99 where a summary has it."""
        tails: dict[str, list[float]] = {key: [] for key in LATENCIES}
        for run in runs:
            for key, known in tails.items():
                if (tail := (run.get(key) or {}).get("p99")) is not None and not math.isnan(tail):
                    known.append(tail)
        return cls({key: time_unit(max(known, default=None)) for key, known in tails.items()})

    def __getitem__(self, metric: str) -> TimeUnit:
        return self.by[metric]

    def of_clause(self, name: str) -> TimeUnit:
        """That of the latency which a clause of an SLO limits, such as `ttft_p99`."""
        return self.by[f"{name.partition('_')[0]}_s"]

    def words(self, measure: Measure, value: float | None) -> str:
        return self.by[measure.metric].words(value) if measure.metric else measure.words(value)

    def scale(self, measure: Measure, values: Values) -> Scale:
        """The unit of the values, as `Measure.scale` has it for what is no latency."""
        return Scale(*self.by[measure.metric]) if measure.metric else measure.scale(values)

    def texts(self, measure: Measure, values: Sequence[float | None]) -> tuple[str, list[str]]:
        """(unit, the values as text) under the measure's title."""
        if not measure.metric:
            return measure.texts(values)
        unit, factor = self.by[measure.metric]
        return unit, scaled(values, factor)

    def limit(self, clause: str, limit_s: float) -> str:
        """The limit of a clause of an SLO."""
        return self.of_clause(clause).limit(limit_s)


def latency_rows(
    summary: Summary, statistics: Sequence[str], units: LatencyUnits
) -> Iterator[tuple[str, str, list[str]]]:
    """(name, unit, values as text) of each latency, one unit a row; the engine's where clients see others."""
    late = (summary.get("admission") or {}).get("queued") or (summary.get("retries") or {}).get("requests")
    behind = OF_THE_ENGINE if summary.get("front_end") or late else {}
    for key, name in (LATENCIES | behind).items():
        unit, factor = units[key.removeprefix("engine_")]
        yield name, unit, scaled([summary[key][statistic] for statistic in statistics], factor)


def scaled(values: Values, factor: float) -> list[str]:
    return [number(None if value is None or math.isnan(value) else value * factor) for value in values]


def best(measure: Measure, values: Sequence[float | None], units: LatencyUnits) -> set[int]:
    """The places of the best values: all that read the same as the best; none where all values read alike."""
    known = {place: value for place, value in enumerate(values) if value is not None}
    _, shown = units.texts(measure, values)
    if not measure.better or len({shown[place] for place in known}) < 2:
        return set()
    winner = shown[max(known, key=lambda place: measure.better * known[place])]
    return {place for place in known if shown[place] == winner}
