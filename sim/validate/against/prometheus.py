"""The metrics of a vLLM server, as its /metrics tells them: histograms of all requests since its start.

Source: vllm/v1/metrics/loggers.py. A percentile is known to lie in a bucket, and is interpolated evenly in it, as
Prometheus' histogram_quantile does; means are exact (sum over count). Of several engines of one model the counts are
added up. `time_per_output_token` is an older name of `inter_token_latency`; the time by request is
`request_time_per_output_token`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sim.validate.against.rows import Key, ResultFile, SentLoad, StatedValue, ToolRun
from traces.fields import BadRow, number_of, shown

ABOUT = "the metrics of a vLLM server"
MEASURED_AT = "engine"
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "ttft_s",
    "vllm:request_time_per_output_token_seconds": "tpot_s",
    "vllm:time_per_output_token_seconds": "itl_s",
    "vllm:inter_token_latency_seconds": "itl_s",
    "vllm:e2e_request_latency_seconds": "e2e_s",
    "vllm:request_queue_time_seconds": "queue_s",
}
LENGTHS = ("vllm:request_prompt_tokens", "vllm:request_generation_tokens")
PERCENTS = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(slots=True)
class LatencyHistogram:
    """Counts up to each bucket's edge, and what they add up to."""

    up_to: dict[float, float] = field(default_factory=dict)
    count: float = 0.0
    total: float = 0.0

    def mean(self) -> float:
        return self.total / self.count if self.count > 0 else math.nan

    def percentile(self, percent: float) -> StatedValue | None:
        """None where it lies above the highest edge, or there is nothing."""
        rank, below_edge, below = self.count * percent / 100, 0.0, 0.0
        for edge, count in sorted(self.up_to.items()):
            if count >= rank and count > below:
                if math.isinf(edge):
                    return None
                value = below_edge + (edge - below_edge) * (rank - below) / (count - below)
                return StatedValue(value, below_edge, edge)
            below_edge, below = edge, max(below, count)
        return None


def detect(file: ResultFile) -> bool:
    return any(f"\n{name}_" in f"\n{file.text}" for name in HISTOGRAMS)


def runs(file: ResultFile) -> list[ToolRun]:
    models: dict[str, dict[str, LatencyHistogram]] = {}
    for name, labels, value in _samples(file.text):
        stem, _, kind = name.rpartition("_")
        if stem not in HISTOGRAMS and stem not in LENGTHS:
            continue
        histograms = models.setdefault(labels.get("model_name", ""), {})
        histogram = histograms.setdefault(stem, LatencyHistogram())
        if kind == "bucket":
            edge = number_of(labels.get("le", ""))
            if isinstance(edge, str) or math.isnan(edge):
                raise BadRow(f"{name} has a bucket up to {shown(edge)}; it must be a number")
            histogram.up_to[float(edge)] = histogram.up_to.get(float(edge), 0.0) + value
        elif kind == "count":
            histogram.count += value
        elif kind == "sum":
            histogram.total += value
    return [_run(model, histograms) for model, histograms in sorted(models.items())]


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of each line of vLLM's."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("vllm:"):
            continue
        match = LINE.fullmatch(line.strip())
        value = number_of(match.group(3)) if match else ""
        if match is None or isinstance(value, str):
            raise BadRow(f"line {number} is {shown(line)}; it must be a name, its labels and a number")
        yield match.group(1), dict(LABEL.findall(match.group(2) or "")), float(value)


def _run(model: str, histograms: dict[str, LatencyHistogram]) -> ToolRun:
    stated: dict[Key, StatedValue] = {}
    notes = [
        "The server counts from its start, warm-ups and other clients included, and sees no network; a percentile of "
        "its is known by its bucket alone, and interpolated in it."
    ]
    for name, measure in HISTOGRAMS.items():
        histogram = histograms.get(name)
        if histogram is None or not histogram.count > 0:
            continue
        stated[measure, "mean"] = StatedValue.exact(histogram.mean())
        for statistic, percent in PERCENTS.items():
            if (found := histogram.percentile(percent)) is not None:
                stated[measure, statistic] = found
            else:
                notes.append(f"{statistic} of {name} lies above its highest bucket and is not compared.")
    prompt, output = (histograms[name].mean() if name in histograms else math.nan for name in LENGTHS)
    counted = histograms.get("vllm:e2e_request_latency_seconds", LatencyHistogram()).count
    label = model or "a server"
    return ToolRun(label, (), SentLoad(), stated, int(counted), mean_tokens=(prompt, output), notes=tuple(notes))
