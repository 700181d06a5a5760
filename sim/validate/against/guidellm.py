"""A GuideLLM report (benchmarks.json) with one benchmark: its successful, incomplete and errored requests.

Written from GuideLLM's documented output (benchmarks[].requests; times in seconds since the epoch, latencies of the
first token in ms), not yet tried on a file of a real run. Requests of its warm-up are in none of the lists.
"""

from collections.abc import Iterator
from typing import Any

from sim.validate.against import Row

ABOUT = "a GuideLLM report"
EPOCH_S = (1e8, 1e10)
"""Seconds since 1970 lie here; milliseconds and nanoseconds do not."""
NEAR_S = 2e-3


def detect(document: Any) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list) or not document["benchmarks"]:
        return False
    return isinstance(document["benchmarks"][0], dict) and "requests" in document["benchmarks"][0]


def rows(document: Any) -> Iterator[Row]:
    benchmarks = document["benchmarks"]
    if len(benchmarks) != 1:
        raise ValueError(f"it holds {len(benchmarks)} benchmarks; give a report of one")
    requests = benchmarks[0]["requests"]
    _check_complete(benchmarks[0], len(requests["successful"]))
    for number, one in enumerate(requests["successful"]):
        where = f"successful request {number}"
        start_s = _either(one, "start_time", "request_start_time")
        end_s = _either(one, "last_token_time", "end_time", "request_end_time")
        if not EPOCH_S[0] < start_s < EPOCH_S[1]:
            raise ValueError(f"{where} starts at {start_s:g}, which are no seconds since 1970")
        yield Row(
            where, start_s, int(one["prompt_tokens"]), int(one["output_tokens"]), _ttft_s(one, start_s, where),
            end_s - start_s,
        )  # fmt: skip
    for kind in ("incomplete", "errored"):
        for number, _ in enumerate(requests.get(kind) or []):
            yield Row(f"{kind} request {number}", 0.0, 1, 1, 0.0, 0.0, failed=kind)


def _ttft_s(one: Any, start_s: float, where: str) -> float:
    """From the time stamp or in ms; both must agree."""
    stamp_s, told_ms = one.get("first_token_time"), one.get("time_to_first_token_ms")
    if stamp_s is None and told_ms is None:
        raise ValueError(f"{where} has no time of its first token: was the benchmark run without streaming?")
    told_s = float(stamp_s) - start_s if told_ms is None else float(told_ms) / 1e3
    if stamp_s is not None and abs(float(stamp_s) - start_s - told_s) > NEAR_S:
        raise ValueError(f"{where} has its first token after {float(stamp_s) - start_s:g} s and after {told_ms:g} ms")
    return told_s


def _check_complete(benchmark: Any, held: int) -> None:
    """A report may hold a sample of the requests only, which says nothing about when the others came."""
    for group in (benchmark, benchmark.get("metrics") or {}):
        total = (group.get("request_totals") or {}).get("successful")
        if isinstance(total, int) and total != held:
            raise ValueError(f"it holds {held} of {total} successful requests: a sample cannot be sent again")


def _either(one: Any, *names: str) -> float:
    for name in names:
        if one.get(name) is not None:
            return float(one[name])
    raise KeyError(" or ".join(names))
