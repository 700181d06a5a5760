"""A GuideLLM report (benchmarks.json): one benchmark or a sweep of them, with all of their requests or a sample.

Source: guidellm/schemas/request_stats.py, schemas/info.py, scheduler/strategies.py and benchmark/schemas/generative
(0.5), where a request's times stand in `info.timings`; before 0.4 they stood in the request itself. Times are seconds
since the epoch, latencies of tokens in ms. Requests of its warm-up and cool-down are in none of its lists. Statistics
of the latency between tokens are weighted by tokens there: the mean is that of our ITL, the percentiles are of
requests' means and have no peer here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sim.validate.against.rows import (
    ANY_COUNT,
    SECONDS,
    Key,
    Omitted,
    ResultFile,
    Row,
    SentLoad,
    StatedValue,
    ToolRun,
    an_object,
    each,
    either,
    inner,
    maybe,
    within,
)
from traces.fields import BadRow, real, shown

ABOUT = "a GuideLLM report"
MEASURED_AT = "client"
EPOCH_S = (1e8, 1e10)
"""Seconds since 1970 lie here; milliseconds and nanoseconds do not."""
NEAR_S = 2e-3
LATENCIES = {"time_to_first_token_ms": ("ttft_s", 1e-3), "request_latency": ("e2e_s", 1.0)}
RATES = {"requests_per_second": "requests_per_s", "output_tokens_per_second": "output_tokens_per_s"}
PERCENTILES = {"p50": "p50", "p75": "p75", "p90": "p90", "p95": "p95", "p99": "p99"}


def detect(file: ResultFile) -> bool:
    found = file.value
    if not isinstance(found, dict) or not isinstance(found.get("benchmarks"), list):
        return False
    return any(isinstance(one, dict) and "requests" in one for one in found["benchmarks"])


def runs(file: ResultFile) -> list[ToolRun]:
    return [_run(number, an_object(one, f"benchmark {number}")) for number, one in _numbered(file.value["benchmarks"])]


def _numbered(values: list[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(values, 1))


def _run(number: int, benchmark: Mapping[str, Any]) -> ToolRun:
    try:
        requests = inner(benchmark, "requests")
        rows = each(_entries(requests, "successful"), _row)
    except BadRow as bad:
        raise BadRow(f"benchmark {number}: {bad}") from None
    held = len(rows)
    for kind in ("incomplete", "errored"):
        rows += [Omitted(where, "failed", _error(kind, one)) for where, one in _entries(requests, kind)]
    strategy = _strategy(benchmark)
    total = _total(benchmark)
    sampled = total is not None and total > held
    notes = [f"GuideLLM leaves out the {phase}." for phase in _phases(benchmark)]
    if sampled:
        notes.append(
            f"The report holds {held} of {total} successful requests, a sample; a statistic that it does not have of "
            "all is the sample's."
        )
    return ToolRun(
        label=_label(strategy),
        rows=rows,
        load=_load(strategy) if sampled else None,
        stated=_stated(benchmark),
        answered=total or held,
        sampled=sampled,
        mean_tokens=_mean_tokens(benchmark),
        notes=tuple(notes),
    )


def _entries(requests: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    values = requests.get(kind) or []
    if not isinstance(values, list):
        raise BadRow(f"requests.{kind} is {shown(values)}; it must be a list")
    return [(f"{kind} request {number}", one) for number, one in enumerate(values)]


def _error(kind: str, request: Any) -> str:
    info = within(request, "info") if isinstance(request, dict) else {}
    return str(info.get("error") or kind)


def _row(where: str, request: dict[str, Any]) -> Row:
    stamps = request | within(within(request, "info"), "timings")
    start_s = either(stamps, SECONDS, "request_start", "start_time", "request_start_time")
    end_s = either(
        stamps, SECONDS, "last_token_iteration", "last_token_time", "request_end", "end_time", "request_end_time"
    )
    if not EPOCH_S[0] < start_s < EPOCH_S[1]:
        raise BadRow(f"it starts at {start_s:g}, which are no seconds since 1970")
    prompt, output = (either(request, ANY_COUNT, key) for key in ("prompt_tokens", "output_tokens"))
    if end_s - start_s > (latency_s := maybe(request, "request_latency")) + NEAR_S:
        raise BadRow(f"its request_latency is {latency_s:g} s, and its last token came after {end_s - start_s:g} s")
    return Row(where, start_s, prompt, output, _ttft_s(request, stamps, start_s), end_s - start_s)


def _ttft_s(request: Mapping[str, Any], stamps: Mapping[str, Any], start_s: float) -> float:
    """From the time stamp or in ms, which must agree; NaN where there is neither, as without streaming."""
    stamp = next((stamps[key] for key in ("first_token_iteration", "first_token_time") if stamps.get(key)), None)
    stamp_s, stated_s = (math.nan if (found := real(one)) is None else float(found) for one in
                         (stamp, request.get("time_to_first_token_ms")))  # fmt: skip
    stated_s, stamped_s = stated_s / 1e3, stamp_s - start_s
    if abs(stamped_s - stated_s) > NEAR_S:
        raise BadRow(f"its first token came after {stamped_s:g} s by its stamp and after {1e3 * stated_s:g} ms as told")
    return stamped_s if math.isnan(stated_s) else stated_s


def _strategy(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where 0.4 and later have it, or the versions before."""
    return within(within(benchmark, "config"), "strategy") or within(within(benchmark, "args"), "strategy")


