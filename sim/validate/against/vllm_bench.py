"""The result file of `vllm bench serve --save-result`, with `--save-detailed` or without; one run or several.

Source: vllm/benchmarks/serve.py. Older versions write no `start_times`, so that only the load that was asked for is
known. Gaps between arrivals at a finite rate are gamma-distributed with the shape `burstiness`.
"""

from __future__ import annotations

import math

from sim.validate.against import bench
from sim.validate.against.rows import ResultFile, ToolRun, maybe

ABOUT = "the result of vllm bench serve"
MEASURED_AT = "client"


def detect(file: ResultFile) -> bool:
    return any(
        bench.is_result(record) and ("num_prompts" in record or "dataset_name" not in record)
        for record in file.sample()
    )


def runs(file: ResultFile) -> list[ToolRun]:
    found = []
    for where, record in bench.results(file):
        burstiness = maybe(record, "burstiness")
        cv = 1 / math.sqrt(burstiness) if burstiness > 0 else 1.0
        found.append(bench.run(where, record, cv, more="--save-detailed, beside --save-result,"))
    return found
