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
    for number, request in enumerate(requests["successful"]):
        where = f"successful request {number}"
        start_s = _either(request, "start_time", "request_start_time")
        end_s = _either(request, "last_token_time", "end_time", "request_end_time")
        if not EPOCH_S[0] < start_s < EPOCH_S[1]:
            raise ValueError(f"{where} starts at {start_s:g}, which are no seconds since 1970")
        ttft_s = _ttft_s(request, start_s, where)
        prompt, output = int(request["prompt_tokens"]), int(request["output_tokens"])
        yield Row(where, start_s, prompt, output, ttft_s, end_s - start_s)
    for kind in ("incomplete", "errored"):
        for number, _ in enumerate(requests.get(kind) or []):
            yield Row(f"{kind} request {number}", 0.0, 1, 1, 0.0, 0.0, failed=kind)


def _ttft_s(request: Any, start_s: float, where: str) -> float:
    """From the time stamp or in ms; both must agree."""
    stamp_s, stated_ms = request.get("first_token_time"), request.get("time_to_first_token_ms")
    if stamp_s is None and stated_ms is None:
        raise ValueError(f"{where} has no time of its first token: was the benchmark run without streaming?")
    ttft_s = float(stamp_s) - start_s if stated_ms is None else float(stated_ms) / 1e3
    if stamp_s is not None and abs(float(stamp_s) - start_s - ttft_s) > NEAR_S:
        raise ValueError(f"{where} has its first token after {float(stamp_s) - start_s:g} s and after {stated_ms:g} ms")
    return ttft_s


def _check_complete(benchmark: Any, held: int) -> None:
    """A report may hold a sample of the requests only, which says nothing about when the others came."""
    for group in (benchmark, benchmark.get("metrics") or {}):
        total = (group.get("request_totals") or {}).get("successful")
        if isinstance(total, int) and total != held:
            raise ValueError(f"it holds {held} of {total} successful requests: a sample cannot be sent again")


def _either(request: Any, *names: str) -> float:
    for name in names:
        if request.get(name) is not None:
            return float(request[name])
    raise KeyError(" or ".join(names))