def _label(strategy: Mapping[str, Any]) -> str:
    kind = str(strategy.get("type_") or "a benchmark")
    rate, streams = maybe(strategy, "rate"), maybe(strategy, "streams")
    return f"{kind} {rate:g}/s" if rate > 0 else f"{kind} {streams:g}" if streams > 0 else kind


def _load(strategy: Mapping[str, Any]) -> SentLoad:
    kind, most = strategy.get("type_"), maybe(strategy, "max_concurrency")
    users = int(most) if most >= 1 else 0
    if kind == "synchronous":
        return SentLoad(concurrency=1)
    if kind == "concurrent":
        streams = maybe(strategy, "streams")
        return SentLoad(concurrency=int(streams) if streams >= 1 else users)
    if kind == "throughput":
        return SentLoad(math.inf, concurrency=users)
    rate = maybe(strategy, "rate")
    return SentLoad(rate if rate > 0 else 0.0, 0.0 if kind == "constant" else 1.0, users)


def _total(benchmark: Mapping[str, Any]) -> int | None:
    """How many requests succeeded; None where it is not told."""
    totals = within(within(benchmark, "metrics"), "request_totals") or within(benchmark, "request_totals")
    found = real(totals.get("successful"))
    return None if found is None else int(found)


def _phases(benchmark: Mapping[str, Any]) -> list[str]:
    names = {"warmup_duration": "warm-up", "cooldown_duration": "cool-down"}
    return [
        f"requests of its {name}, {seconds:g} s long, whose load the server had"
        for key, name in names.items()
        if (seconds := maybe(benchmark, key)) > 0
    ]


def _summary(benchmark: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The statistics of one metric over successful requests; empty where there are none."""
    return within(within(within(benchmark, "metrics"), name), "successful")


def _stated(benchmark: Mapping[str, Any]) -> dict[Key, StatedValue]:
    values: dict[Key, float] = {}
    for name, (measure, factor) in LATENCIES.items():
        summary = _summary(benchmark, name)
        percentiles = within(summary, "percentiles")
        for statistic, key in PERCENTILES.items():
            values[measure, statistic] = factor * maybe(percentiles, key)
        values |= {(measure, one): factor * maybe(summary, one) for one in ("mean", "max")}
    values["itl_s", "mean"] = 1e-3 * maybe(_summary(benchmark, "inter_token_latency_ms"), "mean")
    values |= {("throughput", rate): maybe(_summary(benchmark, name), "mean") for name, rate in RATES.items()}
    return {key: StatedValue.exact(value) for key, value in values.items() if value > 0}


def _mean_tokens(benchmark: Mapping[str, Any]) -> tuple[float, float]:
    prompt, output = (maybe(_summary(benchmark, f"{side}_token_count"), "mean") for side in ("prompt", "output"))
    return prompt, output
