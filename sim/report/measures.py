"""What runs are compared by: one list of measures for terminal and page, each with the direction that is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sim.report.run.sentences import LATENCIES
from sim.report.units import NONE, number, row_unit, size_of

Summary = Mapping[str, Any]
Unit = Literal["", "s", "%", "bytes"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a summary: `group` and `label` name it, `better` says which way, 0 for neither.

    `always` ones are shown even where no run has anything of it.
    """

    group: str
    label: str
    unit: Unit
    better: Literal[-1, 0, 1]
    value: Callable[[Summary], float | None]
    always: bool = True

    @property
    def title(self) -> str:
        """Group and label as one name, such as "TTFT p99"."""
        return self.label if self.group in UNLIKE else f"{self.group} {self.label}"


# Groups of measures that are told by their labels alone.
UNLIKE = ("Throughput", "KV moved", "Money", "Energy", "Costs")


def _latency(key: str, statistic: str) -> Measure:
    return Measure(LATENCIES[key], statistic, "s", -1, lambda summary: summary[key][statistic])


def _rate(label: str, key: str) -> Measure:
    return Measure("Throughput", label, "", 1, lambda summary: summary["throughput"][key])


def _billed(group: str, label: str, key: str, factor: float = 1.0) -> Measure:
    def value(summary: Summary) -> float | None:
        found = summary["bill"][key]
        return None if found is None else found * factor

    return Measure(group, label, "", -1, value, always=False)


def _kv(group: str, label: str, unit: Unit, better: Literal[-1, 0, 1], *path: str, always: bool = False) -> Measure:
    def value(summary: Summary) -> float | None:
        found: Any = summary["kv"]
        for key in path:
            found = found[key]
        return found  # type: ignore[no-any-return]

    return Measure(group, label, unit, better, value, always)


MEASURES = (
    _rate("Requests/s", "requests_per_s"),
    _rate("Output tokens/s", "output_tokens_per_s"),
    Measure(
        "Throughput", "Goodput/s", "", 1, lambda summary: summary.get("goodput", {}).get("requests_per_s"), always=False
    ),
    *(_latency(key, statistic) for key in LATENCIES for statistic in ("p50", "p99")),
    _kv("KV used", "mean", "%", 0, "mean_used", always=True),
    _kv("KV used", "peak", "%", 0, "peak_used", always=True),
    _kv("KV held", "useful", "%", 1, "useful", always=True),
    _kv("Sharing", "saved", "%", 1, "shared", "saving_mean"),
    _kv("Prefix", "hits", "%", 1, "prefix_hit_rate"),
    _kv("KV moved", "Preemptions", "", -1, "preemptions"),
    _kv("KV moved", "Swapped", "bytes", -1, "swapped_bytes"),
    _kv("KV moved", "Copied", "bytes", 0, "copied_bytes"),
    _billed("Money", "$/Mtok", "usd_per_million_tokens"),
    _billed("Money", "$/Mtok output", "usd_per_million_output_tokens"),
    _billed("Energy", "kJ/Mtok", "joules_per_million_tokens", 1e-3),
    _billed("Energy", "kJ/Mtok output", "joules_per_million_output_tokens", 1e-3),
    Measure("Costs", "Roofline", "%", 0, lambda summary: summary["cost_sources"]["roofline"]),
)


def shown_measures(summaries: Iterable[Summary]) -> list[Measure]:
    """The measures worth a place: those always shown, and those of which any run has something."""
    summaries = list(summaries)
    return [measure for measure in MEASURES if measure.always or any(measure.value(one) for one in summaries)]


def texts(measure: Measure, values: Sequence[float | None]) -> tuple[str, list[str]]:
    """(unit, the values as text), all in the unit that keeps them easy to read."""
    if measure.unit == "bytes":
        return "", [NONE if value is None else size_of(value) for value in values]
    unit, factor = {"s": row_unit(list(values)), "%": ("%", 100.0), "": ("", 1.0)}[measure.unit]
    return unit, scaled(values, factor)


def scaled(values: Sequence[float | None], factor: float) -> list[str]:
    """Each value times a factor as text."""
    return [number(None if value is None else value * factor) for value in values]


def best(measure: Measure, values: Sequence[float | None]) -> set[int]:
    """The places of the best values: all that read the same as the best; none where all values read alike."""
    known = {place: value for place, value in enumerate(values) if value is not None}
    _, shown = texts(measure, values)
    if not measure.better or len({shown[place] for place in known}) < 2:
        return set()
    winner = shown[max(known, key=lambda place: measure.better * known[place])]
    return {place for place in known if shown[place] == winner}
