"""A GuideLLM report (JSON) with one benchmark: its successful, incomplete and errored requests.

Written from GuideLLM's documented output (benchmarks[].requests; start times in seconds since the epoch, latencies of
the first token in ms), not yet tried on a file of a real run.
"""

from collections.abc import Iterator
from typing import Any

from sim.validate.against import Row

ABOUT = "a GuideLLM report"


def detect(document: Any) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list) or not document["benchmarks"]:
        return False
    return isinstance(document["benchmarks"][0], dict) and "requests" in document["benchmarks"][0]


def rows(document: Any) -> Iterator[Row]:
    benchmarks = document["benchmarks"]
    if len(benchmarks) != 1:
        raise ValueError(f"it holds {len(benchmarks)} benchmarks; give a report of one")
    requests = benchmarks[0]["requests"]
    for number, one in enumerate(requests["successful"]):
        start_s = float(_either(one, "start_time", "request_start_time"))
        end_s = float(_either(one, "end_time", "request_end_time"))
        prompt, output = int(one["prompt_tokens"]), int(one["output_tokens"])
        ttft_s = float(one["time_to_first_token_ms"]) / 1e3
        yield Row(f"successful request {number}", start_s, prompt, output, ttft_s, end_s - start_s)
    for kind in ("incomplete", "errored"):
        for number, _ in enumerate(requests.get(kind) or []):
            yield Row(f"{kind} request {number}", 0.0, 1, 1, 0.0, 0.0, failed=kind)


def _either(one: Any, *names: str) -> Any:
    for name in names:
        if one.get(name) is not None:
            return one[name]
    raise KeyError(" or ".join(names))
