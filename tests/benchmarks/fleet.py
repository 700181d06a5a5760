"""What many replicas cost the loop, and many requests the memory.

`python -m tests.benchmarks.fleet --requests 1000000`. The requests have the lengths of Azure's conversations in a drawn
order, and come as a Poisson stream of so many a second for each replica. Each run has its own process. Told are CPU
seconds of the loop beside those of the same requests over one replica at its rate, in turns; the loop's microseconds an
event by the number of replicas; and the whole process's seconds and peak memory by the number of requests.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from typing import Any

from tests.benchmarks.against import AZURE, ROOT

RATE = 5.0
"""Requests per second and replica, under which one of the default's GPUs is busy for most of the time."""
ONE = """
import json, resource, sys, time
import numpy as np
import traces
from sim import api, scenario
from traces.rows import from_frame
asked = json.loads(sys.argv[1])
count, replicas, rng = asked["requests"], asked["replicas"], np.random.default_rng(1)
settings = {"kv.blocks": 30_000, "front_end.name": asked["front_end"]}
if replicas > 1:
    settings |= {"replicas": replicas, "router.name": asked["router"]}
plan = scenario.build(settings)
rows = traces.read(asked["trace"]).requests[["arrival_s", "prompt_tokens", "output_tokens"]]
rows = rows.iloc[rng.integers(len(rows), size=count)].reset_index(drop=True)
rows["arrival_s"] = rng.exponential(1.0 / (asked["rate"] * replicas), count).cumsum()
trace = from_frame(rows, name="drawn")
del rows
api.simulate(plan, trace=from_frame(trace.requests.iloc[:20], name="first"))
before_s = time.process_time()
result = api.simulate(plan, trace=trace)
speed = result.summary["simulator"]
assert result.summary["requests"]["completed"] == count
print(json.dumps({
    "loop_s": speed["cpu_s"], "cpu_s": time.process_time() - before_s, "events": speed["events"],
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def once(requests: int, replicas: int, router: str, front_end: str) -> dict[str, Any]:
    """One run in a fresh process."""
    asked = {
        "requests": requests, "replicas": replicas, "router": router, "front_end": front_end, "trace": str(AZURE),
        "rate": RATE,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    words = [sys.executable, "-c", ONE, json.dumps(asked)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit((done.stderr.strip().splitlines() or ["the run failed"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def beside_one(requests: int, replicas: int, router: str, front_end: str, rounds: int) -> None:
    """The loop's seconds over those of one replica."""
    pairs = [(once(requests, replicas, router, front_end), once(requests, 1, router, front_end)) for _ in range(rounds)]
    ratios = sorted(many["loop_s"] / one["loop_s"] for many, one in pairs)
    many, one = pairs[-1]
    print(
        f"{router:18} {replicas} replicas / one: "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"{many['loop_s']:.1f} and {one['loop_s']:.1f} CPU s, {many['events']:,} and {one['events']:,} events, "
        f"peak {many['peak_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )


def by_replicas(requests: int, replicas: int, router: str, front_end: str) -> None:
    """What an event costs, by the number of replicas."""
    sizes = sorted({max(2, replicas >> shift) for shift in (4, 2, 0)} | {4 * replicas})
    for size in sizes:
        run = once(requests, size, router, front_end)
        print(
            f"{router:18} {size:4} replicas: {1e6 * run['loop_s'] / run['events']:6.1f} us an event, "
            f"{run['events'] / requests:.1f} events and {1e6 * run['loop_s'] / requests:.0f} us a request",
            flush=True,
        )


def by_requests(requests: int, replicas: int, router: str, front_end: str) -> None:
    """Seconds and memory of the whole process, by the number of requests."""
    before: dict[str, Any] | None = None
    for size in (requests // 50, requests // 10, requests):
        run = {**once(size, replicas, router, front_end), "requests": size}
        told = f"{size:9,} requests: {run['cpu_s']:7.1f} CPU s, peak {run['peak_bytes'] / 2**20:7.0f} MiB"
        if before is not None:
            more = math.log(size / before["requests"])
            grown = run["peak_bytes"] - before["peak_bytes"]
            told += (
                f", exponent of the seconds {math.log(run['cpu_s'] / before['cpu_s']) / more:.2f}, "
                f"{grown / (size - before['requests']):.0f} bytes a request more"
            )
        print(told, flush=True)
        before = run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--routers", default="least-outstanding", help="names, with commas between")
    parser.add_argument("--front-end", default="off")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("one", "replicas", "requests"), help="of the three comparisons")
    asked = parser.parse_args()
    if not AZURE.exists():
        sys.exit(f"needs {AZURE.relative_to(ROOT.parent)} beside the checkout")
    for router in asked.routers.split(","):
        if asked.only in (None, "one"):
            beside_one(asked.requests, asked.replicas, router, asked.front_end, asked.rounds)
        if asked.only in (None, "replicas"):
            by_replicas(asked.requests, asked.replicas, router, asked.front_end)
        if asked.only in (None, "requests"):
            by_requests(asked.requests, asked.replicas, router, asked.front_end)


if __name__ == "__main__":
    main()
